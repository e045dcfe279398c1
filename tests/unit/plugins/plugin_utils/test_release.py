"""What hosts have served, and where they go back to."""

from __future__ import annotations

import pytest
from ansible_collections.celeryops.hybrid.plugins.plugin_utils._release import (
    release_history,
    release_table,
    release_target,
)


def release(name: str, since: str = "") -> dict[str, str]:
    return {"release": name, "environment": f"/e/{name}", "version": f"shop {name}", "checksum": name, "since": since}


def names(history: list[dict[str, str]]) -> list[str]:
    return [entry["environment"] for entry in history]


def test_a_release_follows_the_one_before() -> None:
    history = release_history([], release("a"))
    history = release_history(history, release("b"), "/e/a")
    assert names(history) == ["/e/a", "/e/b"]


def test_what_was_in_use_before_there_was_a_history_is_known() -> None:
    assert names(release_history([], release("b"), "/e/a")) == ["/e/a", "/e/b"]


def test_going_back_forgets_what_came_after() -> None:
    history = [release("a"), release("b"), release("c")]
    assert names(release_history(history, release("b"), "/e/c")) == ["/e/a", "/e/b"]
    assert names(release_history(history, release("a"), "/e/c")) == ["/e/a"]


def test_the_same_again_is_one_entry() -> None:
    (entry,) = release_history([release("a", "1")], release("a", "2"), "/e/a")
    assert entry["since"] == "2"


def test_history_is_bounded() -> None:
    history: list[dict[str, str]] = []
    for number in range(30):
        history = release_history(history, release(str(number)))
    assert names(history)[-1] == "/e/29"
    assert len(history) == 10


def test_all_hosts_go_back_after_a_whole_release() -> None:
    histories = {"h1": [release("a", "1"), release("b", "2")], "h2": [release("a", "1"), release("b", "3")]}
    assert [release_target(histories, host)["release"] for host in histories] == ["a", "a"]


def test_only_those_that_have_it_go_back_after_half_a_release() -> None:
    histories = {
        "h1": [release("0", "0"), release("a", "1"), release("b", "2")],
        "h2": [release("0", "0"), release("a", "1")],
    }
    assert release_target(histories, "h1") == release("a", "1")
    assert release_target(histories, "h2") is None


def test_a_host_without_history_stays() -> None:
    assert release_target({"h1": [], "h2": [release("a", "1"), release("b", "2")]}, "h1") is None
    assert release_target({"h1": []}, "h1") is None


def test_the_first_release_has_nothing_before_it() -> None:
    with pytest.raises(ValueError, match="h1 has no release to go back to: shop a is the first"):
        release_target({"h1": [release("a", "1")]}, "h1")


def test_the_table_has_a_line_for_each_host() -> None:
    table = release_table([{"host": "h1", "outcome": "released", **release("a", "now")}, {"host": "host2"}])
    assert table[0].split() == ["HOST", "VERSION", "CHECKSUM", "SINCE", "OUTCOME"]
    assert table[1].split() == ["h1", "shop", "a", "a", "now", "released"]
    assert table[2] == "host2"


def test_environment_that_was_built_again_takes_the_place_of_the_changed_one() -> None:
    history = [release("a"), release("b")]
    again = {**release("b"), "environment": "/e/b-2"}
    assert names(release_history(history, again, "/e/b")) == ["/e/a", "/e/b-2"]
    third = {**release("b"), "environment": "/e/b-3"}
    assert names(release_history([release("a"), again], third, "/e/b-2")) == ["/e/a", "/e/b-3"]
    assert names(release_history([], again, "/e/b")) == ["/e/b-2"]
