"""The network between bridge and policy is cut, slowed, torn, reordered: nothing stale ever moves the arm.

What happened is read from the robot's own command log, never from the bridge's counters.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mischief import mischief
from proxy import FaultProxy
from sim2or.bus.keys import make as make_keys
from sim2or.bus.rpc import Client, Router
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.envelope import Origin
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.rollout.episode import Episode
from sim2or.worlds.remote_robot import state_endpoint
from stand import MAX_AGE_NS, PERIOD_NS, STILL_RAD, Stand, executed, hand_over, judged, moving

CUT_S = 2.0
SEEN_S = 3.0
"""A generous bound of what must be seen within a second: the figure is printed."""


def free_port() -> int:
    """A TCP port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, FaultProxy]]:
    """One robot and one policy for all drills of this file, the policy behind a proxy."""
    port = free_port()
    stand = Stand(tmp_path_factory.mktemp("s"), f"tcp://127.0.0.1:{port}")
    stand.start_robot()
    stand.start_policy()
    with FaultProxy(("127.0.0.1", port), seed=7) as proxy:
        yield stand, proxy
    stand.close()


@dataclass
class Drill:
    """One hand-over in the middle of which something happens to the line.

    Attributes:
        episode: What the bridge recorded.
        link: What its link to the policy counted.
        at_ns: When the fault began and when it was over [ns].
    """

    episode: Episode
    link: dict[str, int]
    at_ns: list[int] = field(default_factory=list)


def drill(stand: Stand, proxy: FaultProxy, ticks: int, fault: Callable[[], object]) -> Drill:
    """Runs a hand-over through the proxy; the fault comes when the arm has moved, until it returns."""
    proxy.heal()
    begun_ns, at_ns = time.monotonic_ns(), []

    def break_it() -> None:
        moving(stand, 15, after_ns=begun_ns)
        at_ns.append(time.monotonic_ns())
        fault()
        at_ns.append(time.monotonic_ns())
        proxy.heal()

    breaker = threading.Thread(target=break_it)
    breaker.start()
    episode, _, link = hand_over(stand, ticks, policy_endpoint=f"tcp://127.0.0.1:{proxy.port}")
    breaker.join(timeout=30)
    return Drill(episode, link, at_ns)


def check_nothing_stale(stand: Stand, session: str) -> None:
    """By the robot's own log no old observation moved the arm, and it was sent and held only where it may be.

    Limits between one tick and the next are left to the drills without a broken line: a tick whose command
    is lost or late is made up for in the next, and on a busy machine that happens without any fault.
    """
    counts = judged(stand, session)
    places = [counts.get(name, 0) for name in ("outside_range", "outside_workspace", "holds_away")]
    assert (counts["stale_executed"], *places) == (0, 0, 0, 0)


def check_held_and_resumed(stand: Stand, session: str, cut_ns: int, healed_ns: int) -> None:
    """Within the age limit of the cut the arm is held where it was; after the line is whole it goes on."""
    lines = executed(stand, session)
    dark = [line for line in lines if cut_ns + MAX_AGE_NS + PERIOD_NS < line["at_ns"] < healed_ns]
    assert len(dark) > 20
    assert all(line["hold"] for line in dark)
    settled = np.array([line["measured_rad"] for line in dark[5:]])
    assert np.abs(settled - settled[0]).max() < STILL_RAD
    moved = [line["at_ns"] for line in lines if line["at_ns"] > healed_ns and not line["hold"]]
    assert moved, "the arm did not go on"
    print(f"the arm moved again {(moved[0] - healed_ns) / 1e9:.2f} s after the line was whole")


@pytest.mark.faults("F7", "F8")
@pytest.mark.parametrize("way", [None, "up", "down"], ids=["both ways", "questions", "answers"])
def test_a_cut_line_means_a_held_arm_that_goes_on_by_itself(
    line: tuple[Stand, FaultProxy], way: str | None
) -> None:
    """Dark both ways, or half open in either: held by the age limit, nothing stale, then it resumes."""
    stand, proxy = line
    done = drill(stand, proxy, 160, lambda: (proxy.cut(way), time.sleep(CUT_S)))
    check_nothing_stale(stand, done.episode.session)
    check_held_and_resumed(stand, done.episode.session, *done.at_ns)
    assert done.link["unsent"] > 0, "the bridge never noticed"


