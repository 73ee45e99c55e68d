"""Settings of a process, read from the environment (``SIM2OR_…``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sim2or.errors import ConfigError

RESULT_VARIABLES = {
    "policy": ("SIM2OR_POLICY_BACKEND", "SIM2OR_POLICY_DELAY_MS"),
    "sim-isaaclab": tuple(f"SIM2OR_ISAAC_{name}" for name in ("DEVICE", "ITERATIONS", "PHYSICS", "RENDERER")),
}
"""Service to the variables that change what it answers; they are part of a result key."""


class Settings(BaseSettings):
    """Where a service finds the others.

    Attributes:
        redis_url: The bus, for example ``unix:///tmp/s2o-x/redis.sock`` or ``redis://host:6379/0``.
        run_dir: Directory of this run: logs, work directories, private Redis, report.
        store: Root of the artifact store; ``<run_dir>/store`` when empty.
        policy_endpoint: ZeroMQ endpoint of the policy server.
        robot_endpoint: ZeroMQ endpoint of the robot process.
        upload_endpoint: Where workers send artifacts before they report them; empty: the store is shared.
        mirror: Where hosts without a disk in common share artifacts: ``s3://BUCKET/PREFIX``; empty: nowhere.
        lease_s: How long a job stays with a worker that is not heard of [s].
        grace_s: How long a child may take to unwind after SIGTERM [s].
        stall_s: A job that tells no progress for so long hangs: it is ended and tried again [s]; 0: never. It
            covers everything between two reports: reading the inputs, importing code, storing the outputs.
        group_s: How long processes that train together wait for one that is silent, before all end [s].
        keys: Directory of CURVE keys and Redis passwords (``make keys``); needed for what leaves this host.
        plugins: Comma-separated Python modules that offer further ``STAGES`` and ``SERVICES``.
        metrics_port: Where this process shows its metrics over HTTP; 0: nowhere.
        metrics_host: The address it listens on; plain text, so loopback unless the network is private.
        fetch: How a person gets a run's files from here, ``{path}`` stands for it; empty: they are here.
    """

    model_config = SettingsConfigDict(env_prefix="SIM2OR_", frozen=True, extra="ignore")

    redis_url: str = ""
    run_dir: Path = Path("runs/default")
    store: Path | None = None
    policy_endpoint: str = ""
    robot_endpoint: str = ""
    upload_endpoint: str = ""
    mirror: str = ""
    lease_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    grace_s: Annotated[float, Field(gt=0, le=600)] = 3.0
    stall_s: Annotated[float, Field(ge=0, le=86400)] = 0.0
    group_s: Annotated[float, Field(gt=0, le=86400)] = 600.0
    keys: Path | None = None
    plugins: str = ""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    metrics_host: str = "127.0.0.1"
    fetch: str = ""

    @property
    def store_root(self) -> Path:
        """Root of the artifact store."""
        return self.store or self.run_dir / "store"

    def work_dir(self, job_id: str) -> Path:
        """The directory of one job, in which each attempt inherits the workspace of the one before."""
        return self.run_dir / "work" / job_id


def result_variables(services: Iterable[str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that change the answers of some services, where they are set.

    Args:
        services: Their names.
        environment: Where to look; this process's environment when None.
    """
    given = os.environ if environment is None else environment
    names = (name for service in services for name in RESULT_VARIABLES.get(service, ()))
    return {name: given[name] for name in sorted(names) if given.get(name)}


def load_settings() -> Settings:
    """Reads the environment.

    Raises:
        ConfigError: A variable has a wrong value; the message names it.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"SIM2OR_{str(item['loc'][0]).upper()}={item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError("; ".join(lines)) from error
