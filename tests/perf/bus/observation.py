"""The observation round trip: two camera images, joints and a request to a policy server, 50 actions back.

Every contender is a server process and a client process of its own, started for each round, ended after it::

    python observation.py server NAME ADDRESS        python observation.py client NAME ADDRESS
"""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import paired
from numpy.typing import NDArray
from sim2or.goals import Goal, at_least, at_most

HEIGHT_PX, WIDTH_PX, JOINTS, STEPS = 480, 640, 6, 50
CAMERAS = ("wrist", "room")
TEXT = "Hand me the scalpel"
OBSERVATIONS = 16
WARM_UP = 50
MEASURE_S = 1.5
START_S = 60.0
STRIDE_PX = 16

OURS = ("sim2or tcp", "sim2or ipc", "sim2or ipc with ring")
BARE = "sim2or ipc with ring, Router alone"
LEROBOT, WEBSOCKETS, MEMCPY = "LeRobot async inference (gRPC)", "websockets + msgpack", "memcpy"
SLOW_MEMCPY = "memcpy, one a millisecond"
PAUSE_S = 0.001

Ask = Callable[[int], NDArray[Any]]

NOTES = (
    f"One question in flight, closed loop, {OBSERVATIONS} rotating observations of two "
    f"{HEIGHT_PX}x{WIDTH_PX}x3 uint8 images, {JOINTS} joints and a text (1.84 MB); the answer is "
    f"float32[{STEPS}, {JOINTS}]. Each round starts a server and a client process, warms up {WARM_UP} trips, "
    f"measures {MEASURE_S:g} s. A trip begins before the message is made, ends with an array of actions. "
    "Servers infer nothing: they read every 16th pixel and answer zeros. sim2or: PolicyClient and "
    "PolicyServerLoop as shipped; every message is validated at both ends (types, ranges, dtype, shape, "
    "size, finite numbers, envelope); Router alone is the same without the thread that keeps a server "
    "answering while its handler works. LeRobot 0.6.1: its own PolicyServer and RobotClient code over "
    "loopback tcp, only the network's prediction replaced, inference_latency=0; it unpickles and "
    "validates nothing. websockets + msgpack as openpi does it over loopback tcp: arrays as raw bytes, no "
    "compression, no validation. memcpy: the images copied once into one buffer that stays; one a "
    "millisecond: with a pause after each, as a round trip has. All on one host."
)


def measure(rounds: int) -> list[paired.Section]:
    """Runs every contender in turn and judges the goals by the medians of p50."""
    contenders: dict[str, paired.Round] = {
        name: partial(_processes, name) for name in (*OURS, BARE, LEROBOT, WEBSOCKETS)
    }
    contenders |= {name: partial(_client, name, "") for name in (MEMCPY, SLOW_MEMCPY)}
    results = paired.paired("observation", contenders, rounds=rounds)
    return [paired.section("observation round trip", NOTES, results, _goals)]


def _goals(figures: Mapping[str, paired.Figures]) -> Sequence[Goal]:
    tcp, _, ring = (figures[name]["p50_ms"] for name in OURS)
    lerobot, copy = figures[LEROBOT]["p50_ms"], figures[MEMCPY]["p50_ms"]
    return [
        at_least("observation: LeRobot p50 / ours over tcp", round(lerobot / tcp, 2), 20),
        at_least("observation: LeRobot p50 / ours with the ring", round(lerobot / ring, 2), 40),
        at_most("observation: ours with the ring p50 / one memcpy", round(ring / copy, 2), 2.5),
    ]


