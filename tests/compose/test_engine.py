"""The host's commands on a real engine, with a stack of two small containers."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from composed import HERE, SIM2OR, until
from docker import DockerClient
from sim2or.compose import Composition, read_composition, up
from sim2or.containers import LogLine, Stack
from sim2or.errors import ConfigError, JobError

PROJECT = "s2osmall"
IMAGE = os.environ.get("REDIS_IMAGE", "redis:7.2-bookworm")
NOWHERE = "localhost:1/sim2or/none:1"
FOREIGN = "s2osmall/foreign:1"

pytestmark = [pytest.mark.compose, pytest.mark.timeout(180)]


def down() -> None:
    """Removes what a test left."""
    subprocess.run(
        ["docker", "compose", "-f", "small.yaml", "down", "--volumes", "--remove-orphans", "--timeout", "1"],
        cwd=HERE,
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def small(engine: DockerClient) -> Iterator[Stack]:
    """The small stack, up."""
    down()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HERE)
        patch.setenv("COMPOSE_FILE", "small.yaml")
        up(engine, read_composition())
    yield Stack(engine, PROJECT)
    down()


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a compose project of one service, ``one``, from a description of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPOSE_FILE", "compose.yaml")

    def describe(**service: Any) -> Composition:
        text = yaml.safe_dump({"name": "s2oone", "services": {"one": service}})
        (tmp_path / "compose.yaml").write_text(text)
        return read_composition()

    yield describe
    subprocess.run(
        ["docker", "compose", "-p", "s2oone", "down", "--timeout", "1"],
        check=True,
        capture_output=True,
        timeout=60,
    )


def lines_until(lines: Iterator[LogLine], text: str, most: int = 200) -> list[LogLine]:
    """The lines up to the one that says ``text``."""
    found = list(itertools.islice(itertools.takewhile(lambda line: line.text != text, lines), most))
    assert len(found) < most, f"no {text!r} in {most} lines"
    return found


def test_up_counts_a_service_that_ended_well(small: Stack) -> None:
    """A container that has done its work and ended with 0 does not make ``up`` fail."""
    once, talker = small.states()
    assert (once.name, once.status, once.exit_code, once.well) == ("once-1", "exited", 0, True)
    assert (talker.name, talker.status, talker.health, talker.well) == (
        "talker-1",
        "running",
        "healthy",
        True,
    )


def test_logs_are_told_by_container_and_time(small: Stack) -> None:
    """The last lines of all containers come in the order of time; ``tail`` limits each."""
    lines = list(small.logs(tail=3))
    assert [line.time for line in lines] == sorted(line.time for line in lines)
    assert {line.container for line in lines} == {"once-1", "talker-1"}
    assert sum(line.container == "talker-1" for line in lines) == 3
    assert [line.text for line in lines if line.container == "once-1"] == ["done"]


def test_followed_logs_go_on_after_a_restart(small: Stack) -> None:
    """Lines come as they are written, and those of the container's next life follow by themselves."""
    followed = small.follow("talker", tail=0)
    first = next(followed)
    assert first.text.startswith("line ")
    small.containers("talker")[0].exec_run(["sh", "-c", "kill -9 -1"])
    before = lines_until(followed, "begun")
    assert next(followed).text == "line 1"
    assert all(line.container == "talker-1" for line in before)


def test_the_engine_restarts_after_a_crash_but_not_after_its_own_kill(small: Stack) -> None:
    """A crash is answered by the restart policy; a kill through the API counts as a person's wish."""

    def talker() -> Any:
        return small.containers("talker")[0]

    restarts = talker().attrs["RestartCount"]
    talker().exec_run(["sh", "-c", "kill -9 -1"])
    until(
        lambda: talker().attrs["RestartCount"] > restarts and talker().status == "running",
        "restart",
        timeout_s=20,
    )
    talker().kill()
    until(lambda: talker().status == "exited", "end", timeout_s=20)
    (killed,) = small.states("talker")
    assert (killed.exit_code, killed.well) == (137, False)
    assert talker().attrs["State"]["Restarting"] is False
    talker().start()
    until(lambda: small.states("talker")[0].well, "health after the start", timeout_s=20)


