"""A real policy process that holds the arm still and writes down the trace of every question.

``python watching_policy.py ENDPOINT TRACES.txt``
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import numpy as np
from sim2or import tracing
from sim2or.bus.rpc import Router
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.envelope import Origin
from sim2or.messages.policy_request import PolicyRequest

HORIZON = 20


def main(endpoint: str, traces: str) -> None:
    """Serves until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    tracing.configure("policy")
    router = Router(endpoint, Origin("policy"), PolicyRequest)
    with Path(traces).open("a") as file:
        while not stop.is_set():
            request = router.receive(0.1)
            if request is None:
                continue
            file.write(f"{request.envelope.traceparent}\n")
            file.flush()
            seen = request.message.observation
            still = ActionChunk(
                episode=seen.episode,
                tick=seen.tick,
                actions_rad=np.tile(seen.state_rad, (HORIZON, 1)),
                period_s=1 / 30,
                captured_ns=seen.captured_ns,
                inference_s=0.0,
                artifact=request.message.artifact,
            )
            router.answer(request, still)
    router.close()
    tracing.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
