"""How a process tells by its exit status what is worth doing next.

The command line, the supervisor, compose and Kubernetes read the same numbers. The ``podFailurePolicy`` of
every Job that ``sim2or k8s`` renders is written from them: what is permanent fails its shard at once, what
was interrupted is started again and counted as nobody's failure, anything else is tried a few times more.
"""

from __future__ import annotations

from enum import IntEnum

from sim2or.errors import ConfigError, Sim2OrError, TransientError


class ExitStatus(IntEnum):
    """Exit statuses of our own; another one (1: a bug, 137: killed or out of memory) is worth another try.

    Attributes:
        DONE: What was asked is done, or was done before.
        CONFIG: A setting, a file or an argument is wrong: a person must change it.
        PERMANENT: The job failed; trying the same again gives the same failure (sysexits: EX_DATAERR).
        TRANSIENT: It may work in a moment: a full disk, a store that is away (sysexits: EX_TEMPFAIL).
        INTERRUPTED: It was told to stop and did; a fresh process goes on where this one was.
    """

    DONE = 0
    CONFIG = 2
    PERMANENT = 65
    TRANSIENT = 75
    INTERRUPTED = 130


FINAL = (ExitStatus.CONFIG, ExitStatus.PERMANENT)
"""Statuses after which the same attempt is useless."""


def status_of(error: Sim2OrError) -> ExitStatus:
    """The status with which a process ends that met an error and can do nothing about it."""
    if isinstance(error, ConfigError):
        return ExitStatus.CONFIG
    return ExitStatus.TRANSIENT if isinstance(error, TransientError) else ExitStatus.PERMANENT
