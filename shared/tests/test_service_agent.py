"""The agent and its worker, as real processes on a real Redis, with real faults."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from sim2or_toy.bench import Bench, bench, gone, marked, until


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Bench]:
    """A bench in a directory of its own."""
    with bench(tmp_path) as made:
        yield made


def test_a_job_is_done_and_its_artifact_says_where_it_comes_from(toy: Bench) -> None:
    """The result names artifacts; they know key, stage, configuration and job; the work directory is gone."""
    toy.agent()
    job_id = toy.submit(count=3, seed=10, key="the key")
    record = toy.wait(job_id, "done")
    assert record.result is not None
    manifest = toy.store.manifest(record.result.outputs["numbers"])
    assert record.result.summary == {"count": 3}
    assert (manifest.kind, manifest.key, manifest.meta["stage"]) == ("numbers", "the key", "write")
    assert manifest.meta["spec"]["seed"] == 10
    assert manifest.producer["job"] == job_id
    files = {p.name: p.read_text() for p in toy.store.checkout(manifest.digest).iterdir()}
    assert files == {"0.txt": "10", "1.txt": "11", "2.txt": "12"}
    until(lambda: not (toy.root / "work" / job_id).exists(), "removal of the work directory")


def test_inputs_become_parents(toy: Bench) -> None:
    """A job reads its inputs from the store, and its artifact names them."""
    toy.agent()
    first = toy.wait(toy.submit(count=4), "done").result
    assert first is not None
    from sim2or.messages.job import Job

    numbers = first.outputs["numbers"]
    job_id = toy.jobs.submit(
        Job(stage="join", key="j", spec={"times": 2}, inputs={"numbers": (numbers,)})
    ).job_id
    record = toy.wait(job_id, "done")
    assert record.result is not None
    assert record.result.summary == {"sum": 12}  # 2 · (0 + 1 + 2 + 3)
    assert toy.store.manifest(record.result.outputs["report"]).parents == {"numbers": (numbers,)}


def test_a_job_for_other_code_is_refused(toy: Bench) -> None:
    """A service runs only jobs whose key names the code that it has; both digests are in the error."""
    from sim2or.code_digest import code_digest
    from sim2or.messages.job import Job

    toy.agent()
    here = code_digest("sim2or_toy")
    other = Job(
        stage="write", key="other", spec={"flags": str(toy.flags), "count": 1}, code=f"sha256:{0:064}"
    )
    refused = toy.wait(toy.jobs.submit(other).job_id, "failed")
    assert refused.error is not None
    assert "sha256:000000000000" in refused.error.message
    assert here[:19] in refused.error.message
    right = other.model_copy(update={"key": "right", "code": here})
    assert toy.wait(toy.jobs.submit(right).job_id, "done").attempts == 1


def test_progress_reaches_the_bus(toy: Bench) -> None:
    """While a job runs, its record tells how far it is and how long it will take."""
    toy.agent()
    job_id = toy.submit(count=30, pause_s=0.1)
    record = until(lambda: r if (r := toy.jobs.get(job_id)).progress else None, "progress")
    assert record.progress is not None
    assert record.progress.unit == "numbers"
    assert 0 < record.progress.done <= record.progress.total == 30
    assert record.progress.eta_s is not None


@pytest.mark.parametrize(
    ("fault", "words"), [("permanent", "3 wheels, expected 4"), ("bug", "ZeroDivisionError: a bug")]
)
def test_a_permanent_error_fails_the_job_at_once(toy: Bench, fault: str, words: str) -> None:
    """What would fail again is not tried again; the service goes on with the next job."""
    toy.agent()
    record = toy.wait(toy.submit(fault=fault), "failed")
    assert record.attempts == 1
    assert record.error is not None
    assert words in record.error.message
    assert "write.py" in record.error.traceback
    toy.wait(toy.submit(key="next"), "done")


def test_a_wrong_configuration_is_refused_with_its_key(toy: Bench) -> None:
    """A job that slipped past validation fails with the key and the valid names."""
    toy.agent()
    record = toy.wait(toy.submit(cuont=3), "failed")
    assert record.error is not None
    assert "did you mean 'count'" in record.error.message


def test_a_transient_error_is_tried_again(toy: Bench) -> None:
    """What may work in a moment is tried again, from the files of the first attempt."""
    toy.agent()
    record = toy.wait(toy.submit(fault="transient"), "done")
    assert record.attempts == 2
    assert len(toy.marks("wrote-0-")) == 1


@pytest.mark.faults("F1")
def test_a_worker_killed_in_the_middle_is_replaced(toy: Bench) -> None:
    """kill -9 of the worker costs one attempt; the next goes on where it stopped."""
    toy.agent()
    record = toy.wait(toy.submit(fault="suicide", count=5), "done")
    assert record.attempts == 2
    assert len(toy.marks("started-")) == 2
    assert all(len(toy.marks(f"wrote-{n}-")) == 1 for n in range(5))


@pytest.mark.faults("F1")
def test_an_agent_killed_in_the_middle_is_survived(toy: Bench) -> None:
    """kill -9 of the agent ends its worker; another finishes the job, and nothing is done twice."""
    first = toy.agent()
    job_id = toy.submit(count=20, pause_s=0.1)
    until(lambda: toy.marks("wrote-3-"), "progress")
    worker = toy.worker_pid()
    first.kill()
    until(lambda: gone(worker), "end of the worker", timeout_s=5)
    toy.agent()
    record = toy.wait(job_id, "done")
    assert record.attempts == 2
    assert len(toy.marks("finished-")) == 1
    finished = [n for n in range(20) if len(toy.marks(f"wrote-{n}-")) == 1]
    assert len(finished) >= 19  # the number in hand at the kill may be written again
    assert toy.events(job_id).count("job.done") == 1


@pytest.mark.faults("F2")
def test_a_frozen_agent_is_fenced(toy: Bench) -> None:
    """An agent stopped for longer than its lease loses the job; its worker ends itself; one result."""
    first = toy.agent()
    job_id = toy.submit(count=40, pause_s=0.1)
    until(lambda: toy.marks("wrote-1-"), "progress")
    worker = toy.worker_pid()
    os.kill(first.pid, signal.SIGSTOP)
    toy.agent()
    until(lambda: gone(worker), "end of the orphaned worker", timeout_s=10)
    record = toy.wait(job_id, "done")
    os.kill(first.pid, signal.SIGCONT)
    assert record.attempts == 2
    assert len(toy.marks("finished-")) == 1
    toy.wait(toy.submit(key="next"), "done")


@pytest.mark.faults("F2")
def test_an_orphaned_worker_ends_before_its_job_is_given_away(toy: Bench) -> None:
    """A worker whose agent is frozen is gone while the job is still nobody else's."""
    agent = toy.agent()
    toy.submit(count=60, pause_s=0.1)
    until(lambda: toy.marks("wrote-1-"), "progress")
    worker = toy.worker_pid()
    os.kill(agent.pid, signal.SIGSTOP)
    until(lambda: gone(worker), "end of the orphaned worker", timeout_s=10)
    assert toy.jobs.claim("write", "heir", block_s=0) is None
    os.kill(agent.pid, signal.SIGCONT)


