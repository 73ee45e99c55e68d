"""Live counts: what sockets, workers and loops count for themselves, found by whoever shows it.

Whoever counts owns a plain dataclass and adds to its fields; that is all it costs. ``LIVE`` only remembers
where those dataclasses are and reads them when it is asked, so nothing is booked twice::

    self.counts = ClientCounts()
    LIVE.watch(self, self.counts, endpoint="policy")

A field is a number (it only grows), a ``Counter`` (one number for each value of a label) or a
``Distribution``. The counts of an owner that is gone are kept in the sum.
"""

from __future__ import annotations

import re
import threading
import time
import weakref
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import count
from typing import Any, Literal

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "sim2or"
PULSE_LIMIT_S = 60.0
"""Longer than a loop waits for a bus that does not answer."""

_UNITS = {"s": "seconds"}

LATENCY_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Of what a control loop waits for [s]; 33 ms is one period at 30 Hz."""

DURATION_BOUNDS_S = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 28800.0)
"""Of jobs [s]."""


@dataclass
class Distribution:
    """How often a quantity was at most each bound.

    Attributes:
        bounds: Upper ends, rising.
        counts: How often it fell into each, and in the end how often above all.
        total: Sum of all values.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(frozen=True)
class Reading:
    """The value of one count at one moment, in numbers and texts only: it crosses pipes as JSON.

    Attributes:
        name: With its unit, for example ``sim2or_client_sent_bytes``.
        kind: ``counter`` only grows; ``gauge`` does not; ``histogram`` has ``bounds`` and ``counts``.
        help: What is counted.
        labels: What tells it from others of the same name.
        value: The number; the sum of all values of a histogram.
        bounds: Upper ends of a histogram's classes.
        counts: How many values fell into each class, and above all.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, str]
    value: float
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


@dataclass
class _Group:
    """All counts of one class and one set of labels."""

    cls: type
    labels: dict[str, str]
    living: dict[int, Any] = field(default_factory=dict)
    gone: dict[tuple[str, str], Reading] = field(default_factory=dict)


class Live:
    """Where the counts of this process are."""

    def __init__(self) -> None:
        self._groups: dict[tuple[type, tuple[tuple[str, str], ...]], _Group] = {}
        self._ended: deque[tuple[_Group, int]] = deque()
        self._numbers = count()
        self._lock = threading.Lock()

    def watch(self, owner: object, counts: object, **labels: str) -> None:
        """Shows a dataclass of counts from now on.

        Args:
            owner: Who counts; when it is gone, its counts are added to those of the same labels.
            counts: The dataclass; it must not refer to its owner.
            labels: What tells it from others of its class.
        """
        with self._lock:
            self._bury()
            key = (type(counts), tuple(sorted(labels.items())))
            group = self._groups.setdefault(key, _Group(type(counts), labels))
            number = next(self._numbers)
            group.living[number] = counts
        weakref.finalize(owner, self._ended.append, (group, number)).atexit = False

    def readings(self) -> list[Reading]:
        """Reads everything; counts of the same class and labels are added up."""
        with self._lock:
            self._bury()
            found: dict[tuple[Any, ...], Reading] = {}
            for group in self._groups.values():
                parts = [group.gone.values(), *(read(one, group.labels) for one in group.living.values())]
                for reading in (one for part in parts for one in part):
                    key = (reading.name, *sorted(reading.labels.items()))
                    found[key] = _sum(found.get(key), reading)
            return list(found.values())

    def _bury(self) -> None:
        while self._ended:
            group, number = self._ended.popleft()
            for reading in read(group.living.pop(number), group.labels):
                key = (reading.name, str(sorted(reading.labels.items())))
                group.gone[key] = _sum(group.gone.get(key), reading)


LIVE = Live()
"""Of this process: sockets announce themselves here."""


def read(
    counts: Any, labels: Mapping[str, str], *, gauges: Iterable[str] = (), subject: str = ""
) -> list[Reading]:
    """Reads each field of a dataclass of counts.

    Args:
        counts: The dataclass; its docstring says what each field is.
        labels: Put on every reading.
        gauges: Names of fields that do not only grow.
        subject: What the names begin with after ``sim2or_``; the class's name by default.
    """
    cls: type = type(counts)
    found: list[Reading] = []
    helps = descriptions(cls)
    for one in fields(counts):
        if one.name.startswith("_"):
            continue
        name, value = metric_name(subject or subject_of(cls), one.name), getattr(counts, one.name)
        kind: Kind = "gauge" if one.name in gauges else "counter"
        text = helps.get(one.name, "")
        if isinstance(value, Distribution):
            told = (value.total, value.bounds, tuple(value.counts))
            found.append(Reading(name, "histogram", text, dict(labels), *told))
        elif isinstance(value, Counter):
            label = one.metadata["label"]
            found += [
                Reading(name, kind, text, {**labels, label: str(key)}, number)
                for key, number in dict(value).items()
            ]
        elif isinstance(value, int | float):
            found.append(Reading(name, kind, text, dict(labels), float(value)))
    return found


@lru_cache(maxsize=64)
def subject_of(cls: type) -> str:
    """What is counted, from the class's name: ``router`` for ``RouterCounts``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", re.sub(r"(Counts|Figures)$", "", cls.__name__)).lower()


@lru_cache(maxsize=1024)
def metric_name(subject: str, name: str) -> str:
    """What a field is called outside: ``sim2or_router_waited_seconds`` for ``waited_s`` of a router."""
    head, _, unit = name.rpartition("_")
    return "_".join([PREFIX, subject, *filter(None, [head]), _UNITS.get(unit, unit) if head else unit])


@lru_cache(maxsize=64)
def descriptions(cls: type) -> dict[str, str]:
    """What a dataclass's docstring says about each attribute, in one line each."""
    _, _, text = (cls.__doc__ or "").partition("Attributes:")
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        indent, (head, colon, rest) = len(line) - len(line.lstrip()), line.strip().partition(":")
        if colon and indent <= 8 and head.isidentifier():
            name = head
            found[name] = [rest.strip()]
        elif name and line.strip():
            found[name].append(line.strip())
    return {name: " ".join(filter(None, lines)) for name, lines in found.items()}


def _sum(first: Reading | None, second: Reading) -> Reading:
    if first is None:
        return second
    counts = tuple(a + b for a, b in zip(first.counts, second.counts, strict=True))
    return replace(second, value=first.value + second.value, counts=counts)


class Pulse:
    """A loop's sign of life.

    Args:
        limit_s: Silence after which the loop counts as stuck [s].
    """

    def __init__(self, limit_s: float = PULSE_LIMIT_S) -> None:
        self.limit_s = limit_s
        self._last_s: float | None = None

    def beat(self) -> None:
        """Says that the loop goes round."""
        self._last_s = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Time since the last beat [s]; 0 before the first, so that a long start is no fault."""
        return 0.0 if self._last_s is None else time.monotonic() - self._last_s


PULSE = Pulse()
"""Of this process's main loop."""
