"""The table of stages and services: what exists, what fits what, and who runs it.

Only names are kept here, so that a pipeline is validated without importing torch or a simulator.

A stage may have variants: with some value of its configuration (``engine: isaaclab``) another service
answers, from a queue of its own (``collect-isaaclab``). Pipelines name the stage, ``Table.asked`` chooses.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sim2or.errors import ConfigError, choices
from sim2or.messages.message import Spec
from sim2or.stage import Stage

ANY = "*"


@dataclass(frozen=True)
class Role:
    """An input of a stage.

    Attributes:
        kinds: Artifact kinds it takes; ``ANY`` takes all.
        many: Whether it takes several artifacts.
        required: Whether the stage always needs it.
        when: (key, value) of the configuration with which an optional input is needed.
    """

    kinds: tuple[str, ...]
    many: bool = False
    required: bool = True
    when: tuple[str, str] | None = None

    def takes(self, kind: str) -> bool:
        """Whether an artifact of this kind fits."""
        return kind in self.kinds or ANY in self.kinds


@dataclass(frozen=True)
class StageInfo:
    """A stage as pipelines know it.

    Attributes:
        name: For example ``"collect"``.
        service: The service that offers it.
        spec: ``module:Class`` of its configuration, free of heavy imports.
        entry: ``module:name`` of its ``Stage``, of a mapping from names to stages, or of its ``run``.
        inputs: Role to what fits there; the role ``ANY`` allows roles of any name.
        outputs: Role to artifact kind.
        shardable: Whether ``shards: N`` divides its work.
        needs: Servers that must run beside it.
        warm_after: The stage whose first job tells a worker to import this stage's code; "" imports at start.
        phase: The part of the work that people count its time to; its own name by default.
        stall_s: A job without progress for so long hangs and is retried [s]; 0: ``SIM2OR_STALL_S`` decides.
        when: (key, value) of the configuration that this row is for; None: whatever no other row is for.
    """

    name: str
    service: str
    spec: str
    entry: str
    inputs: Mapping[str, Role] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    shardable: bool = False
    needs: tuple[str, ...] = ()
    warm_after: str = ""
    phase: str = ""
    stall_s: float = 0.0
    when: tuple[str, str] | None = None

    @property
    def queue(self) -> str:
        """Names its jobs' queue, and with it the row: ``"collect"``, ``"collect-isaaclab"``."""
        return f"{self.name}-{self.when[1]}" if self.when else self.name

    def spec_class(self) -> type[Spec]:
        """The pydantic class of the stage's configuration."""
        found = load(self.spec)
        if not (isinstance(found, type) and issubclass(found, Spec)):
            raise ConfigError(f"stage {self.name!r}: {self.spec} is not a Spec")
        return found

    def load_stage(self) -> Stage[Any]:
        """Imports the stage's code, which may be heavy.

        Raises:
            ConfigError: It does not exist, or is another stage than the table says.
        """
        found = load(self.entry)
        stage = found.get(self.name) if isinstance(found, Mapping) else found
        if callable(stage) and not isinstance(stage, Stage):
            return Stage(self.name, self.spec_class(), stage)
        if not isinstance(stage, Stage) or stage.name != self.name or stage.spec is not self.spec_class():
            raise ConfigError(f"stage {self.name!r}: {self.entry} is not its Stage with {self.spec}")
        return stage


@dataclass(frozen=True)
class ServiceInfo:
    """A service as the supervisor starts it.

    Attributes:
        name: For example ``"sim"``.
        module: Python module to run.
        command: Its arguments.
        count: How many processes by default.
        threads: Threads for numeric libraries in each; 0 leaves all cores to it.
        lock: Name of its locked requirements.
        environment: Directory of its own Python environment beside the supervisor's; "": the same one. Such a
            service is started only where it is asked for.
        setup: The command that makes that environment.
    """

    name: str
    module: str
    command: tuple[str, ...] = ("serve",)
    count: int = 1
    threads: int = 1
    lock: str = "dev"
    environment: str = ""
    setup: str = ""


def _stage(name: str, service: str, entry: str, **rest: Any) -> StageInfo:
    return StageInfo(
        name=name,
        service=service,
        spec=f"sim2or.messages.{name}:{name.capitalize()}Spec",
        entry=f"sim2or_{service}.{entry}",
        **rest,
    )


