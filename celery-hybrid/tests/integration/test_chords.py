"""Chords are counted in Redis: values as with Celery's Redis backend, one body whatever dies, no side effects."""

from __future__ import annotations

import json
import os
import time
import uuid
from urllib.parse import urlsplit

import amqp
import celery
import pytest
import redis
from celery import chain, chord, group
from celery.exceptions import ChordError
from chord_tasks import (
    adds,
    app,
    becomes,
    boom,
    errback,
    gated,
    gather,
    kin,
    long,
    old_errback,
    own_id,
    plus,
    quiet,
    value,
)
from environment import needed

from celery_hybrid.names import CHORD_PREFIX, CHORDS_OPEN, CHORDS_QUEUE, CHORDS_READY, RESULTS_EXCHANGE
from celery_hybrid.rabbitmq.records import CHORD_SHAPE, CHORD_SIZE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

SECONDS = 40
CELERY = celery.VERSION[:2]


@pytest.fixture(scope="module", autouse=True)
def _end_of_app():
    yield
    from celery_hybrid.results.store import _registry

    for store in _registry.stores.pop(app, {}).values():
        store.close()


@pytest.fixture(scope="module")
def server(broker_url):
    with redis.Redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN"), decode_responses=True) as client:
        yield client


@pytest.fixture(scope="module")
def queue():
    return f"chords-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def death(tmp_path_factory):
    """A file: written with the name of a step, it kills the next process that comes there."""
    return tmp_path_factory.mktemp("death") / "step"


@pytest.fixture(scope="module")
def start(worker_class, tmp_path_factory, queue, death):
    """Start workers on the queue of this module."""
    workers = []

    def start_one(*arguments, pool="prefork", on=queue, **environment):
        changed = {"CELERY_HYBRID_TEST_QUEUE": on, "CELERY_HYBRID_TEST_DIE": str(death), **environment}
        kept = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            log = tmp_path_factory.mktemp("worker") / "log"
            worker = worker_class(pool, log, "-c", "2", *arguments, app="chord_tasks")
        finally:
            for name, before in kept.items():
                os.environ.pop(name) if before is None else os.environ.update({name: before})
        workers.append(worker)
        worker.wait_ready()
        return worker

    yield start_one
    for worker in workers:
        worker.stop()


@pytest.fixture(scope="module", autouse=True)
def worker(start, queue):
    app.conf.task_default_queue = queue
    app.amqp.flush_routes()
    return start()


