"""Profiles: strict YAML files that describe a robot or a task, found by name."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sim2or.errors import ConfigError, choices
from sim2or.messages.message import Spec

_PACKAGE = "sim2or.contracts.profiles"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Profile(Spec):
    """A description read from a file; equal content in equal order has an equal digest.

    Attributes:
        kind: "robot" or "task".
        name: The name it is found by, equal to the file's stem.
    """

    kind: str
    name: str

    def digest(self) -> str:
        """sha256 of the canonical JSON of the content, as ``sha256:<hex>``."""
        return "sha256:" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def profile_names(kind: str) -> tuple[str, ...]:
    """Names of the bundled profiles of one kind, sorted."""
    found = (path for path in files(_PACKAGE).iterdir() if path.name.endswith(".yaml"))
    return tuple(
        sorted(p.name.removesuffix(".yaml") for p in found if _read(p.read_text(), p.name)["kind"] == kind)
    )


def load_profile[P: Profile](cls: type[P], kind: str, name: str | Path) -> P:
    """Loads a bundled profile by name, or any profile by the path of its YAML file.

    Raises:
        ConfigError: The name is unknown, the file is missing or a key or value in it is wrong.
    """
    if str(name).endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(
                f"{kind} profile: no file {str(path)!r}; give a path that exists or a bundled name: "
                f"{', '.join(profile_names(kind))}"
            )
        text, origin = path.read_text(), str(path)
    else:
        if str(name) not in profile_names(kind):
            raise ConfigError(
                f"{kind}: unknown profile {str(name)!r}; {choices(str(name), profile_names(kind))}"
            )
        text, origin = (files(_PACKAGE) / f"{name}.yaml").read_text(), f"{name}.yaml"
    return parse(cls, _read(text, origin), origin)


def parse[P: Spec](cls: type[P], content: dict[str, Any], origin: str) -> P:
    """Validates parsed content.

    Args:
        cls: The pydantic class.
        content: What the file holds.
        origin: The file's name, for messages.

    Raises:
        ConfigError: One line for each wrong key, naming the file, the key, the value and what is valid.
    """
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        lines = [_line(cls, origin, item) for item in error.errors(include_url=False)]
        raise ConfigError("; ".join(lines)) from error


def _read(text: str, origin: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {str(error).replace(chr(10), ' ')}") from error
    if not isinstance(content, dict) or "kind" not in content:
        raise ConfigError(f"{origin}: a profile is a mapping with the key 'kind' (robot, task or room)")
    return content


def _line(cls: type[Spec], origin: str, item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        valid = _fields_at(cls, item["loc"][:-1])
        hint = f"; {choices(str(item['loc'][-1]), valid)}" if valid else ""
        return f"{origin}: {where}: unknown key{hint}"
    if item["type"] == "missing":
        return f"{origin}: {where}: missing key"
    return f"{origin}: {where or 'profile'}: {item['msg']} (given: {_short(item['input'])})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(cls: type[Spec], location: tuple[str | int, ...]) -> list[str]:
    current: Any = cls
    for part in location:
        if isinstance(current, type) and issubclass(current, Spec) and part in current.model_fields:
            current = current.model_fields[str(part)].annotation
        else:
            current = (
                next(iter(getattr(current, "__args__", (None,))[-2:][::-1]), None)
                if not isinstance(part, int)
                else next(iter(getattr(current, "__args__", (None,))), None)
            )
        if current is None:
            return []
    is_spec = isinstance(current, type) and issubclass(current, Spec)
    return list(current.model_fields) if is_spec else []