STAGES: tuple[StageInfo, ...] = (
    _stage(
        "collect",
        "sim",
        "collect:STAGE",
        outputs={"episodes": "episodes"},
        shardable=True,
        stall_s=1800,
    ),
    StageInfo(
        name="import",
        service="dataset",
        spec="sim2or.messages.recording:ImportSpec",
        entry="sim2or_dataset.importers.stage:STAGE",
        inputs={"recording": Role(("recording",), many=True)},
        outputs={"episodes": "episodes"},
        warm_after="import",
        phase="dataset",
    ),
    _stage(
        "convert",
        "dataset",
        "stage:STAGES",
        inputs={"episodes": Role(("episodes",), many=True)},
        outputs={"part": "dataset-part"},
        warm_after="collect",
        phase="dataset",
    ),
    _stage(
        "dataset",
        "dataset",
        "stage:STAGES",
        inputs={"parts": Role(("dataset-part",), many=True)},
        outputs={"dataset": "dataset"},
        warm_after="collect",
    ),
    _stage(
        "train",
        "trainer",
        "stage:STAGES",
        inputs={"dataset": Role(("dataset",))},
        outputs={"checkpoint": "checkpoint"},
        warm_after="convert",
        stall_s=1800,
    ),
    _stage(
        "export",
        "exporter",
        "export:STAGE",
        inputs={"checkpoint": Role(("checkpoint",)), "dataset": Role(("dataset",), required=False)},
        outputs={"model": "exported-model"},
        warm_after="train",
    ),
    _stage(
        "rollout",
        "sim",
        "rollout:run",
        inputs={
            "policy": Role(("checkpoint", "exported-model"), required=False, when=("actor", "policy")),
            "commands": Role(("rollouts", "episodes"), many=True, required=False, when=("actor", "replay")),
        },
        outputs={"episodes": "rollouts"},
        shardable=True,
        needs=("policy",),
        phase="evaluate",
        stall_s=1800,
    ),
    _stage(
        "evaluate",
        "evaluator",
        "evaluate:STAGE",
        inputs={
            "trials": Role(("rollouts",), many=True),
            "model": Role(("exported-model",), many=True),
            "expert": Role(("rollouts",), many=True, required=False),
            "random": Role(("rollouts",), many=True, required=False),
            "torch": Role(("rollouts",), many=True, required=False),
        },
        outputs={"verdict": "verdict"},
        warm_after="rollout",
    ),
    _stage(
        "gap",
        "evaluator",
        "gap:STAGE",
        inputs={
            "reference": Role(("rollouts",), many=True),
            "other": Role(("rollouts",), many=True),
        },
        outputs={"gap": "gap"},
        warm_after="rollout",
    ),
    StageInfo(
        name="reinforce",
        service="rl",
        spec="sim2or.messages.reinforce:ReinforceSpec",
        entry="sim2or_sim.rl.stage:STAGE",
        inputs={"checkpoint": Role(("rl-checkpoint",), required=False)},
        outputs={"checkpoint": "rl-checkpoint", "model": "exported-model"},
        phase="train",
        stall_s=1800,
    ),
    _stage(
        "deploy",
        "bridge",
        "deploy:run",
        inputs={"model": Role(("exported-model",)), "verdict": Role(("verdict",))},
        outputs={"deployment": "deployment"},
        needs=("policy", "robot"),
    ),
    _stage(
        "report",
        "evaluator",
        "report:STAGE",
        inputs={ANY: Role((ANY,), many=True, required=False)},
        outputs={"report": "report"},
        warm_after="rollout",
    ),
)

STAGES += tuple(
    replace(info, service="sim-isaaclab", when=("engine", "isaaclab"))
    for info in STAGES
    if info.service in ("sim", "rl")
)

SERVICES: tuple[ServiceInfo, ...] = (
    ServiceInfo("sim", "sim2or_sim", count=2, lock="sim"),
    ServiceInfo(
        "sim-isaaclab",
        "sim2or_sim",
        command=("serve-isaaclab",),
        lock="isaac",
        environment=".venv-isaac",
        setup="make setup-isaac",
    ),
    ServiceInfo("rl", "sim2or_sim", command=("serve-rl",), threads=0, lock="rl"),
    ServiceInfo("dataset", "sim2or_dataset", lock="learn"),
    ServiceInfo("trainer", "sim2or_trainer", threads=0, lock="learn"),
    ServiceInfo("exporter", "sim2or_exporter", lock="learn"),
    ServiceInfo("evaluator", "sim2or_evaluator", lock="eval"),
    ServiceInfo("bridge", "sim2or_bridge", lock="bridge"),
    ServiceInfo("policy", "sim2or_policy", lock="learn"),
    ServiceInfo("robot", "sim2or_sim", command=("robot",), lock="sim"),
)


@dataclass(frozen=True)
class Table:
    """Every stage, by its queue, and every service, by its name, that this installation has."""

    stages: Mapping[str, StageInfo]
    services: Mapping[str, ServiceInfo]

    @property
    def names(self) -> tuple[str, ...]:
        """The stages that a pipeline may name."""
        return tuple(info.name for info in self.stages.values() if info.when is None)

    def stage(self, queue: str) -> StageInfo:
        """Finds the row of a queue.

        Raises:
            ConfigError: There is none of that name.
        """
        if queue not in self.stages:
            raise ConfigError(f"stage: unknown stage {queue!r}; {choices(queue, self.stages)}")
        return self.stages[queue]

    def asked(self, name: str, spec: Mapping[str, Any]) -> StageInfo:
        """The row of a stage that answers a configuration."""
        variants = (info for info in self.stages.values() if info.name == name and info.when)
        found = (info for info in variants if info.when and spec.get(info.when[0]) == info.when[1])
        return next(found, self.stages[name])

    def of_service(self, service: str) -> dict[str, StageInfo]:
        """The stages that a service offers."""
        return {name: info for name, info in self.stages.items() if info.service == service}


def load_table(plugins: str = "") -> Table:
    """Builds the table: ours, and those of the plugin modules.

    Args:
        plugins: Comma-separated modules with ``STAGES`` and ``SERVICES`` tuples.

    Raises:
        ConfigError: A plugin cannot be imported.
    """
    stages, services = list(STAGES), list(SERVICES)
    for name in filter(None, (part.strip() for part in plugins.split(","))):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"SIM2OR_PLUGINS: cannot import {name!r}: {error}") from error
        stages += getattr(module, "STAGES", ())
        services += getattr(module, "SERVICES", ())
    return Table({info.queue: info for info in stages}, {info.name: info for info in services})


def load(reference: str) -> Any:
    """Imports ``module:name``.

    Raises:
        ConfigError: The module or the name does not exist.
    """
    module_name, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load {reference}: {error}") from error
