# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tasks of a look in check mode tell about drift, and the reports that are made of it.

A task's result becomes :class:`DriftFinding` objects; a :class:`Report` collects those of all hosts and renders them
as a table for people, as JSON, and as metrics for the text collector of Prometheus' node exporter.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import json
import re
import tempfile
import textwrap
import typing as t
from pathlib import Path

from ansible_collections.celeryops.hybrid.plugins.module_utils._managed_files import HIDDEN

# Exit codes; those of a failed and of an unreachable host are Ansible's own.
CLEAN, BLIND, DRIFT, UNREACHABLE = 0, 2, 3, 4
LAYERS = ("package", "file", "runtime", "object")
SECRET = "differs (secret)"  # noqa: S105
# Columns of the table, in characters; what is longer goes on in the next line.
WIDTH = {"what": 54, "layer": 7, "declared": 34, "actual": 34}

Result = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class DriftFinding:
    """One thing that is not as declared.

    Attributes:
        layer: one of :data:`LAYERS`.
        what: the thing, as a person would look for it.
        declared: what it should be; empty where only ``actual`` says something.
        actual: what it is.
        since: when it was changed (UTC), where that is known.
        note: what else there is to know, for example that it cannot be changed in place.
    """

    layer: str
    what: str
    declared: str
    actual: str
    since: str = ""
    note: str = ""


# --- from a task's result to findings --------------------------------------------------------------


def findings(module: str, name: str, arguments: Result, result: Result) -> list[DriftFinding]:
    """Return what a task found.

    Args:
        module: name of the module, with or without its collection.
        name: name of the task.
        arguments: the arguments of the task, as the host got them.
        result: what the module answered in check mode.
    """
    told = result.get("differences")
    if told is None and isinstance(result.get("msg"), t.Mapping):
        told = result["msg"].get("differences")
    if told is not None:
        # A server that does not let its administrator in cannot be compared.
        unseen = [str(result["message"])] if result.get("message") and result.get("status", "ok") != "ok" else []
        return [DriftFinding("runtime", name, "", sentence) for sentence in unseen] + [_told(item) for item in told]
    if not result.get("changed"):
        return []
    reader = READERS.get(module.rpartition(".")[2], _task)
    return reader(name, arguments, result)


def _told(item: t.Any) -> DriftFinding:
    """Return what one of the collection's own modules tells."""
    if not isinstance(item, t.Mapping):
        return DriftFinding("runtime", str(item), "", "")
    note = item.get("sentence", "") if item.get("action") == "conflict" else ""
    if item.get("action") == "restart":
        note = "needs a restart"
    kind, name = str(item.get("kind", "")), str(item.get("name", ""))
    return DriftFinding(
        str(item.get("layer", "runtime")),
        f"{kind} {name}".strip(),
        *_apart(item.get("declared"), item.get("actual")),
        str(item.get("since") or ""),
        note,
    )


def _apart(declared: t.Any, actual: t.Any) -> tuple[str, str]:
    """Return both sides as text; of two objects only the fields that differ, unless none is seen to differ."""
    if isinstance(declared, t.Mapping) and isinstance(actual, t.Mapping):
        names = [name for name in {**declared, **actual} if declared.get(name) != actual.get(name)]
        if names:
            sides = [(name, *_apart(declared.get(name), actual.get(name))) for name in names]
            return ", ".join(f"{name}={side}" for name, side, _after in sides), ", ".join(
                f"{n}={side}" for n, _before, side in sides
            )
    if isinstance(declared, list) and isinstance(actual, list) and declared != actual:
        lack, more = (
            [item for item in declared if item not in actual],
            [item for item in actual if item not in declared],
        )
        if lack or more:
            return _elements(lack, more), _elements(more, lack)
    if declared == actual:
        return SECRET, SECRET
    return _text(declared), _text(actual)


def _fields(value: Result, names: t.Iterable[str]) -> str:
    return ", ".join(f"{name}={_text(value.get(name))}" for name in names)


def _elements(here: list[t.Any], there: list[t.Any]) -> str:
    """Return what one of two lists has that the other has not; of long lists nothing else is of interest."""
    return " ".join(map(_text, here)) or f"without {' '.join(map(_text, there))}"


def _text(value: t.Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, t.Mapping):
        return _fields(value, [name for name in value if value[name] is not None]) or "{}"
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str)


def _file(_name: str, arguments: Result, result: Result) -> list[DriftFinding]:
    """Return what a task that writes files found: other content, other owner or mode, missing, of another type."""
    path = str(arguments.get("dest") or arguments.get("path") or result.get("dest") or result.get("path") or "")
    if "censored" in result:
        return [DriftFinding("file", path, SECRET, SECRET)]
    found = []
    differs = result.get("diff") or []
    for diff in [differs] if isinstance(differs, t.Mapping) else differs:
        before, after = diff.get("before"), diff.get("after")
        if isinstance(before, t.Mapping) and isinstance(after, t.Mapping):
            names = [name for name in after if name != "path" and before.get(name) != after.get(name)]
            if before.get("state") == "absent":
                found.append(DriftFinding("file", path, str(after.get("state", "present")), "absent"))
            elif names:
                found.append(DriftFinding("file", path, _fields(after, names), _fields(before, names)))
        elif before is not None or after is not None:
            found.append(DriftFinding("file", path, *_lines(str(before or ""), str(after or ""), diff)))
    return found or [DriftFinding("file", path, "as declared", "differs")]


