# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AnsibleModule, whose line in the host's journal holds no secret."""

from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import remove_values


class Module(AnsibleModule):
    """For modules with a secret inside of a list or a dictionary.

    Ansible masks these in the text of the whole option as Python writes it, where a line break, a quote or a backslash
    is two characters; a secret with one of them is not found there, and logged.
    """

    def _log_invocation(self) -> None:
        given, self.params = self.params, remove_values(self.params, self.no_log_values)
        try:
            super()._log_invocation()
        finally:
            self.params = given
