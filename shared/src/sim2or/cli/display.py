"""Displays of a run: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from sim2or.messages.job import JobRecord
from sim2or.runner import StepState

PLAIN_PERIOD_S = 5.0


def make_display(console: Console) -> BarDisplay | PlainDisplay:
    """Chooses the display that fits the console."""
    return BarDisplay(console) if console.is_terminal else PlainDisplay(console)


class BarDisplay:
    """One bar per step, with counts, figures and the expected time to the end."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}", justify="right"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[text]}"),
            console=console,
            auto_refresh=False,
        )
        self._live = Live(self._progress, console=console, refresh_per_second=4, transient=False)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> BarDisplay:
        """Starts drawing."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last picture on the terminal."""
        self._live.__exit__(kind, error, trace)

    def show(self, states: Mapping[str, StepState]) -> None:
        """Updates the bars."""
        for name, state in states.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=1.0, text="")
            self._progress.update(self._tasks[name], completed=state.fraction, text=describe(state))


class PlainDisplay:
    """A line when a step ends, and one every few seconds while work goes on."""

    def __init__(self, console: Console, *, period_s: float = PLAIN_PERIOD_S) -> None:
        self._console = console
        self._period_s = period_s
        self._started_s = time.monotonic()
        self._next_s = self._started_s + period_s
        self._done: set[str] = set()

    def __enter__(self) -> PlainDisplay:
        """Nothing to start."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def show(self, states: Mapping[str, StepState]) -> None:
        """Prints what is new."""
        for name, state in states.items():
            if state.done and name not in self._done:
                self._done.add(name)
                self._line(f"{name}: {describe(state)}")
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + self._period_s
            running = [
                f"{n} {s.fraction:.0%} {describe(s)}" for n, s in states.items() if s.records and not s.done
            ]
            self._line(" | ".join(running) or "waiting")

    def _line(self, text: str) -> None:
        elapsed_s = time.monotonic() - self._started_s
        self._console.print(f"[{elapsed_s:6.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)


def describe(state: StepState) -> str:
    """A step in a few words: ``"63/200 episodes · loss 0.21 · 45 s left"``."""
    if not state.records:
        return "waiting"
    if state.done:
        wall = f"{state.wall_s:.1f} s" if state.wall_s is not None else "done"
        return f"{wall}, reused" if len(state.reused) == state.step.jobs else wall
    records = list(state.records.values())
    parts = [_counts(records, state.step.jobs)]
    running = [record for record in records if record.state == "running" and record.progress]
    for record in running[:1]:
        assert record.progress is not None
        parts += [f"{name} {value:.4g}" for name, value in list(record.progress.metrics.items())[:3]]
    etas = [
        record.progress.eta_s for record in running if record.progress and record.progress.eta_s is not None
    ]
    if etas and len(state.records) == state.step.jobs:
        parts.append(f"{max(etas):.0f} s left")
    retried = sum(max(0, record.attempts - 1) for record in records)
    if retried:
        parts.append(f"{retried} restarted")
    return " · ".join(filter(None, parts))


def _counts(records: list[JobRecord], jobs: int) -> str:
    """Units done where the jobs tell, jobs done elsewhere."""
    told = [record.progress for record in records if record.progress and record.progress.total > 0]
    units = {progress.unit for progress in told}
    if len(told) == jobs and len(units) == 1:
        done, total = sum(p.done for p in told), sum(p.total for p in told)
        return f"{done:.0f}/{total:.0f} {units.pop()}"
    ended = sum(record.state == "done" for record in records)
    return f"{ended}/{jobs} jobs" if jobs > 1 else records[0].state
