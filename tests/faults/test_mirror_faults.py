"""Faults on the way to the mirror, with a real S3 server and real processes: nothing half is ever visible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "shared" / "tests" / "toy"))
from proxy import FaultProxy
from sim2or.artifacts.mirror import Mirror
from sim2or.artifacts.store import Store, manifest_name
from sim2or.errors import ConfigError, TransientError
from sim2or.worker import failure_of
from sim2or_toy.bench import until
from sim2or_toy.object_server import BUCKET, ObjectServer, object_server

KB, MB = 1_000, 1_000_000

MOVE = """
import sys
from pathlib import Path
from sim2or.artifacts.mirror import Mirror
from sim2or.artifacts.store import Store
way, url, root, digest = sys.argv[1:]
mirror = Mirror(url)
getattr(mirror, way)(Store(Path(root)), digest)
print(mirror.counts.sent_bytes, mirror.counts.received_bytes)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    """An S3 server."""
    with object_server() as running:
        yield running


@dataclass
class Line:
    """Two hosts, a bucket, and the line to it.

    Attributes:
        proxy: The line.
        here: The store of one host.
        there: The store of the other.
        url: The mirror.
    """

    proxy: FaultProxy
    server: ObjectServer
    root: Path
    url: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def here(self) -> Store:
        return Store(self.root / "here")

    @property
    def there(self) -> Store:
        return Store(self.root / "there")

    def made(self, **files: bytes) -> str:
        """Stores an artifact on one host."""
        (self.root / "made").mkdir()
        for name, data in files.items():
            (self.root / "made" / name).write_bytes(data)
        return self.here.put(self.root / "made", kind="thing").digest

    def move(self, way: str, store: Store, digest: str) -> subprocess.Popen[str]:
        """Pushes or fetches in a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-c", MOVE, way, self.url, str(store.root), digest],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def objects(self) -> list[str]:
        """The files that are in the bucket."""
        return self.server.names(f"{self.root.name}/objects/")

    def told(self, process: subprocess.Popen[str]) -> list[int]:
        """How many bytes a process sent and received, when it has ended well."""
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return [int(number) for number in out.split()]


@pytest.fixture
def line(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A line to the S3 server."""
    with FaultProxy(upstream=("127.0.0.1", server.port), seed=1) as proxy:
        for name, value in server.through(proxy.port).items():
            monkeypatch.setenv(name, value)
        line = Line(proxy, server, tmp_path, f"s3://{BUCKET}/{tmp_path.name}")
        yield line
        for process in line.processes:
            process.kill()
            process.wait()


@pytest.mark.faults("F8")
def test_a_silent_server_is_given_up(line: Line) -> None:
    """A server that takes connections and says nothing costs a transient failure that names it, both ways."""
    digest = line.made(x=b"1")
    Mirror(line.url).push(line.here, digest)
    other = line.here.put(line.root / "made" / "x", kind="other").digest
    line.proxy.cut()
    mirror = Mirror(line.url, patience_s=1.0)
    said = (
        rf"http://127\.0\.0\.1:{line.proxy.port}.*(no answer in time|nothing came forward for 1 s).* reached"
    )
    with pytest.raises(TransientError, match=said):
        mirror.push(line.here, other)
    with pytest.raises(TransientError, match=said):
        mirror.fetch(line.there, digest)
    assert list(line.there.digests()) == []
    line.proxy.heal()
    mirror.fetch(line.there, digest)
    assert line.there.holds(digest)


@pytest.mark.faults("F8")
def test_a_line_that_heals_in_time_is_gone_on_with(line: Line) -> None:
    """Within its patience a push waits for a dark line, and completes when it is whole again."""
    digest = line.made(x=os.urandom(3 * MB))
    line.proxy.cut()
    process = line.move("push", line.here, digest)
    until(lambda: line.proxy.counts.open, "connection")
    line.proxy.heal()
    assert line.told(process)[0] == 3 * MB


@pytest.mark.faults("F8")
def test_a_connection_that_breaks_is_made_again(line: Line) -> None:
    """A connection that ends in the middle of a file, there or back, costs that connection only."""
    data = os.urandom(20 * MB)
    digest = line.made(x=data)
    line.proxy.tear(7 * MB, "up")
    Mirror(line.url).push(line.here, digest)
    line.proxy.heal()
    line.proxy.tear(7 * MB, "down")
    mirror = Mirror(line.url)
    mirror.fetch(line.there, digest)
    assert (line.there.checkout(digest) / "x").read_bytes() == data
    assert mirror.counts.corrupt == 0
    assert line.proxy.counts.connections > 2


@pytest.mark.faults("F11")
def test_a_killed_sender_leaves_nothing_visible(line: Line) -> None:
    """kill -9 in the middle of a push: no artifact, though files are there; the next sends only others."""
    small = {f"s{number}": os.urandom(100 * KB) for number in range(8)}
    digest = line.made(large=os.urandom(30 * MB), **small)
    line.proxy.line("up", rate_bps=1 * MB)
    process = line.move("push", line.here, digest)
    until(lambda: len(line.objects()) >= 4, "some files in the bucket")
    process.kill()
    process.wait()
    assert not line.server.names(f"{line.root.name}/{manifest_name(digest)}")
    with pytest.raises(ConfigError, match="no artifact"):
        Mirror(line.url).fetch(line.there, digest)
    there = len(line.objects())
    assert there < 9
    line.proxy.heal()
    sent = line.told(line.move("push", line.here, digest))[0]
    assert 30 * MB <= sent <= 30 * MB + (8 - there) * 100 * KB
    Mirror(line.url).fetch(line.there, digest)
    assert line.there.checkout(digest).is_dir()


@pytest.mark.faults("F11")
def test_a_killed_receiver_leaves_nothing_visible(line: Line) -> None:
    """kill -9 in the middle of a fetch: no artifact, leftovers are swept, the next fetches only the rest."""
    small = {f"s{number}": os.urandom(100 * KB) for number in range(8)}
    digest = line.made(large=os.urandom(30 * MB), **small)
    Mirror(line.url).push(line.here, digest)
    line.proxy.line("down", rate_bps=1 * MB)
    process = line.move("fetch", line.there, digest)
    objects = line.there.root / "objects"
    until(lambda: len(list(objects.glob("*/*"))) >= 4, "some files in the store")
    process.kill()
    process.wait()
    assert list(line.there.digests()) == []
    there = len(list(objects.glob("*/*")))
    assert there < 9
    assert line.there.sweep() == 1
    line.proxy.heal()
    received = line.told(line.move("fetch", line.there, digest))[1]
    assert received == 30 * MB + (8 - there) * 100 * KB
    assert line.there.checkout(digest).is_dir()


@pytest.mark.faults("F10")
def test_a_full_disk_is_worth_another_try(line: Line, small_disk: Path) -> None:
    """What does not fit fails as a full disk does, leaves nothing, and comes when there is room."""
    digest = line.made(x=os.urandom(12 * MB))
    Mirror(line.url).push(line.here, digest)
    store, filler = Store(small_disk / "store"), small_disk / "filler"
    filler.write_bytes(bytes(10 * MB))
    with pytest.raises(OSError, match="No space left") as caught:
        Mirror(line.url).fetch(store, digest)
    assert failure_of(caught.value, small_disk)["kind"] == "transient"
    assert not store.holds(digest)
    assert list((store.root / "partial").iterdir()) == []
    filler.unlink()
    Mirror(line.url).fetch(store, digest)
    assert store.holds(digest)
