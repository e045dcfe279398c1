# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared state of a Redis server: rendered to files, and compared with what the server runs with.

A declaration is plain data. Settings are a list of ``{name, value, why}``; users a list of
``{name, enabled, password, rules}`` where *rules* are the words of Redis' ACL language without passwords.
"""

from __future__ import annotations

import hashlib
import re
import typing as t

Setting = t.Mapping[str, t.Any]
User = t.Mapping[str, t.Any]

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
_SIZE = re.compile(r"^(\d+)\s*([kmg]b?|b)?$", re.IGNORECASE)

# CONFIG SET refuses these; everything else that CONFIG GET shows can be changed in the running server.
RESTART_ONLY = frozenset(
    {
        "aclfile",
        "always-show-logo",
        "appenddirname",
        "appendfilename",
        "cluster-config-file",
        "cluster-enabled",
        "daemonize",
        "databases",
        "dbfilename",
        "dir",
        "disable-thp",
        "io-threads",
        "io-threads-do-reads",
        "logfile",
        "pidfile",
        "rdbchecksum",
        "set-proc-title",
        "supervised",
        "syslog-enabled",
        "syslog-facility",
        "syslog-ident",
        "tcp-backlog",
        "unixsocket",
        "unixsocketperm",
    }
)

_MARK_CONFIG = "-- config --"
_MARK_ACL = "-- acl --"
_MARK_END = "-- end --"
_PROBE = "celeryops-compare-"


def size_in_bytes(value: t.Any) -> int:
    """Return the number of bytes that Redis understands by *value* (``512mb``, ``1gb``, ``1048576``)."""
    match = _SIZE.match(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is no size: write a number of bytes, or a number with kb, mb or gb")
    return int(match.group(1)) * _UNITS[(match.group(2) or "").lower()]


def render_value(value: t.Any) -> str:
    """Return *value* as it stands in a redis.conf."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(render_value(item) for item in value)
    text = str(value)
    if any(ord(character) < 32 for character in text):
        raise ValueError("a value of redis.conf cannot contain a line break or another control character")
    return text if text.strip() else '""'


def render_config(settings: t.Iterable[Setting]) -> str:
    """Return the lines of a redis.conf, each setting below the comment that gives its reason."""
    lines: list[str] = []
    for setting in settings:
        if setting.get("why"):
            lines += ["", *(f"# {line}".rstrip() for line in str(setting["why"]).strip().splitlines())]
        lines.append(f"{setting['name']} {render_value(setting['value'])}")
    return "\n".join(lines).lstrip("\n") + "\n"


def password_hash(password: str) -> str:
    """Return a password as an ACL file holds it: never in clear."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def _rules(user: User) -> list[str]:
    rules = user.get("rules") or []
    words = rules.split() if isinstance(rules, str) else [str(rule) for rule in rules]
    for word in words:
        if not re.match(r"^([~&%+@-]|all(keys|channels|commands)$|no?commands$|reset(keys|channels)$|\()", word):
            raise ValueError(f"{word!r} is no rule of Redis' ACL language for keys, channels or commands")
    return words


def render_acl(users: t.Iterable[User]) -> str:
    """Return an ACL file. It cannot hold comments: Redis takes only lines that begin with ``user``."""
    lines = []
    for user in users:
        if not re.match(r"^[!-~]+$", user["name"]):
            raise ValueError(f"{user['name']!r} is no name for a Redis user: no blanks")
        words = ["user", user["name"], "on" if user.get("enabled", True) else "off"]
        if user.get("password"):
            words.append(password_hash(user["password"]))
        lines.append(" ".join(words + _rules(user)))
    return "\n".join(lines) + "\n"


def celery_rules(database: t.Any) -> list[str]:
    """Return the least rights with which Celery's workers and clients run on *database*.

    A pattern subscription must match an allowed channel literally, so that ``&/0.*`` would not do.
    """
    number = int(database)
    channels = ("celery.pidbox", "celeryev", "celeryev/*", "celeryev/worker.*")
    categories = ("connection", "transaction", "pubsub", "scripting", "list", "hash", "set", "sortedset", "string")
    return [
        "~*",
        "resetchannels",
        *(f"&/{number}.{channel}" for channel in channels),
        "-@all",
        *(f"+@{category}" for category in categories),
        "+@keyspace",
        "-@dangerous",
        "-@admin",
        "+time",
    ]


def quote(word: t.Any) -> str:
    """Return *word* quoted for a line of redis-cli's standard input."""
    text = str(word).replace("\\", "\\\\").replace('"', '\\"')
    if any(ord(character) < 32 for character in text):
        raise ValueError("a word for redis-cli cannot contain control characters")
    return f'"{text}"'


