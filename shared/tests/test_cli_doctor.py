"""The doctor looks for what the services really use, knows its checks, and says how to mend what is not."""

from __future__ import annotations

import json
import os
import pty
import resource
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from sim2or.cli.check import Check, ask, numbers
from sim2or.cli.doctor import CHECKS, GL_LIBRARIES, PURPOSES, checks, needed_for, purposes_of
from sim2or.cli.main import app
from sim2or.cli.robot_check import devices
from sim2or.errors import ConfigError
from typer.testing import CliRunner

NOBODY = 65534


def check(name: str) -> Check:
    """What the doctor says about one thing."""
    return next(checks([name]))


def need(*command: str) -> None:
    """A program must answer; without it tests skip on a laptop and fail in CI, if that has an engine."""
    if not ask(*command).ok:
        expected = os.environ.get("CI") and not os.environ.get("SIM2OR_NO_ENGINE")
        (pytest.fail if expected else pytest.skip)(f"no `{' '.join(command)}`")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that leads to one empty directory."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def program(directory: Path, name: str, script: str) -> None:
    """Puts a program of somebody else's into a directory."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def raises_limits() -> bool:
    """Whether root may raise limits here: CAP_SYS_RESOURCE, bit 24 of the effective capabilities."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")
    )
    return bool(int(line.split()[1], 16) >> 24 & 1)


def as_nobody(name: str, **limits: int) -> Check:
    """What the doctor says to an ordinary user without any group, under these limits."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    for limit, value in limits.items():
        _, most = resource.getrlimit(getattr(resource, f"RLIMIT_{limit.upper()}"))
        if most != resource.RLIM_INFINITY and not 0 <= value <= most and not raises_limits():
            pytest.skip(f"this machine grants nobody a higher {limit} than {most}")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for limit, value in limits.items():
                resource.setrlimit(getattr(resource, f"RLIMIT_{limit.upper()}"), (value, value))
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writer, json.dumps(asdict(check(name))).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return Check(**json.loads(text))


@pytest.fixture
def terminal() -> Iterator[str]:
    """A real character device of a terminal."""
    leader, follower = pty.openpty()
    yield os.ttyname(follower)
    os.close(leader)
    os.close(follower)


def test_an_unknown_check_is_refused() -> None:
    """A misspelt name cannot pass for a healthy machine."""
    with pytest.raises(ConfigError, match=r"'graphic'.*valid: architecture, cameras.*'graphics'"):
        checks(["disk", "graphic"])


def test_an_unknown_purpose_is_refused() -> None:
    """A misspelt purpose names the valid ones."""
    with pytest.raises(ConfigError, match=r"'dmo'; valid: compose, demo, gpu, isaaclab, k8s, robot .*'demo'"):
        needed_for("dmo")


def test_only_the_named_checks_run() -> None:
    """Names choose checks; without any, all of them run, each under its own name."""
    assert [check.name for check in checks(["python"])] == ["python"]
    assert [check.name for check in checks()] == list(CHECKS)


def test_every_check_serves_a_purpose() -> None:
    """No check is looked at for nothing, and no purpose names a check that there is not."""
    assert {name for names in PURPOSES.values() for name in names} == set(CHECKS)
    assert purposes_of("gpu-runtime") == ["gpu"]


def test_graphics_means_what_the_simulator_loads() -> None:
    """The doctor tries the very libraries that the simulator tries, in its order."""
    gl = pytest.importorskip("sim2or_sim.backends.mujoco.gl")
    assert tuple(gl._LIBRARIES.values()) == GL_LIBRARIES
    loads = any(gl.loads(name) for name in gl._LIBRARIES)
    assert check("graphics").ok == loads


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2.26.1-4", (2, 26, 1, 4)), ("v1.32.4-dispatcher", (1, 32, 4)), ("580.95.05", (580, 95, 5)), ("", ())],
)
def test_versions_are_read_by_their_numbers(text: str, expected: tuple[int, ...]) -> None:
    """A version counts by its leading numbers, whatever a distribution appends."""
    assert numbers(text) == expected


def test_without_docker_containers_are_missing_and_the_demo_is_not(bare: Path) -> None:
    """A PATH without docker: one line each for whoever wants containers, a remark for everybody else."""
    for name in ("engine", "compose"):
        assert not check(name).ok
        assert "docs.docker.com/engine/install" in check(name).text
    assert check("engine-disk").text == "needs the engine"

    wanted = CliRunner().invoke(app, ["doctor", "--for", "compose"])
    assert wanted.exit_code == 2
    assert "missing  engine: no `docker` command on PATH" in wanted.output

    asked = CliRunner().invoke(app, ["doctor"])
    assert "–        engine: only for compose, gpu, robot: no `docker`" in asked.output
    assert asked.exit_code == (0 if all(one.ok for one in checks(PURPOSES["demo"])) else 2)


def test_names_decide_alone() -> None:
    """A check that is asked for by name must be well; a name and a purpose together are refused."""
    assert CliRunner().invoke(app, ["doctor", "python"]).exit_code == 0
    both = CliRunner().invoke(app, ["doctor", "python", "--for", "demo"])
    assert both.exit_code == 2


def test_an_engine_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker without an engine: the line says where nobody answered, and what to do."""
    need("docker", "--version")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    said = check("engine")
    assert not said.ok
    assert "nobody.sock" in said.text
    assert "systemctl start docker, or set DOCKER_HOST" in said.text


