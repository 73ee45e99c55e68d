"""Traces: ids that travel, and spans that a real OTLP/HTTP collector receives under the same ids."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sim2or import tracing
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.questions import Questions
from sim2or.bus.rpc import Client, ServerLoop
from sim2or.clock import now_ns
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.messages.robot_state import RobotState
from sim2or.tracing import environment_traceparent, is_sampled, new_traceparent
from structlog.testing import capture_logs

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from sim2or_toy.bench import Bench, bench

RUN = "00-" + "a1" * 16 + "-" + "b2" * 8 + "-01"
UNSAMPLED = RUN[:-2] + "00"


def span_of(traceparent: str) -> str:
    """The span id in a traceparent."""
    return traceparent[36:52]


class Collector:
    """A real OTLP/HTTP collector that keeps what it is sent, by span id."""

    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.services: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    outer.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keeps the spans of one request."""
        for resource in request.resource_spans:
            facts = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.services.add(facts["service.name"])
            for scope in resource.scope_spans:
                self.spans.update({span.span_id.hex(): span for span in scope.spans})

    def named(self, name: str) -> list[Any]:
        """The spans of one name."""
        return [span for span in self.spans.values() if span.name == name]


def attributes(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector."""
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Turns export on in this process for one test."""

    def begin(url: str) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        tracing.configure("test")

    monkeypatch.setattr(tracing, "_exporter", None)
    return begin


def dead_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_a_child_continues_its_parents_trace() -> None:
    """A child has the trace and the sampling of its parent, and a span id of its own."""
    child = new_traceparent(RUN)
    assert child[3:35] == RUN[3:35]
    assert span_of(child) != span_of(RUN)
    assert is_sampled(child)
    assert not is_sampled(new_traceparent(UNSAMPLED))
    assert not is_sampled(new_traceparent(RUN, sampled=False))
    assert new_traceparent()[3:35] != new_traceparent()[3:35]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (RUN, RUN),
        ("", ""),
        ("nonsense", ""),
        ("00-" + "0" * 32 + "-" + "b2" * 8 + "-01", ""),
        ("00-" + "a1" * 16 + "-" + "0" * 16 + "-01", ""),
        ("ff-" + "a1" * 16 + "-" + "b2" * 8 + "-01", ""),
    ],
)
def test_a_process_works_for_the_trace_in_its_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, found: str
) -> None:
    """TRACEPARENT counts when it is valid and not all zeros, as W3C wants."""
    monkeypatch.setenv("TRACEPARENT", text)
    assert environment_traceparent() == found
    assert Origin("bridge").traceparent == found


