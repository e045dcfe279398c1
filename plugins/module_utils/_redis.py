# Copyright: (c) 2026, celeryops.hybrid contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared state of a Redis server: rendered to files, and compared with what the server runs with.

A declaration is plain data. Settings are a list of ``{name, value, why}``; users a list of
``{name, enabled, password, rules}`` where *rules* are the words of Redis' ACL language without passwords.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import re
import typing as t
from collections import Counter

from ansible_collections.celeryops.hybrid.plugins.module_utils._redis_client import RedisError

Setting = t.Mapping[str, t.Any]
User = t.Mapping[str, t.Any]


def secret_values(parameters: t.Mapping[str, t.Any]) -> list[str]:
    """Return the secrets among the settings that a module was given."""
    return [
        render_value(setting["value"])
        for setting in parameters.get("settings") or ()
        if isinstance(setting, dict) and str(setting.get("name")).lower() in SECRETS and setting.get("value")
    ]


class Client(t.Protocol):
    """What the comparison needs of a connection."""

    def call(self, *words: t.Any) -> t.Any: ...


_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
_SIZE = re.compile(r"^(\d+)\s*([kmg]b?|b)?$", re.IGNORECASE)

# Lines of redis.conf that are not settings: CONFIG GET never shows them.
FILE_ONLY = frozenset({"include", "loadmodule", "rename-command", "user"})

# Values that nobody but the server may see.
SECRETS = frozenset({"masterauth", "primaryauth", "requirepass", "tls-client-key-file-pass", "tls-key-file-pass"})

# A rule is one word; only a selector, in brackets, has blanks.
_RULE = re.compile(r"[~&%+@-]\S*|all(keys|channels|commands)|nocommands|reset(keys|channels)|\([^()\r\n]*\)")

_PROBE = "celeryops-compare-"
_NO_SETTING = "celeryops-no-such-setting"

# What 'A' stands for in notify-keyspace-events.
_EVENTS = "g$lshzxetd"


