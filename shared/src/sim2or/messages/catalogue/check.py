"""Whether the contract holds together: the table, the classes, the documents and the samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from sim2or.errors import choices
from sim2or.messages.catalogue.documents import incompatible, outdated
from sim2or.messages.catalogue.golden import missing
from sim2or.messages.catalogue.inventory import attributes, declared, messages
from sim2or.messages.catalogue.samples import SAMPLES
from sim2or.messages.message import Message
from sim2or.messages.topics import Topic

OUTSIDE = ("cli", "console")
"""Who takes part without being a service of the table: the command line, and the page for people."""

MAX_LIVE_QUEUE = 16
"""Messages that may queue in a live socket: more would only grow old."""

Table = Mapping[str, Topic]


def findings(
    table: Table,
    *,
    services: Collection[str],
    documents: Path,
    golden: Path,
    kinds: Mapping[str, type[Message]],
) -> Iterator[str]:
    """Says what is wrong, one line each.

    Args:
        table: The topic table.
        services: Names of the services that this installation has.
        documents: Directory of the committed catalogue.
        golden: Directory of the golden samples.
        kinds: Every message type that is declared.
    """
    wrong = [*_table(table, {*services, *OUTSIDE}), *_classes(table, kinds), *incompatible(documents, table)]
    yield from wrong
    if not wrong:
        yield from outdated(documents, table)
    yield from missing(golden, messages(table))


def all_findings(table: Table, *, services: Collection[str], documents: Path, golden: Path) -> list[str]:
    """Says what is wrong with a table, and with every message that ``sim2or.messages`` declares."""
    return list(findings(table, services=services, documents=documents, golden=golden, kinds=declared()))


def _table(table: Table, known: Collection[str]) -> Iterator[str]:
    for row in table.values():
        yield from _row(row, known)
        yield from _exchange(row, table)


def _row(row: Topic, known: Collection[str]) -> Iterator[str]:
    """What is wrong within one row."""
    for role, names in (("publisher", row.publishers), ("consumer", row.consumers)):
        if not names:
            yield f"{row.name}: has no {role}"
        for name in names:
            if name not in known:
                yield f"{row.name}: {role} {name!r} is no service; {choices(name, known)}"
    live = row.road in ("rpc", "pubsub")
    if live and not 1 <= row.hwm <= MAX_LIVE_QUEUE:
        yield f"{row.name}: hwm {row.hwm}; a live message has 1 to {MAX_LIVE_QUEUE}"
    if row.policy == "never-late" and row.max_age_s is None:
        yield f"{row.name}: is never late, but has no max_age_s"


def _exchange(row: Topic, table: Table) -> Iterator[str]:
    """Whether every question has an answer that its asker hears, and every answer a question."""
    if row.road != "rpc":
        if row.answers:
            yield f"{row.name}: has answers, but only questions on the rpc road are answered"
        return
    asked = [one for one in table.values() if row.message in one.answers]
    if not row.answers and not asked:
        yield f"{row.name}: is a question without an answer, and no question names it as its answer"
    for answer in row.answers:
        yield from _answer(row, table.get(answer.type_name), answer)
    for service in row.consumers if asked else ():
        if not any(service in one.publishers for one in asked):
            yield f"{row.name}: {service} receives this answer, but asks none of {_names(asked)}"
    for service in row.publishers if asked else ():
        if not any(service in one.consumers for one in asked):
            yield f"{row.name}: {service} sends this answer, but is asked none of {_names(asked)}"


def _answer(question: Topic, found: Topic | None, answer: type[Message]) -> Iterator[str]:
    if found is None:
        yield f"{question.name}: its answer {answer.type_name} has no row"
        return
    if major(found.message) != major(answer):
        yield (
            f"{question.name}: expects {answer.type_name} {answer.schema_version}, but "
            f"{', '.join(found.publishers)} sends {found.message.schema_version}"
        )
    for service in question.publishers:
        if service not in found.consumers:
            yield f"{question.name}: {service} asks, but does not receive the answer {found.name}"
    for service in question.consumers:
        if service not in found.publishers:
            yield f"{question.name}: {service} is asked, but does not send the answer {found.name}"


def _classes(table: Table, kinds: Mapping[str, type[Message]]) -> Iterator[str]:
    """Whether every message type is used and described."""
    used = messages(table)
    for name, kind in kinds.items():
        if name not in used:
            yield f"{name}: {kind.__module__}.{kind.__name__} is in no topic and part of none"
    for name, kind in used.items():
        if name not in SAMPLES:
            yield f"{name}: has no example in sim2or.messages.catalogue.samples"
        for field in kind.model_fields.keys() - attributes(kind).keys():
            yield f"{name}.{field}: the docstring of {kind.__name__} does not say what it is"


def major(kind: type[Message]) -> str:
    """The major version of a message type: what its receivers accept."""
    return kind.schema_version.partition(".")[0]


def _names(rows: list[Topic]) -> str:
    return ", ".join(row.name for row in rows)
