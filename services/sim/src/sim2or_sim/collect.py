"""The collect stage: the scripted expert's demonstrations, one committed episode file at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.scenario import Scenario, scenario_list
from sim2or.contracts.task import TaskProfile, load_task
from sim2or.episode import (
    INSTRUMENT_NAMES,
    Episode,
    EpisodeFile,
    EpisodeHeader,
    IndexEntry,
    write_episode,
    write_index,
)
from sim2or.errors import ConfigError, JobError
from sim2or.messages.collect import CollectSpec
from sim2or.stage import Context, Stage, StageResult
from sim2or.worlds.world import Sensed, Truth

from sim2or_sim.backends import make_world
from sim2or_sim.backends.simulation import Simulation

if TYPE_CHECKING:
    from sim2or_sim.expert import Expert


def collect(spec: CollectSpec, context: Context) -> StageResult:
    """Records this shard's demonstrations; what is already committed is kept.

    Raises:
        ConfigError: An unknown robot, task or list, a task of another robot, or more scenarios than exist.
    """
    robot, task = load_robot(spec.robot), load_task(spec.task)
    if task.robot != robot.name:
        raise ConfigError(
            f"task {task.name}: robot = {robot.name!r}; valid: {task.robot!r}, which it is written for"
        )
    scenarios = scenario_list(task, spec.seed_list, spec.demos, spec.offset)
    mine = shard_range(spec.demos, context.shard, context.shards)
    directory = context.work / "episodes"
    directory.mkdir(parents=True, exist_ok=True)
    entries = _committed(directory, mine, scenarios, robot, task)
    demonstrator: Demonstrator | None = None
    try:
        for index in mine:
            context.progress(len(entries), len(mine), "demos", **_counts(entries))
            if index not in entries:
                demonstrator = demonstrator or Demonstrator(spec, robot, task)
                episode = demonstrator.record(index, scenarios[index])
                write_episode(episode, directory)
                entries[index] = episode.index_entry()
    finally:
        if demonstrator:
            demonstrator.close()
    write_index(entries.values(), directory)
    context.progress(len(entries), len(mine), "demos", **_counts(entries))
    return StageResult(outputs={"episodes": directory}, summary=_summary(list(entries.values()), task))


STAGE: Stage[Any] = Stage("collect", CollectSpec, collect)


def shard_range(total: int, shard: int, shards: int) -> range:
    """Which of ``total`` attempts a shard takes: disjoint, covering and even for any number of shards.

    Args:
        total: Attempts of all shards.
        shard: This shard, 0 ≤ shard < shards.
        shards: How many there are.
    """
    return range(total * shard // shards, total * (shard + 1) // shards)


class Demonstrator:
    """A world, its expert and the columns of the episode being recorded.

    Args:
        spec: How demonstrations are recorded.
        robot: The robot.
        task: The task.
    """

    def __init__(self, spec: CollectSpec, robot: RobotProfile, task: TaskProfile) -> None:
        self._spec, self._robot, self._task = spec, robot, task
        self._extra = task.linger_steps if spec.extra_steps is None else spec.extra_steps
        self._world: Simulation = make_world(robot, task, backend=spec.engine)
        self._expert = _expert(spec, robot, task)
        self._recorder = Recorder(robot, task, rows=task.limit_steps + self._extra)

    def record(self, index: int, scenario: Scenario) -> Episode:
        """Runs one attempt to its end, and a little longer when it succeeded.

        Args:
            index: Its number in the collection.
            scenario: Everything random about it.
        """
        world, recorder = self._world, self._recorder
        redraw = np.random.default_rng([scenario.seed, 13]) if self._spec.visuals == "per_frame" else None
        world.reset([scenario])
        self._expert.reset(
            world, 0, scenario, noise_seed=scenario.seed if self._spec.noise_sigma_rad > 0 else None
        )
        recorder.clear()
        truth, lingered = world.truth(), 0
        while not truth.done or (truth.success and lingered < self._extra):
            lingered += truth.done
            if redraw is not None:
                world.redraw_visuals(0, redraw)
            sensed = world.sense()
            label_rad, executed_rad = self._expert.act(world, 0)
            recorder.add(sensed, truth, label_rad)
            world.step(executed_rad[None])
            truth = world.truth()
        return recorder.episode(self._header(index, scenario, truth))

    def close(self) -> None:
        """Frees the world."""
        self._world.close()

    def _header(self, index: int, scenario: Scenario, truth: Truth) -> EpisodeHeader:
        return EpisodeHeader(
            index=index,
            seed=scenario.seed,
            robot=self._robot.name,
            task=self._task.name,
            joints=self._robot.joint_names,
            request=scenario.request,
            parent=f"{self._spec.seed_list}:{scenario.seed}",
            success=truth.success,
            failure=truth.failure,
            control_hz=self._task.control_hz,
            physics_hz=self._task.physics_hz,
            digests={"robot": self._robot.digest(), "task": self._task.digest()},
            scenario=scenario.model_dump(mode="json"),
            metrics={key: float(value) for key, value in truth.facts.items() if np.isfinite(value)},
        )


class Recorder:
    """Columns of one episode, allocated once: images are copied a single time.

    Args:
        robot: Whose joints are recorded.
        task: Whose cameras are recorded.
        rows: The longest episode.
    """

    def __init__(self, robot: RobotProfile, task: TaskProfile, *, rows: int) -> None:
        joints, size = len(robot.joints), (task.images.height_px, task.images.width_px, 3)
        self._columns: dict[str, NDArray[Any]] = {
            "actions_rad": np.empty((rows, joints), np.float32),
            "position_rad": np.empty((rows, joints), np.float32),
            "velocity_radps": np.empty((rows, joints), np.float32),
            "time_s": np.empty(rows, np.float64),
            "instrument": np.empty((rows, len(INSTRUMENT_NAMES)), np.float32),
            "taken": np.empty(rows, np.uint8),
        }
        self._images = {name: np.empty((rows, *size), np.uint8) for name in task.cameras}
        self._rows = 0

    def clear(self) -> None:
        """Starts an episode."""
        self._rows = 0

    def add(self, sensed: Sensed, truth: Truth, label_rad: NDArray[np.float32]) -> None:
        """Adds a row: what was observed, and the action it is labelled with."""
        row = {
            "actions_rad": label_rad,
            "position_rad": sensed.position_rad,
            "velocity_radps": sensed.velocity_radps,
            "time_s": sensed.time_ns / 1e9,
            "instrument": truth.instrument,
            "taken": truth.taken,
        }
        for key, value in row.items():
            self._columns[key][self._rows] = value
        for name, images in self._images.items():
            images[self._rows] = sensed.images[name]
        self._rows += 1

    def episode(self, header: EpisodeHeader) -> Episode:
        """The rows so far; valid until the next ``clear``."""
        columns = {key: values[: self._rows] for key, values in self._columns.items()}
        images = {name: values[: self._rows] for name, values in self._images.items()}
        return Episode(header=header, images=images, **columns)


def _expert(spec: CollectSpec, robot: RobotProfile, task: TaskProfile) -> Expert:
    """Imported late: the expert's kinematics import MuJoCo, which the world must start first."""
    from sim2or_sim.expert import Expert, Noise

    return Expert(robot, task, Noise(rho=spec.noise_rho, sigma_rad=spec.noise_sigma_rad))


