"""The one loop, on a world whose servo is perfect and whose task is to reach a pose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import Scenario, sample_scenario
from sim2or.contracts.task import load_task
from sim2or.messages.observation import Observation
from sim2or.rollout.actor import Actor, Chunk, PromptActor, RandomActor
from sim2or.rollout.chunk import ChunkExecutor
from sim2or.rollout.control import ControlStep
from sim2or.rollout.episode import Episode
from sim2or.rollout.loop import Play, perform, trial
from sim2or.rollout.metrics import mean_squared_jerk, path_length_m
from sim2or.rollout.replay import Recording, ReplayActor
from sim2or.safety.kernel import SafetyKernel
from sim2or.safety.limits import limits_of
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or.worlds.world import Sensed, Truth, WorldSpec

ROBOT, TASK = load_robot("so101"), load_task("handover")
PERIOD_NS = round(1e9 / 30)
HOME = np.array(ROBOT.home_rad, dtype=np.float32)
GOAL = HOME + np.float32(0.1)
SCENARIO = sample_scenario(TASK, 1)


class PerfectServo:
    """A world without physics: what is commanded is where the arm is. Done when it is at ``GOAL``."""

    spec = WorldSpec("so101", "handover", ROBOT.joint_names, {}, 30.0, 1)

    def reset(self, scenarios: Sequence[Scenario], ids: Sequence[int] | None = None) -> None:
        self.tick, self.pose, self.pictures = 0, HOME, 0

    def step(self, targets_rad: np.ndarray) -> None:
        self.tick, self.pose = self.tick + 1, targets_rad[0]

    def sense(self, index: int = 0, *, cameras: bool = True) -> Sensed:
        self.pictures += cameras
        return Sensed(self.pose, np.zeros(6, np.float32), {}, self.tick * PERIOD_NS)

    def truth(self, index: int = 0) -> Truth:
        there = bool(np.abs(self.pose - GOAL).max() < 1e-3)
        return Truth(np.zeros(12, np.float32), False, there, there, "", {"handle_angle_rad": 0.1})


class Goer(PromptActor):
    """Wants the goal at once, from pictures."""

    horizon, sees = 20, True

    def __init__(self, target: np.ndarray = GOAL) -> None:
        self.target, self.asked = target, list[int]()

    def reset(self, scenario: Scenario) -> None:
        self.asked = []

    def act(self, observation: Observation) -> Chunk:
        self.asked.append(observation.tick)
        actions = np.repeat(self.target[None].astype(np.float32), 20, axis=0)
        return Chunk(actions, observation.captured_ns, observation.episode, 0.01)


def control(horizon: int = 20, execute: int = 5) -> ControlStep:
    executor = ChunkExecutor(horizon=horizon, execute=execute, period_ns=PERIOD_NS, max_age_ns=300_000_000)
    grasp = Kinematics(ROBOT).grasp_position
    kernel = SafetyKernel(limits_of(ROBOT, TASK), grasp, 1 / 30, StopLatch(TorqueStage.FULL))
    return ControlStep(executor, kernel)


def run(
    actor: Actor, latency_ticks: int = 0, max_steps: int = 60, world: PerfectServo | None = None
) -> Episode:
    step = control(actor.horizon, min(5, actor.horizon))
    servo = world or PerfectServo()

    def play(index: int, scenario: Scenario) -> Play[Episode]:
        limits = {"session": "s", "max_steps": max_steps, "latency_ticks": latency_ticks}
        return trial(servo, actor, step, scenario, index=index, **limits)  # type: ignore[arg-type]

    return next(perform(servo, [SCENARIO], play))  # type: ignore[arg-type]


def test_an_actor_reaches_its_goal_through_the_kernel() -> None:
    """The far goal becomes limited motion, the world says success, and the record has one row a tick."""
    episode = run(Goer())
    assert (episode.success, episode.failure) == (True, "")
    assert episode.safety["blend"] > 0
    rows = episode.arrays()
    assert {len(row) for row in rows.values()} == {episode.steps}
    np.testing.assert_array_equal(rows["measured_rad"][1:], rows["commanded_rad"][:-1])


def test_the_policy_is_asked_and_rendered_for_every_fifth_tick_only() -> None:
    """Pictures are taken only when an observation is due."""
    world, actor = PerfectServo(), Goer(HOME)
    run(actor, max_steps=12, world=world)
    assert actor.asked == [0, 5, 10]
    assert world.pictures == 3


@pytest.mark.parametrize("latency_ticks", [0, 1, 3])
def test_injected_latency_delays_the_first_motion_and_ages_commands(latency_ticks: int) -> None:
    """Until the first answer arrives the arm is held; afterwards the command's age grows from the latency."""
    episode = run(Goer(HOME), latency_ticks, max_steps=9)
    assert episode.hold == [True] * latency_ticks + [False] * (9 - latency_ticks)
    assert episode.age_ns[latency_ticks] == latency_ticks * PERIOD_NS
    assert max(episode.age_ns) == (4 + latency_ticks) * PERIOD_NS


