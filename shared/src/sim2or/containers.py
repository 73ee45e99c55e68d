"""The containers of a stack as its host sees them, through the container engine's API.

For the host only: no service has the ``docker`` package, nor an engine's socket. A stack is a compose
project; its containers are found by the labels that compose gives them.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim2or.errors import ConfigError, TransientError, choices

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
NUMBER = "com.docker.compose.container-number"
ONE_OFF = "com.docker.compose.oneoff"
"""Labels of compose. Source: compose's pkg/api/labels.go."""

SOCKET = "unix:///var/run/docker.sock"
ANSWER_S = 30.0
POLL_S = 1.0


@dataclass(frozen=True)
class ContainerState:
    """How a container is.

    Attributes:
        service: Its service in the compose file.
        number: Which of that service's containers, from 1.
        image: The image's name.
        status: The engine's word: created, running, paused, restarting, exited, dead.
        health: starting, healthy or unhealthy; empty without a health check.
        exit_code: Of its last end; None while it never ended.
        restarts: How often the engine started it again by itself.
        published: Addresses on the host that lead to it, for example ``127.0.0.1:3000``.
    """

    service: str
    number: int
    image: str
    status: str
    health: str
    exit_code: int | None
    restarts: int
    published: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people: ``sim-2``."""
        return f"{self.service}-{self.number}"

    @property
    def well(self) -> bool:
        """Whether it does its work, or has done it."""
        if self.status == "exited":
            return self.exit_code == 0
        return self.status == "running" and self.health in ("", "healthy")


@dataclass(frozen=True)
class Usage:
    """What a container uses at the moment.

    Attributes:
        state: The container.
        cpu_percent: Of one core: two busy cores are 200.
        memory_bytes: In use, without the page cache that can be given back.
        memory_limit_bytes: Its limit, or the machine's memory.
        received_bytes: From all of its networks since it started.
        sent_bytes: To all of its networks since it started.
        processes: Processes and threads.
    """

    state: ContainerState
    cpu_percent: float
    memory_bytes: int
    memory_limit_bytes: int
    received_bytes: int
    sent_bytes: int
    processes: int


@dataclass(frozen=True)
class LogLine:
    """A line that a container wrote.

    Attributes:
        time: By the engine's clock, RFC 3339 with nanoseconds, so that texts sort as times do.
        container: For example ``sim-2``.
        text: What it wrote.
    """

    time: str
    container: str
    text: str


def connect() -> DockerClient:
    """A client of the engine that ``docker`` itself would use.

    Raises:
        ConfigError: No engine answers, or the ``docker`` package is missing.
    """
    try:
        import docker
        from docker.errors import DockerException
    except ImportError as error:
        raise ConfigError(
            "--docker: no docker package here; it belongs on the host alone, where make setup installs it"
        ) from error
    address = engine_address()
    try:
        return docker.from_env(timeout=int(ANSWER_S), environment={**os.environ, "DOCKER_HOST": address})
    except DockerException as error:
        raise ConfigError(no_engine(address, str(error))) from error


def engine_address() -> str:
    """Where the engine listens: DOCKER_HOST, else the chosen context of the ``docker`` command."""
    from docker import ContextAPI

    given = os.environ.get("DOCKER_HOST", "")
    chosen = None if given else ContextAPI.get_current_context()
    return given or (str(chosen.Host) if chosen and chosen.Host else SOCKET).replace(
        "http+unix://", "unix://"
    )


def no_engine(address: str, reason: str) -> str:
    """Why no engine answers at an address, and what to do."""
    path = Path(address.removeprefix("unix://"))
    if not address.startswith("unix://"):
        remedy = "see that it runs there, and that DOCKER_HOST is right"
    elif not path.exists():
        remedy = "there is no such socket: install Docker (docs.docker.com/engine/install) and start it"
    elif not os.access(path, os.R_OK | os.W_OK):
        remedy = "this user may not use it: sudo usermod -aG docker $USER, then log in again"
    else:
        remedy = "start it: sudo systemctl start docker"
    why = reason.splitlines()[0] if reason else "no reason"
    return f"no container engine answers at {address} ({why}); {remedy}"


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """Turns what an engine refuses, or its silence, into our errors.

    Raises:
        TransientError: With the engine's own words.
    """
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except (DockerException, RequestException) as error:
        raise TransientError(f"the container engine: {error}; see `docker info`") from error


class Stack:
    """The containers of one compose project.

    Args:
        engine: From ``connect``.
        project: The project's name.
    """

    def __init__(self, engine: DockerClient, project: str) -> None:
        self._engine = engine
        self.project = project

    def found(self) -> list[Container]:
        """The project's containers, by service and number; one-off ones (``compose run``) are left out."""
        all_of_them = self._labelled(f"{PROJECT}={self.project}")
        return sorted(
            (one for one in all_of_them if one.labels.get(ONE_OFF) != "True"),
            key=lambda one: (one.labels[SERVICE], int(one.labels[NUMBER])),
        )

    def containers(self, service: str = "") -> list[Container]:
        """The project's containers, or those of one service.

        Args:
            service: Only this service's.

        Raises:
            ConfigError: There are none.
        """
        found = self.found()
        services = {str(one.labels[SERVICE]) for one in found}
        if not found:
            others = sorted({str(one.labels[PROJECT]) for one in self._labelled(PROJECT)})
            raise ConfigError(
                f"no containers of compose project {self.project!r}; projects here: "
                f"{', '.join(others) or 'none'}; start it with `sim2or up --docker`"
            )
        if service and service not in services:
            raise ConfigError(f"service {service!r} has no container; {choices(service, services)}")
        return [one for one in found if service in ("", one.labels[SERVICE])]

    def states(self, service: str = "") -> list[ContainerState]:
        """How each container is."""
        return [state_of(one.attrs) for one in self.containers(service)]

    def usage(self, service: str = "") -> list[Usage]:
        """What each running container uses; takes two seconds, as a processor's share needs two looks."""
        running = [one for one in self.containers(service) if one.status == "running"]
        with ThreadPoolExecutor(max_workers=max(1, len(running))) as pool:
            return list(pool.map(lambda one: usage_of(state_of(one.attrs), one.stats(stream=False)), running))

    def logs(self, service: str = "", *, tail: int) -> Iterator[LogLine]:
        """The last lines of each container, all in the order of time.

        Args:
            service: Only this service's.
            tail: How many lines of each.
        """
        each = [
            _lines(one, one.logs(stream=True, follow=False, timestamps=True, tail=tail))
            for one in self.containers(service)
        ]
        return heapq.merge(*each, key=lambda line: line.time)

    def follow(self, service: str = "", *, tail: int) -> Iterator[LogLine]:
        """The last lines of each container and every line from now on, also of containers that start later.

        Args:
            service: Only this service's.
            tail: How many earlier lines of each.

        Raises:
            TransientError: The engine went away.
        """
        lines: queue.SimpleQueue[LogLine | None] = queue.SimpleQueue()
        began_s = time.time()
        seen: dict[str, str] = {}

        def read(container: Container, **since: Any) -> None:
            def work() -> None:
                for line in _lines(
                    container, container.logs(stream=True, follow=True, timestamps=True, **since)
                ):
                    lines.put(line)

            _thread(work)

        starts = self._starts(service)
        for container in self.containers(service):
            read(container, tail=tail)

        def attend() -> None:
            try:
                for event in starts:
                    for container in self.found():
                        if container.id == event["id"]:
                            last = seen.get(_name(container))
                            read(container, since=int(_seconds(last) if last else began_s))
            finally:
                lines.put(None)

        _thread(attend)
        while True:
            try:
                line = lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if line is None:
                raise TransientError("the container engine tells no more; see `docker info`")
            if line.time > seen.get(line.container, ""):  # a new reader begins with what an old one has read
                seen[line.container] = line.time
                yield line

    def _labelled(self, label: str) -> list[Container]:
        with engine_errors():
            return self._engine.containers.list(all=True, ignore_removed=True, filters={"label": label})

    def _starts(self, service: str) -> Iterator[Mapping[str, Any]]:
        labels = [f"{PROJECT}={self.project}"] + ([f"{SERVICE}={service}"] if service else [])
        events: Iterator[Mapping[str, Any]] = self._engine.events(
            decode=True, filters={"type": "container", "event": "start", "label": labels}
        )
        return events