@pytest.fixture
def notes(tmp_path):
    return tmp_path / "notes"


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def wait_until(condition, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def settled(server, group_id):
    """Wait until a chord has ended in Redis; return what is left of it."""
    key = CHORD_PREFIX + group_id
    wait_until(lambda: server.hexists(key, "done"))
    assert server.zscore(CHORDS_READY, group_id) is None
    assert server.zscore(CHORDS_OPEN, group_id) is None
    assert server.ttl(key) > 0
    return server.hgetall(key)


# Values, as with Celery's Redis backend


@pytest.mark.parametrize(
    ("header", "body", "expected"),
    [
        pytest.param([value.s(n) for n in range(5)], gather.s(), [0, 1, 2, 3, 4], id="tasks"),
        pytest.param([value.s(0, 0.5), value.s(1)], gather.s(), [0, 1], id="order"),
        pytest.param((value.s(n) for n in range(3)), gather.s(), [0, 1, 2], id="generator"),
        pytest.param([value.s(7)], gather.s(), [7], id="one"),
        pytest.param([], gather.s(), [], id="none"),
        pytest.param([chain(value.s(1), plus.s(1)), value.s(9)], gather.s(), [2, 9], id="chain"),
        pytest.param([group(value.s(1), value.s(1)), value.s(3)], gather.s(), [1, 1, 3], id="group"),
        pytest.param(
            [chain(value.s(1), group(plus.s(1), plus.s(2))), value.s(9)], gather.s(), [[2, 3], 9], id="chain to group"
        ),
        pytest.param([chord([value.s(1), value.s(2)], gather.s()), value.s(3)], gather.s(), [[1, 2], 3], id="chord"),
        pytest.param([quiet.s(1), quiet.s(2)], gather.s(), [1, 2], id="ignored results"),
        pytest.param(
            [chain(value.s(0), group(quiet.si(1), quiet.si(2))), value.s(9)],
            gather.s(),
            [[1, 2], 9],
            id="ignored group",
        ),
        pytest.param([adds.s(5), value.s(1)], gather.s(), [5, 50, 1], id="added"),
        pytest.param([becomes.s(value.s(4)), value.s(1)], gather.s(), [4, 1], id="replaced"),
        pytest.param([value.s(1), value.s(2)], chain(gather.s(), gather.s()), [1, 2], id="body chain"),
        pytest.param(
            [value.s(1), value.s(2)], chord([gather.s(), gather.s()], gather.s()), [[1, 2], [1, 2]], id="body chord"
        ),
        pytest.param([long.s(100_000), long.s(10)], gather.s(), ["x" * 100_000, "x" * 10], id="large"),
    ],
)
def test_value_of_body_is_that_of_celerys_redis_backend(header, body, expected):
    assert chord(header, body.clone()).apply_async().get(timeout=SECONDS) == expected


def test_value_of_a_task_that_a_group_replaces_is_that_of_celerys_redis_backend():
    header = [becomes.s(group(value.s(4), value.s(5))), value.s(1)]
    replaced, other = chord(header, gather.s()).apply_async().get(timeout=SECONDS)
    if CELERY < (5, 6):
        # All tasks of the group have the place of the one that it replaces, so their order is left to chance.
        replaced = sorted(replaced)
    assert [replaced, other] == [[4, 5], 1]


def test_group_as_body_gets_the_results(notes):
    body = group(gather.s(), gather.s())
    assert chord([value.s(1), value.s(2)], body).apply_async().get(timeout=SECONDS) == [[1, 2], [1, 2]]


def test_many_small_results_beyond_the_bound_are_read_from_the_result_store(server):
    """A hundred thousand bytes of a chord are kept in Redis here."""
    size, count = 8_000, 30
    result = chord([long.s(size) for _ in range(count)], gather.s()).apply_async()
    assert [len(text) for text in result.get(timeout=SECONDS)] == [size] * count
    settled(server, result.parent.id)


def test_only_a_mark_is_left_of_a_chord(server):
    result = chord([value.s(1), value.s(2)], gather.s()).apply_async()
    assert result.get(timeout=SECONDS) == [1, 2]
    assert settled(server, result.parent.id) == {"done": "1"}


def test_chord_that_is_applied_twice_runs_twice(notes):
    once = chord([value.s(1), value.s(2)], gather.s(str(notes)))
    once.freeze()
    for runs in (1, 2):
        once.apply_async()
        wait_until(lambda runs=runs: len(lines(notes)) == runs)
    assert lines(notes) == ["[1, 2]", "[1, 2]"]


def test_body_belongs_to_the_trace_of_its_header(server):
    result = chord([own_id.s(), own_id.s()], kin.s()).apply_async(priority=3)
    parent, root, priority = result.get(timeout=SECONDS)
    assert parent in {member.id for member in result.parent.results}
    assert root in {member.id for member in result.parent.results}
    assert priority == 3


# Errors


def test_error_of_a_header_is_that_of_its_body():
    result = chord([value.s(1), boom.s("bad")], gather.s()).apply_async()
    with pytest.raises(ChordError, match=r"Dependency .* raised ValueError\('bad'\)"):
        result.get(timeout=SECONDS, follow_parents=False)


def test_error_in_a_nested_group_is_that_of_the_body():
    result = chord([chain(value.s(1), group(boom.si("bad"), value.si(2))), value.s(3)], gather.s()).apply_async()
    with pytest.raises(ChordError, match=r"Join error: ValueError\('bad'\)"):
        result.get(timeout=SECONDS, follow_parents=False)


def test_inner_chord_that_fails_fails_the_outer_one():
    inner = chord([value.s(1), boom.s("bad")], gather.s())
    result = chord([inner, value.s(2)], gather.s()).apply_async()
    with pytest.raises(ChordError, match="bad"):
        result.get(timeout=SECONDS, follow_parents=False)


def test_errback_of_an_outer_chord_is_called_once_when_an_inner_one_fails(notes):
    app.conf.task_allow_error_cb_on_chord_header = False
    outer = chord([value.s(1, 2), chord([value.s(2), boom.s()], gather.s())], gather.s())
    outer.link_error(old_errback.si("called", str(notes)))
    with pytest.raises(ChordError):
        outer.apply_async().get(timeout=SECONDS, follow_parents=False)
    wait_until(lambda: lines(notes))
    time.sleep(1)
    assert lines(notes) == ["called"]


def test_inner_chord_with_a_group_as_body_fails_the_outer_one():
    inner = chord([value.s(1), boom.s("bad")], group(gather.s(), gather.s()))
    result = chord([inner, value.s(2)], gather.s()).apply_async()
    with pytest.raises(ChordError, match="bad"):
        result.get(timeout=SECONDS, follow_parents=False)


def test_body_that_cannot_be_sent_fails_and_disturbs_no_other():
    result = chord([value.s(1), value.s(2)], gated.s()).apply_async()
    with pytest.raises(ChordError, match=r"Callback error: PermissionError\('closed'\)"):
        result.get(timeout=SECONDS, follow_parents=False)
    assert chord([value.s(1)], gather.s()).apply_async().get(timeout=SECONDS) == [1]


def test_error_that_is_larger_than_a_record_is_shortened():
    result = chord([value.s(1), boom.s("b" * 300_000)], gather.s()).apply_async()
    with pytest.raises(ChordError, match="bbbb") as caught:
        result.get(timeout=SECONDS, follow_parents=False)
    assert len(str(caught.value)) < 100_000


@pytest.mark.parametrize("what", ["", "wait", "slow", "exit"])
def test_errback_runs_once_in_a_pool_child_and_disturbs_no_other(worker, notes, what):
    result = chord([value.s(1), boom.s("bad")], gather.s().on_error(errback.s(str(notes), what))).apply_async()
    other = chord([value.s(1), value.s(2)], gather.s()).apply_async()
    assert other.get(timeout=SECONDS) == [1, 2]
    with pytest.raises(ChordError, match="bad"):
        result.get(timeout=SECONDS, follow_parents=False)
    first, *more = lines(notes)
    pid, task_id, _ = first.split(" ", 2)
    assert task_id == result.id
    assert int(pid) != worker.process.pid
    assert more == (["errback waited"] if what == "wait" else [])


def test_errback_of_the_old_kind_is_sent(notes):
    # Before 5.6, Celery counts the arguments that a signature brings along to tell the old kind from the new one.
    signature, expected = old_errback.s(str(notes)), None
    if CELERY < (5, 6):
        signature, expected = old_errback.si("called", str(notes)), "called"
    result = chord([value.s(1), boom.s("bad")], gather.s().on_error(signature)).apply_async()
    wait_until(lambda: lines(notes) == [expected or result.id])


# Faults


@pytest.mark.parametrize("step", ["stored", "counted", "composed", "sent"])
@pytest.mark.parametrize("kind", ["task", "group"])
def test_body_runs_once_when_a_child_is_killed(server, death, notes, step, kind):
    body = gather.s(str(notes)) if kind == "task" else group(gather.s(str(notes)), gather.s(str(notes)))
    death.write_text(step)
    result = chord([value.s(1), value.s(2)], body).apply_async()
    assert result.get(timeout=SECONDS) == ([1, 2] if kind == "task" else [[1, 2], [1, 2]])
    # The one that is to die may come there after the result has come here.
    wait_until(lambda: not death.exists())
    settled(server, result.parent.id)
    time.sleep(1)
    assert lines(notes) == ["[1, 2]"] * (1 if kind == "task" else 2)


def test_failed_task_whose_child_is_killed_behind_its_count_becomes_a_dead_letter(death, notes, worker):
    death.write_text("counted")
    result = chord([boom.s("bad")], gather.s().on_error(errback.s(str(notes)))).apply_async()
    with pytest.raises(ChordError, match="bad"):
        result.get(timeout=SECONDS, follow_parents=False)
    # The one that is to die may come there after the result has come here.
    wait_until(lambda: not death.exists())
    task_id = result.parent.results[0].id
    wait_until(lambda: f"Task chords.boom[{task_id}]" in worker.log.read_text())


def test_body_is_sent_once_when_every_task_of_the_header_comes_twice(server, queue, notes):
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        put, channel._put = channel._put, None

        def twice(name, message, **kwargs):
            put(name, message, **kwargs)
            put(name, message, **kwargs)

        channel._put = twice
        result = chord([value.s(n) for n in range(4)], gather.s(str(notes))).apply_async(connection=connection)
    assert result.get(timeout=SECONDS) == [0, 1, 2, 3]
    wait_until(lambda: not server.llen(queue) and not server.hlen("unacked"))
    assert lines(notes) == ["[0, 1, 2, 3]"]


def test_chord_that_nobody_finishes_is_finished_by_a_worker(server, notes):
    """Its last part was counted by a process that has gone, with early acknowledgement."""
    from celery_hybrid.broker.chord_counter import Part, RedisCounter

    group_id, counter = str(uuid.uuid4()), RedisCounter(app, 600)
    body = gather.s(str(notes)).set(task_id=str(uuid.uuid4()))
    counter.begin(group_id, None)
    counter.resize(group_id, 1)
    part = app.backend.chords.encoded("some-id", 0, "SUCCESS", 5)
    assert isinstance(part, Part)
    packed = app.backend.chords.packed(body)
    origin = {"id": "some-id", "root_id": "root", "reply_to": None, "delivery_info": {"priority": 0}}
    assert counter.count(group_id, part, origin, packed) == "complete"
    seconds, _ = server.time()
    server.zadd(CHORDS_READY, {group_id: seconds - 31})
    wait_until(lambda: lines(notes) == ["[5]"])
    settled(server, group_id)


def test_chord_of_which_nothing_was_heard_for_too_long_fails(server):
    result = chord([value.s(1), value.s(1, 2)], gather.s()).apply_async()
    key = CHORD_PREFIX + result.parent.id
    # As if one task were lost.
    server.hset(key, "size", 3)
    wait_until(lambda: server.hget(key, "n") == "2")
    server.zadd(CHORDS_OPEN, {result.parent.id: 1})
    with pytest.raises(ChordError, match="tasks of the header have ended in time"):
        result.get(timeout=SECONDS, follow_parents=False)


def test_chord_that_redis_has_lost_fails(server):
    result = chord([value.s(1, 2), value.s(2, 2)], gather.s()).apply_async()
    server.delete(CHORD_PREFIX + result.parent.id)
    with pytest.raises(ChordError, match="Redis has no count of this chord"):
        result.get(timeout=SECONDS, follow_parents=False)


def test_chord_whose_key_is_something_else_fails(server):
    result = chord([value.s(1, 2), value.s(2, 2)], gather.s()).apply_async()
    key = CHORD_PREFIX + result.parent.id
    server.delete(key)
    server.set(key, "text")
    try:
        with pytest.raises(ChordError, match="WRONGTYPE"):
            result.get(timeout=SECONDS, follow_parents=False)
    finally:
        server.delete(key)


def test_result_in_a_content_type_that_is_not_accepted_fails_its_chord_only(start, queue):
    """While a change of result_serializer is rolled out."""
    other = f"{queue}-pickle"
    settings = {"result_serializer": "pickle", "accept_content": ["json", "pickle"]}
    leaving = start(on=other, CELERY_HYBRID_TEST_SETTINGS=json.dumps(settings), C_FORCE_ROOT="1")
    result = chord([value.s(1).set(queue=other), value.s(2, 2)], gather.s()).apply_async()
    with pytest.raises(ChordError, match=r"the result of task .* is refused: its content type"):
        result.get(timeout=SECONDS, follow_parents=False)
    leaving.stop()
    assert chord([value.s(1), value.s(2)], gather.s()).apply_async().get(timeout=SECONDS) == [1, 2]


def test_task_that_is_lost_for_good_fails_its_chord(worker, queue):
    """The main process counts it, and leaves the rest to a task."""
    result = chord([value.s(1), value.s(2, 60).set(time_limit=1)], gather.s()).apply_async()
    with pytest.raises(ChordError, match="TimeLimitExceeded"):
        result.get(timeout=60, follow_parents=False)


def test_revoked_task_fails_its_chord():
    header = [value.s(1), value.s(2).set(countdown=3)]
    result = chord(header, gather.s()).apply_async()
    result.parent.results[1].revoke()
    with pytest.raises(ChordError, match="TaskRevokedError"):
        result.get(timeout=SECONDS, follow_parents=False)


def test_two_applications_in_one_vhost_send_bodies_of_their_own(start, queue, tmp_path):
    """Each has a Redis database of its own."""
    from hybrid_tasks import make_app

    url = needed("CELERY_HYBRID_TEST_BROKER_ADMIN").rsplit("/", 1)[0] + "/7"
    start(on=queue, CELERY_HYBRID_TEST_BROKER=url)
    mine, others = tmp_path / "mine", tmp_path / "others"
    other = make_app()
    other.conf.update(broker_url=url, task_default_queue=queue)
    signature = [other.signature("chords.value", (n,)) for n in range(3)]
    results = []
    for _ in range(3):
        results.append(chord(signature, other.signature("chords.gather", (str(others),)), app=other).apply_async())
        results.append(chord([value.s(n) for n in range(3)], gather.s(str(mine))).apply_async())
    assert [result.get(timeout=SECONDS) for result in results] == [[0, 1, 2]] * 6
    assert lines(mine) == lines(others) == ["[0, 1, 2]"] * 3


def test_chords_of_an_application_with_a_prefix(server, start, queue, notes):
    from hybrid_tasks import make_app

    # The channels of the role's own user have no prefix.
    url = needed("CELERY_HYBRID_TEST_BROKER_ADMIN")
    settings = {"broker_transport_options": {"global_keyprefix": "shop:"}}
    start(on=queue, CELERY_HYBRID_TEST_SETTINGS=json.dumps(settings), CELERY_HYBRID_TEST_BROKER=url)
    other = make_app(broker_transport_options={"global_keyprefix": "shop:"})
    other.conf.update(broker_url=url, task_default_queue=queue)
    inner = chord([other.signature("chords.value", (1,))] * 2, other.signature("chords.gather"), app=other)
    header = [inner, other.signature("chords.value", (9,))]
    result = chord(header, other.signature("chords.gather", (str(notes),)), app=other).apply_async()
    assert result.get(timeout=SECONDS) == [[1, 1], 9]
    assert server.hgetall(f"shop:{CHORD_PREFIX}{result.parent.id}") == {"done": "1"}


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_chords_in_other_pools(start, queue, pool):
    start(pool=pool, on=f"{queue}-{pool}")
    header = [value.s(n).set(queue=f"{queue}-{pool}") for n in range(4)]
    result = chord(header, gather.s().set(queue=f"{queue}-{pool}")).apply_async()
    assert result.get(timeout=SECONDS) == [0, 1, 2, 3]


def test_body_is_sent_while_rabbitmq_is_away(shell, notes, start, queue):
    result = chord([value.s(1, 3), value.s(2, 3)], gather.s(str(notes))).apply_async()
    shell("systemctl stop rabbitmq-server")
    try:
        wait_until(lambda: lines(notes) == ["[1, 2]"])
        sent_meanwhile = chord([value.s(3)], gather.s(str(notes))).apply_async()
        wait_until(lambda: lines(notes) == ["[1, 2]", "[3]"])
    finally:
        shell("systemctl start rabbitmq-server && rabbitmqctl -q await_startup")
    assert result.get(timeout=60) == [1, 2]
    assert sent_meanwhile.get(timeout=60) == [3]


def test_body_is_sent_once_though_connections_are_cut(server, notes):
    admin = redis.Redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN"))
    results = [chord([value.s(n, 0.1) for n in range(6)], gather.s(str(notes))).apply_async() for _ in range(6)]
    for _ in range(6):
        time.sleep(0.4)
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert [result.get(timeout=SECONDS) for result in results] == [[0, 1, 2, 3, 4, 5]] * 6
    assert len(lines(notes)) == 6


def test_chord_goes_on_while_redis_is_full(start, queue, notes):
    admin = redis.Redis.from_url(needed("CELERY_HYBRID_TEST_BROKER_ADMIN"))
    on = f"{queue}-full"
    # Its processes have sent nothing yet, so they declare the queue while Redis is full.
    start(on=on)
    header = [value.s(n, 2).set(queue=on) for n in range(2)]
    result = chord(header, gather.s(str(notes)).set(queue=on)).apply_async()
    time.sleep(0.5)
    before = admin.config_get("maxmemory")["maxmemory"]
    admin.config_set("maxmemory", 1)
    try:
        wait_until(lambda: lines(notes) == ["[0, 1]"])
    finally:
        admin.config_set("maxmemory", before)
    assert result.get(timeout=SECONDS) == [0, 1]


def test_task_whose_success_is_stored_but_not_counted_is_not_skipped(start, queue, death, notes):
    """``worker_deduplicate_successful_tasks`` would; the whole worker died before the count."""
    on = f"{queue}-dedup"
    settings = {"worker_deduplicate_successful_tasks": True, "broker_transport_options": {"visibility_timeout": 5}}
    environment = {"CELERY_HYBRID_TEST_SETTINGS": json.dumps(settings)}
    first = start(on=on, **environment)
    result = chord([value.s(1).set(queue=on)], gather.s(str(notes)).set(queue=on)).apply_async(countdown=1)
    # The child stops before it counts, and then all of it is gone.
    death.write_text("stored")
    wait_until(lambda: not death.exists())
    first.process.kill()
    first.process.wait()
    start(on=on, **environment)
    assert result.get(timeout=60) == [1]
    assert lines(notes) == ["[1]"]


def test_unfinished_chords_are_shown(server, worker):
    result = chord([value.s(1), value.s(2, 6)], gather.s()).apply_async()
    wait_until(lambda: server.zscore(CHORDS_OPEN, result.parent.id))
    (state,) = app.control.inspect([worker.name], timeout=10)._request("result_store").values()
    rows = {row["group"]: row for row in state["chords"]["oldest"]}
    assert (rows[result.parent.id]["ended"], rows[result.parent.id]["size"]) == (1, 2)
    assert state["chords"]["open"] >= 1
    assert result.get(timeout=SECONDS) == [1, 2]


@pytest.fixture
def old_queue(shell, results_url):
    """The queue in which earlier versions count."""
    name, password = f"declares-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    shell.ctl(f"add_user {name} {password}")
    try:
        shell.ctl(f"set_permissions -p {shell.vhost} {name} '.*' '.*' '.*'")
        url = urlsplit(results_url)
        with amqp.Connection(f"{url.hostname}:{url.port}", name, password, virtual_host=shell.vhost) as connection:
            channel = connection.channel()
            arguments = {"x-queue-type": "classic", "x-single-active-consumer": True}
            channel.queue_declare(CHORDS_QUEUE, durable=True, auto_delete=False, arguments=arguments)
            channel.queue_bind(CHORDS_QUEUE, RESULTS_EXCHANGE, routing_key=CHORDS_QUEUE)
            yield
            channel.queue_delete(CHORDS_QUEUE)
    finally:
        shell.ctl(f"delete_user {name}")


def test_chord_that_an_earlier_version_has_begun_ends(old_queue, start, queue, notes, server):
    group_id, on = str(uuid.uuid4()), f"{queue}-old"
    body = gather.s(str(notes)).set(task_id=str(uuid.uuid4()), queue=on)
    # What its sender has put there; its tasks are run by a worker of this version.
    count = app.backend._count_as_before
    assert count(group_id, group_id, CHORD_SHAPE, {"result": None})
    assert count(group_id, group_id, CHORD_SIZE, {"result": 2})
    start(on=on)
    for index in range(2):
        value.s(index).set(chord=body, group_id=group_id, group_index=index, queue=on).apply_async()
    assert app.AsyncResult(body.id).get(timeout=SECONDS) == [0, 1]
    settled(server, group_id)
    assert lines(notes) == ["[0, 1]"]
