"""The runner's keys, times and traces, on a real Redis with jobs done by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from sim2or.artifacts.store import Store, write_json
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.messages.job import JobResult
from sim2or.pipeline import load_pipeline
from sim2or.runner import Runner, StepState
from sim2or.stages import Table, load_table

PIPELINE = """\
name: one
stages:
  - stage: write
"""


class Silent:
    """A display that shows nothing."""

    def show(self, states: Mapping[str, StepState]) -> None:
        """Shows nothing."""


class Desk:
    """A run directory in which the test does the jobs."""

    def __init__(self, root: Path, redis: Redis) -> None:
        self.root, self.redis = root, redis
        self.jobs, self.store = Jobs(redis), Store(root / "store")
        (root / "one.yaml").write_text(PIPELINE)

    def table(self, **change: object) -> Table:
        table = load_table("sim2or_toy.plugin")
        write = replace(table.stages["write"], **change)  # type: ignore[arg-type]
        return Table({**table.stages, "write": write}, table.services)

    def runner(self, *, force: bool = False, started_s: float | None = None, **change: object) -> Runner:
        table = self.table(**change)
        return Runner(
            load_pipeline(self.root / "one.yaml", table),
            jobs=self.jobs,
            events=Events(self.redis),
            store=self.store,
            run_dir=self.root / "run",
            table=table,
            display=Silent(),
            force=force,
            started_s=started_s,
            environment=self.environment,
        )

    environment: Mapping[str, str] = {}

    def key(self, **change: object) -> str:
        """The key of the job that a runner asks for first."""
        self.redis.flushall()
        (self.root / "run" / "journal.jsonl").unlink(missing_ok=True)
        self.runner(**change)._advance()
        (record,) = self.jobs.list()
        return record.job.key

    def run(self, **options: object) -> dict[str, object]:
        """Runs a pipeline of one stage that makes the report; returns the exported summary."""
        runner = self.runner(outputs={"report": "report"}, **options)  # type: ignore[arg-type]
        runner._advance()
        if claim := self.jobs.claim("write", "w", block_s=0):
            write_json(self.root / "out" / "summary.json", {"wall_s": {"total": 0.0}})
            (self.root / "out" / "index.html").write_text("<html>")
            digest = self.store.put(self.root / "out", kind="report", key=claim.job.key).digest
            self.jobs.complete(claim, JobResult(outputs={"report": digest}, kinds={"report": "report"}))
        runner.run()
        summary: dict[str, object] = json.loads((self.root / "run/report/summary.json").read_text())
        return summary

    def total_s(self, **options: object) -> float:
        return self.run(**options)["wall_s"]["total"]  # type: ignore[index, no-any-return]


@pytest.fixture
def desk(tmp_path: Path, redis: Redis) -> Desk:
    """A desk on an empty Redis."""
    return Desk(tmp_path, redis)


def test_a_key_covers_the_servers_that_a_stage_needs(desk: Desk) -> None:
    """Code of the policy server and the settings that change its answers are part of the question."""
    plain, served = desk.key(), desk.key(needs=("policy",))
    assert plain == desk.key()
    assert plain != served
    desk.environment = {"SIM2OR_POLICY_DELAY_MS": "300"}
    delayed = desk.key(needs=("policy",))
    assert delayed != served
    assert desk.key() == plain
    desk.environment = {"SIM2OR_POLICY_DELAY_MS": "300", "SIM2OR_POLICY_BACKEND": "onnxruntime"}
    assert desk.key(needs=("policy",)) != delayed


def test_the_total_counts_from_the_start_of_the_command(desk: Desk) -> None:
    """The report's total is the whole invocation, also with force after an earlier run; not when resumed."""
    import time

    assert desk.total_s(started_s=time.monotonic() - 100) >= 100
    assert desk.total_s(started_s=time.monotonic() - 200) == 0.0
    assert desk.total_s(started_s=time.monotonic() - 300, force=True) >= 300


def test_one_trace_goes_through_a_run(desk: Desk) -> None:
    """run.json, the job and every event of the run carry the same new W3C trace context."""
    desk.run()
    trace = json.loads((desk.root / "run" / "run.json").read_text())["traceparent"]
    (record,) = desk.jobs.list()
    assert record.job.traceparent == trace
    assert {event.traceparent for event in Events(desk.redis).read()} == {trace}
    kinds = [event.kind for event in Events(desk.redis).read()]
    assert kinds == ["job.submitted", "job.started", "artifact.stored", "job.done"]


def test_a_run_goes_on_when_its_bus_comes_back_empty(desk: Desk) -> None:
    """The runner notices at its next look, queues what was unfinished, and tells of it."""
    runner = desk.runner()
    runner._advance()
    (before,) = desk.jobs.list()
    desk.redis.flushall()
    assert runner._advance()
    (after,) = desk.jobs.list()
    assert (after.job, after.state) == (before.job, "queued")
    assert "bus.restored" in [event.kind for event in Events(desk.redis).read()]


def test_a_job_that_the_bus_lost_alone_is_asked_again(desk: Desk) -> None:
    """A record that is gone from a bus that is otherwise whole does not end the run."""
    runner = desk.runner()
    runner._advance()
    (before,) = desk.jobs.list()
    desk.redis.delete(f"job:{before.job_id}")
    runner._advance()
    (after,) = desk.jobs.list()
    assert (after.job, after.state) == (before.job, "queued")
    claim = desk.jobs.claim("write", "w", block_s=0)
    assert claim is not None
    assert desk.jobs.claim("write", "other", block_s=0) is None
