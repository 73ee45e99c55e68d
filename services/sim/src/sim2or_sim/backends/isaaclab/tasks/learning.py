"""What the environments for reinforcement learning share: the contract's state and actions on Isaac Lab."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING

import torch
from isaaclab.envs import mdp
from isaaclab.managers import (
    ActionTerm,
    ActionTermCfg,
    EventTermCfg,
    ManagerTermBase,
    ObservationGroupCfg,
    ObservationTermCfg,
    RewardTermCfg,
    TerminationTermCfg,
)
from isaaclab.utils import configclass

from sim2or_sim.backends.isaaclab.configuration import ROBOT
from sim2or_sim.backends.isaaclab.tasks.room import RoomEnv, RoomEnvCfg
from sim2or_sim.backends.isaaclab.tasks.tray import Envs, tool
from sim2or_sim.rl.action import next_command
from sim2or_sim.rl.state import State

_TOO_FAR = 1e6  # a number beyond this is a physics that blew up [m, rad or rad/s]


class CommandStepAction(ActionTerm):
    """Actions in −1…1 move the joint targets in force by a bounded step, see ``sim2or_sim.rl.action``.

    Attributes:
        command_rad: Shape (num_envs, n_joints), the targets in force, in the profile's order [rad].
    """

    cfg: CommandStepActionCfg

    def __init__(self, cfg: CommandStepActionCfg, env: RoomEnv) -> None:
        super().__init__(cfg, env)
        robot, device = env.robot, env.device
        count = len(robot.joint_names)
        self._order = [self._asset.joint_names.index(name) for name in robot.joint_names]
        self._moves = torch.eye(count, device=device)[:, : cfg.joints]
        self._lower = torch.tensor(robot.lower_rad, dtype=torch.float32, device=device)
        self._upper = torch.tensor(robot.upper_rad, dtype=torch.float32, device=device)
        self._raw = torch.zeros(env.num_envs, cfg.joints, device=device)
        self.command_rad = torch.zeros(env.num_envs, count, device=device)

    @property
    def action_dim(self) -> int:
        """How many joints act."""
        return self.cfg.joints

    @property
    def raw_actions(self) -> torch.Tensor:
        """As they were given."""
        return self._raw

    @property
    def processed_actions(self) -> torch.Tensor:
        """The joint targets [rad]."""
        return self.command_rad

    def process_actions(self, actions: torch.Tensor) -> None:
        """Moves the targets, once in a control period."""
        self._raw[:] = actions
        position = self._asset.data.joint_pos.torch[:, self._order]
        self.command_rad = next_command(
            self.command_rad, position, actions, self._moves, self._lower, self._upper
        )

    def apply_actions(self) -> None:
        """Tells every joint its target."""
        self._asset.actuators.target_command.set_position_index(value=self.command_rad, joint_ids=self._order)

    def reset(self, env_ids: Sequence[int] | torch.Tensor | slice | None = None) -> None:
        """The targets are where the joints are."""
        envs = slice(None) if env_ids is None else env_ids
        self._raw[envs] = 0.0
        self.command_rad[envs] = self._asset.data.joint_pos.torch[envs][:, self._order]


@configclass
class CommandStepActionCfg(ActionTermCfg):
    """How many of the first joints act.

    Attributes:
        joints: That many.
    """

    class_type: type[ActionTerm] = CommandStepAction
    asset_name: str = ROBOT
    joints: int = 0


class Held(ManagerTermBase):
    """The verdict at the end of an episode: achieved in each of its last control periods."""

    def __init__(self, cfg: TerminationTermCfg, env: LearningEnv) -> None:
        super().__init__(cfg, env)
        self._held = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)

    def __call__(
        self, env: LearningEnv, achieved: Callable[[LearningEnv], torch.Tensor], steps: int
    ) -> torch.Tensor:
        """Shape (num_envs,): whether the episode's time is over and it succeeded."""
        self._held = torch.where(achieved(env), self._held + 1, 0)
        succeeded: torch.Tensor = mdp.time_out(env) & (self._held >= steps)
        return succeeded

    def reset(self, env_ids: Sequence[int] | torch.Tensor | slice | None = None) -> None:
        """Nothing was achieved yet."""
        self._held[slice(None) if env_ids is None else env_ids] = 0


def unstable(env: LearningEnv) -> torch.Tensor:
    """Shape (num_envs,): the physics blew up; the episode ends there and earns nothing."""
    state = env.state()
    moving = (state.position_rad, state.velocity_radps, state.tool_m, state.instrument_m)
    sound = torch.cat(moving, dim=-1).abs() < _TOO_FAR  # no number is not sound either
    return ~sound.all(-1)


