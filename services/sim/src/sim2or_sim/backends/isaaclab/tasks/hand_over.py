"""``Sim2or-HandOver-SO101-v0``: the whole hand-over, for teleoperation, recording and imitation."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any

import torch
from isaaclab.envs import mdp
from isaaclab.managers import EventTermCfg, ObservationGroupCfg, ObservationTermCfg, TerminationTermCfg
from isaaclab.utils import configclass
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.task import TaskProfile, load_task
from sim2or.errors import ConfigError

from sim2or_sim.backends.isaaclab.configuration import ROBOT, IsaacSettings
from sim2or_sim.backends.isaaclab.tasks import HAND_OVER, room, tray
from sim2or_sim.backends.isaaclab.tasks.room import RoomEnv, RoomEnvCfg
from sim2or_sim.backends.isaaclab.tasks.surgeon import Surgeon
from sim2or_sim.backends.isaaclab.tasks.tray import Tray


def success(env: HandOverEnv) -> torch.Tensor:
    """Whether the instrument was handed over, by the task's rule; moves the surgeon's hand."""
    return env.surgeon.judge()


def failed(env: HandOverEnv) -> torch.Tensor:
    """Whether the instrument was dropped or the physics became unstable."""
    return env.surgeon.failed


@configclass
class ObservationsCfg:
    """What the robot senses; the camera that stands still comes first, so that no picture is of the past."""

    policy: ObservationGroupCfg = MISSING


@configclass
class ActionsCfg:
    """Joint targets [rad], in the profile's order."""

    joint_position: mdp.JointPositionActionCfg = MISSING


@configclass
class TerminationsCfg:
    """How an episode ends; the recorder takes its verdict from ``success``."""

    success: TerminationTermCfg = TerminationTermCfg(func=success)
    failed: TerminationTermCfg = TerminationTermCfg(func=failed)
    time_out: TerminationTermCfg = TerminationTermCfg(func=mdp.time_out, time_out=True)


@configclass
class HandOverEnvCfg(RoomEnvCfg):
    """The hand-over with the task's own physics step, cameras and ranges.

    Attributes:
        env_name: What recordings say they come from.
    """

    env_name: str = HAND_OVER
    observations: ObservationsCfg = ObservationsCfg()
    actions: ActionsCfg = ActionsCfg()
    terminations: TerminationsCfg = TerminationsCfg()
    rewards: object = None

    def __post_init__(self) -> None:
        robot, task = load_robot(self.robot), load_task(self.task)
        self.furnish(task)
        room.add_cameras(self, task)
        self.observations.policy = _senses(robot, task)
        self.actions.joint_position = mdp.JointPositionActionCfg(
            asset_name=ROBOT,
            joint_names=list(robot.joint_names),
            scale=1.0,
            use_default_offset=False,
            preserve_order=True,
            clip={joint.name: (joint.lower_rad, joint.upper_rad) for joint in robot.joints},
        )
        self.events = {
            "to_default": room.to_default(),
            "start": room.start(robot.joint_names, task.ranges.start_rad),
            **(room.varied(robot, task, self.instruments) if self.randomize else {}),
            "laid": tray.laid(task.ranges),
            "rest": EventTermCfg(func=_rest, mode="reset"),
            "settled": room.settled(),
        }

    def get_ep_meta(self) -> dict[str, Any]:
        """What a recording says about itself (``env_args``): Isaac Lab's figures, and whose joints."""
        robot, task = load_robot(self.robot), load_task(self.task)
        return {
            "sim_args": {
                "dt": self.sim.dt,
                "decimation": self.decimation,
                "render_interval": self.sim.render_interval,
                "num_envs": self.scene.num_envs,
            },
            "robot": robot.name,
            "task": task.name,
            "joints": list(robot.joint_names),
            "digests": {"robot": robot.digest(), "task": task.digest()},
        }


class HandOverEnv(RoomEnv):
    """The room with an instrument on its tray and a surgeon who takes it.

    Raises:
        ConfigError: Other physics than Newton.

    Attributes:
        tray: The instruments.
        surgeon: The hand and the rule.
    """

    cfg: HandOverEnvCfg

    def __init__(self, cfg: HandOverEnvCfg, render_mode: str | None = None, **kwargs: Any) -> None:
        physics = IsaacSettings().physics
        if physics != "newton":
            raise ConfigError(
                f"{HAND_OVER}: SIM2OR_ISAAC_PHYSICS = {physics!r}; valid: 'newton', whose weld is the "
                "surgeon's grip here; the World backend hands over with PhysX too"
            )
        super().__init__(cfg, render_mode, **kwargs)

    def load_managers(self) -> None:
        """What the terms look at comes before the terms."""
        self.tray = Tray(self)
        self.surgeon = Surgeon(self)
        super().load_managers()


def _senses(robot: RobotProfile, task: TaskProfile) -> ObservationGroupCfg:
    joints = {"asset_cfg": room.joints(robot.joint_names)}
    still_first = sorted(task.cameras, key=lambda name: task.cameras[name].body != robot.bodies[0].name)
    terms = {
        "joint_pos": ObservationTermCfg(func=mdp.joint_pos, params=joints),
        "joint_vel": ObservationTermCfg(func=mdp.joint_vel, params=joints),
        "actions": ObservationTermCfg(func=mdp.last_action),
        **{name: room.picture(name) for name in still_first},
    }
    group = ObservationGroupCfg(concatenate_terms=False)
    for name, term in terms.items():
        setattr(group, name, term)
    return group


def _rest(env: HandOverEnv, env_ids: torch.Tensor | slice) -> None:
    env.surgeon.begin(env.numbers(env_ids))
