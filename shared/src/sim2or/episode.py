"""Episode files: one committed HDF5 file per episode, Isaac Lab's layout, SI units.

::

    /data                      attrs total, env_args (JSON)
    /data/demo_0               attrs num_samples, seed, success, scenario, request, failure, parent, index,
                               metrics
        actions                (T, n) float32 [rad]   the clean joint targets, the label of the row
        obs/joint_pos          (T, n) float32 [rad]   before the action
        obs/joint_vel          (T, n) float32 [rad/s]
        obs/actions            the same data as ``actions``
        obs/<camera>           (T, H, W, 3) uint8, one frame per chunk, blosc-lz4
        obs/time_s             (T,) float64 [s]       the world's clock at the observation
        privileged/instrument  (T, 12) float32        position [m] and tip axis in base, the same in gripper
        privileged/taken       (T,) uint8
        initial_state/…, states/articulation/robot/joint_position

A file is written under a temporary name, flushed to disk and renamed: a file that has its name is complete.
This is the only module of the core that imports h5py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from sim2or.artifacts.store import sync
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.room import RoomRecord
from sim2or.contracts.task import TaskProfile
from sim2or.errors import JobError
from sim2or.messages.message import Spec

INDEX_FILE = "index.jsonl"
INSTRUMENT_NAMES = tuple(
    f"{vector}.{axis}"
    for vector in ("position_in_base", "axis_in_base", "position_in_gripper", "axis_in_gripper")
    for axis in "xyz"
)
RATE_TOLERANCE = 1e-3
"""Largest relative difference of a measured from a declared rate."""

_DEMO = "data/demo_0"
_COMPRESSION = dict(hdf5plugin.Blosc(cname="lz4", clevel=1, shuffle=hdf5plugin.Blosc.NOSHUFFLE))
_UNITS = {
    "actions": "rad",
    "obs/joint_pos": "rad",
    "obs/joint_vel": "rad/s",
    "obs/time_s": "s",
    "privileged/instrument": "m, unit vector",
}


class EpisodeHeader(Spec):
    """What an episode is, beside its columns.

    Attributes:
        index: Its number in the collection.
        seed: Seed of its scenario.
        robot: Robot profile's name.
        task: Task profile's name.
        joints: Joint names, the order of every joint column.
        request: The surgeon's words, the episode's language instruction.
        parent: The demonstration it stems from; itself unless it was generated from another one.
        success: Whether the hand-over succeeded.
        failure: The cause when it did not.
        control_hz: Declared rate of its rows [Hz].
        physics_hz: Rate of the physics [Hz].
        digests: Profile kind to the profile's digest.
        scenario: Everything random about it.
        metrics: Figures of the whole episode.
        room: The own room it was recorded in; none for the built-in one.
    """

    index: int = Field(ge=0)
    seed: int = Field(ge=0)
    robot: str
    task: str
    joints: tuple[str, ...] = Field(min_length=1)
    request: str = Field(min_length=1)
    parent: str = Field(min_length=1)
    success: bool
    failure: str = ""
    control_hz: float = Field(gt=0)
    physics_hz: float = Field(gt=0)
    digests: dict[str, str] = Field(default_factory=dict)
    scenario: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    room: RoomRecord | None = None

    @property
    def file_name(self) -> str:
        """The name of its committed file."""
        return f"episode_{self.index:06d}_{self.seed}.hdf5"


class IndexEntry(Spec):
    """One line of a shard's ``index.jsonl``.

    Attributes:
        file: The episode's file name.
        index: Its number in the collection.
        seed: Seed of its scenario.
        request: The surgeon's words.
        success: Whether the hand-over succeeded.
        failure: The cause when it did not.
        steps: Rows.
        scenario: Everything random about it.
        metrics: Figures of the whole episode.
    """

    file: str
    index: int
    seed: int
    request: str
    success: bool
    failure: str
    steps: int
    scenario: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class Episode:
    """A whole episode in memory; every column has T rows, taken before the row's action.

    Attributes:
        header: What it is.
        actions_rad: Shape (T, n_joints), float32, the clean joint targets [rad].
        position_rad: Shape (T, n_joints), float32, [rad].
        velocity_radps: Shape (T, n_joints), float32, [rad/s].
        time_s: Shape (T,), float64, the world's clock [s].
        instrument: Shape (T, 12), float32, see ``INSTRUMENT_NAMES``; simulator truth, never an input.
        taken: Shape (T,), uint8, whether the surgeon's hand holds the instrument.
        images: Camera to shape (T, height, width, 3), uint8, RGB.
    """

    header: EpisodeHeader
    actions_rad: NDArray[np.float32]
    position_rad: NDArray[np.float32]
    velocity_radps: NDArray[np.float32]
    time_s: NDArray[np.float64]
    instrument: NDArray[np.float32]
    taken: NDArray[np.uint8]
    images: Mapping[str, NDArray[np.uint8]]

    @property
    def steps(self) -> int:
        """Rows."""
        return len(self.actions_rad)

    def index_entry(self) -> IndexEntry:
        """Its line in the shard's index."""
        return _entry(self.header, self.header.file_name, self.steps)


