"""Grafana dashboards, made from the table of metrics and the table of topics.

``sim2or bus dashboards`` writes three: what to watch, one row for each socket of the topic table, and every
metric there is. Nothing is drawn by hand, so a new metric or topic has its panel as soon as it has its row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim2or.counts import PREFIX
from sim2or.errors import ConfigError, choices
from sim2or.messages.topics import Topic

Json = dict[str, Any]

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
"""Between these lines stands the table of ``docs/metrics.md``."""

SOURCE = {"type": "prometheus", "uid": "prometheus"}
"""The data source that ``compose/observability/grafana/provisioning`` provisions."""

WINDOW = "$__rate_interval"
"""Grafana's variable: long enough for four scrapes."""

SCHEMA_VERSION = 39
"""Of Grafana's dashboard model; newer Grafanas migrate it when they load it."""

WIDTH = 24
"""Columns of Grafana's grid."""

SMOOTH = ("sent", "received", "answered", "published", "sent_bytes", "received_bytes", "ring_frames")
"""What a socket counts when all is well; its other counts say what went wrong."""

QUANTILES = (0.5, 0.95, 0.99)

FLOWS = (
    "sim2or_jobs_outstanding",
    "sim2or_jobs_running",
    "sim2or_jobs_oldest_age_seconds",
    "sim2or_jobs_done_total",
    "sim2or_jobs_retried_total",
    "sim2or_jobs_lost_total",
    "sim2or_attempt_duration_seconds",
    "sim2or_worker_crashes_total",
    "sim2or_inference_duration_seconds",
    "sim2or_control_period_seconds",
    "sim2or_control_deadline_misses_total",
    "sim2or_control_holds_total",
    "sim2or_subscriber_gaps_total",
    "sim2or_router_malformed_total",
    "sim2or_scrape_failures_total",
)
LEVELS = (
    "sim2or_jobs_dead_letters",
    "sim2or_control_stale_executed_total",
    "sim2or_control_violations_total",
)
"""What must stay 0: shown as a number."""


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        name: As queries name it: a counter's ends in ``_total``.
        kind: ``counter``, ``gauge`` or ``histogram``.
        labels: Its own labels.
        meaning: What it says.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def subject(self) -> str:
        """Who counts, for example ``router``."""
        return self.name.split("_")[1]

    @property
    def title(self) -> str:
        """Its name without prefix and suffix, for example ``router sent bytes``."""
        return self.name.removeprefix(f"{PREFIX}_").removesuffix("_total").replace("_", " ")

    @property
    def count(self) -> str:
        """What of its subject it counts, for example ``sent_bytes``."""
        return self.name.removeprefix(f"{PREFIX}_{self.subject}_").removesuffix("_total")

    @property
    def shared(self) -> bool:
        """Whether every process tells the same number: the figures of the bus."""
        return self.subject == "jobs"

    @property
    def unit(self) -> str:
        """The unit of what is shown, in Grafana's name."""
        if self.kind == "counter":
            endings = {"bytes_total": "Bps", "seconds_total": "percentunit"}
            return next((unit for end, unit in endings.items() if self.name.endswith(end)), "cps")
        return "s" if self.name.endswith("_seconds") else "short"


Catalogue = Mapping[str, Metric]


def read_catalogue(page: Path) -> dict[str, Metric]:
    """Reads the table of metrics.

    Args:
        page: ``docs/metrics.md``; a test holds its table to what the code counts.

    Raises:
        ConfigError: The page or its table is missing.
    """
    text = page.read_text() if page.is_file() else ""
    _, begun, rest = text.partition(f"{BEGIN}\n")
    table, ended, _ = rest.partition(END)
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    if not (begun and ended and rows):
        raise ConfigError(f"{page}: no table between {BEGIN!r} and {END!r}; give the page of metrics")
    return {metric.name: metric for metric in map(_metric, rows)}


def _metric(cells: Sequence[str]) -> Metric:
    name, kind, labels, _, meaning = cells
    own = tuple(part for part in labels.split(", ") if part != "–")
    return Metric(name.strip("`"), kind, own, meaning)


