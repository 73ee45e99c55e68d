"""A step of a pipeline: a stage, its configuration, and where its inputs come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim2or.stages import StageInfo


@dataclass(frozen=True)
class Source:
    """Where an input comes from: an output of another step, or of none an artifact by its digest."""

    step: str
    output: str


@dataclass(frozen=True)
class Step:
    """A validated step.

    Attributes:
        id: Names it in the pipeline.
        info: Its stage, in the variant that its configuration asks for.
        spec: Its resolved configuration, as JSON.
        inputs: Role to the outputs that go there.
        each: The step whose jobs it follows one by one, or "".
        jobs: How many jobs it is.
        fills: Fields of the configuration that the runner fills in: ``wall_s``, ``summaries``.
    """

    id: str
    info: StageInfo
    spec: Mapping[str, Any]
    inputs: Mapping[str, tuple[Source, ...]] = field(default_factory=dict)
    each: str = ""
    jobs: int = 1
    fills: frozenset[str] = frozenset()

    @property
    def before(self) -> set[str]:
        """The steps it needs."""
        return {source.step for sources in self.inputs.values() for source in sources if source.step}
