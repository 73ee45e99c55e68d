"""Metrics: live counts, read at the moment of the scrape, over HTTP; they never disturb who counts."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from sim2or.bus.jobs import Jobs
from sim2or.bus.rpc import Client, Router
from sim2or.counts import Distribution, Live, Pulse, Reading, descriptions, metric_name, read, subject_of
from sim2or.errors import TransientError
from sim2or.messages.envelope import Origin
from sim2or.messages.job import Job, JobFailure, JobResult
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.metrics import Exposition, Metrics, expose, queue_source
from sim2or.settings import Settings
from structlog.testing import capture_logs

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from sim2or_toy.bench import Bench, bench

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class MailCounts:
    """What a post office has seen.

    Attributes:
        letters: Letters taken.
        sent_bytes: Of all parcels,
            wrapping included.
        refused: Letters turned away.
        waited_s: How long people stood in line.
    """

    letters: int = 0
    sent_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter, metadata={"label": "reason"})
    waited_s: Distribution = field(default_factory=lambda: Distribution((1.0, 2.0)))


class Office:
    """Somebody who counts."""

    def __init__(self, live: Live, town: str) -> None:
        self.counts = MailCounts()
        live.watch(self, self.counts, town=town)


def fetch(port: int, path: str = "/metrics") -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(port: int) -> Samples:
    """All samples of a process, by name and labels, the label ``service`` left out."""
    _, text = fetch(port)
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "service"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def live() -> Live:
    """Counts of a process of our own."""
    return Live()


@pytest.fixture
def show() -> Iterator[Callable[[Metrics], int]]:
    """Serves metrics on a free port and returns it."""
    made: list[Exposition] = []

    def begin(metrics: Metrics) -> int:
        made.append(Exposition(metrics, "127.0.0.1", 0))
        return made[-1].port

    yield begin
    for exposition in made:
        exposition.close()


def test_names_carry_subject_and_unit() -> None:
    """A field's name outside says who counts, what, and in which unit."""
    assert subject_of(MailCounts) == "mail"
    assert metric_name("mail", "letters") == "sim2or_mail_letters"
    assert metric_name("mail", "waited_s") == "sim2or_mail_waited_seconds"
    assert metric_name("mail", "sent_bytes") == "sim2or_mail_sent_bytes"


def test_help_is_the_docstring() -> None:
    """What a count means is written once, where it is counted."""
    assert descriptions(MailCounts) == {
        "letters": "Letters taken.",
        "sent_bytes": "Of all parcels, wrapping included.",
        "refused": "Letters turned away.",
        "waited_s": "How long people stood in line.",
    }


def test_a_distribution_counts_by_upper_bound() -> None:
    """A value on a bound belongs below it, as Prometheus's ``le`` says."""
    waits = Distribution((1.0, 2.0))
    for value_s in (0.5, 1.0, 1.5, 7.0):
        waits.add(value_s)
    assert waits.counts == [2, 1, 1]
    assert waits.total == 10.0


def test_counts_of_the_same_labels_are_added_and_survive_their_owner(live: Live) -> None:
    """Two offices of a town are one number; what an office counted stays when it is closed."""
    first, second, other = Office(live, "Ulm"), Office(live, "Ulm"), Office(live, "Bonn")
    first.counts.letters, second.counts.letters, other.counts.letters = 2, 3, 5
    first.counts.refused["torn"] = 1
    first.counts.waited_s.add(1.5)
    del first
    gc.collect()
    second.counts.refused["torn"] += 1
    values = {(r.name, r.labels["town"], r.labels.get("reason")): r for r in live.readings()}
    assert values["sim2or_mail_letters", "Ulm", None].value == 5
    assert values["sim2or_mail_letters", "Bonn", None].value == 5
    assert values["sim2or_mail_refused", "Ulm", "torn"].value == 2
    assert values["sim2or_mail_waited_seconds", "Ulm", None].counts == (0, 1, 0)


def test_readings_cross_a_pipe(live: Live) -> None:
    """A worker's readings are JSON for its agent and come out the same."""
    office = Office(live, "Ulm")
    office.counts.waited_s.add(1.5)
    from dataclasses import asdict

    sent = json.loads(json.dumps([asdict(reading) for reading in live.readings()]))
    metrics = Metrics("sim", {"worker": lambda: [Reading(**one) for one in sent]})
    names = {metric.name for metric in metrics.registry.collect()}
    assert "sim2or_mail_waited_seconds" in names


