"""The rollout stage: trials of an actor on a list of scenarios, through the same loop as the bridge's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
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
from sim2or.rollout import motion
from sim2or.rollout.actor import Actor, RandomActor
from sim2or.rollout.control import control_step
from sim2or.rollout.episode import Episode
from sim2or.rollout.loop import Play, perform, trial
from sim2or.rollout.metrics import mean_squared_jerk, path_length_m
from sim2or.rollout.motion import motion_path
from sim2or.rollout.policy import PolicyActor
from sim2or.rollout.replay import Recording, ReplayActor, read_recordings
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or.settings import load_settings, result_variables
from sim2or.stage import Context, StageResult
from sim2or.worlds.world import World

from sim2or_sim.backends import make_world
from sim2or_sim.rooms import load_room, room_summary

TRIALS, FILMS = "trials.jsonl", "films.jsonl"
FILMED_CAMERA = "room"

SERVICES = {"mujoco": "sim", "isaaclab": "sim-isaaclab"}
"""Engine to the service that rolls out in it, whose keys it has."""

ISAAC_PHYSICS = "newton"
"""What Isaac Lab computes with where nothing is set (``IsaacSettings``)."""


def run(spec: RolloutSpec, context: Context) -> StageResult:
    """Rolls out this shard's scenarios; trials that an earlier attempt finished are kept.

    Args:
        spec: Actor and scenarios.
        context: The input ``policy`` names the artifact that must act, ``commands`` what is replayed.

    Returns:
        Output ``episodes``: ``trials.jsonl`` with one line a trial, the motion of each, and films of some.

    Raises:
        JobError: The actor is a policy and no artifact, or no endpoint, is given; a replay has no commands.
    """
    robot, task = load_robot(spec.robot), load_task(spec.task)
    scenarios = scenario_list(task, spec.list, spec.trials, spec.offset)[context.shard :: context.shards]
    room = load_room(spec.room, robot, task)
    out = context.work / "rollouts"
    out.mkdir(parents=True, exist_ok=True)
    trials = Trials(
        spec,
        robot,
        task,
        out,
        artifact=_artifact(spec, context),
        replayed=_replayed(spec, context),
        room=room.digests["room"] if room else "",
    )
    batch = max(1, min(spec.num_envs, len(scenarios)))
    with closing(make_world(robot, task, batch=batch, backend=spec.engine, room=room)) as world:
        trials.run(scenarios, world, context)
        Films(spec, out, world).make(scenarios, trials.record.lines, context)
    return StageResult({"episodes": out}, _summary(spec, trials.record.lines) | room_summary(room))


@dataclass(frozen=True)
class Replayed:
    """What a replay plays.

    Attributes:
        digest: Of the artifact, or artifacts, that recorded it.
        recordings: By the seed of their scenario.
    """

    digest: str
    recordings: Mapping[int, Recording]


class Trials:
    """Runs one actor's trials in a batch of worlds and keeps their record.

    Args:
        spec: Actor and scenarios.
        robot: The robot.
        task: The task.
        out: Directory of the rollouts; what an earlier attempt recorded there is kept.
        artifact: Digest of the policy that must act; "" for other actors.
        replayed: What a replay plays; None for other actors.
        room: Digest of the operating room; "" for the built-in one.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        robot: RobotProfile,
        task: TaskProfile,
        out: Path,
        *,
        artifact: str,
        replayed: Replayed | None = None,
        room: str = "",
    ) -> None:
        self.record = Record(out / TRIALS)
        self._spec, self._robot, self._task, self._out = spec, robot, task, out
        self._artifact, self._replayed, self._room = artifact, replayed, room
        self._physics = physics_of(spec.engine)
        self._kinematics = Kinematics(robot)
        self._latency_ticks = spec.latency_ticks if spec.actor in ("policy", "random") else 0

    def run(self, scenarios: Sequence[Scenario], world: World, context: Context) -> None:
        """Runs the trials that are not recorded yet, each as soon as a world is free."""
        finished = {line["seed"] for line in self.record.lines}
        waiting = [scenario for scenario in scenarios if scenario.seed not in finished]

        def pulse() -> None:
            done, successes = len(self.record.lines), sum(line["success"] for line in self.record.lines)
            figures = {"successes": successes, "success": successes / done} if done else {}
            context.progress(done, len(scenarios), "trials", **figures)

        pulse()
        with ExitStack() as stack:
            actors = self._actors(world, min(world.spec.batch, len(waiting)), stack)
            # the full torque stage: nothing real can be hurt here
            steps = [
                control_step(self._robot, self._task, StopLatch(TorqueStage.FULL), horizon=actor.horizon)
                for actor in actors
            ]

            def play(index: int, scenario: Scenario) -> Play[dict[str, Any]]:
                episode = yield from trial(
                    world,
                    actors[index],
                    steps[index],
                    scenario,
                    index=index,
                    session=f"{self._spec.actor}-{scenario.seed}",
                    max_steps=self._task.limit_steps + 1,
                    latency_ticks=self._latency_ticks,
                )
                motion.write(motion_path(self._out, scenario.seed), episode)
                return self._describe(scenario, episode)

            for line in perform(world, waiting, play, pulse=pulse):
                self.record.add(line)
                pulse()

    def _actors(self, world: World, count: int, stack: ExitStack) -> list[Actor]:
        """One actor for each world that plays; sockets are closed with the stack."""
        actors = [
            _actor(self._spec, self._artifact, self._replayed, world, self._robot, self._task, index)
            for index in range(count)
        ]
        for actor in actors:
            if isinstance(actor, PolicyActor):
                stack.callback(actor.close)
        return actors

    def _describe(self, scenario: Scenario, episode: Episode) -> dict[str, Any]:
        """The trial's line: outcome, motion, safety and timing, with units in the names."""
        measured = np.array(episode.measured_rad, dtype=np.float64)
        facts = {name: float(value) for name, value in episode.facts.items() if np.isfinite(value)}
        moving_ages = [age for age in episode.age_ns if age >= 0]
        thought_ms = np.array(episode.inference_s or [0.0]) * 1e3
        return facts | {
            "seed": scenario.seed,
            "actor": self._spec.actor,
            "artifact": self._artifact,
            "commands": self._replayed.digest if self._replayed else "",
            "engine": self._spec.engine,
            "physics": self._physics,
            "room": self._room,
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


class Films:
    """Replays some trials from their scenarios and commands, with pictures for people.

    Args:
        spec: How many of each outcome, over all shards, and how they look.
        out: Directory of the rollouts; films of an earlier attempt are kept.
        world: The batch that the trials ran in.
    """

    def __init__(self, spec: RolloutSpec, out: Path, world: World) -> None:
        self._spec, self._out, self._world = spec, out, world
        self._record = Record(out / FILMS)

    def make(
        self, scenarios: Sequence[Scenario], trials: Iterable[Mapping[str, Any]], context: Context
    ) -> None:
        """Films the first successes and the first failures of this shard.

        ``films.jsonl`` says of each whether the replay ended as the trial did; what is seen is then what was
        judged.
        """
        ends = {trial["seed"]: bool(trial["success"]) for trial in trials}
        filmed = {line["seed"] for line in self._record.lines}
        wanted = [s for s in _first(self._spec, scenarios, ends, context.shards) if s.seed not in filmed]

        def play(index: int, scenario: Scenario) -> Play[dict[str, Any]]:
            success = yield from self._film(index, scenario)
            return {"seed": scenario.seed, "replayed_alike": success == ends[scenario.seed]}

        def pulse() -> None:
            context.progress(len(ends), len(scenarios), "trials", films=len(self._record.lines))

        for line in perform(self._world, wanted, play, pulse=pulse):
            self._record.add(line)

    def _film(self, index: int, scenario: Scenario) -> Play[bool]:
        """Plays the commands of a trial; returns whether the world says success this time."""
        height_px = self._spec.film_height_px
        size = {"height": height_px, "width": height_px * 4 // 3}
        pictures: list[NDArray[np.uint8]] = []
        for tick, row in enumerate(motion.read(motion_path(self._out, scenario.seed))):
            if tick % self._spec.film_every_ticks == 0:
                pictures.append(self._world.render(FILMED_CAMERA, index=index, **size))
            yield row["commanded_rad" if np.isfinite(row["commanded_rad"]).all() else "measured_rad"]
        pictures.append(self._world.render(FILMED_CAMERA, index=index, **size))
        with (self._out / f"trial_{scenario.seed}.npz").open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **{f"frames_{FILMED_CAMERA}": np.array(pictures)})
        return self._world.truth(index).success


def physics_of(engine: str) -> str:
    """What an engine computes with, as ``IsaacSettings`` reads it; imports no engine."""
    if engine != "isaaclab":
        return engine
    return result_variables([SERVICES[engine]]).get("SIM2OR_ISAAC_PHYSICS", ISAAC_PHYSICS)


def _first(
    spec: RolloutSpec, scenarios: Sequence[Scenario], ends: Mapping[int, bool], shards: int
) -> list[Scenario]:
    """The scenarios to film: so many of each outcome, in the order of the list."""
    share = {True: -(-spec.films_successes // shards), False: -(-spec.films_failures // shards)}
    of_end = {end: [s for s in scenarios if ends[s.seed] is end] for end in share}
    return [scenario for end, count in share.items() for scenario in of_end[end][:count]]


def _actor(
    spec: RolloutSpec,
    artifact: str,
    replayed: Replayed | None,
    world: World,
    robot: RobotProfile,
    task: TaskProfile,
    index: int,
) -> Actor:
    if replayed is not None:
        return ReplayActor(replayed.recordings, horizon=task.executor.horizon)
    if spec.actor == "expert":
        # MuJoCo may be imported only after make_world chose GL
        from sim2or_sim.expert_actor import ExpertActor

        return ExpertActor(world, robot, task, index)
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
        keys=load_keyring(settings.keys, SERVICES[spec.engine]),
    )


def _artifact(spec: RolloutSpec, context: Context) -> str:
    """The digest of the policy that must act; "" for actors that are none."""
    if spec.actor != "policy":
        return ""
    digests = context.digests.get("policy", ())
    if not digests:
        raise JobError(
            f"rollout: actor {spec.actor!r} needs the input 'policy' (a checkpoint or an exported model); "
            "actors without one: expert, random, replay"
        )
    return digests[0]


def _replayed(spec: RolloutSpec, context: Context) -> Replayed | None:
    """What a replay plays; None for other actors."""
    if spec.actor != "replay":
        return None
    if not context.inputs.get("commands"):
        raise JobError("rollout: actor 'replay' needs the input 'commands' (rollouts or episodes to replay)")
    digest = ",".join(sorted(context.digests["commands"]))
    return Replayed(digest, read_recordings(context.inputs["commands"]))


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
