"""Elastic workers on a real Redis: the figures that they are started by, and how they end."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from sim2or.bus.server import start
from sim2or_toy.bench import Bench, bench, until, variables


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Bench]:
    """A run directory with a bus, and nobody who works."""
    with bench(tmp_path) as made:
        yield made


def _worker(toys: Bench, *arguments: str) -> subprocess.Popen[bytes]:
    place = {"SIM2OR_REDIS_URL": toys.url, "SIM2OR_RUN_DIR": str(toys.root)}
    environment = variables(place)
    environment["PYTHONPATH"] += f":{Path(__file__).parent}"
    return subprocess.Popen([sys.executable, "-m", "toy_pod", *arguments], env=environment)


def test_a_worker_ends_when_it_is_idle(toys: Bench) -> None:
    """It does the jobs that there are, finds none for a while, and ends as something that succeeded."""
    ids = [toys.submit(key=key, count=1) for key in "abc"]
    worker = _worker(toys, "serve", "--idle-s", "1")
    for job_id in ids:
        toys.wait(job_id, "done", timeout_s=60)
    assert worker.wait(60) == 0


def test_a_worker_without_the_option_stays(toys: Bench) -> None:
    """Where no limit is given a worker waits for the next job."""
    worker = _worker(toys, "serve")
    toys.wait(toys.submit(key="a", count=1), "done", timeout_s=60)
    toys.wait(toys.submit(key="b", count=1), "done", timeout_s=60)
    assert worker.poll() is None
    worker.terminate()
    assert worker.wait(30) == 0


def test_figures_are_told_without_any_worker(tmp_path: Path) -> None:
    """The page names the outstanding jobs of every stage while nobody works, and ends at SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start(tmp_path / "redis")
    try:
        place = {"SIM2OR_REDIS_URL": server.url, "SIM2OR_METRICS_PORT": str(port)}
        process = subprocess.Popen([sys.executable, "-m", "sim2or.figures"], env=variables(place))

        def page() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        text = until(page, "page of figures")
        assert 'sim2or_jobs_outstanding{stage="collect"} 0.0' in text
        assert 'sim2or_jobs_outstanding{stage="write"} 0.0' in text
        process.terminate()
        assert process.wait(30) == 0
    finally:
        server.stop()


def test_figures_without_a_port_are_refused(tmp_path: Path) -> None:
    """Without a port there is nothing to tell: the process ends and names the setting."""
    server = start(tmp_path / "redis")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sim2or.figures"],
            env=variables({"SIM2OR_REDIS_URL": server.url, "SIM2OR_METRICS_PORT": "0"}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "SIM2OR_METRICS_PORT" in done.stdout + done.stderr
    finally:
        server.stop()