def test_a_scrape_reads_the_counts_of_that_moment(live: Live, show: Callable[[Metrics], int]) -> None:
    """Counters end in ``_total``, histograms add up, every sample names the service."""
    office = Office(live, "Ulm")
    port = show(Metrics("post", {"mail": live.readings}))
    assert scrape(port)["sim2or_mail_letters_total", (("town", "Ulm"),)] == 0
    office.counts.letters = 7
    for value_s in (0.5, 1.5, 9.0):
        office.counts.waited_s.add(value_s)
    found = scrape(port)
    assert found["sim2or_mail_letters_total", (("town", "Ulm"),)] == 7
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "sim2or_mail_waited_seconds_bucket"
    }
    assert buckets == {"1.0": 1, "2.0": 2, "+Inf": 3}
    assert found["sim2or_mail_waited_seconds_sum", (("town", "Ulm"),)] == 11
    _, text = fetch(port)
    assert 'sim2or_mail_letters_total{service="post",town="Ulm"} 7.0' in text
    assert "# HELP sim2or_mail_letters_total Letters taken." in text
    assert "process_resident_memory_bytes" in text


def test_sockets_show_themselves(show: Callable[[Metrics], int], tmp_path: Path) -> None:
    """A socket's counts appear with its endpoint and messages, without a line of wiring."""
    router = Router(f"ipc://{tmp_path}/r", Origin("robot/so101"), RobotRequest)
    client: Client[RobotReport | PolicyError] = Client(
        f"ipc://{tmp_path}/r", Origin("bridge"), RobotReport, PolicyError
    )
    labels_of_router = (("endpoint", "robot"), ("message", "robot_request"))
    labels_of_client = (("endpoint", "robot"), ("message", "policy_error,robot_report"))
    port = show(Metrics("bridge"))
    before = scrape(port)
    router.counts.malformed += 2
    client.counts.late += 3
    after = scrape(port)
    for name, labels, difference in (
        ("sim2or_router_malformed_total", labels_of_router, 2),
        ("sim2or_client_late_total", labels_of_client, 3),
        ("sim2or_client_expired_total", labels_of_client, 0),
    ):
        assert after[name, labels] - before[name, labels] == difference
    router.close()
    client.close()


def test_a_command_without_an_answer_is_no_expired_question(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """Only what is to be answered can be a missed deadline; a robot never answers a command."""
    router: Router[JointCommand | RobotRequest] = Router(
        f"ipc://{tmp_path}/r", Origin("robot"), JointCommand, RobotRequest
    )
    client: Client[RobotReport] = Client(f"ipc://{tmp_path}/r", Origin("bridge"), RobotReport)
    command = JointCommand(
        session="s",
        seq=0,
        tick=0,
        target_rad=np.zeros(6, np.float32),
        issued_ns=0,
        captured_ns=None,
        hold=True,
    )
    eventually(lambda: client.send(command, deadline_s=0.01))
    client.send(RobotRequest(action="report"), deadline_s=0.01)
    eventually(lambda: client.poll(0.02) is None and client.counts.expired)
    assert (client.counts.sent, client.counts.expired) == (2, 1)
    router.close()
    client.close()


def test_a_source_that_fails_is_left_out_and_counted(live: Live, show: Callable[[Metrics], int]) -> None:
    """A bus that does not answer costs its own figures and one warning, not the page."""
    office = Office(live, "Ulm")

    def away() -> list[Reading]:
        raise TransientError("Redis is away")

    port = show(Metrics("post", {"bus": away, "mail": live.readings}))
    with capture_logs() as logs:
        fetch(port)
        found = scrape(port)
    assert found["sim2or_mail_letters_total", (("town", "Ulm"),)] == office.counts.letters
    assert found["sim2or_scrape_failures_total", (("source", "bus"),)] == 2
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["metrics left out"]


def test_health_follows_the_loop(show: Callable[[Metrics], int]) -> None:
    """A loop that goes round is healthy, a silent one is not, and one that has not begun is left alone."""
    steady, stuck = Pulse(), Pulse(limit_s=-1.0)
    ports = [show(Metrics("post", pulse=pulse)) for pulse in (steady, stuck, Pulse())]
    steady.beat()
    stuck.beat()
    assert [fetch(port, "/healthz")[0] for port in ports] == [200, 503, 200]
    told = json.loads(fetch(ports[1], "/healthz")[1])
    assert (told["service"], told["healthy"]) == ("post", False)


def test_an_unknown_path_is_told_the_valid_ones(show: Callable[[Metrics], int]) -> None:
    """404 says what there is."""
    assert fetch(show(Metrics("post")), "/metric") == (404, "valid paths: /metrics, /healthz\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"], ids=["port taken", "not our address"])