def _processes(name: str) -> paired.Figures:
    """One round: a server, a client that measures, and nothing left of either."""
    with tempfile.TemporaryDirectory(prefix="s2o-") as directory:
        address = f"ipc://{directory}/p" if "ipc" in name else f"127.0.0.1:{_free_port()}"
        server = subprocess.Popen(
            [sys.executable, __file__, "server", name, address],
            cwd=directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return _client(name, address, directory)
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(5)
            server.kill()
            server.wait()


def _client(name: str, address: str, directory: str = ".") -> paired.Figures:
    done = subprocess.run(
        [sys.executable, __file__, "client", name, address],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=2 * START_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: the client ended with {done.returncode}:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _observations() -> list[dict[str, NDArray[Any]]]:
    random = np.random.default_rng(0)
    shape = (HEIGHT_PX, WIDTH_PX, 3)
    return [
        {camera: random.integers(0, 256, shape, np.uint8) for camera in CAMERAS} for _ in range(OBSERVATIONS)
    ]


def _states() -> NDArray[Any]:
    return np.random.default_rng(1).normal(size=(OBSERVATIONS, JOINTS)).astype(np.float32)


def _touch(images: Mapping[str, NDArray[Any]]) -> int:
    """Reads every 16th pixel in both directions, so that an image must really be there."""
    return sum(int(image[::STRIDE_PX, ::STRIDE_PX].sum()) for image in images.values())


def _timed(ask: Ask, *, pause_s: float = 0.0) -> dict[str, float]:
    """Asks one question after the other and checks each answer's shape; pauses are not part of a trip."""
    for number in range(WARM_UP):
        ask(number)
    took_s: list[float] = []
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < MEASURE_S:
        if pause_s:
            time.sleep(pause_s)
        before_s = time.perf_counter()
        actions = ask(WARM_UP + len(took_s))
        took_s.append(time.perf_counter() - before_s)
        assert actions.shape[-1] == JOINTS or actions.nbytes == HEIGHT_PX * WIDTH_PX * 3 * len(CAMERAS)
    total_s = time.perf_counter() - started_s
    return {
        "p50_ms": float(np.percentile(took_s, 50)) * 1e3,
        "p99_ms": float(np.percentile(took_s, 99)) * 1e3,
        "trips_per_s": len(took_s) / total_s,
    }


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    yield stop


def _endpoint(address: str) -> str:
    return address if "://" in address else f"tcp://{address}"


def serve_ours(address: str, *, ring: bool, bare: bool = False) -> None:
    """The product's server with a handler that answers zeros; ``bare``: without the handler's own thread."""
    from sim2or.bus.rpc import PolicyServerLoop, Router
    from sim2or.messages.action_chunk import ActionChunk
    from sim2or.messages.envelope import Origin
    from sim2or.messages.policy_request import PolicyRequest

    def answer(request: PolicyRequest) -> ActionChunk:
        seen = request.observation
        _touch(seen.images)
        return ActionChunk(
            episode=seen.episode,
            tick=seen.tick,
            actions_rad=np.zeros((STEPS, JOINTS), np.float32),
            period_s=1 / 30,
            captured_ns=seen.captured_ns,
            inference_s=0.0,
            artifact=request.artifact,
        )

    if bare:
        router = Router(_endpoint(address), Origin("policy"), PolicyRequest, ring=ring)
        with _until_signal() as stop:
            while not stop.is_set():
                if question := router.receive(0.1):
                    router.answer(question, answer(question.message))
        return
    with _until_signal() as stop:
        loop = PolicyServerLoop(
            _endpoint(address), lambda requests: [answer(one) for one in requests], ring=ring
        )
        loop.run(stop.is_set)


def ask_ours(address: str, *, ring: bool) -> dict[str, float]:
    """The product's client; making the message is part of the trip, because that validates it."""
    from sim2or.bus.rpc import PolicyClient
    from sim2or.clock import now_ns
    from sim2or.messages.action_chunk import ActionChunk
    from sim2or.messages.envelope import Origin
    from sim2or.messages.observation import Observation
    from sim2or.messages.policy_request import PolicyRequest

    images, states = _observations(), _states()
    client = PolicyClient(_endpoint(address), Origin("bench"), ring=ring)

    def ask(number: int) -> NDArray[Any]:
        observation = Observation(
            robot="so101",
            task="handover",
            request=TEXT,
            episode="bench",
            tick=number,
            state_rad=states[number % OBSERVATIONS],
            images=images[number % OBSERVATIONS],
            captured_ns=now_ns(),
        )
        request = PolicyRequest(artifact="sha256:0", observation=observation, deadline_ms=START_S * 1000)
        answer = client.call(request, deadline_s=START_S)
        assert isinstance(answer, ActionChunk), answer
        return answer.actions_rad

    figures = _timed(ask)
    placed = client.counts.ring_frames
    assert placed >= len(CAMERAS) * WARM_UP if ring else placed == 0, client.counts
    client.close()
    return figures


def serve_lerobot(address: str) -> None:
    """LeRobot's own server; only the network's prediction is replaced."""
    from concurrent import futures

    import grpc
    import torch
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot.transport import services_pb2_grpc

    class ZerosServer(PolicyServer):
        def _predict_action_chunk(self, observation_t: Any) -> list[Any]:
            raw = observation_t.get_observation()
            _touch({camera: raw[camera] for camera in CAMERAS})
            zeros = list(torch.zeros(STEPS, JOINTS))
            chunk: list[Any] = self._time_action_chunk(
                observation_t.get_timestamp(), zeros, observation_t.get_timestep()
            )
            return chunk

    host, _, port = address.rpartition(":")
    servicer = ZerosServer(PolicyServerConfig(host=host, port=int(port), inference_latency=0.0))
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    with _until_signal() as stop:
        server.start()
        stop.wait()
        server.stop(0)


def ask_lerobot(address: str) -> dict[str, float]:
    """LeRobot's own client code: observations leave in the control thread, actions arrive in another."""
    import grpc
    import torch
    from lerobot.async_inference.helpers import TimedObservation
    from lerobot.async_inference.robot_client import RobotClient
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import grpc_channel_options

    class Asker(RobotClient):
        """The client without a robot: what arrives goes to a queue of ours."""

        def __init__(self) -> None:
            self.channel = grpc.insecure_channel(address, grpc_channel_options(initial_backoff="0.0333s"))
            self.stub = services_pb2_grpc.AsyncInferenceStub(self.channel)
            self.shutdown_event, self.must_go = threading.Event(), threading.Event()
            self.start_barrier = threading.Barrier(2)
            self.action_chunk_size = -1
            self.config = type("Config", (), {"client_device": "cpu", "aggregate_fn": None})
            self.arrived: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

        def _aggregate_action_queues(self, incoming_actions: list[Any], aggregate_fn: Any = None) -> None:
            self.arrived.put(incoming_actions)

    images, states = _observations(), _states()
    client = Asker()
    client.stub.Ready(services_pb2.Empty(), wait_for_ready=True, timeout=START_S)
    threading.Thread(target=client.receive_actions, daemon=True).start()
    client.start_barrier.wait()

    def ask(number: int) -> NDArray[Any]:
        turn = number % OBSERVATIONS
        joints = {f"joint_{index}.pos": float(value) for index, value in enumerate(states[turn])}
        raw = {**joints, **images[turn], "task": TEXT}
        observation = TimedObservation(timestamp=time.time(), timestep=number, observation=raw, must_go=True)
        assert client.send_observation(observation)
        actions = client.arrived.get(timeout=START_S)
        return torch.stack([action.get_action() for action in actions]).numpy()

    return _timed(ask)


def _pack_array(value: Any) -> Any:
    """How openpi's msgpack_numpy writes an array."""
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    return value


def _unpack_array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(
            buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=tuple(value[b"shape"])
        )
    return value


def serve_websockets(address: str) -> None:
    """openpi's server: websockets and msgpack, arrays as raw bytes, no compression."""
    import asyncio

    import msgpack
    from websockets.asyncio.server import ServerConnection, serve

    async def handle(connection: ServerConnection) -> None:
        async for content in connection:
            assert isinstance(content, bytes)
            observation = msgpack.unpackb(content, object_hook=_unpack_array)
            _touch(observation["images"])
            answer = {"actions": np.zeros((STEPS, JOINTS), np.float32)}
            await connection.send(msgpack.packb(answer, default=_pack_array))

    async def run() -> None:
        host, _, port = address.rpartition(":")
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        async with serve(handle, host, int(port), compression=None, max_size=None):
            await stopped.wait()

    asyncio.run(run())


def ask_websockets(address: str) -> dict[str, float]:
    """openpi's client: blocking, one packed dictionary a question."""
    import msgpack
    from websockets.sync.client import connect

    images, states = _observations(), _states()
    _wait_for(address)
    with connect(f"ws://{address}", compression=None, max_size=None) as connection:

        def ask(number: int) -> NDArray[Any]:
            turn = number % OBSERVATIONS
            observation = {"images": images[turn], "state": states[turn], "prompt": TEXT}
            connection.send(msgpack.packb(observation, default=_pack_array))
            answer = connection.recv(timeout=START_S)
            assert isinstance(answer, bytes)
            actions: NDArray[Any] = msgpack.unpackb(answer, object_hook=_unpack_array)["actions"]
            return actions

        return _timed(ask)


def copy_once(*, pause_s: float = 0.0) -> dict[str, float]:
    """The limit: the images copied once, into memory that is there already.

    Without a pause all sources stay in a large cache; at the pace of a round trip they do not.
    """
    sources = [np.stack([images[camera] for camera in CAMERAS]) for images in _observations()]
    target = np.zeros_like(sources[0])

    def ask(number: int) -> NDArray[Any]:
        np.copyto(target, sources[number % OBSERVATIONS])
        return target

    return _timed(ask, pause_s=pause_s)


def _wait_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens at {address} after {START_S:g} s")


SERVERS: dict[str, Callable[[str], None]] = {
    OURS[0]: partial(serve_ours, ring=False),
    OURS[1]: partial(serve_ours, ring=False),
    OURS[2]: partial(serve_ours, ring=True),
    BARE: partial(serve_ours, ring=True, bare=True),
    LEROBOT: serve_lerobot,
    WEBSOCKETS: serve_websockets,
}
CLIENTS: dict[str, Callable[[str], dict[str, float]]] = {
    OURS[0]: partial(ask_ours, ring=False),
    OURS[1]: partial(ask_ours, ring=False),
    OURS[2]: partial(ask_ours, ring=True),
    BARE: partial(ask_ours, ring=True),
    LEROBOT: ask_lerobot,
    WEBSOCKETS: ask_websockets,
    MEMCPY: lambda _: copy_once(),
    SLOW_MEMCPY: lambda _: copy_once(pause_s=PAUSE_S),
}

if __name__ == "__main__":
    role, chosen, where = sys.argv[1:]
    if role == "server":
        SERVERS[chosen](where)
    else:
        print(json.dumps(CLIENTS[chosen](where)))
