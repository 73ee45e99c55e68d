from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.robot_state import RobotState

Eventually = Callable[..., None]


def state(seq: int) -> RobotState:
    return RobotState(
        seq=seq,
        captured_ns=seq,
        position_rad=np.full(6, seq, np.float32),
        velocity_radps=np.zeros(6, np.float32),
    )


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('s')}/r"


@pytest.fixture
def publisher(endpoint: str) -> Iterator[Publisher]:
    made = Publisher(endpoint, Origin("robot"), RobotState)
    yield made
    made.close()


@pytest.fixture
def subscriber(
    endpoint: str, publisher: Publisher, eventually: Eventually
) -> Iterator[Subscriber[RobotState]]:
    """A subscriber that has heard its first message."""
    made = Subscriber(endpoint, RobotState)

    def heard() -> tuple[Envelope, RobotState] | None:
        publisher.publish(state(0))
        return made.receive(0.05)

    eventually(heard)
    while made.receive(0.05):
        pass
    yield made
    made.close()


def test_a_state_arrives(publisher: Publisher, subscriber: Subscriber[RobotState]) -> None:
    """What is published is received as it was, with its sender's envelope."""
    publisher.publish(state(5))
    received = subscriber.receive(5)
    assert received is not None
    envelope, message = received
    assert envelope.source == "robot"
    np.testing.assert_array_equal(message.position_rad, np.full(6, 5, np.float32))


def test_only_the_newest_is_used(publisher: Publisher, subscriber: Subscriber[RobotState]) -> None:
    """A reader that comes late gets the newest state; the older ones are skipped and counted."""
    for seq in (1, 2, 3):
        publisher.publish(state(seq))
    newest = 0
    while newest < 3:
        received = subscriber.newest(5)
        assert received is not None
        newest = received[1].seq
    assert subscriber.newest() is None
    assert subscriber.counts.gaps == 0


def test_what_a_slow_reader_lost_is_counted(publisher: Publisher, subscriber: Subscriber[RobotState]) -> None:
    """A reader that sleeps through a flood loses states and knows how many."""
    before = subscriber.counts.received
    total = 3_000
    for seq in range(total):
        publisher.publish(state(seq))
    while subscriber.newest(0.2):
        pass
    publisher.publish(state(total))
    assert subscriber.newest(5) is not None
    received = subscriber.counts.received - before
    assert received < total
    assert subscriber.counts.gaps == total + 1 - received


def test_a_restarted_publisher_is_a_new_stream(
    endpoint: str, publisher: Publisher, subscriber: Subscriber[RobotState], eventually: Eventually
) -> None:
    """After a restart numbers begin anew; that is neither a gap nor a repetition."""
    gaps = subscriber.counts.gaps
    publisher.close()
    again = Publisher(endpoint, Origin("robot"), RobotState)

    def heard() -> tuple[Envelope, RobotState] | None:
        again.publish(state(1))
        return subscriber.receive(0.05)

    eventually(heard)
    again.close()
    assert (subscriber.counts.gaps, subscriber.counts.repeated) == (gaps, 0)


def test_a_full_reader_survives_the_end_of_its_publisher(
    endpoint: str, publisher: Publisher, subscriber: Subscriber[RobotState], eventually: Eventually
) -> None:
    """A reader whose queue was full when the publisher went hears the next one (libzmq 3937)."""
    for seq in range(2_000):
        publisher.publish(state(seq))
    publisher.close()
    again = Publisher(endpoint, Origin("robot"), RobotState)
    while subscriber.receive(0.1):
        pass

    def heard() -> bool:
        again.publish(state(7_000))
        received = subscriber.receive(0.05)
        return received is not None and received[1].seq == 7_000

    eventually(heard)
    again.close()
