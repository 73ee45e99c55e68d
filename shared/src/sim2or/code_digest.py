"""Code digests: which lines of code a result depends on, found without importing anything heavy.

The digest of a stage covers every file of its service's package except the wiring (``main.py``,
``__main__.py``), and, from our shared packages, the modules that these import, directly or through others,
with the data files beside them. A changed line gives another digest, so the question is asked again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from sim2or.errors import ConfigError

SHARED = ("sim2or", "lerobot_policy_sim2or")

_WIRING = {"main.py", "__main__.py"}
_DATA = {".yaml", ".yml", ".json", ".xml", ".html", ".css", ".jinja"}


def code_digest(package: str) -> str:
    """The digest of a service's code and of what it uses of ours.

    Args:
        package: Import name of the service, for example ``"sim2or_sim"``.

    Raises:
        ConfigError: The package is not installed here.
    """
    digest = hashlib.sha256()
    for name, file in sorted(code_files(package).items()):
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def codes_digest(packages: Iterable[str]) -> str:
    """The digest of the code of several services that work on one question together.

    Args:
        packages: Import names; their order and repetitions do not count.
    """
    return _joined(code_digest(package) for package in sorted(set(packages)))


def locks_digest(locks: Iterable[tuple[str, str]]) -> str:
    """The digest of the locked requirements of several services.

    Args:
        locks: Import name and name of the lock, of each service; order and repetitions do not count.
    """
    return _joined(lock_digest(package, lock) for package, lock in sorted(set(locks)))


def _joined(digests: Iterable[str]) -> str:
    return f"sha256:{hashlib.sha256(chr(10).join(digests).encode()).hexdigest()}"


def code_files(package: str) -> dict[str, Path]:
    """The files that a service's results depend on: package-relative name to path."""
    root = package_root(package)
    own = [
        p for p in root.rglob("*") if p.is_file() and p.name not in _WIRING and "__pycache__" not in p.parts
    ]
    found = {f"{package}/{path.relative_to(root).as_posix()}": path for path in own}
    pending = [(path, package) for path in own if path.suffix == ".py"]
    seen: set[str] = set()
    while pending:
        path, top = pending.pop()
        for module in _imports(path, top):
            for part in _with_parents(module):
                target = _module_file(part)
                if part in seen or target is None:
                    continue
                seen.add(part)
                for file in (target, *_data_beside(target)):
                    shared = part.split(".")[0]
                    found[f"{shared}/{file.relative_to(package_root(shared)).as_posix()}"] = file
                pending.append((target, part.split(".")[0]))
    return found


@lru_cache
def package_root(package: str) -> Path:
    """The directory of an installed package, found without importing it.

    Raises:
        ConfigError: It is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {package!r} is not installed here; run `make setup`")
    return Path(next(iter(spec.submodule_search_locations)))


def lock_digest(package: str, lock: str) -> str:
    """The digest of the locked requirements that a service runs with.

    Args:
        package: Import name of the service.
        lock: Name of the lock, for example ``"sim"`` for ``requirements/sim.lock``.

    Returns:
        The digest of the lock file found above the package; of the installed versions where there is none.
    """
    for parent in package_root(package).parents:
        file = parent / "requirements" / f"{lock}.lock"
        if file.is_file():
            return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    return _installed_digest()


@lru_cache
def _installed_digest() -> str:
    lines = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def _imports(path: Path, top: str) -> Iterator[str]:
    """Names of the shared modules that a file imports, wherever in it."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path, top)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in SHARED)


def _absolute(node: ast.ImportFrom, path: Path, top: str) -> str:
    if not node.level:
        return node.module or ""
    inside = (top, *path.relative_to(package_root(top)).with_suffix("").parts)
    base = inside[: len(inside) - node.level]
    return ".".join((*base, *filter(None, [node.module])))


def _with_parents(module: str) -> Iterator[str]:
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _module_file(module: str) -> Path | None:
    top, *rest = module.split(".")
    path = package_root(top).joinpath(*rest)
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if file.is_file() and (rest or file.name == "__init__.py"):
            return file
    return None


def _data_beside(file: Path) -> Iterator[Path]:
    """Data files in a module's directory, and in those below it that are no packages of code."""
    for path in sorted(file.parent.iterdir()):
        if path.suffix in _DATA:
            yield path
        elif path.is_dir() and path.name != "__pycache__" and not any(path.glob("[!_]*.py")):
            yield from (p for p in sorted(path.rglob("*")) if p.suffix in _DATA)
