from __future__ import annotations

import importlib
import pkgutil

import pytest
import sim2or.messages
from sim2or.errors import ConfigError
from sim2or.messages.message import Message, Spec
from sim2or.messages.topics import TOPICS, topic

PARTS = {"envelope", "progress", "job_result", "job_failure", "job_record", "observation"}
"""Messages that travel inside others."""


def _types(base: type[Message]) -> set[type[Message]]:
    return {base}.union(*(_types(kind) for kind in base.__subclasses__()))


def _live() -> set[type[Message]]:
    for module in pkgutil.iter_modules(sim2or.messages.__path__, "sim2or.messages."):
        importlib.import_module(module.name)
    return {
        kind
        for kind in _types(Message)
        if kind.__module__.startswith("sim2or.messages.") and kind.type_name and not issubclass(kind, Spec)
    }


def test_every_message_has_its_row() -> None:
    """Each live message type stands in the topic table, once, under its own name."""
    names = {kind.type_name for kind in _live()} - PARTS
    assert names - PARTS <= TOPICS.keys()
    for name, row in TOPICS.items():
        assert row.name == name == row.message.type_name


def test_every_message_has_someone_who_reads_it() -> None:
    """A topic has a publisher and at least one consumer, and live ones have a small high-water mark."""
    for row in TOPICS.values():
        assert row.publisher
        assert row.consumers
        if row.road in ("rpc", "pubsub"):
            assert 1 <= row.hwm <= 16
        if row.policy == "never-late":
            assert row.max_age_s is not None


def test_an_unknown_topic_is_named_with_the_valid_ones() -> None:
    """The error suggests the nearest topic and lists them all."""
    with pytest.raises(ConfigError, match="did you mean 'robot_state'") as told:
        topic("robot_sate")
    assert all(name in str(told.value) for name in TOPICS)
