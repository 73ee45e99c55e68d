"""The rollout stage: trials of an actor on a list of scenarios, through the same loop as the bridge's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sim2or.artifacts.record import Record
from sim2or.bus.keys import load_keyring
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.scenario import Scenario, scenario_list
from sim2or.contracts.task import TaskProfile, load_task
from sim2or.errors import JobError
from sim2or.messages.rollout import RolloutSpec
from sim2or.rollout.actor import Actor, RandomActor
from sim2or.rollout.control import control_step
from sim2or.rollout.episode import Episode
from sim2or.rollout.loop import run_episode
from sim2or.rollout.metrics import mean_squared_jerk, path_length_m
from sim2or.rollout.policy import PolicyActor
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or.settings import load_settings
from sim2or.stage import Context, StageResult
from sim2or.worlds.world import World

from sim2or_sim.backends import make_world

TRIALS = "trials.jsonl"
FILMED_CAMERA = "room"


def run(spec: RolloutSpec, context: Context) -> StageResult:
    """Rolls out this shard's scenarios; trials that an earlier attempt finished are kept.

    Args:
        spec: Actor and scenarios.
        context: The input ``policy`` names the artifact that must act.

    Returns:
        Output ``episodes``: ``trials.jsonl`` with one line a trial, and films of some.

    Raises:
        JobError: The actor is a policy and no artifact, or no endpoint, is given.
    """
    robot, task = load_robot(spec.robot), load_task(spec.task)
    scenarios = scenario_list(task, spec.list, spec.trials, spec.offset)[context.shard :: context.shards]
    out = context.work / "rollouts"
    out.mkdir(parents=True, exist_ok=True)
    record = Record(out / TRIALS)
    world = make_world(robot, task, backend=spec.engine)
    artifact = _artifact(spec, context) if spec.actor == "policy" else ""
    actor = _actor(spec, artifact, world, robot, task)
    try:
        trials = TrialRunner(spec, robot, task, world, actor, artifact)
        _run_all(scenarios, record, trials, context, out)
    finally:
        world.close()
        if isinstance(actor, PolicyActor):
            actor.close()
    return StageResult({"episodes": out}, _summary(spec, record.lines))


def _run_all(
    scenarios: list[Scenario], record: Record, trials: TrialRunner, context: Context, out: Path
) -> None:
    films = Films(trials.spec, record.lines, context.shards)
    successes = sum(trial["success"] for trial in record.lines)
    finished = {trial["seed"] for trial in record.lines}
    context.progress(len(finished), len(scenarios), "trials")
    for scenario in scenarios:
        if scenario.seed in finished:
            continue
        episode = trials.run(scenario)
        line = trials.describe(scenario, episode)
        if films.wants(episode.success):
            line["replayed_alike"] = trials.film(scenario, episode, out / f"trial_{scenario.seed}.npz")
        record.add(line)
        successes += episode.success
        done = len(record.lines)
        context.progress(done, len(scenarios), "trials", successes=successes, success=successes / done)


class Films:
    """Decides which trials are filmed: the first successes and the first failures of this shard.

    Args:
        spec: How many of each, over all shards.
        filmed: Trials of an earlier attempt.
        shards: How many shards share the number.
    """

    def __init__(self, spec: RolloutSpec, filmed: Iterable[dict[str, Any]], shards: int) -> None:
        share = {True: spec.films_successes, False: spec.films_failures}
        self._left = {success: -(-count // shards) for success, count in share.items()}
        for trial in filmed:
            if "replayed_alike" in trial:
                self._left[trial["success"]] -= 1

    def wants(self, success: bool) -> bool:
        """Whether a trial with this outcome is to be filmed; counts it."""
        if self._left[success] <= 0:
            return False
        self._left[success] -= 1
        return True


class TrialRunner:
    """Runs, describes and films the trials of one actor in one world."""

    def __init__(
        self,
        spec: RolloutSpec,
        robot: RobotProfile,
        task: TaskProfile,
        world: World,
        actor: Actor,
        artifact: str,
    ) -> None:
        self.spec, self._task, self._world, self._actor = spec, task, world, actor
        self._artifact = artifact
        self._kinematics = Kinematics(robot)
        # the full torque stage: nothing real can be hurt here
        self._step = control_step(robot, task, StopLatch(TorqueStage.FULL), horizon=actor.horizon)
        self._latency_ticks = 0 if spec.actor == "expert" else spec.latency_ticks

    def run(self, scenario: Scenario) -> Episode:
        """Runs one trial."""
        return run_episode(
            self._world,
            self._actor,
            self._step,
            scenario,
            session=f"{self.spec.actor}-{scenario.seed}",
            max_steps=self._task.limit_steps + 1,
            latency_ticks=self._latency_ticks,
        )

    def describe(self, scenario: Scenario, episode: Episode) -> dict[str, Any]:
        """The trial's line: outcome, motion, safety and timing, with units in the names."""
        measured = np.array(episode.measured_rad, dtype=np.float64)
        facts = {name: float(value) for name, value in episode.facts.items() if np.isfinite(value)}
        moving_ages = [age for age in episode.age_ns if age >= 0]
        thought_ms = np.array(episode.inference_s or [0.0]) * 1e3
        return facts | {
            "seed": scenario.seed,
            "actor": self.spec.actor,
            "artifact": self._artifact,
            "instrument": scenario.instrument,
            "request": scenario.request,
            "success": episode.success,
            "failure": episode.failure,
            "dropped": bool(facts.get("dropped", 0.0)),
            "steps": episode.steps,
            "time_s": round(episode.steps * self._task.period_s, 6),
            "path_length_m": path_length_m(self._kinematics.grasp_position(measured)),
            "mean_squared_jerk_rad2ps6": mean_squared_jerk(measured, self._task.period_s),
            "holds": sum(episode.hold),
            "safety": dict(episode.safety),
            "chunks": dict(episode.chunks),
            "stale": episode.safety["stale"],
            "latency_ticks": self._latency_ticks,
            "age_max_ms": max(moving_ages, default=0) / 1e6,
            "inference_p50_ms": float(np.percentile(thought_ms, 50)),
            "inference_p95_ms": float(np.percentile(thought_ms, 95)),
            "scenario": scenario.model_dump(mode="json"),
        }

    def film(self, scenario: Scenario, episode: Episode, path: Path) -> bool:
        """Replays a trial from its scenario and commands, with pictures for people.

        Returns:
            Whether the replay ended as the trial did; what is seen is then what was judged.
        """
        height_px = self.spec.film_height_px
        size = {"height": height_px, "width": height_px * 4 // 3}
        pictures: list[NDArray[np.uint8]] = []
        self._world.reset([scenario])
        for tick, (command, measured) in enumerate(
            zip(episode.commanded_rad, episode.measured_rad, strict=True)
        ):
            if tick % self.spec.film_every_ticks == 0:
                pictures.append(self._world.render(FILMED_CAMERA, **size))
            self._world.step((command if np.isfinite(command).all() else measured)[None])
        pictures.append(self._world.render(FILMED_CAMERA, **size))
        films = {f"frames_{FILMED_CAMERA}": np.array(pictures)}
        with path.open("wb") as file:
            np.savez_compressed(file, **episode.arrays(), **films)  # type: ignore[arg-type]
        return self._world.truth(0).success == episode.success


def _actor(spec: RolloutSpec, artifact: str, world: World, robot: RobotProfile, task: TaskProfile) -> Actor:
    if spec.actor == "expert":
        from sim2or_sim.expert_actor import (
            ExpertActor,
        )  # MuJoCo may be imported only after make_world chose GL

        return ExpertActor(world, robot, task)
    if spec.actor == "random":
        return RandomActor(robot, horizon=task.executor.horizon)
    settings = load_settings()
    if not settings.policy_endpoint:
        raise JobError("rollout: actor 'policy' needs a policy server: set SIM2OR_POLICY_ENDPOINT")
    return PolicyActor(
        settings.policy_endpoint,
        artifact,
        horizon=task.executor.horizon,
        deadline_ms=spec.deadline_ms,
        keys=load_keyring(settings.keys, "sim"),
    )


def _artifact(spec: RolloutSpec, context: Context) -> str:
    digests = context.digests.get("policy", ())
    if not digests:
        raise JobError(
            f"rollout: actor {spec.actor!r} needs the input 'policy' (a checkpoint or an exported model); "
            "actors without one: expert, random"
        )
    return digests[0]


def _summary(spec: RolloutSpec, trials: Iterable[dict[str, Any]]) -> dict[str, Any]:
    found = list(trials)
    return {
        "actor": spec.actor,
        "list": spec.list,
        "trials": len(found),
        "successes": sum(trial["success"] for trial in found),
        "holds": sum(trial["holds"] for trial in found),
        "stale": sum(trial["stale"] for trial in found),
        "failures": {trial["seed"]: trial["failure"] for trial in found if not trial["success"]},
    }
