"""Training in several processes: each has its rows of a step, rank 0 has everything that is kept."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sim2or.artifacts.answers import Answers
from sim2or.artifacts.store import Store
from sim2or.cluster.plan import Desk, Plan, PlannedStep
from sim2or.errors import ConfigError
from sim2or.exit_status import ExitStatus
from sim2or.messages.job import JobRecord, JobResult
from sim2or.messages.train import TrainSpec
from sim2or.stages import load_table
from sim2or.worker import StageContext
from sim2or_trainer.frames import Order
from sim2or_trainer.group import Group, find_group
from sim2or_trainer.stage import CHECKPOINT_DIRECTORY, JOURNAL_FILE, RESUME_DIRECTORY, run

sys.path.insert(0, str(Path(__file__).parent))
from small_policy import SMALL

END_S = 240.0
"""Longest that a group of small processes may take; it is there to end a hang."""

ROW_MEAN = SMALL | {"chunk_size": 1, "n_action_steps": 1}
"""Chunks of one action are never padded: the loss is a mean over rows, so that it adds up over processes."""


def spec(**fields: object) -> TrainSpec:
    """A run of seconds, of 9 rows a step: two processes have 5 and 4."""
    values = {"steps": 6, "batch_size": 9, "threads": 1, "bf16": False, "log_every_steps": 1}
    cadence = {"eval_every_steps": 3, "checkpoint_every_steps": 3, "policy_overrides": ROW_MEAN}
    return TrainSpec(**(values | cadence | fields))


def environment(rank: int, size: int, port: int, **more: str) -> dict[str, str]:
    """What torchrun tells a process, and a limit for its waits."""
    told = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    limits = {"SIM2OR_GROUP_S": "60", "OMP_NUM_THREADS": "1"}
    return os.environ | {name: str(value) for name, value in told.items()} | address | limits | more


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def group(
    command: list[str], log: Path, size: int = 2, **more: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A group of processes that run one command; none of them outlives the block."""
    port = free_port()
    with log.open("ab") as sink:
        processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env=environment(rank, size, port, **more),
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
            for rank in range(size)
        ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def statuses(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """How the processes of a group ended."""
    return [process.wait(timeout=END_S) for process in processes]


@pytest.fixture
def train(tmp_path: Path, dataset: Path) -> Callable[..., list[int]]:
    """Trains in two processes, in a work directory that attempts share; returns their exit statuses."""

    def start(asked: TrainSpec, work: str, stop: str = "", size: int = 2) -> list[int]:
        path = tmp_path / "spec.json"
        path.write_text(asked.model_dump_json())
        script = str(Path(__file__).with_name("rank.py"))
        stops = [stop] if stop else []
        command = [script, str(path), str(dataset), str(tmp_path / work), *stops]
        with group(command, tmp_path / "log", size) as processes:
            return statuses(processes)

    return start


def weights(work: Path) -> dict[str, torch.Tensor]:
    """The trained weights."""
    return load_file(work / CHECKPOINT_DIRECTORY / "model.safetensors")


def curve(work: Path) -> list[dict[str, float]]:
    """The loss curve, without what depends on the clock."""
    lines = [json.loads(line) for line in (work / JOURNAL_FILE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "train_s"} for line in lines]


def test_two_processes_train_what_one_does(train: Callable, context: Callable, tmp_path: Path) -> None:
    """Two processes take the steps of one, but for the rounding of sums; rank 0 alone keeps something."""
    once = context("one")
    run(spec(steps=12, lr=3e-3), once)
    assert train(spec(steps=12, lr=3e-3), "two") == [0, 0], (tmp_path / "log").read_text()[-3000:]
    alone, together = curve(tmp_path / "one"), curve(tmp_path / "two/0")
    assert together[-1]["loss"] < together[0]["loss"]
    assert [line["loss"] for line in together] == pytest.approx([line["loss"] for line in alone], rel=1e-3)
    assert together[-1]["heldout_loss"] == pytest.approx(alone[-1]["heldout_loss"], rel=1e-3)
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two/0")
    apart = sum(float((expected[name] - found[name]).square().sum()) for name in expected) ** 0.5
    assert apart < 1e-3 * sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    card = json.loads(next((tmp_path / "two/0" / CHECKPOINT_DIRECTORY).glob("*card*.json")).read_text())
    assert card["figures"]["processes"] == 2
    kept = {path.name for path in (tmp_path / "two/1").iterdir()}
    assert not kept & {CHECKPOINT_DIRECTORY, RESUME_DIRECTORY}


def test_a_group_that_was_stopped_goes_on_bit_by_bit(train: Callable, tmp_path: Path) -> None:
    """Whichever rank is told to stop, both stop at one step, and the next attempt ends like a whole run."""
    asked = spec(policy_overrides=SMALL)
    assert train(asked, "whole") == [0, 0]
    assert train(asked, "cut", stop="0:4") == [ExitStatus.INTERRUPTED, ExitStatus.TRANSIENT]
    assert train(asked, "cut", stop="1:5") == [ExitStatus.TRANSIENT, ExitStatus.INTERRUPTED]
    assert [line["step"] for line in curve(tmp_path / "cut/0")] == [1, 2, 3, 4, 5]
    assert [path.name for path in (tmp_path / "cut/0" / RESUME_DIRECTORY).iterdir()] == ["step-00000005"]
    assert train(asked, "cut") == [0, 0], (tmp_path / "log").read_text()[-3000:]
    expected, found = weights(tmp_path / "whole/0"), weights(tmp_path / "cut/0")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert curve(tmp_path / "whole/0") == curve(tmp_path / "cut/0")


@pytest.mark.faults("F1")
def test_a_killed_peer_ends_the_group_and_the_next_one_answers(tmp_path: Path, dataset: Path) -> None:
    """After SIGKILL at a peer rank 0 asks for another attempt; that resumes, and the answer is there once."""
    plan = planned(tmp_path, dataset, spec(steps=400, checkpoint_every_steps=5, eval_every_steps=400))
    log = tmp_path / "log"
    shard = ["-m", "sim2or_trainer", "shard", "--plan", str(plan), "--step", "train"]
    settings = {"SIM2OR_RUN_DIR": str(tmp_path / "run"), "SIM2OR_GRACE_S": "30"}
    with group(shard, log, **settings) as processes:
        until(lambda: checkpoints(tmp_path) or any(p.poll() is not None for p in processes))
        processes[1].send_signal(signal.SIGKILL)
        assert statuses(processes) == [ExitStatus.TRANSIENT, -signal.SIGKILL], log.read_text()[-3000:]
    assert answer(tmp_path) is None
    launcher = ["-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [sys.executable, *launcher, "--local-addr=127.0.0.1", *shard],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | settings,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        timeout=END_S,
        check=False,
    )
    assert done.returncode == 0, log.read_text()[-3000:]
    record = answer(tmp_path)
    assert record is not None
    assert record.result.summary["processes"] == 2
    assert record.result.summary["resumed_from_step"] >= 5
    store = Store(tmp_path / "run/store")
    assert store.holds(record.result.outputs["checkpoint"])
    with group(shard, log, **settings) as processes:
        assert statuses(processes) == [0, 0], "what is answered is not trained again"
    assert answer(tmp_path) == record


def planned(root: Path, dataset: Path, asked: TrainSpec) -> Path:
    """A plan whose dataset is answered already, and the file that it is in."""
    store = Store(root / "run/store")
    digest = store.put(copied(dataset, root / "copy"), kind="dataset").digest
    plan = Plan(
        run="group",
        steps=(
            PlannedStep(id="dataset", stage="dataset", service_code="x", code="x", lock="x"),
            PlannedStep(
                id="train",
                stage="train",
                spec=asked.model_dump(mode="json"),
                inputs={"dataset": (("dataset", "dataset"),)},
            ),
        ),
    )
    job = Desk(plan, load_table(), Answers(store).get).job("dataset", 0)
    result = JobResult(outputs={"dataset": digest}, kinds={"dataset": "dataset"})
    Answers(store).put(JobRecord(job_id="d", job=job, state="done", result=result))
    path = root / "plan.json"
    path.write_text(plan.model_dump_json())
    return path


def answer(root: Path) -> JobRecord | None:
    """The answer to the train step."""
    from sim2or.cluster.plan import load_plan

    answers = Answers(Store(root / "run/store"))
    return answers.get(Desk(load_plan(root / "plan.json"), load_table(), answers.get).job("train", 0).key)


def copied(tree: Path, target: Path) -> Path:
    """A copy whose files the store may take over."""
    return Path(shutil.copytree(tree, target))


def checkpoints(root: Path) -> list[Path]:
    """What rank 0 could go on from."""
    return list((root / "run/work").glob(f"*/*/{RESUME_DIRECTORY}/step-*"))


def until(probe: Callable[[], object]) -> None:
    """Polls until something is there."""
    deadline_s = time.monotonic() + END_S
    while not probe():
        assert time.monotonic() < deadline_s, "nothing came"
        time.sleep(0.05)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_each_row_of_a_step_is_in_one_process(size: int) -> None:
    """The processes' rows of a step are the step's rows, each once, and no process has none."""
    rows = Order(torch.arange(100), batch_size=9, seed=3).step(5)
    shares = [Group(rank=rank, size=size).share(rows) for rank in range(size)]
    assert torch.equal(torch.cat(shares).sort().values, rows.sort().values)
    assert {len(share) for share in shares} <= {9 // size, 9 // size + 1}


def test_the_random_state_of_a_step_depends_on_rank_and_step_only() -> None:
    """Ranks and steps draw differently; the same rank draws the same at the same step."""

    def draw(rank: int, step: int) -> float:
        Group(rank=rank, size=2).seed(7, step)
        return float(torch.rand(1))

    drawn = [draw(rank, step) for rank in (0, 1) for step in (0, 1)]
    assert len(set(drawn)) == 4
    assert drawn == [draw(rank, step) for rank in (0, 1) for step in (0, 1)]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"WORLD_SIZE": "2"}, "no RANK: start the processes with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two': valid: whole numbers from 1"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2: valid: 0 to 1"),
    ],
)
def test_wrong_variables_are_named(told: Mapping[str, str], message: str) -> None:
    """What torchrun would not say is refused with what is valid."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} if "RANK" in told else {}
    with pytest.raises(ConfigError, match=message):
        find_group(told | address)


def test_a_step_has_a_row_for_each_process(train: Callable, tmp_path: Path) -> None:
    """More processes than frames in a step are refused, by all of them."""
    assert train(spec(batch_size=1), "none") == [ExitStatus.CONFIG] * 2
    assert "batch_size: 1 frames for 2 processes; valid: at least 2" in (tmp_path / "log").read_text()


def test_a_process_whose_peer_never_comes_asks_for_another_attempt(tmp_path: Path, dataset: Path) -> None:
    """The wait for the others has an end, and the end is worth another attempt."""
    path = tmp_path / "spec.json"
    path.write_text(spec().model_dump_json())
    command = [str(Path(__file__).with_name("rank.py")), str(path), str(dataset), str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, *command],
        env=environment(0, 2, free_port(), SIM2OR_GROUP_S="2"),
        capture_output=True,
        timeout=END_S,
        check=False,
    )
    assert done.returncode == ExitStatus.TRANSIENT, done.stderr.decode()
    assert b"gone or silent" in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["run", "--out", "x"]])
def test_what_takes_a_job_of_its_own_is_one_process(command: list[str], tmp_path: Path) -> None:
    """Several processes of `serve` or `run` are refused, with the command that several are for."""
    done = subprocess.run(
        [sys.executable, "-m", "sim2or_trainer", *command],
        env=environment(0, 2, 1),
        cwd=tmp_path,
        capture_output=True,
        timeout=END_S,
        check=False,
    )
    assert done.returncode == ExitStatus.CONFIG
    assert b"sim2or_trainer shard --plan" in b" ".join((done.stdout + done.stderr).split())


def test_torchrun_with_one_process_is_welcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With WORLD_SIZE 1 the trainer goes on to what it needs, here its dataset."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    context = StageContext(work=tmp_path, inputs={}, digests={}, report=lambda progress: None)
    with pytest.raises(ConfigError, match="takes one input of role dataset"):
        run(TrainSpec(steps=10), context)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_together(train: Callable, tmp_path: Path) -> None:
    """Each process takes the GPU of its local rank, and their gradients meet by NCCL."""
    assert train(spec(device="cuda"), "gpus") == [0, 0], (tmp_path / "log").read_text()[-3000:]
    assert curve(tmp_path / "gpus/0")[-1]["step"] == 6
