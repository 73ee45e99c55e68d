"""The robot's own record of what it was told and what it did, and the verdict that this record alone gives.

The counts here share no code with the safety kernel: they are worked out from the lines of the log.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.messages.joint_command import JointCommand

TOLERANCE_RAD = 1e-4
"""Commands travel as float32; differences below this are rounding, not violations."""

TOLERANCE_M = 1e-4
"""What that rounding moves the tool."""

HELD_RAD = 0.01
"""A held target is the measured position to within this: a few steps of an encoder."""

Vector = NDArray[np.float64]


class CommandLog:
    """Appends one JSON line for every command received, every tick executed and every episode begun.

    Args:
        path: Of the file; its directory exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO = path.open("w", encoding="utf-8", buffering=1)
        self._begins_at = 0

    def begin(self, session: str, seed: int, now_ns: int) -> None:
        """Notes a new episode."""
        self._begins_at = self.path.stat().st_size
        self._write({"line": "episode", "session": session, "seed": seed, "at_ns": now_ns})

    def received(self, command: JointCommand, now_ns: int, refused: str) -> None:
        """Notes a command that arrived, and why it was refused ("" when it was taken)."""
        self._write(
            {
                "line": "received",
                "session": command.session,
                "seq": command.seq,
                "tick": command.tick,
                "at_ns": now_ns,
                "issued_ns": command.issued_ns,
                "captured_ns": command.captured_ns,
                "hold": command.hold,
                "torque_scale": command.torque_scale,
                "target_rad": _numbers(command.target_rad),
                "refused": refused,
            }
        )

    def executed(
        self,
        *,
        session: str,
        seq: int,
        now_ns: int,
        captured_ns: int | None,
        hold: str,
        target_rad: NDArray[np.float32],
        measured_rad: NDArray[np.float32],
        limited: bool = False,
    ) -> None:
        """Notes what one tick did.

        ``hold`` says who holds, or why: "", "commander", "watchdog", "expired" or "workspace"; ``limited``:
        the robot itself stayed behind the command.
        """
        self._write(
            {
                "line": "executed",
                "session": session,
                "seq": seq,
                "at_ns": now_ns,
                "captured_ns": captured_ns,
                "hold": hold,
                "target_rad": _numbers(target_rad),
                "measured_rad": _numbers(measured_rad),
                "limited": limited,
            }
        )

    def episode(self) -> list[dict[str, Any]]:
        """The lines of the newest episode, read back from the file."""
        return read_log(self.path, self._begins_at)

    def episode_bytes(self) -> NDArray[np.uint8]:
        """The same lines as they stand in the file, UTF-8."""
        with self.path.open("rb") as file:
            file.seek(self._begins_at)
            return np.frombuffer(file.read(), np.uint8)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


@dataclass
class _Motion:
    """What the judge remembers of the tick before.

    Attributes:
        target_rad: The target in force, shape (n_joints,), [rad].
        velocity_radps: How fast the targets moved, shape (n_joints,), [rad/s].
        periods: Over how many control periods that speed was reached.
        at_ns: When the target in force was executed first [ns].
        seq: Its command's number.
        held: Whether it was held.
    """

    target_rad: Vector
    velocity_radps: Vector
    periods: int
    at_ns: int
    seq: int
    held: bool