def _committed(
    directory: Path, mine: range, scenarios: Sequence[Scenario], robot: RobotProfile, task: TaskProfile
) -> dict[int, IndexEntry]:
    """Episodes of an earlier attempt at the same job; a damaged or foreign file is collected again."""
    found: dict[int, IndexEntry] = {}
    for path in sorted(directory.glob("episode_*.hdf5")):
        try:
            with EpisodeFile(path) as file:
                file.check(robot, task)
                header, entry = file.header, file.index_entry
        except JobError:
            path.unlink()
            continue
        known = header.index in mine and header.scenario == scenarios[header.index].model_dump(mode="json")
        if known and path.name == header.file_name:
            found[header.index] = entry
        else:
            path.unlink()
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink()
    return found


def _counts(entries: dict[int, IndexEntry]) -> dict[str, float]:
    kept = sum(entry.success for entry in entries.values())
    return {"kept": kept, "failed": len(entries) - kept}


def _summary(entries: list[IndexEntry], task: TaskProfile) -> dict[str, Any]:
    kept = [entry for entry in entries if entry.success]
    frames = sum(entry.steps for entry in kept)
    return {
        "attempts": len(entries),
        "kept": len(kept),
        "failed": len(entries) - len(kept),
        "failures": dict(Counter(entry.failure for entry in entries if not entry.success)),
        "kept_by_request": dict(Counter(entry.request for entry in kept)),
        "frames": frames,
        "mean_s": frames / max(1, len(kept)) / task.control_hz,
    }
