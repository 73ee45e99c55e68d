"""Episode upload against gRPC streaming and Redis Streams, with 1, 4 and 16 producers.

Each measurement is a process of its own (``python upload.py CONTENDER PRODUCERS``) that forks the producers,
takes in what they send and prints its figures as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from paired import Figures, Section, paired, section
from sim2or.artifacts.intake import StoreIntake
from sim2or.artifacts.manifest import FileEntry, Manifest
from sim2or.artifacts.store import Store
from sim2or.bus.receiver import Receiver
from sim2or.bus.reception import Limits
from sim2or.bus.upload import Uploader
from sim2or.goals import Goal, at_least
from sim2or.messages.array import Buffer
from sim2or.messages.envelope import Origin

EPISODE_BYTES = 300 * 2 * 224 * 224 * 3
CHUNK_BYTES = EPISODE_BYTES // 30
PRODUCERS = (1, 4, 16)
WARM_S, WINDOW_S, START_S = 0.2, 1.2, 60.0
DURABLE_EPISODES = {1: 6, 4: 2, 16: 1}

NOTES = (
    "MB/s that the consumer took in, and CPU time of all its processes per GB. Episodes of 300 steps "
    "× 2×224×224×3 = 90.3 MB of random bytes; one consumer process; producers are processes; tcp is "
    "loopback. In every contender but the last the consumer copies each chunk into its buffer in "
    "memory, and nothing is flushed or hashed. Ours sends the product's validated messages (4 MiB "
    "chunks, byte credits, an offer and an acknowledgement per episode) from files in memory "
    "(/dev/shm); 'same host' hands the open file over beside an ipc endpoint, as the product does "
    "there by default, and the consumer copies from it. gRPC is one open stream of raw 3 MB messages "
    "per producer. Redis Streams are XADD of 3 MB to a server with appendonly everysec, and XREAD. "
    "'ours, durable' is the product over tcp onto the disk: written, flushed (fsync), its SHA-256 "
    "verified, renamed, acknowledged; MB/s of acknowledged episodes."
)


class Meter:
    """Counts what the consumer has copied."""

    def __init__(self, producers: int) -> None:
        self.bytes = 0
        self._producers = producers
        self._buffers: dict[str, memoryview] = {}
        self._lock = threading.Lock()

    def buffer(self, producer: str) -> memoryview:
        """A producer's buffer, whose pages exist already."""
        with self._lock:
            if producer not in self._buffers:
                self._buffers[producer] = memoryview(np.ones(EPISODE_BYTES, np.uint8))
            return self._buffers[producer]

    def copy(self, target: memoryview, offset: int, data: Buffer) -> None:
        """Copies a chunk to its place and counts it."""
        size = memoryview(data).nbytes
        target[offset : offset + size] = data
        self.bytes += size

    def figures(self, *pids: int) -> Figures:
        """Of a window that begins when every producer has sent something.

        Args:
            pids: The other processes whose CPU time counts.
        """
        wait(lambda: len(self._buffers) >= self._producers)
        time.sleep(WARM_S)
        before, cpu_s, began_s = self.bytes, cpu_time_s(pids), time.perf_counter()
        time.sleep(WINDOW_S)
        wait(lambda: self.bytes > before)
        took_s, copied = time.perf_counter() - began_s, self.bytes - before
        return figures(copied, took_s, cpu_time_s(pids) - cpu_s)


def figures(size: int, took_s: float, cpu_s: float) -> Figures:
    """What is told of each contender."""
    return {"MB/s": size / took_s / 1e6, "CPU s/GB": cpu_s / max(size, 1) * 1e9}


