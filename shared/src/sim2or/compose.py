"""The stack as its compose files describe it: read, checked against the engine, and brought up.

``docker compose`` itself does the work and shows it. What it says when it fails is long, and different in
every version; so the causes that a person can remedy are looked up in the engine afterwards, one line each.
"""

from __future__ import annotations

import errno
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim2or.containers import SERVICE, Stack, engine_address, engine_errors, state_of
from sim2or.errors import ConfigError, JobError, choices
from sim2or.supervisor import scaled

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

COMMAND_S = 60.0
WAIT_S = 600
"""How long the services may take to become healthy [s]; building and pulling images is not counted."""


@dataclass(frozen=True)
class PublishedPort:
    """A port on the host that leads to a service.

    Attributes:
        service: Whose it is.
        host: The address; empty: all.
        port: Its number.
    """

    service: str
    host: str
    port: int

    def __str__(self) -> str:
        """For people: ``127.0.0.1:3000``."""
        return f"{self.host or '0.0.0.0'}:{self.port}"


@dataclass(frozen=True)
class ComposedService:
    """A service of the compose files.

    Attributes:
        name: Its name.
        image: The image's name; empty: compose builds it and names it itself.
        built: Whether a Dockerfile of ours makes the image.
        platform: What the file asks for, for example ``linux/arm64``; empty: the engine's own.
        ports: What it publishes.
    """

    name: str
    image: str
    built: bool
    platform: str
    ports: tuple[PublishedPort, ...]


@dataclass(frozen=True)
class Composition:
    """A compose project.

    Attributes:
        project: Its name.
        services: By name.
    """

    project: str
    services: dict[str, ComposedService]


def read_composition(project: str = "") -> Composition:
    """Reads the compose files of this directory (``COMPOSE_FILE`` in ``.env`` names them).

    Args:
        project: Another name than the file's.

    Raises:
        ConfigError: There are none, they are wrong, or ``docker compose`` is missing.
    """
    asked = _compose(project, "config", "--format", "json", capture=True)
    if asked.returncode:
        lines = asked.stderr.strip().splitlines() or ["no reason given"]
        raise ConfigError(
            f"docker compose config: {lines[-1]}; run it in the repository's root, "
            "and see `docker compose config --quiet`"
        )
    return composition_of(json.loads(asked.stdout))


def composition_of(config: dict[str, Any]) -> Composition:
    """Reads what ``docker compose config --format json`` prints."""
    services = {
        name: ComposedService(
            name=name,
            image=given.get("image", ""),
            built="build" in given,
            platform=given.get("platform", ""),
            ports=tuple(
                PublishedPort(name, port.get("host_ip", ""), int(port["published"]))
                for port in given.get("ports", ())
                if str(port.get("published", "")).isdecimal()
            ),
        )
        for name, given in config["services"].items()
    }
    return Composition(config["name"], services)


def up(
    engine: DockerClient, composition: Composition, *, scale: Sequence[str] = (), only: Sequence[str] = ()
) -> None:
    """Brings the stack up and waits until every service is healthy; what ran its course well is well.

    Args:
        engine: From ``connect``.
        composition: From ``read_composition``.
        scale: ``service=count`` texts.
        only: These services and what they need; all when empty.

    Raises:
        ConfigError: A wrong count or name, an image for another processor, and what a person can remedy.
        JobError: It did not come up; a line for each service that is not well.
    """
    counts = scaled(dict.fromkeys(composition.services, 1), scale)
    for name in only:
        if name not in counts:
            raise ConfigError(f"--services: unknown service {name!r}; {choices(name, counts)}")
    refuse(wrong_architectures(engine, composition))
    options = ["--detach", "--wait", "--wait-timeout", str(WAIT_S), *(f"--scale={text}" for text in scale)]
    done = _compose(composition.project, "up", *options, *only)
    if done.returncode == 0:
        return
    refuse(missing_images(engine, composition))
    refuse(taken_ports(engine, composition))
    stack = Stack(engine, composition.project)
    if unwell := list(_unwell(stack)):
        raise JobError("\n".join(unwell))
    there = {one.labels[SERVICE] for one in stack.found()}
    missing = [name for name in only or composition.services if counts[name] and name not in there]
    if missing:  # otherwise it only waited for a service that has already done its work
        raise JobError(
            f"docker compose up ended with {done.returncode} before it made {', '.join(missing)}; "
            "its own lines above say why"
        )