def test_messages_carry_their_senders_trace_and_answers_their_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A question has its job's trace, an answer its question's, a causeless message of no job a new one."""
    monkeypatch.setenv("TRACEPARENT", RUN)
    request = RobotRequest(action="report")
    asked = Origin("bridge").envelope(request)
    monkeypatch.delenv("TRACEPARENT")
    answered = Origin("robot").envelope(PolicyError(code="busy", detail=""), cause=asked)
    assert asked.traceparent[3:35] == answered.traceparent[3:35] == RUN[3:35]
    assert len({span_of(one) for one in (RUN, asked.traceparent, answered.traceparent)}) == 3
    assert Origin("robot").envelope(request).traceparent[3:35] != RUN[3:35]


def test_published_state_carries_the_trace_that_caused_it(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """A subscriber sees the trace of the question that began the episode."""
    still = np.zeros(6, np.float32)
    state = RobotState(seq=0, captured_ns=0, position_rad=still, velocity_radps=still)
    publisher = Publisher(f"ipc://{tmp_path}/s", Origin("robot"), RobotState)
    subscriber = Subscriber(f"ipc://{tmp_path}/s", RobotState)
    cause = Origin("bridge", traceparent=RUN).envelope(RobotRequest(action="reset", session="e"))
    got: list[Envelope] = []

    def arrives() -> bool:
        publisher.publish(state, cause=cause)
        received = subscriber.receive(0.05)
        got.extend([received[0]] if received else [])
        return bool(got)

    eventually(arrives)
    assert got[0].traceparent[3:35] == RUN[3:35]
    publisher.close()
    subscriber.close()


def test_without_a_collector_nothing_is_imported() -> None:
    """No endpoint in the environment: neither the SDK's tracing nor the exporter is loaded."""
    code = (
        "import sys; from sim2or import tracing, service, worker; from sim2or.bus import rpc;"
        "tracing.configure('x'); tracing.record('y', own=tracing.new_traceparent(), started_ns=0);"
        "tracing.flush();"
        "heavy = ('opentelemetry.sdk.trace', 'opentelemetry.exporter');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}], ids=lambda off: next(iter(off))
)
def test_the_standard_switches_turn_it_off(monkeypatch: pytest.MonkeyPatch, off: dict[str, str]) -> None:
    """OpenTelemetry's own variables win over the endpoint."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert tracing.wanted()
    for name, value in off.items():
        monkeypatch.setenv(name, value)
    assert not tracing.wanted()


def test_a_span_has_the_id_that_travelled(collector: Collector, exporting: Callable[[str], None]) -> None:
    """Id, parent, times, attributes and error arrive; what is not sampled does not."""
    exporting(collector.url)
    own, unsampled = new_traceparent(RUN), new_traceparent(RUN, sampled=False)
    tracing.record("run", own=RUN, started_ns=now_ns())
    tracing.record(
        "job train", own=own, parent=RUN, started_ns=now_ns() - 5_000_000, error="no space", stage="train"
    )
    tracing.record("job train", own=unsampled, parent=RUN, started_ns=now_ns())
    tracing.flush(10)
    assert set(collector.spans) == {span_of(RUN), span_of(own)}
    root, child = collector.spans[span_of(RUN)], collector.spans[span_of(own)]
    assert root.trace_id.hex() == child.trace_id.hex() == RUN[3:35]
    assert (root.parent_span_id, child.parent_span_id) == (b"", root.span_id)
    assert child.end_time_unix_nano - child.start_time_unix_nano >= 5_000_000
    assert attributes(child) == {"sim2or.stage": "train"}
    assert (child.status.code, child.status.message) == (2, "no space")
    assert collector.services == {"sim2or-test"}


def test_a_dead_collector_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, exporting: Callable[[str], None]
) -> None:
    """Nobody listens: recording goes on, the end is not held up, and one line says so."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with capture_logs() as logs:
        exporting(dead_url())
        for _ in range(3):
            tracing.record("run", own=new_traceparent(), started_ns=now_ns())
            tracing.flush(0.01)
        assert tracing._exporter is not None
        tracing._exporter.flush(60)  # the exporter's own retries are over before the test is
    warnings = [line for line in logs if line["log_level"] == "warning"]
    assert len(warnings) == 1
    assert warnings[0]["event"].startswith("spans are not exported; the work goes on")


