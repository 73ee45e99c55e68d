"""The verdict: what trials say about an exported policy. The bridge reads it before it moves anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, ValidationError

from sim2or.errors import JobError
from sim2or.messages.message import Spec

VERDICT_FILE = "verdict.json"

Count = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]


class Score(Spec):
    """Successes among trials, with a two-sided Wilson interval (lower, upper)."""

    trials: Count
    successes: Count
    rate: Probability
    interval: tuple[Probability, Probability]


class Spread(Spec):
    """How a quantity was distributed; its unit is in its name."""

    count: Count
    mean: float
    minimum: float
    p05: float
    p50: float
    p95: float
    maximum: float


class Gate(Spec):
    """A goal and whether the verdict meets it. A missed goal is a result, not an error.

    Attributes:
        reasons: One line per missed goal; empty when met.
        trials_needed: Fewest trials that would reach ``lower_goal`` at the rate seen; None where none would.
    """

    success_goal: Probability
    lower_goal: Probability
    met: bool
    reasons: tuple[str, ...] = ()
    trials_needed: int | None = None


class Baseline(Spec):
    """Another actor beside the policy.

    Attributes:
        difference: Newcombe interval of policy − baseline success rate.
    """

    score: Score
    difference: tuple[Difference, Difference]


class Agreement(Spec):
    """The torch policy and the exported one on the same scenarios, in closed loop.

    Attributes:
        p_value: Exact McNemar test that they succeed equally often.
    """

    scenarios: Count
    torch_successes: Count
    exported_successes: Count
    both: Count
    only_torch: Count
    only_exported: Count
    neither: Count
    p_value: Probability


class Film(Spec):
    """One recorded trial, as files beside the verdict (empty where the trial recorded no frames)."""

    seed: int
    instrument: str
    success: bool
    failure: str
    time_s: float
    video: str
    strip: str


class ModelVerdict(Spec):
    """What the trials say about one exported model.

    Attributes:
        artifact: Digest of the exported model.
        failures: Cause to count.
        dropped: Trials in which the instrument fell.
        holds: Control ticks at which the arm held for want of a fresh command.
        safety: Safety reason to count of commands changed or refused.
        spreads: Time, path length, smoothness, margins, …, over the successful trials.
    """

    artifact: str
    score: Score
    gate: Gate
    instruments: dict[str, Score]
    failures: dict[str, Count]
    dropped: Count
    holds: Count
    safety: dict[str, Count]
    spreads: dict[str, Spread]


class Verdict(Spec):
    """The content of ``verdict.json``.

    Attributes:
        artifact: Digest of the exported model the verdict is about: the worst of ``models``.
        scenarios: The scenario list the trials come from.
        engine: The simulator of every trial; "" where older trials do not say.
        physics: What the engine computed with; "" where older trials do not say.
        room: Digest of the operating room of every trial; "" for the built-in one.
        models: One per exported model, worst first.
        baselines: Actor name to what it reached.
        evidence: Input role to the digests the verdict rests on.
    """

    type_name: ClassVar[str] = "verdict"

    task: str
    scenarios: str
    engine: str = ""
    physics: str = ""
    room: str = ""
    first_seed: int
    confidence: Probability
    artifact: str
    score: Score
    gate: Gate
    instruments: dict[str, Score]
    models: tuple[ModelVerdict, ...]
    baselines: dict[str, Baseline]
    agreement: Agreement | None
    films: tuple[Film, ...]
    evidence: dict[str, tuple[str, ...]]


def read_verdict(directory: Path) -> Verdict:
    """Reads a verdict artifact.

    Raises:
        JobError: It is missing or is no verdict.
    """
    path = directory / VERDICT_FILE
    if not path.is_file():
        raise JobError(f"{path} is missing; pass an artifact of kind 'verdict'")
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise JobError(f"{path} is no verdict: {place}: {first['msg']}") from error
