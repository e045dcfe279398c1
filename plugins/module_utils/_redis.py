# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared state of a Redis server: rendered to files, and compared with what the server runs with.

A declaration is plain data. Settings are a list of ``{name, value, why}``; users a list of
``{name, enabled, password, rules}`` where *rules* are the words of Redis' ACL language without passwords.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import typing as t

Setting = t.Mapping[str, t.Any]
User = t.Mapping[str, t.Any]


class Client(t.Protocol):
    """What the comparison needs of a connection."""

    def call(self, *words: t.Any) -> t.Any: ...


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

# A rule is one word; only a selector, in brackets, has blanks.
_RULE = re.compile(r"[~&%+@-]\S*|all(keys|channels|commands)|nocommands|reset(keys|channels)|\([^()\r\n]*\)")

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
        if not _RULE.fullmatch(word):
            raise ValueError(f"{word!r} is no rule of Redis' ACL language for keys, channels or commands")
    return words


def _words(user: User, *first: str) -> list[str]:
    """Return the words that make a user: its name, *first*, state, password and rules."""
    if not re.fullmatch(r"[!-~]+", user["name"]):
        raise ValueError(f"{user['name']!r} is no name for a Redis user: no blanks")
    words = [user["name"], *first, "on" if user.get("enabled", True) else "off"]
    if user.get("password"):
        words.append(password_hash(user["password"]))
    return words + _rules(user)


def render_acl(users: t.Iterable[User]) -> str:
    """Return an ACL file. It cannot hold comments: Redis takes only lines that begin with ``user``."""
    return "".join(f"user {' '.join(_words(user))}\n" for user in users)


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


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that the running server does not have as declared: a setting, or a user (then without values)."""

    name: str
    sentence: str
    running: str = ""
    declared: str = ""
    live: bool = True


class Runtime:
    """What a server runs with, beside what is declared.

    Args:
        client: a connection with the rights of an administrator.
        settings: the declared settings.
        users: the declared users; all others are not declared.
    """

    def __init__(self, client: Client, settings: t.Sequence[Setting], users: t.Sequence[User]) -> None:
        self._client = client
        self._settings = settings
        self._users = users
        self._config: dict[str, str] | None = None

    def differences(self) -> list[Difference]:
        """Return what differs. A setting that Redis does not show is not compared, see :meth:`unseen`."""
        return [*self._setting_differences(), *self._user_differences()]

    def unseen(self) -> list[str]:
        """Return the declared settings that ``CONFIG GET`` does not show."""
        running = self._running()
        return [setting["name"] for setting in self._settings if setting["name"] not in running]

    def repair(self, found: t.Sequence[Difference]) -> None:
        """Change live what can be changed live. The files must say the same, or a restart undoes it."""
        settings = [item for item in found if item.declared and item.live]
        if settings:
            # One command, so that Redis takes all of them or none.
            pairs = [word for item in settings for word in (item.name, "" if item.declared == '""' else item.declared)]
            self._client.call("CONFIG", "SET", *pairs)
        # Not ACL LOAD: that closes the connections of every worker.
        declared = {user["name"]: user for user in self._users}
        for item in found:
            if not item.declared:
                user = declared.get(item.name)
                self._client.call("ACL", *(["SETUSER", *_words(user, "reset")] if user else ["DELUSER", item.name]))

    def append_only_file_is_complete(self) -> bool:
        """Tell whether no rewrite runs: until the first one ends, a crash loses what was there before."""
        information = self._client.call("INFO", "persistence")
        return "aof_rewrite_in_progress:0" in information and "aof_rewrite_scheduled:0" in information

    def _running(self) -> dict[str, str]:
        if self._config is None:
            words = self._client.call("CONFIG", "GET", *(setting["name"] for setting in self._settings)) or []
            self._config = dict(zip(words[0::2], words[1::2], strict=True))
        return self._config

    def _setting_differences(self) -> t.Iterator[Difference]:
        running = self._running()
        for setting in self._settings:
            name, declared = setting["name"], render_value(setting["value"])
            if name in running and not _agrees(name, running[name], declared):
                live = name not in RESTART_ONLY
                how = "" if live else " (needs a restart)"
                yield Difference(
                    name,
                    f"{name}: running {running[name]!r}, declared {declared!r}{how}",
                    running[name],
                    declared,
                    live,
                )

    def _user_differences(self) -> t.Iterator[Difference]:
        listed = dict(_described_user(line) for line in self._client.call("ACL", "LIST"))
        for user in self._users:
            twin = self._twin(user) if user.get("enabled", True) else None
            difference = _user_difference(user, listed.get(user["name"]), twin)
            if difference:
                yield Difference(user["name"], f"user {user['name']} {difference}")
        for name in sorted(listed.keys() - {user["name"] for user in self._users}):
            yield Difference(name, f"user {name} is not declared")

    def _twin(self, user: User) -> dict[str, t.Any]:
        """Return a user's rules as this server shows them.

        The form differs between versions. So the declared rules pass through a nameless twin, which is made, shown
        and deleted inside one transaction and can never log in.
        """
        twin = _PROBE + user["name"]
        self._client.call("MULTI")
        for words in (("SETUSER", twin, "reset", *_rules(user)), ("LIST",), ("DELUSER", twin)):
            self._client.call("ACL", *words)
        lines = self._client.call("EXEC")[1]
        return next(described for name, described in map(_described_user, lines) if name == twin)
