"""Stages: pure functions from a spec and inputs to files and a summary.

The same ``run`` serves the embedded mode, a container, a Kubernetes Job and
``python -m sim2or_<service> run``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sim2or.messages.message import Spec


class Cancelled(BaseException):
    """The job was cancelled or its lease lost: unwind now.

    Not an ``Exception``, so that no handler swallows it.
    """


class Context(Protocol):
    """What a stage is given beside its spec.

    Attributes:
        work: A directory that survives attempts of the same job; resume from what is there.
        inputs: Role to the read-only directories of that role's artifacts, in order.
        shard: This job's number, 0 ≤ shard < shards.
        shards: How many jobs share the stage.
    """

    work: Path
    inputs: Mapping[str, Sequence[Path]]
    digests: Mapping[str, Sequence[str]]
    shard: int
    shards: int

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Reports progress (cheap to call often) and raises ``Cancelled`` when the job must stop."""


@dataclass(frozen=True)
class StageResult:
    """What a stage made.

    Attributes:
        outputs: Role to a file or directory under ``context.work``; each becomes an artifact.
        summary: JSON-able figures, stored in the artifacts' manifests and shown to people.
    """

    outputs: Mapping[str, Path]
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage[S: Spec]:
    """A stage as its service offers it.

    Attributes:
        name: For example ``"collect"``.
        spec: The pydantic class of its configuration.
        run: The pure function.
    """

    name: str
    spec: type[S]
    run: Callable[[S, Context], StageResult]
