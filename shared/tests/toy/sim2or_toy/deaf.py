"""A server that does not hear SIGTERM, as one that is busy in C."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from sim2or.settings import Settings


def serve(settings: Settings) -> None:
    """Ignores SIGTERM, leaves a mark for the test, and sleeps."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(os.environ["TOY_FLAGS"]) / "deaf").touch()
    time.sleep(60)
