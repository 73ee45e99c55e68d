"""One run's chain from its events alone, and one trace through every road, with real store and processes."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from redis import Redis
from sim2or.artifacts.lineage import chain as lineage
from sim2or.artifacts.store import Store
from sim2or.bus.events import Events
from sim2or.bus.jobs import Claim, Jobs
from sim2or.bus.server import start
from sim2or.cli.chain import Chain, all_events, lines, rebuild, walk
from sim2or.errors import ConfigError
from sim2or.messages.job import Job, JobFailure, JobResult

HERE = Path(__file__).parent
SIM2OR = [sys.executable, "-c", "from sim2or.cli.main import app; app()"]
TRACE_A, TRACE_B = (f"00-{digit * 32}-{digit * 16}-01" for digit in "ab")
KINDS = {
    "collect": ("episodes", "episodes"),
    "train": ("checkpoint", "checkpoint"),
    "export": ("model", "exported-model"),
    "evaluate": ("verdict", "verdict"),
    "deploy": ("deployment", "deployment"),
}


class Desk:
    """Submits and answers jobs of two runs on one bus, with artifacts in a real store."""

    def __init__(self, redis: Redis, root: Path) -> None:
        self.jobs = Jobs(redis, lease_s=0.2, retry_delays_s={"transient": 0.0, "crashed": 0.0})
        self.store = Store(root / "store")
        self._root = root

    def ask(
        self, stage: str, *, run: str = "a", key: str = "k", inputs: Mapping[str, str] | None = None
    ) -> str:
        """Submits a job of a run."""
        job = Job(
            stage=stage,
            key=key,
            inputs={role: (digest,) for role, digest in (inputs or {}).items()},
            run_id=run,
            name=f"{stage}-of-{run}",
            traceparent=TRACE_A if run == "a" else TRACE_B,
        )
        return self.jobs.submit(job).job_id

    def take(self, stage: str, worker: str) -> Claim:
        """Claims a job."""
        claim = self.jobs.claim(stage, worker, block_s=10.0)
        assert claim is not None
        return claim

    def finish(self, claim: Claim) -> str:
        """Stores the artifact of a job's stage and completes the job; returns the digest."""
        role, kind = KINDS[claim.job.stage]
        path = self._root / claim.job_id
        path.write_text(claim.job_id)
        parents = {name: list(digests) for name, digests in claim.job.inputs.items()}
        digest = self.store.put(
            path, kind=kind, parents=parents, key=claim.job.key, producer={"job": claim.job_id}
        ).digest
        result = JobResult(outputs={role: digest}, kinds={role: kind}, summary={"success": 0.9})
        assert self.jobs.complete(claim, result)
        return digest

    def chain(self, run: str, redis: Redis) -> Chain:
        """A run's chain from the events."""
        return rebuild(all_events(redis), run)


@pytest.fixture
def desk(redis: Redis, tmp_path: Path) -> Desk:
    """An empty bus and store."""
    return Desk(redis, tmp_path)


def whole_run(desk: Desk) -> dict[str, str]:
    """Run a: a worker is lost, an attempt is repeated, and everything ends with a deployment."""
    made = {}
    desk.ask("collect")
    lost = desk.take("collect", "w1")
    made["collect"] = desk.finish(desk.take("collect", "w2"))  # w1 is silent: its lease ends
    assert not desk.jobs.complete(lost, JobResult())
    desk.ask("train", inputs={"dataset": made["collect"]})
    desk.jobs.fail(desk.take("train", "w3"), JobFailure(kind="transient", message="no space"))
    made["train"] = desk.finish(desk.take("train", "w3"))
    desk.ask("export", inputs={"checkpoint": made["train"], "dataset": made["collect"]})
    made["export"] = desk.finish(desk.take("export", "w4"))
    desk.ask("evaluate", inputs={"model": made["export"]})
    made["evaluate"] = desk.finish(desk.take("evaluate", "w5"))
    desk.ask("deploy", inputs={"model": made["export"], "verdict": made["evaluate"]})
    made["deploy"] = desk.finish(desk.take("deploy", "w6"))
    return made


def test_a_chain_is_the_stores_lineage(desk: Desk, redis: Redis) -> None:
    """From the deployment down, the events tell the same artifacts, roles and makers as the manifests."""
    made = whole_run(desk)
    chain = desk.chain("a", redis)
    assert chain.ends() == [made["deploy"]]
    told = [(link.depth, link.role, link.digest, link.repeated) for link in walk(chain, made["deploy"])]
    kept = [(one.depth, one.role, one.digest, one.repeated) for one in lineage(desk.store, made["deploy"])]
    assert told == kept
    assert len(told) > len(made)  # the export is met twice
    for digest, (job, artifact) in chain.makers().items():
        manifest = desk.store.manifest(digest)
        assert (artifact.kind, job.job_id) == (manifest.kind, manifest.producer["job"])
        assert {role: list(ds) for role, ds in artifact.parents.items()} == {
            role: list(ds) for role, ds in manifest.parents.items()
        }