def _files(name: str, _arguments: Result, result: Result) -> list[DriftFinding]:
    """Return what managed_files found, one difference after the other."""
    found = []
    for diff in result.get("diff") or []:
        path = diff.get("after_header") or diff["after"]["path"]
        if diff["before"] == HIDDEN:
            found.append(DriftFinding("file", path, SECRET, SECRET))
        else:
            found += _file(name, {"path": path}, {"diff": diff})
    return found


def _lines(before: str, after: str, diff: Result) -> tuple[str, str]:
    """Return the first lines that differ, and how many more there are."""
    if not before:
        return f"{len(after.splitlines())} lines", "absent" if "before_header" not in diff else "empty"
    removed, added = [], []
    for line in difflib.ndiff(before.splitlines(), after.splitlines()):
        if line[:2] in ("- ", "+ "):
            (removed if line[0] == "-" else added).append(line[2:].strip())
    return _first(added), _first(removed)


def _first(lines: list[str]) -> str:
    """Return the first line that says something, and how many more there are."""
    telling = [line for line in lines if line and line[0] not in "#;%"] or [line for line in lines if line]
    if not telling:
        return "(no such line)"
    return telling[0] + (f" (and {_count(len(lines) - 1, 'more line')})" if len(lines) > 1 else "")


def _package(_name: str, arguments: Result, result: Result) -> list[DriftFinding]:
    installed = re.findall(r"^Inst (\S+)", str(result.get("stdout", "")), re.MULTILINE)
    names = arguments.get("name") or []
    wanted = [names] if isinstance(names, str) else list(names)
    missing = [name for name in wanted if name in installed] or wanted
    return [DriftFinding("package", f"package {name}", "installed", "not installed") for name in missing]


def _selection(_name: str, arguments: Result, result: Result) -> list[DriftFinding]:
    what = f"package {arguments.get('name', '')}"
    return [DriftFinding("package", what, str(result.get("after", "")), str(result.get("before", "")))]


def _service(_name: str, arguments: Result, result: Result) -> list[DriftFinding]:
    """Return what is not as declared about a unit: its state, whether it starts at boot, whether it is masked."""
    status = result.get("status") or {}
    declared, actual = [], []
    if status.get("LoadState") == "masked":
        declared.append("not masked")
        actual.append("masked")
    if status.get("NeedDaemonReload") == "yes":
        declared.append("loaded as on disk")
        actual.append("changed on disk since it was loaded")
    state = arguments.get("state")
    if state is not None and (status.get("ActiveState") in ("active", "activating")) != (state == "started"):
        declared.append(state)
        actual.append(f"{status.get('ActiveState', 'unknown')} ({status.get('SubState', 'unknown')})")
    enabled = arguments.get("enabled")
    if enabled is not None and (status.get("UnitFileState") == "enabled") != bool(enabled):
        declared.append("enabled" if enabled else "disabled")
        actual.append(str(status.get("UnitFileState") or result.get("enabled") or "unknown"))
    unit = str(arguments.get("name", ""))
    return [
        DriftFinding(
            "runtime", f"service {unit}", ", ".join(declared) or "as declared", ", ".join(actual) or "differs"
        ),
    ]


def _account(_name: str, arguments: Result, _result: Result) -> list[DriftFinding]:
    what = f"{'user' if {'home', 'shell', 'groups'} & set(arguments) else 'group'} {arguments.get('name', '')}"
    return [DriftFinding("object", what, "as the role declares it", "differs or absent")]


def _sentence(name: str, _arguments: Result, result: Result) -> list[DriftFinding]:
    return [DriftFinding("runtime", name, "", _text(result.get("msg", "")))]


def _task(name: str, _arguments: Result, _result: Result) -> list[DriftFinding]:
    return [DriftFinding("runtime", name, "done", "not done")]


READERS: dict[str, t.Callable[[str, Result, Result], list[DriftFinding]]] = {
    "apt": _package,
    "copy": _file,
    "debug": _sentence,
    "dpkg_selections": _selection,
    "file": _file,
    "managed_files": _files,
    "group": _account,
    "systemd_service": _service,
    "template": _file,
    "user": _account,
}


# --- the reports -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Host:
    """What is known of one host."""

    findings: list[DriftFinding] = dataclasses.field(default_factory=list)
    # What a repair would do besides, for example restart a service.
    consequences: list[str] = dataclasses.field(default_factory=list)
    # Why the look was not complete.
    problem: str = ""
    looked: bool = False
    unreachable: bool = False

    @property
    def state(self) -> str:
        """``blind`` when it could not be looked at to the end, else ``drift`` or ``clean``."""
        return "blind" if self.problem or not self.looked else "drift" if self.findings else "clean"


