# Every command of the project. 'make help' lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
COLLECTION := .ansible/collections/ansible_collections/celeryops/hybrid
PACKAGE := celery-hybrid
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
venv: $(VENV)/.installed | $(COLLECTION) ## create the virtual environment

.PHONY: images
images: | system-packages ## build the images of the test hosts
	@python3 tests/hosts/testhosts.py images

## the demo

DEMO_WORKERS ?= 1
DEMO_IMAGE ?= debian12

.PHONY: demo
demo: ## deploy the whole stack on throw-away hosts (DEMO_WORKERS=2 for two worker hosts)
	@echo "Set-up"
	@$(MAKE) system-packages
	@$(MAKE) --jobs=2 venv image-of-demo
	@python3 demo/demo.py up --workers '$(DEMO_WORKERS)' --image '$(DEMO_IMAGE)'

.PHONY: image-of-demo
image-of-demo: | system-packages
	@python3 tests/hosts/testhosts.py images $(DEMO_IMAGE)

.PHONY: demo-ssh
demo-ssh: ## open a shell on a host of the demo (HOST=worker1)
	@python3 demo/demo.py ssh '$(HOST)'

.PHONY: demo-down
demo-down: ## remove the demo completely
	@python3 demo/demo.py down

## the tests

.PHONY: test
test: ## everything that CI runs: lint, unit tests, older and newer cores, modules, package, a short chaos run, molecule
	@tests/run.sh lint unit cores modules package chaos molecule

.PHONY: lint
lint: venv ## yamllint, ansible-lint, ruff, mypy, spelling, wording, generated documentation
	@yamllint .
	@ansible-lint --offline
	@ruff check .
	@ruff format --check .
	@mypy tests/hosts tests/support tests/cores tests/package tests/modules/run.py tests/celery_suite/run.py \
		tests/bench/run.py tests/bench/transport.py tests/bench/topology.py tests/chaos/run.py tests/chaos/outages.py demo tools
	@git ls-files -z | xargs -0 codespell
	@python3 tools/wording.py
	@python3 tools/variables.py --check
	@python3 tools/topology.py --check
	@python3 tools/dashboards.py --check
	@mypy --config-file $(PACKAGE)/pyproject.toml $(PACKAGE)/src

.PHONY: test-unit
test-unit: venv ## the unit tests of plugins, roles and tools
	@pytest

.PHONY: test-cores
test-cores: venv ## unit tests and syntax with the oldest ansible-core that is promised, and the newest
	@python3 -m tests.cores.run

.PHONY: test-modules
test-modules: venv ## the modules, against RabbitMQ 3.10 and 4.0, Redis 7.0 and 8.0, Valkey 8.1
	@python3 -m tests.modules.run

.PHONY: test-package
test-package: venv ## the tests of celery-hybrid, against RabbitMQ 3.10 and 4.0
	@python3 -m tests.package.run

.PHONY: test-chaos
test-chaos: venv ## the short form of 'make chaos': our side only (3 minutes; CHAOS='--seed 1')
	@python3 -m tests.chaos.run --quick $(CHAOS)

## long runs, not part of 'make test'

.PHONY: test-celery
test-celery: venv ## Celery's own integration tests with this backend and with the Redis backend (half an hour each)
	@nice python3 -m tests.celery_suite.run

.PHONY: test-compatibility
test-compatibility: venv ## Flower, RedBeat, Sentry, OpenTelemetry and others beside workers, in pinned versions (docs/compatibility.md)
	@python3 -m tests.package.run compatibility

.PHONY: test-faults
test-faults: venv ## kill, stop, cut and fill RabbitMQ under load, and count what was lost or changed (8 minutes; FAULTS=--quick: 2)
	@python3 -m tests.chaos.outages $(FAULTS)

.PHONY: chaos
chaos: venv ## kill, stop, cut, pause and fill everything under 12,000 tasks and 160 chords, stock Celery beside it (20 minutes; CHAOS='--seed 1')
	@python3 -m tests.chaos.run $(CHAOS)

.PHONY: bench
bench: venv ## measure the result backend beside its rivals in one run (10 minutes; BENCH=--quick: 2)
	@python3 -m tests.bench.run $(BENCH)

.PHONY: bench-transport
bench-transport: venv ## measure the transport beside kombu's own (4 minutes; BENCH=--quick: 1)
	@python3 -m tests.bench.transport $(BENCH)

.PHONY: bench-topology
bench-topology: venv ## measure rabbitmq_topology beside community.rabbitmq (4 minutes; BENCH='--rounds 3')
	@python3 -m tests.bench.topology $(BENCH)

.PHONY: installed
installed: venv
	@ansible-galaxy collection build --force --output-path .cache/dist >/dev/null
	@ANSIBLE_COLLECTIONS_PATH=.cache/installed ansible-galaxy collection install --force --no-deps --offline --collections-path .cache/installed \
		.cache/dist/celeryops-hybrid-*.tar.gz >/dev/null

.PHONY: test-molecule
test-molecule: installed ## the whole stack, on Debian 12 and 13 (SCENARIO=name for one scenario)
	@tests/molecule.sh $(or $(SCENARIO),stack_on_debian12 stack_on_debian13)

.PHONY: test-operations
test-operations: installed ## drift, releases, hanging workers and diagnosis on hosts (three quarters of an hour)
	@tests/molecule.sh drift release watchdog diagnose

.PHONY: docs
docs: venv ## generate the tables of variables in the READMEs and those of docs/topology.md
	@python3 tools/variables.py
	@python3 tools/topology.py

.PHONY: build
build: venv ## build the collection's tarball, and sdist and wheel of celery-hybrid, into dist/
	@ansible-galaxy collection build --force --output-path dist
	@python3 -m build --outdir dist $(PACKAGE)

.PHONY: clean
clean: ## remove everything that make created in this checkout, except the demo
	@test ! -e .demo || { echo "clean: the demo uses these files: run 'make demo-down' first" >&2; exit 1; }
	@rm -rf $(VENV) .cache .ansible dist .mypy_cache .pytest_cache .ruff_cache $(PACKAGE)/.tox
