"""The gap between two engines: what the gap stage is asked for, and what it found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim2or.messages.message import Spec
from sim2or.messages.verdict import Count, Difference, Probability, Score, Spread

GAP_FILE = "gap.json"

NonNegative = Annotated[float, Field(ge=0)]


class GapSpec(Spec):
    """Trials of the same scenarios in two engines to the difference between them.

    Attributes:
        robot: The robot profile, for the tool point and the joints' names.
        task: The task profile.
        scenarios: The scenario list that every trial must come from.
        confidence: Of every interval, two-sided.
        diverged_m: An open-loop replay has diverged when tool point or instrument are so far apart [m].
        films: Most scenarios that the report shows from both engines side by side.
    """

    robot: str = "so101"
    task: str = "handover"
    scenarios: Literal["train", "validation", "deploy", "heldout"] = "validation"
    confidence: Annotated[float, Field(ge=0.9, lt=1)] = 0.95
    diverged_m: Annotated[float, Field(gt=0, le=1)] = 0.01
    films: Annotated[int, Field(ge=0, le=20)] = 2


class Error(Spec):
    """How far two motions are apart, over all ticks of all scenarios; the unit is in the field's name.

    Attributes:
        rms: Root of the mean square.
        p50: Median of the absolute error.
        p95: 95th percentile of the absolute error.
        worst: Greatest absolute error.
    """

    rms: NonNegative
    p50: NonNegative
    p95: NonNegative
    worst: NonNegative


class Paired(Spec):
    """Successes of the same scenarios in both engines.

    Attributes:
        difference: Success rate in the other engine minus in the reference.
        interval: Tango's score interval of that difference.
        p_value: Exact McNemar test that both succeed equally often.
    """

    both: Count
    only_reference: Count
    only_other: Count
    neither: Count
    reference: Score
    other: Score
    difference: Difference
    interval: tuple[Difference, Difference]
    p_value: Probability


class Happening(Spec):
    """An event of the hand-over in both engines.

    Attributes:
        both: Scenarios in which it happened in both.
        later_s: How much later it happened in the other engine, where it happened in both [s].
    """

    both: Count
    only_reference: Count
    only_other: Count
    neither: Count
    later_s: Spread | None


class Divergence(Spec):
    """Scenarios whose motions came further apart than ``diverged_m``, and when [s]."""

    scenarios: Count
    at_s: Spread | None


class ReplayedScenario(Spec):
    """The open-loop figures of one scenario.

    Attributes:
        ticks: Ticks that both engines have.
        joint_rms_rad: Over all joints [rad].
        tool_worst_m: Greatest distance of the tool points [m].
        instrument_worst_m: Greatest distance of the instruments [m].
        reference: "success" or the cause of failure in the reference.
        other: The same in the other engine.
    """

    seed: int
    instrument: str
    ticks: Count
    joint_rms_rad: NonNegative
    tool_worst_m: NonNegative
    instrument_worst_m: NonNegative
    reference: str
    other: str


class OpenLoop(Spec):
    """The same commands in both engines, whatever happens.

    Attributes:
        commands: Digest of what was replayed.
        ticks: Ticks that both engines have, over all scenarios.
        joints_rad: Joint name to error [rad].
        joints_until_grasp_rad: The same before the pads hold the instrument in either engine.
        tool_m: Of the point between the pads [m].
        instrument_m: Of the instrument's origin [m].
        instrument_rad: Of the direction of the instrument's tip [rad]; a turn about itself is not seen.
        tool_diverged: Tool points further apart than ``diverged_m``.
        instrument_diverged: Instruments further apart than ``diverged_m``.
        events: Event name to when it happened.
    """

    commands: str
    ticks: Count
    joints_rad: dict[str, Error]
    joints_until_grasp_rad: dict[str, Error]
    tool_m: Error
    instrument_m: Error
    instrument_rad: Error
    tool_diverged: Divergence
    instrument_diverged: Divergence
    success: Paired
    events: dict[str, Happening]
    scenarios: tuple[ReplayedScenario, ...]


class ClosedLoop(Spec):
    """The same actor in both engines; each follows what it sees there.

    Attributes:
        actor: "policy", "expert" or "random".
        artifact: Digest of the policy; "" for other actors.
        latency_ticks: How late the actor's answers arrived.
        instruments: Instrument to its success in both.
        failures_reference: Cause to count in the reference.
        failures_other: Cause to count in the other engine.
        events: Event name to when it happened.
    """

    actor: str
    artifact: str
    latency_ticks: Count = 0
    success: Paired
    instruments: dict[str, Paired]
    failures_reference: dict[str, Count]
    failures_other: dict[str, Count]
    events: dict[str, Happening]


class Gap(Spec):
    """The content of ``gap.json``.

    Attributes:
        reference: The engine that differences are counted from.
        other: The engine that is compared with it.
        scenarios: The scenario list.
        open_loop: One for each set of replayed commands.
        closed_loop: One for each actor.
        evidence: Input role to the digests that this rests on.
    """

    robot: str
    task: str
    scenarios: str
    reference: str
    other: str
    confidence: Probability
    diverged_m: NonNegative
    open_loop: tuple[OpenLoop, ...]
    closed_loop: tuple[ClosedLoop, ...]
    evidence: dict[str, tuple[str, ...]]
