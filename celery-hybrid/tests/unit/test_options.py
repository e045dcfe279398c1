from __future__ import annotations

import dataclasses

import pytest
from celery.exceptions import ImproperlyConfigured

from celery_hybrid.errors import OptionError
from celery_hybrid.rabbitmq.options import Options


def test_defaults():
    assert Options.from_mapping(None) == Options.from_mapping({}) == Options()


@pytest.mark.parametrize("field", dataclasses.fields(Options), ids=lambda field: field.name)
def test_every_option_is_described(field):
    assert f"{field.name}:" in Options.__doc__


def test_whole_numbers_are_seconds_too():
    options = Options.from_mapping({"confirm_timeout": 2})
    assert options.confirm_timeout == 2.0
    assert isinstance(options.confirm_timeout, float)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"partition": 8}, "has no option 'partition'. Did you mean partitions?"),
        ({"visibility_timeout": 8}, "has no option 'visibility_timeout'."),
        ({"zzz": 8}, "Valid names: ca_certs, certfile,"),
        ({"partitions": "8"}, "['partitions'] must be a whole number, not str."),
        ({"partitions": True}, "['partitions'] must be a whole number, not bool."),
        ({"partitions": 0}, "['partitions'] must be at least 1, not 0."),
        ({"declare": 1}, "['declare'] must be True or False, not int."),
        ({"confirm_timeout": "3"}, "['confirm_timeout'] must be a number of seconds, not str."),
        ({"confirm_timeout": 0}, "['confirm_timeout'] must be at least 0.1, not 0."),
        ({"ca_certs": 1}, "['ca_certs'] must be a string, not int."),
        ({"login_method": "plain"}, "['login_method'] must be one of PLAIN, EXTERNAL, not 'plain'."),
        ({"poll_interval": 9.0}, "['poll_interval_max'] must not be shorter than poll_interval."),
        ({"keyfile": "/k"}, "['keyfile'] needs certfile"),
        ([("partitions", 8)], "must be a dict of options, not list."),
    ],
)
def test_refused(given, sentence):
    with pytest.raises(OptionError, match="result_backend_transport_options") as caught:
        Options.from_mapping(given)
    assert sentence in str(caught.value)
    assert isinstance(caught.value, ImproperlyConfigured)
