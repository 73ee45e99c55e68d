"""The dashboards show every metric and every live topic, are current, and ask only for what there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from queries import CATALOGUE, COMMITTED, FOREIGN, ROOT, described, selectors
from sim2or.cli.main import app
from sim2or.dashboards import (
    SOURCE,
    Metric,
    documents,
    expressions,
    outdated,
    read_catalogue,
    write,
)
from sim2or.errors import ConfigError
from sim2or.messages.topics import TOPICS
from typer.testing import CliRunner

MADE = documents(CATALOGUE, TOPICS)
DASHBOARDS = {name: json.loads(text) for name, text in MADE.items()}
PAGE = """Before.
<!-- table: begin -->
| metric | kind | labels | told by | what it says |
|---|---|---|---|---|
| `sim2or_mail_sent_bytes_total` | counter | town, outcome | all | Bytes. |
| `sim2or_mail_waited_seconds` | histogram | – | all | Waiting [s]. |
<!-- table: end -->
"""


def test_the_committed_dashboards_are_current() -> None:
    """Every dashboard is what the tables say now; `sim2or bus dashboards` mends it."""
    assert list(outdated(COMMITTED, MADE)) == []


def test_every_metric_has_a_panel() -> None:
    """A metric that a service shows is never without a graph, under its meaning."""
    shown = {
        (panel["description"], name)
        for row in DASHBOARDS["metrics.json"]["panels"]
        for panel in row["panels"]
        for target in panel["targets"]
        for name, *_ in selectors(target["expr"])
    }
    missing = [
        metric.name
        for metric in CATALOGUE.values()
        if not any(said == metric.meaning and name.startswith(metric.name) for said, name in shown)
    ]
    assert missing == []


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_asks_for_what_there_is(name: str) -> None:
    """A query parses, and names metrics of the table with labels that these have."""
    for expression in expressions(DASHBOARDS[name]):
        for series, matched, grouped in selectors(expression):
            metric = described(series)
            if metric is None:
                assert series in FOREIGN, expression
                continue
            known = {*metric.labels, "service"} | ({"le"} if series.endswith("_bucket") else set())
            assert matched | grouped <= known, expression


def test_every_live_topic_is_shown_with_its_promise() -> None:
    """Each question and each published message stands beside its graphs, with the rate that is expected."""
    panels = DASHBOARDS["topics.json"]["panels"]
    tables = "\n".join(panel["options"]["content"] for panel in panels if panel["type"] == "text")
    asked = list(expressions(DASHBOARDS["topics.json"]))
    for row in TOPICS.values():
        if row.road == "pubsub" or row.answers:
            assert f"| {row.name} {row.message.schema_version} |" in tables
            assert row.rate_hz is None or f"vector({row.rate_hz:g})" in asked


def test_a_new_topic_gets_its_panels() -> None:
    """A row of the topic table for a server of its own makes a row of the dashboard."""
    console = replace(TOPICS["robot_state"], publishers=("console",), rate_hz=12.5)
    made = json.loads(documents(CATALOGUE, TOPICS | {"console_state": console})["topics.json"])
    assert "console: publishes" in [panel["title"] for panel in made["panels"]]
    assert "vector(12.5)" in list(expressions(made))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_one_that_grafana_loads(name: str) -> None:
    """Panels have ids and places of their own within 24 columns, and ask the provisioned source."""
    dashboard = DASHBOARDS[name]
    panels = [*dashboard["panels"], *(one for row in dashboard["panels"] for one in row.get("panels", ()))]
    assert dashboard["uid"] == f"sim2or-{name.removesuffix('.json')}"
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(panel["datasource"] == SOURCE for panel in panels if "targets" in panel)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_a_catalogue_is_read_as_it_stands(tmp_path: Path) -> None:
    """Name, kind, labels and meaning come from the table; unit, subject and count from the name."""
    page = tmp_path / "metrics.md"
    page.write_text(PAGE)
    found = read_catalogue(page)
    sent = found["sim2or_mail_sent_bytes_total"]
    assert sent == Metric("sim2or_mail_sent_bytes_total", "counter", ("town", "outcome"), "Bytes.")
    assert (sent.subject, sent.count, sent.unit) == ("mail", "sent_bytes", "Bps")
    waited = found["sim2or_mail_waited_seconds"]
    assert (waited.labels, waited.unit) == ((), "s")


@pytest.mark.parametrize(
    "text", ["", PAGE.replace("end", "over"), PAGE.replace("`", "").split("| `")[0][:60]]
)
def test_a_page_without_its_table_is_refused(tmp_path: Path, text: str) -> None:
    """A missing page or table is named, instead of making empty dashboards."""
    page = tmp_path / "metrics.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match=r"metrics\.md: no table between"):
        read_catalogue(page)


def test_stale_dashboards_are_told(tmp_path: Path) -> None:
    """One that differs, one that is missing and one too many each get a line; writing mends the first two."""
    write(tmp_path, MADE)
    (tmp_path / "overview.json").write_text("{}")
    (tmp_path / "topics.json").unlink()
    (tmp_path / "old.json").write_text("{}")
    lines = list(outdated(tmp_path, MADE))
    assert [line.split(": ")[1].split(";")[0] for line in lines] == [
        "differs from the tables",
        "is missing",
        "is made from no table",
    ]
    write(tmp_path, MADE)
    assert [Path(line.split(": ")[0]).name for line in outdated(tmp_path, MADE)] == ["old.json"]


def test_the_command_checks_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--check` fails until the command without it has written."""
    monkeypatch.chdir(ROOT)
    directory = str(tmp_path / "made")
    assert CliRunner().invoke(app, ["bus", "dashboards", directory, "--check"]).exit_code == 2
    assert CliRunner().invoke(app, ["bus", "dashboards", directory]).exit_code == 0
    assert CliRunner().invoke(app, ["bus", "dashboards", directory, "--check"]).exit_code == 0