def test_latency_beyond_the_age_limit_means_holds_and_no_stale_command() -> None:
    """With answers ten ticks late every chunk is refused as too old and the arm never moves."""
    episode = run(Goer(), latency_ticks=10, max_steps=40)
    assert all(episode.hold)
    assert episode.chunks["too_old"] > 0
    assert episode.failure == "unfinished"
    assert np.abs(episode.arrays()["measured_rad"] - HOME).max() == 0


def test_a_replay_commands_what_was_recorded() -> None:
    """Slow recorded actions pass unchanged."""
    recorded = (HOME + np.linspace(0, 0.05, 30)[:, None]).astype(np.float32)
    recordings = {SCENARIO.seed: Recording(SCENARIO.model_dump(mode="json"), recorded)}
    episode = run(ReplayActor(recordings, horizon=20), max_steps=30)
    np.testing.assert_allclose(episode.arrays()["commanded_rad"], recorded, atol=1e-6)


def test_a_random_actor_repeats_itself_by_scenario_and_stays_near_home() -> None:
    """Equal seeds give equal chunks, within the spread and the joint range."""
    actor = RandomActor(ROBOT, horizon=20)
    ask = Observation(
        robot="so101",
        task="handover",
        request="",
        episode="s",
        tick=0,
        state_rad=HOME,
        images={},
        captured_ns=0,
    )
    chunks = []
    for seed in (1, 1, 2):
        actor.reset(sample_scenario(TASK, seed))
        chunks.append(actor.act(ask).actions_rad)
    np.testing.assert_array_equal(chunks[0], chunks[1])
    assert (chunks[0] != chunks[2]).any()
    assert np.abs(chunks[0] - HOME).max() <= 0.5 + 1e-6
    assert (chunks[0] <= ROBOT.upper_rad).all()


class Counters:
    """A batch of worlds that only count: world n of scenario seed s is at s + its periods since the reset."""

    def __init__(self, batch: int) -> None:
        self.spec = WorldSpec("so101", "handover", ("j",), {}, 30.0, batch)
        self.values, self.resets = [0.0] * batch, list[dict[int, int]]()

    def reset(self, scenarios: Sequence[Scenario], ids: Sequence[int]) -> None:
        self.resets.append({index: s.seed for index, s in zip(ids, scenarios, strict=True)})
        for index, scenario in zip(ids, scenarios, strict=True):
            self.values[index] = float(scenario.seed)

    def step(self, targets_rad: np.ndarray) -> None:
        self.told = targets_rad[:, 0].tolist()
        self.values = [value + 1 for value in self.values]


def test_a_free_world_begins_the_next_scenario_and_the_others_go_on() -> None:
    """Episodes of 2, 4, 1 and 1 periods in two worlds: begun in order, told in their own world."""
    world, lengths, told = Counters(2), {10: 2, 20: 4, 30: 1, 40: 1}, list[list[float]]()

    def play(index: int, scenario: Scenario) -> Play[tuple[int, int, float]]:
        for tick in range(lengths[scenario.seed]):
            assert world.values[index] == scenario.seed + tick
            yield np.array([scenario.seed], np.float32)
        return scenario.seed, index, world.values[index]

    scenarios = [SCENARIO.model_copy(update={"seed": seed}) for seed in lengths]
    pulse = lambda: told.append(world.told)  # noqa: E731
    ended = list(perform(world, scenarios, play, pulse=pulse))  # type: ignore[arg-type]
    assert ended == [(10, 0, 12.0), (30, 0, 31.0), (40, 0, 41.0), (20, 1, 24.0)]
    assert world.resets == [{0: 10, 1: 20}, {0: 30}, {0: 40}]
    assert told == [[10, 20], [10, 20], [30, 20], [40, 20]]


def test_every_episode_has_asked_before_one_waits() -> None:
    """What episodes do before they give None happens in all of them before any goes on."""
    world, order = Counters(3), list[str]()

    def play(index: int, scenario: Scenario) -> Play[None]:
        for _ in range(2):
            order.append(f"ask {index}")
            yield None
            order.append(f"wait {index}")
            yield np.zeros(1, np.float32)

    list(perform(world, [SCENARIO] * 3, play))  # type: ignore[arg-type]
    assert order == ["ask 0", "ask 1", "ask 2", "wait 0", "wait 1", "wait 2"] * 2


def test_path_length_by_hand() -> None:
    """3-4-5: two legs of 5 m."""
    assert path_length_m(np.array([[0, 0, 0], [3, 4, 0], [3, 4, 5]])) == 10.0


def test_jerk_by_hand() -> None:
    """q = t³ has the third derivative 6 everywhere; three rows have none."""
    time_s = np.arange(6.0)
    assert mean_squared_jerk(time_s[:, None] ** 3, 1.0) == pytest.approx(36.0)
    assert mean_squared_jerk(np.zeros((3, 1)), 1.0) == 0.0
