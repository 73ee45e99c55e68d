"""The bridge's parts that need no robot: its beat and its gate."""

from __future__ import annotations

import pytest
from sim2or.contracts.robot import load_robot
from sim2or.errors import JobError
from sim2or.messages.deploy import DeploySpec
from sim2or.messages.verdict import Verdict
from sim2or.model_card import ModelCard, action_spec, image_spec, state_spec
from sim2or.worlds.world import WorldSpec
from sim2or_bridge.gate import check_fit, refusal, score_of
from sim2or_bridge.pacer import Pacer

ROBOT = load_robot("so101")
GOAL = {"success_goal": 0.97, "lower_goal": 0.93, "met": True}


def verdict(artifact: str = "sha256:a", lower: float = 0.95) -> Verdict:
    score = {"trials": 200, "successes": 196, "rate": 0.98, "interval": (lower, 0.992)}
    model = {"artifact": artifact, "score": score, "gate": GOAL, "instruments": {}, "failures": {},
    "dropped": 0,
             "holds": 0, "safety": {}, "spreads": {}}  # fmt: skip
    return Verdict.model_validate(
        {"task": "handover", "scenarios": "heldout", "first_seed": 6000000, "confidence": 0.95, "films": (),
         "artifact": artifact, "score": score, "gate": GOAL, "models": (model,), "baselines": {},
         "agreement": None, "evidence": {}, "instruments": {}}
    )  # fmt: skip


def card(**changes: object) -> ModelCard:
    cameras = [image_spec(name, height_px=96, width_px=96) for name in ("room", "wrist")]
    values = {
        "policy": "act",
        "robot": "so101",
        "task": "handover",
        "calibration_id": ROBOT.calibration_id,
        "requests": ("Hand me the scalpel",),
        "control_hz": 30.0,
        "privileged": False,
        "inputs": (state_spec(ROBOT.joint_names), *cameras),
        "outputs": (action_spec(ROBOT.joint_names, horizon=20),),
    }
    return ModelCard.model_validate(values | changes)


def robot_spec(control_hz: float = 30.0, height_px: int = 96) -> WorldSpec:
    cameras = {name: (height_px, 96, 3) for name in ("room", "wrist")}
    return WorldSpec("so101", "handover", ROBOT.joint_names, cameras, control_hz, 1)


def test_a_model_with_a_good_verdict_may_move() -> None:
    """The lower bound equals the gate: enough."""
    found = verdict(lower=0.9)
    score = score_of(found, "sha256:a")
    assert score.successes == 196
    assert refusal(found, score, DeploySpec()) == ""


def test_a_verdict_about_another_model_moves_nothing() -> None:
    """The error names both digests."""
    with pytest.raises(JobError, match="about sha256:a, not about sha256:b"):
        score_of(verdict(), "sha256:b")


def test_a_lower_bound_below_the_gate_moves_nothing() -> None:
    """98 % of 200 with a lower bound below the gate is refused: never a point estimate."""
    found = verdict(lower=0.899)
    said = refusal(found, score_of(found, "sha256:a"), DeploySpec())
    assert "lower bound 0.899, below gate_lower95=0.9" in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"confidence": 0.94}, "confidence is 0.94; at least 0.95"),
        ({"task": "other"}, "about task 'other', not 'handover'"),
        ({"scenarios": "validation"}, "reached on the 'validation' scenarios, gate_scenarios='heldout'"),
    ],
)
def test_a_verdict_that_was_asked_otherwise_moves_nothing(changes: dict[str, object], told: str) -> None:
    """Too little confidence, another task, scenarios on which something was tuned: each is refused."""
    found = verdict().model_copy(update=changes)
    assert told in refusal(found, score_of(found, "sha256:a"), DeploySpec())


def test_a_model_that_fits_its_robot_passes() -> None:
    """Equal names, joints, cameras, rates and calibration."""
    check_fit(card(), ROBOT, robot_spec())


@pytest.mark.parametrize(
    ("changes", "spec", "told"),
    [
        ({"control_hz": 50.0}, robot_spec(), "control_hz: model 50 Hz, robot 30 Hz"),
        ({"calibration_id": "other"}, robot_spec(), "calibration_id: model 'other'"),
        ({}, robot_spec(height_px=128), "camera room"),
        ({"robot": "so100"}, robot_spec(), "robot: model 'so100', robot 'so101'"),
        ({"privileged": True}, robot_spec(), "privileged"),
    ],
)
def test_a_mismatch_is_named_before_anything_moves(
    changes: dict[str, object], spec: WorldSpec, told: str
) -> None:
    """Rate, calibration, camera, robot, privileged input: each refused with both values."""
    with pytest.raises(JobError, match=told):
        check_fit(card(**changes), ROBOT, spec)


def test_the_beat_meets_the_robots_ticks() -> None:
    """With ticks at 7, 107, 207 … every call gives the next tick and nothing is missed."""
    pacer = Pacer(100)
    pacer.lock(7)
    assert [pacer.next(now) for now in (10, 107, 230)] == [(107, 0), (207, 0), (307, 0)]


def test_ticks_that_passed_without_a_beat_are_counted() -> None:
    """After the deadline 107, a beat at 350 serves 407: the ticks 207 and 307 were missed."""
    pacer = Pacer(100)
    pacer.lock(7)
    pacer.next(10)
    assert pacer.next(350) == (407, 2)


def test_waking_a_hair_early_does_not_serve_a_tick_twice() -> None:
    """A beat just before the deadline that was served belongs to the following tick."""
    pacer = Pacer(100)
    pacer.lock(7)
    pacer.next(10)
    assert pacer.next(106) == (207, 0)


def test_the_beat_follows_a_drifting_clock() -> None:
    """A robot whose period is 0.1 % longer is followed to within a percent of a period."""
    pacer, captured = Pacer(100_000), 0.0
    for _ in range(300):
        pacer.lock(round(captured))
        captured += 100_100
    deadline, _ = pacer.next(round(captured) - 50_000)
    assert abs(deadline - captured) < 1_500
