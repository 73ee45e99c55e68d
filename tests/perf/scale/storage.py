"""What an episode costs the store and the dataset: bytes, files, flushes, and the time of the writers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import questions
from paired import Figures, Section, paired, section
from sim2or.artifacts.manifest import Manifest
from sim2or.artifacts.store import Store, sync
from sim2or.episode import EpisodeFile, read_index
from sim2or.messages.convert import ConvertSpec
from sim2or.messages.dataset import DatasetSpec
from sim2or.messages.message import Spec
from sim2or.stage import StageResult
from sim2or.worker import StageContext
from sim2or_dataset.stage import convert, merge
from simulators import bare

BUS = Path(__file__).parents[3] / "bench" / "bus.json"
SMALL_FILES, SMALL_BYTES = 200, 4096
FLUSHES = 100
LARGE_BYTES = 64 << 20
PARTS_MERGED = 16
MERGE = DatasetSpec()

STORE_NOTES = (
    "Store.put on this machine's disk: each file hashed, linked, flushed, renamed, its directory flushed. "
    "episodes: the files of one collected artifact, written just before, so that the flush really writes; "
    "read back: checkout, every byte verified, from the page cache; small files: "
    f"{SMALL_FILES} files of {SMALL_BYTES} random bytes; flush: files of {SMALL_BYTES} bytes written and "
    "flushed one after the other, as files/s; disk: a file of "
    f"{LARGE_BYTES >> 20} MiB written and flushed."
)
SIZE_NOTES = "Per demonstration, as collected. raw: its pictures uncompressed; stored: its committed file."
DATASET_NOTES = (
    "The dataset service's stages without the bus, one thread. convert: one collected artifact to a part "
    "(h264); merge: what each further episode takes, from merging one part and "
    f"{PARTS_MERGED} times the same part; merge_mb_per_s: the same in bytes of dataset; dataset_bytes: its "
    "share of the merged dataset, videos and tables."
)
UPLOAD_NOTES = (
    "Taken over from bench/bus.json (make bench-bus): artifacts sent over tcp, written, flushed, their "
    "SHA-256 verified, acknowledged; so many producers, one receiver."
)
JOB_NOTES = "Demonstrations of one job of pipelines/handover.yaml; nothing is measured."


def measure(rounds: int, demos: int) -> list[Section]:
    """Collects some episodes once, and measures each writer ``rounds`` times, in turn."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        bare(demos, keep=root / "collected")
        episodes = root / "collected" / "episodes"
        contenders = {
            "episodes": partial(put, episodes),
            "read back": partial(read_back, episodes),
            "small files": partial(put_small, root),
            "flush": partial(flushes, root),
            "disk": partial(large, root),
        }
        store = paired("store", contenders, rounds=rounds)
        dataset = paired("dataset", {"one writer": partial(written, episodes)}, rounds=rounds)
        sizes = {"a demonstration": [size_of(episodes)]}
    return [
        section("store", STORE_NOTES, store),
        section("sizes", SIZE_NOTES, sizes),
        section("dataset", DATASET_NOTES, dataset),
        section("upload", UPLOAD_NOTES, uploads()),
        section("jobs", JOB_NOTES, {"a job": [{"demos": questions.demos_per_job()}]}),
    ]


def uploads() -> dict[str, list[Figures]]:
    """What ``make bench-bus`` measured of uploads that are acknowledged when they are on the disk."""
    sections = json.loads(BUS.read_text())["sections"]
    prefix = "episode upload, "
    return {
        name.removeprefix(prefix): [{"mb_per_s": found["median"]["ours, durable"]["MB/s"]}]
        for name, found in sections.items()
        if name.startswith(prefix)
    }


@contextmanager
def fresh_store(beside: Path) -> Iterator[Store]:
    """An empty store on the same file system."""
    with tempfile.TemporaryDirectory(dir=beside) as directory:
        yield Store(Path(directory))


def put(episodes: Path) -> Figures:
    """Stores an artifact that the store does not know."""
    with fresh_store(episodes.parent) as store:
        written = shutil.copytree(episodes, store.root / "written")
        began_s = time.monotonic()
        manifest = store.put(written, kind="episodes")
        return rates(manifest, time.monotonic() - began_s)


