"""Hosts that have nothing in common but a bus and a mirror: each its own store, with a real S3 server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sim2or.bus.server import start

sys.path.insert(0, str(Path(__file__).parents[2] / "shared" / "tests" / "toy"))
from sim2or.artifacts.store import Store
from sim2or_toy.bench import variables
from sim2or_toy.object_server import BUCKET, object_server

PIPELINE = """\
name: toy
stages:
  - stage: write
    shards: 2
    with: {count: 6}
  - stage: join
    inputs: {numbers: write}
"""
SIM2OR = [sys.executable, "-c", "from sim2or.cli.main import app; app()"]


@dataclass
class Place:
    """A bus, a mirror, and hosts that are directories.

    Attributes:
        root: Where the hosts' directories are.
        environment: What all hosts are told.
    """

    root: Path
    environment: Mapping[str, str]

    def told(self, host: str) -> dict[str, str]:
        """What the processes of a host are told."""
        own = {
            "SIM2OR_STORE": str(self.root / host / "store"),
            "SIM2OR_RUN_DIR": str(self.root / host / "run"),
        }
        return {**self.environment, **own}

    def store(self, host: str) -> Store:
        """The store of a host, as it is on its disk."""
        return Store(self.root / host / "store")

    @contextmanager
    def agent(self, host: str) -> Iterator[subprocess.Popen[bytes]]:
        """An agent of the toy service on a host."""
        (self.root / host).mkdir(exist_ok=True)
        with (self.root / host / "agent.log").open("wb") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "sim2or_toy"], env=self.told(host), stdout=log, stderr=log
            )
        try:
            yield agent
        finally:
            agent.terminate()
            agent.wait(timeout=30)

    def command(self, host: str, *words: str, status: int = 0) -> str:
        """Runs ``sim2or`` on a host and returns what it printed."""
        (self.root / host).mkdir(exist_ok=True)
        done = subprocess.run(
            [*SIM2OR, *words],
            cwd=self.root / host,
            env=self.told(host),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def run(self, host: str, *words: str) -> dict[str, Any]:
        """Runs the pipeline on a host, with the agents of others; returns the run's record."""
        (self.root / host).mkdir(exist_ok=True)
        (self.root / host / "toy.yaml").write_text(PIPELINE)
        self.command(host, "run", "toy.yaml", "--no-services", *words)
        record: dict[str, Any] = json.loads((self.root / host / "runs" / "toy" / "run.json").read_text())
        return record


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A bus and a mirror."""
    redis = start(tmp_path / "redis")
    with object_server() as server:
        told = {"SIM2OR_REDIS_URL": redis.url, "SIM2OR_MIRROR": f"s3://{BUCKET}/run", "OMP_NUM_THREADS": "1"}
        yield Place(tmp_path, variables({**server.variables, **told}))
    redis.stop()


def test_a_run_goes_from_host_to_host(place: Place) -> None:
    """Jobs of one run on hosts that come and go: inputs are fetched, what is done is not done again."""
    with place.agent("first"):
        made = place.run("desk", "--until", "write")
    shutil.rmtree(place.root / "first")
    with place.agent("second"):
        run = place.run("desk")
    outputs = [job["outputs"]["numbers"] for job in run["stages"]["write"]["jobs"]]
    assert outputs == [job["outputs"]["numbers"] for job in made["stages"]["write"]["jobs"]]
    (joined,) = run["stages"]["join"]["jobs"]
    assert joined["summary"] == {"sum": 15}
    assert all(map(place.store("second").holds, outputs))
    assert not any(map(place.store("desk").holds, outputs))

    total = joined["outputs"]["report"]
    lineage = place.command("desk", "lineage", total[:19])
    assert [line.split()[:3] for line in lineage.splitlines()] == [
        ["sum", total[:19], "1"],
        *(["numbers:", "numbers", digest[:19]] for digest in outputs),
    ]
    place.command("desk", "store", "pull", total)
    assert (place.store("desk").checkout(total) / "sum.txt").read_text() == "15"


def test_who_lacks_the_mirror_is_told(place: Place) -> None:
    """On a host without the mirror, what others made is not there, and the message says how it would be."""
    with place.agent("first"):
        made = place.run("desk", "--until", "write")
    digest = made["stages"]["write"]["jobs"][0]["outputs"]["numbers"]
    alone = Place(place.root, {**place.environment, "SIM2OR_MIRROR": ""})
    told = alone.command("alone", "lineage", digest, status=2)
    assert "SIM2OR_MIRROR" in told
    told = alone.command("alone", "store", "pull", digest, status=2)
    assert "set SIM2OR_MIRROR" in told


def test_a_service_does_not_start_with_a_wrong_mirror(place: Place) -> None:
    """A bucket that does not exist ends an agent at once, before it takes a job, with one line."""
    environment = {**place.told("first"), "SIM2OR_MIRROR": "s3://nowhere/run"}
    done = subprocess.run(
        [sys.executable, "-m", "sim2or_bridge", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "SIM2OR_MIRROR=s3://nowhere/run" in done.stderr
    assert "make the bucket" in done.stderr
    assert "Traceback" not in done.stderr