def cpu_time_s(pids: Iterable[int]) -> float:
    """CPU time of this process and of others [s]. Source: proc(5), fields 14 and 15 of ``stat``."""
    found = time.process_time()
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def episode(number: int) -> bytes:
    """One producer's random bytes."""
    words = np.random.default_rng(number).integers(0, 2**64, EPISODE_BYTES // 8, np.uint64)
    return words.tobytes()


@contextlib.contextmanager
def producing(count: int, work: Callable[[int], None]) -> Iterator[list[int]]:
    """Forks the producers; kills them at the end."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            try:
                work(number)
            finally:
                os._exit(0)
        pids.append(pid)
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def time_of(usage: resource.struct_rusage) -> float:
    """CPU time of a process that ended [s]."""
    return usage.ru_utime + usage.ru_stime


class CopyPart:
    """A file that is copied into a buffer."""

    resumed = False

    def __init__(self, entry: FileEntry, meter: Meter) -> None:
        self.entry, self.written_bytes = entry, 0
        self._meter, self._buffer = meter, meter.buffer(entry.digest)

    def write(self, data: Buffer) -> None:
        """Copies a chunk."""
        self._meter.copy(self._buffer, self.written_bytes, data)
        self.written_bytes += memoryview(data).nbytes

    def take(self, file: int) -> None:
        """Copies a whole file."""
        while self.written_bytes < self.entry.size_bytes:
            target = self._buffer[self.written_bytes : self.written_bytes + CHUNK_BYTES]
            count = os.preadv(file, [target], self.written_bytes)
            self.written_bytes += count
            self._meter.bytes += count

    def finish(self) -> None:
        """Nothing is flushed or verified."""

    def close(self) -> None:
        """Nothing is held."""


class CopyIntake:
    """Takes everything, and forgets it."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def holds(self, digest: str) -> bool:
        """Nothing is here, so that every episode comes again."""
        return False

    def lacking(self, entry: FileEntry) -> int | None:
        """All of it."""
        return entry.size_bytes

    def open_part(self, entry: FileEntry) -> CopyPart:
        """Begins a file."""
        return CopyPart(entry, self._meter)

    def keep(self, manifest: Manifest) -> None:
        """The artifact is forgotten."""

    def free_bytes(self) -> int:
        """Always enough."""
        return 2**60


@contextlib.contextmanager
def serving(receiver: Receiver) -> Iterator[None]:
    """Runs a receiver in a thread."""
    stopped = threading.Event()
    thread = threading.Thread(target=receiver.run, args=(stopped.is_set,))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def stored(root: Path, number: int, count: int = 1) -> tuple[Store, list[str]]:
    """A producer's own store with its episodes."""
    store, digests = Store(root / f"producer-{number}"), []
    for index in range(count):
        path = store.root / "episode"
        path.write_bytes(episode(1000 * number + index))
        digests.append(store.put(path, kind="episodes").digest)
        path.unlink()
    return store, digests


def ours(road: str, producers: int, root: Path, *, hand_over: bool = False) -> Figures:
    """Our upload; the consumer copies into memory."""
    meter = Meter(producers)
    endpoint = f"ipc://{root}/u" if road == "ipc" else f"tcp://127.0.0.1:{free_port()}"

    def produce(number: int) -> None:
        store, (digest,) = stored(root, number)
        uploader = Uploader(endpoint, Origin("sim"), hand_over=hand_over)
        while True:
            uploader.push(store, digest)

    with producing(producers, produce) as pids, serving(Receiver(endpoint, CopyIntake(meter))):
        return meter.figures(*pids)


def durable(producers: int, root: Path) -> Figures:
    """Our upload as the product does it: on the disk, flushed, verified."""
    endpoint, episodes = f"tcp://127.0.0.1:{free_port()}", DURABLE_EPISODES[producers]
    go = root / "go"

    def produce(number: int) -> None:
        store, digests = stored(root, number, episodes)
        (root / f"ready-{number}").touch()
        wait(go.exists)
        uploader = Uploader(endpoint, Origin("sim"))
        for digest in digests:
            uploader.push(store, digest)

    disk = Path(tempfile.mkdtemp(prefix="upload-"))
    try:
        with contextlib.closing(StoreIntake(disk)) as intake, producing(producers, produce) as pids:
            receiver = Receiver(endpoint, intake, limits=Limits(spare_bytes=0))
            with serving(receiver):
                wait(lambda: len(list(root.glob("ready-*"))) == producers)
                began_s, cpu_s = time.perf_counter(), cpu_time_s(pids)
                go.touch()
                used_s = sum(time_of(os.wait4(pid, 0)[2]) for pid in pids)
                took_s = time.perf_counter() - began_s
            assert receiver.counts.stored == producers * episodes
        return figures(producers * episodes * EPISODE_BYTES, took_s, time.process_time() + used_s - cpu_s)
    finally:
        shutil.rmtree(disk)


def grpc_stream(producers: int, root: Path) -> Figures:
    """One client stream of raw bytes per producer."""
    import grpc

    meter, port = Meter(producers), free_port()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

    def produce(number: int) -> None:
        whole = episode(number)
        chunks = [whole[at : at + CHUNK_BYTES] for at in range(0, EPISODE_BYTES, CHUNK_BYTES)]
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
        metadata = [("producer", str(number))]
        channel.stream_unary("/episode/Push")(itertools.cycle(chunks), metadata=metadata, wait_for_ready=True)

    def consume(chunks: Iterator[bytes], context: Any) -> bytes:
        producer = dict(context.invocation_metadata())["producer"]
        target, offset = meter.buffer(str(producer)), 0
        for chunk in chunks:
            meter.copy(target, offset, chunk)
            offset = (offset + len(chunk)) % EPISODE_BYTES
        return b""

    with producing(producers, produce) as pids:
        server = grpc.server(ThreadPoolExecutor(producers + 1), options=options)
        handler = grpc.stream_unary_rpc_method_handler(consume)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("episode", {"Push": handler}),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        found = meter.figures(*pids)
    server.stop(None)
    return found


def redis_streams(producers: int, root: Path) -> Figures:
    """XADD by the producers, XREAD by the consumer; the server's append-only file is synced every second."""
    from redis import Redis
    from sim2or.bus.server import find_server

    meter, port = Meter(producers), free_port()
    disk = Path(tempfile.mkdtemp(prefix="redis-"))
    command = [
        str(find_server()),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(disk),
        "--save",
        "",
    ]
    command += ["--appendonly", "yes", "--appendfsync", "everysec"]

    def client() -> Redis:
        return Redis(port=port, socket_timeout=START_S)

    def produce(number: int) -> None:
        whole, redis = episode(number), client()
        wait(partial(answers, redis))
        for at in itertools.cycle(range(0, EPISODE_BYTES, CHUNK_BYTES)):
            redis.xadd("episodes", {"p": number, "at": at, "data": whole[at : at + CHUNK_BYTES]})

    def consume() -> None:
        redis, last = client(), b"0-0"
        while True:
            for _, entries in redis.xread({"episodes": last}, count=4, block=1000):  # type: ignore[union-attr]
                for _, fields in entries:
                    meter.copy(meter.buffer(fields[b"p"].decode()), int(fields[b"at"]), fields[b"data"])
                last = entries[-1][0]

    with producing(producers, produce) as pids:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait(partial(answers, client()))
            threading.Thread(target=consume, daemon=True).start()
            return meter.figures(server.pid, *pids)
        finally:
            server.kill()
            server.wait()
            shutil.rmtree(disk)


def answers(redis: Any) -> bool:
    """Whether a Redis is up."""
    with contextlib.suppress(Exception):
        return bool(redis.ping())
    return False


def wait(condition: Callable[[], object]) -> None:
    """Waits until something holds, with a deadline."""
    end_s = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > end_s:
            raise RuntimeError(f"not within {START_S:g} s")
        time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CONTENDERS: Mapping[str, Callable[[int, Path], Figures]] = {
    "ours, tcp": partial(ours, "tcp"),
    "ours, ipc": partial(ours, "ipc"),
    "ours, same host": partial(ours, "ipc", hand_over=True),
    "gRPC stream": grpc_stream,
    "Redis Streams": redis_streams,
    "ours, durable": durable,
}


def goals(producers: int, found: Mapping[str, Figures]) -> list[Goal]:
    """What was to be reached, over tcp as gRPC and Redis are, and as the product does it on one host."""
    rate = {name: values["MB/s"] for name, values in found.items()}
    limits = {"gRPC stream": 3, "Redis Streams": 20}
    return [
        at_least(
            f"upload, {producers} producers: {mine} / {theirs}", rate[f"ours, {mine}"] / rate[theirs], limit
        )
        for mine in ("tcp", "same host")
        for theirs, limit in limits.items()
    ]


def one(contender: str, producers: int) -> Figures:
    """One measurement, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), contender, str(producers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=2 * START_S, check=True)
    found: Figures = json.loads(done.stdout)
    return found


def measure(rounds: int) -> list[Section]:
    """Every contender with 1, 4 and 16 producers."""
    sections = []
    for producers in PRODUCERS:
        name = f"episode upload, {producers} producer{'s' if producers > 1 else ''}"
        contenders = {contender: partial(one, contender, producers) for contender in CONTENDERS}
        results = paired(name, contenders, rounds=rounds)
        sections.append(section(name, NOTES, results, goals=partial(goals, producers)))
    return sections


def main() -> None:
    """``upload.py CONTENDER PRODUCERS``: one measurement."""
    contender, producers = sys.argv[1], int(sys.argv[2])
    root = Path(tempfile.mkdtemp(prefix="up-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        print(json.dumps(CONTENDERS[contender](producers, root)), flush=True)
    finally:
        shutil.rmtree(root)
    os._exit(0)


if __name__ == "__main__":
    main()
