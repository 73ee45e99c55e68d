"""The toy stage that writes numbers."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from sim2or.artifacts.record import write_whole
from sim2or.errors import JobError, TransientError
from sim2or.stage import Cancelled, Context, Stage, StageResult

from sim2or_toy.spec import WriteSpec


def run(spec: WriteSpec, context: Context) -> StageResult:
    """Writes this shard's numbers, one file each; goes on from the files that an earlier attempt left."""
    out = context.work / "numbers"
    out.mkdir(exist_ok=True)
    mark(spec, f"started-{context.shard}-{os.getpid()}")
    mark(spec, f"traceparent={os.environ.get('TRACEPARENT', '')}")
    numbers = range(context.shard, spec.count, context.shards)
    for done, number in enumerate(numbers):
        if not (out / f"{number}.txt").exists():
            time.sleep(spec.pause_s)
            mark(spec, f"wrote-{number}-{os.getpid()}")
            write_whole(out / f"{number}.txt", str(number + spec.seed).encode())
        if done == 0:
            go_wrong(spec)
        try:
            context.progress(done + 1, len(numbers), "numbers", last=number)
        except Cancelled:
            time.sleep(spec.unwind_s)
            mark(spec, f"unwound-{context.shard}-{os.getpid()}")
            raise
    mark(spec, f"finished-{context.shard}-{os.getpid()}")
    return StageResult(outputs={"numbers": out}, summary={"count": len(numbers)})


def mark(spec: WriteSpec, name: str) -> None:
    """Leaves a mark for the test."""
    if spec.flags:
        (spec.flags / name).touch()


def go_wrong(spec: WriteSpec) -> None:
    """Does what the configuration asks for; all but the permanent faults happen once."""
    if spec.fault == "permanent":
        raise JobError("the toy broke: 3 wheels, expected 4; add a wheel")
    if spec.fault == "bug":
        raise ZeroDivisionError("a bug")
    if spec.fault == "none" or spec.flags is None or (spec.flags / "fault").exists():
        return
    Path(spec.flags / "fault").touch()
    if spec.fault == "transient":
        raise TransientError("the toy is busy")
    if spec.fault == "suicide":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.fault == "stuck":
        ctypes.PyDLL(None).sleep(600)  # in C, and holding the interpreter's lock


STAGE = Stage("write", WriteSpec, run)
