"""The services that listen take their keys from ``SIM2OR_KEYS``, and listen to the world with them only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sim2or.bus import acl, keys
from sim2or.bus.deal import deal
from sim2or.bus.keys import Keyring
from sim2or.bus.rpc import PolicyClient
from sim2or.errors import HardwareError, TransientError
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.stages import load_table
from sim2or.worlds.remote_robot import RemoteRobot

START_S = 60.0
SERVERS = {"policy": ("sim2or_policy", "serve"), "robot": ("sim2or_sim", "robot")}


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of every service: who has them knows every server."""
    place = tmp_path_factory.mktemp("hosts") / "keys"
    keys.make(place)
    acl.write(place, load_table())
    return place


@pytest.fixture(scope="module")
def directory(master: Path) -> Path:
    """For every service a directory with what its host needs and no other's secret."""
    deal(master, master.parent / "dealt", (), load_table())
    return master.parent / "dealt"


def free_ports() -> int:
    """A port that is free, and so is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@contextmanager
def serving(name: str, endpoint: str, work: Path, directory: Path | None) -> Iterator[subprocess.Popen[str]]:
    """The real service."""
    environment = {key: value for key, value in os.environ.items() if key != "SIM2OR_KEYS"}
    environment |= {f"SIM2OR_{name.upper()}_ENDPOINT": endpoint, "SIM2OR_RUN_DIR": str(work)}
    if directory:
        environment["SIM2OR_KEYS"] = str(directory / name)
    module, command = SERVERS[name]
    process = subprocess.Popen(
        [sys.executable, "-m", module, command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_service_without_keys_does_not_listen_to_the_world(tmp_path: Path) -> None:
    """It ends with the status of a wrong setting, and its last words name the setting and the command."""
    with serving("policy", f"tcp://0.0.0.0:{free_ports()}", tmp_path, None) as process:
        assert process.wait(START_S) == 2
        assert process.stderr is not None
        said = " ".join(process.stderr.read().split())
    assert "leaves this host without encryption" in said
    assert "SIM2OR_KEYS" in said


def test_a_robot_with_keys_answers_its_bridge_only(tmp_path: Path, directory: Path, master: Path) -> None:
    """The bridge's key opens commands and states of a robot that listens to the world; others get nothing."""
    port = free_ports()
    with serving("robot", f"tcp://0.0.0.0:{port}", tmp_path, directory):
        arm = RemoteRobot(f"tcp://127.0.0.1:{port}", keys=Keyring.load(directory / "bridge", "bridge"))
        arm.connect(timeout_s=START_S)
        assert arm.spec.robot == "so101"
        arm.close()
        for ring in (None, Keyring.load(master, "sim")):
            with pytest.raises(HardwareError, match="no server"):
                RemoteRobot(f"tcp://127.0.0.1:{port}", keys=ring).connect(timeout_s=0.5)


def test_a_policy_with_keys_answers_those_who_may_ask(tmp_path: Path, directory: Path, master: Path) -> None:
    """Bridge and simulator are answered by a policy server that listens to the world; the console is not."""
    port = free_ports()
    observation = Observation(
        robot="so101",
        task="handover",
        request="Hand me the scalpel",
        episode="e",
        tick=0,
        state_rad=np.zeros(6, np.float32),
        images={},
        captured_ns=0,
    )
    question = PolicyRequest(artifact=f"sha256:{'0' * 64}", deadline_ms=5000.0, observation=observation)
    with serving("policy", f"tcp://0.0.0.0:{port}", tmp_path, directory):
        for name, deadline_s in (("sim", START_S), ("bridge", 10.0)):
            ring = Keyring.load(directory / name, name)
            client = PolicyClient(f"tcp://127.0.0.1:{port}", Origin(name), keys=ring)
            answer = client.call(question, deadline_s=deadline_s)
            assert isinstance(answer, PolicyError)
            assert "0000" in answer.detail
            client.close()
        client = PolicyClient(
            f"tcp://127.0.0.1:{port}", Origin("console"), keys=Keyring.load(master, "console")
        )
        with pytest.raises(TransientError, match="no server"):
            client.call(question, deadline_s=0.5)
        client.close()
