"""What a PromQL expression asks for, and whether there is such a thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
from sim2or.dashboards import WINDOW, Metric, read_catalogue

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "compose" / "observability" / "grafana" / "dashboards"
CATALOGUE = read_catalogue(ROOT / "docs" / "metrics.md")

FOREIGN = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
"""What Prometheus itself and its client library show."""


def selectors(expression: str) -> Iterator[tuple[str, set[str], set[str]]]:
    """Name, labels matched and labels grouped by of everything that an expression selects."""

    def walk(node: Any, grouped: set[str]) -> Iterator[tuple[str, set[str], set[str]]]:
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name, {one.name for one in node.matchers.matchers}, grouped
        elif isinstance(node, promql_parser.MatrixSelector):
            yield from walk(node.vector_selector, grouped)
        elif isinstance(node, promql_parser.AggregateExpr):
            yield from walk(node.expr, grouped | set(node.modifier.labels if node.modifier else ()))
        elif isinstance(node, promql_parser.Call):
            for argument in node.args:
                yield from walk(argument, grouped)
        elif isinstance(node, promql_parser.BinaryExpr):
            yield from walk(node.lhs, grouped)
            yield from walk(node.rhs, grouped)
        elif isinstance(node, promql_parser.ParenExpr):
            yield from walk(node.expr, grouped)

    yield from walk(promql_parser.parse(expression.replace(WINDOW, "1m")), set())


def described(name: str) -> Metric | None:
    """The metric that a series belongs to."""
    return CATALOGUE.get(name) or CATALOGUE.get(re.sub("_(bucket|count|sum)$", "", name))
