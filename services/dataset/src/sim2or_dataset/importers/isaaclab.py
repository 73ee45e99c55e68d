"""Isaac Lab's recordings (RecorderManager, HDF5), and robomimic's files of the same layout.

::

    /                                  attrs format_version: 1 has quaternions xyzw; missing or 0, wxyz
    /data                              attrs env_args (JSON): sim_args.dt [s], sim_args.decimation
    /data/demo_N                       attrs num_samples, success
        actions, processed_actions     (T, n) the latter joint targets [rad]
        obs/<camera>                   (T, H, W, 3) uint8, before the action
        initial_state/…, states/…      (1, …) at the start, (T, …) after each action
            articulation/<robot>/joint_position, joint_velocity, root_pose
            rigid_object/<instrument>/root_pose
        privileged/instrument, taken   (T, 12), (T,) written by our own environment alone

A recording has neither time stamps nor joint names: the rate is 1 / (dt · decimation), the names are told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.kinematics import Kinematics, rotation
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.episode import INSTRUMENT_NAMES, RATE_TOLERANCE, Episode, EpisodeHeader
from sim2or.errors import JobError, choices
from sim2or.messages.recording import ImportSpec

Floats = NDArray[np.float64]

XYZW = 1
"""The format version since which quaternions are xyzw."""

_BEYOND_RAD = 0.5  # a joint value farther than this beyond its range is not in radians
_ON_THE_TABLE_M = -0.05  # what starts lower than this is not in use


class Recording:
    """A recording, opened for reading; a context manager.

    Args:
        path: The HDF5 file.
        spec: What it is said to hold.
        robot: The arm's profile.
        task: The task's profile.

    Raises:
        JobError: The file is missing, damaged or no recording, of an unknown format version, has no
            demonstrations, or was taken at another rate than the task's; names file, value and what is valid.
    """

    def __init__(self, path: Path, spec: ImportSpec, robot: RobotProfile, task: TaskProfile) -> None:
        self.path, self._spec, self._robot, self._task = path, spec, robot, task
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise JobError(
                f"{path}: cannot be opened as HDF5, it is torn or still being recorded ({error})"
            ) from error
        try:
            self._env = self._read_env()
            self.control_hz, self.physics_hz = self._rates()
            self._wxyz = self._version() < XYZW
            self._order = self._joint_order()
            self.names = self._demos()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def episodes(self, first: int, parent: str) -> Iterator[Episode]:
        """Its demonstrations, one by one.

        Args:
            first: The number of the first in the collection.
            parent: What each one's own name is put behind.

        Raises:
            JobError: One lacks a camera, a state or its verdict, has a wrong shape or type, or a number that
                is not finite or cannot be a joint's; names file, demonstration, value and what is valid.
        """
        for number, name in enumerate(self.names):
            demo = _Demo(self._file, f"data/{name}", self.path)
            yield self._episode(demo, first + number, f"{parent}:{name}")

    def _episode(self, demo: _Demo, index: int, parent: str) -> Episode:
        steps = demo.steps
        position, velocity = (self._joints(demo, key) for key in ("joint_position", "joint_velocity"))
        actions = self._actions(demo, position)
        instrument = self._instrument(demo)
        images = {name: self._images(demo, name) for name in self._task.cameras}
        success = self._success(demo)
        header = EpisodeHeader(
            index=index,
            seed=index,
            robot=self._robot.name,
            task=self._task.name,
            joints=self._robot.joint_names,
            request=self._task.requests[instrument],
            parent=parent,
            success=success,
            failure="" if success else "not successful",
            control_hz=self._task.control_hz,
            physics_hz=self.physics_hz,
            digests=self._digests(),
        )
        return Episode(
            header=header,
            actions_rad=actions.astype(np.float32),
            position_rad=position.astype(np.float32),
            velocity_radps=velocity.astype(np.float32),
            time_s=np.arange(steps) / self._task.control_hz,
            instrument=self._truth(demo, instrument, position).astype(np.float32),
            taken=self._taken(demo),
            images=images,
        )

    def _read_env(self) -> dict[str, Any]:
        if not isinstance(_own(self._file, "data"), h5py.Group):
            raise JobError(f"{self.path}: no group /data; valid: a recording of Isaac Lab's RecorderManager")
        text = self._file["data"].attrs.get("env_args", "")
        try:
            env = json.loads(text)
        except (TypeError, json.JSONDecodeError) as error:
            raise JobError(f"{self.path}: /data.env_args = {text!r}; valid: JSON with sim_args") from error
        if not isinstance(env, dict):
            raise JobError(f"{self.path}: /data.env_args = {text!r}; valid: JSON with sim_args")
        for key, valid in (("robot", self._robot.name), ("task", self._task.name)):
            if env.get(key, valid) != valid:
                raise JobError(f"{self.path}: env_args.{key} = {env[key]!r}; valid: {valid!r}")
        return env

    def _rates(self) -> tuple[float, float]:
        """Control and physics rate; the former must be the task's [Hz]."""
        sim = self._env.get("sim_args", {})
        try:
            dt_s, decimation = float(sim["dt"]), int(sim["decimation"])
        except (KeyError, TypeError, ValueError) as error:
            raise JobError(
                f"{self.path}: env_args.sim_args = {sim!r}; valid: dt [s] and decimation, which give the rate"
            ) from error
        if not (dt_s > 0 and decimation > 0):
            raise JobError(
                f"{self.path}: sim_args.dt = {dt_s:g} s, decimation = {decimation}; valid: both above zero"
            )
        control_hz = 1.0 / (dt_s * decimation)
        if abs(control_hz / self._task.control_hz - 1) > RATE_TOLERANCE:
            raise JobError(
                f"{self.path}: recorded at {control_hz:.3f} Hz (dt {dt_s:g} s · decimation {decimation}); "
                f"valid: {self._task.name}'s {self._task.control_hz:g} Hz; record at that rate"
            )
        return control_hz, 1.0 / dt_s

    def _digests(self) -> dict[str, str]:
        """Digests of the profiles it was recorded with, where it says so."""
        told = self._env.get("digests", {})
        if not isinstance(told, dict):
            raise JobError(f"{self.path}: env_args.digests = {told!r}; valid: profile kind to digest")
        return {str(kind): str(digest) for kind, digest in told.items()}

    def _version(self) -> int:
        version = self._file.attrs.get("format_version", 0)
        if np.ndim(version) or version not in (0, XYZW):
            raise JobError(
                f"{self.path}: format_version = {version}; valid: {XYZW} (quaternions xyzw), 0 or none (wxyz)"
            )
        return int(version)

    def _joint_order(self) -> list[int]:
        """Where each of the profile's joints is in the recording's columns."""
        told = self._env.get("joints", [])
        told = tuple(map(str, told)) if isinstance(told, list) else (str(told),)
        names = self._spec.joints or told or self._robot.joint_names
        if sorted(names) != sorted(self._robot.joint_names):
            raise JobError(
                f"{self.path}: joints {', '.join(names)}; valid, in any order: "
                f"{', '.join(self._robot.joint_names)}"
            )
        return [list(names).index(name) for name in self._robot.joint_names]

    def _demos(self) -> list[str]:
        """Names of the demonstrations, in the order in which they were recorded."""
        data = self._file["data"]
        names = [name for name in data if name.startswith("demo_") and name.removeprefix("demo_").isdigit()]
        if not names:
            raise JobError(
                f"{self.path}: /data holds {', '.join(data) or 'nothing'}; valid: demo_0, demo_1 …; "
                "nothing was recorded, or nothing succeeded"
            )
        return sorted(names, key=lambda name: int(name.removeprefix("demo_")))

    def _success(self, demo: _Demo) -> bool:
        if "success" in demo.attrs:
            return bool(np.all(demo.attrs["success"]))
        if not self._spec.unjudged_succeeded:
            raise JobError(
                f"{demo.where}: has no attribute 'success'; valid: true or false, as Isaac Lab writes it, "
                "or say unjudged_succeeded: true"
            )
        return True

    def _joints(self, demo: _Demo, key: str) -> Floats:
        """Shape (T, n_joints), before each action, in the profile's order."""
        found = demo.before(f"articulation/{self._spec.articulation}/{key}", len(self._order))
        return found[:, self._order]

    def _actions(self, demo: _Demo, position: Floats) -> Floats:
        """Shape (T, n_joints), joint targets [rad], in the profile's order."""
        key = "processed_actions" if "processed_actions" in demo else "actions"
        targets = demo.numbers(key, (demo.steps, len(self._order)))[:, self._order]
        for what, values in ((key, targets), ("joint positions", position)):
            low, high = self._robot.lower_rad - _BEYOND_RAD, self._robot.upper_rad + _BEYOND_RAD
            wrong = np.argwhere((values < low) | (values > high))
            if len(wrong):
                row, joint = wrong[0]
                raise JobError(
                    f"{demo.where}: {what} of {self._robot.joint_names[joint]} in row {row} = "
                    f"{values[row, joint]:g}; valid: radians in {self._robot.lower_rad[joint]:g}…"
                    f"{self._robot.upper_rad[joint]:g}"
                )
        self._check_targets(demo, key, np.median(np.abs(targets - position), axis=0))
        return targets

    def _check_targets(self, demo: _Demo, key: str, away_rad: Floats) -> None:
        """Refuses what cannot be targets of these joints: steps, or normalised values, or another order."""
        for joint, found in zip(self._robot.joints, away_rad, strict=True):
            if found > joint.tracking_max_rad:
                raise JobError(
                    f"{demo.where}: {key} of {joint.name} is {found:.2f} rad from it in half of the rows; "
                    f"valid: joint targets within {joint.tracking_max_rad:g} rad. Record "
                    "JointPositionAction with scale 1 and no offset, or say the order of the joints"
                )

    def _images(self, demo: _Demo, camera: str) -> NDArray[np.uint8]:
        size = self._task.images
        name = self._spec.cameras.get(camera, camera)
        return demo.pictures(f"obs/{name}", (size.height_px, size.width_px, 3))

    def _instrument(self, demo: _Demo) -> str:
        """The instrument of this demonstration."""
        known = self._task.instruments
        if self._spec.instrument:
            if self._spec.instrument not in known:
                raise JobError(
                    f"instrument: {self._spec.instrument!r}; {choices(self._spec.instrument, known)}"
                )
            return self._spec.instrument
        used = [
            name
            for name in known
            if f"initial_state/rigid_object/{name}/root_pose" in demo
            and demo.numbers(f"initial_state/rigid_object/{name}/root_pose", (1, 7))[0, 2] > _ON_THE_TABLE_M
        ]
        if len(used) != 1:
            raise JobError(
                f"{demo.where}: instruments on the tray at the start: {', '.join(used) or 'none'}; "
                f"valid: one of {', '.join(known)} (rigid objects of that name), or say which: instrument"
            )
        return used[0]

    def _truth(self, demo: _Demo, instrument: str, position: Floats) -> Floats:
        """Shape (T, 12), see ``INSTRUMENT_NAMES``: as recorded, else from the poses."""
        if "privileged/instrument" in demo:
            return demo.numbers("privileged/instrument", (demo.steps, len(INSTRUMENT_NAMES)))
        at, turn = self._poses(demo, f"rigid_object/{instrument}/root_pose")
        base, turned = self._poses(demo, f"articulation/{self._spec.articulation}/root_pose")
        back = turned.transpose(0, 2, 1)
        at_m, axis = _turn(back, at - base), _turn(back, turn[:, :, 0])
        kinematics = Kinematics(self._robot)
        tool = kinematics.body_poses(position)[:, kinematics.body_names.index(self._robot.tool.body), :3, :3]
        near = tool.transpose(0, 2, 1)
        grasp_m = kinematics.grasp_position(position)
        return np.concatenate([at_m, axis, _turn(near, at_m - grasp_m), _turn(near, axis)], axis=1)

    def _poses(self, demo: _Demo, key: str) -> tuple[Floats, Floats]:
        """Positions, shape (T, 3) [m], and rotations, shape (T, 3, 3), before each action."""
        pose = demo.before(key, 7)
        turns = pose[:, 3:] if self._wxyz else np.roll(pose[:, 3:], 1, axis=1)
        lengths = np.linalg.norm(turns, axis=1)
        if np.abs(lengths - 1).max() > 1e-3:
            raise JobError(f"{demo.where}: {key}: a quaternion is {lengths.max():g} long")
        return pose[:, :3], np.stack([rotation(tuple(turn)) for turn in turns])

    def _taken(self, demo: _Demo) -> NDArray[np.uint8]:
        """Shape (T,), whether the surgeon's hand holds the instrument; zero where it is not recorded."""
        if "privileged/taken" not in demo:
            return np.zeros(demo.steps, np.uint8)
        return demo.numbers("privileged/taken", (demo.steps,)).astype(np.uint8)


