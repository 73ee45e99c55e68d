"""The policy actor against a real socket."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from sim2or.bus.rpc import Request, Router
from sim2or.contracts.robot import load_robot
from sim2or.errors import TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyRequest
from sim2or.rollout.policy import ASK_AGAIN_S, PolicyActor

HOME = np.array(load_robot("so101").home_rad, dtype=np.float32)


def observation(session: str) -> Observation:
    return Observation(
        robot="so101",
        task="handover",
        request="",
        episode=session,
        tick=0,
        state_rad=HOME,
        images={},
        captured_ns=0,
    )


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
    question = observation("s")
    try:
        actor.ask(question)
        with pytest.raises(TransientError):
            actor.answer()
    finally:
        stop.set()
        server.join(timeout=5)
        actor.close()
        router.close()
    assert 1 < len(asked) <= 0.2 / ASK_AGAIN_S + 1


def test_the_questions_of_several_episodes_are_under_way_together(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A server that answers only when it has three questions answers three actors, each its own."""
    endpoint = f"ipc://{tmp_path_factory.mktemp('p')}/p"
    router = Router(endpoint, Origin("policy"), PolicyRequest)
    together = threading.Event()

    def serve() -> None:
        waiting: list[Request[PolicyRequest]] = []
        for _ in range(6):
            request = router.receive(10)
            assert request is not None
            waiting.append(request)
            if not together.is_set() or len(waiting) == 3:
                for one in waiting:
                    router.answer(one, chunk(one.message.observation.episode))
                waiting = []

    server = threading.Thread(target=serve)
    server.start()
    actors = [PolicyActor(endpoint, "sha256:m", horizon=20, deadline_ms=10_000) for _ in range(3)]
    try:
        for actor in actors:  # one by one, so that every socket has its server
            actor.ask(observation("warm"))
            actor.answer()
        together.set()
        for number, actor in enumerate(actors):
            actor.ask(observation(f"s{number}"))
        assert [actor.answer().session for actor in actors] == ["s0", "s1", "s2"]
    finally:
        server.join(timeout=20)
        for actor in actors:
            actor.close()
        router.close()


def chunk(session: str) -> ActionChunk:
    return ActionChunk(
        artifact="sha256:m",
        episode=session,
        tick=0,
        actions_rad=np.repeat(HOME[None], 20, axis=0),
        period_s=1 / 30,
        captured_ns=0,
        inference_s=0.01,
    )
