"""Letters keep what they were made of, whatever that is; settings are checked; bad messages are recognised."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import amqp
import pytest
from kombu.message import Message

from celery_hybrid.dead_letters.cli import Entry, _anew, _mend, _read, chosen
from celery_hybrid.dead_letters.keeping import DeadLetters
from celery_hybrid.dead_letters.letter import FAILED, LOST, REASONS, TIME_LIMIT, DeadLetter
from celery_hybrid.dead_letters.policy import Policy
from celery_hybrid.errors import OptionError
from celery_hybrid.names import DEAD_LETTER_EXCHANGE
from celery_hybrid.rabbitmq.records import Record
from celery_hybrid.worker.consumer import fault_of


def message(body=b"[[], {}, {}]", headers=None, properties=None, **raw):
    headers = {"id": "a", "task": "t"} if headers is None else headers
    made = Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
        properties=properties,
        delivery_info={"exchange": "", "routing_key": "q"},
        accept={"application/json"},
        delivery_tag="1",
    )
    made.__dict__.update(raw)
    return made


@pytest.mark.parametrize("reason", REASONS)
def test_a_dead_letter_is_logged_as_an_error_unless_celery_has_done_so(reason, caplog):
    kept = []
    backend = SimpleNamespace(store=SimpleNamespace(keep=kept.append))
    letters = DeadLetters(SimpleNamespace(backend=backend, conf={}), "w@h")
    assert letters.keep(DeadLetter.of(message(), reason, "q", "w@h"))
    assert len(kept) == 1
    expected = "WARNING" if reason in (FAILED, LOST, TIME_LIMIT) else "ERROR"
    assert [record.levelname for record in caplog.records] == [expected]


class TestLetter:
    def test_comes_back_as_it_was(self):
        headers = {"id": "a", "task": "t", "retries": 2, "x-lost": 1, "x-replays": 3, "argsrepr": "ü"}
        made = DeadLetter.of(message(headers=headers), FAILED, "q", "w@h", ValueError("no"), "Traceback …")
        assert made.id == "a:2.1.3:failed"
        record = made.to_record()
        assert record.exchange == DEAD_LETTER_EXCHANGE
        assert record.routing_key(16) == "task.failed"
        sent = record.to_message()
        assert sent.properties["message_id"] == made.id
        assert sent.properties["delivery_mode"] == 2
        assert DeadLetter.from_body(sent.body) == made

    @pytest.mark.parametrize("body", [b"\xff\x00", b"", "ü".encode()])
    def test_body_to_the_byte(self, body):
        raw = {"body": base64.b64encode(body).decode(), "properties": {"body_encoding": "base64"}, "headers": {}}
        letter = DeadLetter.of(message(_raw=raw), FAILED, "q", "w")
        assert letter.body == body
        assert DeadLetter.from_body(letter.to_record().body).body == body

    @pytest.mark.parametrize(
        "raw",
        [
            {"body": {"no": "text"}, "headers": [], "properties": None},
            {"body": "%%%", "headers": {"id": 5, "task": {}}, "properties": {"body_encoding": "base64"}},
            {"body": None, "headers": {"retries": "x"}, "properties": {}},
            {"body": "\ud800", "headers": {"x": "\ud800"}, "properties": {}},
        ],
    )
    def test_of_anything(self, raw):
        letter = DeadLetter.of(message(_raw=raw), FAILED, "q", "w")
        assert DeadLetter.from_body(letter.to_record().body).id == letter.id

    def test_text_is_cut(self):
        letter = DeadLetter.of(message(), FAILED, "q", "w", ValueError("x" * 10**6), "y" * 10**6)
        assert len(letter.to_record().body) < 50_000

    def test_results_go_where_they_went(self):
        assert Record("a", "result").exchange == "celery.results"


class TestPolicy:
    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"ignored": []}, "no option 'ignored'"),
            ({"lost_retries": -1}, "a whole number"),
            ({"lost_retries": True}, "a whole number"),
            ({"ignore": "KeyError"}, "a list of names"),
            ([], "must be a dict"),
        ],
    )
    def test_refuses(self, values, words):
        with pytest.raises(OptionError, match=words):
            Policy.from_mapping(values)

    def test_expects_subclasses_and_wrapped(self):
        policy = Policy.from_mapping({"ignore": ["LookupError", "app.errors.Busy"]})
        assert policy.expects(KeyError())
        assert not policy.expects(ValueError())
        wrapped = type("Wrapper", (Exception,), {"exc_cls_name": "Busy", "exc_module": "app.errors"})
        assert policy.expects(wrapped())


class TestFaults:
    def test_none(self):
        assert fault_of(message()) is None
        assert fault_of(message(headers={}, body=b'{"task": "t", "id": "a"}')) is None

    @pytest.mark.parametrize(
        "headers",
        [
            {"id": "", "task": "t"},
            {"id": 1, "task": "t"},
            {"id": "a", "task": None},
            {"id": "a", "task": "t", "timelimit": [1]},
            {"id": "a", "task": "t", "timelimit": ["1", None]},
            {"id": "a", "task": "t", "stamps": "x"},
        ],
    )
    def test_headers(self, headers):
        assert fault_of(message(headers=headers))

    @pytest.mark.parametrize("body", [b"1", b"[]", b"[1, {}, {}]", b"[[], [], {}]", b"[[], {}, 1]", b'{"kwargs": {}}'])
    def test_body(self, body):
        assert fault_of(message(body)) == "its body is not [args, kwargs, embed]"


def entry(**values):
    letter = DeadLetter(**{"id": "i", "reason": FAILED, "failed": datetime.now(UTC).isoformat(), **values})
    return Entry.of(amqp.Message(letter.to_record().body))


class TestTools:
    NONE = dict.fromkeys(("ids", "reason", "task", "from_queue", "worker", "older", "newer", "limit"))

    @pytest.mark.parametrize(
        ("wanted", "ids"),
        [
            ({}, "abc"),
            ({"reason": ("lost",)}, "c"),
            ({"task": "t.*"}, "ab"),
            ({"task": "t.one"}, "a"),
            ({"limit": 2}, "ab"),
            ({"ids": ("b", "task-c")}, "bc"),
            ({"older": timedelta(hours=1)}, "b"),
            ({"newer": timedelta(hours=1)}, "ac"),
        ],
    )
    def test_filters(self, wanted, ids):
        old = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        entries = [
            entry(id="a", task="t.one"),
            entry(id="b", task="t.two", failed=old),
            entry(id="c", task="x", task_id="task-c", reason="lost"),
        ]
        assert "".join(each.id for each in chosen(entries, {**self.NONE, **wanted})) == ids

    def test_another_kind_of_letter(self):
        found = Entry.of(amqp.Message("x", message_id="m", application_headers={"x-death": [{"reason": "maxlen"}]}))
        assert (found.letter, found.id, found.reason) == (None, "m", "rabbitmq.maxlen")
        assert found.line()

    def test_headers_of_a_replay(self):
        headers = {"id": "a", "root_id": "a", "retries": 3, "eta": "x", "expires": "y", "x-lost": 2, "group": "g"}
        letter = SimpleNamespace(headers=headers, properties={"correlation_id": "a", "reply_to": "r"}, replays=1)
        again, properties = _anew(letter, False)
        assert again == {"id": "a", "root_id": "a", "retries": 0, "group": "g", "x-replays": 2}
        assert properties == letter.properties
        again, properties = _anew(letter, True)
        assert again["id"] == again["root_id"] == properties["correlation_id"] != "a"

    def test_what_was_begun_is_cut_off(self, tmp_path):
        path = tmp_path / "letters"
        path.write_text(json.dumps(entry().dump()) + "\n" + '{"begun')
        assert len(_read(path)) == 1
        _mend(path)
        assert path.read_text().endswith("}\n")
