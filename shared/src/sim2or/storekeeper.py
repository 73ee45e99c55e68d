"""The storekeeper: takes artifacts from workers on other hosts into the store of this one."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict

from sim2or.artifacts.intake import StoreIntake
from sim2or.bus.keys import load_keyring
from sim2or.bus.receiver import Receiver
from sim2or.bus.reception import ReceiverCounts
from sim2or.counts import PULSE
from sim2or.errors import ConfigError
from sim2or.log import get_logger
from sim2or.settings import Settings

SERVICE = "dataset"
"""Whose key it has: the dataset service owns the storage."""

STEP_S = 0.1
REPORT_PERIOD_S = 1.0


def serve(settings: Settings) -> None:
    """Takes artifacts into the store until SIGTERM or SIGINT.

    Raises:
        ConfigError: No endpoint, one that cannot be bound, or another receiver has the store.
    """
    if not settings.upload_endpoint:
        raise ConfigError("SIM2OR_UPLOAD_ENDPOINT is empty; give an endpoint such as ipc:///tmp/s2o/upload")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    keys = load_keyring(settings.keys, SERVICE)
    with (
        closing(StoreIntake(settings.store_root)) as intake,
        closing(Receiver(settings.upload_endpoint, intake, keys=keys)) as receiver,
    ):
        get_logger().info("storekeeper ready", endpoint=receiver.endpoint, store=str(settings.store_root))
        report = Report()
        while not stopping.is_set():
            PULSE.beat()
            receiver.step(STEP_S)
            report.tick(receiver.counts)


class Report:
    """One line a second about what came, and none while nothing did."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._next_s = time.monotonic() + REPORT_PERIOD_S

    def tick(self, counts: ReceiverCounts) -> None:
        """Logs what changed since the last line, once a second."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + REPORT_PERIOD_S
        now = Counter(asdict(counts))
        if fresh := now - self._told:
            get_logger().info("received", **fresh)
        self._told = now
