"""The rule of the hand-over, clause by clause, without an engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from sim2or.contracts.task import Failure, load_task
from sim2or_sim.task import Handover, HandState, Reading

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
    at = np.array(list(at_m), dtype=float)
    return Reading(
        time_s=0.0,
        instrument_m=at,
        tip_axis=np.array([0.0, -1.0, 0.0]),
        handle_m=at + np.array([0.0, 0.05, 0.0]),
        speed_mps=speed_mps,
        fixed_pad=pads,
        moving_pad=pads,
        grasp_m=at if grasp_m is None else np.array(list(grasp_m), dtype=float),
        gripper_rad=gripper_rad,
    )


class _Episode:
    """Feeds readings with a running clock."""

    def __init__(self) -> None:
        self.rule = Handover(TASK, REST_M, released_rad=0.05)
        self.ticks = 0

    def feed(self, reading: Reading, ticks: int = 1) -> Handover:
        for _ in range(ticks):
            self.ticks += 1
            self.rule.update(replace(reading, time_s=self.ticks * TASK.period_s))
        return self.rule

    def until_taken(self) -> Handover:
        self.feed(_reading(ZONE), 60)
        assert self.rule.taken
        return self.rule


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
        (replace(_reading(ZONE), moving_pad=False), Failure.NOT_GRASPED),
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
        _reading(ZONE, pads=False, gripper_rad=OPEN_RAD, grasp_m=_off(0, 0, 0.06)), moving_pad=True
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
    episode.rule.abort()
    episode.feed(_reading(ZONE), 100)
    assert episode.rule.failure == Failure.UNSTABLE
    assert not episode.rule.taken
