"""The topic table: it holds together, and it tells the truth about the code."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sim2or.errors import ConfigError
from sim2or.messages import topics
from sim2or.messages.catalogue.check import OUTSIDE, findings
from sim2or.messages.catalogue.documents import write
from sim2or.messages.catalogue.golden import add_missing
from sim2or.messages.message import Message
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.topics import TOPICS, Topic, topic
from sim2or.stages import SERVICES, load_table

SERVICE_NAMES = {info.name for info in SERVICES}
PACKAGE = {info.name: info.module for info in SERVICES}
GENERIC = ("sim2or.messages", "sim2or.cli", "sim2or.bus.rpc", "sim2or.bus.pubsub")
"""Modules that name messages on behalf of whoever uses them."""

LIVE = {row.name: row for row in TOPICS.values() if row.road in ("rpc", "pubsub")}


class Stray(Message):
    """A message that nobody put into the table."""

    type_name: ClassVar[str] = "stray"


class PolicyErrorTwo(PolicyError):
    """The same answer in another major version."""

    schema_version: ClassVar[str] = "2.0"


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue and samples that fit the table."""
    directory = tmp_path_factory.mktemp("catalogue")
    write(directory / "documents")
    add_missing(directory / "golden")
    return directory


def found(
    catalogue: Path, table: dict[str, Topic], kinds: dict[str, type[Message]] | None = None
) -> list[str]:
    return list(
        findings(
            table,
            services=SERVICE_NAMES,
            documents=catalogue / "documents",
            golden=catalogue / "golden",
            kinds=kinds or {},
        )
    )


def with_row(name: str, **changes: Any) -> dict[str, Topic]:
    """The table with one row changed."""
    return TOPICS | {name: replace(TOPICS[name], **changes)}


def without(name: str) -> dict[str, Topic]:
    return {key: row for key, row in TOPICS.items() if key != name}


def test_the_table_holds_together(catalogue: Path) -> None:
    """Every consumer has a producer, every question an answer, every party is a service."""
    assert found(catalogue, dict(TOPICS)) == []
    assert len(TOPICS) == len(topics._ROWS)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (with_row("robot_state", publishers=()), "robot_state: has no publisher"),
        (with_row("robot_state", consumers=()), "robot_state: has no consumer"),
        (
            with_row("robot_state", publishers=("robo",)),
            "robot_state: publisher 'robo' is no service; valid: ",
        ),
        (with_row("job", consumers=("simm",)), "(did you mean 'sim'?)"),
        (with_row("robot_state", hwm=0), "robot_state: hwm 0; a live message has 1 to 16"),
        (with_row("joint_command", max_age_s=None), "joint_command: is never late, but has no max_age_s"),
        (with_row("event", answers=(PolicyError,)), "event: has answers, but only questions on the rpc road"),
        (
            with_row("robot_request", answers=()),
            "robot_request: is a question without an answer, and no question names it as its answer",
        ),
        (without("robot_report"), "robot_request: its answer robot_report has no row"),
        (
            with_row("action_chunk", consumers=("bridge",)),
            "policy_request: sim asks, but does not receive the answer action_chunk",
        ),
        (
            with_row("policy_error", publishers=("policy",)),
            "joint_command: robot is asked, but does not send the answer policy_error",
        ),
        (
            with_row("robot_report", consumers=("bridge", "sim")),
            "robot_report: sim receives this answer, but asks none of robot_request",
        ),
        (
            with_row("robot_report", publishers=("robot", "policy")),
            "robot_report: policy sends this answer, but is asked none of robot_request",
        ),
        (
            with_row("policy_error", message=PolicyErrorTwo),
            "policy_request: expects policy_error 1.0, but policy, robot sends 2.0",
        ),
        (with_row("policy_error", message=PolicyErrorTwo), "policy_error: version 2.0, but 1.0 exist"),
        (TOPICS | {"stray": replace(TOPICS["robot_state"], message=Stray)}, "stray: has no example"),
    ],
)
def test_a_table_that_does_not_hold_together_is_told(
    catalogue: Path, table: dict[str, Topic], said: str
) -> None:
    """Each kind of mistake gives a line that names the message, the party and what would be right."""
    assert any(said in line for line in found(catalogue, table)), found(catalogue, table)


def test_a_message_outside_the_table_is_told(catalogue: Path) -> None:
    """A message type that is declared, but stands in no topic and in no other message, is named."""
    lines = found(catalogue, dict(TOPICS), {"stray": Stray})
    assert lines == [f"stray: {__name__}.Stray is in no topic and part of none"]


@pytest.mark.parametrize("name", LIVE)
def test_the_table_tells_who_handles_a_live_message(name: str) -> None:
    """The services whose code imports a message, directly or through shared code, are those in its row."""
    row = TOPICS[name]
    said = {PACKAGE[party] for party in (*row.publishers, *row.consumers) if party not in OUTSIDE}
    done = {info.module for info in SERVICES if row.message.__name__ in _messages_used(info.name)}
    assert done == said


def test_jobs_go_to_the_services_that_offer_stages() -> None:
    """Every service with a stage receives jobs, and no other."""
    offering = {info.service for info in load_table().stages.values()}
    assert set(TOPICS["job"].consumers) == offering


def test_an_unknown_topic_is_named_with_the_valid_ones() -> None:
    """The error suggests the nearest topic and lists them all."""
    with pytest.raises(ConfigError, match="did you mean 'robot_state'") as told:
        topic("robot_sate")
    assert all(name in str(told.value) for name in TOPICS)


@cache
def _messages_used(service: str) -> set[str]:
    """Names that a service's code imports from ``sim2or.messages``, its worker's code included."""
    root = _file(PACKAGE[service]).parent  # type: ignore[union-attr]
    pending = [*root.rglob("*.py")]
    if load_table().of_service(service):
        pending += [path for path in map(_file, ("sim2or.worker", "sim2or.service")) if path]
    seen: set[Path] = set()
    used: set[str] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for module, name in _imports(path):
            if module.startswith("sim2or.messages"):
                used.add(name)
            elif module.startswith("sim2or.") and not module.startswith(GENERIC):
                pending += filter(None, [_file(module)])
    return used


@cache
def _imports(path: Path) -> list[tuple[str, str]]:
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [(node.module, alias.name) for node in found if node.module for alias in node.names]


@cache
def _file(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec and spec.origin else None
