"""The rule of the hand-over, clause by clause, without an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
import pytest
from sim2or.contracts.task import Failure, load_task
from sim2or_sim.task import Handovers, HandState, Reading

TASK = load_task("handover")
REST_M = 0.011
ZONE = np.array(TASK.zone.center_m)
OPEN_RAD, CLOSED_RAD = 0.3, -0.13


def _off(x_m: float, y_m: float, z_m: float) -> np.ndarray:
    """A point so far from the zone's centre."""
    return ZONE + np.array([x_m, y_m, z_m])


def _reading(
    at_m: Iterable[float],
    *,
    pads: bool = True,
    speed_mps: float = 0.0,
    gripper_rad: float = CLOSED_RAD,
    grasp_m: Iterable[float] | None = None,
) -> Reading:
    at = np.array([list(at_m)], dtype=float)
    touching = np.array([pads])
    return Reading(
        time_s=np.zeros(1),
        instrument_m=at,
        tip_axis=np.array([[0.0, -1.0, 0.0]]),
        handle_m=at + np.array([0.0, 0.05, 0.0]),
        speed_mps=np.array([speed_mps]),
        fixed_pad=touching,
        moving_pad=touching,
        grasp_m=at if grasp_m is None else np.array([list(grasp_m)], dtype=float),
        gripper_rad=np.array([gripper_rad]),
    )


def _rows(reading: Reading, rows: slice | list[int]) -> Reading:
    return Reading(**{field.name: getattr(reading, field.name)[rows] for field in fields(Reading)})


class _Episode:
    """A batch of one, fed with a running clock and spoken of in the singular."""

    def __init__(self) -> None:
        self.rule, self.ticks = Handovers(TASK, 1), 0
        self.rule.begin([0], np.array([REST_M]))

    def feed(self, reading: Reading, ticks: int = 1) -> _Episode:
        for _ in range(ticks):
            self.ticks += 1
            self.rule.update(replace(reading, time_s=np.array([self.ticks * TASK.period_s])))
        return self

    def until_taken(self) -> _Episode:
        self.feed(_reading(ZONE), 60)
        assert self.taken
        return self

    @property
    def taken(self) -> bool:
        return bool(self.rule.taken[0])

    @property
    def success(self) -> bool:
        return bool(self.rule.success[0])

    @property
    def failure(self) -> Failure:
        return self.rule.failure(0)

    @property
    def state(self) -> HandState:
        return self.rule.state(0)

    @property
    def facts(self) -> dict[str, float]:
        return self.rule.facts(0)


def test_whole_hand_over_succeeds() -> None:
    """Presented, taken, released and retreated: a success with its figures."""
    episode = _Episode()
    episode.until_taken()
    rule = episode.feed(_reading(ZONE, pads=False, gripper_rad=OPEN_RAD, grasp_m=_off(0, 0, 0.041)))
    assert rule.success
    assert rule.failure == Failure.NONE
    assert rule.facts["handle_angle_rad"] == pytest.approx(0.0)
    assert rule.facts["dropped"] == 0.0


def test_hand_comes_only_after_stillness() -> None:
    """The hand rests for the first 11 still periods and comes at the 12th: 0.4 s at 30 Hz."""
    episode = _Episode()
    assert episode.feed(_reading(ZONE), 11).state is HandState.RESTING
    assert episode.feed(_reading(ZONE)).state is HandState.COMING


@pytest.mark.parametrize(
    ("reading", "cause"),
    [
        (_reading(ZONE, pads=False), Failure.NOT_GRASPED),
        (_reading([0.2, 0.0, REST_M + 0.049]), Failure.NOT_LIFTED),
        (_reading(_off(0.036, 0, 0)), Failure.NOT_PRESENTED),
        (_reading(ZONE, speed_mps=0.101), Failure.NOT_PRESENTED),
        (replace(_reading(ZONE), moving_pad=np.array([False])), Failure.NOT_GRASPED),
    ],
)
def test_each_missing_clause_ends_as_its_cause(reading: Reading, cause: Failure) -> None:
    """Without one of the clauses the hand never takes, and the time limit names what was missing."""
    rule = _Episode().feed(reading, TASK.limit_steps)
    assert not rule.taken
    assert rule.failure == cause
    assert rule.facts["time_s"] == pytest.approx(8.0)


def test_one_shaking_tick_starts_the_stillness_again() -> None:
    """A single fast period sends the hand back and the 0.4 s begin anew."""
    episode = _Episode()
    episode.feed(_reading(ZONE), 13)
    episode.feed(_reading(ZONE, speed_mps=0.2))
    assert episode.feed(_reading(ZONE), 11).state is HandState.RESTING


