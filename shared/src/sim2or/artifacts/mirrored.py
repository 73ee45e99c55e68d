"""A store that shares its artifacts through a mirror: what is not here is fetched when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from sim2or.artifacts.manifest import Manifest
from sim2or.artifacts.store import Store
from sim2or.artifacts.transfer import PATIENCE_S, Progress
from sim2or.errors import JobError, TransientError

if TYPE_CHECKING:
    from sim2or.artifacts.mirror import Mirror

log = structlog.get_logger()

REPAIRS = 3
"""How often a checkout is tried again after a damaged file went to quarantine."""

CHECK_PATIENCE_S = 5.0
ASK_PATIENCE_S = 30.0
"""Of those who wait for an answer, and not for a job [s]."""


class MirroredStore(Store):
    """A store in front of a mirror.

    Args:
        root: The store's directory on this host.
        mirror: What other hosts see too.
        progress: Told about transfers; what it raises ends them.
    """

    def __init__(self, root: Path, mirror: Mirror, *, progress: Progress = lambda done, total: None) -> None:
        super().__init__(root)
        self.mirror = mirror
        self._progress = progress

    def manifest(self, digest: str) -> Manifest:
        """Reads an artifact's manifest, here or in the mirror.

        Raises:
            ConfigError: No such artifact in either.
            JobError: The manifest was altered.
            TransientError: The mirror does not answer.
        """
        if self.kept(digest) is None:
            self.mirror.fetch_manifest(self, digest)
        return super().manifest(digest)

    def checkout(self, digest: str) -> Path:
        """Gives a read-only directory with the artifact's verified files; what is not here is fetched.

        A file that is damaged here goes to quarantine and is fetched again.

        Raises:
            ConfigError: No such artifact here or in the mirror.
            JobError: A file is damaged in both.
            TransientError: The mirror does not answer.
        """
        for _ in range(REPAIRS):
            if not super().holds(digest):
                self.mirror.fetch(self, digest, progress=self._progress)
            try:
                return super().checkout(digest)
            except JobError as error:
                log.warning("damaged here, fetched again", artifact=digest, reason=str(error))
                self.mirror.fetch(self, digest, progress=self._progress)
        return super().checkout(digest)

    def holds(self, digest: str) -> bool:
        """Whether an artifact is whole here, or in the mirror.

        Raises:
            TransientError: The mirror does not answer.
        """
        return super().holds(digest) or self.mirror.holds(digest)

    def digests(self, prefix: str = "") -> Iterator[str]:
        """Every artifact's digest, here or in the mirror, that starts with some digits; sorted."""
        yield from sorted({*super().digests(prefix), *self.mirror.digests(prefix)})

    def push(self, digest: str) -> None:
        """Sends an artifact to the mirror; returns when it is complete there.

        Raises:
            ConfigError: No such artifact here.
            JobError: Its files are damaged here.
            TransientError: The mirror does not answer, or refuses.
        """
        self.mirror.push(self, digest, progress=self._progress)

    def put_record(self, name: str, data: bytes) -> bytes:
        """Keeps a small record in the mirror, see ``Mirror.put_record``."""
        return self.mirror.put_record(name, data)

    def get_record(self, name: str) -> bytes | None:
        """Reads a small record from the mirror, see ``Mirror.get_record``."""
        return self.mirror.get_record(name)


def open_store(
    root: Path,
    mirror: str = "",
    *,
    progress: Progress = lambda done, total: None,
    patience_s: float = PATIENCE_S,
) -> Store:
    """The store of a process, behind which the mirror lies where there is one.

    Args:
        root: Its directory on this host.
        mirror: The address, ``SIM2OR_MIRROR``; empty: none.
        progress: Told about transfers; what it raises ends them.
        patience_s: How long nothing may come forward before a transfer is given up [s].

    Raises:
        ConfigError: The address is wrong.
    """
    if not mirror:
        return Store(root)
    from sim2or.artifacts.mirror import Mirror  # the library behind it takes time and memory

    return MirroredStore(root, Mirror(mirror, patience_s=patience_s), progress=progress)


def check_mirror(mirror: str) -> None:
    """Refuses to start with a mirror that does not let us in; one that does not answer yet is a warning.

    Raises:
        ConfigError: Wrong address, bucket, credentials or rights; the message names the setting.
    """
    if not mirror:
        return
    from sim2or.artifacts.mirror import Mirror

    try:
        Mirror(mirror, patience_s=CHECK_PATIENCE_S).check()
    except TransientError as error:
        log.warning("the mirror does not answer yet", reason=str(error))