def test_usage_has_figures_of_running_containers(small: Stack) -> None:
    """Only what runs is told of, with memory, processes and a share of the processor."""
    (usage,) = small.usage()
    assert usage.state.name == "talker-1"
    assert 0 < usage.memory_bytes < usage.memory_limit_bytes
    assert usage.processes >= 2
    assert 0 <= usage.cpu_percent < 100 * (os.cpu_count() or 1)


def test_the_commands_show_the_stack(small: Stack) -> None:
    """``ps``, ``stats`` and ``logs`` print the containers of the named project."""
    for command, expected in (("ps", "healthy"), ("stats", "talker-1"), ("logs", "once-1       done")):
        done = subprocess.run(
            [*SIM2OR, command, "--docker", "--project", PROJECT],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_an_unknown_project_or_service_names_those_that_exist(small: Stack, engine: DockerClient) -> None:
    """Whoever asks for a wrong name is told the right ones and the next step."""
    with pytest.raises(ConfigError, match=r"'s2osmal'; projects here: .*s2osmall.*sim2or up --docker"):
        Stack(engine, "s2osmal").states()
    with pytest.raises(
        ConfigError, match=r"'walker' has no container; valid: once, talker \(did you mean 'talker'"
    ):
        small.states("walker")


def test_a_missing_image_is_one_line_with_the_remedy(engine: DockerClient, described: Any) -> None:
    """An image that is not here and cannot be pulled is named, with its service."""
    with pytest.raises(
        ConfigError, match=f"^service one: image {NOWHERE} is not here .*docker pull {NOWHERE}$"
    ):
        up(engine, described(image=NOWHERE))


def test_a_port_in_use_is_one_line_with_the_remedy(engine: DockerClient, described: Any) -> None:
    """The port that somebody else has is named, with its service and how to find who has it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        stack = described(image=IMAGE, command=["sleep", "60"], ports=[f"127.0.0.1:{port}:6379"])
        with pytest.raises(
            ConfigError, match=f"^service one: port 127.0.0.1:{port} is in use; .*sport = :{port}"
        ):
            up(engine, stack)


def test_a_foreign_image_is_refused_before_anything_starts(engine: DockerClient, described: Any) -> None:
    """An image for another processor is named with both architectures; nothing was started."""
    ours = engine.version()["Arch"]
    theirs = "arm64" if ours == "amd64" else "amd64"
    subprocess.run(
        ["docker", "build", "--quiet", "--platform", f"linux/{theirs}", "--tag", FOREIGN, "-"],
        input=b'FROM scratch\nCMD ["nothing"]\n',
        check=True,
        capture_output=True,
        timeout=60,
    )
    try:
        with pytest.raises(
            ConfigError, match=f"^service one: image {FOREIGN} is for {theirs}, this engine runs {ours}"
        ):
            up(engine, described(image=FOREIGN))
        assert Stack(engine, "s2oone").found() == []
    finally:
        engine.images.remove(FOREIGN)


def test_a_service_that_ends_at_once_is_told_with_its_last_words(
    engine: DockerClient, described: Any
) -> None:
    """``up`` fails with the container's exit code and what it said last."""
    stack = described(image=IMAGE, command=["sh", "-c", "echo no keys here; exit 2"])
    with pytest.raises(JobError, match=r"^one-1: exited with 2: no keys here; see: .*--docker one$"):
        up(engine, stack)


@pytest.mark.parametrize("options", [{"scale": ["tow=2"]}, {"only": ["tow"]}])
def test_a_wrong_name_is_told_the_right_ones(engine: DockerClient, described: Any, options: Any) -> None:
    """A service that is not in the compose files can neither be scaled nor be brought up."""
    with pytest.raises(ConfigError, match="unknown service 'tow'; valid: one"):
        up(engine, described(image=IMAGE), **options)
