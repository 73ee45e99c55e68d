"""Metrics: what this process counts, over HTTP for Prometheus.

``/metrics`` shows the counts as they are at that moment; ``/healthz`` says whether the process's loop goes
round. Both live in daemon threads and read what others count, so a scrape that is slow, wrong or never comes
changes nothing: a source that fails is left out and counted, a port that is taken costs one warning.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from sim2or.counts import LIVE, PREFIX, PULSE, Pulse, Reading, read
from sim2or.errors import TransientError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

    from sim2or.bus.jobs import QueueFigures
    from sim2or.settings import Settings

Source = Callable[[], Iterable[Reading]]

CLIENT_TIMEOUT_S = 5.0
WARN_PERIOD_S = 60.0
QUEUE_GAUGES = ("queued", "delayed", "running", "outstanding", "oldest_age_s", "dead_letters")


class Queue(Protocol):
    """A job queue whose figures can be read."""

    def figures(self, stage: str) -> QueueFigures:
        """The figures of one stage."""


@dataclass
class ScrapeCounts:
    """How often this page was asked for.

    Attributes:
        pages: Scrapes answered.
        failures: Sources that could not be read, and were left out of a page.
    """

    pages: int = 0
    failures: Counter[str] = field(default_factory=Counter, metadata={"label": "source"})


class Metrics:
    """One process's registry: every scrape reads the sources anew.

    Args:
        service: Put on every reading as a label.
        sources: Name to what is read beside the live counts of this process.
        pulse: The loop whose silence makes the process unhealthy.
    """

    def __init__(
        self, service: str, sources: Mapping[str, Source] | None = None, *, pulse: Pulse = PULSE
    ) -> None:
        from prometheus_client import CollectorRegistry
        from prometheus_client.process_collector import ProcessCollector

        self.counts = ScrapeCounts()
        self._service = service
        self._sources: dict[str, Source] = {"process": LIVE.readings, **(sources or {})}
        self._pulse = pulse
        self._warn_s = 0.0
        self.registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        self.registry.register(self)  # type: ignore[arg-type]

    def collect(self) -> Iterator[Metric]:
        """The sources' readings, as Prometheus wants them; called by the registry at every scrape."""
        self.counts.pages += 1
        readings = [reading for name in self._sources for reading in self._read(name)]
        readings += read(self.counts, {})
        labels = {"service": self._service}
        yield from families(_labelled(reading, labels) for reading in readings)

    def health(self) -> dict[str, Any]:
        """What ``/healthz`` says: whether the loop goes round, and how long it has been silent [s]."""
        silent_s = self._pulse.silent_s
        healthy = silent_s <= self._pulse.limit_s
        return {"service": self._service, "healthy": healthy, "silent_s": round(silent_s, 3)}

    def _read(self, name: str) -> list[Reading]:
        try:
            return list(self._sources[name]())
        except Exception as error:  # noqa: BLE001 - the handler's border: a scrape never disturbs the service
            self.counts.failures[name] += 1
            if time.monotonic() >= self._warn_s:
                self._warn_s = time.monotonic() + WARN_PERIOD_S
                kind = "" if isinstance(error, TransientError) else f"{type(error).__name__}: "
                structlog.get_logger().warning("metrics left out", source=name, reason=f"{kind}{error}"[:300])
            return []


def families(readings: Iterable[Reading]) -> Iterator[Metric]:
    """Puts readings of one name together as one Prometheus metric, in the order of their names."""
    from prometheus_client import Metric

    found: dict[str, Metric] = {}
    for reading in sorted(readings, key=lambda one: one.name):
        metric = found.setdefault(
            reading.name, Metric(reading.name, reading.help or reading.name, reading.kind)
        )
        for suffix, more, value in _samples(reading):
            metric.add_sample(reading.name + suffix, {**reading.labels, **more}, value)
    yield from found.values()


def _samples(reading: Reading) -> Iterator[tuple[str, dict[str, str], float]]:
    """Suffix, further label and value of each line of a reading. Source: Prometheus exposition formats."""
    if reading.kind != "histogram":
        yield "_total" if reading.kind == "counter" else "", {}, reading.value
        return
    reached = 0
    for bound, number in zip([*map(str, reading.bounds), "+Inf"], reading.counts, strict=True):
        reached += number
        yield "_bucket", {"le": bound}, reached
    yield "_count", {}, reached
    yield "_sum", {}, reading.value


def queue_source(queue: Queue, stages: Iterable[str]) -> Source:
    """The figures of some stages' queues; they are the bus's, whichever agent tells them.

    Args:
        queue: The job queue.
        stages: Names of the stages.
    """
    names = tuple(stages)

    def readings() -> list[Reading]:
        return [
            reading
            for stage in names
            for reading in read(queue.figures(stage), {"stage": stage}, gauges=QUEUE_GAUGES, subject="jobs")
        ]

    return readings


def expose(
    settings: Settings, service: str, sources: Mapping[str, Source] | None = None
) -> Exposition | None:
    """Serves this process's metrics where ``SIM2OR_METRICS_PORT`` says so.

    Args:
        settings: Host and port; port 0: nothing is served, and nothing of Prometheus imported.
        service: Who this is.
        sources: What is shown beside the live counts of this process.

    Returns:
        None without a port, or when it cannot be had: a warning says why, and the service goes on.
    """
    if not settings.metrics_port:
        return None
    where = f"{settings.metrics_host}:{settings.metrics_port}"
    try:
        exposition = Exposition(Metrics(service, sources), settings.metrics_host, settings.metrics_port)
    except (OSError, OverflowError) as error:
        structlog.get_logger().warning(
            "no metrics; the service goes on: choose another SIM2OR_METRICS_PORT",
            address=where,
            reason=str(error),
        )
        return None
    structlog.get_logger().info("metrics", address=f"http://{where}/metrics")
    return exposition


class Exposition:
    """The HTTP server of one process's metrics, in daemon threads.

    Args:
        metrics: What is shown.
        host: Where it listens; plain text over HTTP, so loopback unless the network is private.
        port: 0 takes a free one; ``self.port`` says which.
    """

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        self.metrics = metrics
        self._server = _Server((host, port), _handler(metrics))
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Listens without asking the name service for its own name, which may take long."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Binds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = map(str, self.server_address[:2])  # type: ignore[assignment]


def _handler(metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_TIMEOUT_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                from prometheus_client.exposition import choose_encoder

                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(200, content_type, encode(metrics.registry))
            elif path == "/healthz":
                health = metrics.health()
                self._answer(
                    200 if health["healthy"] else 503, "application/json", json.dumps(health).encode()
                )
            else:
                self._answer(404, "text/plain", b"valid paths: /metrics, /healthz\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: scrapes come every few seconds."""

    return Handler


def _labelled(reading: Reading, labels: Mapping[str, str]) -> Reading:
    if reading.name.startswith(f"{PREFIX}_jobs_"):
        return reading
    return replace(reading, labels={**labels, **reading.labels})
