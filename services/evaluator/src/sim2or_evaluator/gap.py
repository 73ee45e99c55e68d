"""The gap stage: the same scenarios in two engines to the difference between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sim2or.artifacts.store import fresh_directory
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.task import load_task
from sim2or.errors import JobError
from sim2or.messages.gap import (
    GAP_FILE,
    ClosedLoop,
    Divergence,
    Error,
    Gap,
    GapSpec,
    Happening,
    OpenLoop,
    Paired,
    ReplayedScenario,
)
from sim2or.stage import Context, Stage, StageResult

from sim2or_evaluator.gap_motion import Apart, Floats, apart, diverged_s, error
from sim2or_evaluator.gap_page import write_page
from sim2or_evaluator.gap_pairs import REPLAY, Pair, Side, Subject, happened_s, pair_up, read_side
from sim2or_evaluator.statistics import mcnemar_exact, tango
from sim2or_evaluator.trials import Trial, count_failures
from sim2or_evaluator.verdict import score, spread

EVENTS = ("grasped", "lifted", "taken", "released", "success")


@dataclass(frozen=True)
class Measured:
    """What was compared and what was found.

    Attributes:
        gap: The figures.
        pairs: Who acted, to the trials of each scenario in both engines.
        motions: Of the replays among them, how far the motions are apart.
    """

    gap: Gap
    pairs: Mapping[Subject, Sequence[Pair]]
    motions: Mapping[Subject, Sequence[Apart]]


def run(spec: GapSpec, context: Context) -> StageResult:
    """Measures the gap between two engines and shows it.

    Args:
        spec: Scenario list and thresholds.
        context: Inputs ``reference`` and ``other``: rollouts of the same actors on the same scenarios, each
            in one engine. Those of the actor "replay" are compared tick by tick, others by their outcome.

    Returns:
        Output ``gap``: ``gap.json``, ``index.html``, ``pictures/`` and ``films/``.

    Raises:
        JobError: The trials cannot be compared; names what differs.
    """
    measured = measure(spec, context)
    context.progress(1, 2, "steps")
    out = fresh_directory(context.work / "gap")
    (out / GAP_FILE).write_text(measured.gap.model_dump_json(indent=1) + "\n", encoding="utf-8")
    write_page(measured.gap, list(measured.motions.values()), measured.pairs, spec.films, out)
    context.progress(2, 2, "steps")
    return StageResult(outputs={"gap": out}, summary=_summary(measured.gap))


STAGE = Stage("gap", GapSpec, run)


def measure(spec: GapSpec, context: Context) -> Measured:
    """Pairs the trials and compares them; writes nothing.

    Raises:
        JobError: The trials cannot be compared; names what differs.
    """
    task, robot = load_task(spec.task), load_robot(spec.robot)
    lists = {name: range(part.first_seed, part.end_seed) for name, part in task.lists.items()}
    reference, other = (_side(context, role, spec, lists) for role in ("reference", "other"))
    pairs = pair_up(reference, other)
    kinematics = Kinematics(robot)
    motions = {
        subject: [apart(pair, kinematics) for pair in found]
        for subject, found in pairs.items()
        if subject.actor == REPLAY
    }
    gap = Gap(
        robot=spec.robot,
        task=spec.task,
        scenarios=spec.scenarios,
        reference=reference.engine,
        other=other.engine,
        confidence=spec.confidence,
        diverged_m=spec.diverged_m,
        open_loop=tuple(open_loop(subject, found, spec, robot) for subject, found in motions.items()),
        closed_loop=tuple(
            closed_loop(subject, found, spec.confidence)
            for subject, found in pairs.items()
            if subject not in motions
        ),
        evidence={role: tuple(digests) for role, digests in sorted(context.digests.items())},
    )
    return Measured(gap, pairs, motions)


def open_loop(subject: Subject, motions: Sequence[Apart], spec: GapSpec, robot: RobotProfile) -> OpenLoop:
    """Says how far replays of the same commands ended up from one another.

    Args:
        subject: Whose commands.
        motions: One a scenario.
        spec: Thresholds.
        robot: Names the joints.
    """
    pairs = [motion.pair for motion in motions]
    return OpenLoop(
        commands=subject.commands,
        ticks=sum(motion.ticks for motion in motions),
        joints_rad=_by_joint(robot, [motion.joints_rad for motion in motions]),
        joints_until_grasp_rad=_by_joint(robot, [motion.joints_rad[motion.free] for motion in motions]),
        tool_m=error(np.concatenate([motion.tool_m for motion in motions])),
        instrument_m=error(np.concatenate([motion.instrument_m for motion in motions])),
        instrument_rad=error(np.concatenate([motion.instrument_rad for motion in motions])),
        tool_diverged=_divergence([diverged_s(m.time_s, m.tool_m, spec.diverged_m) for m in motions]),
        instrument_diverged=_divergence(
            [diverged_s(m.time_s, m.instrument_m, spec.diverged_m) for m in motions]
        ),
        success=paired(pairs, spec.confidence),
        events=happenings(pairs),
        scenarios=tuple(_replayed(motion) for motion in motions),
    )


def closed_loop(subject: Subject, pairs: Sequence[Pair], confidence: float) -> ClosedLoop:
    """Says how often the same actor succeeds in each engine."""
    instruments = sorted({pair.reference.trial.instrument for pair in pairs})
    return ClosedLoop(
        actor=subject.actor,
        artifact=subject.artifact,
        latency_ticks=subject.latency_ticks,
        success=paired(pairs, confidence),
        instruments={
            name: paired([p for p in pairs if p.reference.trial.instrument == name], confidence)
            for name in instruments
        },
        failures_reference=count_failures(pair.reference.trial for pair in pairs),
        failures_other=count_failures(pair.other.trial for pair in pairs),
        events=happenings(pairs),
    )


def paired(pairs: Sequence[Pair], confidence: float) -> Paired:
    """Compares the successes of the same scenarios."""
    table = Counter((pair.reference.trial.success, pair.other.trial.success) for pair in pairs)
    only_reference, only_other = table[True, False], table[False, True]
    interval = tango(only_other, only_reference, len(pairs), confidence)
    return Paired(
        both=table[True, True],
        only_reference=only_reference,
        only_other=only_other,
        neither=table[False, False],
        reference=score([pair.reference.trial for pair in pairs], confidence),
        other=score([pair.other.trial for pair in pairs], confidence),
        difference=(only_other - only_reference) / len(pairs),
        interval=(interval.lower, interval.upper),
        p_value=min(1.0, mcnemar_exact(only_reference, only_other)),
    )


def happenings(pairs: Sequence[Pair]) -> dict[str, Happening]:
    """When the events of the hand-over happened in one engine and in the other."""
    return {event: _happening(pairs, event) for event in EVENTS}


def _happening(pairs: Sequence[Pair], event: str) -> Happening:
    times = [[happened_s(recorded.trial, event) for recorded in (p.reference, p.other)] for p in pairs]
    table = Counter((one is not None, two is not None) for one, two in times)
    later_s = [two - one for one, two in times if one is not None and two is not None]
    return Happening(
        both=table[True, True],
        only_reference=table[True, False],
        only_other=table[False, True],
        neither=table[False, False],
        later_s=spread(later_s) if later_s else None,
    )


def _by_joint(robot: RobotProfile, errors_rad: Sequence[Floats]) -> dict[str, Error]:
    rows = np.concatenate(errors_rad)
    return {name: error(rows[:, column]) for column, name in enumerate(robot.joint_names)}


def _divergence(times_s: Sequence[float | None]) -> Divergence:
    found = [time_s for time_s in times_s if time_s is not None]
    return Divergence(scenarios=len(found), at_s=spread(found) if found else None)


def _replayed(motion: Apart) -> ReplayedScenario:
    one, two = motion.pair.reference.trial, motion.pair.other.trial
    return ReplayedScenario(
        seed=one.seed,
        instrument=one.instrument,
        ticks=motion.ticks,
        joint_rms_rad=error(motion.joints_rad).rms,
        tool_worst_m=error(motion.tool_m).worst,
        instrument_worst_m=error(motion.instrument_m).worst,
        reference=_outcome(one),
        other=_outcome(two),
    )


def _outcome(trial: Trial) -> str:
    return "success" if trial.success else trial.failure or "unknown"


def _side(context: Context, role: str, spec: GapSpec, lists: Mapping[str, range]) -> Side:
    directories = context.inputs.get(role, ())
    if not directories:
        raise JobError(f"gap: no input {role!r}; given: {', '.join(sorted(context.inputs)) or 'none'}")
    return read_side(role, directories, spec.scenarios, lists)


def _summary(gap: Gap) -> dict[str, object]:
    """The figures that fit into a line for each comparison."""
    return {
        "reference": gap.reference,
        "other": gap.other,
        "open_loop": [
            {
                "scenarios": len(found.scenarios),
                "joint_rms_rad": {name: value.rms for name, value in found.joints_rad.items()},
                "tool_rms_m": found.tool_m.rms,
                "instrument_rms_m": found.instrument_m.rms,
                "successes": [found.success.reference.successes, found.success.other.successes],
            }
            for found in gap.open_loop
        ],
        "closed_loop": [
            {
                "actor": found.actor,
                "artifact": found.artifact,
                "latency_ticks": found.latency_ticks,
                "scenarios": found.success.reference.trials,
                "successes": [found.success.reference.successes, found.success.other.successes],
                "difference": found.success.difference,
                "interval": list(found.success.interval),
            }
            for found in gap.closed_loop
        ],
    }