def refuse(findings: Iterator[str]) -> None:
    """Raises ``ConfigError`` with all findings, a line each, when there are any."""
    if lines := list(findings):
        raise ConfigError("\n".join(lines))


def wrong_architectures(engine: DockerClient, composition: Composition) -> Iterator[str]:
    """Images that are here, but for another processor than the engine's; one line for each service."""
    with engine_errors():
        ours = str(engine.version()["Arch"])
    for service in composition.services.values():
        image = _image(engine, service.image)
        theirs = str(image.attrs["Architecture"]) if image else ours
        if theirs not in (ours, service.platform.partition("/")[2].partition("/")[0]):
            remedy = (
                "build it here: make images"
                if service.built
                else f"docker pull --platform linux/{ours} {service.image}"
            )
            yield (
                f"service {service.name}: image {service.image} is for {theirs}, "
                f"this engine runs {ours}; {remedy}"
            )


def missing_images(engine: DockerClient, composition: Composition) -> Iterator[str]:
    """Images that are not here although compose tried to build or pull them; one line for each service."""
    for service in composition.services.values():
        if service.image and _image(engine, service.image) is None:
            how = (
                "could not be built; make images says why"
                if service.built
                else f"could not be pulled; check its name and the network: docker pull {service.image}"
            )
            yield f"service {service.name}: image {service.image} is not here and {how}"


def taken_ports(engine: DockerClient, composition: Composition) -> Iterator[str]:
    """Ports that the stack publishes and somebody else has, a line each; none of an engine elsewhere."""
    if not engine_address().startswith("unix://"):
        return
    there = Stack(engine, composition.project).found()
    ours = {address for one in there for address in state_of(one.attrs).published}
    for service in composition.services.values():
        for port in service.ports:
            if str(port) not in ours and is_taken(port):
                yield (
                    f"service {port.service}: port {port} is in use; see who has it with "
                    f"`ss -ltnp 'sport = :{port.port}'` and stop that, or publish another"
                )


def is_taken(port: PublishedPort) -> bool:
    """Whether somebody listens there."""
    family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _unwell(stack: Stack) -> Iterator[str]:
    """A line for each container that does not do its work: how it is, and its last words."""
    for container in stack.found():
        state = state_of(container.attrs)
        if not state.well:
            last = container.logs(tail=1).decode(errors="replace").strip() or "it wrote nothing"
            code = "" if state.exit_code is None else f" with {state.exit_code}"
            yield (
                f"{state.name}: {state.status}{code}{f', {state.health}' if state.health else ''}: {last}; "
                f"see: sim2or logs --docker {state.service}"
            )


def _image(engine: DockerClient, name: str) -> Image | None:
    from docker.errors import ImageNotFound

    if not name:
        return None
    with engine_errors():
        try:
            return engine.images.get(name)
        except ImageNotFound:
            return None


def _compose(project: str, *arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs ``docker compose``; what it says is the user's to see unless it is captured.

    Raises:
        ConfigError: There is no ``docker compose``.
    """
    named = ["--project-name", project] if project else []
    try:
        found = subprocess.run(
            ["docker", "compose", "version"], capture_output=True, timeout=COMMAND_S, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "no `docker` command on PATH: install Docker (docs.docker.com/engine/install)"
        ) from error
    if found.returncode:
        raise ConfigError("no `docker compose` (v2): apt-get install docker-compose-plugin")
    return subprocess.run(
        ["docker", "compose", *named, *arguments],
        capture_output=capture,
        text=True,
        timeout=COMMAND_S if capture else None,
        check=False,
    )