def test_an_old_compose_is_told(bare: Path) -> None:
    """A compose that cannot read our files is missing, with the version that can."""
    program(bare, "docker", "echo 2.20.3")
    said = check("compose")
    assert (said.ok, said.text) == (False, "2.20.3 (2.24.4 or newer is needed)")


def test_a_program_that_never_answers_is_not_waited_for(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor gives up on a program in time, and says so."""
    program(bare, "docker", "exec /bin/sleep 60")
    monkeypatch.setattr("sim2or.cli.check.ANSWER_S", 0.2)
    said = check("engine")
    assert "no answer within 0.2 s" in said.text


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A compose file that publishes a port which somebody else has: the socket that has it."""
    need("docker", "compose", "version")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        (tmp_path / "compose.yaml").write_text(
            f'name: doctor\nservices: {{grafana: {{image: "x:1", ports: ["127.0.0.1:{port}:3000"]}}}}\n'
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("COMPOSE_FILE", raising=False)
        yield holder


def test_a_taken_port_is_told(published: socket.socket) -> None:
    """A port that we would publish and somebody else has is missing, with its number and both ways out."""
    port = published.getsockname()[1]
    said = check("ports")
    assert not said.ok
    assert f"127.0.0.1:{port} in use" in said.text
    assert f"sport = :{port}" in said.text
    assert "SIM2OR_GRAFANA_PORT=" in said.text

    published.close()
    assert check("ports") == Check("ports", True, f"127.0.0.1:{port}: free or ours")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk of one megabyte the demo has no room."""
    if os.geteuid() != 0 or not ask("mount", "-t", "tmpfs", "-o", "size=1m", "tiny", str(tmp_path)).ok:
        pytest.skip("only root can mount a tiny disk")
    try:
        monkeypatch.chdir(tmp_path)
        said = check("disk")
        assert (said.ok, said.text) == (False, "0 GB free here; 5 GB are needed")
    finally:
        monkeypatch.undo()
        assert ask("umount", str(tmp_path)).ok


@pytest.mark.parametrize(
    ("script", "ok", "text"),
    [
        ("echo 'NVIDIA GB10, 580.95.05, [N/A]'", True, "NVIDIA GB10 580.95.05 [N/A]"),
        ("echo 'NVIDIA L40S, 570.10, 46068 MiB'", False, "CUDA 13 needs driver 580 or newer: update it"),
        ("echo 'Driver/library version mismatch' >&2; exit 18", False, "mismatch; load the driver: reboot"),
    ],
)
def test_a_gpu_is_told_by_its_driver(bare: Path, script: str, ok: bool, text: str) -> None:
    """What nvidia-smi says decides: a new driver is well, an old or broken one has its remedy."""
    program(bare, "nvidia-smi", script)
    said = check("gpu")
    assert said.ok == ok
    assert text in said.text


def test_an_engine_without_a_way_to_the_gpu(bare: Path) -> None:
    """An engine that knows no nvidia runtime names the toolkit; one that does is well."""
    said = '{"ServerVersion":"28.0","OSType":"linux","Architecture":"aarch64","Runtimes":{"runc":{}%s}}'
    program(bare, "docker", f"echo '{said % ''}'")
    assert "nvidia-container-toolkit" in check("gpu-runtime").text
    program(bare, "docker", f"echo '{said % ',"nvidia":{}'}'")
    assert check("gpu-runtime") == Check("gpu-runtime", True, "runtime nvidia")
    assert check("engine").text == "28.0, linux/aarch64"


def test_no_serial_port_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is plugged in, the line names the directory and the variable."""
    monkeypatch.delenv("SIM2OR_SERIAL", raising=False)
    said = devices("serial", ("SIM2OR_SERIAL",), tmp_path, "dialout")
    assert (said.ok, "SIM2OR_SERIAL=" in said.text, str(tmp_path) in said.text) == (False, True, True)


def test_a_serial_port_is_told_by_its_lasting_name(
    tmp_path: Path, terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that can be used is shown with the device behind its name; a file is no device."""
    monkeypatch.delenv("SIM2OR_SERIAL", raising=False)
    link = tmp_path / "usb-arm"
    link.symlink_to(terminal)
    said = devices("serial", ("SIM2OR_SERIAL",), tmp_path, "dialout")
    assert said == Check("serial", True, f"{link} ({Path(terminal).name})")

    monkeypatch.setenv("SIM2OR_SERIAL", str(tmp_path / "usb-leg"))
    assert "No such file or directory" in check("serial").text
    (tmp_path / "usb-leg").touch()
    assert "is no character device" in check("serial").text


def test_both_cameras_are_needed(terminal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One camera is not enough where the robot has two."""
    monkeypatch.setenv("SIM2OR_CAMERA_WRIST", terminal)
    monkeypatch.delenv("SIM2OR_CAMERA_ROOM", raising=False)
    said = check("cameras")
    assert (said.ok, said.text) == (False, "SIM2OR_CAMERA_ROOM is not set")


def test_a_device_of_others_is_told(terminal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right the line names the group and both remedies, on the host and in compose."""
    Path(terminal).chmod(0o600)
    monkeypatch.setenv("SIM2OR_SERIAL", terminal)
    said = as_nobody("serial")
    assert not said.ok
    assert "usermod -aG dialout" in said.text
    assert f"SIM2OR_DIALOUT_GID={os.stat(terminal).st_gid}" in said.text


def test_no_real_time_class_is_told() -> None:
    """An ordinary user without a limit has no real-time class, and is told which file gives one."""
    said = as_nobody("realtime", rtprio=0)
    assert not said.ok
    assert "/etc/security/limits.d/sim2or.conf" in said.text


def test_the_limits_of_the_robot_overlay_are_enough() -> None:
    """An ordinary user with the overlay's limits has a real-time class; with less memory to lock, not."""
    assert "bytes of memory may be locked" in as_nobody("realtime", rtprio=49, memlock=65536).text
    assert as_nobody("realtime", rtprio=49, memlock=resource.RLIM_INFINITY).ok


def test_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kubectl without a cluster: what it said, and where to look."""
    need("kubectl", "version", "--client")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert check("kubectl").ok
    said = check("cluster")
    assert not said.ok
    assert "KUBECONFIG" in said.text


def test_isaac_lab_has_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where it is missing the doctor names the command that makes it; where it answers, its versions."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))
    missing = check("isaaclab")
    assert (missing.ok, "run `make setup-isaac`" in missing.text) == (False, True)
    (tmp_path / ".venv-isaac" / "bin").mkdir(parents=True)
    program(tmp_path / ".venv-isaac" / "bin", "python", "echo 3.0.0 1.6.1 1.17.0")
    assert check("isaaclab") == Check("isaaclab", True, "3.0.0, newton 1.6.1, warp 1.17.0")
    program(tmp_path / ".venv-isaac" / "bin", "python", "echo 'no package isaaclab' >&2; exit 1")
    assert "no package isaaclab; run `make setup-isaac`" in check("isaaclab").text
