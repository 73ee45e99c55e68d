"""What real processes show over HTTP, against the table in ``docs/metrics.md``."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sim2or.artifacts.mirror import MirrorCounts
from sim2or.bus.jobs import Jobs, QueueFigures
from sim2or.bus.pubsub import PublisherCounts, SubscriberCounts
from sim2or.bus.receiver import ReceiverCounts
from sim2or.bus.rpc import ClientCounts, PolicyClient, RouterCounts
from sim2or.bus.server import connect, start
from sim2or.bus.upload import UploaderCounts
from sim2or.contracts.scenario import sample_scenario
from sim2or.contracts.task import load_task
from sim2or.counts import Distribution, descriptions, metric_name, subject_of
from sim2or.messages.envelope import Origin
from sim2or.messages.job import Job
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.metrics import QUEUE_GAUGES, ScrapeCounts
from sim2or.service import AttemptCounts, WorkerCounts
from sim2or.worlds.remote_robot import RemoteRobot
from sim2or_bridge.hand_over import ControlCounts
from sim2or_policy.inference import InferenceCounts
from sim2or_sim.robot_server import RobotCounts

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
SOCKET = ("endpoint", "message")


@dataclass(frozen=True)
class Counted:
    """A class of counts: where it is found and how it is labelled."""

    cls: type
    where: str
    labels: tuple[str, ...] = ()
    subject: str = ""
    gauges: tuple[str, ...] = ()

    @property
    def families(self) -> dict[str, tuple[str, tuple[str, ...], str]]:
        """Name to kind, labels and meaning of each of its metrics."""
        helps = descriptions(self.cls)
        found = {}
        for one in fields(self.cls):
            if one.name.startswith("_"):
                continue
            made = one.default_factory() if one.default_factory is not MISSING else None
            gauge = one.name in self.gauges
            kind = "histogram" if isinstance(made, Distribution) else "gauge" if gauge else "counter"
            more = (one.metadata["label"],) if isinstance(made, Counter) else ()
            name = metric_name(self.subject or subject_of(self.cls), one.name)
            found[name] = (kind, (*self.labels, *more), helps[one.name])
        return found


CATALOGUE = [
    Counted(QueueFigures, "agents", ("stage",), "jobs", QUEUE_GAUGES),
    Counted(AttemptCounts, "agents", ("stage",)),
    Counted(WorkerCounts, "agents"),
    Counted(ClientCounts, "who asks: bridge, sim", SOCKET),
    Counted(RouterCounts, "who answers: policy, robot, dataset receive", SOCKET),
    Counted(PublisherCounts, "who publishes: robot", SOCKET),
    Counted(SubscriberCounts, "who listens: bridge", SOCKET),
    Counted(UploaderCounts, "who uploads: agents with SIM2OR_UPLOAD_ENDPOINT"),
    Counted(ReceiverCounts, "dataset receive"),
    Counted(MirrorCounts, "agents and policy with SIM2OR_MIRROR"),
    Counted(InferenceCounts, "policy"),
    Counted(RobotCounts, "robot"),
    Counted(ControlCounts, "bridge"),
    Counted(ScrapeCounts, "all"),
]


def table() -> str:
    """The table of the page, from the code."""
    lines = ["| metric | kind | labels | told by | what it says |", "|---|---|---|---|---|"]
    for counted in CATALOGUE:
        for name, (kind, labels, meaning) in counted.families.items():
            shown = f"`{name}{'_total' if kind == 'counter' else ''}`"
            lines.append(f"| {shown} | {kind} | {', '.join(labels) or '–'} | {counted.where} | {meaning} |")
    return "\n".join(lines) + "\n"


def test_the_page_lists_what_the_code_counts() -> None:
    """docs/metrics.md holds the table that the code makes; SIM2OR_UPDATE_DOCS=1 writes it anew."""
    before, rest = PAGE.read_text().split(BEGIN)
    found, after = rest.split(END)
    if os.environ.get("SIM2OR_UPDATE_DOCS"):
        PAGE.write_text(before + BEGIN + table() + END + after)
        return
    assert found == table(), "run this test with SIM2OR_UPDATE_DOCS=1, then read the difference"


def test_no_counts_are_left_out() -> None:
    """Every class of counts in the code is in the table."""
    sources = [*ROOT.glob("shared/src/sim2or/**/*.py"), *ROOT.glob("services/*/src/**/*.py")]
    classes = {
        node.name
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Counts")
    }
    assert classes == {one.cls.__name__ for one in CATALOGUE} - {"QueueFigures"}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A real service process and the port of its metrics."""

    popen: subprocess.Popen[bytes]
    port: int

    def families(self) -> dict[str, Any]:
        """Its metric families of ours, by name; empty while it does not serve yet."""
        assert self.popen.poll() is None, "the process ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as response:
                text = response.read().decode()
        except (urllib.error.URLError, ConnectionError):
            return {}
        found = text_string_to_metric_families(text)
        return {family.name: family for family in found if family.name.startswith("sim2or_")}

    def check(self, *, also: tuple[type, ...]) -> None:
        """It shows all metrics of these classes and none that the page does not list, as it lists them."""
        found = self.families()
        listed = {name: row for counted in CATALOGUE for name, row in counted.families.items()}
        expected = [one for one in CATALOGUE if one.cls in (*also, ScrapeCounts)]
        missing = {name for one in expected for name in one.families} - set(found)
        assert missing <= {"sim2or_scrape_failures"}  # nothing failed
        assert set(found) <= set(listed)
        for name, family in found.items():
            kind, labels, meaning = listed[name]
            assert (family.type, family.documentation) == (kind, meaning), name
            given = {label for sample in family.samples for label in sample.labels}
            assert given <= {*labels, "service", "le"}, name


