"""Whoever uses the ring is killed or frozen, or memory is full: nothing half-written, nothing left."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from sim2or.bus import ring
from sim2or.bus.ring import Overwritten, Rings, Where
from sim2or.bus.rpc import PolicyClient
from sim2or.clock import now_ns
from sim2or.messages.envelope import Origin

sys.path.insert(0, str(Path(__file__).parent))
from ring_messages import ask, no_room, note, request


@pytest.fixture
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('s')}/p"


@pytest.fixture
def client(endpoint: str) -> Iterator[PolicyClient]:
    made = PolicyClient(endpoint, Origin("bridge"))
    yield made
    made.close()


SERVER = """
import sys
import numpy as np
from sim2or.bus.rpc import PolicyServerLoop
from sim2or.messages.action_chunk import ActionChunk

kept = []

def handler(asked):
    kept.extend(asked)
    return [
        ActionChunk(
            episode="e", tick=one.observation.tick, period_s=1 / 30, captured_ns=0,
            inference_s=0.0, artifact="a",
            actions_rad=np.array(
                [[one.observation.images[name].mean() for name in ("wrist", "room")] + 4 * [0]], np.float32
            ),
        )
        for one in asked
    ]

PolicyServerLoop(sys.argv[1], handler).run(lambda: False)
"""

WRITER = """
import sys
import numpy as np
from sim2or.bus.ring import Ring, note_of

ring = Ring()
size = 8_000_000
pictures = [np.full(size, level, np.uint8).data for level in range(1, 8)]
sys.stdout.buffer.write(note_of(ring.offer([b"topic", b"{}", pictures[0]]))[1:])
sys.stdout.flush()
number = 0
while True:
    number += 1
    ring.place([b"topic", b"{}", pictures[number % 7]], until_ns=number)
"""

CLIENT = """
import sys
import numpy as np
from sim2or.bus.rpc import PolicyClient
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyRequest

client = PolicyClient(sys.argv[1], Origin("bridge"))
while True:
    observation = Observation(
        robot="r", task="t", request="", episode="e", tick=0, captured_ns=0,
        state_rad=np.zeros(6, np.float32),
        images={name: np.zeros((200, 200, 3), np.uint8) for name in ("wrist", "room")},
    )
    client.call(PolicyRequest(artifact="a", observation=observation, deadline_ms=5000.0), deadline_s=10)
    if client.counts.ring_frames:
        print("in the ring", flush=True)
"""


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    try:
        yield started
    finally:
        started.kill()
        started.wait(10)
        assert started.stdout is not None
        started.stdout.close()


def segments(process_id: str = "[0-9]*") -> set[str]:
    """The segments that any process, or one of them, has open or mapped, seen from outside."""
    found = set()
    for path in Path("/proc").glob(process_id):
        try:
            links = [os.readlink(link) for link in (path / "fd").iterdir()]
            links += [line.rpartition(" /")[2] for line in (path / "maps").read_text().splitlines()]
        except OSError:
            continue
        found |= {link.lstrip("/") for link in links if "memfd:sim2or-ring" in link}
    return found


@pytest.mark.faults("F7")
def test_a_killed_server_gives_its_slots_back(endpoint: str, client: PolicyClient) -> None:
    """A server killed with every slot in its hands takes none with it: its successor finds them free."""
    for _ in range(3):
        with process(SERVER, endpoint):
            before = client.counts.ring_frames
            for tick in range(2 * ring.SLOTS):
                ask(client, tick, deadline_s=20)
            assert client.counts.ring_frames - before == 3 * ring.SLOTS


@pytest.mark.faults("F7")
@pytest.mark.parametrize("seed", range(8))
def test_a_sender_killed_while_it_writes_leaves_nothing_half_written(
    seed: int,
) -> None:
    """Whenever it dies, each slot either holds one whole picture or says that it holds none."""
    pause_s = random.Random(seed).uniform(0.02, 0.08)
    with process(WRITER) as writer, ExitStack() as closing:
        assert writer.stdout is not None
        packed = writer.stdout.read(36)
        where = Where.unpack(packed)
        receiver = Rings()
        assert receiver.open([ring.noted(b"topic", b"O" + packed), b"{}"]).token == where.token
        fd = os.open(where.path, os.O_RDONLY)
        closing.callback(os.close, fd)
        threading.Event().wait(pause_s)
        writer.kill()
        writer.wait(10)
        whole = 0
        for slot in range(where.slots):
            (generation,) = struct.unpack("<Q", os.pread(fd, 8, 64 + 8 * slot))
            topic = ring.noted(b"topic", note(where, slot, generation or 1, (0, 8_000_000)))
            if generation:
                picture = np.frombuffer(receiver.open([topic, b"{}"]).frames[2], np.uint8)
                assert picture.min() == picture.max() == generation % 7 + 1
                whole += 1
            else:
                with pytest.raises(Overwritten):
                    receiver.open([topic, b"{}"])
        assert whole >= 1


@pytest.mark.faults("F7")
def test_nothing_is_left_when_both_ends_are_killed(endpoint: str) -> None:
    """After SIGKILL of both no process has the segment, and it never had a name in any directory."""
    with process(SERVER, endpoint) as server, process(CLIENT, endpoint) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"in the ring\n"
        made = segments(str(client.pid))
        assert len(made) == 1
        assert made <= segments(str(server.pid))
        for one in (client, server):
            one.send_signal(signal.SIGKILL)
            one.wait(10)
        assert not made & segments()


@pytest.mark.faults("F9")
def test_a_frozen_server_costs_its_client_no_memory(endpoint: str, client: PolicyClient) -> None:
    """While it is stopped questions are refused or expire within bounds; afterwards all is well."""
    with process(SERVER, endpoint) as server:
        ask(client, 1, deadline_s=20)
        ask(client, 2)
        server.send_signal(signal.SIGSTOP)
        before_kb = _resident_kb()
        end_ns = now_ns() + int(1.5e9)
        while now_ns() < end_ns:
            client.send(request(3), deadline_s=0.05)
            client.poll()
        assert _resident_kb() - before_kb < 50_000
        server.send_signal(signal.SIGCONT)
        ask(client, 4, deadline_s=20)


def _resident_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.faults("F10")
def test_full_memory_means_plain_frames(endpoint: str) -> None:
    """A client that gets no segment asks as before; every question is answered."""
    with process(SERVER, endpoint), no_room():
        client = PolicyClient(endpoint, Origin("bridge"))
        for tick in range(5):
            ask(client, tick, deadline_s=20)
        assert (client.counts.ring_frames, client.counts.answered) == (0, 5)
        client.close()
