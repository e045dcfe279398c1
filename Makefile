# Every command of the project. 'make help' lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
COLLECTION := .ansible/collections/ansible_collections/celeryops/hybrid
PACKAGE := roles/worker/files/celery-hybrid
export PATH := $(CURDIR)/$(BIN):$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.ansible/collections

.PHONY: help
help: ## list every target
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-18s %s\n", $$1, $$2}'

## set-up, cached

.PHONY: system-packages
system-packages: ## install the Debian packages that the test hosts need
	@tests/hosts/system-packages.sh

$(VENV)/.installed: requirements-dev.txt | system-packages
	@echo "  .venv: installing what requirements-dev.txt pins (about half a minute)"
	@python3 -m venv $(VENV)
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

$(COLLECTION):
	@mkdir -p $(dir $@)
	@ln -sfn ../../../.. $@

.PHONY: venv
venv: $(VENV)/.installed | $(COLLECTION) ## make the virtual environment

.PHONY: images
images: | system-packages ## build the images of the test hosts
	@python3 tests/hosts/testhosts.py images
