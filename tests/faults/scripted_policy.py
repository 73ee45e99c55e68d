"""A real policy process whose network is a recording: answers tick t with the recorded actions from t on.

``python scripted_policy.py ENDPOINT ACTIONS.npy DELAY_MS ARTIFACT``
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
from sim2or.bus.keys import load_keyring
from sim2or.bus.rpc import PolicyServerLoop
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.policy_request import PolicyRequest
from sim2or.settings import load_settings

HORIZON = 20


def main(endpoint: str, actions: str, delay_ms: str, artifact: str) -> None:
    """Serves until SIGTERM."""
    recorded = np.load(actions).astype(np.float32)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def handler(requests: Sequence[PolicyRequest]) -> list[ActionChunk]:
        time.sleep(float(delay_ms) / 1000)
        return [answer(request) for request in requests]

    def answer(request: PolicyRequest) -> ActionChunk:
        seen = request.observation
        rows = np.minimum(np.arange(seen.tick, seen.tick + HORIZON), len(recorded) - 1)
        return ActionChunk(
            episode=seen.episode,
            tick=seen.tick,
            actions_rad=recorded[rows],
            period_s=1 / 30,
            captured_ns=seen.captured_ns,
            inference_s=float(delay_ms) / 1000,
            artifact=artifact,
        )

    keys = load_keyring(load_settings().keys, "policy")
    PolicyServerLoop(endpoint, handler, keys=keys).run(stop.is_set)


if __name__ == "__main__":
    main(*sys.argv[1:])
