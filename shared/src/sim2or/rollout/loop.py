"""The one loop: worlds × actors → episodes, with the chunk executor and the safety kernel between them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from sim2or.contracts.scenario import Scenario
from sim2or.messages.observation import Observation
from sim2or.rollout.actor import Actor, Chunk
from sim2or.rollout.control import ControlStep
from sim2or.rollout.episode import Episode
from sim2or.rollout.latency import DelayLine
from sim2or.worlds.world import Sensed, World, WorldSpec

type Targets = NDArray[np.float32]
type Play[E] = Generator[Targets | None, None, E]
"""An episode under way in one world of a batch. Before each control period it gives the targets of that
period, shape (n_joints,), [rad]; before these it may give None, and goes on when every other episode has come
as far, so that what they ask for is under way together. It returns what became of it."""


def perform[E](
    world: World,
    scenarios: Iterable[Scenario],
    play: Callable[[int, Scenario], Play[E]],
    *,
    pulse: Callable[[], None] = lambda: None,
) -> Iterator[E]:
    """Plays every scenario in a batch of worlds: where an episode has ended, the next scenario begins.

    Args:
        world: The batch; worlds that have nothing left to play hold their last targets.
        scenarios: In the order in which they begin.
        play: Makes the episode of a scenario in the world with that number, which was just reset to it.
        pulse: Called after every control period, for example to report that work goes on.

    Yields:
        What became of each episode, as soon as it has ended.
    """
    waiting, live = iter(scenarios), dict[int, Play[E]]()
    told = dict[int, Targets | None]()
    targets = np.zeros((world.spec.batch, len(world.spec.joints)), np.float32)
    while True:
        begun = dict(zip((n for n in range(world.spec.batch) if n not in live), waiting))  # noqa: B905 - either may end first
        if begun:
            world.reset(list(begun.values()), list(begun))
            live |= {number: play(number, scenario) for number, scenario in begun.items()}
        if not live:
            return
        ended = list[E]()
        for number in sorted(live.keys() - told.keys()):
            try:
                told[number] = next(live[number])
            except StopIteration as end:
                del live[number]
                ended.append(end.value)
        yield from ended
        if ended:
            continue
        for number, target in told.items():
            targets[number] = next(live[number]) if target is None else target
        world.step(targets.copy())
        told.clear()
        pulse()


def trial(
    world: World,
    actor: Actor,
    step: ControlStep,
    scenario: Scenario,
    *,
    index: int = 0,
    session: str,
    max_steps: int,
    latency_ticks: int = 0,
) -> Play[Episode]:
    """Runs one scenario to its end in a simulated world.

    Args:
        world: A batch, for ``perform``.
        actor: Gives chunks of actions; nobody else's meanwhile.
        step: Executor and kernel, likewise; reset here.
        scenario: What the episode starts from.
        index: Which world of the batch.
        session: The episode's name; chunks of other sessions are refused.
        max_steps: An episode that the world has not ended by then fails with "unfinished".
        latency_ticks: The actor's answer arrives so many ticks after its question.

    Returns:
        The episode with the world's verdict.
    """
    actor.reset(scenario)
    step.reset(session)
    episode, answers = Episode(session), DelayLine[Chunk](latency_ticks)
    truth = world.truth(index)
    for tick in range(max_steps):
        now_ns = tick * step.executor.period_ns
        asks = step.executor.wants(now_ns)
        sensed = world.sense(index, cameras=asks and actor.sees)
        if asks:
            step.executor.requested(now_ns)
            actor.ask(observe(sensed, world.spec, scenario.request, session, tick))
            yield None
            chunk = actor.answer()
            episode.inference_s.append(chunk.inference_s)
            answers.put(chunk, tick)
        for chunk in answers.due(tick):
            step.accept(chunk, sensed.time_ns)
        command = step.decide(sensed.position_rad, measured_ns=sensed.time_ns, at_ns=sensed.time_ns)
        episode.add(sensed, command, sensed.time_ns, truth)
        target = command.decision.target_rad
        yield sensed.position_rad if target is None else target
        truth = world.truth(index)
        if truth.done:
            break
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
