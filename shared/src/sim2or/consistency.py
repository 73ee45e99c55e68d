"""Consistency: whether what stages are asked for exists, and whether the steps of a pipeline agree about it.

A configuration can be well-formed and still impossible: scenarios that a list does not hold, more shards than
work, a verdict about other trials than those that its rollouts make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sim2or.contracts.robot import load_robot
from sim2or.contracts.room import check_reference
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError
from sim2or.step import Step

type Spec = Mapping[str, Any]
type Finding = tuple[str, str]
"""The key of the configuration that is wrong, and what is wrong with it."""

LIST_KEYS = {"collect": ("seed_list", "demos"), "rollout": ("list", "trials"), "deploy": ("list", "trials")}
"""Stage to the keys that name its scenario list and count what it takes of it."""

ACTORS = {"trials": "policy", "torch": "policy", "expert": "expert", "random": "random"}
"""Input role of the evaluate stage to the actor whose trials go there."""


def spec_findings(stage: str, spec: Spec, shards: int = 1) -> Iterator[Finding]:
    """Looks at one stage's configuration: profiles, room, scenario lists, divisibility.

    Args:
        stage: The stage's name; stages of plugins have their profiles checked only.
        spec: Its complete, valid configuration.
        shards: How many jobs share the work.
    """
    profiles = list(profile_findings(spec))
    yield from profiles
    yield from _room_findings(spec)
    if stage in LIST_KEYS:
        list_key, count_key = LIST_KEYS[stage]
        if not any(key == "task" for key, _ in profiles):
            yield from _list_findings(spec, list_key, count_key)
        if shards > spec[count_key]:
            text = f"{shards} jobs share {count_key}: {spec[count_key]}, some would have nothing to do"
            yield "shards", f"{text}; valid: 1…{spec[count_key]}"
    elif stage == "evaluate" and not profiles:
        yield from _list_findings(spec, "scenarios", "trials")


def profile_findings(spec: Spec) -> Iterator[Finding]:
    """Looks for the robot and the task that a configuration names, and whether the task is for that robot."""
    robot = task = None
    try:
        robot = load_robot(spec["robot"]) if "robot" in spec else None
    except ConfigError as error:
        yield "robot", str(error).removeprefix("robot: ")
    try:
        task = load_task(spec["task"]) if "task" in spec else None
    except ConfigError as error:
        yield "task", str(error).removeprefix("task: ")
    if robot and task and task.robot != robot.name:
        text = f"task {task.name!r} is for the robot {task.robot!r}, not {robot.name!r}"
        yield "task", f"{text}; name a task profile for {robot.name!r}"


def _room_findings(spec: Spec) -> Iterator[Finding]:
    """Looks for the room that a configuration names; files of a path are the worker's to find."""
    try:
        if spec.get("room"):
            check_reference(spec["room"])
    except ConfigError as error:
        yield "room", str(error).removeprefix("room: ")


def step_findings(step: Step, steps: Mapping[str, Step]) -> Iterator[Finding]:
    """Looks at a step beside the steps whose artifacts it takes.

    Args:
        step: Validated on its own.
        steps: Every step of the pipeline, by id.
    """
    if step.info.name == "evaluate":
        yield from _evaluate_findings(step, steps)
    if step.info.name == "deploy":
        yield from _deploy_findings(step, steps)
    if step.info.name == "gap":
        yield from _gap_findings(step, steps)


def _list_findings(spec: Spec, list_key: str, count_key: str) -> Iterator[Finding]:
    task = load_task(spec["task"])
    try:
        chosen = task.scenario_list(spec[list_key])
    except ConfigError as error:
        yield list_key, str(error)
        return
    asked, offset = spec[count_key] or 0, spec.get("offset", 0)
    if asked + offset > chosen.count:
        yield (
            count_key,
            f"{asked} scenarios from offset {offset} of the list {spec[list_key]!r}, "
            f"which holds {chosen.count} (seeds {chosen.first_seed}…{chosen.end_seed - 1})",
        )


def _evaluate_findings(step: Step, steps: Mapping[str, Step]) -> Iterator[Finding]:
    """A verdict's trials: of the list, the task and the actors that it says, as many, about its models."""
    spec = step.spec
    for role, actor in ACTORS.items():
        for source in _sources(step, role, steps, "rollout"):
            for key, theirs, ours in (
                ("scenarios", "list", spec["scenarios"]),
                ("task", "task", spec["task"]),
            ):
                if source.spec[theirs] != ours:
                    yield key, f"{ours!r}, but {role} {source.id!r} has {theirs}: {source.spec[theirs]!r}"
            if source.spec["actor"] != actor:
                text = f"{source.id!r} has actor: {source.spec['actor']}; valid: {actor}"
                yield f"inputs.{role}", text
    trials = _sources(step, "trials", steps, "rollout")
    models = _sources(step, "model", steps, "export")
    counts = {model.id: 0 for model in models}
    for source in trials:
        policies = [origin.step for origin in source.inputs.get("policy", ()) if origin.step]
        for policy in policies:
            if models and policy not in counts:
                text = f"{source.id!r} rolls out {policy!r}; valid: {', '.join(counts)}"
                yield "inputs.trials", text
            counts[policy] = counts.get(policy, 0) + source.spec["trials"]
    for model, count in counts.items():
        if spec["trials"] is not None and trials and count != spec["trials"]:
            yield "trials", f"{spec['trials']}, but the rollouts of {model!r} make {count}"
    if models and len(models) != spec["models"]:
        names = ", ".join(model.id for model in models)
        yield "models", f"{spec['models']}, but {len(models)} are given: {names}"


def _deploy_findings(step: Step, steps: Mapping[str, Step]) -> Iterator[Finding]:
    """A deployment's verdict: about its task and about the scenarios that its gate asks for."""
    for verdict in _sources(step, "verdict", steps, "evaluate"):
        if verdict.spec["task"] != step.spec["task"]:
            yield "task", f"{step.spec['task']!r}, but {verdict.id!r} is about {verdict.spec['task']!r}"
        gate = step.spec.get("gate_scenarios", verdict.spec["scenarios"])
        if verdict.spec["scenarios"] != gate:
            yield "gate_scenarios", f"{gate!r}, but {verdict.id!r} has {verdict.spec['scenarios']!r}"


def _gap_findings(step: Step, steps: Mapping[str, Step]) -> Iterator[Finding]:
    """A gap's trials: of the list, the task and the robot that it says, all in one room."""
    rooms: dict[str, str] = {}
    for role in ("reference", "other"):
        for source in _sources(step, role, steps, "rollout"):
            for ours, theirs in (("scenarios", "list"), ("task", "task"), ("robot", "robot")):
                if source.spec[theirs] != step.spec[ours]:
                    text = f"{step.spec[ours]!r}, but {role} {source.id!r} has {theirs}"
                    yield ours, f"{text}: {source.spec[theirs]!r}"
            room = source.spec.get("room", "")
            first = next(iter(rooms), room)
            if room != first:
                text = f"{source.id!r} has room: {room!r}, but {rooms[first]!r} has room: {first!r}"
                yield f"inputs.{role}", f"{text}; only the engine may differ: name one room in all of them"
            rooms.setdefault(room, source.id)


def _sources(step: Step, role: str, steps: Mapping[str, Step], stage: str) -> Sequence[Step]:
    found = [steps[source.step] for source in step.inputs.get(role, ()) if source.step]
    return [source for source in found if source.info.name == stage]
