"""The README stands on its own: it is the package's page in an index, where no file is beside it."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_every_link_leads_to_a_heading_or_to_the_web() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    assert links
    assert [link for link in links if not link.startswith("https://") and link.removeprefix("#") not in headings] == []
