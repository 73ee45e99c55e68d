"""Trials: reading what rollouts recorded, and refusing what is not the evidence it claims to be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError
from sim2or.errors import JobError, choices
from sim2or.messages.message import Spec

FILE = "trials.jsonl"

OLDER = "'': an older rollout, which does not say"
UNNAMED = {"engine": OLDER, "physics": OLDER, "room": "'': the built-in room, or an older rollout"}
"""What makes the world of a trial, to what it means where a trial leaves it empty."""


class Trial(Spec):
    """One line of ``trials.jsonl``; further numbers are kept as metrics.

    Attributes:
        seed: Names the scenario within the task's lists.
        actor: Who acted: ``"policy"``, ``"expert"``, ``"random"``.
        artifact: Digest of the policy that acted; empty for other actors.
        commands: Digest of the recorded commands that a replay played; empty for other actors.
        engine: The simulator; empty in trials of before there was a choice.
        physics: What the engine computed with; empty in trials of before it was recorded.
        room: Digest of the operating room; empty for the built-in one.
        failure: The cause; empty for a success.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    seed: int
    instrument: str
    request: str = ""
    success: bool
    failure: str = ""
    steps: int = Field(ge=0)
    time_s: float = Field(ge=0)
    scenario: dict[str, Any] = Field(default_factory=dict)
    actor: str = "policy"
    artifact: str = ""
    commands: str = ""
    engine: str = ""
    physics: str = ""
    room: str = ""
    holds: int = Field(default=0, ge=0)
    dropped: bool = False
    safety: dict[str, int] = Field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Every further number by its name, and ``time_s``."""
        extra = self.model_extra or {}
        found = {
            k: float(v) for k, v in extra.items() if isinstance(v, int | float) and not isinstance(v, bool)
        }
        return {"time_s": self.time_s} | found


@dataclass(frozen=True)
class Recorded:
    """A trial and where it was read."""

    trial: Trial
    directory: Path
    line: int

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.directory / FILE}:{self.line}"


def read_trials(directories: Iterable[Path]) -> list[Recorded]:
    """Reads the trials of several shards, in order of seed.

    Raises:
        JobError: A directory is not a rollouts artifact, a line is not a trial, or a seed occurs twice.
    """
    found = [recorded for directory in directories for recorded in _read(directory)]
    return sorted(found, key=lambda recorded: (recorded.trial.artifact, recorded.trial.seed))


def refuse_duplicates(trials: Sequence[Recorded]) -> None:
    """Refuses the same scenario twice for one policy.

    Raises:
        JobError: Naming both places.
    """
    seen: dict[tuple[str, int], Recorded] = {}
    for recorded in trials:
        key = (recorded.trial.artifact, recorded.trial.seed)
        if key in seen:
            raise JobError(
                f"{recorded.place}: seed={recorded.trial.seed} occurs before at {seen[key].place}; "
                "every scenario counts once: drop one of the shards"
            )
        seen[key] = recorded


def refuse_other_lists(trials: Sequence[Recorded], name: str, lists: Mapping[str, range]) -> None:
    """Refuses trials on scenarios of another list: what was trained or tuned on proves nothing.

    Args:
        trials: Of any actor.
        name: The list that was asked for.
        lists: The task's lists, as ranges of seeds.

    Raises:
        JobError: Naming the place, the seed, its list and the seeds of the list that was asked for.
    """
    if name not in lists:
        raise JobError(f"scenarios={name!r} is no list of the task; {choices(name, lists)}")
    valid = lists[name]
    for recorded in trials:
        seed = recorded.trial.seed
        if seed not in valid:
            actual = next((other for other, seeds in lists.items() if seed in seeds), "none")
            raise JobError(
                f"{recorded.place}: seed={seed} belongs to the list {actual!r}, not {name!r} "
                f"(valid: {valid.start}…{valid.stop - 1}); roll out on the {name!r} list"
            )


def refuse_other_actors(trials: Sequence[Recorded], role: str, actor: str) -> None:
    """Refuses trials in which somebody else acted than the role says.

    Raises:
        JobError: Naming the place, the actor and the one that the role takes.
    """
    for recorded in trials:
        if recorded.trial.actor != actor:
            raise JobError(
                f"{recorded.place}: actor={recorded.trial.actor!r} cannot be the input {role!r}; "
                f"valid: {actor!r}. Check which rollout goes into which input"
            )


def refuse_mixtures(trials: Sequence[Recorded], taker: str) -> None:
    """Refuses trials of several engines, physics or rooms: their successes are not one rate.

    Args:
        trials: Of any actor.
        taker: What they are for, for messages.

    Raises:
        JobError: Naming both places, both values and what to do.
    """
    for recorded in trials:
        for key, unnamed in UNNAMED.items():
            value, first = getattr(recorded.trial, key), getattr(trials[0].trial, key)
            if value != first:
                raise JobError(
                    f"{recorded.place}: {key}={value!r}, but {trials[0].place} has {key}={first!r}; "
                    f"{taker} takes rollouts of one {key}. Roll out all of them with the one that is meant "
                    f"({unnamed})"
                )


def refuse_gaps(trials: Sequence[Recorded], expected: int | None) -> None:
    """Refuses missing scenarios: a trial that is left out is usually the one that failed.

    Raises:
        JobError: Naming the missing seeds or the counts.
    """
    seeds = {recorded.trial.seed for recorded in trials}
    if not seeds:
        raise JobError("no trials: every shard's trials.jsonl is empty; run `rollout` first")
    missing = sorted(set(range(min(seeds), max(seeds) + 1)) - seeds)
    if missing:
        shown = ", ".join(str(seed) for seed in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise JobError(
            f"{trials[0].directory / FILE}: {len(missing)} scenarios between seed={min(seeds)} and "
            f"seed={max(seeds)} have no trial ({shown}); pass every shard of the rollout"
        )
    if expected is not None and len(seeds) != expected:
        raise JobError(
            f"{trials[0].directory / FILE}: {len(seeds)} trials, but the spec says trials={expected}; "
            "pass every shard of the rollout, or correct the spec"
        )


def by_artifact(trials: Sequence[Recorded], digests: Sequence[str], models: int) -> dict[str, list[Recorded]]:
    """Groups trials by the model that acted, and refuses trials about any other.

    Args:
        trials: Of the policy under test.
        digests: Of the exported models given as input; empty accepts the trials' own.
        models: How many models there must be.

    Raises:
        JobError: A trial names no policy or another one, or the number of models differs.
    """
    groups: dict[str, list[Recorded]] = {digest: [] for digest in digests}
    for recorded in trials:
        artifact = recorded.trial.artifact
        if not artifact or (digests and artifact not in groups):
            raise JobError(
                f"{recorded.place}: artifact={artifact or '(none)'} is not the model under test; "
                f"valid: {', '.join(digests) or 'any digest'}. Roll out that model"
            )
        groups.setdefault(artifact, []).append(recorded)
    empty = [digest for digest, group in groups.items() if not group]
    if empty:
        raise JobError(f"{FILE}: no trial about artifact={empty[0]}; roll out that model too")
    if len(groups) != models:
        raise JobError(
            f"{FILE}: trials about {len(groups)} models ({', '.join(groups)}), "
            f"but the spec says models={models}"
        )
    return groups


def count_failures(trials: Iterable[Trial]) -> dict[str, int]:
    """Counts the causes of failure, most frequent first."""
    causes = Counter(trial.failure or "unknown" for trial in trials if not trial.success)
    return dict(sorted(causes.items(), key=lambda item: (-item[1], item[0])))


def _read(directory: Path) -> list[Recorded]:
    path = directory / FILE
    if not path.is_file():
        there = (
            ", ".join(sorted(p.name for p in directory.iterdir())[:8])
            if directory.is_dir()
            else "no directory"
        )
        raise JobError(f"{path} is missing; found: {there}. Pass an artifact of kind 'rollouts'")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Recorded(_parse(path, n, line), directory, n) for n, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Trial:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise JobError(f"{path}:{number}: not JSON ({error.msg}); rerun its rollout") from error
    try:
        return Trial.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise JobError(
            f"{path}:{number}: {key}={first.get('input')!r:.80}: {first['msg']}; rerun its rollout"
        ) from error