def test_never_let_go_is_not_released() -> None:
    """Jaws that stay closed after the hand took it end as not released."""
    episode = _Episode()
    episode.until_taken()
    assert episode.feed(_reading(ZONE), TASK.limit_steps).failure == Failure.NOT_RELEASED


def test_open_jaws_that_stay_are_not_retreated() -> None:
    """Jaws that open but stay within 4 cm end as not retreated."""
    episode = _Episode()
    episode.until_taken()
    near = _reading(ZONE, pads=False, gripper_rad=OPEN_RAD, grasp_m=_off(0, 0, 0.039))
    assert episode.feed(near, TASK.limit_steps).failure == Failure.NOT_RETREATED


def test_retreat_in_contact_is_no_success() -> None:
    """Beyond 4 cm with a pad still touching is not yet a success."""
    episode = _Episode()
    episode.until_taken()
    touching = replace(
        _reading(ZONE, pads=False, gripper_rad=OPEN_RAD, grasp_m=_off(0, 0, 0.06)),
        moving_pad=np.array([True]),
    )
    assert not episode.feed(touching, 5).success


def test_falling_after_the_lift_is_a_drop() -> None:
    """An instrument that was lifted and lies free near the tray again was dropped."""
    episode = _Episode()
    episode.feed(_reading([0.2, 0.0, REST_M + 0.06]))
    rule = episode.feed(_reading([0.2, 0.0, REST_M], pads=False))
    assert rule.failure == Failure.DROPPED
    assert rule.facts["dropped"] == 1.0


def test_torn_out_of_the_hand_is_a_drop() -> None:
    """An instrument that leaves the place where the hand took it was dropped."""
    episode = _Episode()
    episode.until_taken()
    assert episode.feed(_reading(_off(0.05, 0, 0))).failure == Failure.DROPPED


def test_verdict_is_final() -> None:
    """Nothing after the end changes the verdict."""
    episode = _Episode()
    episode.rule.abort(np.array([True]))
    episode.feed(_reading(ZONE), 100)
    assert episode.failure == Failure.UNSTABLE
    assert not episode.taken


def test_each_of_a_batch_goes_as_it_would_alone() -> None:
    """Forty hand-overs with noisy pads and speeds: the same palms and verdicts as alone, to the bit."""
    rng, count = np.random.default_rng(0), 40
    batch = Handovers(TASK, count)
    batch.begin(np.arange(count), np.full(count, REST_M))
    alone = [_Episode() for _ in range(count)]
    for tick in range(1, TASK.limit_steps + 1):
        far = min(1.0, tick / 60)
        at = far * ZONE + (1 - far) * np.array([0.2, 0.0, REST_M]) + rng.normal(0, 0.002, (count, 3))
        opened = (tick > 130) & (np.arange(count) % 3 > 0)
        pads = (rng.random((2, count)) < 0.995) & ~opened
        told = Reading(
            time_s=np.full(count, tick * TASK.period_s),
            instrument_m=at,
            tip_axis=np.tile([0.0, -1.0, 0.0], (count, 1)),
            handle_m=at + np.array([0.0, 0.05, 0.0]),
            speed_mps=np.abs(rng.normal(0, 0.03, count)),
            fixed_pad=pads[0],
            moving_pad=pads[1],
            grasp_m=at + np.where(opened, 0.001 * (tick - 130), 0.0)[:, None],
            gripper_rad=np.where(opened, OPEN_RAD, CLOSED_RAD),
        )
        batch.update(told)
        for index, one in enumerate(alone):
            one.feed(_rows(told, slice(index, index + 1)))
        np.testing.assert_array_equal(batch.palm_m, [one.rule.palm_m[0] for one in alone])
        assert batch.done.tolist() == [bool(one.rule.done[0]) for one in alone]
    assert [batch.failure(index) for index in range(count)] == [one.failure for one in alone]
    assert [batch.facts(index) for index in range(count)] == [one.facts for one in alone]
    assert batch.success.sum() > 10
    assert batch.failed.sum() > 10


def test_only_those_that_are_meant_go_on() -> None:
    """Of a batch of two one is left out: its hand and its figures stay, the other's hand takes."""
    batch, told = Handovers(TASK, 2), _reading(ZONE)
    batch.begin([0, 1], np.full(2, REST_M))
    for _ in range(60):
        batch.update(_rows(told, [0, 0]), among=np.array([False, True]))
    assert batch.taken.tolist() == [False, True]
    assert batch.facts(0) == {"dropped": 0.0, "lift_max_m": 0.0}
    batch.begin([1], np.array([REST_M]))
    assert batch.facts(1) == batch.facts(0)
    assert not batch.taken.any()
