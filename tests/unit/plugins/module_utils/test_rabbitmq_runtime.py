"""What a node is asked and told through rabbitmqctl."""

from __future__ import annotations

import pytest
from ansible_collections.celeryops.hybrid.plugins.module_utils._rabbitmq_runtime import Node, NodeError, settings_of


class Rabbitmqctl:
    def __init__(self, *answers, code=0, err=""):
        self.answers = list(answers)
        self.asked = []
        self.code, self.err = code, err

    def __call__(self, command):
        assert command[:3] == ["rabbitmqctl", "--quiet", "eval"]
        self.asked.append(command[3])
        return self.code, self.answers.pop(0) if self.answers else "ok\n", self.err


DECLARED = {"memory_limit": "4GiB", "log_level": "info", "untraced_vhosts": ['a"b']}


def test_only_what_differs_is_set():
    ctl = Rabbitmqctl('0.001\n{absolute,"4GiB"}\ninfo\ninfo\ntrue\nfalse\nok\n')
    settings = settings_of(DECLARED)
    found = Node(ctl).differences(settings)
    names = [(item["name"], item["actual"]) for item in found]
    assert names == [("memory_limit", "0.001"), ('tracing of vhost a"b', "true")]
    Node(ctl).write([settings[0]])
    assert ctl.asked[1] == 'vm_memory_monitor:set_vm_memory_high_watermark({absolute, "4GiB"}), ok.'


def test_vhost_name_is_not_run_as_code():
    assert 'a"b' not in settings_of(DECLARED)[2].read
    assert "<<97,34,98>>" in settings_of(DECLARED)[2].write


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"memory_limit": '1"), halt(), ("'}, "is not a valid size"),
        ({"disk_free_limit": "much"}, "disk_free_limit: 'much' is not a valid size"),
        ({"settings": {"cookie": 1}}, "'cookie' is not one of"),
        ({"settings": {"heartbeat": "x"}}, "invalid literal"),
    ],
)
def test_what_is_wrong_is_refused_before_the_node_is_asked(parameters, words):
    with pytest.raises(ValueError, match=words):
        settings_of(parameters)


def test_stopped_node_is_reported():
    with pytest.raises(NodeError, match=r"unable to perform.*Check that RabbitMQ runs"):
        Node(Rabbitmqctl(code=69, err="Error: unable to perform an operation\nmore\n")).differences(
            settings_of(DECLARED)
        )