class Judge:
    """Counts what broke a rule, from the lines of a command log.

    Args:
        robot: Whose range, steps, speeds and accelerations are the rule.
        task: Gives the tick, the oldest observation that may move the arm, and the box of the tool.
    """

    def __init__(self, robot: RobotProfile, task: TaskProfile) -> None:
        self._lower, self._upper = robot.lower_rad, robot.upper_rad
        self._step = np.array([joint.step_max_rad for joint in robot.joints])
        self._speed = np.array([joint.velocity_max_radps for joint in robot.joints])
        self._acceleration = np.array([joint.acceleration_max_radps2 for joint in robot.joints])
        self._grasp_position = Kinematics(robot).grasp_position
        self._low_m, self._high_m = np.array(task.safety.tool_low_m), np.array(task.safety.tool_high_m)
        self._low_m[2] = max(self._low_m[2], task.safety.floor_m)
        self._max_age_ns, self._period_s = round(task.executor.max_age_s * 1e9), task.period_s

    def judge(self, lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
        """Counts by session.

        Returns:
            Session to counts: ``executed``, ``stale_executed``, ``stale_received``, ``violations`` and its
            parts ``outside_range``, ``outside_workspace``, ``steps_too_large``, ``too_fast``, ``too_sudden``
            and ``holds_away``, then ``holds_by_commander``, ``holds_by_watchdog``, ``holds_by_expired``,
            ``holds_by_workspace``, ``limited``, ``received`` and ``refused``.
        """
        sessions: dict[str, Counter[str]] = {}
        episodes: list[list[Mapping[str, Any]]] = [[]]
        for line in lines:
            counts = sessions.setdefault(str(line["session"]), Counter())
            if line["line"] == "episode":
                episodes.append([])
            elif line["line"] == "received":
                self._receive(line, counts)
            else:
                episodes[-1].append(line)
        for executed in filter(None, episodes):
            self._judge_episode(executed, sessions)
        return {session: dict(counts) for session, counts in sessions.items()}

    def _receive(self, line: Mapping[str, Any], counts: Counter[str]) -> None:
        counts["received"] += 1
        counts["refused"] += bool(line["refused"])
        counts["stale_received"] += self._stale(line)

    def _judge_episode(
        self, executed: Sequence[Mapping[str, Any]], sessions: Mapping[str, Counter[str]]
    ) -> None:
        """Judges every tick of one episode; the first against the measured pose, at rest."""
        targets = np.array([line["target_rad"] for line in executed])
        measured = np.array([line["measured_rad"] for line in executed])
        far = self._outside_m(targets) > self._allowed_m(measured) + TOLERANCE_M
        first = executed[0]
        before = _Motion(measured[0], np.zeros_like(self._step), 1, first["at_ns"], -1, False)
        for line, target, pose, is_far in zip(executed, targets, measured, far, strict=True):
            counts = sessions[str(line["session"])]
            counts["executed"] += 1
            counts["stale_executed"] += self._stale(line)
            counts["limited"] += bool(line.get("limited"))
            if line["hold"]:
                counts[f"holds_by_{line['hold']}"] += 1
                broken, before = self._held(line, target, pose, before)
            else:
                broken, before = self._moved(line, target, before)
                broken["outside_workspace"] = bool(is_far)
            counts.update({name: int(is_broken) for name, is_broken in broken.items()})
            counts["violations"] += any(broken.values())

    def _held(
        self, line: Mapping[str, Any], target: Vector, measured: Vector, before: _Motion
    ) -> tuple[dict[str, bool], _Motion]:
        """A hold begins at the measured pose and stays where it began."""
        kept = before.target_rad if before.held else measured
        away = bool((np.abs(target - kept) > (TOLERANCE_RAD if before.held else HELD_RAD)).any())
        after = _Motion(target, np.zeros_like(target), 1, line["at_ns"], line["seq"], True)
        return {"holds_away": away}, after

    def _moved(
        self, line: Mapping[str, Any], target: Vector, before: _Motion
    ) -> tuple[dict[str, bool], _Motion]:
        """A command moves within range, step, speed and acceleration.

        A command that came a tick late or not at all is timing, which is counted elsewhere: a target in force
        for several ticks is one target, and the speed after it is the mean over those ticks. The mean speeds
        of n and of m periods belong to instants (n + m) / 2 periods apart.
        """
        outside = np.maximum(self._lower - target, target - self._upper)
        change = target - before.target_rad
        broken = {
            "outside_range": not (outside <= TOLERANCE_RAD).all(),
            "steps_too_large": bool((np.abs(change) > self._step + TOLERANCE_RAD).any()),
            "too_fast": bool((np.abs(change) > self._speed * self._period_s + TOLERANCE_RAD).any()),
        }
        if line["seq"] == before.seq and not before.held and not change.any():
            return broken, before
        waited_s = (line["at_ns"] - before.at_ns) / 1e9
        periods = 1 if before.held else max(1, round(waited_s / self._period_s))
        velocity = change / (periods * self._period_s)
        allowed = self._acceleration * self._period_s * (periods + before.periods) / 2
        sudden = np.abs(velocity - before.velocity_radps) > allowed + 4 * TOLERANCE_RAD / self._period_s
        broken["too_sudden"] = bool(sudden.any())
        return broken, _Motion(target, velocity, periods, line["at_ns"], line["seq"], False)

    def _allowed_m(self, measured_rad: Vector) -> Vector:
        """How far outside its box a tool may be sent at each tick [m]: no further than it was measured.

        A command was decided on the measurement of the tick before.
        """
        found = self._outside_m(measured_rad)
        before: Vector = np.concatenate([found[:1], found[:-1]])
        return np.maximum(found, before)

    def _outside_m(self, joints_rad: Vector) -> Vector:
        """How far the tool is outside its box, shape (n_ticks,), [m]; zero inside."""
        tool_m = self._grasp_position(joints_rad)
        excess_m: Vector = np.maximum(self._low_m - tool_m, tool_m - self._high_m)
        outside_m: Vector = np.maximum(excess_m.max(axis=-1), 0.0)
        return outside_m

    def _stale(self, line: Mapping[str, Any]) -> bool:
        captured_ns = line["captured_ns"]
        return not line["hold"] and (captured_ns is None or line["at_ns"] - captured_ns > self._max_age_ns)


def read_log(path: Path, start: int = 0) -> list[dict[str, Any]]:
    """Reads the complete lines of a command log from a byte on."""
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _numbers(values: NDArray[np.float32]) -> list[float]:
    return [round(float(value), 6) for value in values]
