"""Declared state of Redis: rendered, and compared with a server that plays by a script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _redis as redis

CELERY = {"name": "celery", "enabled": True, "password": "secret", "rules": ["~*", "-@all", "+@list"]}
OFF = {"name": "default", "enabled": False, "rules": ["-@all"]}
OFF_LISTED = "user default off resetchannels -@all"
LISTED = f"user celery on {redis.password_hash('secret')} ~* resetchannels -@all +@list"


RESTART_ONLY = "tcp-backlog"
DEFAULTS = {"maxmemory": "0", "maxmemory-policy": "noeviction"}


class Server:
    """Answers as Redis 7 does."""

    def __init__(
        self, config: dict[str, str] | None = None, users: list[str] | None = None, information: str = ""
    ) -> None:
        self.config = DEFAULTS | (config or {})
        self.users = users if users is not None else [LISTED, "user default off resetchannels -@all"]
        self.information = information
        self.sent: list[tuple[Any, ...]] = []
        self._transaction: list[Any] | None = None

    def call(self, *words: Any) -> Any:
        self.sent.append(words)
        if words == ("MULTI",):
            self._transaction = []
        elif words == ("EXEC",):
            answers, self._transaction = self._transaction, None
            return answers
        elif self._transaction is not None:
            self._transaction.append(self._answer(*words))
        else:
            return self._answer(*words)
        return "QUEUED"

    def _answer(self, *words: Any) -> Any:
        if words[0] == "INFO":
            return self.information
        if words[:2] == ("CONFIG", "GET"):
            names = self.config if words[2] == "*" else [name for name in words[2:] if name in self.config]
            return [word for name in names for word in (name, self.config[name])]
        if words[:2] == ("CONFIG", "SET") and len(words) > 4 and words[4] == redis._NO_SETTING:
            why = "can't set immutable config" if words[2] == RESTART_ONLY else f"Unknown option {words[4]!r}"
            raise redis.RedisError(why)
        if words == ("ACL", "LIST"):
            return list(self.users)
        if words[:2] == ("ACL", "SETUSER"):
            if "+nosuch" in words:
                return redis.RedisError("Unknown command")
            rules = " ".join(word for word in words[3:] if word not in ("reset", "off"))
            self.users.append(f"user {words[2]} off sanitize-payload resetchannels {rules}")
        if words[:2] == ("ACL", "DELUSER"):
            self.users = [line for line in self.users if line.split()[1] not in words[2:]]
        return "OK"

    def writes(self) -> list[tuple[Any, ...]]:
        """What was sent that changes something for good."""
        verbs = ("SET", "DELUSER", "SETUSER", "REWRITE", "SAVE")
        return [
            words
            for words in self.sent
            if words[1:2] and words[1] in verbs
            if not any(probe in word for word in words for probe in (redis._PROBE, redis._NO_SETTING))
        ]


def differences(server: Server, settings: Sequence[dict[str, Any]] = ()) -> list[str]:
    return [difference.sentence for difference in redis.Runtime(server, settings, [CELERY, OFF]).differences()]


@pytest.mark.parametrize(
    ("declared", "running"),
    [
        (True, "yes"),
        ("512mb", "536870912"),
        (["127.0.0.1", "10.0.0.1"], "127.0.0.1 10.0.0.1"),
        ("", ""),
        ('""', ""),
        (0, "0"),
        ("1e3", "1e3"),
    ],
)
def test_the_same_in_other_words_is_not_a_difference(declared: Any, running: str) -> None:
    assert differences(Server({"x": running}), [{"name": "x", "value": declared}]) == []


@pytest.mark.parametrize(
    ("declared", "running", "same"),
    [("Kl", "lK", True), ("AK", "g$lshzxetdK", True), ("Kl", "lKE", False), ("", "", True), ("K", "", False)],
)
def test_flags_of_events_have_no_order(declared: str, running: str, same: bool) -> None:
    name = "notify-keyspace-events"
    assert (differences(Server({name: running}), [{"name": name, "value": declared}]) == []) is same


def test_limits_of_one_class_of_clients_are_found_among_all() -> None:
    running = "normal 0 0 0 slave 268435456 67108864 60 pubsub 67108864 16777216 60"
    declared = [{"name": "client-output-buffer-limit", "value": "pubsub 64mb 16mb 60"}]
    assert differences(Server({"client-output-buffer-limit": running}), declared) == []
    declared = [{"name": "client-output-buffer-limit", "value": "pubsub 32mb 16mb 60"}]
    assert len(differences(Server({"client-output-buffer-limit": running}), declared)) == 1


@pytest.mark.parametrize(("name", "action"), [("maxmemory-policy", "update"), (RESTART_ONLY, "restart")])
def test_the_server_says_what_needs_a_restart(name: str, action: str) -> None:
    server = Server({name: "old"})
    (found,) = redis.Runtime(server, [{"name": name, "value": "new"}], [CELERY, OFF]).differences()
    assert (found.layer, found.kind, found.name, found.action) == ("runtime", "setting", name, action)
    assert (found.actual, found.declared) == ("old", "new")
    assert found.live is (action == "update")
    assert ("restart" in found.sentence) is not found.live
    assert server.writes() == []


def test_a_secret_of_a_setting_is_masked() -> None:
    (found,) = redis.Runtime(
        Server({"masterauth": "old-one"}), [{"name": "masterauth", "value": "new-one"}], [CELERY, OFF]
    ).differences()
    assert "-one" not in str(found)
    assert (found.actual, found.declared) == ("set", "another")


def test_a_line_that_is_not_a_setting_is_told_apart() -> None:
    runtime = redis.Runtime(Server(), [{"name": "include", "value": "/x"}], [CELERY, OFF])
    runtime.check()
    assert (runtime.differences(), runtime.unseen()) == ([], ["include"])


@pytest.mark.parametrize(
    ("settings", "running", "words"),
    [
        ({"maxmemory-polcy": "noeviction"}, {}, ["'maxmemory-polcy'", "Did you mean 'maxmemory-policy'"]),
        ({"zzz": 1}, {}, ["no setting 'zzz'", r"CONFIG GET \*"]),
        ({"maxmem*": 1}, {}, [r"no setting 'maxmem\*'"]),
        (
            {"maxmemory-policy": "allkeys-lru"},
            {},
            ["'allkeys-lru' deletes queued tasks", "noeviction", "allow_eviction"],
        ),
        ({}, {"maxmemory-policy": "volatile-lru"}, ["runs with maxmemory-policy 'volatile-lru'", "allow_eviction"]),
        ({"maxmemory": "1kb"}, {}, ["less than the 2048 bytes"]),
        ({"Maxmemory": "1gb", "maxmemory": "2gb"}, {}, ["'maxmemory' is declared 2 times"]),
    ],
)
def test_a_wrong_declaration_gets_a_reason(settings: dict[str, Any], running: dict[str, str], words: list[str]) -> None:
    declared = [{"name": name, "value": value} for name, value in settings.items()]
    server = Server(running, information="# Memory\r\nused_memory:2048\r\n")
    with pytest.raises(ValueError, match=".*".join(words)):
        redis.Runtime(server, declared, None).check()
    assert server.writes() == []


@pytest.mark.parametrize(
    ("settings", "running"),
    [
        ({"maxmemory-policy": "noeviction"}, {"maxmemory-policy": "allkeys-lru"}),
        ({"maxmemory": 0}, {"maxmemory": "5"}),
        ({"maxmemory": "1mb"}, {}),
        # No change, so that it is not this declaration that stops the publishers.
        ({"maxmemory": "1kb"}, {"maxmemory": "1024"}),
    ],
)
def test_a_good_declaration_is_taken(settings: dict[str, Any], running: dict[str, str]) -> None:
    declared = [{"name": name, "value": value} for name, value in settings.items()]
    redis.Runtime(Server(running, information="used_memory:2048"), declared, None).check()


def test_eviction_can_be_allowed() -> None:
    server = Server({"maxmemory-policy": "volatile-lru"})
    redis.Runtime(server, [{"name": "maxmemory-policy", "value": "allkeys-lru"}], None, True).check()


@pytest.mark.parametrize(
    ("users", "action", "sentence"),
    [
        (["user default off -@all"], "create", "user celery is missing"),
        ([LISTED.replace(" on ", " off "), OFF_LISTED], "update", "user celery is off, declared on"),
        (
            [LISTED, "user default on nopass ~* -@all"],
            "update",
            "user default is on, declared off and asks for no password and has ~*",
        ),
        ([LISTED + " +flushall", OFF_LISTED], "update", "user celery has +flushall"),
        ([LISTED.replace(" +@list", ""), OFF_LISTED], "update", "user celery lacks +@list"),
        (
            [LISTED.replace("-@all +@list", "+@list -@all"), OFF_LISTED],
            "update",
            "user celery has its commands in another order",
        ),
        ([LISTED + " ~x", OFF_LISTED], "update", "user celery has ~x"),
        ([LISTED + " &x", OFF_LISTED], "update", "user celery has &x"),
        ([LISTED + " (~y +get)", OFF_LISTED], "update", "user celery has (~y +get)"),
        ([LISTED + " skip-sanitize-payload", OFF_LISTED], "update", "user celery has skip-sanitize-payload"),
        ([LISTED.replace("#", "#0"), OFF_LISTED], "update", "user celery has another password"),
        ([LISTED + " #1", OFF_LISTED], "update", "user celery has another password"),
        ([LISTED + " nopass", OFF_LISTED], "update", "user celery asks for no password"),
        ([LISTED, OFF_LISTED + " #1"], "update", "user default has a password"),
        ([LISTED, OFF_LISTED, "user evil on nopass"], "delete", "user evil is not declared"),
    ],
)
def test_every_part_of_a_user_is_compared(users: list[str], action: str, sentence: str) -> None:
    (found,) = redis.Runtime(Server(users=users), [], [CELERY, OFF], prune_users=True).differences()
    assert (found.layer, found.kind, found.action, found.sentence) == ("object", "user", action, sentence)
    assert (found.actual is None, found.declared is None) == (action == "create", action == "delete")
    assert "#" not in str(found)


def test_a_user_is_shown_whole_and_masked() -> None:
    users = [LISTED.replace("#", "#0") + " +get", OFF_LISTED]
    (found,) = redis.Runtime(Server(users=users), [], [CELERY, OFF], prune_users=True).differences()
    common = {"enabled": True, "keys": ["~*"], "channels": []}
    assert found.actual == common | {"password": "another", "commands": ["-@all", "+@list", "+get"]}
    assert found.declared == common | {"password": "set", "commands": ["-@all", "+@list"]}


def test_users_are_left_alone_when_none_are_declared() -> None:
    assert list(redis.Runtime(Server(users=["user evil on nopass"]), [], None).differences()) == []


def test_a_rule_that_the_server_does_not_know_names_its_user() -> None:
    server = Server()
    user = {"name": "x", "rules": ["+nosuch"]}
    with pytest.raises(ValueError, match="'x' are refused: Unknown command"):
        redis.Runtime(server, [], [CELERY, OFF, user]).differences()


def test_what_is_as_declared_writes_nothing() -> None:
    server = Server({"appendonly": "yes"})
    runtime = redis.Runtime(server, [{"name": "appendonly", "value": True}], [CELERY, OFF])
    runtime.repair(runtime.differences())
    assert server.writes() == []


def test_repair_sets_settings_at_once_and_users_one_by_one() -> None:
    server = Server({"a": "1", "b": "2", "tcp-backlog": "3"}, ["user celery off", "user evil on", OFF_LISTED])
    settings = [{"name": "a", "value": 2}, {"name": "b", "value": '""'}, {"name": "tcp-backlog", "value": 4}]
    runtime = redis.Runtime(server, settings, [CELERY, OFF], prune_users=True)
    runtime.repair(runtime.differences())
    assert server.writes() == [
        ("CONFIG", "SET", "a", "2", "b", ""),
        ("ACL", "SETUSER", "celery", "reset", "on", redis.password_hash("secret"), "~*", "-@all", "+@list"),
        ("ACL", "DELUSER", "evil"),
    ]


@pytest.mark.parametrize(
    ("aclfile", "written"), [("", [("CONFIG", "REWRITE")]), ("/x", [("CONFIG", "REWRITE"), ("ACL", "SAVE")])]
)
def test_rewrite_writes_every_file_that_the_server_has(aclfile: str, written: list[tuple[str, ...]]) -> None:
    server = Server({"aclfile": aclfile}, information="config_file:/etc/redis.conf\r\n")
    runtime = redis.Runtime(server, [], None)
    runtime.check_rewrite()
    runtime.rewrite()
    assert server.writes() == written


def test_a_server_without_a_file_cannot_keep_a_change() -> None:
    with pytest.raises(ValueError, match="without a configuration file"):
        redis.Runtime(Server(information="config_file:\r\n"), [], None).check_rewrite()


def test_acl_file_holds_no_password() -> None:
    text = redis.render_acl([OFF, CELERY])
    assert text.splitlines()[0] == "user default off -@all"
    assert redis.password_hash("secret") in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "user", [{"name": "two words", "rules": []}, {"name": "x", "rules": ["on"]}, {"name": "x", "rules": [">clear"]}]
)
def test_what_would_break_the_acl_file_is_refused(user: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not a valid name|not a rule"):
        redis.render_acl([user])


def test_configuration_carries_its_reasons() -> None:
    text = redis.render_config(
        [{"name": "save", "value": ""}, {"name": "appendonly", "value": True, "why": "a crash\nloses all"}]
    )
    assert text == 'save ""\n\n# a crash\n# loses all\nappendonly yes\n'


@pytest.mark.parametrize(("text", "size"), [("1kb", 1024), ("1k", 1000), ("2GB", 2 * 1024**3), (7, 7)])
def test_sizes_are_those_of_redis(text: Any, size: int) -> None:
    assert redis.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "-1", "1 tb", ""])
def test_text_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid size"):
        redis.size_in_bytes(text)


def test_a_line_break_cannot_smuggle_a_setting_in() -> None:
    with pytest.raises(ValueError, match="line break"):
        redis.render_config([{"name": "dir", "value": "/x\nrequirepass y"}])


def test_workers_get_the_channels_of_their_database_only() -> None:
    rules = redis.celery_rules(3)
    assert [rule for rule in rules if rule.startswith("&")] == [
        "&/3.celery.pidbox",
        "&/3.celeryev",
        "&/3.celeryev/*",
        "&/3.celeryev/worker.*",
        "&__keyspace@3__:*",
        "&__keyevent@3__:*",
    ]
    assert rules[0] == "~*"
    assert "-@all" in rules
    assert not any(rule.startswith("+@") for rule in rules)


def test_producers_write_and_do_not_read() -> None:
    rules = redis.celery_rules(3, "producer", ["celery*"], ["hgetall"], ["celery", "a*b"])
    keys = [rule for rule in rules if rule[0] in "~%"]
    assert keys == [
        *("%W~celery", "%W~celery:[0-9]", "%W~celery??[0-9]"),
        *(r"%W~a\*b", r"%W~a\*b:[0-9]", r"%W~a\*b??[0-9]"),
    ]
    of_celery = "~_kombu.binding.celery ~_kombu.binding_permanent.celery"
    assert rules[-2] == (f"(-@all +sadd +smembers {of_celery} " r"~_kombu.binding.a\*b ~_kombu.binding_permanent.a\*b)")
    # They begin chords, and read nothing of them.
    assert rules[-1] == "(-@all +del +hset +expire %W~celery.chord.*)"
    assert "+hgetall" in rules
    assert not {"+lrange", "+brpop", "+del", "+smembers", "+evalsha"} & set(rules)


def test_the_readme_gives_the_rights_and_their_reasons() -> None:
    readme = (Path(__file__).parents[4] / "roles/redis/README.md").read_text()
    for why, worker, producer in redis.CELERY_RIGHTS:
        assert row(why, worker, producer) in readme


def row(why: str, *columns: str) -> str:
    cells = (f"`{cell}`".replace("|", "\\|") if cell else "" for cell in columns)
    return f"| {why} | {' | '.join(cells)} |"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("-@all +@hash +@set +get +ping", "-@all +@set +@hash +ping +get", True),
        ("+@hash -hdel", "-hdel +@hash", False),
        ("-@hash +@set", "+@set -@hash", False),
        ("+script -script|load", "-script|load +script", False),
        ("+client|setname +get +client|tracking", "+client|tracking +client|setname +get", True),
        ("-client|kill +client|kill", "+client|kill -client|kill", False),
        ("+client|id +client -client|kill", "+client -client|kill +client|id", False),
    ],
)
def test_order_counts_where_rules_overlap(one, other, same):
    assert (redis._settled(one.split()) == redis._settled(other.split())) == same


def test_users_that_are_not_declared_stay_unless_they_are_to_be_deleted() -> None:
    users = ["user theirs on nopass"]
    found = redis.Runtime(Server(users=users), [], []).differences()
    assert found == []
    (gone,) = redis.Runtime(Server(users=users), [], [], prune_users=True).differences()
    assert (gone.name, gone.action) == ("theirs", "delete")