def test_a_wrong_exporter_setting_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, exporting: Callable[[str], None]
) -> None:
    """What the exporter refuses is told once; the process goes on without spans."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1")
    with capture_logs() as logs:
        exporting("http://127.0.0.1:4318")
    assert [line["event"] for line in logs] == ["spans are not exported"]
    assert not tracing.exporting()


def test_one_question_a_second_of_each_kind_is_traced() -> None:
    """A loop that asks at 25 Hz gives one span a second; another kind of question has its own second."""
    questions, clock = Questions(RUN), iter(range(0, 60 * 40_000_000, 40_000_000))
    origin = Origin("bridge", traceparent=RUN, clock=clock.__next__)
    traced = []
    for tick in range(60):
        sampled = questions.sampled("robot_request", tick * 40_000_000)
        questions.asked(origin.envelope(RobotRequest(action="report"), sampled=sampled))
        traced += [tick] if sampled else []
    assert traced == [0, 25, 50]  # 25 · 40 ms = 1 s
    assert questions.sampled("policy_request", 0)


def test_questions_and_answers_are_spans_of_one_tree(
    collector: Collector, exporting: Callable[[str], None], tmp_path: Path
) -> None:
    """The question hangs from its job, the answer from the question; of a burst only the first is told."""
    exporting(collector.url)
    stopped = threading.Event()
    seen: list[str] = []

    def refuse(requests: list[RobotRequest]) -> list[PolicyError]:
        seen.extend(request.action for request in requests)
        return [PolicyError(code="busy", detail="later") for _ in requests]

    loop: ServerLoop[RobotRequest, PolicyError] = ServerLoop(
        f"ipc://{tmp_path}/r", refuse, RobotRequest, origin=Origin("robot", traceparent="")
    )
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    client: Client[RobotReport | PolicyError] = Client(
        f"ipc://{tmp_path}/r", Origin("bridge", traceparent=RUN), RobotReport, PolicyError
    )
    for _ in range(5):
        client.call(RobotRequest(action="report"), deadline_s=5.0)
    stopped.set()
    thread.join()
    client.close()
    tracing.flush(10)
    asked, answered = collector.named("ask robot_request"), collector.named("answer robot_request")
    assert len(seen) == 5
    assert len(asked) == len(answered) >= 1
    assert {span.parent_span_id.hex() for span in asked} == {span_of(RUN)}
    assert {span.parent_span_id for span in answered} == {span.span_id for span in asked}
    assert {span.kind for span in asked} == {3}  # client
    assert {span.kind for span in answered} == {2}  # server
    assert {attributes(span)["sim2or.answer"] for span in asked + answered} == {"policy_error"}
    assert {span.status.message for span in asked + answered} == {"busy"}


def test_a_question_without_an_answer_is_told_as_that(
    collector: Collector, exporting: Callable[[str], None], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """The span of a question that nobody answers ends with the deadline and says so."""
    from sim2or.bus.rpc import Router

    exporting(collector.url)
    router = Router(f"ipc://{tmp_path}/r", Origin("robot"), RobotRequest)
    client: Client[RobotReport] = Client(
        f"ipc://{tmp_path}/r", Origin("bridge", traceparent=RUN), RobotReport
    )
    eventually(lambda: client.send(RobotRequest(action="report"), deadline_s=0.01))
    eventually(lambda: client.poll(0.01) is None and client.counts.expired)
    tracing.flush(10)
    (asked,) = collector.named("ask robot_request")
    assert asked.status.message == "no answer before the deadline"
    client.close()
    router.close()


@pytest.fixture
def toy(tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose agents export to the collector."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    with bench(tmp_path) as made:
        yield made


def test_each_attempt_of_a_job_is_a_span_of_its_run(
    toy: Bench, collector: Collector, eventually: Callable[..., None]
) -> None:
    """A job that is tried twice is two spans below the run's; the stage works under its attempt's id."""
    toy.agent()
    job_id = toy.submit(fault="transient", traceparent=RUN)
    toy.wait(job_id, "done")
    eventually(lambda: len(collector.named("job write")) == 2)
    first, second = sorted(collector.named("job write"), key=lambda span: span.start_time_unix_nano)
    assert {span.trace_id.hex() for span in (first, second)} == {RUN[3:35]}
    assert {span.parent_span_id.hex() for span in (first, second)} == {span_of(RUN)}
    told = [attributes(span) for span in (first, second)]
    assert [facts["sim2or.attempt"] for facts in told] == [1, 2]
    assert [facts["sim2or.outcome"] for facts in told] == ["transient", "done"]
    assert {facts["sim2or.job"] for facts in told} == {job_id}
    assert all(facts["sim2or.worker"].startswith("toy@") for facts in told)
    assert (first.status.code, second.status.code) == (2, 0)
    marks = {mark.removeprefix("traceparent=") for mark in toy.marks("traceparent=")}
    assert {span_of(mark) for mark in marks} == {span.span_id.hex() for span in (first, second)}
    assert collector.services == {"sim2or-toy"}
