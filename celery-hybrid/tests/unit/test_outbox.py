"""The outbox keeps what it took, in order, within its bounds, for this user alone."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from celery_hybrid.delivery.outbox import FullError, Outbox
from celery_hybrid.errors import OutboxError
from celery_hybrid.rabbitmq.records import RESULT, Record
from celery_hybrid.rabbitmq.urls import parse
from celery_hybrid.results.store import default_outbox


def record(name: str, body: bytes = b"{}") -> Record:
    return Record(
        name,
        RESULT,
        status="SUCCESS",
        body=body,
        content_type="application/json",
        content_encoding="utf-8",
        timestamp=1_700_000_000,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.sqlite3"


def test_records_come_out_as_they_were_and_in_order(path: Path) -> None:
    outbox = Outbox(path, 100, 1 << 20)
    assert not outbox.waiting()
    kept = [record("a", b'{"x": "\xc3\xa4"}'), record("b"), Record.tombstone("a", RESULT)]
    for number, each in enumerate(kept):
        outbox.add(each, f"client-{number}" if number else None)
    assert outbox.waiting()
    # As another process sees it.
    found = Outbox(path, 100, 1 << 20).oldest(10)
    assert [waiting.record for waiting in found] == kept
    assert [waiting.reply_to for waiting in found] == [None, "client-1", "client-2"]


def test_what_was_delivered_is_removed_and_what_came_behind_it_stays(path: Path) -> None:
    outbox = Outbox(path, 100, 1 << 20)
    for name in "abc":
        outbox.add(record(name), None)
    first, second, _ = outbox.oldest(3)
    outbox.remove(second.seq)
    assert [waiting.record.id for waiting in outbox.oldest(3)] == ["c"]
    assert (outbox.depth().count, outbox.depth().size) == (1, record("c").size)
    assert first.seq < second.seq


def test_the_number_is_bounded_and_the_event_loop_has_a_reserve(path: Path) -> None:
    outbox = Outbox(path, 10, 1 << 20)
    for number in range(9):
        outbox.add(record(str(number)), None)
    with pytest.raises(FullError, match="holds 9 results"):
        outbox.add(record("one too many"), None)
    outbox.add(record("of the loop"), None, reserve=True)
    with pytest.raises(FullError):
        outbox.add(record("of the loop as well"), None, reserve=True)


def test_the_bytes_are_bounded(path: Path) -> None:
    outbox = Outbox(path, 1000, 20_000)
    outbox.add(record("a", b"x" * 10_000), None)
    with pytest.raises(FullError):
        outbox.add(record("b", b"x" * 10_000), None)


def test_a_record_beyond_the_bound_is_taken_by_an_empty_outbox(path: Path) -> None:
    # It would block indefinitely otherwise.
    outbox = Outbox(path, 10, 1000)
    outbox.add(record("large", b"x" * 5000), None)
    assert outbox.depth().count == 1


def test_the_oldest_make_room(path: Path) -> None:
    outbox = Outbox(path, 10, 1 << 20)
    for number in range(9):
        outbox.add(record(str(number)), None)
    assert outbox.drop_oldest(100) == ["0"]
    outbox.add(record("new"), None)
    assert outbox.depth().dropped == 1


def test_what_can_never_be_stored_is_set_aside_and_kept(path: Path) -> None:
    outbox = Outbox(path, 10, 1 << 20)
    outbox.add(record("large"), "client")
    outbox.add(record("good"), None)
    outbox.set_aside(outbox.oldest(1)[0].seq, "too large")
    assert [waiting.record.id for waiting in outbox.oldest(3)] == ["good"]
    assert outbox.depth().refused == 1
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT id, reason, reply_to FROM refused").fetchall() == [
            ("large", "too large", "client")
        ]


def test_only_its_user_can_read_it(path: Path) -> None:
    umask = os.umask(0)
    try:
        outbox = Outbox(path, 10, 1 << 20)
        outbox.add(record("secret"), None)
    finally:
        os.umask(umask)
    files = [path, Path(f"{path}-wal"), Path(f"{path}-shm")]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_damaged_file_is_kept_and_a_new_one_begins(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database " * 1000)
    outbox = Outbox(path, 10, 1 << 20)
    outbox.add(record("a"), None)
    assert outbox.depth().count == 1
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"no database")
    assert "is damaged" in caplog.text


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outbox = Outbox(tmp_path / "file" / "outbox.sqlite3", 10, 1 << 20)
    with pytest.raises(OutboxError, match=r"file/outbox\.sqlite3 cannot be used"):
        outbox.add(record("a"), None)
    with pytest.raises(OutboxError):
        outbox.waiting()


def test_a_full_disk_is_left_some_room_and_what_waits_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(path, 10, 1 << 20)
    outbox.add(record("a"), None)
    monkeypatch.setattr(Outbox, "_free", lambda _: 1_000_000)
    with pytest.raises(FullError, match="only 1000000 bytes left"):
        outbox.add(record("b"), None)
    # Another process opens it without writing.
    other = Outbox(path, 10, 1 << 20)
    path.chmod(0o400)
    assert [waiting.record.id for waiting in other.oldest(5)] == ["a"]


def test_a_child_uses_a_connection_of_its_own(path: Path) -> None:
    outbox = Outbox(path, 10, 1 << 20)
    outbox.add(record("parent"), None)
    outbox.hold()
    child = os.fork()
    if child == 0:
        try:
            outbox.abandon()
            outbox.add(record("child"), None)
        finally:
            os._exit(0)
    outbox.release()
    assert os.waitpid(child, 0)[1] == 0
    outbox.add(record("parent again"), None)
    assert [waiting.record.id for waiting in outbox.oldest(5)] == ["parent", "child", "parent again"]


def test_space_is_given_back(path: Path) -> None:
    outbox = Outbox(path, 1000, 1 << 24)
    for number in range(100):
        outbox.add(record(str(number), b"x" * 10_000), None)
    outbox.shrink()
    large = path.stat().st_size
    outbox.remove(outbox.oldest(100)[-1].seq)
    outbox.shrink()
    assert path.stat().st_size < large / 4


@pytest.mark.parametrize("replacement", [None, b"", b"no database " * 1000])
def test_a_file_that_is_deleted_or_replaced_is_left_and_its_loss_is_named(
    path: Path, replacement: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, other = Outbox(path, 10, 1 << 20), Outbox(path, 10, 1 << 20)
    outbox.add(record("a"), None)
    outbox.add(record("b"), None)
    assert other.waiting()
    for each in path.parent.glob("outbox.sqlite3*"):
        each.unlink()
    if replacement is not None:
        path.write_bytes(replacement)
    outbox.add(record("c"), None)
    assert "It held 2 results that RabbitMQ had not accepted." in caplog.text
    # Every process uses what is there now.
    assert [waiting.record.id for waiting in other.oldest(5)] == ["c"]
    assert [waiting.record.id for waiting in Outbox(path, 10, 1 << 20).oldest(5)] == ["c"]


def test_what_was_set_aside_can_wait_again_or_be_discarded(path: Path) -> None:
    outbox = Outbox(path, 10, 1 << 20)
    a, b, c = map(record, "abc")
    for each in (a, b, c):
        outbox.add(each, each.id)
    instead = record("a", b"short")
    outbox.set_aside(outbox.oldest(1)[0].seq, "too large", instead)
    assert [waiting.record for waiting in outbox.oldest(1)] == [instead]
    # Not even what takes its place can be delivered: nothing takes the place of that.
    outbox.set_aside(outbox.oldest(1)[0].seq, "still", record("a", b"shorter"))
    outbox.set_aside(outbox.oldest(1)[0].seq, "no")
    first, second = outbox.refused()
    assert (first.reason, first.record, first.reply_to) == ("too large", a, "a")
    outbox.take_back(first.seq)
    outbox.discard(second.seq)
    assert [(each.record, each.reply_to) for each in outbox.oldest(5)] == [(c, "c"), (a, "a")]
    assert list(outbox.refused()) == []
    assert (outbox.depth().count, outbox.depth().size) == (2, record("a").size + record("c").size)


def test_a_batch_is_bounded_by_its_bytes(path: Path) -> None:
    outbox = Outbox(path, 10, 1 << 20)
    for name in "abc":
        outbox.add(record(name, b"x" * 10_000), None)
    assert [waiting.record.id for waiting in outbox.oldest(10, 25_000)] == ["a", "b"]
    assert [waiting.record.id for waiting in outbox.oldest(10, 1)] == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
class TestFullDisk:
    """On a file system of its own that has no byte left."""

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "disk"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=False).returncode:
            pytest.skip("no file system can be mounted here")
        yield folder
        subprocess.run(["umount", "-l", folder], check=True)

    @staticmethod
    def fill(disk: Path, name: str = "filler") -> None:
        with contextlib.suppress(OSError), (disk / name).open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def test_what_was_delivered_is_removed(self, disk: Path) -> None:
        outbox = Outbox(disk / "outbox.sqlite3", 1000, 1 << 30)
        for number in range(200):
            outbox.add(record(str(number), b"x" * 5000), None)
        self.fill(disk)
        with pytest.raises(FullError, match="only 0 bytes left"):
            outbox.add(record("no room"), None)
        outbox.remove(outbox.oldest(100)[-1].seq)
        outbox.remove(outbox.oldest(100)[-1].seq)
        assert not outbox.holds()
        # A process that starts on the full disk.
        assert not Outbox(disk / "outbox.sqlite3", 1000, 1 << 30).waiting()

    def test_what_cannot_be_removed_is_remembered(self, disk: Path) -> None:
        outbox = Outbox(disk / "outbox.sqlite3", 1000, 1 << 30)
        for number in range(50):
            outbox.add(record(str(number), b"x" * 5000), None)
        with outbox.progress.alone():
            (disk / "outbox.sqlite3.ballast").unlink()
            self.fill(disk)
            last = outbox.oldest(50)[-1].seq
            with pytest.raises(OutboxError, match="full"):
                outbox.remove(last)
            outbox.remember(last)
        again = Outbox(disk / "outbox.sqlite3", 1000, 1 << 30)
        assert (again.waiting(), again.holds(), again.depth().count) == (False, True, 0)
        (disk / "filler").unlink()
        with again.progress.alone():
            again.remove(again.delivered())
        assert (again.holds(), again.delivered()) == (False, -1)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    servers, _ = parse("amqp://me:secret@host/celery")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/celery:/var/lib/other")
    assert default_outbox(servers) == Path("/var/lib/celery/outbox.sqlite3")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    path = default_outbox(servers)
    assert (path.parent, path.suffix) == (Path("/state/celery-hybrid"), ".sqlite3")
    other, _ = parse("amqp://me:secret@host/other")
    assert default_outbox(other) != path

    def homeless(_: Path) -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert default_outbox(servers).name == path.name


def test_a_fork_waits_until_no_thread_is_inside(path: Path) -> None:
    """Otherwise a child would inherit a lock of SQLite that nobody opens."""
    app = Celery(set_as_current=False)
    app.conf.update(
        result_backend="amqp://me:secret@127.0.0.1:9/celery", result_backend_transport_options={"outbox": str(path)}
    )
    outbox = app.backend.store.results_delivery.outbox
    assert outbox is not None
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with outbox._use():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    threading.Timer(0.3, leave.set).start()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            outbox.add(record("child"), None)
        finally:
            os._exit(0)
    assert time.monotonic() - begun > 0.2
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    outbox.add(record("parent"), None)
    assert [waiting.record.id for waiting in outbox.oldest(5)] == ["child", "parent"]


def test_a_file_of_the_version_before_is_delivered_and_shared_with_its_workers(path: Path) -> None:
    before = (
        'seq INTEGER PRIMARY KEY AUTOINCREMENT, reply_to TEXT, size INTEGER NOT NULL, "id", "kind", "subject", '
        '"status", "group", "body", "content_type", "content_encoding", "compression", "timestamp"'
    )
    add = "INSERT INTO records VALUES (NULL, NULL, 9, ?, 'result', 'result', 'SUCCESS', '', x'', 'a', 'b', '', 7)"
    path.parent.mkdir()
    with sqlite3.connect(path) as old:
        old.executescript(
            f"CREATE TABLE records ({before}); CREATE TABLE refused ({before.replace(' AUTOINCREMENT', ', reason')});"  # noqa: S608
            "CREATE TABLE totals (count INTEGER NOT NULL, size INTEGER NOT NULL, dropped INTEGER NOT NULL);"
            "INSERT INTO totals VALUES (1, 9, 0); PRAGMA user_version=1;"
        )
        old.execute(add, ("old",))
    outbox = Outbox(path, 100, 1 << 20)
    outbox.add(new := Record("new", RESULT, status="STARTED", run=5, retries=2), None)
    # An old worker names its columns, and sets its own version when it opens the file.
    columns = ", ".join(re.findall('"[a-z_]+"', before))
    with sqlite3.connect(path) as old:
        old.execute(f"INSERT INTO records (size, {columns}) SELECT size, {columns} FROM records WHERE id = 'old'")  # noqa: S608
        old.execute("PRAGMA user_version=1")
    found = [waiting.record for waiting in Outbox(path, 100, 1 << 20).oldest(10)]
    assert [(record.id, record.run, record.retries) for record in found] == [
        ("old", 0, -1),
        ("new", 5, 2),
        ("old", 0, -1),
    ]
    assert found[1] == new
