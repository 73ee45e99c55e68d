"""The motion of every trial, kept beside ``trials.jsonl``: what the gap between engines is measured from.

``motions/<seed>.npy`` is one structured array: a row a tick, a field for each column of an ``Episode``, under
its name with its unit; about 20 kB a trial.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2or.errors import JobError
from sim2or.rollout.episode import Episode

type Motion = NDArray[Any]
"""Shape (T,), with the columns of an ``Episode`` as fields: ``motion["measured_rad"]`` is (T, n_joints)."""

NEEDED = ("time_ns", "measured_rad", "commanded_rad", "instrument", "taken")
"""Fields without which a file is no motion."""


def motion_path(directory: Path, seed: int) -> Path:
    """Where the motion of a trial lies in a rollouts directory.

    Its name has no form of a recording's, so that nobody looks for pictures in it.
    """
    return directory / "motions" / f"{seed}.npy"


def write(path: Path, episode: Episode) -> None:
    """Writes the rows of an episode; its directory is made when missing."""
    columns = episode.arrays()
    motion = np.empty(episode.steps, [(name, rows.dtype, rows.shape[1:]) for name, rows in columns.items()])
    for name, rows in columns.items():
        motion[name] = rows
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, motion, allow_pickle=False)


def read(path: Path) -> Motion:
    """Reads a motion.

    Raises:
        JobError: It is missing, torn, or no motion.
    """
    if not path.is_file():
        raise JobError(f"{path} is missing: these rollouts kept no motion; roll out again")
    try:
        motion: Motion = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise JobError(f"{path} is torn or no motion ({error}); roll out again") from error
    missing = [name for name in NEEDED if name not in (motion.dtype.names or ())]
    if missing:
        raise JobError(f"{path}: no field {', '.join(missing)}; roll out again")
    return motion
