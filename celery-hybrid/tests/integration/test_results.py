"""What applications do with results, through a real worker."""

from __future__ import annotations

import pickle
import time
import uuid

import pytest
import redis
from celery import chain, chord, group, states
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import GroupResult

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("worker")]


def wait_until(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_get(task):
    assert task("add").delay(2, 3).get(timeout=20) == 5


def test_a_result_is_pushed(task):
    task("add").delay(1, 1).get(timeout=20)
    durations = []
    for _ in range(5):
        begun = time.monotonic()
        task("add").delay(1, 1).get(timeout=20)
        durations.append(time.monotonic() - begun)
    # The first look into the archive would be after a second.
    assert min(durations) < 0.5


def test_state_in_another_process_any_number_of_times(task, in_process):
    result = task("add").delay(2, 3)
    assert result.get(timeout=20) == 5
    for _ in range(2):
        answer = in_process(f"""
r = app.AsyncResult({result.id!r})
answer = [r.state, r.result, r.get(timeout=5), r.ready(), app.AsyncResult(r.id).get(timeout=5), r.name, r.args]""")
        assert answer == ["SUCCESS", 5, 5, True, 5, "hybrid.add", [2, 3]]


def test_failure(task):
    result = task("fail").delay("of a reason")
    with pytest.raises(ValueError, match="of a reason"):
        result.get(timeout=20)
    assert result.state == states.FAILURE
    assert "Traceback" in result.traceback
    assert isinstance(result.get(propagate=False), ValueError)


def test_results_collected_after_all_were_sent(task):
    results = [task("add").delay(number, 1) for number in range(200)]
    assert [result.get(timeout=30) for result in results] == list(range(1, 201))


def test_group(task):
    result = group(task("add").s(number, number) for number in range(20))()
    assert result.get(timeout=30) == [2 * number for number in range(20)]
    assert result.join(timeout=5) == [2 * number for number in range(20)]


def test_iter_native(task):
    result = group(task("add").s(number, number) for number in range(10))()
    found = {task_id: meta["result"] for task_id, meta in result.iter_native(timeout=20)}
    assert sorted(found.values()) == [2 * number for number in range(10)]


def test_get_many(task, app):
    results = [task("add").delay(number, 1) for number in range(10)]
    seen = []
    many = dict(app.backend.get_many({r.id for r in results}, timeout=20, interval=0.1, on_message=seen.append))
    assert sorted(meta["result"] for meta in many.values()) == list(range(1, 11))
    assert len(seen) == 10
    with pytest.raises(CeleryTimeoutError):
        list(app.backend.get_many({str(uuid.uuid4())}, timeout=0.3, interval=0.1))
    assert list(app.backend.get_many({str(uuid.uuid4())}, max_iterations=1)) == []


def test_chain(task):
    result = chain(task("add").s(1, 1), task("add").s(2), task("add").s(3))()
    assert result.get(timeout=20) == 7
    assert result.parent.parent.get(timeout=5) == 2


def test_an_error_in_a_chain(task):
    result = chain(task("fail").si("early"), task("add").s(2), task("add").s(3))()
    with pytest.raises(ValueError, match="early"):
        result.get(timeout=20)
    wait_until(lambda: result.state == states.FAILURE)


def test_chord(task):
    assert chord([task("add").s(n, n) for n in range(5)], task("total").s())().get(timeout=30) == 20


def test_an_error_in_a_chord(task):
    result = chord([task("add").s(1, 1), task("fail").s("in the header")], task("total").s())()
    with pytest.raises(Exception, match="in the header"):
        result.get(timeout=30)


def test_a_group_in_a_chain(task):
    result = (task("add").s(1, 1) | group(task("add").s(n) for n in range(3)) | task("total").s())()
    assert result.get(timeout=30) == 2 + 3 + 4


def test_a_replaced_task_is_found(task):
    assert task("replaced").delay(4).get(timeout=20) == 5


def test_a_replaced_task_is_found_within_a_short_timeout(task, app):
    result = task("replaced").delay(4)
    # Connected, and the partition read: the first look can take longer than this timeout.
    wait_until(lambda: app.AsyncResult(result.id).state == states.SUCCESS)
    assert result.get(timeout=0.5) == 5


def test_children_and_a_tree_of_results(task):
    result = task("spawn").delay(3)
    result.get(timeout=20)
    (children,) = result.children
    assert isinstance(children, GroupResult)
    assert children.get(timeout=20) == [0, 2, 4]
    wait_until(lambda: len([value for _, value in result.collect(timeout=20)]) == 5)


def test_waiting_inside_a_task(task):
    assert task("wait_inside").delay(4).get(timeout=30) == 8


def test_retry(task, tmp_path):
    result = task("retried").delay(str(tmp_path / "x"))
    states_seen = []
    assert result.get(timeout=30, on_message=lambda meta: states_seen.append(meta["status"])) == 1
    assert states_seen[-1] == "SUCCESS"
    assert "RETRY" in states_seen


def test_custom_states(task, tmp_path, in_process):
    go = tmp_path / "go"
    result = task("progress").delay(3, str(go))
    wait_until(lambda: result.state == "PROGRESS" and result.info == {"step": 3})
    answer = in_process(f"r = app.AsyncResult({result.id!r}); answer = [r.state, r.info]")
    assert answer == ["PROGRESS", {"step": 3}]
    go.touch()
    assert result.get(timeout=20) == 3


def test_revoked(task, app):
    result = task("add").apply_async((1, 1), countdown=2)
    time.sleep(0.5)
    app.control.revoke(result.id)
    with pytest.raises(Exception, match="revoked"):
        result.get(timeout=20)
    assert result.state == states.REVOKED


def test_callback(task):
    got = []
    result = task("add").delay(2, 2)
    result.then(lambda r: got.append(r.result))
    result.get(timeout=20)
    assert got == [4]


def test_errback(task, errback_file):
    result = task("fail").apply_async(("for the errback",), link_error=task("errback").s())
    with pytest.raises(ValueError, match="for the errback"):
        result.get(timeout=20)
    wait_until(lambda: errback_file.exists() and f"{result.id} for the errback" in errback_file.read_text())


def test_ignored_results_are_not_stored(task, app):
    result = task("quiet").delay(1)
    assert result.get(timeout=5) is None
    last = task("add").delay(1, 1)
    last.get(timeout=20)
    assert app.AsyncResult(result.id).state == states.PENDING


def test_forget_is_for_everybody(task, app, in_process):
    result = task("add").delay(2, 3)
    result.get(timeout=20)
    result.forget()
    result.forget()
    assert app.AsyncResult(result.id).state == states.PENDING
    assert in_process(f"answer = app.AsyncResult({result.id!r}).state") == "PENDING"
    # A task that runs again after it was forgotten has a result again.
    app.backend.store_result(result.id, 9, states.SUCCESS)
    assert app.AsyncResult(result.id).get(timeout=5) == 9


def test_groups_are_saved(task, app, in_process):
    result = group(task("add").s(number, 1) for number in range(3))()
    result.save()
    answer = in_process(f"""
from celery.result import GroupResult
answer = GroupResult.restore({result.id!r}, app=app).get(timeout=20)""")
    assert answer == [1, 2, 3]
    result.delete()
    assert in_process(f"answer = app.backend.restore_group({result.id!r})") is None
    # The group's tombstone hides no task.
    assert result.results[0].get(timeout=5) == 1


def test_a_group_and_a_task_may_have_the_same_id(app):
    same = str(uuid.uuid4())
    app.GroupResult(same, [app.AsyncResult("member")]).save()
    app.backend.store_result(same, 5, states.SUCCESS)
    assert app.AsyncResult(same).get(timeout=5) == 5
    app.backend.forget(same)
    assert [member.id for member in app.GroupResult.restore(same).results] == ["member"]


def test_pickling(task, app):
    app.set_current()
    result = task("add").delay(4, 4)
    restored = pickle.loads(pickle.dumps(result))  # noqa: S301
    assert restored.get(timeout=20) == 8
    assert result.get(timeout=20) == 8


def test_exists(task, app):
    result = task("add").delay(1, 1)
    result.get(timeout=20)
    assert app.backend.task_result_exists(result.id)
    assert not app.backend.task_result_exists(str(uuid.uuid4()))


def test_nothing_of_a_result_is_in_redis(task, broker_url):
    result = task("add").delay(40, 2)
    result.get(timeout=20)
    client = redis.Redis.from_url(broker_url)
    wait_until(lambda: not [key for key in client.scan_iter(count=1000) if result.id.encode() in key])
    assert not [key for key in client.scan_iter(count=1000) if b"task-meta" in key]


@pytest.mark.parametrize("seconds", [0.5, 1, 2.5])
def test_timeouts_are_accurate(task, tmp_path, seconds):
    go = tmp_path / "go"
    result = task("wait_for_file").delay(str(go))
    assert result.state in {"PENDING", "STARTED"}  # connects
    try:
        begun = time.monotonic()
        with pytest.raises(CeleryTimeoutError):
            result.get(timeout=seconds)
        elapsed = time.monotonic() - begun
        # Within 10 % when the machine has nothing else to do; here it may have.
        assert seconds <= elapsed < 1.1 * seconds + 0.5
    finally:
        go.touch()
    assert result.get(timeout=20) == "found"


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_other_pools(other_worker, make_app, pool):
    if pool == "gevent":
        pytest.importorskip("gevent")
    other_worker(pool, *([] if pool == "solo" else ["-c", "4"]))
    app = make_app()
    add = app.tasks["hybrid.add"]
    assert [r.get(timeout=30) for r in [add.delay(n, 1) for n in range(12)]] == list(range(1, 13))
    assert chain(add.s(1, 1), add.s(2))().get(timeout=20) == 4
    if pool != "solo":
        assert app.tasks["hybrid.wait_inside"].delay(4).get(timeout=30) == 8
        assert chord([add.s(1, 1), add.s(2, 2)], app.tasks["hybrid.total"].s())().get(timeout=30) == 6