def _line(*words: t.Any) -> str:
    return " ".join(quote(word) for word in words)


def _compared_users(users: t.Iterable[User]) -> list[User]:
    return [user for user in users if user.get("enabled", True)]


def read_script(login: t.Mapping[str, str], settings: t.Iterable[Setting], users: t.Iterable[User]) -> str:
    """Return the commands that read all of the running state which :func:`differences` compares.

    Redis shows a user's commands in a form of its own, which differs between versions. So each declared user's
    rules pass through a nameless twin that is made, shown and deleted inside one transaction.
    """
    lines = [
        _line("AUTH", login["user"], login["password"]),
        _line("ECHO", _MARK_CONFIG),
        _line("CONFIG", "GET", *(setting["name"] for setting in settings)),
        _line("ECHO", _MARK_ACL),
        _line("ACL", "LIST"),
    ]
    for user in _compared_users(users):
        twin = _PROBE + user["name"]
        lines += [
            "MULTI",
            _line("ACL", "SETUSER", twin, "reset", *_rules(user)),
            _line("ACL", "LIST"),
            _line("ACL", "DELUSER", twin),
            "EXEC",
        ]
    return "\n".join([*lines, _line("ECHO", _MARK_END)])


def write_script(login: t.Mapping[str, str], found: t.Mapping[str, t.Any]) -> str:
    """Return the commands that bring the running server to its declaration, as far as that works live."""
    lines = [_line("AUTH", login["user"], login["password"])]
    lines += [
        _line("CONFIG", "SET", item["name"], "" if item["declared"] == '""' else item["declared"])
        for item in found["settings"]
        if item["live"]
    ]
    if found["users"]:
        lines.append(_line("ACL", "LOAD"))
    return "\n".join(lines)


def _canonical(name: str, value: str) -> str:
    text = value.strip().strip('"')
    if name == "client-output-buffer-limit":
        words = ["slave" if word == "replica" else word for word in text.split()]
        return " ".join(word if index % 4 in (0, 3) else str(size_in_bytes(word)) for index, word in enumerate(words))
    if _SIZE.match(text):
        return str(size_in_bytes(text))
    return text.lower() if text.lower() in ("yes", "no") else text


def _agrees(name: str, running: str, declared: str) -> bool:
    running, declared = _canonical(name, running), _canonical(name, declared)
    if name == "client-output-buffer-limit":
        # The running value lists every class of clients, a declaration may name some.
        words = declared.split()
        return all(" ".join(words[i : i + 4]) in running for i in range(0, len(words), 4))
    return running == declared


def _described_user(line: str) -> tuple[str, dict[str, t.Any]]:
    words = line.split()
    rules = words[2:]
    return words[1], {
        "enabled": "on" in rules,
        "passwords": sorted(word for word in rules if word.startswith("#") or word == "nopass"),
        "keys": sorted(word for word in rules if word[0] in "~%"),
        "channels": sorted(word for word in rules if word[0] == "&"),
        "commands": [word for word in rules if word[0] in "+-"],
        "selectors": re.findall(r"\([^)]*\)", line),
    }


