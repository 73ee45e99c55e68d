"""Disks fill up, bytes flip, files end early and writers are killed: nothing wrong is ever handed out."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from safetensors.numpy import save_file
from sim2or.artifacts.record import Record
from sim2or.artifacts.store import Store
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import connect
from sim2or.bus.server import start as start_redis
from sim2or.disk import is_full
from sim2or.errors import ConfigError, JobError, TransientError
from sim2or.messages.job import Job
from yard import Yard, until

MB = 1_000_000

PUT = """\
import sys
from pathlib import Path
from sim2or.artifacts.store import Store
print("ready", flush=True)
Store(Path(sys.argv[1])).put(Path(sys.argv[2]), kind="big")
"""


def fill(disk: Path, leave_bytes: int) -> Path:
    """Leaves only so much room on a disk; removing the file frees it."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(bytes(max(0, free - leave_bytes)))
    return ballast


def objects(store: Store) -> list[Path]:
    """Every stored file."""
    return [path for path in (store.root / "objects").rglob("*") if path.is_file()]


def damage(path: Path, how: str) -> None:
    """Alters a stored file in place, as a failing disk or a careless hand would."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        if how == "truncated":
            file.truncate(path.stat().st_size // 2)
        else:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))


@pytest.mark.faults("F10")
@pytest.mark.parametrize("full", ["work directory", "store"])
def test_a_full_disk_fails_a_job_for_now_and_it_is_done_when_there_is_room(
    yard: Yard, small_disk: Path, full: str
) -> None:
    """The failure is transient and gives the numbers, nothing unfinished is visible, and room heals it."""
    ballast = fill(small_disk, 3 * MB)
    place = {"SIM2OR_RUN_DIR": str(small_disk)} if full == "work directory" else {}
    store = Store(small_disk / "store")
    yard.agent(place | {"SIM2OR_STORE": str(store.root)})
    job_id = yard.submit(steps=3, ballast_mb=2)
    (retry,) = until(
        lambda: [event for event in yard.events(job_id) if event.kind == "job.retry"][:1], "failure"
    )
    assert retry.detail["kind"] == "transient"
    assert "No space left on device" in retry.detail["message"]
    assert "of 16.8 MB free" in retry.detail["message"]
    assert list(store.digests()) == []
    ballast.unlink()
    record = yard.wait(job_id, "done")
    assert record.result is not None
    files = {
        path.name: path.stat().st_size for path in store.checkout(record.result.outputs["steps"]).iterdir()
    }
    assert sorted(files) == ["0.txt", "1.txt", "2.txt"]
    assert min(files.values()) > 2 * MB
    assert list((store.root / "partial").iterdir()) == []


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.random.default_rng(0).random(MB))


@pytest.mark.faults("F10")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(8 * MB)),
        _hdf5,
        lambda path: save_file({"x": np.zeros(MB)}, path),
        lambda path: np.save(path, np.zeros(MB)),
    ],
    ids=["file", "hdf5", "safetensors", "numpy"],
)
def test_a_full_disk_is_recognised_whoever_writes(small_disk: Path, write: Callable[[Path], object]) -> None:
    """Python, HDF5, safetensors and numpy all say it in their own way, and each is worth another try."""
    fill(small_disk, MB)
    with pytest.raises(Exception, match=r".") as told:
        write(small_disk / "file.npy")
    assert is_full(told.value, small_disk), repr(told.value)


def submit_until_refused(jobs: Jobs, taken: list[str]) -> None:
    """Submits until Redis takes no more; keeps what it acknowledged."""
    for number in range(1000):
        job = Job(stage="drill", key=str(number), spec={"text": "x" * 2000})
        taken.append(jobs.submit(job).job_id)


@pytest.mark.faults("F10")
def test_redis_on_a_full_disk_keeps_what_it_acknowledged(small_disk: Path, redis_program: Path) -> None:
    """Without room submissions fail with a typed error; with room again, all that were taken are there."""
    server = start_redis(small_disk / "redis", server=redis_program)
    taken: list[str] = []
    ballast = fill(small_disk, 64_000)
    try:
        with pytest.raises(TransientError):
            submit_until_refused(Jobs(connect(server.url, patience_s=1)), taken)
        ballast.unlink()
        server.stop()
        server = start_redis(small_disk / "redis", server=redis_program)
        again = Jobs(connect(server.url))
        assert taken
        assert {again.get(job_id).state for job_id in taken} == {"queued"}
    finally:
        server.stop()


def add_until_refused(record: Record) -> None:
    """Adds lines until the disk takes no more."""
    for number in range(10_000):
        record.add({"number": number, "text": "x" * 500})


@pytest.mark.faults("F10")
def test_a_record_on_a_full_disk_keeps_its_whole_lines(small_disk: Path) -> None:
    """Every line that was added is read back, the one without room is cut off, and it goes on."""
    path = small_disk / "trials.jsonl"
    ballast = fill(small_disk, 64_000)
    first = Record(path)
    with pytest.raises(OSError, match="No space left"):
        add_until_refused(first)
    ballast.unlink()
    again = Record(path)
    assert again.lines == first.lines
    assert len(again.lines) > 20
    again.add({"number": -1})
    assert Record(path).lines[-1] == {"number": -1}


@pytest.mark.faults("F11")
@pytest.mark.parametrize("how", ["flipped", "truncated"])
@pytest.mark.parametrize("seen", ["never checked out", "checked out before"])
def test_a_damaged_artifact_is_refused_quarantined_and_made_again(yard: Yard, how: str, seen: str) -> None:
    """A job never gets altered bytes; it fails naming file and digests, and rerunning the stage heals it."""
    yard.agent()
    first = yard.wait(yard.submit("first"), "done")
    assert first.result is not None
    digest = first.result.outputs["steps"]
    if seen == "checked out before":
        yard.store.checkout(digest)
    entry = yard.store.manifest(digest).files[1]
    victim = next(path for path in objects(yard.store) if entry.digest.endswith(path.name))
    damage(victim, how)
    job = yard.job("second").model_copy(update={"inputs": {"before": (digest,)}})
    record = yard.wait(yard.jobs.submit(job).job_id, "failed")
    assert record.error is not None
    assert all(text in record.error.message for text in (entry.path, entry.digest, "quarantine", "rerun"))
    assert yard.lines("starts", record.job_id) == []
    assert not victim.exists()
    assert (yard.root / "store/quarantine" / victim.name).exists()
    assert not yard.store.holds(digest)
    again = yard.submit("first again")
    remade = yard.wait(again, "done")
    assert sorted(yard.files(remade)) == ["0.txt", "1.txt", "2.txt"]


@pytest.mark.faults("F11")
def test_a_truncated_episode_is_never_opened(tmp_path: Path) -> None:
    """An HDF5 file that ends early is found by its digest before any reader sees it."""
    store = Store(tmp_path / "store")
    _hdf5(tmp_path / "episode.hdf5")
    manifest = store.put(tmp_path / "episode.hdf5", kind="episodes")
    damage(objects(store)[0], "truncated")
    with pytest.raises(JobError, match=r"episode\.hdf5.*expected sha256:.*quarantine"):
        store.checkout(manifest.digest)


@pytest.mark.faults("F11")
def test_a_writer_killed_at_random_leaves_all_or_nothing(tmp_path: Path, small_disk: Path) -> None:
    """kill -9 in the middle of storing: the artifact is whole or absent, and what is unfinished is swept."""
    (small_disk / "big").mkdir()
    for number in range(3):  # on another file system, so that storing copies
        (small_disk / "big" / str(number)).write_bytes(random.Random(number).randbytes(4 * MB))
    outcomes = []
    for seed in range(12):
        store = Store(tmp_path / f"store-{seed}")
        command = [sys.executable, "-c", PUT, str(store.root), str(small_disk / "big")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(random.Random(seed).uniform(0, 0.06))
            writer.send_signal(signal.SIGKILL)
        digests = list(store.digests())
        for digest in digests:
            assert len(list(store.checkout(digest).iterdir())) == 3
        for path in objects(store):
            assert path.stat().st_size == 4 * MB
        store.sweep()
        assert list((store.root / "partial").iterdir()) == []
        outcomes.append(len(digests))
    print(f"{sum(outcomes)} of {len(outcomes)} artifacts were complete when their writer was killed")


@pytest.mark.faults("F11")
def test_sweeping_leaves_a_writer_at_work_alone(tmp_path: Path, small_disk: Path) -> None:
    """While one process stores, another sweeps again and again: the artifact is whole."""
    (small_disk / "big").write_bytes(random.Random(1).randbytes(8 * MB))
    store = Store(tmp_path / "store")
    command = [sys.executable, "-c", PUT, str(store.root), str(small_disk / "big")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        while writer.poll() is None:
            with contextlib.suppress(ConfigError):
                store.sweep()
    assert writer.returncode == 0
    (digest,) = store.digests()
    assert (store.checkout(digest) / "big").stat().st_size == 8 * MB
