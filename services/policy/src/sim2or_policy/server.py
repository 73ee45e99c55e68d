"""The policy server: observation in, action chunk out."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

from sim2or.artifacts.mirrored import check_mirror, open_store
from sim2or.bus.keys import load_keyring
from sim2or.bus.rpc import PolicyServerLoop
from sim2or.counts import PULSE
from sim2or.errors import ConfigError
from sim2or.log import get_logger
from sim2or.settings import Settings

from sim2or_policy.delay import delayed
from sim2or_policy.inference import Inference
from sim2or_policy.settings import PolicySettings, load_policy_settings
from sim2or_policy.shelf import Shelf, openers

STEP_S = 0.1
REPORT_PERIOD_S = 1.0
FETCH_PATIENCE_S = 15.0
"""How long a mirror may be silent while nobody is answered [s]."""


def serve(settings: Settings) -> None:
    """Serves policies by digest until SIGTERM or SIGINT.

    Args:
        settings: The common ones; the server's own are read beside them from the environment.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    serve_until(stopping.is_set, load_policy_settings(settings))


def serve_until(stopped: Callable[[], bool], settings: PolicySettings) -> None:
    """Serves policies by digest until ``stopped()``, which is asked about ten times a second.

    Args:
        stopped: Whether to end.
        settings: Endpoint, store, backend and injected delay.

    Raises:
        ConfigError: No endpoint, or one that cannot be bound; a backend that is not available here; a mirror
            that does not let us in.
    """
    if not settings.policy_endpoint:
        raise ConfigError("SIM2OR_POLICY_ENDPOINT is empty; give an endpoint such as ipc:///tmp/s2o/policy")
    keys = load_keyring(settings.keys, "policy")
    check_mirror(settings.mirror)
    store = open_store(
        settings.store_root,
        settings.mirror,
        progress=lambda done, total: PULSE.beat(),
        patience_s=FETCH_PATIENCE_S,
    )
    shelf = Shelf(store, openers(settings.policy_backend), size=settings.policy_models)
    inference = Inference(shelf)
    with delayed(settings.policy_endpoint, delay_ms=settings.policy_delay_ms, keys=keys) as endpoint:
        loop = PolicyServerLoop(endpoint, inference.answer, keys=keys)
        get_logger().info(
            "policy server ready", endpoint=settings.policy_endpoint, delay_ms=settings.policy_delay_ms
        )
        report = Report()
        try:
            while not stopped():
                PULSE.beat()
                loop.step(STEP_S)
                report.tick(asdict(loop.counts) | inference.counts, models=len(shelf))
        finally:
            loop.close()


class Report:
    """One line a second about what was served, and none while nothing was."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._next_s = time.monotonic() + REPORT_PERIOD_S

    def tick(self, counts: dict[str, int], *, models: int) -> None:
        """Logs what changed since the last line, once a second.

        Args:
            counts: Totals since the start.
            models: Models loaded now.
        """
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + REPORT_PERIOD_S
        fresh = Counter(counts) - self._told
        self._told = Counter(counts)
        if fresh:
            get_logger().info("served", models=models, **fresh)