def test_a_chain_tells_attempts_workers_and_times(desk: Desk, redis: Redis) -> None:
    """A lost lease, a fenced result and a repeated failure are there, with who had the job and when."""
    whole_run(desk)
    chain = desk.chain("a", redis)
    assert chain.traces == (TRACE_A[3:35],)
    assert [job.stage for job in chain.jobs] == ["collect", "train", "export", "evaluate", "deploy"]
    collect, train, *_, deploy = chain.jobs
    assert [(a.number, a.worker, a.outcome, a.fenced) for a in collect.attempts] == [
        (1, "w1", "lost", True),
        (2, "w2", "done", False),
    ]
    assert [(a.number, a.outcome) for a in train.attempts] == [(1, "retry"), (2, "done")]
    assert (train.state, train.error) == ("done", "")
    assert all(a.started_ms <= a.ended_ms for job in chain.jobs for a in job.attempts)  # type: ignore[operator]
    assert [job.verdicts[0]["summary"] for job in chain.jobs if job.verdicts] == [{"success": 0.9}]
    assert deploy.name == "deploy-of-a"
    assert set(deploy.inputs) == {"model", "verdict"}


def test_runs_on_one_bus_are_told_apart_and_share_what_is_reused(desk: Desk, redis: Redis) -> None:
    """Another run's chain holds only what it asked for: a reused job with its past, and its own failure."""
    made = whole_run(desk)
    desk.ask("collect", run="b")
    failing = desk.ask("train", run="b", key="other", inputs={"dataset": made["collect"]})
    desk.jobs.fail(desk.take("train", "w7"), JobFailure(kind="permanent", message="3 wheels, expected 4"))
    chain = desk.chain("b", redis)
    assert chain.traces == (TRACE_B[3:35],)
    reused, failed = chain.jobs
    assert (reused.stage, reused.reused, reused.asked_by) == ("collect", True, ("a", "b"))
    assert reused.name == "collect-of-b"
    assert [m.digest for m in reused.artifacts] == [made["collect"]]
    assert (failed.job_id, failed.state, failed.reused) == (failing, "failed", False)
    assert failed.error == "3 wheels, expected 4"
    assert {job.asked_by for job in desk.chain("a", redis).jobs} == {("a",), ("a", "b")}
    assert not any(job.reused for job in desk.chain("a", redis).jobs)


def test_a_restored_job_is_in_the_chain(desk: Desk, redis: Redis) -> None:
    """A job that was done on a bus that is lost is told with its worker, and without a start."""
    job_id = desk.ask("collect")
    digest = desk.finish(desk.take("collect", "w1"))
    record = desk.jobs.get(job_id)
    redis.flushall()
    assert desk.jobs.restore(record)
    (job,) = desk.chain("a", redis).jobs
    assert (job.state, job.name, job.wall_s) == ("done", "collect-of-a", None)
    assert [(a.number, a.worker, a.started_ms, a.outcome) for a in job.attempts] == [(1, "w1", None, "done")]
    assert [made.digest for made in job.artifacts] == [digest]


def test_a_chain_is_good_to_read(desk: Desk, redis: Redis) -> None:
    """The deployment comes first, below it what it was made from; each subtree is shown once."""
    made = whole_run(desk)
    first, *tree = lines(desk.chain("a", redis))
    assert first == f"run a: 5 jobs, 0 reused, trace {TRACE_A[3:35]}"
    assert tree[0].startswith(f"deployment {made['deploy'][:19]}  deploy-of-a (deploy-")
    assert tree[1].startswith(f"  model: exported-model {made['export'][:19]}")
    assert tree[1].endswith("w4")
    assert any(line.endswith("(see above)") for line in tree)
    (verdict,) = (line for line in tree if "verdict: verdict" in line)
    assert "verdict success 0.9" in verdict
    assert any("2 attempts: lost and fenced on w1, done on w2" in line for line in tree)


def test_an_unknown_run_is_told_the_known_ones(desk: Desk, redis: Redis) -> None:
    """A wrong name is answered with the names that the events know."""
    whole_run(desk)
    with pytest.raises(ConfigError, match="no event tells of this run; valid: a"):
        desk.chain("aa", redis)


