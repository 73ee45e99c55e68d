"""Pipelines: a small YAML file of stages, validated before any work starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from sim2or.consistency import profile_findings, spec_findings, step_findings
from sim2or.errors import ConfigError, choices
from sim2or.explanation import Problem, explain
from sim2or.messages.message import Spec
from sim2or.stages import ANY, Role, StageInfo, Table
from sim2or.step import Source, Step

FILLED = {"wall_s", "summaries"}
"""Fields of a configuration that only the runner can know."""

STORED = "sha256:"
"""How the digest of an artifact begins."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Input = Annotated[str, Field(pattern=r"^([a-z][a-z0-9_-]{0,62}|sha256:[0-9a-f]{64})$")]
"""A step, or an artifact that the store has already."""


class StepConfig(Spec):
    """One entry of ``stages:``.

    Attributes:
        id: Names the step in this pipeline; the stage's name by default.
        stage: Which stage runs.
        inputs: Role to the step, or steps, whose artifacts go there, or to the digest of what is stored.
        each: One job for each job of that step, started as soon as that one is done.
        shards: Divides the work into so many jobs.
        config: The stage's configuration (``with:`` in the file).
        seed: Overrides the pipeline's seed.
    """

    id: Name = ""
    stage: Name
    inputs: dict[Name, Input | tuple[Input, ...]] = Field(default_factory=dict)
    each: str = ""
    shards: Annotated[int, Field(ge=1, le=1000)] = 1
    config: dict[str, Any] = Field(default_factory=dict, alias="with")
    seed: Annotated[int, Field(ge=0)] | None = None


