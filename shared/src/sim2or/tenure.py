"""The time for which an agent has a job: its lease, renewed again and again."""

from __future__ import annotations

import time
from collections.abc import Callable

from sim2or.bus.jobs import Claim, Lease
from sim2or.messages.job import Progress

PROGRESS_S = 0.5
RETRY_S = 1.0
"""How soon a bus that did not answer is asked again, at the latest [s]."""


class Tenure:
    """Keeps the lease of one claim.

    Args:
        claim: The job.
        renew: Renews its lease, telling the newest progress; None when the bus does not answer.

    Attributes:
        progress: What is told at the next renewal.
        renewed_s: When the lease was renewed last, by the monotonic clock [s].
    """

    def __init__(self, claim: Claim, renew: Callable[[Claim, Progress | None], Lease | None]) -> None:
        self._claim, self._renew = claim, renew
        self._next_s = self._next_progress_s = 0.0
        self.progress: Progress | None = None
        self.renewed_s = time.monotonic()

    @property
    def ends_s(self) -> float:
        """When it is over unless the lease is renewed, by the monotonic clock [s]."""
        return self.renewed_s + self._claim.lease_s

    def keep(self) -> Lease | None:
        """Renews the lease, if it is time to.

        Returns:
            Owned: it was renewed just now. Lost: the bus says so, or was silent for a whole lease. Cancelled:
            the job must end, and its lease runs out. None: it was not time, or the bus did not answer.
        """
        now_s, beat_s = time.monotonic(), self._claim.lease_s / 4
        if now_s < self._next_s and (self.progress is None or now_s < self._next_progress_s):
            return None
        lease = self._renew(self._claim, self.progress)
        self._next_s, self._next_progress_s = now_s + beat_s, now_s + PROGRESS_S
        if lease is Lease.OWNED:
            self.renewed_s, self.progress = now_s, None
        elif lease is None:
            self._next_s = self._next_progress_s = now_s + min(RETRY_S, beat_s)
            if now_s > self.ends_s:
                return Lease.LOST
        return lease