def parse(output: str | t.Sequence[str]) -> dict[str, t.Any]:
    """Return what the answer to :func:`read_script` says: *status*, *config*, *users* and *twins*.

    *status* is ``ok``, ``unreachable``, ``refused`` (wrong password, or a user without the rights) or ``unknown``.
    """
    lines = output.splitlines() if isinstance(output, str) else list(output)
    state: dict[str, t.Any] = {"status": "ok", "config": {}, "users": {}, "twins": {}, "message": ""}
    errors = [line for line in lines if re.match(r"^[A-Z]{3,} .", line) or "Could not connect" in line]
    first = errors[0] if errors else ""
    if "Could not connect" in first:
        return {**state, "status": "unreachable", "message": first}
    if re.search(r"\b(WRONGPASS|NOAUTH|NOPERM)\b", first) or (lines and lines[0].startswith("ERR AUTH")):
        return {**state, "status": "refused", "message": first or lines[0]}
    if not all(mark in lines for mark in (_MARK_CONFIG, _MARK_ACL, _MARK_END)):
        return {**state, "status": "unknown", "message": first or (lines[-1] if lines else "no answer")}
    config = lines[lines.index(_MARK_CONFIG) + 1 : lines.index(_MARK_ACL)]
    state["config"] = dict(zip(config[0::2], config[1::2], strict=False))
    for line in lines[lines.index(_MARK_ACL) + 1 : lines.index(_MARK_END)]:
        if line.startswith("user "):
            name, user = _described_user(line)
            if name.startswith(_PROBE):
                state["twins"][name[len(_PROBE) :]] = user
            else:
                state["users"].setdefault(name, user)
    return state


def _user_difference(user: User, running: t.Mapping[str, t.Any] | None, twin: t.Mapping[str, t.Any] | None) -> str:
    if running is None:
        return "is missing"
    enabled = user.get("enabled", True)
    if running["enabled"] != enabled:
        return "is on, declared off" if running["enabled"] else "is off, declared on"
    if not enabled:
        return ""
    parts = []
    if running["passwords"] != [password_hash(user["password"])]:
        parts.append("another password")
    if twin is not None:
        compared = ("keys", "channels", "commands", "selectors")
        parts += [f"other {part}" for part in compared if running[part] != twin[part]]
    return "has " + " and ".join(parts) if parts else ""


def differences(
    output: str | t.Sequence[str], settings: t.Sequence[Setting], users: t.Sequence[User]
) -> dict[str, t.Any]:
    """Compare the running server with its declaration.

    Returns *status* as :func:`parse` does, *settings* (``name``, ``running``, ``declared``, ``live``), *users*
    (sentences without secrets), *unseen* (names that CONFIG GET does not show), *restart* (whether something needs
    one), *live*, and *sentences* that say it all.
    """
    state = parse(output)
    found: dict[str, t.Any] = {
        "status": state["status"],
        "message": state["message"],
        "settings": [],
        "users": [],
        "unseen": [],
    }
    if state["status"] == "ok":
        for setting in settings:
            name, declared = setting["name"], render_value(setting["value"])
            running = state["config"].get(name)
            if running is None:
                found["unseen"].append(name)
            elif not _agrees(name, running, declared):
                found["settings"].append(
                    {"name": name, "running": running, "declared": declared, "live": name not in RESTART_ONLY}
                )
        for user in users:
            difference = _user_difference(user, state["users"].get(user["name"]), state["twins"].get(user["name"]))
            if difference:
                found["users"].append(f"user {user['name']} {difference}")
        declared_names = {user["name"] for user in users}
        found["users"] += [
            f"user {name} is not declared" for name in sorted(state["users"]) if name not in declared_names
        ]
    found["live"] = bool(found["users"]) or any(item["live"] for item in found["settings"])
    found["restart"] = any(not item["live"] for item in found["settings"])
    found["sentences"] = [
        "{name}: running {running!r}, declared {declared!r}{how}".format(
            how="" if item["live"] else " (needs a restart)", **item
        )
        for item in found["settings"]
    ] + found["users"]
    return found
