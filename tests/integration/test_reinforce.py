"""Learning by trial from end to end: learnt on MuJoCo, exported, served, obeyed in the full room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.artifacts.store import Store
from sim2or.bus.rpc import PolicyClient
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Channel, Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.reinforce import ReinforceSpec
from sim2or.rollout.control import control_step
from sim2or.rollout.goal import GoalActor
from sim2or.rollout.loop import perform, trial
from sim2or.rollout.policy import PolicyActor
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or.stage import StageResult
from sim2or_sim.backends import make_world
from sim2or_sim.rl.export import REACH_REQUEST
from sim2or_sim.rl.reach import EPISODE_STEPS, TOLERANCE_M
from sim2or_sim.rl.stage import JOURNAL_FILE, run
from sim2or_sim.rl.starts import listed_starts

ROBOT, TASK = load_robot("so101"), load_task("handover")
SPEC = ReinforceSpec(num_envs=256, iterations=50, evaluate_list="validation", evaluate_episodes=100)
TARGETS = 6


@dataclass
class Job:
    """A context without a bus."""

    work: Path
    digests: Mapping[str, Sequence[str]] = field(default_factory=dict)
    inputs: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    shard: int = 0
    shards: int = 1

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Nobody listens."""


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    """A quarter of a million steps of reaching."""
    return run(SPEC, Job(tmp_path_factory.mktemp("reach")))


@pytest.fixture(scope="module")
def served(learnt: StageResult, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The policy server's process: its endpoint, and the digest of what was learnt."""
    store = Store(tmp_path_factory.mktemp("store"))
    digest = store.put(learnt.outputs["model"], kind="exported-model").digest
    with tempfile.TemporaryDirectory(prefix="s2o-") as directory:
        endpoint = f"ipc://{directory}/policy"
        settings = {
            "SIM2OR_POLICY_ENDPOINT": endpoint,
            "SIM2OR_STORE": str(store.root),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "sim2or_policy", "serve"], env=os.environ | settings
        )
        yield endpoint, digest
        process.terminate()
        process.wait(timeout=10)


def question(digest: str, **channels: Channel) -> PolicyRequest:
    """A request at home, with these channels."""
    observation = Observation(
        robot="so101",
        task="handover",
        request=REACH_REQUEST,
        episode="e",
        tick=0,
        state_rad=np.array(ROBOT.home_rad, np.float32),
        images={},
        captured_ns=0,
        channels=channels,
    )
    return PolicyRequest(artifact=digest, observation=observation, deadline_ms=60_000)


@pytest.mark.slow
def test_reaching_is_learnt(learnt: StageResult) -> None:
    """Of 100 validation targets 80 or more are reached within 1 cm; nearly none while it began to explore."""
    lines = [json.loads(line) for line in (learnt.outputs["checkpoint"] / JOURNAL_FILE).open()]
    assert lines[4]["success"] < 0.05
    assert lines[-1]["reward"] > 3 * lines[4]["reward"]
    assert learnt.summary["success"] >= 0.8
    assert learnt.summary["wilson_95"][0] >= 0.7


@pytest.mark.slow
def test_torchscript_and_onnx_say_what_was_learnt(learnt: StageResult) -> None:
    """Both exports give torch's joint targets to a tenth of a milliradian."""
    assert learnt.summary["torchscript_max_abs_diff_rad"] < 1e-4
    assert learnt.summary["onnx_max_abs_diff_rad"] < 1e-4


@pytest.mark.slow
def test_the_served_policy_reaches_in_the_full_room(served: tuple[str, str]) -> None:
    """Asked over its socket, through the safety kernel, it brings the tool within 1 cm of each target."""
    endpoint, digest = served
    targets = listed_starts("reach", ROBOT, TASK, "validation", TARGETS).target_m
    scenarios = scenario_list(TASK, "validation", TARGETS)
    world = make_world(ROBOT, TASK, render=False)
    kinematics = Kinematics(ROBOT)
    client = PolicyActor(endpoint, digest, horizon=1, deadline_ms=60_000)
    step = control_step(ROBOT, TASK, StopLatch(TorqueStage.FULL), horizon=1)
    errors_m, reasons = [], set()
    try:
        for target_m, scenario in zip(targets, scenarios, strict=True):
            goal = {"target_m": Channel(unit="m", values=target_m.astype(np.float32))}
            actor = GoalActor(client, request=REACH_REQUEST, goal=goal)

            def play(index: int, given, actor=actor):
                return trial(
                    world, actor, step, given, index=index, session=f"r{given.seed}", max_steps=EPISODE_STEPS
                )

            (episode,) = perform(world, [scenario], play)
            reasons |= set(episode.safety)
            tool_m = kinematics.grasp_position(world.sense(0, cameras=False).position_rad)
            errors_m.append(float(np.linalg.norm(tool_m - target_m)))
    finally:
        client.close()
        world.close()
    assert max(errors_m) <= TOLERANCE_M, (errors_m, reasons)


@pytest.mark.slow
def test_a_request_that_lacks_or_garbles_a_channel_is_refused(served: tuple[str, str]) -> None:
    """A missing channel, another unit and another size are refused, each with what would be accepted."""
    endpoint, digest = served
    command = Channel(unit="rad", values=np.array(ROBOT.home_rad, np.float32))
    mm = Channel(unit="mm", values=np.ones(3, np.float32))
    two = Channel(unit="m", values=np.ones(2, np.float32))
    wrong = {
        "channel 'target_m' is missing: 3 numbers [m]: x, y, z": {},
        "channel 'target_m' is in 'mm': valid: 'm'": {"target_m": mm},
        "channel 'target_m' has 2 numbers: valid: 3": {"target_m": two},
    }
    client = PolicyClient(endpoint, Origin("test"))
    try:
        for detail, channels in wrong.items():
            answer = client.call(question(digest, command_rad=command, **channels), deadline_s=60)
            assert isinstance(answer, PolicyError)
            assert (answer.code, detail in answer.detail) == ("refused", True), answer.detail
    finally:
        client.close()
