"""The one error tree.

::

    Sim2OrError
    ├── ConfigError     a setting, profile or pipeline is wrong: stop at start, name the setting
    ├── MessageError    a message breaks its contract: dead letter, never retried
    ├── TransientError  it may work in a moment: retried by the bus, capped
    ├── JobError        this job failed; the service goes on
    ├── HardwareError   the robot or its driver failed: safe stop
    └── SafetyError     a safety rule was broken: stop and latch

A message gives the value, the bounds and the valid choices or the nearest name, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Sim2OrError(Exception):
    """Base of every error that sim2or raises on purpose."""


class ConfigError(Sim2OrError):
    """A setting, profile or pipeline is wrong."""


class MessageError(Sim2OrError):
    """A message breaks its contract."""


class TransientError(Sim2OrError):
    """The operation may succeed when it is tried again."""


class JobError(Sim2OrError):
    """This job failed; trying the same job again gives the same failure."""


class HardwareError(Sim2OrError):
    """The robot or its driver failed."""


class SafetyError(Sim2OrError):
    """A safety rule was broken; the emergency stop is latched."""


def choices(value: str, valid: Iterable[str]) -> str:
    """Says which values are valid, and which one was probably meant.

    Args:
        value: What was given.
        valid: Every name that would have been accepted.

    Returns:
        For example ``"valid: forceps, scalpel, scissors (did you mean 'scalpel'?)"``.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"valid: {', '.join(names) or 'none'}{hint}"
