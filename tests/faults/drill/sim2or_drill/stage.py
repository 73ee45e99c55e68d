"""The drill stage: resumable steps that leave lines, and faults on request."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from sim2or.artifacts.record import write_whole
from sim2or.stage import Cancelled, Context, Stage, StageResult

from sim2or_drill import effects
from sim2or_drill.spec import DrillSpec

FOR_EVER_S = 600


def run(spec: DrillSpec, context: Context) -> StageResult:
    """Goes on after the last checkpoint, and takes the steps that are left."""
    job, out, checkpoint = context.work.parent.name, context.work / "out", context.work / "checkpoint"
    if (holder := effects.holder(spec.effects, job)) is not None:
        effects.add(spec.effects, "overlaps", job=job, holder=holder)
    out.mkdir(exist_ok=True)
    begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
    effects.add(spec.effects, "starts", job=job, step=begin, agent=os.getppid())
    step = begin
    try:
        for step in range(begin, spec.steps):
            context.progress(step, spec.steps, "steps")
            take(spec, job, out, step)
            if not spec.unwind_s:
                write_whole(checkpoint, str(step + 1).encode())
            break_down(spec, job, out)
        if spec.fault != "deaf":
            context.progress(spec.steps, spec.steps, "steps")
        effects.add(spec.effects, "ends", job=job)
    except Cancelled:
        effects.add(spec.effects, "told", job=job, step=step)
        if spec.unwind_s:
            time.sleep(spec.unwind_s)
            write_whole(checkpoint, str(step).encode())
        effects.add(spec.effects, "unwound", job=job, step=int(checkpoint.read_text() or 0))
        raise
    finally:
        effects.leave(job)
    return StageResult(outputs={"steps": out}, summary={"steps": spec.steps, "resumed_from": begin})


def take(spec: DrillSpec, job: str, out: Path, step: int) -> None:
    """One step: time passes, a file is written, a line is left."""
    time.sleep(spec.pause_s)
    text = f"{job} {step}\n"
    (out / f"{step}.txt").write_text(text + "x" * round(spec.ballast_mb * 1e6))
    effects.add(spec.effects, "steps", job=job, step=step)


def break_down(spec: DrillSpec, job: str, out: Path) -> None:
    """Does what the configuration asks for."""
    if spec.fault == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.fault == "hold":
        ctypes.PyDLL(None).sleep(spec.hold_s)  # in C, and holding the interpreter's lock
    first = sum(line["job"] == job for line in effects.read(spec.effects, "starts")) == 1
    if spec.fault == "hang" and first:
        ctypes.PyDLL(None).sleep(FOR_EVER_S)
    if spec.fault == "spoil" and first:
        spoil(out / "0.txt", spec)


def spoil(path: Path, spec: DrillSpec) -> None:
    """What a zombie does that is not heard of any more and has not noticed: its last write, and its end."""
    file = path.open("r+") if spec.open_file else None
    sys.setswitchinterval(FOR_EVER_S)  # no other thread has its turn before the next system call
    ctypes.PyDLL(None).sleep(spec.hold_s)
    try:
        os.write(file.fileno() if file else os.open(path, os.O_WRONLY | os.O_TRUNC), b"spoiled")
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


STAGE = Stage("drill", DrillSpec, run)