@pytest.mark.faults("F7")
def test_a_slow_and_jittery_line_moves_nothing_with_old_answers(line: tuple[Stand, FaultProxy]) -> None:
    """With 300 to 400 ms each way, answers are too old: the arm is held until the line heals."""
    stand, proxy = line
    done = drill(stand, proxy, 160, lambda: (proxy.line(delay_s=0.3, jitter_s=0.1), time.sleep(CUT_S)))
    check_nothing_stale(stand, done.episode.session)
    check_held_and_resumed(stand, done.episode.session, *done.at_ns)
    assert done.episode.chunks["too_old"] > 0


@pytest.mark.faults("F7")
@pytest.mark.parametrize("fault", ["reset", "torn", "narrow"])
def test_a_storm_of_broken_connections_moves_nothing_stale(
    line: tuple[Stand, FaultProxy], fault: str
) -> None:
    """Resets, frames that end in the middle, a line too narrow: nothing stale, and the arm goes on."""
    stand, proxy = line

    def storm() -> None:
        for number in range(10):
            if fault == "reset":
                proxy.reset()
            elif fault == "torn":
                proxy.tear(1000 + 3000 * number, "up" if number % 2 else "down")
            else:
                proxy.line(rate_bps=20_000)
            time.sleep(CUT_S / 10)

    done = drill(stand, proxy, 150, storm)
    check_nothing_stale(stand, done.episode.session)
    after = [one for one in executed(stand, done.episode.session) if one["at_ns"] > done.at_ns[1]]
    assert any(not one["hold"] for one in after), "the arm did not go on"


@pytest.mark.faults("F7", "F8")
@pytest.mark.parametrize("way", [None, "up", "down"], ids=["both ways", "questions", "answers"])
def test_a_dark_line_is_noticed_and_found_again(way: str | None) -> None:
    """The client is told "nobody there" soon after the cut, and is answered again when the line is whole."""
    router: Router[RobotRequest] = Router("tcp://127.0.0.1:*", Origin("robot"), RobotRequest)
    stopping = threading.Event()

    def answer() -> None:
        while not stopping.is_set():
            if request := router.receive(0.05):
                router.refuse(request, "busy", "answered")
        router.close()

    server = threading.Thread(target=answer)
    server.start()
    with FaultProxy(("127.0.0.1", int(router.endpoint.rpartition(":")[2]))) as proxy:
        client: Client[RobotReport | PolicyError] = Client(
            f"tcp://127.0.0.1:{proxy.port}", Origin("bridge"), RobotReport, PolicyError
        )
        question = RobotRequest(action="report")
        client.call(question, deadline_s=5)
        proxy.cut(way)
        cut_s = time.monotonic()
        while client.send(question, deadline_s=0.1) is not None:
            client.poll(0.02)
            assert time.monotonic() - cut_s < SEEN_S, "the cut was not noticed"
        print(f"cut {way or 'both ways'}: noticed after {time.monotonic() - cut_s:.2f} s")
        proxy.heal()
        client.call(question, deadline_s=10)
        client.close()
    stopping.set()
    server.join(5)


@pytest.mark.faults("F15")
@pytest.mark.parametrize("seed", [1, 2])
def test_repeated_and_overtaken_answers_move_nothing_twice(line: tuple[Stand, FaultProxy], seed: int) -> None:
    """Chunks that come twice, late or in the wrong order are refused by their stamps; the arm follows."""
    stand, proxy = line
    proxy.heal()
    with mischief(stand.policy_endpoint, ActionChunk, repeat=0.4, swap=0.3, seed=seed) as (front, between):
        begun_ns = time.monotonic_ns()
        replayer = threading.Thread(
            target=lambda: (moving(stand, 20, after_ns=begun_ns), between.replay("answer"))
        )
        replayer.start()
        episode, _, link = hand_over(stand, 100, policy_endpoint=front)
        replayer.join(timeout=30)
    assert between.counts["answers repeated"] > 2
    assert between.counts["answers played back"] > 2
    check_nothing_stale(stand, episode.session)
    moved = [one["captured_ns"] for one in executed(stand, episode.session) if not one["hold"]]
    assert len(moved) > 20
    assert moved == sorted(moved), "the arm went back to an older observation"
    print(f"seed {seed}: {dict(between.counts)}, link {dict(link)}, chunks {dict(episode.chunks)}")


