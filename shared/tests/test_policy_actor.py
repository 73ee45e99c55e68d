"""The policy actor against a real socket."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from sim2or.bus.rpc import Router
from sim2or.contracts.robot import load_robot
from sim2or.errors import TransientError
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyRequest
from sim2or.rollout.policy import ASK_AGAIN_S, PolicyActor

HOME = np.array(load_robot("so101").home_rad, dtype=np.float32)


def test_a_busy_server_is_asked_again_with_pauses(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Within a deadline of 0.2 s a server that only says "busy" is asked at most twenty times."""
    endpoint = f"ipc://{tmp_path_factory.mktemp('p')}/p"
    router = Router(endpoint, Origin("policy"), PolicyRequest)
    stop, asked = threading.Event(), list[int]()

    def refuse() -> None:
        while not stop.is_set():
            request = router.receive(0.01)
            if request is not None:
                asked.append(request.message.observation.tick)
                router.refuse(request, "busy", "later")

    server = threading.Thread(target=refuse)
    server.start()
    actor = PolicyActor(endpoint, "sha256:m", horizon=20, deadline_ms=200)
    question = Observation(
        robot="so101",
        task="handover",
        request="",
        episode="s",
        tick=0,
        state_rad=HOME,
        images={},
        captured_ns=0,
    )
    try:
        with pytest.raises(TransientError):
            actor.act(question)
    finally:
        stop.set()
        server.join(timeout=5)
        actor.close()
        router.close()
    assert 1 < len(asked) <= 0.2 / ASK_AGAIN_S + 1
