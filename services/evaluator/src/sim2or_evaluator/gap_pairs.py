"""Pairs: the same scenario, acted by the same, in two engines; and refusing what cannot be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim2or.errors import JobError

from sim2or_evaluator.trials import (
    UNNAMED,
    Recorded,
    Trial,
    read_trials,
    refuse_duplicates,
    refuse_mixtures,
    refuse_other_lists,
)

REPLAY = "replay"
SHOWN_SEEDS = 5


@dataclass(frozen=True, order=True)
class Subject:
    """Who acted.

    Attributes:
        actor: "policy", "expert", "random" or "replay".
        artifact: Digest of the policy; "" for other actors.
        commands: Digest of what was replayed; "" for other actors.
        latency_ticks: How late the actor's answers arrived.
    """

    actor: str
    artifact: str
    commands: str
    latency_ticks: int

    @classmethod
    def of(cls, recorded: Recorded) -> Subject:
        """Who acted in a trial."""
        trial = recorded.trial
        return cls(trial.actor, trial.artifact, trial.commands, int(trial.metrics.get("latency_ticks", 0)))

    def __str__(self) -> str:
        what = self.artifact or self.commands
        late = f" with answers {self.latency_ticks} ticks late" if self.latency_ticks else ""
        return f"{self.actor}{f' of {what}' if what else ''}{late}"


@dataclass(frozen=True)
class Pair:
    """The trials of one scenario in both engines."""

    reference: Recorded
    other: Recorded

    def later_s(self, event: str) -> float | None:
        """How much later an event happened in the other engine [s]; None if it did not happen in both."""
        one, two = happened_s(self.reference.trial, event), happened_s(self.other.trial, event)
        return None if one is None or two is None else two - one


@dataclass(frozen=True)
class Side:
    """The trials in one engine.

    Attributes:
        engine: Its name.
        groups: Who acted, to the trials in the order of their seeds.
    """

    engine: str
    groups: Mapping[Subject, Sequence[Recorded]]


def happened_s(trial: Trial, event: str) -> float | None:
    """When an event of the hand-over happened [s]; None if it did not. "success" ends a trial."""
    if event == "success":
        return trial.time_s if trial.success else None
    return trial.metrics.get(f"{event}_s")


def read_side(role: str, directories: Sequence[Path], name: str, lists: Mapping[str, range]) -> Side:
    """Reads the trials of one engine.

    Args:
        role: The input, for messages.
        directories: Rollouts.
        name: The scenario list that they must come from.
        lists: The task's lists, as ranges of seeds.

    Raises:
        JobError: There are none, of an unknown engine, of several engines, physics or rooms, of another list,
            or one occurs twice.
    """
    trials = read_trials(directories)
    if not trials:
        raise JobError(f"gap: the input {role!r} holds no trial; run `rollout` first")
    refuse_other_lists(trials, name, lists)
    for recorded in trials:
        if not recorded.trial.engine:
            raise JobError(f"{recorded.place}: names no engine; it is of an older rollout: roll out again")
    refuse_mixtures(trials, f"the input {role!r}")
    groups: dict[Subject, list[Recorded]] = {}
    for recorded in trials:
        groups.setdefault(Subject.of(recorded), []).append(recorded)
    for group in groups.values():
        refuse_duplicates(group)
    return Side(trials[0].trial.engine, groups)


def pair_up(reference: Side, other: Side) -> dict[Subject, list[Pair]]:
    """Pairs the trials by who acted and by scenario.

    Raises:
        JobError: Somebody acted in one engine only, or in other scenarios.
    """
    for ours, theirs, role in ((reference, other, "other"), (other, reference, "reference")):
        alone = sorted(set(ours.groups) - set(theirs.groups))
        if alone:
            found = "; ".join(str(subject) for subject in sorted(theirs.groups))
            raise JobError(
                f"gap: {alone[0]} acted in {ours.engine} but not among the rollouts of the input {role!r} "
                f"({theirs.engine}), which has: {found}. Both engines need the same actor, artifact, "
                "commands and latency"
            )
    return {subject: _pairs(reference, other, subject) for subject in sorted(reference.groups)}


def _pairs(reference: Side, other: Side, subject: Subject) -> list[Pair]:
    mine = {recorded.trial.seed: recorded for recorded in reference.groups[subject]}
    theirs = {recorded.trial.seed: recorded for recorded in other.groups[subject]}
    if mine.keys() != theirs.keys():
        lonely = sorted(mine.keys() ^ theirs.keys())
        shown = ", ".join(map(str, lonely[:SHOWN_SEEDS])) + (", …" if len(lonely) > SHOWN_SEEDS else "")
        raise JobError(
            f"gap: {subject}: {len(lonely)} scenarios have a trial in one engine only (seeds {shown}): "
            f"{reference.engine} has {len(mine)}, {other.engine} {len(theirs)}; "
            "pass every shard of both rollouts, with the same list, trials and offset"
        )
    pairs = [Pair(mine[seed], theirs[seed]) for seed in sorted(mine)]
    for pair in pairs:
        _refuse_other_scenario(pair)
    return pairs


def _refuse_other_scenario(pair: Pair) -> None:
    rooms = pair.reference.trial.room, pair.other.trial.room
    if rooms[0] != rooms[1]:
        raise JobError(
            f"{pair.other.place}: room={rooms[1]!r}, but {pair.reference.place} has room={rooms[0]!r}; only "
            f"the engine may differ: roll out both in one room ({UNNAMED['room']})"
        )
    one, two = pair.reference.trial.scenario, pair.other.trial.scenario
    if one != two:
        keys = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
        raise JobError(
            f"{pair.other.place}: seed={pair.other.trial.seed} is another scenario than at "
            f"{pair.reference.place} (differs in {', '.join(keys)}); the task has changed between the "
            "rollouts: roll out both again"
        )