def test_a_job_knows_its_trace_and_tells_its_artifacts(toy: Bench) -> None:
    """The stage finds the run's trace context in its environment, and the events carry it to the artifact."""
    from sim2or.bus.events import Events
    from sim2or.bus.server import connect

    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    toy.agent()
    record = toy.wait(toy.submit(traceparent=trace), "done")
    (mark,) = toy.marks("traceparent=")
    assert mark.startswith(f"traceparent={trace[:36]}")  # the trace is the run's, the span the attempt's own
    assert trace not in mark
    assert record.result is not None
    (stored,) = [event for event in Events(connect(toy.url)).read() if event.kind == "artifact.stored"]
    assert stored.traceparent == trace
    assert stored.detail["kind"] == "numbers"
    assert stored.detail["digest"] == record.result.outputs["numbers"]


@pytest.mark.faults("F3")
def test_cancel_stops_a_worker_stuck_in_c(toy: Bench) -> None:
    """A worker that holds the interpreter in C is ended from outside, and the agent goes on."""
    toy.agent()
    job_id = toy.submit(fault="stuck")
    until(lambda: toy.marks("fault"), "fault")
    worker = toy.worker_pid()
    toy.jobs.cancel(job_id)
    toy.wait(job_id, "cancelled", timeout_s=10)
    assert gone(worker)
    toy.wait(toy.submit(key="next"), "done")


@pytest.mark.faults("F19")
def test_sigterm_hands_the_job_back(toy: Bench) -> None:
    """An agent that is told to stop releases its lease, and another takes the job at once."""
    first = toy.agent()
    job_id = toy.submit(count=30, pause_s=0.1)
    until(lambda: toy.marks("wrote-1-"), "progress")
    first.terminate()
    assert first.wait(timeout=10) == 0
    assert toy.jobs.get(job_id).state == "queued"
    toy.agent()
    toy.wait(job_id, "done")
    assert "job.released" in toy.events(job_id)


def test_an_agent_leaves_nothing_behind(toy: Bench) -> None:
    """After SIGTERM neither agent nor worker runs."""
    agent = toy.agent()
    toy.wait(toy.submit(), "done")
    agent.terminate()
    agent.wait(timeout=10)
    assert marked(str(toy.root / "work")) == []
    assert gone(toy.worker_pid())


def test_a_summary_too_large_for_the_bus_stays_in_the_manifest() -> None:
    """The job is done nevertheless, and says where to look."""
    from sim2or.service import result_message

    result = {"outputs": {"a": "sha256:" + "0" * 64}, "summary": {"text": "x" * 40_000}}
    message = result_message(result, {"a": "thing"})
    assert message.outputs
    assert message.kinds == {"a": "thing"}
    assert len(json.dumps(message.summary)) < 200