def test_a_port_that_cannot_be_had_is_one_warning(host: str) -> None:
    """The service goes on without metrics and says which setting to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(metrics_port=taken.getsockname()[1], metrics_host=host)
        with capture_logs() as logs:
            assert expose(settings, "sim") is None
    (line,) = logs
    assert line["log_level"] == "warning"
    assert "SIM2OR_METRICS_PORT" in line["event"]


def test_without_a_port_nothing_of_prometheus_is_imported() -> None:
    """Metrics that nobody wants cost no import."""
    code = (
        "import sys; from sim2or import service, worker; from sim2or.metrics import expose;"
        "from sim2or.settings import Settings; assert expose(Settings(metrics_port=0), 'x') is None;"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_queue_shows_every_state(redis: Redis) -> None:
    """Queued, delayed, running, dead and done jobs are counted by stage, from the bus's own books."""
    jobs = Jobs(redis, lease_s=60.0, retry_delays_s={"transient": 60.0})
    ids = [jobs.submit(Job(stage="train", key=str(n))).job_id for n in range(5)]
    done = jobs.claim("train", "w1", block_s=0)
    assert done is not None
    jobs.complete(done, JobResult())
    for kind in ("permanent", "transient"):
        claim = jobs.claim("train", "w1", block_s=0)
        assert claim is not None
        jobs.fail(claim, JobFailure(kind=kind, message="no"))  # type: ignore[arg-type]
    assert jobs.claim("train", "w1", block_s=0) is not None
    found = {r.name: (r.kind, r.value) for r in queue_source(jobs, ["train"])()}
    assert len(ids) == 5
    gauges = {"queued": 1, "delayed": 1, "running": 1, "outstanding": 3, "dead_letters": 1}
    counters = {"submitted": 5, "started": 4, "done": 1, "failed": 1, "retried": 1, "lost": 0, "fenced": 0}
    for name, value in gauges.items():
        assert found[f"sim2or_jobs_{name}"] == ("gauge", value), name
    for name, value in counters.items():
        assert found[f"sim2or_jobs_{name}"] == ("counter", value), name
    kind, age_s = found["sim2or_jobs_oldest_age_seconds"]
    assert kind == "gauge"
    assert age_s >= 0


def test_reading_a_field_that_is_no_count_is_left_out() -> None:
    """Private fields and texts are nobody's metric."""

    @dataclass
    class OddCounts:
        seen: int = 1
        _last: int = 2
        name: str = "x"

    assert [reading.name for reading in read(OddCounts(), {})] == ["sim2or_odd_seen"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Bench, int]]:
    """A bench whose agent shows its metrics on a port."""
    port = free_port()
    monkeypatch.setenv("SIM2OR_METRICS_PORT", str(port))
    with bench(tmp_path) as made:
        yield made, port


def test_an_agent_works_on_while_nobody_can_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port is taken and the collector is dead: jobs are done all the same."""
    with socket.socket() as taken, socket.socket() as dead, bench(tmp_path) as made:
        for one in (taken, dead):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("SIM2OR_METRICS_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{dead.getsockname()[1]}")
        made.agent()
        assert made.wait(made.submit(), "done").attempts == 1


def test_a_real_agent_shows_queue_attempts_and_worker(
    toy: tuple[Bench, int], eventually: Callable[..., None]
) -> None:
    """Jobs that are done, fail, crash and wait are seen from outside, over HTTP."""
    made, port = toy
    made.agent()
    for fault in ({}, {"fault": "permanent"}, {"fault": "suicide"}):
        made.wait(made.submit(key=str(fault), **fault), "done", "failed")
    stage = (("stage", "write"),)

    def settled() -> bool:
        found = scrape(port)
        return found["sim2or_attempt_duration_seconds_count", stage] == 4

    eventually(settled)
    found = scrape(port)
    assert fetch(port, "/healthz")[0] == 200
    expected = {
        "sim2or_jobs_outstanding": 0,
        "sim2or_jobs_queued": 0,
        "sim2or_jobs_running": 0,
        "sim2or_jobs_dead_letters": 1,
        "sim2or_jobs_started_total": 4,
        "sim2or_jobs_done_total": 2,
        "sim2or_jobs_failed_total": 1,
        "sim2or_jobs_retried_total": 1,
        "sim2or_attempt_started_total": 4,
    }
    assert {name: found[name, stage] for name in expected} == expected
    ended = {
        dict(labels)["outcome"]: value
        for (name, labels), value in found.items()
        if name == "sim2or_attempt_ended_total" and dict(labels)["stage"] == "write"
    }
    assert ended == {"done": 2, "permanent": 1, "crashed": 1}
    assert found["sim2or_worker_starts_total", ()] == 2
    assert found["sim2or_worker_crashes_total", ()] == 1
    assert ("sim2or_jobs_queued", (("stage", "join"),)) in found