@pytest.mark.faults("F15")
@pytest.mark.parametrize("seed", [1, 2])
def test_repeated_and_overtaken_commands_are_refused(line: tuple[Stand, FaultProxy], seed: int) -> None:
    """Commands that come again, or after their successor, or in the next session, are never executed."""
    stand, proxy = line
    proxy.heal()
    with mischief(stand.robot_endpoint, JointCommand, repeat=0.4, swap=0.2, seed=seed) as (front, between):
        states = Path(state_endpoint(front).removeprefix("ipc://"))
        states.symlink_to(state_endpoint(stand.robot_endpoint).removeprefix("ipc://"))
        first, _, _ = hand_over(stand, 60, robot_endpoint=front)
        begun_ns = time.monotonic_ns()
        replayer = threading.Thread(
            target=lambda: (moving(stand, 10, after_ns=begun_ns), between.replay("question"))
        )
        replayer.start()
        second, _, _ = hand_over(stand, 60, robot_endpoint=front)
        replayer.join(timeout=30)
    assert between.counts["questions played back"] > 50
    for session in (first.session, second.session):
        check_nothing_stale(stand, session)
        run = [one["seq"] for one in executed(stand, session)]
        assert run == sorted(run), "an overtaken command was executed"
    received = [one for one in stand.lines if one["line"] == "received"]
    reasons = {one["refused"] for one in received if one["at_ns"] > begun_ns}
    assert "not newer" in reasons
    assert "other session" in reasons
    print(f"seed {seed}: {dict(between.counts)}, refused for {sorted(reasons - {''})}")


@dataclass
class Namespaces:
    """Two network namespaces with a cable between them.

    Attributes:
        bridge: Name of the bridge's.
        policy: Name of the policy's.
        address: The policy's address.
    """

    bridge: str
    policy: str
    address: str

    def cut(self) -> None:
        """Takes the policy's address away: packets to it go nowhere."""
        ip("-n", self.policy, "addr", "del", f"{self.address}/30", "dev", "cable")

    def heal(self) -> None:
        """Gives the address back."""
        ip("-n", self.policy, "addr", "add", f"{self.address}/30", "dev", "cable")


def ip(*arguments: str) -> None:
    """Runs ip(8)."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """Two namespaces, on machines that let us make them."""
    number = os.getpid() % 10_000
    names = Namespaces(f"s2o-b{number}", f"s2o-p{number}", "10.201.77.2")
    try:
        for name in (names.bridge, names.policy):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names.bridge, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", names.policy)
        ip("-n", names.bridge, "addr", "add", "10.201.77.1/30", "dev", "cable")
        names.heal()
        for name in (names.bridge, names.policy):
            ip("-n", name, "link", "set", "cable", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        remove(names)
        pytest.skip(f"no network namespaces here: {error}")
    yield names
    remove(names)


def remove(names: Namespaces) -> None:
    """Removes both namespaces and the cable with them."""
    for name in (names.bridge, names.policy):
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.faults("F7")
def test_a_partition_of_two_hosts_means_a_held_arm_that_goes_on_by_itself(
    namespaces: Namespaces, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bridge and policy on two hosts of their own, encrypted: the address vanishes and comes back."""
    directory = tmp_path_factory.mktemp("s")
    keys = directory / "keys"
    make_keys(keys)
    endpoint = f"tcp://{namespaces.address}:7001"
    stand = Stand(directory, endpoint, {"SIM2OR_KEYS": str(keys)})
    stand.start_robot()
    stand.start_policy(within=("ip", "netns", "exec", namespaces.policy))
    try:
        command = [
            str(Path(__file__).with_name("bridge_drive.py")),
            str(directory),
            endpoint,
            "170",
            str(keys),
        ]
        driven = subprocess.Popen(
            ["ip", "netns", "exec", namespaces.bridge, sys.executable, *command],
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        moving(stand, 15)
        cut_ns = time.monotonic_ns()
        namespaces.cut()
        time.sleep(CUT_S)
        namespaces.heal()
        healed_ns = time.monotonic_ns()
        output, _ = driven.communicate(timeout=60)
        assert driven.returncode == 0
        told = json.loads(output)
        check_nothing_stale(stand, told["session"])
        check_held_and_resumed(stand, told["session"], cut_ns, healed_ns)
        assert told["link"]["unsent"] > 0, "the bridge never noticed"
    finally:
        stand.close()
