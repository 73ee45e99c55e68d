"""Faults around episode upload, with real processes: nothing acknowledged is lost, nothing half is visible.

What happened is read from the stores' files and from ``/proc``, never from the processes' own counters.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sim2or.artifacts.intake import StoreIntake
from sim2or.artifacts.store import Store
from sim2or.bus.receiver import Receiver
from sim2or.bus.reception import Limits
from sim2or.bus.upload import Uploader
from sim2or.errors import ConfigError
from sim2or.messages.envelope import Origin

sys.path.insert(0, str(Path(__file__).parents[2] / "shared" / "tests" / "toy"))
from sim2or_toy.bench import bench, until

MB = 1_000_000

SENDER = """
import sys
from pathlib import Path
from sim2or.artifacts.store import Store
from sim2or.bus.upload import Uploader
from sim2or.messages.envelope import Origin
uploader = Uploader(sys.argv[1], Origin("sim"), hand_over=sys.argv[4] == "files")
acknowledged = Path(sys.argv[3])
for digest in sys.argv[5:]:
    uploader.push(Store(Path(sys.argv[2])), digest)
    with acknowledged.open("a") as file:
        file.write(digest + "\\n")
"""


@dataclass
class Stand:
    """A sender's store, a receiver's store, and the processes between them."""

    root: Path
    sockets: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"ipc://{self.sockets}/u"

    @property
    def store(self) -> Store:
        return Store(self.root / "from")

    @property
    def there(self) -> Path:
        return self.root / "there"

    @property
    def acknowledged(self) -> list[str]:
        """What the sender was told to be durable."""
        path = self.root / "acknowledged"
        return path.read_text().split() if path.exists() else []

    def made(self, size: int, seed: int) -> str:
        """An artifact of one file of random bytes, in the sender's store."""
        path = self.root / f"episode-{seed}"
        path.write_bytes(np.random.default_rng(seed).bytes(size))
        return self.store.put(path, kind="episodes").digest

    def receiver(self) -> subprocess.Popen[bytes]:
        return self._start("-m", "sim2or_dataset", "receive")

    def sender(self, *digests: str, gives: str = "bytes") -> subprocess.Popen[bytes]:
        acknowledged = str(self.root / "acknowledged")
        return self._start("-c", SENDER, self.endpoint, str(self.store.root), acknowledged, gives, *digests)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "SIM2OR_UPLOAD_ENDPOINT": self.endpoint,
            "SIM2OR_RUN_DIR": str(self.root / "run"),
            "SIM2OR_STORE": str(self.there),
        }
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        self.processes.append(process)
        return process

    def written_bytes(self) -> int:
        """How much of unfinished files the receiver has."""
        found = 0
        for path in (self.there / "incoming").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                found += path.stat().st_size
        return found

    def visible(self) -> list[Path]:
        """Files that have a name in the receiver's store."""
        return [*(self.there / "objects").glob("*/*"), *(self.there / "manifests").glob("*/*")]

    def check(self, digest: str) -> None:
        """The artifact is there, bit by bit as it was made."""
        mine, theirs = (
            next(Store(root).checkout(digest).iterdir()) for root in (self.store.root, self.there)
        )
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.fixture
def stand(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Two empty stores; whatever was started is killed at the end."""
    made = Stand(tmp_path, tmp_path_factory.mktemp("s"))
    yield made
    for process in made.processes:
        process.kill()
        process.wait(timeout=10)


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had resident, by the kernel."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.faults("F9")
def test_a_frozen_receiver_stops_its_sender_at_its_credits(stand: Stand) -> None:
    """While the receiver is frozen the sender waits in bounded memory; when it thaws, the upload is done."""
    digest = stand.made(256 * MB, seed=1)
    receiver = stand.receiver()
    sender = stand.sender(digest)
    until(lambda: stand.written_bytes() > 20 * MB, "beginning of the file")
    os.kill(receiver.pid, signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        sender.wait(timeout=3)  # far longer than it takes to send the rest, and than a heartbeat
    assert stand.written_bytes() < 256 * MB
    assert peak_bytes(sender.pid) < 160 * MB
    assert stand.acknowledged == []
    os.kill(receiver.pid, signal.SIGCONT)
    assert sender.wait(timeout=60) == 0
    stand.check(digest)
    assert peak_bytes(receiver.pid) < 200 * MB


@pytest.mark.faults("F9")
@pytest.mark.parametrize("gives", ["bytes", "files"])
def test_a_killed_receiver_loses_nothing_that_it_acknowledged(stand: Stand, gives: str) -> None:
    """kill -9 again and again: what the sender was told to be stored is whole at every moment."""
    dice = random.Random(7)
    digests = [stand.made(30 * MB, seed=seed) for seed in range(8)]
    receiver = stand.receiver()
    sender = stand.sender(*digests, gives=gives)
    for kill in range(4):
        goal = dice.randint(0, 20) * MB
        until(
            lambda goal=goal, kill=kill: stand.written_bytes() >= goal and len(stand.acknowledged) >= kill,
            "progress",
        )
        receiver.kill()
        receiver.wait(timeout=10)
        for digest in stand.acknowledged:
            stand.check(digest)
        receiver = stand.receiver()
    assert sender.wait(timeout=60) == 0
    assert stand.acknowledged == digests
    for digest in digests:
        stand.check(digest)
    assert stand.written_bytes() == 0


@pytest.mark.faults("F9")
def test_a_receiver_that_comes_back_goes_on_where_it_was(stand: Stand) -> None:
    """After kill -9 the beginning of the file is not sent again: the file only grows."""
    digest = stand.made(128 * MB, seed=2)
    receiver = stand.receiver()
    sender = stand.sender(digest)
    until(lambda: stand.written_bytes() > 30 * MB, "beginning of the file")
    receiver.kill()
    receiver.wait(timeout=10)
    (part,) = (stand.there / "incoming").iterdir()
    before = part.stat()
    assert 30 * MB < before.st_size < 128 * MB
    stand.receiver()
    assert sender.wait(timeout=60) == 0
    (whole,) = (stand.there / "objects").glob("*/*")
    assert whole.stat().st_ino == before.st_ino
    stand.check(digest)


@pytest.mark.faults("F9")
def test_a_killed_sender_leaves_nothing_visible(stand: Stand) -> None:
    """kill -9 of the sender: no file, no artifact; the next sender goes on with what is there."""
    digest = stand.made(128 * MB, seed=3)
    stand.receiver()
    sender = stand.sender(digest)
    until(lambda: stand.written_bytes() > 30 * MB, "beginning of the file")
    sender.kill()
    sender.wait(timeout=10)
    assert stand.visible() == []
    with pytest.raises(ConfigError, match="no artifact"):
        Store(stand.there).checkout(digest)
    (part,) = (stand.there / "incoming").iterdir()
    before = part.stat().st_ino
    assert stand.sender(digest).wait(timeout=60) == 0
    (whole,) = (stand.there / "objects").glob("*/*")
    assert whole.stat().st_ino == before
    stand.check(digest)


@pytest.mark.faults("F9")
def test_a_job_is_done_when_its_artifact_is_at_the_receiver(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished job waits for its receiver, and is recorded when the receiver has the artifact."""
    monkeypatch.setenv("SIM2OR_UPLOAD_ENDPOINT", stand.endpoint)
    with bench(tmp_path / "run") as toy:
        toy.agent()
        job_id = toy.submit(count=3, seed=10)
        until(lambda: toy.marks("finished-"), "end of the stage")
        until(lambda: list(toy.store.digests()), "artifact in the worker's store")
        assert toy.jobs.get(job_id).state == "running"
        stand.receiver()
        record = toy.wait(job_id, "done")
        assert record.result is not None
        numbers = Store(stand.there).checkout(record.result.outputs["numbers"])
        assert {p.name: p.read_text() for p in numbers.iterdir()} == {
            "0.txt": "10",
            "1.txt": "11",
            "2.txt": "12",
        }


@pytest.mark.faults("F9", "F10")
def test_a_disk_that_fills_up_pauses_the_upload(
    stand: Stand, small_disk: Path, eventually: Callable[..., None]
) -> None:
    """Another fills the receiver's disk in the middle: the sender waits, and goes on when there is room."""
    digest = stand.made(4 * MB, seed=4)
    limits = Limits(window_bytes=256 * 1024, spare_bytes=0)
    stopped, filler = threading.Event(), small_disk / "filler"
    with closing(StoreIntake(small_disk / "store")) as intake:
        receiver = Receiver(stand.endpoint, intake, limits=limits)
        with closing(
            Uploader(stand.endpoint, Origin("sim"), chunk_bytes=64 * 1024, hand_over=False)
        ) as uploader:
            sender = threading.Thread(target=uploader.push, args=(stand.store, digest))
            sender.start()
            while receiver.counts.received_bytes < 1 * MB:
                receiver.step(0.1)
            with contextlib.suppress(OSError):
                filler.write_bytes(bytes(20 * MB))
            server = threading.Thread(target=receiver.run, args=(stopped.is_set,))
            server.start()
            eventually(lambda: receiver.counts.no_space > 0)
            assert not Store(small_disk / "store").holds(digest)
            filler.unlink()
            sender.join(30)
            stopped.set()
            server.join(10)
            assert not sender.is_alive()
    theirs = next(Store(small_disk / "store").checkout(digest).iterdir())
    assert theirs.read_bytes() == next(stand.store.checkout(digest).iterdir()).read_bytes()
