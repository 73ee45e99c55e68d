"""Traces: one W3C trace from a run to each of its jobs, questions and answers.

A traceparent travels with every job, message and process, whether anybody looks or not. Where
``OTEL_EXPORTER_OTLP_ENDPOINT`` is set, the work behind a traceparent is also told to an OpenTelemetry
collector, as a span with exactly the id that travelled. Without it nothing of OpenTelemetry is imported.

A collector that does not answer costs one warning, and nothing else: spans leave from a thread of their own.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from typing import Any, Literal

import structlog

from sim2or.clock import now_ns

TRACEPARENT = r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
"""Source: W3C Trace Context, section 3.2, version 00."""

VARIABLE = "TRACEPARENT"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORT_PERIOD_MS = 1000
FLUSH_S = 1.0

Kind = Literal["internal", "client", "server"]


def new_traceparent(parent: str = "", *, sampled: bool = True) -> str:
    """Makes a W3C traceparent: a child of ``parent``, or a new trace when that is empty.

    Args:
        parent: Its trace is continued; what it does not sample, its children do not either.
        sampled: Whether the work behind it may be exported.
    """
    if not parent:
        return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-{sampled:02x}"
    return f"00-{parent[3:35]}-{os.urandom(8).hex()}-{int(sampled and is_sampled(parent)):02x}"


def is_sampled(traceparent: str) -> bool:
    """Whether its spans are exported, where anything is. Source: W3C Trace Context, section 3.2.2.5."""
    return bool(int(traceparent[-2:], 16) & 1)


def environment_traceparent() -> str:
    """The trace that this process works for, from ``TRACEPARENT``; empty when there is no valid one."""
    text = os.environ.get(VARIABLE, "")
    found = re.fullmatch(TRACEPARENT, text)
    return text if found and set(text[3:35]) != {"0"} and set(text[36:52]) != {"0"} else ""


def configure(service: str) -> None:
    """Begins to export this process's spans when the environment names a collector.

    Args:
        service: What the spans are said to come from.
    """
    global _exporter  # noqa: PLW0603 - one per process, as the collector sees one resource per process
    if not wanted():
        return
    try:
        _exporter = _Exporter(service)
    except (ImportError, ValueError) as error:
        structlog.get_logger().warning("spans are not exported", reason=str(error))


def wanted() -> bool:
    """Whether the environment names a collector and does not turn tracing off."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    none = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").lower() == "none"
    return any(os.environ.get(name) for name in ENDPOINTS) and not (off or none)


def exporting() -> bool:
    """Whether spans of this process go anywhere."""
    return _exporter is not None


def record(
    name: str,
    *,
    own: str,
    started_ns: int,
    parent: str = "",
    ended_ns: int | None = None,
    kind: Kind = "internal",
    error: str = "",
    **attributes: str | int | float | bool,
) -> None:
    """Tells the collector what was done under a traceparent; does nothing without a collector.

    Args:
        name: What was done, of a small set.
        own: The traceparent that travelled: its id is the span's.
        started_ns: When it began, on this process's monotonic clock [ns].
        parent: The traceparent it was done for; empty for the root of a trace.
        ended_ns: When it ended [ns]; now when None.
        kind: ``client`` asked somebody, ``server`` answered somebody.
        error: Why it failed; empty when it did not.
        attributes: Facts about it; their names get the prefix ``sim2or.``.
    """
    if _exporter is None or not is_sampled(own):
        return
    offset_ns = time.time_ns() - now_ns()
    _exporter.export(
        name,
        own=own,
        parent=parent,
        span_ns=(started_ns + offset_ns, (now_ns() if ended_ns is None else ended_ns) + offset_ns),
        kind=kind,
        error=error,
        attributes={f"sim2or.{key}": value for key, value in attributes.items()},
    )


def flush(timeout_s: float = FLUSH_S) -> None:
    """Sends what waits, for a process that is about to end; gives up after ``timeout_s`` [s]."""
    if _exporter is not None:
        _exporter.flush(timeout_s)


class _Exporter:
    """OpenTelemetry's SDK, with span ids that were chosen earlier.

    Args:
        service: What the spans come from.
    """

    def __init__(self, service: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class Chosen(RandomIdGenerator):
            """Gives the ids of the traceparent that travelled."""

            trace_id = span_id = 1

            def generate_trace_id(self) -> int:
                """Of a root."""
                return self.trace_id

            def generate_span_id(self) -> int:
                """Of any span."""
                return self.span_id

        _warn_once()
        self._trace = trace
        self._ids = Chosen()
        self._lock = threading.Lock()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"sim2or-{service}", "process.pid": os.getpid()}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        delay = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else EXPORT_PERIOD_MS
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=delay))
        self._tracer = self._provider.get_tracer("sim2or")

    def export(
        self,
        name: str,
        *,
        own: str,
        parent: str,
        span_ns: tuple[int, int],
        kind: Kind,
        error: str,
        attributes: dict[str, str | int | float | bool],
    ) -> None:
        """Hands a finished span to the thread that sends; ``span_ns``: begin and end [ns since 1970]."""
        trace = self._trace
        context = trace.set_span_in_context(
            trace.NonRecordingSpan(self._context(parent)) if parent else trace.INVALID_SPAN
        )
        with self._lock:
            self._ids.trace_id, self._ids.span_id = int(own[3:35], 16), int(own[36:52], 16)
            span = self._tracer.start_span(
                name,
                context=context,
                kind=trace.SpanKind[kind.upper()],
                attributes=attributes,
                start_time=span_ns[0],
            )
        if error:
            span.set_status(trace.Status(trace.StatusCode.ERROR, error))
        span.end(max(span_ns))

    def flush(self, timeout_s: float) -> None:
        """Sends what waits, from a thread of its own: the SDK's own flush keeps to no time."""
        sender = threading.Thread(target=self._provider.force_flush, name="last-spans", daemon=True)
        sender.start()
        sender.join(timeout_s)

    def _context(self, traceparent: str) -> Any:
        return self._trace.SpanContext(
            trace_id=int(traceparent[3:35], 16),
            span_id=int(traceparent[36:52], 16),
            is_remote=True,
            trace_flags=self._trace.TraceFlags(int(traceparent[-2:], 16)),
        )


_exporter: _Exporter | None = None


class _Once(logging.Handler):
    """Says the exporter's first complaint in our log; the others would say the same."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        """Warns once."""
        if not self._said:
            self._said = True
            reason = " ".join(record.getMessage().split())[:300]
            structlog.get_logger().warning(
                "spans are not exported; the work goes on, and no more is said about it", reason=reason
            )


def _warn_once() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.handlers, logger.propagate = [_Once()], False