class PipelineConfig(Spec):
    """The file.

    Attributes:
        name: Names the pipeline and, by default, its run directory.
        robot: Robot profile, given to every stage that asks for one.
        task: Task profile, likewise.
        seed: Seed, likewise.
        stages: The steps, in any order.
    """

    name: Name
    robot: str = "so101"
    task: str = "handover"
    seed: Annotated[int, Field(ge=0)] = 0
    stages: Annotated[tuple[StepConfig, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Pipeline:
    """A validated pipeline: steps in an order in which each comes after what it needs."""

    name: str
    robot: str
    task: str
    seed: int
    path: Path
    steps: tuple[Step, ...]

    def until(self, name: str) -> Pipeline:
        """The part of the pipeline that a step needs, and that step.

        Args:
            name: The step's id, or its stage's name.

        Raises:
            ConfigError: No such step.
        """
        wanted = {step.id for step in self.steps if name in (step.id, step.info.name)}
        if not wanted:
            names = {step.id for step in self.steps}
            raise ConfigError(f"{self.path}: --until: unknown step {name!r}; {choices(name, names)}")
        for step in reversed(self.steps):
            if step.id in wanted:
                wanted |= step.before
        steps = tuple(step for step in self.steps if step.id in wanted)
        return Pipeline(self.name, self.robot, self.task, self.seed, self.path, steps)

    def ancestors(self, name: str) -> set[str]:
        """Ids of everything that a step needs, directly or through others."""
        found: set[str] = set()
        for step in reversed(self.steps):
            if step.id == name or step.id in found:
                found |= step.before
        return found

    @property
    def services(self) -> set[str]:
        """The services that it needs."""
        return {name for step in self.steps for name in (step.info.service, *step.info.needs)}


def load_pipeline(path: Path, table: Table) -> Pipeline:
    """Reads and validates a pipeline file.

    Raises:
        ConfigError: One line for everything that is wrong, naming file, line, key, value and what is valid.
    """
    text = _read(path)
    try:
        content = yaml.safe_load(text)
        lines = _Lines(path, yaml.compose(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a pipeline is a mapping; {choices('', _keys(PipelineConfig))}")
    try:
        config = PipelineConfig.model_validate(_with_ids(content))
    except ValidationError as error:
        raise lines.error(explain(error, PipelineConfig)) from error
    problems = list(_profile_problems(config))
    steps, more = _steps(config, table)
    problems += more
    if not problems:
        problems += _disagreements(config, steps)
    if not problems:
        steps, more = _ordered(steps)
        problems += more
    if problems:
        raise lines.error(problems)
    return Pipeline(config.name, config.robot, config.task, config.seed, path, tuple(steps))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"; {choices(path.name, near)}" if near else f"; there is no directory {str(path.parent)!r}"
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _keys(cls: type[Spec]) -> list[str]:
    return [field.alias or name for name, field in cls.model_fields.items()]


def _with_ids(content: Mapping[str, Any]) -> dict[str, Any]:
    """Gives every step an id: its stage's name where it has none."""
    stages = content.get("stages")
    if not isinstance(stages, list):
        return dict(content)
    named = [
        {"id": item["stage"]} | item
        if isinstance(item, dict) and isinstance(item.get("stage"), str)
        else item
        for item in stages
    ]
    return {**content, "stages": named}


def _profile_problems(config: PipelineConfig) -> Iterator[Problem]:
    for key, text in profile_findings({"robot": config.robot, "task": config.task}):
        yield Problem(key, (key,), text)


def _disagreements(config: PipelineConfig, steps: list[Step]) -> Iterator[Problem]:
    """What is impossible in one step's configuration, and what steps say differently about the same thing."""
    by_id = {step.id: step for step in steps}
    for number, given in enumerate(config.stages):
        step = by_id[given.id]
        for key, text in (
            *spec_findings(step.info.name, step.spec, given.shards),
            *step_findings(step, by_id),
        ):
            of_step = key == "shards" or key.startswith("inputs.")
            yield _problem(number, key if of_step else f"with.{key}", text)


def _steps(config: PipelineConfig, table: Table) -> tuple[list[Step], list[Problem]]:
    problems: list[Problem] = []
    infos: dict[str, StageInfo] = {}
    for number, step in enumerate(config.stages):
        if step.id in infos:
            problems.append(_problem(number, "id", f"{step.id!r} is used twice; give each step its own id"))
        if step.stage in table.names:
            infos[step.id] = table.stages[step.stage]
        else:
            text = f"unknown stage {step.stage!r}; {choices(step.stage, table.names)}"
            problems.append(_problem(number, "stage", text))
    counts = _counts(config)
    ids = {step.id for step in config.stages}
    steps = []
    for number, step in enumerate(config.stages):
        if step.id not in infos:
            continue
        info = infos[step.id]
        spec, spec_problems = _spec(number, step, info, config)
        inputs, input_problems = _inputs(number, step, info, spec, infos, counts, ids)
        problems += spec_problems + input_problems + _shard_problems(number, step, info)
        fills = frozenset(FILLED & set(info.spec_class().model_fields) - set(step.config))
        row = table.asked(info.name, spec)
        steps.append(Step(step.id, row, spec, inputs, step.each, counts[step.id], fills))
    return steps, problems


def _counts(config: PipelineConfig) -> dict[str, int]:
    """Jobs of each step; a step with ``each`` has as many as the step it follows."""
    by_id = {step.id: step for step in config.stages}

    def count(step: StepConfig, seen: tuple[str, ...] = ()) -> int:
        if step.each not in by_id or step.each in seen:
            return step.shards
        return count(by_id[step.each], (*seen, step.id))

    return {step.id: count(step) for step in config.stages}


def _spec(
    number: int, step: StepConfig, info: StageInfo, config: PipelineConfig
) -> tuple[dict[str, Any], list[Problem]]:
    cls = info.spec_class()
    seed = config.seed if step.seed is None else step.seed
    common = {"robot": config.robot, "task": config.task, "seed": seed}
    given = {key: value for key, value in common.items() if key in cls.model_fields} | step.config
    if step.seed is not None and "seed" not in cls.model_fields:
        return {}, [_problem(number, "seed", f"stage {info.name!r} has no seed: remove it")]
    try:
        # Through JSON, which is what the service will read: both places accept the same values.
        return cls.model_validate_json(json.dumps(given, default=str)).model_dump(mode="json"), []
    except ValidationError as error:
        at = ("stages", number, "with")
        found = explain(error, cls, f"stages[{number}].with")
        return {}, [Problem(p.where, (*at, *p.path), p.text) for p in found]


def _inputs(
    number: int,
    step: StepConfig,
    info: StageInfo,
    spec: Mapping[str, Any],
    infos: Mapping[str, StageInfo],
    counts: Mapping[str, int],
    known: set[str],
) -> tuple[dict[str, tuple[Source, ...]], list[Problem]]:
    problems = []
    found: dict[str, tuple[Source, ...]] = {}
    for role, given in step.inputs.items():
        key = f"inputs.{role}"
        if role not in info.inputs and ANY not in info.inputs:
            problems.append(
                _problem(number, key, f"unknown input of {info.name!r}; {choices(role, info.inputs)}")
            )
            continue
        rule = info.inputs.get(role) or info.inputs[ANY]
        names = (given,) if isinstance(given, str) else given
        sources = []
        for name in names:
            if name.startswith(STORED):
                sources.append(Source("", name))
                continue
            if name not in infos:
                if name not in known:
                    problems.append(_problem(number, key, f"unknown step {name!r}; {choices(name, known)}"))
                continue
            source = _source(name, infos[name], rule)
            if isinstance(source, str):
                problems.append(_problem(number, key, source))
            else:
                sources.append(source)
        total = sum(1 if source.step in ("", step.each) else counts[source.step] for source in sources)
        if total > 1 and not rule.many:
            problems.append(_problem(number, key, f"takes one artifact, but {list(names)} give {total}"))
        found[role] = tuple(sources)
    for role, rule in info.inputs.items():
        if role not in step.inputs and (rule.required or _asked_for(rule, spec)):
            reason = f" with {rule.when[0]}: {rule.when[1]}" if rule.when else ""
            text = f"missing input {role!r} of {info.name!r}{reason}: {_providers(rule, infos)}"
            problems.append(_problem(number, "inputs", text))
    return found, problems


def _asked_for(rule: Role, spec: Mapping[str, Any]) -> bool:
    return rule.when is not None and spec.get(rule.when[0]) == rule.when[1]


def _source(name: str, info: StageInfo, rule: Role) -> Source | str:
    outputs = [output for output, kind in info.outputs.items() if rule.takes(kind)]
    if len(outputs) == 1:
        return Source(name, outputs[0])
    made = ", ".join(info.outputs.values())
    if outputs:
        return f"{name!r} makes several artifacts that fit ({made})"
    return f"{name!r} makes {made}, but this input takes {' or '.join(rule.kinds)}"


def _providers(rule: Role, infos: Mapping[str, StageInfo]) -> str:
    fitting = [
        name for name, info in infos.items() if any(rule.takes(kind) for kind in info.outputs.values())
    ]
    return f"it takes {' or '.join(rule.kinds)}, made here by {', '.join(fitting) or 'no step'}"


def _shard_problems(number: int, step: StepConfig, info: StageInfo) -> list[Problem]:
    problems = []
    if step.shards > 1 and not info.shardable:
        problems.append(
            _problem(number, "shards", f"stage {info.name!r} cannot be divided: remove it or give 1")
        )
    if step.each:
        uses = {
            name for given in step.inputs.values() for name in ([given] if isinstance(given, str) else given)
        }
        if step.each not in uses:
            problems.append(
                _problem(number, "each", f"{step.each!r} is none of its inputs; {choices(step.each, uses)}")
            )
        if step.shards > 1:
            problems.append(_problem(number, "shards", "a step with 'each' has one job per job of that step"))
    return problems


def _ordered(steps: list[Step]) -> tuple[list[Step], list[Problem]]:
    by_id = {step.id: step for step in steps}
    try:
        order = list(TopologicalSorter({step.id: sorted(step.before) for step in steps}).static_order())
    except CycleError as error:
        circle = " → ".join(reversed(error.args[1]))
        return [], [Problem("stages", ("stages",), f"the steps wait for each other: {circle}")]
    # The file's own order among what is ready, so that plans read as they were written.
    depth: dict[str, int] = {}
    for name in order:
        depth[name] = max((depth[before] + 1 for before in by_id[name].before), default=0)
    return sorted(steps, key=lambda step: depth[step.id]), []


def _problem(number: int, key: str, text: str) -> Problem:
    path: tuple[str | int, ...] = ("stages", number, *key.split("."))
    return Problem(f"stages[{number}].{key}", path, text)


class _Lines:
    """Finds the line of a key in the file."""

    def __init__(self, path: Path, root: yaml.Node | None) -> None:
        self._path = path
        self._root = root

    def error(self, problems: list[Problem]) -> ConfigError:
        """All problems, one a line."""
        return ConfigError("\n".join(f"{self._path}:{self._line(p.path)}: {p}" for p in problems))

    def _line(self, path: tuple[str | int, ...]) -> int:
        node, line = self._root, 1
        for part in path:
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = node.start_mark.line + 1
            elif isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == str(part)]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            else:
                break
        return line
