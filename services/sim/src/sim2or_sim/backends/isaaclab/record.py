"""Records demonstrations of the scripted expert in Isaac Lab, as Isaac Lab's users record theirs.

::

    .venv-isaac/bin/python -m sim2or_sim.backends.isaaclab.record --demos 20 --num-envs 4 --out demos.hdf5

The file is Isaac Lab's own (RecorderManager, format version 1); docs/recording.md says how it becomes a
dataset.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import typer
from numpy.typing import NDArray
from sim2or.cli.terminal import CleanGroup
from sim2or.contracts.scenario import Scenario
from sim2or.errors import ConfigError, JobError
from sim2or.worlds.world import Sensed, Truth

if TYPE_CHECKING:
    from sim2or.worlds.world import World

    from sim2or_sim.backends.isaaclab.tasks.hand_over import HandOverEnv
    from sim2or_sim.expert import Expert

ATTEMPTS = 4
"""Hand-overs that may be tried for each that is asked for, and as many for each environment."""


class Onlooker:
    """What an expert looks at: Isaac Lab's environment in the words of the World protocol."""

    def __init__(self, env: HandOverEnv) -> None:
        self._env = env
        self._steps = -1
        self._truth = np.zeros((env.num_envs, 12), np.float32)

    def sense(self, index: int = 0, *, cameras: bool = True) -> Sensed:
        """The sensors of one environment; pictures are the recorder's business.

        Raises:
            ConfigError: Pictures were asked for.
        """
        if cameras:
            raise ConfigError("sense: the recorder takes the pictures; ask with cameras=False")
        seen, env = self._env.obs_buf["policy"], self._env
        return Sensed(
            position_rad=seen["joint_pos"][index].cpu().numpy(),
            velocity_radps=seen["joint_vel"][index].cpu().numpy(),
            images={},
            time_ns=round(int(env.episode_length_buf[index]) * env.step_dt * 1e9),
        )

    def truth(self, index: int = 0) -> Truth:
        """What only the simulator knows about one environment now."""
        rule = self._env.surgeon.rule
        if self._steps != self._env.common_step_counter:
            self._steps, self._truth = self._env.common_step_counter, self._env.tray.truth().cpu().numpy()
        return Truth(
            instrument=self._truth[index],
            taken=bool(rule.taken[index]),
            done=bool(rule.done[index]),
            success=bool(rule.success[index]),
            failure=str(rule.failure(index)),
        )

    def scenario(self, index: int) -> Scenario:
        """What was drawn for one environment, as far as the expert needs it."""
        task, tray = self._env.task, self._env.tray
        name = tray.names[int(tray.instrument[index])]
        return Scenario(task=task.name, seed=0, instrument=name, request=task.requests[name])


def record(
    env: HandOverEnv, demos: int, told: Callable[[int, int], None] = lambda done, tried: None
) -> dict[str, Any]:
    """Lets the expert hand over until enough succeeded; the environment's recorder writes them.

    Args:
        env: The environment.
        demos: At least so many; more when several succeed in the same step.
        told: Given the numbers of demonstrations and of attempts so far.

    Returns:
        ``demos``, ``attempts`` and ``steps``.

    Raises:
        JobError: The expert fails again and again.
    """
    from sim2or_sim.expert import Expert

    experts = [Expert(env.robot, env.task) for _ in range(env.num_envs)]
    steps = done = tried = 0
    onlooker = Onlooker(env)
    world = cast("World", onlooker)  # the expert senses and asks for the truth, no more
    env.reset()
    _begin(experts, onlooker, range(env.num_envs))
    while done < demos:
        if tried >= ATTEMPTS * (demos + env.num_envs):
            raise JobError(
                f"record: {done} of {demos} demonstrations after {tried} attempts; the expert fails here"
            )
        targets = np.stack([expert.act(world, index)[1] for index, expert in enumerate(experts)])
        _, _, ended, late, _ = env.step(_tensor(targets))
        steps += 1
        over = (ended | late).nonzero().flatten().tolist()
        tried += len(over)
        done = env.recorder_manager.exported_successful_episode_count
        _begin(experts, onlooker, over)
        told(done, tried)
    return {"demos": done, "attempts": tried, "steps": steps}


app = typer.Typer(cls=CleanGroup, add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    out: Annotated[Path, typer.Option(help="The HDF5 file; it must not exist.")],
    demos: Annotated[int, typer.Option(min=1, help="At least so many demonstrations.")] = 10,
    num_envs: Annotated[int, typer.Option(min=1, help="Environments that step together.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    task: Annotated[str, typer.Option(help="Task profile.")] = "handover",
) -> None:
    """Record demonstrations of the scripted expert in Isaac Lab."""
    import gymnasium
    from rich.progress import Progress

    from sim2or_sim.backends.isaaclab.tasks import HAND_OVER
    from sim2or_sim.backends.isaaclab.tasks.demonstrations import demonstrations
    from sim2or_sim.backends.isaaclab.tasks.hand_over import HandOverEnvCfg

    if out.exists():
        raise ConfigError(f"--out {out}: exists already; give another name or remove it")
    if out.suffix != ".hdf5":
        raise ConfigError(f"--out {out}: the file's name must end in .hdf5")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial.hdf5")
    cfg = HandOverEnvCfg(task=task, recorders=demonstrations(partial))
    cfg.scene.num_envs, cfg.seed = num_envs, seed
    env = cast("HandOverEnv", gymnasium.make(HAND_OVER, cfg=cfg).unwrapped)
    with Progress() as bar:
        shown = bar.add_task("demonstrations", total=demos)
        counts = record(env, demos, lambda done, tried: bar.update(shown, completed=min(done, demos)))
    env.recorder_manager.close()
    env.close()
    partial.rename(out)
    typer.echo(
        f"{out}: {counts['demos']} demonstrations of {counts['attempts']} attempts, {counts['steps']} steps"
    )


def _begin(experts: list[Expert], onlooker: Onlooker, indices: Any) -> None:
    for index in indices:
        experts[index].reset(cast("World", onlooker), index, onlooker.scenario(index))


def _tensor(targets: NDArray[np.float32]) -> Any:
    import torch

    return torch.from_numpy(targets)


if __name__ == "__main__":
    app()