PIPELINE = """
name: traced
stages:
  - stage: make
  - stage: rollout
    inputs: {policy: make}
    with: {list: validation, trials: 1, films_successes: 0, films_failures: 0}
"""


class Collector:
    """A real OTLP/HTTP collector that keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: dict[bytes, Any] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        outer.spans.update({span.span_id: span for span in scope.spans})
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def path(self, name: str) -> list[str]:
        """Names from a span of this name up to the root of its trace."""
        span = next(span for span in self.spans.values() if span.name == name)
        names = [span.name]
        while span.parent_span_id:
            span = self.spans[span.parent_span_id]
            names.append(span.name)
        return names


class Journey:
    """A pipeline that is run by the real command, with a collector and a policy process beside it."""

    def __init__(self, root: Path, collector: Collector) -> None:
        self.root, self.collector = root, collector
        self.endpoint = f"ipc://{root}/p"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        plain = {
            name: value for name, value in os.environ.items() if not name.startswith(("SIM2OR_", "OTEL_"))
        }
        self.environment = plain | {
            "PYTHONPATH": str(HERE / "maker"),
            "OMP_NUM_THREADS": "1",
            "SIM2OR_PLUGINS": "sim2or_maker.plugin",
            "SIM2OR_POLICY_ENDPOINT": self.endpoint,
            "SIM2OR_METRICS_PORT": str(self.port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        (root / "traced.yaml").write_text(PIPELINE)
        self.traces = root / "traces.txt"

    def sim2or(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command."""
        return subprocess.Popen(
            [*SIM2OR, *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def asked_policy(self) -> float:
        """Answers of the policy that any process of the run tells of on its page; 0 while none does."""
        found = 0.0
        for port in range(self.port, self.port + 3):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                    page = response.read().decode()
            except (OSError, http.client.HTTPException):
                continue
            for line in page.splitlines():
                if line.startswith("sim2or_client_answered_total") and 'endpoint="policy"' in line:
                    found += float(line.rpartition(" ")[2])
        return found


@pytest.fixture
def journey(tmp_path: Path) -> Iterator[Journey]:
    """A journey; its policy process ends with it."""
    collector = Collector()
    made = Journey(tmp_path, collector)
    policy = subprocess.Popen(
        [sys.executable, str(HERE / "watching_policy.py"), made.endpoint, str(made.traces)],
        env=made.environment,
    )
    yield made
    policy.terminate()
    policy.wait(timeout=10)
    collector.server.shutdown()
    collector.server.server_close()


@pytest.mark.slow
def test_one_trace_goes_through_every_road(journey: Journey, eventually: Callable[..., None]) -> None:
    """A pipeline with a rollout: events, the policy's questions, spans and the run's record share a trace."""
    running = journey.sim2or("run", "traced.yaml", "--scale", "policy=0", "--scale", "sim=1")
    seen = 0.0
    while running.poll() is None:
        seen = max(seen, journey.asked_policy())
        time.sleep(0.05)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    run_dir = journey.root / "runs" / "traced"
    trace = json.loads((run_dir / "run.json").read_text())["traceparent"][3:35]

    server = start(run_dir / "redis")
    from sim2or.bus.server import connect

    events = Events(connect(server.url)).read()
    server.stop()
    assert {event.kind for event in events} >= {"job.submitted", "job.started", "artifact.stored", "job.done"}
    assert {event.traceparent[3:35] for event in events} == {trace}

    questions = journey.traces.read_text().split()
    assert len(questions) > 10
    assert {question[3:35] for question in questions} == {trace}
    assert len({question[36:52] for question in questions}) == len(questions)
    assert seen > 0  # the sim agent's page told of its worker's questions while the job ran

    eventually(lambda: "answer policy_request" in {s.name for s in journey.collector.spans.values()})
    assert {span.trace_id.hex() for span in journey.collector.spans.values()} == {trace}
    assert journey.collector.path("answer policy_request") == [
        "answer policy_request",
        "ask policy_request",
        "job rollout",
        "run",
    ]
    assert journey.collector.path("job make") == ["job make", "run"]

    told = journey.sim2or("chain", "traced", "--json")
    output, _ = told.communicate(timeout=60)
    assert told.returncode == 0, output
    chain = Chain.model_validate_json(output)
    assert chain.traces == (trace,)
    assert [(job.name, job.state) for job in chain.jobs] == [("make", "done"), ("rollout", "done")]
    (end,) = chain.ends()
    kept = lineage(Store(run_dir / "store"), end)
    assert [link.digest for link in walk(chain, end)] == [ancestor.digest for ancestor in kept]
