"""A process that takes bytes of every kind at every entry, and watches whether anything is unpickled.

``python hostile_bytes.py REDIS_URL DIRECTORY`` prints what was refused, accepted and unpickled, as JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from sim2or.artifacts.intake import StoreIntake
from sim2or.artifacts.store import Store
from sim2or.bus import sockets
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.pubsub import Subscriber
from sim2or.bus.receiver import Receiver
from sim2or.bus.rpc import Client, Router
from sim2or.bus.server import connect
from sim2or.bus.upload import Uploader
from sim2or.errors import Sim2OrError
from sim2or.messages.codec import encode
from sim2or.messages.envelope import Origin
from sim2or.messages.event import Event
from sim2or.messages.job import Job
from sim2or.messages.message import Message
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotRequest
from sim2or.messages.robot_state import RobotState

LIMIT_S = 20.0
WATCHED = ("pickle.find_class", "marshal.loads", "marshal.load", "shelve")

seen: list[str] = []


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("exit 3",)


def watch(event: str, _: object) -> None:
    """Notes what unpickles; reading compiled modules is Python's own business."""
    if event.startswith(WATCHED) and "importlib" not in sys._getframe(1).f_code.co_filename:
        seen.append(event)


def trap() -> None:
    """Also notes calls that look up no class, which Python does not audit."""
    for name in ("load", "loads"):
        original = getattr(pickle, name)

        def noted(*arguments: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            seen.append(f"pickle.{_name}")
            return _original(*arguments, **options)

        setattr(pickle, name, noted)

    class Noted(pickle.Unpickler):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            seen.append("pickle.Unpickler")
            super().__init__(*arguments, **options)

    pickle.Unpickler = Noted  # type: ignore[misc]


def payloads() -> Iterator[bytes]:
    """Pickles of every protocol, arrays of objects, compiled code, and noise."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.dumps(Bomb(), protocol)
        yield pickle.dumps({"envelope": {"type": "robot_request"}, "payload": {}}, protocol)
    yield pickle.dumps(np.array([Bomb()], dtype=object))
    yield (
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 60 + b"\n"
    )
    yield b"\xe3" + b"\0" * 64
    yield os.urandom(512)
    yield b""


def wires(good: Message) -> Iterator[list[bytes]]:
    """A good message with each of its frames replaced, with one added, and with an object dtype."""
    frames = [bytes(frame) for frame in encode(good, Origin("hostile").envelope(good))]
    for payload in payloads():
        yield [payload]
        yield [frames[0], payload]
        yield [frames[0], payload, *frames[2:]]
        yield [payload, frames[1], *[payload for _ in frames[2:]]]
        yield [*frames, payload]
    for dtype in (b"object", b"O", b"|O8", b"V8"):
        yield [frames[0], frames[1].replace(b"float32", dtype), *frames[2:]]


def until(condition: Callable[[], object]) -> None:
    """Goes on until the condition holds, or the time is over."""
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("the condition does not hold")


def state(seq: int = 1) -> RobotState:
    return RobotState(
        seq=seq,
        captured_ns=seq,
        position_rad=np.zeros(6, np.float32),
        velocity_radps=np.zeros(6, np.float32),
        images={"wrist": np.zeros((4, 4, 3), np.uint8)},
    )


def raw(kind: int, endpoint: str) -> sockets.Zmq:
    """A socket that says whatever it likes."""
    socket = sockets.open_socket(kind, hwm=1000, identity=b"hostile" if kind == zmq.DEALER else b"")
    sockets.connect(socket, endpoint) if kind == zmq.DEALER else sockets.bind(socket, endpoint)
    return socket


def drive_router(directory: Path) -> tuple[int, int]:
    """Questions, to a server that knows arrays too."""
    endpoint = f"ipc://{directory}/q"
    router: Router[RobotState | RobotRequest] = Router(endpoint, Origin("robot"), RobotState, RobotRequest)
    hostile = raw(zmq.DEALER, endpoint)
    for wire in [*wires(state()), *wires(RobotRequest(action="report"))]:
        until(lambda frames=wire: sockets.send(hostile, frames))
        router.receive(0)
        sockets.receive(hostile)
    good = RobotRequest(action="report")
    until(lambda: sockets.send(hostile, encode(good, Origin("x").envelope(good))))
    before = router.counts.received
    until(lambda: router.receive(0.1) is not None or router.counts.received > before)
    counts = router.counts.malformed, router.counts.received
    hostile.close()
    router.close()
    return counts


def drive_client(directory: Path) -> tuple[int, int]:
    """Answers, from a server that lies."""
    endpoint = f"ipc://{directory}/a"
    server = raw(zmq.ROUTER, endpoint)
    client = Client(endpoint, Origin("bridge"), RobotState, PolicyError)
    question = RobotRequest(action="report")
    until(lambda: client.send(question, deadline_s=LIMIT_S))
    until(lambda: server.poll(100))
    asked = sockets.receive(server)
    assert asked is not None
    peer = bytes(asked[0])
    for wire in [*wires(state()), *wires(PolicyError(code="busy", detail=""))]:
        until(lambda frames=wire: sockets.send(server, [peer, *frames]))
        client.poll(0)
    until(lambda: client.poll(0.05) is None)
    counts = client.counts.malformed, client.counts.late + client.counts.answered
    client.close()
    server.close()
    return counts


def drive_subscriber(directory: Path) -> tuple[int, int]:
    """States, from a publisher that lies."""
    endpoint = f"ipc://{directory}/s"
    publisher = raw(zmq.PUB, endpoint)
    subscriber = Subscriber(endpoint, RobotState)
    good = encode(state(), Origin("robot").envelope(state()))
    until(lambda: sockets.send(publisher, good) and subscriber.receive(0.05))
    for wire in wires(state()):
        sockets.send(publisher, [b"robot_state", *wire[1:]])
        subscriber.receive(0)
    while subscriber.receive(0.1):
        pass
    counts = subscriber.counts.malformed, subscriber.counts.received
    subscriber.close()
    publisher.close()
    return counts


def drive_receiver(directory: Path) -> tuple[int, int]:
    """Uploads: hostile ones, then a good one."""
    endpoint = f"ipc://{directory}/u"
    source = Store(directory / "source")
    (directory / "file").write_bytes(b"content")
    artifact = source.put(directory / "file", kind="file")
    receiver = Receiver(endpoint, StoreIntake(directory / "target"))
    hostile = raw(zmq.DEALER, endpoint)
    uploader = Uploader(endpoint, Origin("sim"))
    for wire in wires(RobotRequest(action="report")):
        for topic in (b"upload_offer", b"upload_chunk"):
            until(lambda frames=[topic, *wire[1:]]: sockets.send(hostile, frames))
            receiver.step(0)
            sockets.receive(hostile)

    stopped = threading.Event()
    thread = threading.Thread(target=receiver.run, args=(stopped.is_set,))
    thread.start()
    uploader.push(source, artifact.digest)
    stopped.set()
    thread.join()
    hostile.close()
    uploader.close()
    return receiver.router_counts.malformed, receiver.counts.stored


def drive_jobs(url: str) -> tuple[int, int]:
    """Jobs in Redis that somebody else has written."""
    redis = connect(url)
    redis.flushall()
    jobs = Jobs(redis)
    for number, payload in enumerate(payloads()):
        job_id = jobs.submit(Job(stage="train", key=f"bad {number}")).job_id
        redis.hset(f"job:{job_id}", "job", payload)  # type: ignore[arg-type]
    good = jobs.submit(Job(stage="train", key="good")).job_id
    claim = jobs.claim("train", "w")
    refused = redis.zcard("jobs:dead")
    with suppress(Sim2OrError):
        jobs.list()
    return refused, int(claim is not None and claim.job_id == good)


def drive_events(url: str) -> tuple[int, int]:
    """Events in Redis that somebody else has written."""
    redis = connect(url)
    redis.flushall()
    events = Events(redis)
    for payload in payloads():
        redis.xadd("events", {"kind": "x", "detail": payload})  # type: ignore[dict-item]
    events.append(Event(kind="good"))
    read = events.read()
    return events.malformed, len(read)


def main(url: str, directory: Path) -> None:
    """Drives every entry and prints what was seen."""
    sys.addaudithook(watch)
    trap()
    counts = {
        "router": drive_router(directory),
        "client": drive_client(directory),
        "subscriber": drive_subscriber(directory),
        "receiver": drive_receiver(directory),
        "jobs": drive_jobs(url),
        "events": drive_events(url),
    }
    unpickled, seen[:] = list(seen), []
    pickle.loads(pickle.dumps(Path))  # noqa: S301 - the control: this must be seen
    told = {
        "unpickled": unpickled,
        "control": sorted(set(seen)),
        "refused": {name: count[0] for name, count in counts.items()},
        "accepted": {name: count[1] for name, count in counts.items()},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
