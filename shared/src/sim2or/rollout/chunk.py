"""Executes chunks of actions by time: action k belongs to its observation's time plus k periods."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim2or.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """One action of a chunk, due now.

    Attributes:
        target_rad: Shape (n_joints,), float32, [rad].
        captured_ns: When the observation behind it was captured [ns].
        index: Its place in the chunk.
    """

    target_rad: NDArray[np.float32]
    captured_ns: int
    index: int


class ChunkExecutor:
    """Chooses, at any time, the action that the newest chunk has for that time.

    It knows no clock: the same arithmetic serves simulated time and a host's monotonic time. The newest
    observation wins; chunks that are late, repeated or of another session are refused.

    Args:
        horizon: Actions per chunk.
        execute: Periods after which the next observation is asked for, 1 ≤ execute ≤ horizon.
        period_ns: Length of a control period [ns].
        max_age_ns: Oldest observation whose chunk may still be used [ns].

    Raises:
        ConfigError: The numbers don't fit each other.
    """

    def __init__(self, *, horizon: int, execute: int, period_ns: int, max_age_ns: int) -> None:
        if not 1 <= execute <= horizon:
            raise ConfigError(f"execute is {execute}; it must lie between 1 and the horizon {horizon}")
        if period_ns <= 0 or max_age_ns < execute * period_ns:
            raise ConfigError(
                f"max_age is {max_age_ns / 1e9:.3f} s, but {execute} periods of {period_ns / 1e9:.3f} s pass "
                "between requests: raise executor.max_age_s or lower executor.execute"
            )
        self.horizon, self.execute = horizon, execute
        self.period_ns, self.max_age_ns = period_ns, max_age_ns
        self.reset("")

    def reset(self, session: str) -> None:
        """Starts a session (an episode): forgets chunks and requests."""
        self.session = session
        self.counts: Counter[str] = Counter()
        self._actions: NDArray[np.float32] | None = None
        self._captured_ns = 0
        self._requested_ns: int | None = None

    def wants(self, now_ns: int) -> bool:
        """Whether the next observation is due (half a period of jitter allowed)."""
        if self._requested_ns is None:
            return True
        return now_ns - self._requested_ns >= self.execute * self.period_ns - self.period_ns // 2

    def requested(self, now_ns: int) -> None:
        """Notes that an observation captured at ``now_ns`` was sent to the actor."""
        self._requested_ns = now_ns

    def accept(self, actions_rad: NDArray[np.float32], captured_ns: int, now_ns: int, session: str) -> bool:
        """Takes a chunk if it is newer than the one in use.

        Args:
            actions_rad: Shape (horizon, n_joints), [rad].
            captured_ns: When its observation was captured [ns].
            now_ns: The time of arrival [ns].
            session: The session its observation belonged to.

        Returns:
            Whether it is used from now on; a refusal is counted by its cause.
        """
        cause = self._refusal(actions_rad, captured_ns, now_ns, session)
        self.counts[cause or "accepted"] += 1
        if cause:
            return False
        self._actions, self._captured_ns = actions_rad, captured_ns
        return True

    def target(self, now_ns: int) -> Target | None:
        """The action due at ``now_ns``, or None when there is none fresh enough."""
        if self._actions is None or now_ns - self._captured_ns > self.max_age_ns:
            return None
        index = (now_ns - self._captured_ns + self.period_ns // 2) // self.period_ns
        if not 0 <= index < len(self._actions):
            return None
        return Target(self._actions[index], self._captured_ns, index)

    def _refusal(self, actions_rad: NDArray[np.float32], captured_ns: int, now_ns: int, session: str) -> str:
        """Why a chunk is refused, "" when it is not."""
        if session != self.session:
            return "other_session"
        if actions_rad.ndim != 2 or not 1 <= len(actions_rad) <= self.horizon:
            return "wrong_shape"
        if captured_ns > now_ns:
            return "from_the_future"
        if now_ns - captured_ns > self.max_age_ns:
            return "too_old"
        if self._actions is not None and captured_ns <= self._captured_ns:
            return "not_newer"
        return ""
