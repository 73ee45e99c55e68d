"""The chunk executor: the right action of the newest fresh chunk, or nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim2or.errors import ConfigError
from sim2or.rollout.chunk import ChunkExecutor
from sim2or.rollout.latency import DelayLine

PERIOD_NS = 100


def executor(**changes: int) -> ChunkExecutor:
    numbers = {"horizon": 8, "execute": 3, "period_ns": PERIOD_NS, "max_age_ns": 500} | changes
    subject = ChunkExecutor(**numbers)
    subject.reset("a")
    return subject


def chunk(first: float = 0.0, length: int = 8) -> np.ndarray:
    """Action k is first + k in every joint."""
    return np.repeat(np.arange(first, first + length, dtype=np.float32)[:, None], 6, axis=1)


@pytest.mark.parametrize(
    ("now_ns", "index"), [(1000, 0), (1049, 0), (1050, 1), (1100, 1), (1149, 1), (1450, 5), (1500, 5)]
)
def test_action_k_belongs_to_capture_plus_k_periods(now_ns: int, index: int) -> None:
    """The action whose time is nearest is due, for any clock's origin."""
    subject = executor()
    assert subject.accept(chunk(), 1000, 1000, "a")
    due = subject.target(now_ns)
    assert due is not None
    assert (due.index, due.target_rad[0], due.captured_ns) == (index, index, 1000)


def test_nothing_older_than_max_age_is_ever_due() -> None:
    """One nanosecond past the age limit there is no target, although the chunk has more actions."""
    subject = executor()
    subject.accept(chunk(), 1000, 1000, "a")
    assert subject.target(1500) is not None
    assert subject.target(1501) is None


def test_past_the_end_of_a_chunk_there_is_no_target() -> None:
    """A short chunk is not stretched."""
    subject = executor()
    subject.accept(chunk(length=2), 1000, 1000, "a")
    assert subject.target(1149) is not None
    assert subject.target(1150) is None


def test_before_the_first_chunk_and_before_its_time_there_is_no_target() -> None:
    """No chunk, or a clock before the chunk's observation: nothing is due."""
    subject = executor()
    assert subject.target(1000) is None
    subject.accept(chunk(), 1000, 1000, "a")
    assert subject.target(900) is None


@pytest.mark.parametrize(
    ("actions", "captured_ns", "now_ns", "session", "cause"),
    [
        (chunk(), 2000, 2000, "b", "other_session"),
        (chunk(length=9), 2000, 2000, "a", "wrong_shape"),
        (chunk(length=0), 2000, 2000, "a", "wrong_shape"),
        (np.zeros(6, np.float32), 2000, 2000, "a", "wrong_shape"),
        (chunk(), 2001, 2000, "a", "from_the_future"),
        (chunk(), 1499, 2000, "a", "too_old"),
        (chunk(), 1600, 2000, "a", "not_newer"),
        (chunk(), 1550, 2000, "a", "not_newer"),
    ],
)
def test_chunks_that_may_not_be_used_are_refused_and_counted(
    actions: np.ndarray, captured_ns: int, now_ns: int, session: str, cause: str
) -> None:
    """Another session, a wrong shape, the future, too old, repeated or out of order."""
    subject = executor()
    subject.accept(chunk(), 1600, 1600, "a")
    assert not subject.accept(actions, captured_ns, now_ns, session)
    assert subject.counts == {"accepted": 1, cause: 1}


def test_the_newest_observation_wins() -> None:
    """A newer chunk replaces the one in use at once."""
    subject = executor()
    subject.accept(chunk(0), 1000, 1000, "a")
    subject.accept(chunk(50), 1200, 1250, "a")
    due = subject.target(1300)
    assert due is not None
    assert due.target_rad[0] == 51


def test_an_observation_is_asked_for_after_execute_periods() -> None:
    """At once, then three periods after the last request, with half a period of jitter allowed."""
    subject = executor()
    assert subject.wants(1000)
    subject.requested(1000)
    assert [subject.wants(now) for now in (1100, 1200, 1249, 1250, 1300)] == [False, False, False, True, True]


def test_a_new_session_forgets_the_old_one() -> None:
    """After a reset there is no target, a request is due and old answers are refused."""
    subject = executor()
    subject.accept(chunk(), 1000, 1000, "a")
    subject.requested(1000)
    subject.reset("b")
    assert subject.target(1000) is None
    assert subject.wants(1000)
    assert not subject.accept(chunk(), 1000, 1000, "a")


@pytest.mark.parametrize("numbers", [{"execute": 0}, {"execute": 9}, {"period_ns": 0}, {"max_age_ns": 299}])
def test_numbers_that_do_not_fit_are_refused(numbers: dict[str, int]) -> None:
    """Execute outside the horizon, no period, or chunks that expire before the next is asked for."""
    with pytest.raises(ConfigError):
        executor(**numbers)


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900)), max_size=20), st.integers(0, 4000))
def test_whatever_arrives_in_any_order_a_target_is_fresh(
    arrivals: list[tuple[int, int]], now_ns: int
) -> None:
    """For any order and delay of chunks, a target is never older than the limit nor from the future."""
    subject = executor()
    for captured_ns, delay_ns in arrivals:
        subject.accept(chunk(), captured_ns, captured_ns + delay_ns, "a")
    due = subject.target(now_ns)
    if due is not None:
        assert -PERIOD_NS // 2 <= now_ns - due.captured_ns <= 500


def test_a_delay_line_delivers_in_order_after_its_ticks() -> None:
    """An item put in at tick t comes out at tick t + 2, once."""
    line = DelayLine[str](2)
    line.put("x", 0)
    line.put("y", 1)
    assert [line.due(tick) for tick in range(4)] == [[], [], ["x"], ["y"]]


def test_a_negative_delay_is_refused() -> None:
    """Answers before questions do not exist."""
    with pytest.raises(ConfigError, match="-1"):
        DelayLine[str](-1)