def state_of(attrs: Mapping[str, Any]) -> ContainerState:
    """Reads the engine's description of a container (GET /containers/ID/json)."""
    labels, state = attrs["Config"]["Labels"], attrs["State"]
    ended = state["Status"] in ("exited", "dead", "restarting")
    bindings = (attrs.get("NetworkSettings", {}).get("Ports") or {}).values()
    return ContainerState(
        service=labels[SERVICE],
        number=int(labels[NUMBER]),
        image=attrs["Config"]["Image"],
        status=state["Status"],
        health=health if (health := state.get("Health", {}).get("Status", "")) != "none" else "",
        exit_code=state["ExitCode"] if ended else None,
        restarts=attrs.get("RestartCount", 0),
        published=tuple(f"{one['HostIp']}:{one['HostPort']}" for each in bindings for one in each or ()),
    )


def usage_of(state: ContainerState, stats: Mapping[str, Any]) -> Usage:
    """Reads one answer of GET /containers/ID/stats.

    *Source*: the docker command's own arithmetic, cli/command/container/stats_helpers.go: the container's
    share of the machine's processor time since the look before, times the cores; memory without inactive
    file cache.
    """
    now, before = stats["cpu_stats"], stats["precpu_stats"]
    used_ns = now["cpu_usage"]["total_usage"] - before.get("cpu_usage", {}).get("total_usage", 0)
    machine_ns = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    cores = now.get("online_cpus") or len(now["cpu_usage"].get("percpu_usage") or [0])
    memory = stats["memory_stats"]
    detail = memory.get("stats", {})
    cache_bytes = detail.get("total_inactive_file", detail.get("inactive_file", 0))
    networks = (stats.get("networks") or {}).values()
    return Usage(
        state=state,
        cpu_percent=100.0 * cores * used_ns / machine_ns if machine_ns > 0 else 0.0,
        memory_bytes=max(0, memory.get("usage", 0) - cache_bytes),
        memory_limit_bytes=memory.get("limit", 0),
        received_bytes=sum(map(itemgetter("rx_bytes"), networks)),
        sent_bytes=sum(map(itemgetter("tx_bytes"), networks)),
        processes=stats.get("pids_stats", {}).get("current", 0),
    )


def split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Cuts a stream of bytes into lines; a last line needs no end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")


def _lines(container: Container, chunks: Iterable[bytes]) -> Iterator[LogLine]:
    """The lines of one container, each with the time that the engine wrote before it."""
    name = _name(container)
    for line in split_lines(chunks):
        when, _, text = line.partition(" ")
        yield LogLine(when, name, text)


def _name(container: Container) -> str:
    return f"{container.labels[SERVICE]}-{container.labels[NUMBER]}"


def _seconds(text: str) -> float:
    """The seconds since 1970 of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def _thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