def write_episode(episode: Episode, directory: Path) -> Path:
    """Commits an episode: temporary name, fsync, rename, fsync of the directory.

    Args:
        episode: What to write.
        directory: Where; made when missing.

    Returns:
        The committed file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / episode.header.file_name
    staging = directory / f".{target.name}.{os.getpid()}.tmp"
    with h5py.File(staging, "w", libver="latest") as file:
        _fill(file, episode)
    sync(staging)
    staging.rename(target)
    sync(directory)
    return target


def write_index(entries: Iterable[IndexEntry], directory: Path) -> Path:
    """Writes a shard's ``index.jsonl``, sorted by episode number, in one atomic step."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / INDEX_FILE
    staging = directory / f".{INDEX_FILE}.{os.getpid()}.tmp"
    lines = [entry.model_dump_json() for entry in sorted(entries, key=lambda entry: entry.index)]
    staging.write_text("".join(line + "\n" for line in lines))
    sync(staging)
    staging.rename(target)
    sync(directory)
    return target


def read_index(directory: Path) -> list[IndexEntry]:
    """Reads a shard's ``index.jsonl``.

    Raises:
        JobError: The index or a file it names is missing, or a line is not an entry.
    """
    path = directory / INDEX_FILE
    if not path.is_file():
        raise JobError(f"{path}: no index of episodes; give a directory that the collect stage made")
    entries = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entry = IndexEntry.model_validate_json(line)
        except ValidationError as error:
            raise JobError(f"{path}: line {number}: {_first(error)}") from error
        if Path(entry.file).name != entry.file:
            raise JobError(
                f"{path}: line {number}: file {entry.file!r} must be a plain file name beside the index"
            )
        if not (directory / entry.file).is_file():
            raise JobError(f"{path}: line {number}: {entry.file} is missing in {directory}")
        entries.append(entry)
    return entries


def measured_hz(time_s: NDArray[np.float64]) -> float:
    """The rate at which rows were really taken: one over the mean interval [Hz].

    Args:
        time_s: Shape (T,), T ≥ 2, [s].
    """
    return float((len(time_s) - 1) / (time_s[-1] - time_s[0]))


