"""The deploy stage against a real robot process and a real policy socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sim2or.artifacts.store import Store
from sim2or.contracts.robot import load_robot
from sim2or.messages.deploy import DeploySpec
from sim2or.model_card import ModelCard, action_spec, image_spec, state_spec
from sim2or.stage import Cancelled
from sim2or_bridge.deploy import run
from sim2or_sim.command_log import read_log

ROBOT = load_robot("so101")
MODEL = "sha256:model"
SCRIPT = Path(__file__).parents[1] / "faults" / "scripted_policy.py"


@dataclass
class Job:
    """A context without a bus."""

    work: Path
    inputs: Mapping[str, Sequence[Path]]
    digests: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {"model": [MODEL], "verdict": ["sha256:verdict"]}
    )
    shard: int = 0
    shards: int = 1
    stop_after: int | None = None
    calls: int = 0

    def progress(self, done: float, total: float, unit: str, **metrics: float) -> None:
        """Nobody listens; somebody may stop the job after some calls."""
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise Cancelled


def write_inputs(directory: Path, lower95: float = 0.95) -> Job:
    """A model's card and a verdict about it."""
    cameras = [image_spec(name, height_px=96, width_px=96) for name in ("room", "wrist")]
    card = ModelCard(
        policy="recording",
        robot="so101",
        task="handover",
        calibration_id=ROBOT.calibration_id,
        requests=("Hand me the scalpel",),
        control_hz=30,
        privileged=False,
        inputs=(state_spec(ROBOT.joint_names), *cameras),
        outputs=(action_spec(ROBOT.joint_names, horizon=20),),
    )
    score = {"trials": 200, "successes": 196, "rate": 0.98, "interval": (lower95, 0.99)}
    gate = {"success_goal": 0.97, "lower_goal": 0.93, "met": True}
    about = {"score": score, "gate": gate, "instruments": {}, "artifact": MODEL}
    model = about | {"failures": {}, "dropped": 0, "holds": 0, "safety": {}, "spreads": {}}
    verdict = about | {"task": "handover", "scenarios": "heldout", "first_seed": 6000000, "confidence": 0.95}
    verdict |= {"models": [model], "baselines": {}, "agreement": None, "films": [], "evidence": {}}
    for name in ("model", "verdict", "work"):
        (directory / name).mkdir()
    card.write(directory / "model")
    (directory / "verdict" / "verdict.json").write_text(json.dumps(verdict))
    inputs = {"model": [directory / "model"], "verdict": [directory / "verdict"]}
    return Job(directory / "work", inputs)


@dataclass
class Stand:
    """A robot process and a policy that keeps the arm at home."""

    directory: Path
    robot: subprocess.Popen[bytes]

    def moves(self, ticks: int) -> None:
        """Waits until the robot has heard so many commands."""
        log, end_s = self.directory / "robot" / "commands.jsonl", time.monotonic() + 60
        while time.monotonic() < end_s:
            lines = read_log(log) if log.exists() else []
            if sum(line["line"] == "received" for line in lines) > ticks:
                return
            time.sleep(0.05)
        raise AssertionError(f"the robot never heard {ticks} commands")

    def restart_robot(self) -> None:
        """kill -9, and what the supervisor does then."""
        self.robot.kill()
        self.robot.wait(timeout=5)
        self.robot = start_robot()


def start_robot() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "sim2or_sim", "robot"], env=dict(os.environ))


