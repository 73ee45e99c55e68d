"""Processes: children that die with their parent, and proof of which process is whose."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sim2or.messages.message import Spec

PARENT_VARIABLE = "SIM2OR_PARENT_PID"
MARKER_VARIABLE = "SIM2OR_SUPERVISOR"
KILL_S = 5.0

_PR_SET_PDEATHSIG = 1  # Source: Linux, include/uapi/linux/prctl.h


class Identity(Spec):
    """Names a process beyond doubt, although process ids are reused.

    Attributes:
        pid: Process id.
        start_ticks: When it started, in clock ticks since boot (field 22 of ``/proc/<pid>/stat``).
        boot: The boot that the ticks count from.
        marker: Value of ``SIM2OR_SUPERVISOR`` in its environment.
    """

    pid: int
    start_ticks: int
    boot: str
    marker: str = ""


def start_ticks(pid: int) -> int | None:
    """When a process started [clock ticks since boot]; None when there is no such process.

    Source: proc(5), field 22 of ``/proc/<pid>/stat``; the name in field 2 may hold spaces and brackets.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def identify(pid: int, marker: str) -> Identity | None:
    """The identity of a running process; None when it has ended."""
    from sim2or.clock import boot_id

    ticks = start_ticks(pid)
    return None if ticks is None else Identity(pid=pid, start_ticks=ticks, boot=boot_id(), marker=marker)


def is_running(identity: Identity) -> bool:
    """Whether exactly this process still runs: same start, same boot, and the marker in its environment."""
    from sim2or.clock import boot_id

    if identity.boot != boot_id() or start_ticks(identity.pid) != identity.start_ticks:
        return False
    if not identity.marker:
        return True
    try:
        environment = Path(f"/proc/{identity.pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"{MARKER_VARIABLE}={identity.marker}".encode() in environment


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Asks the kernel to signal this process when its parent ends (Linux); ends now if it has ended already.

    The parent is the process named by ``SIM2OR_PARENT_PID``; without that variable nothing happens, so a
    service in a container is unaffected. The kernel looks at the parent's *thread*: start children from a
    thread that lives as long as the process.
    """
    parent = os.environ.get(PARENT_VARIABLE, "")
    if parent:
        tied_to(int(parent), signum)()


def tied_to(parent: int, signum: int) -> Callable[[], None]:
    """What a child runs so that the kernel signals it when its parent ends (Linux).

    A foreign program's child runs it between fork and exec (``preexec_fn``); all is prepared here, so that
    only two system calls are left for then.

    Args:
        parent: Process id that the parent must have.
        signum: The signal.
    """
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def tie() -> None:
        if libc:
            libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def on_end_of_input(stream: IO[bytes], action: Callable[[], None]) -> None:
    """Calls ``action`` from a thread when the parent's end of a pipe closes, a second sign of its death."""

    def wait() -> None:
        while os.read(stream.fileno(), 4096):
            pass
        action()

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def environment_of_child(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child that dies with it."""
    return {**os.environ, **(extra or {}), PARENT_VARIABLE: str(os.getpid())}


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a child in its own process group, with a pipe to its input that closes when this process ends.

    Args:
        command: Program and arguments.
        environment: Variables beside this process's own.
        log: File that its standard error, and its output unless ``stdout`` is given, are appended to.
        stdout: ``subprocess.PIPE`` to read its output.
    """
    sink = log.open("ab") if log else None
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=stdout if stdout is not None else sink,
            stderr=sink,
            env=environment_of_child(environment),
            start_new_session=True,
        )
    finally:
        if sink:
            sink.close()


def stop(process: subprocess.Popen[Any], *, grace_s: float) -> int:
    """Ends a child and its process group: SIGTERM, up to ``grace_s`` of patience, SIGKILL.

    Returns:
        Its exit status, negative when a signal ended it.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s)
    kill_group(process.pid)
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
    return process.wait(timeout=10)


def kill_group(pid: int) -> None:
    """Kills the process group that a child leads, with whatever it started there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def end_leftover(identity: Identity, *, grace_s: float = 2.0) -> bool:
    """Ends a process of an earlier supervisor, if it is provably that process.

    Returns:
        Whether there was something to end.
    """
    if not is_running(identity):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(identity.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and is_running(identity):
        time.sleep(0.05)
    if is_running(identity):
        kill_group(identity.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_S
    while time.monotonic() < deadline and is_running(identity):
        time.sleep(0.02)
    return True


def end_with_parent(grace_s: float) -> None:
    """Ends this process when the parent that ``start`` made it a child of is gone.

    A process that is deaf to the kernel's signal is ended by force. Without a parent of that kind, as in a
    container, nothing happens.

    Args:
        grace_s: How long it may take to unwind after SIGTERM [s].
    """

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(1)

    if PARENT_VARIABLE in os.environ:
        on_end_of_input(sys.stdin.buffer, end)


def wait_readable(stream: IO[bytes], timeout_s: float) -> bool:
    """Whether a pipe has data, or has ended, within the time."""
    ready, _, _ = select.select([stream], [], [], max(0.0, timeout_s))
    return bool(ready)


def wait_writable(stream: IO[bytes], timeout_s: float) -> bool:
    """Whether a pipe has room for a message, or has ended, within the time."""
    _, ready, _ = select.select([], [stream], [], max(0.0, timeout_s))
    return bool(ready)


def describe_exit(status: int) -> str:
    """Says how a process ended, for people: ``"killed by SIGKILL"`` or ``"exit status 3"``."""
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
