"""A handler in a thread of its own: one batch at a time; a socket becomes readable when it is done."""

from __future__ import annotations

import atexit
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

EXIT_S = 10.0
"""How long a process that ends waits for a handler that works [s]: native code dislikes being cut off."""


class Outcome[A](NamedTuple):
    """What became of a batch.

    Attributes:
        answers: The handler's answers; None when it failed.
        error: Why it failed.
    """

    answers: Sequence[A] | None
    error: Exception | None = None


class HandlerThread[Q, A]:
    """Hands batches to a handler; use it from one thread.

    Args:
        handler: Takes questions, returns one answer for each, in order.
    """

    def __init__(self, handler: Callable[[list[Q]], Sequence[A]]) -> None:
        self.done, self._signal = socket.socketpair()
        self.busy = False
        self._handler = handler
        self._batches: SimpleQueue[list[Q] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[Outcome[A]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, batch: list[Q]) -> None:
        """Starts work on a batch; the one before must be done."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="handler", daemon=True)
            self._thread.start()
            atexit.register(_end, self._batches, self._thread)
        self.busy = True
        self._batches.put(batch)

    def outcome(self) -> Outcome[A] | None:
        """What became of the batch, once; None while the handler works on it."""
        if not self.busy or self._outcomes.empty():
            return None
        self.done.recv(64)
        self.busy = False
        return self._outcomes.get()

    def close(self) -> None:
        """Ends the thread when its batch is done, which is not waited for."""
        self._batches.put(None)
        self.done.close()
        self._signal.close()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            outcome = self._work(batch)
            del batch
            self._outcomes.put(outcome)
            del outcome
            with suppress(OSError):
                self._signal.send(b"1")

    def _work(self, batch: list[Q]) -> Outcome[A]:
        try:
            answers = self._handler(batch)
            if len(answers) != len(batch):
                raise ValueError(f"handler gave {len(answers)} answers to {len(batch)} questions")
        except Exception as error:  # noqa: BLE001 - the handler is anybody's; the caller tells and goes on
            return Outcome(None, error)
        return Outcome(answers)


def _end(batches: SimpleQueue[Any], thread: threading.Thread) -> None:
    batches.put(None)
    thread.join(EXIT_S)
