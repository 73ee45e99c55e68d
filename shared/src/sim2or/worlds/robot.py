"""The Robot protocol: a batch of one whose reset asks the operator."""

from __future__ import annotations

from typing import Protocol

from sim2or.contracts.scenario import Scenario
from sim2or.messages.joint_command import JointCommand
from sim2or.worlds.world import Sensed, WorldSpec


class Robot(Protocol):
    """A robot arm with cameras, simulated or real, local or behind a socket.

    A robot that hears no command within its watchdog holds its *measured* position; it never goes limp and
    never moves to zero by itself.
    """

    spec: WorldSpec

    def connect(self, *, timeout_s: float) -> None:
        """Opens the connection; raises ``HardwareError`` naming what did not answer."""

    def sense(self, *, cameras: bool = True, timeout_s: float) -> Sensed:
        """Returns the newest reading; ``time_ns`` is the robot host's monotonic clock at capture."""

    def command(self, command: JointCommand) -> None:
        """Sends one joint position target; never blocks past the control period."""

    def reset(self, scenario: Scenario | None, *, timeout_s: float) -> None:
        """Returns to the start: a simulator loads the scenario, a real robot asks its operator."""

    def status(self, *, timeout_s: float) -> dict[str, object]:
        """What the robot reports about the episode and about itself, as plain JSON values."""

    def log(self, *, timeout_s: float) -> bytes:
        """The robot's own record of the newest episode, as JSON lines: evidence, kept with the result."""

    def close(self) -> None:
        """Holds the measured position and closes."""
