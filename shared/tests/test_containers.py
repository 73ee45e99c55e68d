"""Reading the engine's answers, and what is said where there is no engine; the rest is in tests/compose."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sim2or.compose import PublishedPort, composition_of, is_taken
from sim2or.containers import ContainerState, engine_address, no_engine, split_lines, state_of, usage_of

ROOT = Path(__file__).parents[2]
SOCKETS = ("docker.sock", "containerd.sock", "podman.sock", "/var/run/docker", "/run/containerd")

DESCRIBED: dict[str, Any] = {
    "RestartCount": 2,
    "State": {"Status": "running", "ExitCode": 0, "Health": {"Status": "healthy"}},
    "Config": {
        "Image": "sim2or/sim:dev",
        "Labels": {"com.docker.compose.service": "sim", "com.docker.compose.container-number": "3"},
    },
    "NetworkSettings": {
        "Ports": {"9464/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9001"}], "7601/tcp": None}
    },
}
"""The parts of the engine's description of a container that are read."""

STATE = state_of(DESCRIBED)


def command(*arguments: str, code: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """``sim2or …`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom sim2or.cli.main import app; app()", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_containers_description_is_read() -> None:
    """Name, image, status, health, restarts and published addresses are taken from the engine's JSON."""
    assert (
        ContainerState(
            service="sim",
            number=3,
            image="sim2or/sim:dev",
            status="running",
            health="healthy",
            exit_code=None,
            restarts=2,
            published=("127.0.0.1:9001",),
        )
        == STATE
    )
    assert STATE.name == "sim-3"


@pytest.mark.parametrize(
    ("state", "well"),
    [
        ({"Status": "running", "ExitCode": 0}, True),
        ({"Status": "running", "ExitCode": 0, "Health": {"Status": "none"}}, True),
        ({"Status": "running", "ExitCode": 0, "Health": {"Status": "starting"}}, False),
        ({"Status": "running", "ExitCode": 0, "Health": {"Status": "unhealthy"}}, False),
        ({"Status": "exited", "ExitCode": 0}, True),
        ({"Status": "exited", "ExitCode": 137}, False),
        ({"Status": "paused", "ExitCode": 0}, False),
        ({"Status": "created", "ExitCode": 0}, False),
        ({"Status": "restarting", "ExitCode": 1}, False),
    ],
)
def test_well_is_who_works_or_has_worked(state: dict[str, Any], well: bool) -> None:
    """A container is well when it runs and is not known to be ill, or when it ended with 0."""
    assert state_of({**DESCRIBED, "State": state}).well is well


def test_usage_is_a_share_of_the_time_between_two_looks() -> None:
    """0.5 s of a processor in 2 s of two cores is half a core's time in one second: 50 % of one core."""
    usage = usage_of(
        STATE,
        {
            "precpu_stats": {"cpu_usage": {"total_usage": 1_000_000_000}, "system_cpu_usage": 10_000_000_000},
            "cpu_stats": {
                "cpu_usage": {"total_usage": 1_500_000_000},
                "system_cpu_usage": 12_000_000_000,
                "online_cpus": 2,
            },
            "memory_stats": {"usage": 300, "limit": 1000, "stats": {"inactive_file": 100}},
            "networks": {
                "eth0": {"rx_bytes": 1, "tx_bytes": 10},
                "eth1": {"rx_bytes": 2, "tx_bytes": 20},
            },
            "pids_stats": {"current": 7},
        },
    )
    assert usage.cpu_percent == 50.0
    assert (usage.memory_bytes, usage.memory_limit_bytes) == (200, 1000)
    assert (usage.received_bytes, usage.sent_bytes, usage.processes) == (3, 30, 7)


def test_usage_without_a_first_look_is_zero() -> None:
    """The first answer of an engine has nothing to compare with: no share, and no division by zero."""
    usage = usage_of(
        STATE,
        {"precpu_stats": {}, "cpu_stats": {"cpu_usage": {"total_usage": 5}}, "memory_stats": {}},
    )
    assert (usage.cpu_percent, usage.memory_bytes, usage.received_bytes, usage.processes) == (0.0, 0, 0, 0)


def test_lines_are_cut_wherever_the_stream_was() -> None:
    """Chunks end anywhere; broken text is shown, and the last line needs no end."""
    assert list(split_lines([b"one\ntw", b"o\r\n", b"\n\xff", b"end"])) == ["one", "two", "", "\ufffdend"]


def test_a_composition_is_read() -> None:
    """Image, build, platform and published ports are taken; ranges and the engine's own choices are not."""
    found = composition_of(
        {
            "name": "sim2or",
            "services": {
                "sim": {"image": "sim2or/sim:dev", "build": {"context": "."}, "platform": "linux/arm64"},
                "grafana": {
                    "image": "grafana/grafana:1",
                    "ports": [
                        {"host_ip": "127.0.0.1", "target": 3000, "published": "3000"},
                        {"target": 9000, "published": "9000-9010"},
                        {"target": 9001},
                    ],
                },
            },
        }
    )
    sim, grafana = found.services["sim"], found.services["grafana"]
    assert found.project == "sim2or"
    assert (sim.image, sim.built, sim.platform, sim.ports) == ("sim2or/sim:dev", True, "linux/arm64", ())
    assert (grafana.built, grafana.platform) == (False, "")
    assert [str(port) for port in grafana.ports] == ["127.0.0.1:3000"]


def test_a_port_is_taken_while_somebody_listens() -> None:
    """A port is taken by whoever listens there, and free afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = PublishedPort("grafana", "127.0.0.1", other.getsockname()[1])
        assert is_taken(port)
    assert not is_taken(port)


def test_the_remedy_fits_the_reason(tmp_path: Path) -> None:
    """No socket, and an engine elsewhere, are told apart."""
    assert "install Docker" in no_engine(f"unix://{tmp_path}/docker.sock", "x")
    assert "DOCKER_HOST" in no_engine("tcp://127.0.0.1:1", "refused\nand more")
    present = tmp_path / "present.sock"
    present.touch()
    assert "systemctl start docker" in no_engine(f"unix://{present}", "")


def test_docker_host_decides_where_the_engine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """DOCKER_HOST comes before the context that ``docker`` has chosen."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.7:2376")
    assert engine_address() == "tcp://10.0.0.7:2376"


@pytest.mark.parametrize("arguments", [("ps",), ("logs",), ("stats",), ("up",)])
def test_without_an_engine_there_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Every command ends with status 2 and a line that says what to do."""
    done = command(*arguments, "--docker", DOCKER_HOST=f"unix://{tmp_path}/none.sock")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no container engine answers at unix://" in done.stderr
    assert "install Docker" in done.stderr


def test_without_the_docker_package_there_is_one_line() -> None:
    """In an image the package is missing on purpose; the commands say where they belong."""
    done = command("ps", "--docker", code="import sys; sys.modules['docker'] = None")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "belongs on the host" in done.stderr


def test_processes_have_no_stats() -> None:
    """Without ``--docker`` the command says what shows the same of processes."""
    done = command("stats")
    assert done.returncode == 2
    assert "sim2or ps --run NAME" in done.stderr


def test_nothing_mounts_an_engines_socket() -> None:
    """No file of compose/ or k8s/ names an engine's socket: whoever has that is root on the host."""
    files = sorted(path for place in ("compose", "k8s") for path in (ROOT / place).rglob("*.y*ml"))
    assert files
    for path in files:
        said = [token.value for token in yaml.scan(path.read_text()) if isinstance(token, yaml.ScalarToken)]
        assert not [text for text in said if any(socket in text for socket in SOCKETS)], path