class _Demo:
    """One demonstration of a file."""

    def __init__(self, file: h5py.File, name: str, path: Path) -> None:
        self.where = f"{path}: {name}"
        self._group = _own(file["data"], name.removeprefix("data/"))
        if not isinstance(self._group, h5py.Group):
            raise JobError(f"{self.where} is no group of the file itself; valid: a demonstration")
        self.attrs = dict(self._group.attrs)
        rows = self._node("actions").shape
        self.steps = int(rows[0]) if rows else 0
        told = self.attrs.get("num_samples", self.steps)
        if np.any(told != self.steps) or self.steps < 2:
            raise JobError(
                f"{self.where}: num_samples = {told}, {self.steps} rows in 'actions'; valid: equal, 2 or more"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._group

    def before(self, key: str, width: int) -> Floats:
        """What a state was before each action, shape (T, width): the initial one, then after the others."""
        first = self.numbers(f"initial_state/{key}", (1, width))
        after = self.numbers(f"states/{key}", (self.steps, width))
        return np.concatenate([first, after[:-1]])

    def numbers(self, key: str, shape: tuple[int, ...]) -> Floats:
        """A dataset of finite numbers, in double precision."""
        node = self._shaped(key, shape)
        if node.dtype.kind not in "fiub":
            raise JobError(f"{self.where}: {key} is {node.dtype}; valid: numbers")
        values: Floats = self._values(node, key).astype(np.float64)
        if not np.isfinite(values).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise JobError(f"{self.where}: {key}{list(at)} = {values[at]}; valid: finite numbers")
        return values

    def pictures(self, key: str, size: tuple[int, int, int]) -> NDArray[np.uint8]:
        """A camera's pictures, shape (T, height, width, 3), uint8."""
        node = self._shaped(key, (self.steps, *size))
        if node.dtype != np.uint8:
            raise JobError(
                f"{self.where}: {key} is {node.dtype}; valid: uint8, record the camera with normalize=False"
            )
        values: NDArray[np.uint8] = self._values(node, key)
        return values

    def _shaped(self, key: str, shape: tuple[int, ...]) -> h5py.Dataset:
        node = self._node(key)
        if node.shape != shape:
            raise JobError(f"{self.where}: {key} has shape {node.shape}; valid: {shape}")
        return node

    def _values(self, node: h5py.Dataset, key: str) -> NDArray[Any]:
        try:
            values: NDArray[Any] = node[...]
        except OSError as error:
            raise JobError(f"{self.where}: {key} cannot be read, the file is damaged ({error})") from error
        return values

    def _node(self, key: str) -> h5py.Dataset:
        """A dataset of the file itself; links and data kept elsewhere are refused."""
        current = self._group
        for part in key.split("/"):
            if not isinstance(current, h5py.Group) or part not in current:
                there = sorted(current) if isinstance(current, h5py.Group) else []
                raise JobError(f"{self.where}: {key} is missing; {choices(part, there)}")
            current = _own(current, part)
        if not isinstance(current, h5py.Dataset) or current.external or current.is_virtual:
            raise JobError(f"{self.where}: {key} is no dataset of the file itself")
        return current


def _own(group: h5py.Group, name: str) -> Any:
    """A member that is in the file itself; None where there is none, or it is a link to somewhere else."""
    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def _turn(matrices: Floats, vectors: Floats) -> Floats:
    """Row by row, a matrix times a vector: shapes (T, 3, 3) and (T, 3)."""
    turned: Floats = np.einsum("tij,tj->ti", matrices, vectors)
    return turned
