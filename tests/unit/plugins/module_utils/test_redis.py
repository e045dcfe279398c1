"""Declared state of Redis: rendered, and compared with a server that plays by a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils import _redis as redis

CELERY = {"name": "celery", "enabled": True, "password": "secret", "rules": ["~*", "-@all", "+@list"]}
OFF = {"name": "default", "enabled": False, "rules": ["-@all"]}
LISTED = f"user celery on {redis.password_hash('secret')} ~* resetchannels -@all +@list"


class Server:
    """Answers as Redis 7 does."""

    def __init__(self, config: dict[str, str] | None = None, users: list[str] | None = None) -> None:
        self.config = config or {}
        self.users = users if users is not None else [LISTED, "user default off resetchannels -@all"]
        self.sent: list[tuple[Any, ...]] = []

    def call(self, *words: Any) -> Any:
        self.sent.append(words)
        if words[:2] == ("CONFIG", "GET"):
            return [word for name in words[2:] if name in self.config for word in (name, self.config[name])]
        if words == ("ACL", "LIST"):
            return self.users
        if words[0] == "EXEC":
            twin = next(sent for sent in reversed(self.sent) if sent[:2] == ("ACL", "SETUSER"))[2]
            rules = " ".join(next(sent for sent in reversed(self.sent) if sent[:2] == ("ACL", "SETUSER"))[4:])
            return ["OK", [*self.users, f"user {twin} off resetchannels {rules}"], 1]
        return "OK"

    def writes(self) -> list[tuple[Any, ...]]:
        """What was sent that changes something for good."""
        return [
            words
            for words in self.sent
            if words[1:2] and words[1] in ("SET", "DELUSER", "SETUSER") and "celeryops-compare" not in words[2]
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
    ],
)
def test_the_same_in_other_words_is_no_difference(declared: Any, running: str) -> None:
    assert differences(Server({"x": running}), [{"name": "x", "value": declared}]) == []


def test_limits_of_one_class_of_clients_are_found_among_all() -> None:
    running = "normal 0 0 0 slave 268435456 67108864 60 pubsub 67108864 16777216 60"
    declared = [{"name": "client-output-buffer-limit", "value": "pubsub 64mb 16mb 60"}]
    assert differences(Server({"client-output-buffer-limit": running}), declared) == []
    declared = [{"name": "client-output-buffer-limit", "value": "pubsub 32mb 16mb 60"}]
    assert len(differences(Server({"client-output-buffer-limit": running}), declared)) == 1


@pytest.mark.parametrize(("name", "live"), [("maxmemory-policy", True), ("tcp-backlog", False)])
def test_a_difference_says_whether_it_needs_a_restart(name: str, live: bool) -> None:
    (found,) = redis.Runtime(Server({name: "old"}), [{"name": name, "value": "new"}], [CELERY, OFF]).differences()
    assert found.live is live
    assert ("restart" in found.sentence) is not live


def test_a_setting_that_is_not_shown_is_told_apart() -> None:
    runtime = redis.Runtime(Server({}), [{"name": "new-in-redis-9", "value": 1}], [CELERY, OFF])
    assert (runtime.differences(), runtime.unseen()) == ([], ["new-in-redis-9"])


@pytest.mark.parametrize(
    ("users", "sentence"),
    [
        (["user default off -@all"], "user celery is missing"),
        ([LISTED.replace(" on ", " off "), "user default off -@all"], "user celery is off, declared on"),
        ([LISTED, "user default on nopass ~* +@all"], "user default is on, declared off"),
        ([LISTED + " +flushall", "user default off -@all"], "user celery has other commands"),
        ([LISTED + " ~x", "user default off -@all"], "user celery has other keys"),
        ([LISTED + " &x", "user default off -@all"], "user celery has other channels"),
        ([LISTED.replace("#", "#0"), "user default off -@all"], "user celery has another password"),
        ([LISTED + " nopass", "user default off -@all"], "user celery has another password"),
        ([LISTED, "user default off -@all", "user evil on nopass"], "user evil is not declared"),
    ],
)
def test_every_part_of_a_user_is_compared(users: list[str], sentence: str) -> None:
    assert differences(Server(users=users)) == [sentence]


def test_what_is_as_declared_writes_nothing() -> None:
    server = Server({"appendonly": "yes"})
    runtime = redis.Runtime(server, [{"name": "appendonly", "value": True}], [CELERY, OFF])
    runtime.repair(runtime.differences())
    assert server.writes() == []


def test_repair_sets_settings_at_once_and_users_one_by_one() -> None:
    server = Server(
        {"a": "1", "b": "2", "tcp-backlog": "3"}, ["user celery off", "user evil on", "user default off -@all"]
    )
    settings = [{"name": "a", "value": 2}, {"name": "b", "value": '""'}, {"name": "tcp-backlog", "value": 4}]
    runtime = redis.Runtime(server, settings, [CELERY, OFF])
    runtime.repair(runtime.differences())
    assert server.writes() == [
        ("CONFIG", "SET", "a", "2", "b", ""),
        ("ACL", "SETUSER", "celery", "reset", "on", redis.password_hash("secret"), "~*", "-@all", "+@list"),
        ("ACL", "DELUSER", "evil"),
    ]


def test_acl_file_holds_no_password() -> None:
    text = redis.render_acl([OFF, CELERY])
    assert text.splitlines()[0] == "user default off -@all"
    assert redis.password_hash("secret") in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "user", [{"name": "two words", "rules": []}, {"name": "x", "rules": ["on"]}, {"name": "x", "rules": [">clear"]}]
)
def test_what_would_break_the_acl_file_is_refused(user: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no name|no rule"):
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
def test_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        redis.size_in_bytes(text)


def test_a_line_break_cannot_smuggle_a_setting_in() -> None:
    with pytest.raises(ValueError, match="line break"):
        redis.render_config([{"name": "dir", "value": "/x\nrequirepass y"}])


def test_celery_gets_the_channels_of_its_database_only() -> None:
    rules = redis.celery_rules(3)
    assert [rule for rule in rules if rule.startswith("&")] == [
        "&/3.celery.pidbox",
        "&/3.celeryev",
        "&/3.celeryev/*",
        "&/3.celeryev/worker.*",
    ]
    assert rules.index("-@all") < rules.index("+@list") < rules.index("-@dangerous")
