"""What must be true before anything moves: a verdict about this very model, and a robot that fits it."""

from __future__ import annotations

from sim2or.contracts.robot import RobotProfile
from sim2or.errors import JobError
from sim2or.messages.deploy import DeploySpec
from sim2or.messages.verdict import Score, Verdict
from sim2or.model_card import ModelCard
from sim2or.worlds.world import WorldSpec

CONFIDENCE = 0.95
"""Of the interval whose lower end the gate looks at: ``gate_lower95`` means this."""

RATE_TOLERANCE_HZ = 1e-3


def score_of(verdict: Verdict, artifact: str) -> Score:
    """Finds the score of this very model.

    Args:
        verdict: What the evaluation found.
        artifact: Digest of the model that is to be deployed.

    Raises:
        JobError: The verdict is about other models.
    """
    about = {model.artifact: model.score for model in verdict.models}
    if artifact not in about:
        raise JobError(
            f"deploy: the verdict is about {', '.join(about) or 'no model'}, not about {artifact}: "
            "evaluate this very model first"
        )
    return about[artifact]


def refusal(verdict: Verdict, score: Score, spec: DeploySpec) -> str:
    """Why a model with this verdict may not move a robot; "" when it may.

    Args:
        verdict: What the evaluation found, and how it was asked.
        score: The model's score in it.
        spec: The task and the gate.
    """
    problems = []
    if verdict.task != spec.task:
        problems.append(f"the verdict is about task {verdict.task!r}, not {spec.task!r}")
    if verdict.scenarios != spec.gate_scenarios:
        problems.append(
            f"the verdict was reached on the {verdict.scenarios!r} scenarios, "
            f"gate_scenarios={spec.gate_scenarios!r}"
        )
    if verdict.confidence < CONFIDENCE:
        problems.append(f"the verdict's confidence is {verdict.confidence:g}; at least {CONFIDENCE:g} counts")
    if score.interval[0] < spec.gate_lower95:
        problems.append(
            f"{score.successes}/{score.trials} successes, lower bound {score.interval[0]:.3f}, below "
            f"gate_lower95={spec.gate_lower95:g}: train better, or try on more scenarios"
        )
    return f"nothing moves: {'; '.join(problems)}" if problems else ""


def check_fit(card: ModelCard, robot: RobotProfile, spec: WorldSpec) -> None:
    """Refuses a model that was made for another robot, task, calibration, rate or cameras.

    Args:
        card: What the model takes and gives.
        robot: The profile of the robot at the endpoint.
        spec: What the robot at the endpoint says it is.

    Raises:
        JobError: Naming every mismatch with both values.
    """
    pairs = {
        "robot": (card.robot, spec.robot),
        "task": (card.task, spec.task),
        "calibration_id": (card.calibration_id, robot.calibration_id),
        "joints": (card.joints, spec.joints),
        "profile joints": (card.joints, robot.joint_names),
    }
    problems = [f"{name}: model {a!r}, robot {b!r}" for name, (a, b) in pairs.items() if a != b]
    if abs(card.control_hz - spec.control_hz) > RATE_TOLERANCE_HZ:
        problems.append(f"control_hz: model {card.control_hz:g} Hz, robot {spec.control_hz:g} Hz")
    for camera, shape in card.cameras.items():
        if spec.cameras.get(camera) != shape:
            problems.append(f"camera {camera}: model {shape}, robot {spec.cameras.get(camera, 'none')}")
    if card.privileged:
        problems.append("privileged: the model needs simulator truth, which no robot has")
    if problems:
        raise JobError("deploy: model and robot do not fit: " + "; ".join(problems))
