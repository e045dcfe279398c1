"""What an incident needs to know of Celery's side, read on a worker host: ``python -m celery_hybrid.diagnose``.

Reads and changes nothing. Findings are made of it on the control node, where the servers' own side is known as well:
``playbooks/diagnose.yml``.
"""

from __future__ import annotations
