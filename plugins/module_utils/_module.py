# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""AnsibleModule, whose line in the host's journal holds no secret."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.parameters import remove_values


class Module(AnsibleModule):
    """For modules with a secret inside of a list or a dictionary.

    Ansible masks these in the text of the whole option as Python writes it, where a line break, a quote or a backslash
    is two characters; a secret with one of them is not found there, and logged.

    Args:
        secrets: returns the secrets of options that are not always secret, such as the values of settings.
        options: those of ``AnsibleModule``.
    """

    def __init__(
        self, secrets: t.Callable[[dict[str, t.Any]], t.Iterable[str]] | None = None, **options: t.Any
    ) -> None:
        self._secrets = secrets
        super().__init__(**options)

    def _log_invocation(self) -> None:
        # The options are checked by now, and nothing was logged.
        if self._secrets:
            self.no_log_values.update(filter(None, self._secrets(self.params)))
        given, self.params = self.params, remove_values(self.params, self.no_log_values)
        try:
            super()._log_invocation()
        finally:
            self.params = given
