# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the applications of the suites take over from deployed workers."""

from __future__ import annotations

import ast
import contextlib
import re
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).resolve().parents[2] / "roles/worker/templates/etc/celery/celeryconfig.py.j2"


def role_settings() -> dict[str, Any]:
    """Return the settings of the role that do not depend on its variables, as its template has them now."""
    settings = {}
    for name, value in re.findall(r"^([a-z]\w+) = ([^{}\n]+)$", TEMPLATE.read_text(), re.MULTILINE):
        # What is computed there comes from variables as well.
        with contextlib.suppress(ValueError, SyntaxError):
            settings[name] = ast.literal_eval(value)
    return settings