@contextmanager
def process(*command: str, **variables: str) -> Iterator[Process]:
    """Starts a service with metrics."""
    port = free_port()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SIM2OR_METRICS_PORT": str(port)} | variables
    popen = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Process(popen, port)
    finally:
        popen.terminate()
        popen.wait(timeout=10)


def value(families: dict[str, Any], name: str, **labels: str) -> float:
    """One sample's value."""
    (found,) = (
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return float(found)


def test_a_real_agent_shows_its_page(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """An agent of the evaluator shows queue, attempts and worker; a job that cannot work is counted."""
    server = start(tmp_path / "redis")
    with process(
        "sim2or_evaluator", "serve", SIM2OR_REDIS_URL=server.url, SIM2OR_RUN_DIR=str(tmp_path)
    ) as agent:
        Jobs(connect(server.url)).submit(Job(stage="evaluate", key="k", spec={"nonsense": 1}))
        eventually(
            lambda: (
                "sim2or_attempt_ended" in agent.families()
                and value(agent.families(), "sim2or_jobs_failed_total", stage="evaluate") == 1
            ),
            timeout_s=60,
        )
        found = agent.families()
        assert value(found, "sim2or_attempt_ended_total", stage="evaluate", outcome="permanent") == 1
        assert value(found, "sim2or_jobs_outstanding", stage="evaluate") == 0
        agent.check(also=(QueueFigures, AttemptCounts, WorkerCounts))
    server.stop()


def test_a_real_policy_server_shows_its_page(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """A question about a model that is not there is counted as asked and as refused."""
    endpoint = f"ipc://{tmp_path}/p"
    still = Observation(
        robot="so101",
        task="handover",
        request="",
        episode="e",
        tick=0,
        state_rad=np.zeros(6, np.float32),
        images={},
        captured_ns=0,
    )
    question = PolicyRequest(artifact="sha256:none", observation=still, deadline_ms=60_000)
    with process(
        "sim2or_policy", "serve", SIM2OR_POLICY_ENDPOINT=endpoint, SIM2OR_STORE=str(tmp_path / "store")
    ) as policy:
        client = PolicyClient(endpoint, Origin("test"))
        answer = client.call(question, deadline_s=60)
        assert isinstance(answer, PolicyError)
        client.close()
        eventually(lambda: "sim2or_inference_events" in policy.families())
        found = policy.families()
        labels = {"endpoint": "policy", "message": "policy_request", "service": "policy"}
        assert value(found, "sim2or_router_received_total", **labels) == 1
        assert value(found, "sim2or_inference_events_total", kind="refused") == 1
        policy.check(also=(RouterCounts, InferenceCounts))


def test_a_real_robot_shows_its_page(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """A robot that ticks is seen to tick, and the states it publishes to be sent."""
    endpoint = f"ipc://{tmp_path}/r"
    with process(
        "sim2or_sim", "robot", SIM2OR_ROBOT_ENDPOINT=endpoint, SIM2OR_RUN_DIR=str(tmp_path)
    ) as robot:
        arm = RemoteRobot(endpoint)
        arm.connect(timeout_s=60)
        arm.reset(sample_scenario(load_task("handover"), 0), timeout_s=20)
        arm.sense(timeout_s=5)
        eventually(lambda: value(robot.families(), "sim2or_robot_ticks_total") > 3)
        found = robot.families()
        assert value(found, "sim2or_router_received_total", endpoint="robot") == 2
        assert value(found, "sim2or_robot_tick_seconds_count") > 3
        robot.check(also=(RouterCounts, RobotCounts, PublisherCounts))
        arm.close()


def test_the_control_loop_counts_its_beats() -> None:
    """Ticks, misses, holds and periods add up over hand-overs; the pause between two is no period."""
    counts = ControlCounts()
    for began_s in (1.0, 11.0):
        counts.begin()
        began_ns = int(began_s * 1e9)
        counts.beat(ticks=1, misses=0, held=True, began_ns=began_ns, left_ns=began_ns + 4_000_000)
        later_ns = began_ns + 100_000_000
        counts.beat(ticks=3, misses=2, held=False, began_ns=later_ns, left_ns=later_ns + 6_000_000)
    assert (counts.ticks, counts.deadline_misses, counts.holds) == (8, 4, 2)
    assert counts.work_s.total == pytest.approx(2 * (0.004 + 0.006))
    assert counts.period_s.total == pytest.approx(2 * 0.1)
    assert sum(counts.period_s.counts) == 2
