"""The journal of a run: what it submitted and what came of it, on disk, for when the bus comes back empty.

Redis keeps its own file, but volumes are lost. The journal is an append-only file of JSON lines beside the
run, ``runs/<name>/journal.jsonl``; a line is durable before the submission it tells of is acknowledged::

    {"epoch": "5f0c…"}                  the bus that the lines before it are known to
    {"submitted": {…job…}, "priority": "normal"}
    {"ended": {…job record…}}           done with its result, failed, dead or cancelled
    {"dropped": "train-0123…"}          nobody wants it any more

Every bus has a random name, its epoch. ``recover`` compares it with the journal's: on another bus it makes
done again what was done, so far as the files are still there, submits what was not, and says so loudly.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from sim2or import log
from sim2or.artifacts.store import sync
from sim2or.bus.queue import EventLog, JobQueue
from sim2or.errors import TransientError
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobRecord, Priority
from sim2or.messages.message import Spec

NAME = "journal.jsonl"
LOCK_S = 30.0


class Line(Spec):
    """One line; exactly one of the four is given.

    Attributes:
        epoch: The bus that knows all of the lines before this one.
        submitted: A job that a bus accepted.
        priority: Which of its stage's queues it went to.
        ended: A job that reached a final state.
        dropped: A job that is wanted no more.
    """

    epoch: str = ""
    submitted: Job | None = None
    priority: Priority = "normal"
    ended: JobRecord | None = None
    dropped: str = ""


@dataclass(frozen=True)
class Recovered:
    """What ``recover`` did on a bus that was not the journal's.

    Attributes:
        previous: Epoch of the bus that is lost.
        epoch: Epoch of the bus that is used now.
        restored: Jobs that are done again, without running.
        resubmitted: Jobs that were unfinished and are queued.
        missing: Jobs that were done but whose artifacts are gone: they run again when somebody asks.
    """

    previous: str
    epoch: str
    restored: int
    resubmitted: int
    missing: int


class Journal:
    """The journal of one run; several processes may write it.

    Args:
        path: Of the file; it is made, with its directory, by the first line.

    Attributes:
        epoch: Of the bus that knew everything here; empty in a new journal.
        submitted: Job id to the job and its priority, as submitted last.
        ended: Job id to its record, for jobs that ended since they were submitted last.
        dropped: Jobs that are wanted no more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()
        if path.exists():
            self._read(path.read_bytes())

    @property
    def unfinished(self) -> list[tuple[Job, Priority]]:
        """The jobs that were submitted, neither ended nor dropped; in order."""
        return [asked for job_id, asked in self.submitted.items() if self._awaits(job_id)]

    def note_submitted(self, job: Job, priority: Priority = "normal") -> None:
        """Notes that a bus accepted a job; call it before telling anybody so."""
        if not self._awaits(job.job_id):
            self._add(Line(submitted=job, priority=priority))

    def note_ended(self, record: JobRecord) -> None:
        """Notes what became of a job, once."""
        known = self.ended.get(record.job_id)
        if known is None or (known.state, known.attempts) != (record.state, record.attempts):
            self._add(Line(ended=record))

    def note_dropped(self, job_id: str) -> None:
        """Notes that a job is wanted no more, unless it ended or is none of this run's."""
        if self._awaits(job_id):
            self._add(Line(dropped=job_id))

    def drop_unfinished(self) -> None:
        """Notes that none of the unfinished jobs is wanted any more."""
        for job, _ in self.unfinished:
            self.note_dropped(job.job_id)

    def note_epoch(self, epoch: str) -> None:
        """Notes that a bus knows everything here."""
        self._add(Line(epoch=epoch))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from recovering the same journal; what they wrote meanwhile is read first.

        Raises:
            TransientError: Another process was at it for half a minute.
        """
        with _locked(self.path.with_suffix(".lock")):
            self._forget()
            if self.path.exists():
                self._read(self.path.read_bytes())
            yield

    def _awaits(self, job_id: str) -> bool:
        return job_id in self.submitted and job_id not in self.ended and job_id not in self.dropped

    def _forget(self) -> None:
        self.epoch = ""
        self.submitted: dict[str, tuple[Job, Priority]] = {}
        self.ended: dict[str, JobRecord] = {}
        self.dropped: set[str] = set()

    def _read(self, data: bytes) -> None:
        """Takes in the lines of a file; a torn last one was never acknowledged, an unreadable one is told."""
        for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
            try:
                self._take(Line.model_validate_json(text, extra="ignore"))
            except ValidationError as error:
                log.get_logger().warning(
                    "line of the journal cannot be read",
                    file=str(self.path),
                    line=number,
                    error=str(error.errors()[0]["msg"]),
                )

    def _take(self, line: Line) -> None:
        self.epoch = line.epoch or self.epoch
        if line.submitted:
            self.submitted[line.submitted.job_id] = line.submitted, line.priority
            self.ended.pop(line.submitted.job_id, None)
            self.dropped.discard(line.submitted.job_id)
        if line.ended:
            self.ended[line.ended.job_id] = line.ended
        if line.dropped:
            self.dropped.add(line.dropped)

    def _add(self, line: Line) -> None:
        """Appends a line durably, after cutting off what a killed writer left unfinished.

        Raises:
            TransientError: The disk does not take it.
        """
        text = line.model_dump_json(exclude_defaults=True).encode() + b"\n"
        try:
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                _hold(file, self.path)
                _cut_torn_line(file)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.path.parent)
        except OSError as error:
            raise TransientError(f"journal {self.path}: {error}; free disk space and submit again") from error
        self._take(line)


def recover(
    jobs: JobQueue,
    journal: Journal,
    events: EventLog,
    *,
    holds: Callable[[str], bool],
    resubmit: bool = True,
    run_id: str = "",
) -> Recovered | None:
    """Brings a journal's jobs to the bus if it is not the bus that knew them. May be repeated at any point.

    Args:
        jobs: The queue.
        journal: The run's journal.
        events: Where ``bus.restored`` is told.
        holds: Whether an artifact is still in the store.
        resubmit: Whether unfinished jobs are queued; otherwise they are dropped, for somebody who asks anew.
        run_id: The run, for the event.

    Returns:
        What was done; None when the bus is the journal's, or the journal is new.

    Raises:
        TransientError: The bus or the disk failed in the middle: call again.
    """
    epoch = jobs.epoch()
    if epoch == journal.epoch:
        return None
    with journal.alone():
        previous = journal.epoch
        if epoch == previous:
            return None
        done = None
        if previous:
            done = _bring(jobs, journal, holds, resubmit, epoch)
            log.get_logger().error("the bus came back empty", run=run_id, **vars(done))
            events.append(Event(kind="bus.restored", run_id=run_id, detail=dict(vars(done))))
        journal.note_epoch(epoch)
        return done


def _bring(
    jobs: JobQueue, journal: Journal, holds: Callable[[str], bool], resubmit: bool, epoch: str
) -> Recovered:
    finished = [record for record in journal.ended.values() if record.state == "done" and record.result]
    present = [r for r in finished if r.result and all(map(holds, r.result.outputs.values()))]
    restored = sum(map(jobs.restore, present))
    unfinished = journal.unfinished
    if resubmit:
        for job, priority in unfinished:
            jobs.submit(job, priority=priority)
    else:
        journal.drop_unfinished()
    return Recovered(
        previous=journal.epoch,
        epoch=epoch,
        restored=restored,
        resubmitted=len(unfinished) if resubmit else 0,
        missing=len(finished) - len(present),
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _hold(file, path)
        yield


def _hold(file: IO[bytes], path: Path) -> None:
    """Locks a file until it is closed, or its process ends."""
    deadline_s = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise TransientError(f"{path}: another process held it for {LOCK_S:g} s; try again") from None
        time.sleep(0.01)


def _cut_torn_line(file: IO[bytes]) -> None:
    """Removes what follows the last line's end; nothing does unless a writer was killed."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