def documents(catalogue: Catalogue, topics: Mapping[str, Topic]) -> dict[str, str]:
    """Makes every dashboard.

    Returns:
        File name to content.
    """
    made = {
        "overview": ("sim2or: what to watch", _overview(catalogue)),
        "topics": ("sim2or: messages", _conversations(catalogue, topics)),
        "metrics": ("sim2or: every metric", _everything(catalogue)),
    }
    return {
        f"{name}.json": json.dumps(_dashboard(name, title, panels), indent=1, ensure_ascii=False) + "\n"
        for name, (title, panels) in made.items()
    }


def outdated(directory: Path, made: Mapping[str, str]) -> Iterator[str]:
    """Names every file that differs from what the tables give now, is missing, or has no table any more."""
    for name, text in made.items():
        path = directory / name
        if not path.exists() or path.read_text() != text:
            state = "differs from the tables" if path.exists() else "is missing"
            yield f"{path}: {state}; `sim2or bus dashboards` makes it"
    for path in sorted(directory.glob("*.json")):
        if path.name not in made:
            yield f"{path}: is made from no table; remove it"


def write(directory: Path, made: Mapping[str, str]) -> list[Path]:
    """Writes every dashboard; returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (directory / name).write_text(text)
    return [directory / name for name in made]


def expressions(dashboard: Json) -> Iterator[str]:
    """Every query of a dashboard."""
    for panel in dashboard["panels"]:
        yield from expressions(panel) if panel.get("panels") else ()
        yield from (target["expr"] for target in panel.get("targets", ()))


def _dashboard(name: str, title: str, panels: Iterable[Json]) -> Json:
    numbered = list(panels)
    for number, panel in enumerate(_all(numbered), start=1):
        panel["id"] = number
    return {
        "uid": f"{PREFIX}-{name}",
        "title": title,
        "tags": [PREFIX],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": numbered,
    }


def _all(panels: Iterable[Json]) -> Iterator[Json]:
    for panel in panels:
        yield panel
        yield from panel.get("panels", ())


def _overview(catalogue: Catalogue) -> list[Json]:
    firing = ('ALERTS{alertstate="firing"}', "{{alertname}} {{service}} {{stage}}")
    up = _panel("services that answer", [('sum by (service) (up{job="sim2or"})', "{{service}}")], "stat")
    alerts = _panel("alerts", [firing], "stat")
    zeros = [
        _panel(metric.title, [_level(metric)], "stat", description=metric.meaning)
        for metric in (_find(catalogue, name) for name in LEVELS)
    ]
    flows = [_graph(_find(catalogue, name)) for name in FLOWS]
    processes = [
        _panel("processor", [_rate("process_cpu_seconds_total", ("service",))], unit="percentunit"),
        _panel("memory", [("sum by (service) (process_resident_memory_bytes)", "{{service}}")], unit="bytes"),
    ]
    return _placed([up, alerts, *zeros], height=5) + _placed([*flows, *processes], top=10)


def _conversations(catalogue: Catalogue, topics: Mapping[str, Topic]) -> list[Json]:
    """For each socket that somebody serves: its topics, what passes, what goes wrong, how many bytes."""
    placed: list[Json] = []
    for server, road, rows in _sockets(topics):
        top = max((panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in placed), default=0)
        header = _row(f"{server}: {'asked' if road == 'rpc' else 'publishes'}", top)
        panels = [_table(rows), *_traffic(catalogue, server, road, rows)]
        placed += [header, *_placed(panels, top=top + 1, width=6)]
    return placed


def _sockets(topics: Mapping[str, Topic]) -> Iterator[tuple[str, str, list[Topic]]]:
    """Who serves, on which road, and the topics of that socket."""
    questions = [row for row in topics.values() if row.road == "rpc" and row.answers]
    for server in dict.fromkeys(name for row in questions for name in row.consumers):
        yield server, "rpc", [row for row in questions if server in row.consumers]
    news = [row for row in topics.values() if row.road == "pubsub"]
    for server in dict.fromkeys(name for row in news for name in row.publishers):
        yield server, "pubsub", [row for row in news if server in row.publishers]


def _traffic(catalogue: Catalogue, server: str, road: str, rows: Sequence[Topic]) -> Iterator[Json]:
    sides = ("client", "router") if road == "rpc" else ("publisher", "subscriber")
    metrics = [one for one in catalogue.values() if one.subject in sides]
    match = f'{{endpoint="{server}"}}'
    passed = [_series(one, match) for one in metrics if one.count in ("sent", "received", "published")]
    passed += [(f"vector({row.rate_hz:g})", f"{row.name}: expected of each") for row in rows if row.rate_hz]
    wrong = [_series(one, match) for one in metrics if one.count not in SMOOTH]
    volume = [_series(one, match) for one in metrics if one.count.endswith("_bytes")]
    yield _panel("messages a second", passed, unit="hertz")
    yield _panel("late, lost or refused a second", wrong, unit="cps")
    yield _panel("bytes a second", volume, unit="Bps")


def _series(metric: Metric, match: str) -> tuple[str, str]:
    expression, _ = _rate(metric.name, ("service", "message"), match)
    return expression, f"{{{{service}}}}: {metric.title} {{{{message}}}}"


def _table(rows: Sequence[Topic]) -> Json:
    lines = ["| message | from | to | Hz | max age s | queue | promise |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        numbers = ["–" if value is None else f"{value:g}" for value in (row.rate_hz, row.max_age_s)]
        sides = [", ".join(names) for names in (row.publishers, row.consumers)]
        cells = [f"{row.name} {row.message.schema_version}", *sides, *numbers, str(row.hwm), row.policy]
        lines.append(f"| {' | '.join(cells)} |")
    return {"type": "text", "title": "", "options": {"mode": "markdown", "content": "\n".join(lines)}}


def _everything(catalogue: Catalogue) -> list[Json]:
    """A folded row for each subject, with a panel for each of its metrics."""
    subjects = dict.fromkeys(metric.subject for metric in catalogue.values())
    folded: list[Json] = []
    for top, subject in enumerate(subjects):
        graphs = [_graph(metric) for metric in catalogue.values() if metric.subject == subject]
        folded.append(_row(subject, top) | {"collapsed": True, "panels": _placed(graphs, top=top + 1)})
    return folded


def _graph(metric: Metric) -> Json:
    return _panel(metric.title, _queries(metric), unit=metric.unit, description=metric.meaning)


def _queries(metric: Metric) -> list[tuple[str, str]]:
    """Queries and legends that show a metric over time."""
    labels = metric.labels if metric.shared else ("service", *metric.labels)
    if metric.kind == "gauge":
        return [_level(metric)]
    if metric.kind == "counter":
        return [_rate(metric.name, labels, of="max" if metric.shared else "sum")]
    buckets, _ = _rate(f"{metric.name}_bucket", ("le", *labels))
    return [
        (f"histogram_quantile({part:g}, {buckets})", f"{_legend(labels)} p{part * 100:.0f}")
        for part in QUANTILES
    ]


def _level(metric: Metric) -> tuple[str, str]:
    """A metric as it stands."""
    labels = metric.labels if metric.shared else ("service", *metric.labels)
    return f"{'max' if metric.shared else 'sum'} by ({', '.join(labels)}) ({metric.name})", _legend(labels)


def _rate(name: str, labels: Sequence[str], match: str = "", *, of: str = "sum") -> tuple[str, str]:
    """How fast a counter grows, and the legend."""
    return f"{of} by ({', '.join(labels)}) (rate({name}{match}[{WINDOW}]))", _legend(labels)


def _legend(labels: Iterable[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _panel(
    title: str,
    queries: Iterable[tuple[str, str]],
    kind: str = "timeseries",
    *,
    unit: str = "short",
    description: str = "",
) -> Json:
    targets = [
        {"refId": f"Q{number}", "expr": expression, "legendFormat": legend}
        for number, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def _row(title: str, top: int) -> Json:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
        "panels": [],
    }


def _placed(panels: Sequence[Json], *, top: int = 0, width: int = 8, height: int = 8) -> list[Json]:
    """Panels in rows from left to right."""
    across = WIDTH // width
    for number, panel in enumerate(panels):
        x, y = number % across * width, top + number // across * height
        panel["gridPos"] = {"h": height, "w": width, "x": x, "y": y}
    return list(panels)


def _find(catalogue: Catalogue, name: str) -> Metric:
    if name not in catalogue:
        raise ConfigError(f"dashboards: unknown metric {name!r}; {choices(name, catalogue)}")
    return catalogue[name]
