"""``python -m sim2or.figures``: the figures of all queues over HTTP, whether any worker runs or not.

Agents tell the figures of their own stages. Where workers are started because there is work, and none runs
before that, somebody else has to tell: ``/metrics`` on SIM2OR_METRICS_PORT, read-only on the bus.
"""

from __future__ import annotations

import signal
import threading

from sim2or import log
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.counts import PULSE
from sim2or.errors import ConfigError, Sim2OrError
from sim2or.exit_status import status_of
from sim2or.metrics import expose, queue_source
from sim2or.settings import Settings, load_settings
from sim2or.stages import load_table

BEAT_S = 1.0


def serve(settings: Settings) -> None:
    """Tells the figures until SIGTERM or SIGINT.

    Raises:
        ConfigError: No port, a port that is taken, or a login that is refused.
        TransientError: The bus gives no answer.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    jobs = Jobs(connect(settings.redis_url))
    source = queue_source(jobs, load_table(settings.plugins).stages)
    if expose(settings, "figures", {"bus": source}) is None:
        raise ConfigError(f"SIM2OR_METRICS_PORT={settings.metrics_port}: give a free port")
    while not stopping.wait(BEAT_S):
        PULSE.beat()


def main() -> None:
    """Serves with the settings of the environment."""
    log.configure("figures")
    try:
        serve(load_settings())
    except Sim2OrError as error:
        log.get_logger().error("cannot serve", error=str(error))
        raise SystemExit(int(status_of(error))) from None


if __name__ == "__main__":
    main()