def read_back(episodes: Path) -> Figures:
    """Checks an artifact out, which reads and verifies it."""
    with fresh_store(episodes.parent) as store:
        manifest = store.put(episodes, kind="episodes")
        began_s = time.monotonic()
        store.checkout(manifest.digest)
        return rates(manifest, time.monotonic() - began_s)


def put_small(root: Path) -> Figures:
    """Stores an artifact of many small files."""
    with fresh_store(root) as store:
        written = small_files(store.root / "written", SMALL_FILES)
        began_s = time.monotonic()
        manifest = store.put(written, kind="small")
        return rates(manifest, time.monotonic() - began_s)


def small_files(directory: Path, count: int) -> Path:
    """Random files, which no store has."""
    directory.mkdir()
    for number in range(count):
        (directory / str(number)).write_bytes(os.urandom(SMALL_BYTES))
    return directory


def flushes(root: Path) -> Figures:
    """Files written and flushed, one after the other: what the disk itself takes."""
    with tempfile.TemporaryDirectory(dir=root) as directory:
        path, content = Path(directory), os.urandom(SMALL_BYTES)
        began_s = time.monotonic()
        for number in range(FLUSHES):
            (path / str(number)).write_bytes(content)
            sync(path / str(number))
        took_s = time.monotonic() - began_s
    return {"files_per_s": FLUSHES / took_s, "mb_per_s": FLUSHES * SMALL_BYTES / took_s / 1e6}


def large(root: Path) -> Figures:
    """One large file, written and flushed: what the disk itself takes."""
    content = memoryview(os.urandom(LARGE_BYTES))
    with tempfile.TemporaryDirectory(dir=root) as directory:
        path = Path(directory) / "large"
        began_s = time.monotonic()
        path.write_bytes(content)
        sync(path)
        took_s = time.monotonic() - began_s
    return {"files_per_s": 1 / took_s, "mb_per_s": LARGE_BYTES / took_s / 1e6}


def rates(manifest: Manifest, took_s: float) -> Figures:
    """Files and bytes per second."""
    return {"files_per_s": len(manifest.files) / took_s, "mb_per_s": manifest.size_bytes / took_s / 1e6}


def written(episodes: Path) -> Figures:
    """Converts an artifact, and merges its part once and several times."""
    with tempfile.TemporaryDirectory(dir=episodes.parent) as directory:
        root, count = Path(directory), len(read_index(episodes))
        part, convert_s = made(convert, ConvertSpec(), root / "part", {"episodes": [episodes]})
        one, one_s = made(merge, MERGE, root / "one", {"parts": [part]})
        many, many_s = made(merge, MERGE, root / "many", {"parts": [part] * PARTS_MERGED})
        more = (PARTS_MERGED - 1) * count
        return {
            "convert_per_min": 60 * count / convert_s,
            "convert_mb_per_s": tree_bytes(episodes) / convert_s / 1e6,
            "merge_per_min": 60 * more / (many_s - one_s),
            "merge_mb_per_s": (tree_bytes(many) - tree_bytes(one)) / (many_s - one_s) / 1e6,
            "dataset_bytes": (tree_bytes(many) - tree_bytes(one)) / more,
        }


def made(
    stage: Callable[[Any, StageContext], StageResult],
    spec: Spec,
    work: Path,
    inputs: Mapping[str, list[Path]],
) -> tuple[Path, float]:
    """Runs a stage alone; what it made, and how long it took [s]."""
    work.mkdir()
    digests = {role: [questions.digest(str(path)) for path in paths] for role, paths in inputs.items()}
    context = StageContext(work=work, inputs=inputs, digests=digests, report=lambda _: None)
    began_s = time.monotonic()
    result = stage(spec, context)
    return next(iter(result.outputs.values())), time.monotonic() - began_s


def size_of(episodes: Path) -> Figures:
    """What one demonstration is, on average, as it was collected."""
    entries = read_index(episodes)
    raw = 0
    for entry in entries:
        with EpisodeFile(episodes / entry.file) as file:
            raw += sum(file.images(camera).nbytes for camera in file.cameras)
    return {
        "steps": sum(entry.steps for entry in entries) / len(entries),
        "raw_bytes": raw / len(entries),
        "stored_bytes": tree_bytes(episodes) / len(entries),
    }


def tree_bytes(root: Path) -> int:
    """Size of all files in a directory."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
