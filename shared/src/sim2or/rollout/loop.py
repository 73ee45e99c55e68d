"""The one loop: world × actor → episode, with the chunk executor and the safety kernel between them."""

from __future__ import annotations

from collections.abc import Callable

from sim2or.contracts.scenario import Scenario
from sim2or.messages.observation import Observation
from sim2or.rollout.actor import Actor, Chunk
from sim2or.rollout.control import ControlStep
from sim2or.rollout.episode import Episode
from sim2or.rollout.latency import DelayLine
from sim2or.worlds.world import Sensed, World, WorldSpec


def run_episode(
    world: World,
    actor: Actor,
    step: ControlStep,
    scenario: Scenario,
    *,
    session: str,
    max_steps: int,
    latency_ticks: int = 0,
    watch: Callable[[int], None] | None = None,
) -> Episode:
    """Runs one scenario to its end in a simulated world.

    Args:
        world: A batch of one; it is reset to the scenario.
        actor: Gives chunks of actions.
        step: Executor and kernel; reset here.
        scenario: What the episode starts from.
        session: The episode's name; chunks of other sessions are refused.
        max_steps: An episode that the world has not ended by then fails with "unfinished".
        latency_ticks: The actor's answer arrives so many ticks after its question.
        watch: Called before every tick with its number, for example to take pictures.

    Returns:
        The episode with the world's verdict.
    """
    world.reset([scenario])
    actor.reset(scenario)
    step.reset(session)
    episode, answers = Episode(session), DelayLine[Chunk](latency_ticks)
    for tick in range(max_steps):
        if watch is not None:
            watch(tick)
        now_ns = tick * step.executor.period_ns
        asks = step.executor.wants(now_ns)
        sensed = world.sense(0, cameras=asks and actor.sees)
        if asks:
            step.executor.requested(now_ns)
            chunk = actor.act(observe(sensed, world.spec, scenario.request, session, tick))
            episode.inference_s.append(chunk.inference_s)
            answers.put(chunk, tick)
        for chunk in answers.due(tick):
            step.accept(chunk, sensed.time_ns)
        command = step.decide(sensed.position_rad, measured_ns=sensed.time_ns, at_ns=sensed.time_ns)
        episode.add(sensed, command, sensed.time_ns)
        target = command.decision.target_rad
        world.step((sensed.position_rad if target is None else target)[None])
        if world.truth(0).done:
            break
    truth = world.truth(0)
    episode.success, episode.facts = truth.success, dict(truth.facts)
    episode.failure = "" if truth.success else (truth.failure or "unfinished")
    episode.chunks = step.executor.counts
    return episode


def observe(sensed: Sensed, spec: WorldSpec, request: str, session: str, tick: int) -> Observation:
    """The message that asks an actor, from what the sensors say."""
    return Observation(
        robot=spec.robot,
        task=spec.task,
        request=request,
        episode=session,
        tick=tick,
        state_rad=sensed.position_rad,
        images=dict(sensed.images),
        captured_ns=sensed.time_ns,
    )
