"""What containers need: an engine, compose, room for images, free ports, a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sim2or.cli.check import Answer, Check, Checks, ask, numbers
from sim2or.errors import ConfigError

MIN_COMPOSE = (2, 24, 4)
"""Lowest compose whose files may say ``!reset``. Source: Compose specification, merge, reset value."""

IMAGES_GB = 20
"""Images and build cache of all services. Measured after some rebuilds: 10 GB of images, 15 GB of cache."""

MIN_DRIVER = 580
"""Lowest NVIDIA driver for CUDA 13. Source: CUDA 13.0 release notes, table of minimum drivers."""

INSTALL = "install Docker: docs.docker.com/engine/install"
TOOLKIT = (
    "install nvidia-container-toolkit, then: nvidia-ctk runtime configure --runtime=docker, restart Docker"
)
NEEDS_ENGINE = "needs the engine"


def _engine() -> Check:
    info, problem = _info()
    if info is None:
        return Check("engine", False, problem)
    return Check("engine", True, f"{info['ServerVersion']}, {info['OSType']}/{info['Architecture']}")


def _compose() -> Check:
    answer = ask("docker", "compose", "version", "--short")
    if not answer.ok:
        return Check(
            "compose", False, f"no `docker compose`: apt-get install docker-compose-plugin, or {INSTALL}"
        )
    lowest = ".".join(map(str, MIN_COMPOSE))
    return Check("compose", numbers(answer.out) >= MIN_COMPOSE, f"{answer.out} ({lowest} or newer is needed)")


def _engine_disk() -> Check:
    info, _ = _info()
    if info is None:
        return Check("engine-disk", False, NEEDS_ENGINE)
    root = Path(info["DockerRootDir"])
    try:
        free_gb = shutil.disk_usage(root).free / 1e9
    except OSError:
        return Check("engine-disk", True, f"{root} is not on this machine: not looked at")
    text = f"{free_gb:.0f} GB free for images in {root}; {IMAGES_GB} GB are needed"
    ok = free_gb >= IMAGES_GB
    return Check("engine-disk", ok, text if ok else f"{text}: docker system prune, or a larger disk")


def _ports() -> Check:
    from sim2or.compose import is_taken, read_composition

    try:
        composition = read_composition()
    except ConfigError as error:
        return Check("ports", False, str(error))
    ports = [port for service in composition.services.values() for port in service.ports]
    taken = [port for port in ports if is_taken(port) and not _ours(port.port, composition.project)]
    if not taken:
        free = ", ".join(map(str, ports))
        return Check("ports", True, f"{free}: free or ours" if free else "the compose files publish none")
    first = taken[0]
    return Check(
        "ports",
        False,
        f"{', '.join(map(str, taken))} in use; see who has it: ss -ltnp 'sport = :{first.port}'; stop that, "
        f"or publish another: SIM2OR_{first.service.upper()}_PORT=",
    )


def _ours(port: int, project: str) -> bool:
    """Whether a container of our own stack publishes a port."""
    label = "label=com.docker.compose.project"
    return bool(
        ask("docker", "ps", "-q", "--filter", f"publish={port}", "--filter", f"{label}={project}").out
    )


def _gpu() -> Check:
    answer = ask("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if not answer.found:
        return Check("gpu", False, f"no nvidia-smi on PATH: install NVIDIA's driver, {MIN_DRIVER} or newer")
    if not answer.ok or not answer.out:
        return Check(
            "gpu", False, f"nvidia-smi: {answer.last}; load the driver: reboot after an update of it"
        )
    rows = [[part.strip() for part in line.split(",")] for line in answer.out.splitlines()]
    seen = "; ".join(" ".join(row) for row in rows)
    new = all(numbers(row[1]) >= (MIN_DRIVER,) for row in rows)
    return Check(
        "gpu", new, seen if new else f"{seen}; CUDA 13 needs driver {MIN_DRIVER} or newer: update it"
    )


def _gpu_runtime() -> Check:
    info, _ = _info()
    if info is None:
        return Check("gpu-runtime", False, NEEDS_ENGINE)
    hook = shutil.which("nvidia-container-runtime-hook")
    found = "runtime nvidia" if "nvidia" in info["Runtimes"] else hook
    return Check("gpu-runtime", found is not None, found or f"the engine has no way to a GPU: {TOOLKIT}")


def _info() -> tuple[dict[str, Any] | None, str]:
    """What the engine says about itself, or why there is none."""
    answer = ask("docker", "info", "--format", "{{json .}}")
    info: dict[str, Any] = json.loads(answer.out) if answer.out.startswith("{") else {}
    if info.get("ServerVersion"):
        return info, ""
    return None, _no_engine(answer, [str(said) for said in info.get("ServerErrors") or ()])


def _no_engine(answer: Answer, errors: list[str]) -> str:
    if not answer.found:
        return f"no `docker` command on PATH: {INSTALL}"
    said = errors[0] if errors else answer.last
    if "permission denied" in said:
        return "you may not use the engine: sudo usermod -aG docker $USER, and log in again"
    return f"no engine answers ({said}): sudo systemctl start docker, or set DOCKER_HOST"


CHECKS: Checks = {
    "engine": _engine,
    "compose": _compose,
    "engine-disk": _engine_disk,
    "ports": _ports,
    "gpu": _gpu,
    "gpu-runtime": _gpu_runtime,
}