class EpisodeFile:
    """A committed episode, opened for reading; a context manager.

    Raises:
        JobError: On opening or reading: the file is missing, torn or not an episode, or a column is missing,
            has a wrong shape, type or unit, is not finite, or is a link; names file, key, value and valid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise JobError(f"{path}: no such episode file")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise JobError(
                f"{path}: cannot be opened as HDF5, it is torn or not an episode ({error}); collect it again"
            ) from error
        try:
            self.header = self._read_header()
            self.steps = self._read_steps()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the recorded cameras, sorted."""
        group = self._node("obs")
        return tuple(sorted(name for name in group if self._node(f"obs/{name}").ndim == 4))

    @property
    def index_entry(self) -> IndexEntry:
        """Its line in the shard's index."""
        return _entry(self.header, self.path.name, self.steps)

    def actions_rad(self) -> NDArray[np.float32]:
        """Shape (T, n_joints), the clean joint targets [rad]."""
        return self._column("actions", np.dtype(np.float32), (len(self.header.joints),))

    def position_rad(self) -> NDArray[np.float32]:
        """Shape (T, n_joints), joint positions before the action [rad]."""
        return self._column("obs/joint_pos", np.dtype(np.float32), (len(self.header.joints),))

    def velocity_radps(self) -> NDArray[np.float32]:
        """Shape (T, n_joints), joint velocities before the action [rad/s]."""
        return self._column("obs/joint_vel", np.dtype(np.float32), (len(self.header.joints),))

    def time_s(self) -> NDArray[np.float64]:
        """Shape (T,), the world's clock at each observation [s]."""
        return self._column("obs/time_s", np.dtype(np.float64), ())

    def instrument(self) -> NDArray[np.float32]:
        """Shape (T, 12), simulator truth, see ``INSTRUMENT_NAMES``."""
        return self._column("privileged/instrument", np.dtype(np.float32), (len(INSTRUMENT_NAMES),))

    def taken(self) -> NDArray[np.uint8]:
        """Shape (T,), whether the surgeon's hand holds the instrument."""
        return self._column("privileged/taken", np.dtype(np.uint8), ())

    def images(self, camera: str) -> NDArray[np.uint8]:
        """Shape (T, height, width, 3), RGB, of one camera."""
        if camera not in self.cameras:
            raise JobError(
                f"{self.path}: obs/{camera}: no such camera; valid: {', '.join(self.cameras) or 'none'}"
            )
        height, width = self._node(f"obs/{camera}").shape[1:3]
        return self._column(f"obs/{camera}", np.dtype(np.uint8), (height, width, 3))

    def image_shape(self, camera: str) -> tuple[int, ...]:
        """Shape of one image of a camera, without reading it."""
        return tuple(int(size) for size in self._node(f"obs/{camera}").shape[1:])

    def read(self) -> Episode:
        """Reads everything."""
        return Episode(
            header=self.header,
            actions_rad=self.actions_rad(),
            position_rad=self.position_rad(),
            velocity_radps=self.velocity_radps(),
            time_s=self.time_s(),
            instrument=self.instrument(),
            taken=self.taken(),
            images={camera: self.images(camera) for camera in self.cameras},
        )

    def check(self, robot: RobotProfile, task: TaskProfile) -> None:
        """Refuses an episode of another robot, task, joint order, camera, image size or rate.

        Raises:
            JobError: Naming the file, every wrong key, its value and what is valid.
        """
        problems = [
            f"{key} = {value!r}; valid: {valid!r}"
            for key, value, valid in self._facts(robot, task)
            if value != valid
        ]
        problems += self._rate_problems(task.control_hz)
        if problems:
            raise JobError(f"{self.path}: {'; '.join(problems)}")

    def _facts(self, robot: RobotProfile, task: TaskProfile) -> list[tuple[str, object, object]]:
        size = (task.images.height_px, task.images.width_px, 3)
        facts: list[tuple[str, object, object]] = [
            ("env_args.robot", self.header.robot, robot.name),
            ("env_args.task", self.header.task, task.name),
            ("env_args.joints", self.header.joints, robot.joint_names),
            ("cameras", self.cameras, tuple(sorted(task.cameras))),
        ]
        shapes = [
            (f"obs/{name} shape", self.image_shape(name), size)
            for name in self.cameras
            if name in task.cameras
        ]
        return [*facts, *shapes]

    def _rate_problems(self, control_hz: float) -> list[str]:
        """What is wrong with the rate: declared against profile, measured against declared, and spacing."""
        declared = self.header.control_hz
        problems = []
        if abs(declared / control_hz - 1) > RATE_TOLERANCE:
            problems.append(f"env_args.control_hz = {declared:g}; valid: {control_hz:g}")
        if self.steps < 2:
            return [*problems, f"num_samples = {self.steps}; valid: at least 2"]
        interval_s = np.diff(self.time_s())
        if interval_s.min() <= 0:
            return [*problems, f"obs/time_s does not increase at row {int(interval_s.argmin()) + 1}"]
        measured = measured_hz(self.time_s())
        if abs(measured / declared - 1) > RATE_TOLERANCE:
            problems.append(
                f"obs/time_s: rows were taken at {measured:.3f} Hz but env_args.control_hz declares "
                f"{declared:g} Hz; resample the episode or declare its true rate"
            )
        elif np.abs(interval_s * declared - 1).max() > 10 * RATE_TOLERANCE:
            worst = int(np.abs(interval_s * declared - 1).argmax())
            problems.append(
                f"obs/time_s: {interval_s[worst]:.5f} s between rows {worst} and {worst + 1}; "
                f"valid: {1 / declared:.5f} s, every row"
            )
        return problems

    def _read_header(self) -> EpisodeHeader:
        demo, data = self._node(""), self._file["data"]
        try:
            env = json.loads(data.attrs["env_args"])
            attrs = dict(demo.attrs)
            fields = {
                "index": int(attrs["index"]),
                "seed": int(attrs["seed"]),
                "success": bool(attrs["success"]),
                "request": str(attrs["request"]),
                "failure": str(attrs["failure"]),
                "parent": str(attrs["parent"]),
                "scenario": json.loads(attrs["scenario"]),
                "metrics": json.loads(attrs["metrics"]),
                "physics_hz": 1.0 / env["sim_args"]["dt"],
                "room": env.get("room"),
                **{key: env[key] for key in ("robot", "task", "joints", "control_hz", "digests")},
            }
            return EpisodeHeader.model_validate(fields)
        except KeyError as error:
            raise JobError(f"{self.path}: attribute {error} is missing in /data or /{_DEMO}") from error
        except json.JSONDecodeError as error:
            raise JobError(f"{self.path}: env_args, scenario or metrics is not JSON: {error}") from error
        except ValidationError as error:
            raise JobError(f"{self.path}: {_first(error)}") from error

    def _read_steps(self) -> int:
        steps = int(self._node("").attrs.get("num_samples", -1))
        rows = len(self._node("actions"))
        if steps != rows:
            raise JobError(
                f"{self.path}: /{_DEMO}.num_samples = {steps}; valid: {rows}, the rows of 'actions'"
            )
        return steps

    def _column(self, key: str, dtype: np.dtype[Any], tail: tuple[int, ...]) -> NDArray[Any]:
        node = self._node(key)
        shape = (self.steps, *tail)
        if not isinstance(node, h5py.Dataset):
            raise JobError(f"{self.path}: {key} is a group; valid: a dataset of shape {shape}")
        if node.shape != shape or node.dtype != dtype:
            raise JobError(f"{self.path}: {key} is {node.dtype}{node.shape}; valid: {dtype}{shape}")
        unit = node.attrs.get("unit")
        if key in _UNITS and unit != _UNITS[key]:
            raise JobError(f"{self.path}: {key} has unit {unit!r}; valid: {_UNITS[key]!r}")
        try:
            values: NDArray[Any] = node[...]
        except OSError as error:
            raise JobError(f"{self.path}: {key} cannot be read, the file is damaged ({error})") from error
        if dtype.kind == "f" and not np.isfinite(values).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise JobError(f"{self.path}: {key}{list(at)} = {values[at]}; valid: finite numbers")
        return values

    def _node(self, key: str) -> Any:
        """A group or dataset below the demonstration, refusing every kind of link that leaves the file."""
        current = self._file
        for part in Path(_DEMO, key).parts:
            if part not in current:
                raise JobError(
                    f"{self.path}: {Path(_DEMO, key)} is missing; {part!r} is not in {current.name}"
                )
            link = current.get(part, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise JobError(
                    f"{self.path}: {key or _DEMO} is a {type(link).__name__}; valid: data in the file itself"
                )
            current = current[part]
        if isinstance(current, h5py.Dataset) and (current.external or current.is_virtual):
            raise JobError(
                f"{self.path}: {key} keeps its data in another file; valid: data in the file itself"
            )
        return current


def _fill(file: h5py.File, episode: Episode) -> None:
    header = episode.header
    data = file.create_group("data")
    data.attrs["total"] = 1
    data.attrs["env_args"] = json.dumps(_env_args(header))
    demo = data.create_group("demo_0")
    attributes: dict[str, Any] = {
        "num_samples": episode.steps,
        "index": header.index,
        "seed": header.seed,
        "success": header.success,
        "failure": header.failure,
        "request": header.request,
        "parent": header.parent,
        "scenario": json.dumps(header.scenario),
        "metrics": json.dumps(header.metrics),
    }
    for key, value in attributes.items():
        demo.attrs[key] = value
    columns: dict[str, NDArray[Any]] = {
        "actions": episode.actions_rad,
        "obs/joint_pos": episode.position_rad,
        "obs/joint_vel": episode.velocity_radps,
        "obs/time_s": episode.time_s,
        "privileged/instrument": episode.instrument,
        "privileged/taken": episode.taken,
    }
    for key, values in columns.items():
        dataset = demo.create_dataset(key, data=values)
        if key in _UNITS:
            dataset.attrs["unit"] = _UNITS[key]
    demo["obs/actions"] = demo["actions"]
    demo["states/articulation/robot/joint_position"] = demo["obs/joint_pos"]
    demo.create_dataset("initial_state/articulation/robot/joint_position", data=episode.position_rad[:1])
    for camera, images in episode.images.items():
        demo.create_dataset(f"obs/{camera}", data=images, chunks=(1, *images.shape[1:]), **_COMPRESSION)


def _env_args(header: EpisodeHeader) -> dict[str, Any]:
    return {
        "env_name": f"{header.robot}-{header.task}",
        "type": "sim2or",
        "sim_args": {
            "dt": 1.0 / header.physics_hz,
            "decimation": round(header.physics_hz / header.control_hz),
        },
        "control_hz": header.control_hz,
        "robot": header.robot,
        "task": header.task,
        "joints": list(header.joints),
        "digests": header.digests,
    } | ({"room": header.room.model_dump(mode="json")} if header.room else {})


def _entry(header: EpisodeHeader, file: str, steps: int) -> IndexEntry:
    shared: Sequence[str] = ("index", "seed", "request", "success", "failure", "scenario", "metrics")
    return IndexEntry(file=file, steps=steps, **{key: getattr(header, key) for key in shared})


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    item = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']} (given: {item['input']!r})"
