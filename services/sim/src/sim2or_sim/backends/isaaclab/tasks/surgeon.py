"""The surgeon's hand in each environment: the rule of the hand-over, fed from Isaac Lab's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sim2or.contracts.task import Failure

from sim2or_sim.backends.isaaclab.configuration import ROBOT
from sim2or_sim.backends.isaaclab.tasks.tray import Envs, numbers, upright
from sim2or_sim.backends.mujoco.scene import PALM_BODIES
from sim2or_sim.task import Handovers, Reading

if TYPE_CHECKING:
    from sim2or_sim.backends.isaaclab.tasks.hand_over import HandOverEnv

TOO_FAR = 1e6  # a number beyond this is a physics that blew up [m, rad or m/s]


class Surgeon:
    """Takes the instrument that is presented, and judges the hand-over.

    The rule is the one of every engine, in numpy: the few numbers that it looks at are copied to the host
    once in a control period.

    Attributes:
        rule: The rule.
    """

    def __init__(self, env: HandOverEnv) -> None:
        self._env, self._tray = env, env.tray
        self.rule = Handovers(env.task, env.num_envs)
        moving = next(body for body in env.robot.bodies if body.name == env.robot.tool.pads[1].body)
        self._jaw = env.scene[ROBOT].joint_names.index(moving.joint)
        self._handle_m = np.array([env.task.instruments[name].handle_m for name in env.tray.names])
        x, y, _ = env.task.hand.from_direction
        self._yaw_rad = float(np.arctan2(y, x) - np.pi / 2)  # the hand's own frame comes from +y

    @property
    def success(self) -> torch.Tensor:
        """Shape (num_envs,), whether the hand-over succeeded."""
        return self._flags(self.rule.success)

    @property
    def failed(self) -> torch.Tensor:
        """Shape (num_envs,), whether it failed before its time was over."""
        early = (Failure.DROPPED, Failure.UNSTABLE)
        failed = np.flatnonzero(self.rule.failed)
        flags = np.zeros(self._env.num_envs, dtype=bool)
        flags[[index for index in failed if self.rule.failure(index) in early]] = True
        return self._flags(flags)

    @property
    def taken(self) -> torch.Tensor:
        """Shape (num_envs,), whether the hand holds the instrument."""
        return self._flags(self.rule.taken)

    def begin(self, envs: Envs) -> None:
        """The hand rests; nothing has happened yet."""
        ids = numbers(envs)
        self.rule.begin(ids, _host(self._tray.rest_m[self._tray.instrument[envs]]))
        self._move(ids)

    def judge(self) -> torch.Tensor:
        """Moves the hand and judges one control period; returns ``success``."""
        reading, sound = self._reading()
        self.rule.abort(~sound)
        self.rule.update(reading, among=sound)
        if self.rule.moved.any():
            self._move(np.flatnonzero(self.rule.moved))
        took = np.flatnonzero(self.rule.took)
        if len(took):
            kinds = numbers(self._tray.instrument)[took]
            self._tray.engine.attach(took, kinds, _host(self._tray.poses())[took])
        return self.success

    def _reading(self) -> tuple[Reading, NDArray[np.bool_]]:
        """What the rule looks at, and where the numbers can be believed, shape (num_envs,)."""
        at, turn = map(_host, self._tray.instruments())
        grasp, speed, pads = _host(self._tray.grasp()[0]), _host(self._tray.speeds()), self._tray.pads().cpu()
        joints = _host(self._env.scene[ROBOT].data.joint_pos.torch)
        reading = Reading(
            time_s=_host(self._env.episode_length_buf * self._env.step_dt),
            instrument_m=at,
            tip_axis=turn[:, :, 0],
            handle_m=at + (turn @ self._handle_m[numbers(self._tray.instrument)][..., None])[..., 0],
            speed_mps=speed,
            fixed_pad=pads[:, 0].numpy(),
            moving_pad=pads[:, 1].numpy(),
            grasp_m=grasp,
            gripper_rad=joints[:, self._jaw],
        )
        every = np.concatenate([at, grasp, joints, speed[:, None]], axis=1)
        return reading, (np.abs(every) < TOO_FAR).all(axis=1)  # what is not a number is not smaller

    def _move(self, ids: NDArray[np.int64]) -> None:
        """Of the two looks of the hand the one in use follows the palm."""
        device = self._env.device
        envs, palms = torch.from_numpy(ids).to(device), self.rule.palm_m[ids]
        palm_m = torch.from_numpy(palms.astype(np.float32)).to(device)
        there = upright(palm_m, torch.full((len(ids),), self._yaw_rad, device=device))
        holds = self.taken[envs]
        for number, name in enumerate(PALM_BODIES):
            shown = (holds == (number == 1))[:, None]
            away = self._tray.parked(len(self._tray.names) + number, len(ids))
            self._tray.put(name, envs, torch.where(shown, there, away))

    def _flags(self, flags: NDArray[np.bool_]) -> torch.Tensor:
        """A copy on the device."""
        return torch.tensor(flags, device=self._env.device)


def _host(values: torch.Tensor) -> NDArray[Any]:
    """A copy on the host, in double precision."""
    copied: NDArray[Any] = values.detach().cpu().numpy().astype(np.float64)
    return copied