def size_in_bytes(value: t.Any) -> int:
    """Return the number of bytes that Redis understands by *value* (``512mb``, ``1gb``, ``1048576``)."""
    match = _SIZE.match(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is not a valid size: write a number of bytes, or a number with kb, mb or gb")
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
    """Return a password as an ACL file holds it: never in plaintext."""
    return "#" + hashlib.sha256(password.encode()).hexdigest()


def _rules(user: User) -> list[str]:
    rules = user.get("rules") or []
    words = rules.split() if isinstance(rules, str) else [str(rule) for rule in rules]
    for word in words:
        if not _RULE.fullmatch(word):
            raise ValueError(f"{word!r} is not a rule of Redis' ACL language for keys, channels or commands")
    return words


def _words(user: User, *first: str) -> list[str]:
    """Return the words that make a user: its name, *first*, state, password and rules."""
    if not re.fullmatch(r"[!-~]+", user["name"]):
        raise ValueError(f"{user['name']!r} is not a valid name for a Redis user: use no blanks")
    words = [user["name"], *first, "on" if user.get("enabled", True) else "off"]
    if user.get("password"):
        words.append(password_hash(user["password"]))
    return words + _rules(user)


def render_acl(users: t.Iterable[User]) -> str:
    """Return an ACL file. It cannot hold comments: Redis takes only lines that begin with ``user``."""
    return "".join(f"user {' '.join(_words(user))}\n" for user in users)


class Right(t.NamedTuple):
    """Commands that belong together, and why Celery needs them."""

    why: str
    worker: str
    producer: str = ""


# Found by running stock workers and applications of Celery 5.7: tests/modules/test_redis_rights.py fails when one is
# missing, and when one is not used. AUTH and HELLO are always allowed. redis-py also sends CLIENT SETINFO; Redis 7.0
# does not have it and refuses a rule with it, so that the role adds it where it exists (__redis_celery_commands).
CELERY_RIGHTS = (
    Right(
        "connect, choose the database, tell a name, see whether the connection lives",
        "ping select client|setname",
        "ping select client|setname",
    ),
    Right("send a task: into the list of its queue, which may expire", "lpush pexpire", "lpush"),
    Right("declare a queue and see its length", "llen exists", "llen"),
    Right("tables of bindings: which queue hears which exchange", "sadd smembers srem", "sadd smembers"),
    Right(
        "bindings that expire, and releasing a lock, by scripts (their commands need these rights as well)",
        "evalsha script|load script|exists time zadd zrangebyscore zrem",
    ),
    Right("take a task", "brpop rpop"),
    Right(
        "tasks that were taken: keep them until they are acknowledged, put back those of a worker that died",
        "multi exec watch unwatch zadd zrem zrange hset hget hdel rpush",
        "multi exec",
    ),
    Right("the lock of the worker that puts back", "set get del"),
    Right("empty and remove a queue", "llen del"),
    Right(
        "remote control and events of workers",
        "publish psubscribe punsubscribe",
        "publish",
    ),
    Right(
        "take a task in one step by a script of celery-hybrid, and hear when there is one",
        "eval hsetnx zscore lindex lrem client|tracking client|caching blmove",
    ),
    Right(
        "renew claims and put tasks back by scripts of celery-hybrid, and find what a broken connection has taken",
        "hexists zmscore zscan",
    ),
    Right(
        "look at queues and at what was taken: C(celery_verify), C(diagnose), C(release), C(purge)",
        "hlen hmget hscan zcard zcount zmscore scard scan dbsize lindex lrange lrem",
    ),
    Right(
        "count the parts of chords, and send their bodies, by scripts of celery-hybrid; a chord's shape and size",
        "hexists hgetall hincrby expire type zscore",
    ),
    Right("remember what a task has done, as celery_hybrid.guard does, and count", "pttl expire incr hincrby"),
    Right("what kombu 5.5 and 5.6 ask in other words", "zrevrangebyscore unsubscribe"),
)

# A pattern subscription must match an allowed channel literally, so that '&/0.*' would not do.
_WORKER_CHANNELS = (
    "/{0}.celery.pidbox",
    "/{0}.celeryev",
    "/{0}.celeryev/*",
    "/{0}.celeryev/worker.*",
    # Silent unless notify-keyspace-events says otherwise.
    "__keyspace@{0}__:*",
    "__keyevent@{0}__:*",
)


# Which queues hear an exchange; the second since kombu 5.7.
_TABLES = ("_kombu.binding", "_kombu.binding_permanent")


def _unique(texts: t.Iterable[str]) -> list[str]:
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def _literal(name: str) -> str:
    """Return a pattern that matches only this name."""
    return re.sub(r"[\\*?\[\]]", r"\\\g<0>", name)


def _lists(queue: str) -> list[str]:
    """Return patterns of the lists that hold a queue: one without a priority, and one for each other priority.

    kombu joins queue and priority by the two characters 06 and 16 (``Channel._q_for_pri``), or by those that an
    application sets as ``sep``; a colon is the usual one.
    """
    name = _literal(queue)
    return [name, f"{name}:[0-9]", f"{name}??[0-9]"]


def celery_rules(
    database: t.Any,
    role: str = "worker",
    keys: t.Sequence[str] = ("*",),
    commands: t.Sequence[str] = (),
    queues: t.Sequence[str] = ("celery",),
) -> list[str]:
    """Return the least rights with which Celery runs on *database*.

    Args:
        database: its number, which is part of the names of channels.
        role: ``worker``, or ``producer`` for an application that only sends tasks: it can neither read nor take nor
            delete what is in a queue, and writes into *queues* alone.
        keys: patterns of the keys of workers.
        commands: more commands, for a version of Celery that needs them.
        queues: names of the queues that a producer may send to, in all their priorities, and of exchanges that are
            called otherwise than their queue.

    Raises:
        ValueError: the role is neither.
    """
    number = int(database)
    if role == "worker":
        own = _unique(right.worker for right in CELERY_RIGHTS)
        limits = [f"~{key}" for key in keys]
        channels = [f"&{channel.format(number)}" for channel in _WORKER_CHANNELS]
        selectors = []
    elif role == "producer":
        own = _unique(right.producer for right in CELERY_RIGHTS)
        own = [command for command in own if command not in {"sadd", "smembers"}]
        # Written, never read.
        limits = [f"%W~{key}" for queue in queues for key in _lists(queue)]
        channels = [f"&/{number}.celeryev/*"]
        tables = " ".join(f"~{table}.{_literal(queue)}" for queue in queues for table in _TABLES)
        selectors = [f"(-@all +sadd +smembers {tables})"]
        # Chords are begun by the sender, and counted by workers.
        selectors += ["(-@all +del +hset +expire %W~celery.chord.*)"]
    else:
        raise ValueError(f"{role!r} is neither 'worker' nor 'producer'")
    return [*limits, "resetchannels", *channels, "-@all", *(f"+{word}" for word in [*own, *commands]), *selectors]


def _canonical(name: str, value: str) -> str:
    text = value.strip().strip('"')
    if name == "client-output-buffer-limit":
        words = ["slave" if word == "replica" else word for word in text.split()]
        return " ".join(word if index % 4 in (0, 3) else str(size_in_bytes(word)) for index, word in enumerate(words))
    if name == "notify-keyspace-events":
        return "".join(sorted(set(text.replace("A", _EVENTS))))
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


class _Listed:
    """A user as a line of ``ACL LIST`` describes it."""

    def __init__(self, line: str) -> None:
        selectors = re.findall(r"\([^)]*\)", line)
        self.name, *words = re.sub(r"\([^)]*\)", "", line).split()[1:]
        self.enabled = "on" in words
        self.passwords = sorted(word for word in words if word[0] == "#" or word == "nopass")
        self.keys = sorted(word for word in words if word[0] in "~%")
        self.channels = sorted(word for word in words if word[0] == "&")
        # The last rule wins, so that their order counts.
        self.commands = [word for word in words if word[0] in "+-"]
        known = {"on", "off", "nopass", "resetchannels", "sanitize-payload"}
        self.others = selectors + sorted(word for word in words if word[0] not in "#~%&+-" and word not in known)

    @property
    def password(self) -> str:
        return "none is asked for" if "nopass" in self.passwords else "set" if self.passwords else "none"

    def words(self) -> list[str]:
        return self.keys + self.channels + self.commands + self.others

    def shown(self, password: str | None = None) -> dict[str, t.Any]:
        """Return what people may see of it."""
        described = {
            "enabled": self.enabled,
            "password": password or self.password,
            "keys": self.keys,
            "channels": self.channels,
            "commands": self.commands,
        }
        return described | ({"others": self.others} if self.others else {})


def listed_users(lines: t.Iterable[str]) -> list[dict[str, t.Any]]:
    """Return the users of ``ACL LIST`` without their passwords."""
    return [{"name": user.name} | user.shown() for user in map(_Listed, lines)]


def _password_sentence(running: _Listed, declared: _Listed) -> str:
    if running.passwords == declared.passwords:
        return ""
    if "nopass" in running.passwords:
        return "asks for no password"
    if not running.passwords:
        return "has no password"
    return "has another password" if declared.passwords else "has a password"


def _settled(commands: t.Sequence[str]) -> list[list[str]]:
    """Sort neighbours that say the same in any order: different commands, and categories of one sign.

    Redis 7.0 lists what a user may do in the order of a table that moves (seen after a restart).
    """
    runs = itertools.groupby(commands, lambda word: word[:2] if word[1] == "@" else "")
    # A command and its subcommands stay in their order; subcommands of one sign have none.
    return [_settled_run(sorted(run, key=lambda word: word[1:].partition("|")[0])) for _key, run in runs]


def _settled_run(run: t.Iterable[str]) -> list[str]:
    parts = itertools.groupby(run, lambda word: word.partition("|")[:2] if "|" in word else word)
    return [word for _key, part in parts for word in sorted(part)]


def _user_sentence(running: _Listed, declared: _Listed) -> str:
    """Return how a running user differs from the declared one; nothing when it does not."""
    parts = []
    if running.enabled != declared.enabled:
        parts.append("is on, declared off" if running.enabled else "is off, declared on")
    parts.append(_password_sentence(running, declared))
    has, lacks = Counter(running.words()), Counter(declared.words())
    for verb, words in (("has", has - lacks), ("lacks", lacks - has)):
        if words:
            parts.append(f"{verb} {' '.join(words.elements())}")
    if has == lacks and _settled(running.commands) != _settled(declared.commands):
        parts.append("has its commands in another order")
    return " and ".join(filter(None, parts))


def _first_name(name: str) -> str:
    """Return the name of a setting that *name* is another one for, or nothing: CONFIG GET shows both."""
    known = {"lua-time-limit": "busy-reply-threshold"}.get(name, name)
    for old, new in (("slave", "replica"), ("ziplist", "listpack"), ("_cpulist", "-cpulist"), ("master", "primary")):
        known = known.replace(old, new)
    return known if known != name else ""


@dataclasses.dataclass(frozen=True)
class SettingDifference:
    """One thing that the running server does not have as declared. Secrets are masked.

    Attributes:
        layer: ``runtime`` for a setting, ``object`` for a user.
        kind: ``setting`` or ``user``.
        name: name of it.
        action: ``create``, ``update``, ``delete``, or ``restart`` for what the running server cannot change.
        actual: what the server has.
        declared: what it should have.
        sentence: all of it in one line for people.
    """

    layer: str
    kind: str
    name: str
    action: str
    actual: t.Any
    declared: t.Any
    sentence: str

    @property
    def live(self) -> bool:
        return self.action != "restart"


class Runtime:
    """What a server runs with, beside what is declared.

    Args:
        client: a connection with the rights of an administrator.
        settings: the declared settings.
        users: the declared users. None leaves users alone.
        allow_eviction: whether the server may delete keys when its memory is full.
        fresh: the settings that a start from the server's file would give; those that are not declared are compared
            with them. None leaves them alone.
        prune_users: whether users that are not declared are differences.
    """

    def __init__(
        self,
        client: Client,
        settings: t.Sequence[Setting],
        users: t.Sequence[User] | None,
        allow_eviction: bool = False,
        fresh: t.Mapping[str, str] | None = None,
        prune_users: bool = False,
    ) -> None:
        self._client = client
        self._settings = {setting["name"].lower(): render_value(setting["value"]).strip('"') for setting in settings}
        self._users = users
        self._prune_users = prune_users
        self._allow_eviction = allow_eviction
        self._fresh = {name: value for name, value in (fresh or {}).items() if name not in self._settings}
        self._names = [setting["name"].lower() for setting in settings]
        self._config: dict[str, str] | None = None

    def check(self) -> None:
        """Refuse a declaration that is wrong in itself or for this server.

        Raises:
            ValueError: it is; the message names the setting and the remedy.
        """
        for name, times in Counter(self._names).items():
            if times > 1:
                raise ValueError(f"The setting {name!r} is declared {times} times; declare it once, as one list")
        running = self._running()
        if not self._allow_eviction:
            self._refuse_eviction(self._settings.get("maxmemory-policy"), running["maxmemory-policy"])
        unknown = [name for name in self.unseen() if name not in FILE_ONLY]
        if unknown:
            known = self._pairs("CONFIG", "GET", "*")
            raise ValueError("; ".join(self._unknown(name, known) for name in unknown))
        self._refuse_too_little_memory(running["maxmemory"])

    def differences(self) -> list[SettingDifference]:
        """Return what differs. A line that is not a setting is not compared, see :meth:`unseen`."""
        return [*self._setting_differences(), *self._user_differences()]

    def unseen(self) -> list[str]:
        """Return the declared lines that ``CONFIG GET`` does not show."""
        return [name for name in self._settings if name not in self._running()]

    def repair(self, found: t.Sequence[SettingDifference]) -> bool:
        """Change live what can be changed live. The files must say the same, or a restart undoes it.

        Returns:
            Whether a setting waits for a restart all the same.
        """
        changed = [item for item in found if item.live]
        wanted = {**self._fresh, **self._settings}
        settings = {item.name: wanted[item.name] for item in changed if item.kind == "setting"}
        waits = False
        if "replicaof" in settings and not settings["replicaof"]:
            del settings["replicaof"]
            self._client.call("REPLICAOF", "NO", "ONE")
        try:
            self._set(settings)
        except RedisError as exc:
            # The process has too few descriptors for so many clients. Its unit may have been given more just now.
            if "maxclients" not in settings or "operating system" not in str(exc):
                raise
            waits = bool(settings.pop("maxclients"))
            self._set(settings)
        # Not ACL LOAD: that closes the connections of every worker.
        declared = {user["name"]: user for user in self._users or ()}
        for item in changed:
            if item.kind == "user":
                user = declared.get(item.name)
                self._client.call("ACL", *(["SETUSER", *_words(user, "reset")] if user else ["DELUSER", item.name]))
        return waits

    def _set(self, settings: t.Mapping[str, str]) -> None:
        if settings:
            # One command, so that Redis takes all of them or none.
            self._client.call("CONFIG", "SET", *(word for pair in settings.items() for word in pair))

    def check_rewrite(self) -> None:
        """Refuse to keep changes for a server that has no file to keep them in."""
        if not re.search(r"(?m)^config_file:\S", self._client.call("INFO", "server")):
            raise ValueError(
                "'rewrite' cannot keep anything: the server was started without a configuration file, so that its next "
                "restart forgets every change. Start it with a file, or leave 'rewrite' out"
            )

    def rewrite(self) -> None:
        """Write what the server runs with into its configuration file, and its users into its ACL file.

        Raises:
            RedisError: a file cannot be written; the message names it. The changes are live all the same.
        """
        files = {"CONFIG REWRITE": "configuration file"}
        if self._pairs("CONFIG", "GET", "aclfile").get("aclfile"):
            files["ACL SAVE"] = "ACL file"
        for command, file in files.items():
            try:
                self._client.call(*command.split())
            except RedisError as exc:
                raise RedisError(
                    f"the changes are live, and the next restart forgets them: {command} cannot write the {file} "
                    f"({exc}). Let the server's account write the file and its folder (systemd: ReadWritePaths), or "
                    "change the file by other means and leave 'rewrite' out"
                ) from exc

    def append_only_file_is_complete(self) -> bool:
        """Return whether no rewrite runs: until the first one ends, a crash loses what was there before."""
        information = self._client.call("INFO", "persistence")
        return "aof_rewrite_in_progress:0" in information and "aof_rewrite_scheduled:0" in information

    def _pairs(self, *command: str) -> dict[str, str]:
        words = self._client.call(*command) or []
        return dict(zip(words[0::2], words[1::2], strict=True))

    def _running(self) -> dict[str, str]:
        if self._config is None:
            names = ["*"] if self._fresh else {*self._settings, "maxmemory", "maxmemory-policy"}
            self._config = self._pairs("CONFIG", "GET", *names)
        return self._config

    @staticmethod
    def _refuse_eviction(declared: str | None, running: str) -> None:
        why = "deletes queued tasks when memory is full"
        if declared not in (None, "noeviction"):
            raise ValueError(
                f"maxmemory-policy {declared!r} {why}: declare 'noeviction', which makes publishers fail instead. "
                "For a server that is not a broker, set 'allow_eviction'"
            )
        if declared is None and running != "noeviction":
            raise ValueError(
                f"the server runs with maxmemory-policy {running!r}, which {why}: declare the setting "
                "maxmemory-policy as 'noeviction'. For a server that is not a broker, set 'allow_eviction'"
            )

    def _refuse_too_little_memory(self, running: str) -> None:
        declared = self._settings.get("maxmemory")
        if declared is None or _agrees("maxmemory", running, declared):
            return
        used = int(re.search(r"(?m)^used_memory:(\d+)", self._client.call("INFO", "memory"))[1])
        if 0 < size_in_bytes(declared) < used:
            raise ValueError(
                f"maxmemory {declared!r} is less than the {used} bytes that are in use: every task that is sent would "
                "be refused at once. Declare more, or let the workers empty the queues first"
            )

    @staticmethod
    def _unknown(name: str, known: t.Iterable[str]) -> str:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else " See CONFIG GET * for those it has."
        return f"this server has no setting {name!r}, and would not start with it in its file.{hint}"

    def _is_live(self, name: str) -> bool:
        """Ask the server whether it can change a setting while it runs, without changing it.

        CONFIG SET looks at all names before it sets anything, and tells of the first that it cannot set. So the second
        name, which no server knows, makes sure that nothing is set.
        """
        try:
            self._client.call("CONFIG", "SET", name, "", _NO_SETTING, "")
        except RedisError as exc:
            return _NO_SETTING in str(exc)
        return True

    def _setting_differences(self) -> t.Iterator[SettingDifference]:
        running = self._running()
        undeclared = {name: value for name, value in self._fresh.items() if _first_name(name) not in self._fresh}
        for name, declared in {**undeclared, **self._settings}.items():
            if name not in running or _agrees(name, running[name], declared):
                continue
            live = name == "replicaof" or self._is_live(name)
            before, after = (
                ("set" if running[name] else "", "another") if name in SECRETS else (running[name], declared)
            )
            how = "" if live else " (needs a restart)"
            yield SettingDifference(
                "runtime",
                "setting",
                name,
                "update" if live else "restart",
                before,
                after,
                f"{name}: running {before!r}, declared {after!r}{how}",
            )

    def _user_differences(self) -> t.Iterator[SettingDifference]:
        if self._users is None:
            return
        listed = {user.name: user for user in map(_Listed, self._client.call("ACL", "LIST"))}
        for declared in self._as_listed(self._users):
            name, running = declared.name, listed.pop(declared.name, None)
            if running is None:
                yield SettingDifference(
                    "object", "user", name, "create", None, declared.shown(), f"user {name} is missing"
                )
                continue
            sentence = _user_sentence(running, declared)
            if sentence:
                other = running.passwords != declared.passwords and running.password == declared.password
                yield SettingDifference(
                    "object",
                    "user",
                    name,
                    "update",
                    running.shown("another" if other else None),
                    declared.shown(),
                    f"user {name} {sentence}",
                )
        for name in sorted(listed) if self._prune_users else ():
            actual = listed[name].shown()
            yield SettingDifference("object", "user", name, "delete", actual, None, f"user {name} is not declared")

    def _as_listed(self, users: t.Sequence[User]) -> list[_Listed]:
        """Return the declared users as this server would list them.

        The form differs between versions. So each declared user passes through a nameless twin, made, shown and deleted
        inside one transaction, off and without a password, so that nobody can log in as it.
        """
        if not users:
            return []
        self._client.call("MULTI")
        for user in users:
            self._client.call("ACL", "SETUSER", _PROBE + user["name"], "reset", *_rules(user))
        self._client.call("ACL", "LIST")
        self._client.call("ACL", "DELUSER", *(_PROBE + user["name"] for user in users))
        *made, lines, _done = self._client.call("EXEC")
        for user, answer in zip(users, made, strict=True):
            if isinstance(answer, RedisError):
                raise ValueError(f"the rules of the user {user['name']!r} are refused: {answer}")  # noqa: TRY004
        twins = {twin.name: twin for twin in map(_Listed, lines)}
        found = []
        for user in users:
            twin = twins[_PROBE + user["name"]]
            twin.name, twin.enabled = user["name"], user.get("enabled", True)
            twin.passwords = [password_hash(user["password"])] if user.get("password") else []
            found.append(twin)
        return found


def _information(client: Client) -> dict[str, str]:
    lines = client.call("INFO", "everything").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def read_everything(client: Client) -> dict[str, t.Any]:
    """Return settings, users and state of a server, without secrets; documented in the module redis_runtime_info."""
    info = _information(client)
    words = client.call("CONFIG", "GET", "*")
    config = {
        name: "set" if name in SECRETS and value else value
        for name, value in zip(words[0::2], words[1::2], strict=True)
    }

    def number(name: str) -> int:
        return int(info.get(name, 0))

    # Redis 7.0 does not count what its ACL refuses.
    denied = {kind: info.get(f"acl_access_denied_{kind}") for kind in ("auth", "cmd", "key", "channel")}
    logins, *refused = (None if count is None else int(count) for count in denied.values())
    valkey = info.get("server_name") == "valkey"
    return {
        "server": {
            "name": "valkey" if valkey else "redis",
            "version": info["valkey_version" if valkey else "redis_version"],
            "compatible_with": info["redis_version"],
            "uptime_seconds": number("uptime_in_seconds"),
            "config_file": info["config_file"],
            "role": info["role"],
            "connected_replicas": number("connected_slaves"),
        },
        "config": config,
        "users": listed_users(client.call("ACL", "LIST")),
        "memory": {
            "used_bytes": number("used_memory"),
            "peak_bytes": number("used_memory_peak"),
            "resident_bytes": number("used_memory_rss"),
            "limit_bytes": number("maxmemory"),
            "policy": info["maxmemory_policy"],
            "may_evict": info["maxmemory_policy"] != "noeviction",
            "evicted_keys": number("evicted_keys"),
        },
        "persistence": {
            "loading": info["loading"] == "1",
            "append_only_file": info["aof_enabled"] == "1",
            "fsync": config["appendfsync"],
            "last_write_ok": info["aof_last_write_status"] == "ok",
            "last_rewrite_ok": info["aof_last_bgrewrite_status"] == "ok",
            "rewrite_in_progress": info["aof_rewrite_in_progress"] == "1",
            "delayed_fsyncs": number("aof_delayed_fsync"),
            "last_snapshot_ok": info["rdb_last_bgsave_status"] == "ok",
            "last_snapshot": number("rdb_last_save_time"),
            "changes_since_snapshot": number("rdb_changes_since_last_save"),
            "last_fork_microseconds": number("latest_fork_usec"),
        },
        "clients": {
            "connected": number("connected_clients"),
            "blocked": number("blocked_clients"),
            "limit": int(config["maxclients"]),
            "rejected": number("rejected_connections"),
            "refused_logins": logins,
            "refused_commands": None if None in refused else sum(refused),
        },
        "databases": {
            name[2:]: int(re.match(r"keys=(\d+)", value)[1])
            for name, value in info.items()
            if re.fullmatch(r"db\d+", name)
        },
    }
