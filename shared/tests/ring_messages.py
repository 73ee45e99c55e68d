"""Messages with large arrays, for the tests of the ring that carries them, and those who exchange them."""

from __future__ import annotations

import resource
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from sim2or.bus.ring import Where
from sim2or.bus.rpc import PolicyClient, PolicyServerLoop
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.array import Buffer
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyRequest

SIDE_PX = 200
LATER_NS = 60_000_000_000
NEVER = 0


def image(level: int) -> np.ndarray:
    return np.full((SIDE_PX, SIDE_PX, 3), level % 256, np.uint8)


def message(level: int, size: int = 100_000) -> list[Buffer]:
    return [b"topic", b"{}", np.full(size, level % 256, np.uint8).data, b"small"]


def level_of(frames: Sequence[Buffer]) -> int:
    values = set(bytes(frames[2]))
    assert len(values) == 1
    return values.pop()


def request(tick: int = 0, deadline_ms: float = 10_000.0) -> PolicyRequest:
    observation = Observation(
        robot="so101",
        task="handover",
        request="Hand me the scalpel",
        episode="e",
        tick=tick,
        state_rad=np.full(6, tick, np.float32),
        images={"wrist": image(tick), "room": image(tick + 1)},
        captured_ns=tick,
    )
    return PolicyRequest(artifact="sha256:1", observation=observation, deadline_ms=deadline_ms)


def answer(question: PolicyRequest) -> ActionChunk:
    """Actions that prove that every pixel was seen."""
    seen = question.observation
    levels = {camera: float(picture.mean()) for camera, picture in seen.images.items()}
    return ActionChunk(
        episode=seen.episode,
        tick=seen.tick,
        actions_rad=np.array([[levels["wrist"], levels["room"], 0, 0, 0, 0]], np.float32),
        period_s=1 / 30,
        captured_ns=seen.captured_ns,
        inference_s=0.0,
        artifact=question.artifact,
    )


@contextmanager
def serving(endpoint: str, *, shared: bool = True) -> Iterator[PolicyServerLoop]:
    loop = PolicyServerLoop(endpoint, lambda asked: [answer(one) for one in asked], ring=shared)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        yield loop
    finally:
        stopped.set()
        thread.join(10)
        assert not thread.is_alive()


def ask(client: PolicyClient, tick: int, deadline_s: float = 10.0) -> None:
    """Asks and checks that the answer is about this very question's pixels."""
    got = client.call(request(tick), deadline_s=deadline_s)
    assert isinstance(got, ActionChunk), got
    assert got.tick == tick
    assert list(got.actions_rad[0, :2]) == [tick % 256, (tick + 1) % 256]


def note(where: Where, slot: int = 0, generation: int = 1, *parts: tuple[int, int]) -> bytes:
    placed = struct.pack("<IQH", slot, generation, len(parts))
    return b"S" + where.pack() + placed + b"".join(struct.pack("<QQ", *part) for part in parts)


@contextmanager
def no_room(size_bytes: int = 100_000) -> Iterator[None]:
    """Files of this process, anonymous ones too, may not grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
