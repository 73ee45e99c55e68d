"""A plan: a pipeline with everything that a pod must know to do its part alone.

A pod has its own service's code and no bus. It finds its inputs by the keys of the questions that came before
its own, and these name the code of other services, which is not in its image: the plan brings their digests.
``sim2or k8s render`` writes it into a ConfigMap. A plan may leave the digests out for steps without inputs;
they are then those of the image, whatever it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import starmap
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from sim2or.code_digest import code_digest, codes_digest, locks_digest
from sim2or.errors import ConfigError, TransientError, choices
from sim2or.messages.job import Job, JobRecord, JobResult
from sim2or.messages.message import Spec
from sim2or.pipeline import Input, Name, Pipeline
from sim2or.runner import StepState, result_key, summaries, wall_times_s
from sim2or.settings import result_variables
from sim2or.stages import Table
from sim2or.step import Source, Step
from sim2or.worker import parse_spec


class PlannedStep(Spec):
    """A step and the digests that its result keys need.

    Attributes:
        id: Names it in the plan.
        stage: Its stage's queue.
        spec: Its configuration.
        inputs: Role to (step, output) of what goes there; ("", digest) for what is stored already.
        each: The step whose jobs it follows one by one, or "".
        jobs: How many jobs it is.
        fills: Fields of the configuration that come from the finished steps before it.
        service_code: Digest of the code of the service that answers; "": the image's.
        code: Digest of that code and of the servers it needs; "": the image's.
        lock: Digest of the locked requirements; "": the image's.
        settings: Variables of the servers that change the answer.
    """

    id: Name
    stage: Name
    spec: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[Name, tuple[tuple[Name | Literal[""], Input], ...]] = Field(default_factory=dict)
    each: str = ""
    jobs: Annotated[int, Field(ge=1, le=1000)] = 1
    fills: tuple[Name, ...] = ()
    service_code: str = ""
    code: str = ""
    lock: str = ""
    settings: dict[str, str] = Field(default_factory=dict)


class Plan(Spec):
    """A pipeline for pods.

    Attributes:
        run: Names the run.
        again: A random text asks every question anew.
        steps: In an order in which each comes after what it needs.
    """

    run: Name
    again: str = ""
    steps: Annotated[tuple[PlannedStep, ...], Field(min_length=1)]

    def step(self, name: str) -> PlannedStep:
        """Finds a step.

        Raises:
            ConfigError: There is none of that name.
        """
        found = {step.id: step for step in self.steps}
        if name not in found:
            raise ConfigError(f"--step {name!r}: {choices(name, found)}")
        return found[name]


def plan_of(
    pipeline: Pipeline, table: Table, *, run: str, variables: Mapping[str, str] | None = None, again: str = ""
) -> Plan:
    """Plans a pipeline with the code that is installed here.

    Args:
        pipeline: Validated.
        table: Services and their locks.
        run: Names the run.
        variables: Environment of the servers.
        again: A random text asks every question anew.

    Raises:
        ConfigError: The code of a service is not installed here.
    """
    one, several, locks = cache(code_digest), cache(codes_digest), cache(locks_digest)

    def planned(step: Step) -> PlannedStep:
        names = (step.info.service, *step.info.needs)
        services = [table.services[name] for name in names]
        return PlannedStep(
            id=step.id,
            stage=step.info.queue,
            spec=dict(step.spec),
            inputs={role: tuple((s.step, s.output) for s in given) for role, given in step.inputs.items()},
            each=step.each,
            jobs=step.jobs,
            fills=tuple(sorted(step.fills)),
            service_code=one(services[0].module),
            code=several(tuple(service.module for service in services)),
            lock=locks(tuple((service.module, service.lock) for service in services)),
            settings=result_variables(names, variables or {}),
        )

    return Plan(run=run, again=again, steps=tuple(map(planned, pipeline.steps)))


def load_plan(path: Path) -> Plan:
    """Reads a plan, JSON or YAML.

    Raises:
        ConfigError: The file is missing or wrong.
    """
    try:
        return Plan.model_validate_json(json.dumps(yaml.safe_load(path.read_text())))
    except OSError as error:
        raise ConfigError(f"--plan {path}: cannot be read: {error.strerror}") from error
    except (ValidationError, yaml.YAMLError) as error:
        raise ConfigError(f"--plan {path}: {error}; write it with `sim2or k8s render`") from error


class Desk:
    """Asks the questions of a plan and finds what is answered.

    Args:
        plan: The plan.
        table: Every stage there is.
        find: The answer to a key; None where there is none yet.
    """

    def __init__(self, plan: Plan, table: Table, find: Callable[[str], JobRecord | None]) -> None:
        self._plan, self._table, self._find = plan, table, find
        self._steps = {step.id: _step(step, table) for step in plan.steps}
        self._pipeline = Pipeline(plan.run, "", "", 0, Path(), tuple(self._steps.values()))
        self._answers: dict[tuple[str, int], JobRecord] = {}
        self._installed: dict[str, str] = {}

    def job(self, name: str, shard: int) -> Job:
        """The question of one shard of a step.

        Raises:
            ConfigError: No such step or shard.
            TransientError: What it needs is not there yet; names it.
        """
        planned = self._plan.step(name)
        step = self._steps[name]
        if not 0 <= shard < step.jobs:
            raise ConfigError(f"shard {shard} of step {name!r}: there are {step.jobs}, from 0")
        inputs = {role: self._digests(step, sources, shard) for role, sources in step.inputs.items()}
        spec = dict(step.spec) | self._filled(step)
        key = result_key(
            stage=step.info.queue,
            code=planned.code or self._own("code", step),
            lock=planned.lock or self._own("lock", step),
            inputs=inputs,
            spec=spec,
            shard=shard,
            shards=step.jobs,
            settings=planned.settings,
            again=self._plan.again,
        )
        return Job(
            stage=step.info.queue,
            key=key,
            spec=spec,
            inputs=inputs,
            shard=shard,
            shards=step.jobs,
            run_id=self._plan.run,
            name=step.id if step.jobs == 1 else f"{step.id}[{shard}]",
            code=planned.service_code or self._own("service_code", step),
        )

    def answer(self, name: str, shard: int) -> JobRecord:
        """The answer to one shard of a step.

        Raises:
            TransientError: There is none yet; names the shard.
        """
        if (name, shard) not in self._answers:
            job = self.job(name, shard)
            record = self._find(job.key)
            if record is None:
                raise TransientError(
                    f"run {self._plan.run}: {job.name} has no result yet: let its Job finish first "
                    f"(`sim2or k8s run` does one step after the other)"
                )
            self._answers[name, shard] = record
        return self._answers[name, shard]

    def _own(self, what: str, step: Step) -> str:
        """A digest of what is installed here, read once; for plans that leave them out."""
        service = self._table.services[step.info.service]
        if not self._installed:
            self._installed = {
                "code": codes_digest([service.module]),
                "lock": locks_digest([(service.module, service.lock)]),
                "service_code": code_digest(service.module),
            }
        return self._installed[what]

    def _digests(self, step: Step, sources: Iterable[Source], shard: int) -> tuple[str, ...]:
        """The artifacts that go to one role, in order."""
        found: list[str] = []
        for source in sources:
            if not source.step:
                found.append(source.output)
                continue
            numbers = [shard] if source.step == step.each else range(self._steps[source.step].jobs)
            results = [self.answer(source.step, number).result or JobResult() for number in numbers]
            found += [result.outputs[source.output] for result in results]
        return tuple(found)

    def _filled(self, step: Step) -> dict[str, Any]:
        """What only finished steps can tell: their wall times and their summaries."""
        if not step.fills:
            return {}
        before = [self._state(name) for name in self._pipeline.ancestors(step.id)]
        told: dict[str, Any] = {"wall_s": wall_times_s(before), "summaries": summaries(before)}
        return {name: told[name] for name in step.fills}

    def _state(self, name: str) -> StepState:
        records = {shard: self.answer(name, shard) for shard in range(self._steps[name].jobs)}
        starts = {shard: record.started_ms for shard, record in records.items() if record.started_ms}
        return StepState(self._steps[name], records, first_started_ms=starts)


def _step(planned: PlannedStep, table: Table) -> Step:
    info = table.stage(planned.stage)
    return Step(
        id=planned.id,
        info=info,
        spec=parse_spec(info, planned.spec).model_dump(mode="json"),
        inputs={role: tuple(starmap(Source, given)) for role, given in planned.inputs.items()},
        each=planned.each,
        jobs=planned.jobs,
        fills=frozenset(planned.fills),
    )
