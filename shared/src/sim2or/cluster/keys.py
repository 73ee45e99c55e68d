"""``python -m sim2or.cluster.keys FILE DIR``: keys out of a Kubernetes Secret, as our services want them.

The files of a Secret volume belong to root and are readable by a group, and their names hold no directories.
Ours are refused unless nobody else can read them. So a Secret carries one file, a service's whole directory
as JSON, and an init container writes it out into memory as the user that the service runs as.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sim2or.errors import ConfigError

FILE = "keys.json"
REDIS = "redis"
"""Whose directory a Redis server reads as it is, without ours in between."""

Manifest = dict[str, Any]


def secrets(dealt: Path) -> Iterator[Manifest]:
    """One Secret for each directory that ``sim2or keys deal`` made.

    Args:
        dealt: The directory that holds them.

    Raises:
        ConfigError: There is none, or it is not what ``keys deal`` makes.
    """
    places = sorted(path for path in dealt.glob("*") if path.is_dir())
    if not places:
        raise ConfigError(f"{dealt}: no dealt keys; make them with `sim2or keys deal --to {dealt}`")
    for place in places:
        files = {
            path.relative_to(place).as_posix(): path.read_text()
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }
        if not files:
            raise ConfigError(f"{place}: holds no keys; `sim2or keys deal --to {dealt}`")
        if place.name == REDIS:
            data = {PurePosixPath(name).name: text for name, text in files.items()}
        else:
            data = {FILE: json.dumps(files, sort_keys=True)}
        yield {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": f"keys-{place.name.replace('@', '-')}",
                "namespace": "sim2or",
                "labels": {"app.kubernetes.io/part-of": "sim2or"},
            },
            "type": "Opaque",
            "stringData": data,
        }


def unpack(source: Path, target: Path) -> list[Path]:
    """Writes a service's keys out, each readable by this user only.

    Args:
        source: The JSON file of the Secret.
        target: An existing directory.

    Raises:
        ConfigError: It cannot be read, or a name leaves the directory.
    """
    try:
        files: dict[str, str] = json.loads(source.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: not the keys of a service: {error}; `sim2or k8s keys`") from error
    written = []
    for name, text in files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or not inside.parts:
            raise ConfigError(f"{source}: {name!r} leaves the directory of keys")
        path = target.joinpath(*inside.parts)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        written.append(path)
    return written


def main() -> None:
    """Unpacks; exits with 2 and one line when it cannot."""
    try:
        unpack(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConfigError as error:
        sys.stderr.write(f"sim2or: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