class Report:
    """What the check of all hosts has found."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = collections.defaultdict(Host)

    def add(self, host: str, found: t.Iterable[DriftFinding]) -> None:
        """Add findings, each once: a role may compare a thing twice."""
        known = self.hosts[host].findings
        known += [finding for finding in dict.fromkeys(found) if finding not in known]

    @property
    def exit_code(self) -> int:
        """0 clean, 3 drift; 4 when a host is unreachable, 2 when one could not be looked at for another reason."""
        if any(host.unreachable for host in self.hosts.values()):
            return UNREACHABLE
        states = {host.state for host in self.hosts.values()}
        if not states or "blind" in states:
            return BLIND
        return DRIFT if "drift" in states else CLEAN

    def verdict(self) -> str:
        """Return the sentence that sums it up."""
        blind = [name for name, host in self.hosts.items() if host.state == "blind"]
        drifted = [host for host in self.hosts.values() if host.findings]
        number = sum(len(host.findings) for host in drifted)
        parts = []
        if not self.hosts:
            parts.append("No host was looked at: the inventory, --limit or --tags select none.")
        if number:
            parts.append(
                f"Drift: {_count(number, 'difference')} on {len(drifted)} of {_count(len(self.hosts), 'host')}. "
                "The playbook celeryops.hybrid.site repairs."
            )
        if blind:
            parts.append(f"Could not look, or not to the end: {', '.join(sorted(blind))}.")
        return " ".join(parts) or f"Clean: {_count(len(self.hosts), 'host')} as declared."

    def table(self) -> str:
        """Return the report for people."""
        lines = []
        for name, host in sorted(self.hosts.items()):
            head = _count(len(host.findings), "difference") if host.findings else host.state
            lines.append(f"{name}: {head}" if not host.problem else f"{name}: {head}; could not look further")
            lines += textwrap.wrap(host.problem, 120, initial_indent="  ", subsequent_indent="  ")
            if host.findings:
                lines += _row({column: column for column in WIDTH})
            for finding in sorted(host.findings, key=lambda item: (*LAYERS, item.layer).index(item.layer)):
                lines += _row(dataclasses.asdict(finding))
                if finding.since:
                    lines.append(f"      since {finding.since}")
                lines += textwrap.wrap(finding.note, 120, initial_indent="      ", subsequent_indent="      ")
            lines += [f"  a repair would also: {text}" for text in dict.fromkeys(host.consequences)]
            lines.append("")
        return "\n".join([*lines, self.verdict()])

    def data(self, finished: str, seconds: float) -> dict[str, t.Any]:
        """Return the report for machines.

        Args:
            finished: the time, in UTC and ISO 8601.
            seconds: how long the look took.
        """
        return {
            "finished": finished,
            "seconds": round(seconds, 1),
            "exit_code": self.exit_code,
            "verdict": self.verdict(),
            "hosts": {
                name: {
                    "state": host.state,
                    "problem": host.problem,
                    "differences": [dataclasses.asdict(finding) for finding in host.findings],
                    "consequences": list(dict.fromkeys(host.consequences)),
                }
                for name, host in sorted(self.hosts.items())
            },
        }

    def metrics(self, timestamp: float, seconds: float) -> str:
        """Return the report in the text format of Prometheus."""
        lines = ["# HELP celeryops_drift Things that are not as declared.", "# TYPE celeryops_drift gauge"]
        for name, host in sorted(self.hosts.items()):
            numbers = collections.Counter(finding.layer for finding in host.findings)
            lines += [f'celeryops_drift{{host="{_label(name)}",layer="{layer}"}} {numbers[layer]}' for layer in LAYERS]
        lines += [
            "# HELP celeryops_drift_looked Whether the host could be looked at to the end.",
            "# TYPE celeryops_drift_looked gauge",
        ]
        for name, host in sorted(self.hosts.items()):
            lines.append(f'celeryops_drift_looked{{host="{_label(name)}"}} {int(host.state != "blind")}')
        for name, text, value in (
            ("exit_code", "0 clean, 3 drift, 2 or 4 could not look.", self.exit_code),
            ("last_run_timestamp_seconds", "When the last look ended.", f"{timestamp:.0f}"),
            ("duration_seconds", "How long the last look took.", f"{seconds:.1f}"),
        ):
            metric = f"celeryops_drift_{name}"
            lines += [f"# HELP {metric} {text}", f"# TYPE {metric} gauge", f"{metric} {value}"]
        return "\n".join(lines) + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _row(cells: Result) -> list[str]:
    """Return the lines of one row; a cell that is too long goes on in the next line."""
    columns = [
        textwrap.wrap(str(cells[name]), width, max_lines=4, break_on_hyphens=False) or [""]
        for name, width in WIDTH.items()
    ]
    height = max(len(column) for column in columns)
    rows = []
    for number in range(height):
        parts = [
            (column[number] if number < len(column) else "").ljust(width)
            for column, width in zip(columns, WIDTH.values(), strict=True)
        ]
        rows.append(("  " + "  ".join(parts)).rstrip())
    return rows


def write_atomically(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file that nobody ever sees half.

    Raises:
        OSError: the folder is missing or may not be written to.
    """
    target = Path(path).expanduser()
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            temporary.chmod(mode)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