class LearningEnv(RoomEnv):
    """A room whose state is the contract's, gathered once in a step.

    Attributes:
        target_m: Shape (num_envs, 3), where the tool point shall go, in the base frame [m].
    """

    cfg: LearningEnvCfg

    def load_managers(self) -> None:
        """What the terms look at comes before the terms."""
        arm, robot = self.scene[ROBOT], self.robot
        self.target_m = torch.zeros(self.num_envs, 3, device=self.device)
        self._order = [arm.joint_names.index(name) for name in robot.joint_names]
        self._tool = arm.body_names.index(robot.tool.body)
        self._grasp_m = torch.tensor(robot.tool.grasp_m, device=self.device)
        self._gathered: tuple[int, State] | None = None
        super().load_managers()

    def state(self) -> State:
        """The state now."""
        if self._gathered is None or self._gathered[0] != self.common_step_counter:
            self._gathered = self.common_step_counter, self.gather()
        return self._gathered[1]

    def moved(self) -> None:
        """Something was moved otherwise than by a step: what was gathered is of the past."""
        self._gathered = None

    def gather(self) -> State:
        """Reads the state; what a task has not is zero."""
        arm = self.scene[ROBOT].data
        tool_m, axes = tool(self, self._tool, self._grasp_m)
        none = torch.zeros_like(self.target_m)
        return State(
            position_rad=arm.joint_pos.torch[:, self._order],
            velocity_radps=arm.joint_vel.torch[:, self._order],
            command_rad=self.action_manager.get_term("joints").command_rad,
            tool_m=tool_m,
            tool_axes=axes,
            target_m=self.target_m,
            instrument_m=none,
            tip_axis=none,
            pads=torch.zeros(self.num_envs, 2, dtype=torch.bool, device=self.device),
            action=self.action_manager.action.clamp(-1.0, 1.0),
            previous_action=self.action_manager.prev_action.clamp(-1.0, 1.0),
        )

    def start_from(self, position_rad: torch.Tensor, envs: Envs | None = None) -> None:
        """Puts arms somewhere, at rest, with that as their target: for evaluations, after ``reset``.

        Args:
            position_rad: Shape (n, n_joints), in the profile's order [rad].
            envs: Which environments; default all.
        """
        ids = self.numbers(envs)
        placed = torch.empty_like(position_rad)
        placed[:, self._order] = position_rad
        where = ids.to(torch.int32)
        arm = self.scene[ROBOT]
        arm.write_joint_position_to_sim_index(position=placed, env_ids=where)
        arm.write_joint_velocity_to_sim_index(velocity=torch.zeros_like(placed), env_ids=where)
        self.action_manager.get_term("joints").reset(ids)
        self.sim.forward()
        self.moved()


@configclass
class ObservationsCfg:
    """One vector, as the contract orders it."""

    policy: ObservationGroupCfg = MISSING


@configclass
class ActionsCfg:
    """Steps of the joint targets."""

    joints: CommandStepActionCfg = CommandStepActionCfg()


@configclass
class TerminationsCfg:
    """Episodes end by time, or where the physics blew up; ``success`` is the verdict at their end."""

    success: TerminationTermCfg = MISSING
    time_out: TerminationTermCfg = TerminationTermCfg(func=mdp.time_out, time_out=True)
    unstable: TerminationTermCfg = TerminationTermCfg(func=unstable)


@configclass
class LearningEnvCfg(RoomEnvCfg):
    """Observations, rewards and success of a contract; a task fills in the rest."""

    observations: ObservationsCfg = ObservationsCfg()
    actions: ActionsCfg = ActionsCfg()
    terminations: TerminationsCfg = TerminationsCfg()

    def learn(
        self,
        *,
        joints: int,
        steps: int,
        observation: Callable[..., torch.Tensor],
        reward: Callable[..., torch.Tensor],
        weights: Mapping[str, float],
        achieved: Callable[..., torch.Tensor],
        hold_steps: int,
    ) -> None:
        """Fills in a contract's terms; ``furnish`` comes before it.

        Args:
            joints: How many of the first joints act.
            steps: Control periods in an episode.
            observation: Of the environment: shape (num_envs, n).
            reward: Of the environment and a term's name: shape (num_envs,).
            weights: Of the reward's terms; Isaac Lab multiplies them by the period, as the contract does.
            achieved: Of the environment: shape (num_envs,), whether it is as it should be now.
            hold_steps: For so many control periods at the end.
        """
        self.episode_length_s = steps * self.sim.dt * self.decimation
        self.actions.joints.joints = joints
        self.observations.policy = ObservationGroupCfg(concatenate_terms=True)
        self.observations.policy.observation = ObservationTermCfg(func=observation)
        self.rewards = {
            name: RewardTermCfg(func=reward, weight=weight, params={"name": name})
            for name, weight in weights.items()
        }
        verdict = {"achieved": achieved, "steps": hold_steps}
        self.terminations.success = TerminationTermCfg(func=Held, time_out=True, params=verdict)


def started() -> EventTermCfg:
    """Last of a reset: links go where it has put them, and the state is gathered anew."""
    return EventTermCfg(func=_started, mode="reset")


def _started(env: LearningEnv, env_ids: torch.Tensor | slice) -> None:
    env.sim.forward()
    env.moved()
