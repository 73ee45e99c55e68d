"""Compose gives each service its own keys: the volumes, the command that deals and the image agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from sim2or.bus import acl, keys
from sim2or.bus.deal import holdings, parties
from sim2or.stages import SERVICES, load_table

ROOT = Path(__file__).parents[2]
MASTER = "keys"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())
LOGS_IN_AS = {"pipeline": "runner"}
"""Whose keys a service has that is not called like them."""


def volumes(service: str) -> dict[str, str]:
    """What a service mounts: the volume's name to ``target[:mode]``."""
    mounts = COMPOSE["services"][service].get("volumes", ())
    return dict(mount.split(":", 1) for mount in mounts if isinstance(mount, str))


def dealt() -> list[str]:
    """The names to which the one-shot service deals."""
    command: list[str] = COMPOSE["services"][MASTER]["command"]
    assert command[:6] == ["keys", "deal", "--keys", "/keys", "--to", "/dealt"]
    return command[6:]


def test_a_service_mounts_its_own_keys_and_may_not_write_them() -> None:
    """Every service but the one that deals has one volume of keys, its own, read-only at /keys."""
    for name in set(COMPOSE["services"]) - {MASTER}:
        mounted = {volume: at for volume, at in volumes(name).items() if volume.startswith("keys")}
        assert mounted == {f"keys-{LOGS_IN_AS.get(name, name)}": "/keys:ro"}, name


def test_the_dealing_service_deals_to_everybody() -> None:
    """It mounts the master and each name's volume where it deals; every service of the table has one."""
    names = dealt()
    mounted = {volume: at for volume, at in volumes(MASTER).items() if volume.startswith("keys")}
    assert mounted == {MASTER: "/keys", **{f"keys-{name}": f"/dealt/{name}" for name in names}}
    assert set(names) == {*(service.name for service in SERVICES), "redis", "runner"}
    assert {f"keys-{name}" for name in names} < set(COMPOSE["volumes"])


def test_the_image_has_the_places() -> None:
    """The runner's image has each directory, owned by its user: a new volume takes that over."""
    recipe = (ROOT / "shared" / "Dockerfile").read_text()
    made = {word for word in recipe.split() if word.startswith("/dealt/")}
    assert made == {f"/dealt/{name}" for name in dealt()}


@pytest.mark.parametrize("service", sorted({*COMPOSE["services"]} - {MASTER, "redis"}))
def test_a_service_has_the_password_that_its_address_asks_for(service: str, tmp_path: Path) -> None:
    """Who logs in to Redis is dealt the password of that user; who does not is dealt none."""
    table = load_table()
    keys.make(tmp_path)
    acl.write(tmp_path, table)
    name = LOGS_IN_AS.get(service, service)
    assert name in parties(tmp_path, table)
    url = COMPOSE["services"][service]["environment"].get("SIM2OR_REDIS_URL", "")
    passwords = [path.name for path in holdings(tmp_path, name, table) if path.suffix == ".password"]
    assert passwords == ([f"{name}.password"] if url else [])
    assert url in ("", f"redis://{name}@redis:6379/0")
