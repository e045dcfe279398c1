# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: source_archive
short_description: Pack a Python source tree on the control node
version_added: 0.1.0
author: celeryops.hybrid contributors (@celeryops)
description:
  - Packs the source tree of a Python project, or takes a wheel or archive as it is, and returns its path and checksum.
  - Two trees with the same content make the same archive, whatever their times and owners, so the checksum tells
    whether the source has changed.
  - The archive of a tree lies in Ansible's temporary folder and is gone when Ansible ends.
  - Left out are hidden files and what tools leave behind (C(__pycache__), C(*.egg-info),
    and at the top C(build), C(dist), C(venv), C(node_modules)).
    A project that takes its version from Git must therefore come as a wheel.
options:
  _terms:
    description: Paths of source trees, wheels or archives, absolute.
    type: list
    elements: path
    required: true
  exclude:
    description: Names of further folders at the top that are left out, such as V(tests).
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show the checksum of a source tree
  ansible.builtin.debug:
    msg: "{{ lookup('celeryops.hybrid.source_archive', '/srv/checkout/payments').checksum }}"
"""

RETURN = r"""
_raw:
  description: One dictionary for each path.
  type: list
  elements: dict
  contains:
    path:
      description: Where the archive is, on the control node.
      type: str
    name:
      description: Name of the archive's file.
      type: str
    checksum:
      description: SHA-256 of the archive.
      type: str
"""

import os
from pathlib import Path

from ansible import constants
from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._source import SourceError, digest, pack


class LookupModule(LookupBase):
    """Pack source trees."""

    def run(self, terms, variables=None, **kwargs):  # noqa: ARG002
        return [self._archive(Path(term).expanduser(), kwargs.get("exclude", [])) for term in terms]

    def _archive(self, source, exclude):
        try:
            if source.is_file():
                return {"path": str(source), "name": source.name, "checksum": digest(source.read_bytes())}
            if not source.is_dir():
                raise AnsibleError(f"{source}: there is no such directory or file on the control node.")
            content = pack(source.resolve(), source.resolve().name, exclude)
        except (OSError, SourceError) as exc:
            raise AnsibleError(f"{source} cannot be packed: {exc}") from exc
        checksum = digest(content)
        name = f"{source.resolve().name}.tar.gz"
        path = Path(constants.DEFAULT_LOCAL_TMP) / f"celeryops-{checksum[:16]}" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            # Another host's task may do the same at this moment.
            partial = path.with_name(f"{name}.{os.getpid()}")
            partial.write_bytes(content)
            partial.replace(path)
        return {"path": str(path), "name": name, "checksum": checksum}