@pytest.fixture
def stand(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """Sockets need a short directory; both processes end with the test."""
    directory = tmp_path_factory.mktemp("d")
    np.save(directory / "actions.npy", np.tile(ROBOT.home_rad, (400, 1)))
    places = {"ROBOT_ENDPOINT": f"ipc://{directory}/r", "POLICY_ENDPOINT": f"ipc://{directory}/p"}
    for name, value in (places | {"RUN_DIR": str(directory)}).items():
        monkeypatch.setenv(f"SIM2OR_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = [str(SCRIPT), places["POLICY_ENDPOINT"], str(directory / "actions.npy"), "2", MODEL]
    policy = subprocess.Popen([sys.executable, *script], env=dict(os.environ))
    stand = Stand(directory, start_robot())
    yield stand
    for process in (stand.robot, policy):
        process.terminate()
    for process in (stand.robot, policy):
        process.wait(timeout=5)


def deployment(job: Job) -> dict[str, Any]:
    """What the stage wrote."""
    written: dict[str, Any] = json.loads((job.work / "deployment" / "deployment.json").read_text())
    return written


def test_a_deployment_is_recorded_with_the_robots_own_counts(stand: Stand) -> None:
    """An arm that stays at home fails the hand-over, in 240 ticks, with no stale command and no violation.

    A second attempt in the same directory repeats nothing, adds a trial, and leaves what was stored alone.
    """
    job, store = write_inputs(stand.directory), Store(stand.directory / "store")
    result = run(DeploySpec(trials=1), job)
    written = deployment(job)
    assert written["trials"] == len(written["per_trial"]) == 1
    assert (written["successes"], written["stale_executed"], written["violations"]) == (0, 0, 0)
    assert 100 < written["ticks"] <= 302, "eight seconds at 30 Hz, fewer where this machine was too busy"
    assert written["policy_link"]["answered"] > 30
    assert written["per_trial"][0]["failure"] == "not_grasped"
    assert written["latch"] == ["promoted to 100% on sha256:verdict"]
    assert result.summary["artifact"] == MODEL
    seed = written["per_trial"][0]["seed"]
    log = [
        json.loads(line) for line in (stand.directory / "robot" / "commands.jsonl").read_text().splitlines()
    ]
    kept = read_log(job.work / "deployment" / "commands" / f"{seed}.jsonl")
    assert len(kept) > 400
    assert all(line in log for line in kept[:5])
    assert {line["session"] for line in kept} == {written["per_trial"][0]["robot"]["session"]}

    stored = store.put(result.outputs["deployment"], kind="deployment")
    run(DeploySpec(trials=1), job)
    assert deployment(job)["per_trial"] == written["per_trial"], "a finished trial ran again"
    run(DeploySpec(trials=2), job)
    again = deployment(job)
    assert again["per_trial"][0] == written["per_trial"][0]
    assert again["trials"] == 2
    assert again["latch"] == ["promoted to 100% on sha256:verdict"] * 2
    held = json.loads((store.checkout(stored.digest) / "deployment.json").read_text())
    assert held == written


def test_a_cancelled_deployment_ends_with_a_hold_and_goes_on_later(stand: Stand) -> None:
    """The stop is in the record, the robot's last command is a hold, and a new attempt finishes the job."""
    job = write_inputs(stand.directory)
    job.stop_after = 6
    with pytest.raises(Cancelled):
        run(DeploySpec(trials=1), job)
    log = read_log(stand.directory / "robot" / "commands.jsonl")
    received = [line for line in log if line["line"] == "received"]
    assert len(received) > 20
    assert (received[-1]["hold"], received[-1]["refused"]) == (True, "")
    job.stop_after = None
    run(DeploySpec(trials=1), job)
    written = deployment(job)
    assert written["trials"] == 1
    assert written["latch"] == [
        "promoted to 100% on sha256:verdict",
        "stopped: the job was told to stop (Cancelled)",
        "promoted to 100% on sha256:verdict",
    ]


def test_a_robot_that_is_restarted_interrupts_one_trial_only(stand: Stand) -> None:
    """The trial in which the robot died is done again over a new connection, and the record says so."""
    job = write_inputs(stand.directory)
    keeper = threading.Thread(target=lambda: (stand.moves(60), stand.restart_robot()))
    keeper.start()
    run(DeploySpec(trials=1), job)
    keeper.join(timeout=30)
    written = deployment(job)
    assert written["trials"] == 1
    assert len(written["interruptions"]) == 1
    assert "silent for" in written["interruptions"][0]
    assert written["latch"] == ["promoted to 100% on sha256:verdict"]


def test_a_missed_gate_moves_nothing(tmp_path: Path) -> None:
    """The refusal comes before the robot is even spoken to, and is recorded as evidence."""
    job = write_inputs(tmp_path, lower95=0.5)
    summary = run(DeploySpec(trials=1), job).summary
    written = json.loads((job.work / "deployment" / "deployment.json").read_text())
    assert "below gate_lower95" in summary["refused"]
    assert (written["trials"], written["ticks"], written["per_trial"]) == (0, 0, [])
