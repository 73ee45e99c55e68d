"""The collect stage: the scripted expert's demonstrations, one committed episode file at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
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
from sim2or.rollout.loop import Play, perform
from sim2or.stage import Context, Stage, StageResult
from sim2or.worlds.world import Sensed, Truth

from sim2or_sim.backends import make_world
from sim2or_sim.backends.simulation import Simulation
from sim2or_sim.rooms import load_room, room_summary

if TYPE_CHECKING:
    from sim2or_sim.expert import Expert
    from sim2or_sim.rooms.room import Room


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
    room = load_room(spec.room, robot, task)
    scenarios = scenario_list(task, spec.seed_list, spec.demos, spec.offset)
    mine = shard_range(spec.demos, context.shard, context.shards)
    directory = context.work / "episodes"
    directory.mkdir(parents=True, exist_ok=True)
    entries = _committed(directory, mine, scenarios, robot, task)

    def pulse() -> None:
        context.progress(len(entries), len(mine), "demos", **_counts(entries))

    pulse()
    if missing := [index for index in mine if index not in entries]:
        places = min(spec.num_envs, len(missing))
        with closing(Demonstrator(spec, robot, task, room, places=places)) as demonstrator:
            for entry in demonstrator.record({i: scenarios[i] for i in missing}, directory, pulse):
                entries[entry.index] = entry
                pulse()
    write_index(entries.values(), directory)
    pulse()
    summary = _summary(list(entries.values()), task) | room_summary(room)
    return StageResult(outputs={"episodes": directory}, summary=summary)


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
    """A batch of worlds, an expert in each, and the columns of the episodes being recorded.

    Args:
        spec: How demonstrations are recorded.
        robot: The robot.
        task: The task.
        room: One's own operating room instead of the built-in one.
        places: How many are under way at a time.
    """

    def __init__(
        self, spec: CollectSpec, robot: RobotProfile, task: TaskProfile, room: Room | None, *, places: int
    ) -> None:
        self._spec, self._robot, self._task, self._room = spec, robot, task, room
        self._extra = task.linger_steps if spec.extra_steps is None else spec.extra_steps
        self._world: Simulation = make_world(robot, task, batch=places, backend=spec.engine, room=room)
        self._experts = [_expert(spec, robot, task) for _ in range(places)]
        self._recorders = [Recorder(robot, task, rows=task.limit_steps + self._extra) for _ in range(places)]

    def record(
        self, attempts: Mapping[int, Scenario], directory: Path, pulse: Callable[[], None]
    ) -> Iterator[IndexEntry]:
        """Runs attempts and commits each as it ends.

        Args:
            attempts: By their number in the collection, everything random about each.
            directory: Where the episodes' files go.
            pulse: Called after every control period.

        Yields:
            The entry of each episode whose file is complete.
        """
        numbers = {scenario.seed: index for index, scenario in attempts.items()}

        def play(place: int, scenario: Scenario) -> Play[IndexEntry]:
            episode = yield from self._attempt(place, numbers[scenario.seed], scenario)
            write_episode(episode, directory)
            return episode.index_entry()

        return perform(self._world, attempts.values(), play, pulse=pulse)

    def close(self) -> None:
        """Frees the worlds."""
        self._world.close()

    def _attempt(self, place: int, index: int, scenario: Scenario) -> Play[Episode]:
        """Runs one attempt to its end, and a little longer when it succeeded."""
        world, expert, recorder = self._world, self._experts[place], self._recorders[place]
        redraw = np.random.default_rng([scenario.seed, 13]) if self._spec.visuals == "per_frame" else None
        expert.reset(
            world, place, scenario, noise_seed=scenario.seed if self._spec.noise_sigma_rad > 0 else None
        )
        recorder.clear()
        truth, lingered = world.truth(place), 0
        while not truth.done or (truth.success and lingered < self._extra):
            lingered += truth.done
            if redraw is not None:
                world.redraw_visuals(place, redraw)
                yield None  # an engine may render all worlds at once, when all are dressed
            sensed = world.sense(place)
            label_rad, executed_rad = expert.act(world, place)
            recorder.add(sensed, truth, label_rad)
            yield executed_rad
            truth = world.truth(place)
        return recorder.episode(self._header(index, scenario, truth))

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
            digests={"robot": self._robot.digest(), "task": self._task.digest()}
            | (self._room.digests if self._room else {}),
            room=self._room.record if self._room else None,
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
