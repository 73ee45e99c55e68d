"""The World protocol: a batch of simulated operating rooms, whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.scenario import Scenario
from sim2or.contracts.task import TaskProfile


@dataclass(frozen=True)
class WorldSpec:
    """Names, units, shapes and rates of a world.

    Attributes:
        robot: Robot profile's name.
        task: Task profile's name.
        joints: Joint names in the order of every joint array, all [rad].
        cameras: Camera name to image shape (height, width, 3), uint8 RGB.
        control_hz: Rate of ``step``.
        batch: How many worlds step together.
    """

    robot: str
    task: str
    joints: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int, int]]
    control_hz: float
    batch: int

    @classmethod
    def of(cls, robot: RobotProfile, task: TaskProfile, batch: int) -> WorldSpec:
        """What a batch of a task's worlds with that robot offers."""
        size = (task.images.height_px, task.images.width_px, 3)
        return cls(
            robot=robot.name,
            task=task.name,
            joints=robot.joint_names,
            cameras=dict.fromkeys(task.cameras, size),
            control_hz=task.control_hz,
            batch=batch,
        )


@dataclass(frozen=True)
class Sensed:
    """What the robot's own sensors say about one world, at one instant.

    Attributes:
        position_rad: Shape (n_joints,), float32, [rad].
        velocity_radps: Shape (n_joints,), float32, [rad/s].
        images: Camera name to uint8 (height, width, 3) RGB; empty unless cameras were asked for.
        time_ns: The world's clock at capture [ns], zero at reset.
    """

    position_rad: NDArray[np.float32]
    velocity_radps: NDArray[np.float32]
    images: Mapping[str, NDArray[np.uint8]]
    time_ns: int


@dataclass(frozen=True)
class Truth:
    """What only a simulator knows: targets and verdicts, never a policy's input.

    Attributes:
        instrument: Shape (12,), float32: position in base [m], tip axis in base, position in gripper [m],
            tip axis in gripper.
        taken: Whether the surgeon's hand holds the instrument.
        done: Whether the episode has ended (success, failure or time limit).
        success: Whether the hand-over succeeded.
        failure: The cause when it did not: "" while running or on success.
        facts: Figures of the episode so far (handle angle [rad], margins [m], …).
    """

    instrument: NDArray[np.float32]
    taken: bool
    done: bool
    success: bool
    failure: str
    facts: Mapping[str, float] = field(default_factory=dict)


class World(Protocol):
    """A batch of worlds that never resets by itself.

    Attaching and releasing the instrument (the surgeon's hand takes it) happens inside ``step`` from the
    task's rules, the same in every engine.
    """

    spec: WorldSpec

    def reset(self, scenarios: Sequence[Scenario], ids: Sequence[int] | None = None) -> None:
        """Puts worlds ``ids`` (default: all) at the start of their scenario; their clocks read zero."""

    def step(self, targets_rad: NDArray[np.float32]) -> None:
        """Holds joint position targets, shape (batch, n_joints), [rad], for one control period."""

    def sense(self, index: int = 0, *, cameras: bool = True) -> Sensed:
        """Reads the sensors of one world now; images are rendered only when asked for."""

    def truth(self, index: int = 0) -> Truth:
        """Reads what only the simulator knows about one world now."""

    def render(self, camera: str, *, index: int = 0, height: int, width: int) -> NDArray[np.uint8]:
        """Renders one camera at any size, for people."""

    def snapshot(self, index: int = 0) -> dict[str, Any]:
        """The engine's full state, for replays and debugging."""

    def close(self) -> None:
        """Frees renderers and models."""
