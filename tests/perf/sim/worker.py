"""Worker processes of a load, told what to do over a pipe, so that each engine has a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from load import MARK

HERE = Path(__file__).parent
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
"""As the supervisor gives them to simulators."""


class Worker:
    """One process; ``tell`` and ``hear`` are apart, so that several can work at once.

    Args:
        interpreter: Of the engine's environment.
        program: The load's file.
        environments: How many it has.
        settings: Environment variables on top.
    """

    def __init__(
        self, interpreter: Path, program: str, environments: int, settings: Mapping[str, str] | None = None
    ) -> None:
        self._stack = contextlib.ExitStack()
        # Not a pipe: one that nobody empties would stop it.
        self._said = self._stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - it is entered
        self._process = subprocess.Popen(
            [str(interpreter), str(HERE / program), str(environments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **ONE_THREAD, **(settings or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stack.close()

    def tell(self, **asked: Any) -> None:
        """Starts a piece of work."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Waits for its result.

        Raises:
            RuntimeError: The process ended instead; with the last that it said.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                told: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return told
        self._said.seek(0)
        raise RuntimeError(f"a worker ended: {self._said.read()[-2000:]}")


def together(workers: Sequence[Worker], **asked: Any) -> list[dict[str, Any]]:
    """The same work by all of them at once."""
    for worker in workers:
        worker.tell(**asked)
    return [worker.hear() for worker in workers]
