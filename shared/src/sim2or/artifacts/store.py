"""The content-addressed store: files by digest, artifacts by the digest of their manifest.

Layout under the root::

    objects/ab/cdef…      file contents, read-only
    manifests/ab/cdef….json
    checkouts/<hex>/      read-only trees of hard links, made on demand
    verified/<hex>.json   which bytes were verified when the checkout was made
    partial/              what is being written, each under a lock that ends with its writer
    quarantine/           objects whose bytes no longer match their name
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sim2or.artifacts.manifest import FileEntry, Manifest
from sim2or.errors import ConfigError, JobError

PLACE_ATTEMPTS = 3
"""How often a checkout is put in place of a damaged one."""

_ELSEWHERE = (
    "`sim2or store ls` lists what is there; what another host made is found where SIM2OR_MIRROR names the "
    "mirror that both use"
)
_DIGITS = frozenset("0123456789abcdef")

Stamps = dict[str, list[int]]
"""Object digest to inode, time of the last change [ns] and size [bytes] of its file."""


class Store:
    """Keeps artifacts as read-only trees of files.

    Every write is a temporary name, fsync, rename and fsync of the directory: what has a name is complete.
    Writing the same content twice gives the same digest, so a repeated job does no harm.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("objects", "manifests", "checkouts", "verified", "partial"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def put(
        self,
        path: Path,
        *,
        kind: str,
        meta: Mapping[str, Any] | None = None,
        parents: Mapping[str, Sequence[str]] | None = None,
        key: str = "",
        producer: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Stores a file or a tree as an artifact.

        Files are taken over by hard link where the file system allows it: nobody may write to them again.

        Args:
            path: A file or a directory without symbolic links.
            kind: The artifact's kind.
            meta: Facts that belong to the content.
            parents: Input role to digests, which must exist in this store.
            key: The result key.
            producer: Who made it and how it went.

        Returns:
            The stored manifest.

        Raises:
            JobError: The path is missing or empty, holds a link, or a parent is unknown.
        """
        for role, digests in (parents or {}).items():
            for digest in digests:
                if not self.manifest_path(digest).exists():
                    raise JobError(f"parent {role}={digest} is not in the store {self.root}; store it first")
        with self.scratch() as scratch:
            files = tuple(self._take(file, name, scratch) for file, name in _files(path))
            manifest = Manifest(
                kind=kind,
                files=files,
                meta=dict(meta or {}),
                parents={role: tuple(digests) for role, digests in (parents or {}).items()},
                key=key,
                producer=dict(producer or {}),
            )
        self.keep(manifest)
        return manifest

    def manifest(self, digest: str) -> Manifest:
        """Reads an artifact's manifest and checks that it is the one asked for.

        Raises:
            ConfigError: No such artifact.
            JobError: The manifest on disk was altered.
        """
        manifest = self.kept(digest)
        if manifest is None:
            raise ConfigError(f"no artifact {digest} in {self.root}; {_ELSEWHERE}")
        return manifest

    def kept(self, digest: str) -> Manifest | None:
        """The manifest that lies in this directory, checked; None when there is none.

        Raises:
            JobError: It was altered.
        """
        path = self.manifest_path(digest)
        if not path.exists():
            return None
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise JobError(f"{path} is not a manifest: {error}") from error
        if manifest.digest != digest:
            raise JobError(f"{path} was altered: its content has digest {manifest.digest}")
        return manifest

    def checkout(self, digest: str) -> Path:
        """Gives a read-only directory with the artifact's files; their bytes are verified.

        They are read again only when a file is not the one, or not as old, as when it was verified.

        Raises:
            ConfigError: No such artifact.
            JobError: A file is missing or its bytes no longer match; it was moved to quarantine.
        """
        target = self.root / "checkouts" / digest.removeprefix("sha256:")
        manifest = self.manifest(digest)
        seal = self.root / "verified" / f"{target.name}.json"
        if self._whole(target, manifest) and _read_stamps(seal) == self._stamps(manifest):
            return target
        with self.scratch() as scratch:
            staging = scratch / target.name
            stamps: Stamps = {}
            for entry in manifest.files:
                stamps |= self._verify(entry)
                link = staging / entry.path
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.object_path(entry.digest), link)
            self._place(staging, target, manifest)
            _write(seal, json.dumps(stamps).encode(), scratch)
        return target

    def holds(self, digest: str) -> bool:
        """Whether the artifact and every one of its files are here; their bytes are not read."""
        try:
            manifest = self.kept(digest)
        except (ConfigError, JobError):
            return False
        return manifest is not None and all(map(self.has, manifest.files))

    def has(self, entry: FileEntry) -> bool:
        """Whether a file of an artifact is here, with its size; its bytes are not read."""
        return _same_size(self.object_path(entry.digest), entry)

    def keep(self, manifest: Manifest) -> None:
        """Makes an artifact known by its manifest; its files are put first, so that it is complete."""
        target = self.manifest_path(manifest.digest)
        if not target.exists():
            with self.scratch() as scratch:
                _write(target, manifest.model_dump_json(indent=1).encode(), scratch)
            sync(target.parent.parent)

    def adopt(self, file: Path, entry: FileEntry) -> None:
        """Gives a durable, verified file on this file system its name in the store.

        Where another writer was first, its file stays: somebody may have it in a checkout.
        """
        target = self.object_path(entry.digest)
        if not target.parent.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(target.parent.parent)
        try:
            os.link(file, target)
            file.unlink()
        except FileExistsError:
            file.unlink() if self.has(entry) else file.rename(target)
        sync(target.parent)

    def find(self, prefix: str) -> str:
        """Completes an abbreviated digest.

        Raises:
            ConfigError: None or several artifacts start with it.
        """
        wanted = prefix.removeprefix("sha256:")
        found = list(self.digests(wanted)) if not set(wanted) - _DIGITS else []
        if len(found) == 1 and wanted:
            return found[0]
        if not found:
            raise ConfigError(f"no artifact starts with {prefix!r} in {self.root}; {_ELSEWHERE}")
        shown = ", ".join(digest[:19] for digest in found[:5])
        raise ConfigError(f"{len(found)} artifacts start with {prefix!r} ({shown}); give more digits")

    def digests(self, prefix: str = "") -> Iterator[str]:
        """Every artifact's digest that starts with some digits, sorted."""
        for path in sorted((self.root / "manifests").glob(f"{prefix[:2]:?<2}/*.json")):
            if (path.parent.name + path.stem).startswith(prefix):
                yield f"sha256:{path.parent.name}{path.stem}"

    def sweep(self) -> int:
        """Removes what writers left unfinished when they were killed; those at work keep theirs.

        Returns:
            How many there were.
        """
        swept = 0
        for lock in (self.root / "partial").glob("*.lock"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()
                swept += 1
        return swept

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory on the store's file system; what is left in it is removed, by us or by ``sweep``."""
        while True:
            path = self.root / "partial" / uuid.uuid4().hex
            with path.with_suffix(".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink == 0:  # swept between its creation and its lock
                    continue
                path.mkdir()
                try:
                    yield path
                finally:
                    shutil.rmtree(path, ignore_errors=True)
                    path.with_suffix(".lock").unlink(missing_ok=True)
                return

    def _take(self, file: Path, name: str, scratch: Path) -> FileEntry:
        digest, size = _hash(file)
        entry = FileEntry(path=name, digest=digest, size_bytes=size)
        if not self.has(entry):
            temporary = scratch / uuid.uuid4().hex
            try:
                os.link(file, temporary)
            except OSError:  # another file system
                shutil.copyfile(file, temporary)
            temporary.chmod(0o444)
            sync(temporary)
            self.adopt(temporary, entry)
        return entry

    def _whole(self, target: Path, manifest: Manifest) -> bool:
        """Whether a checkout has every file, each a link to the object in the store."""
        return target.is_dir() and all(
            _same_file(target / entry.path, self.object_path(entry.digest))
            and _same_size(target / entry.path, entry)
            for entry in manifest.files
        )

    def _place(self, staging: Path, target: Path, manifest: Manifest) -> None:
        """Gives a new checkout its name, in place of a damaged one if there is one."""
        for _ in range(PLACE_ATTEMPTS):
            try:
                staging.rename(target)
                return
            except OSError:
                if self._whole(target, manifest):  # made by another process, or verified again
                    return
            with contextlib.suppress(FileNotFoundError):  # another process moved it
                target.rename(staging.with_name(uuid.uuid4().hex))
        raise JobError(
            f"{target} is damaged and came back {PLACE_ATTEMPTS} times; see who writes there, and remove it"
        )

    def _stamps(self, manifest: Manifest) -> Stamps:
        return {entry.digest: _stamp(self.object_path(entry.digest)) for entry in manifest.files}

    def _verify(self, entry: FileEntry) -> Stamps:
        path = self.object_path(entry.digest)
        if not path.exists():
            raise JobError(
                f"{entry.path}: object {entry.digest} is missing from {self.root}; rerun its stage"
            )
        stamp = _stamp(path)
        digest, _ = _hash(path)
        if digest != entry.digest:
            quarantine = self.root / "quarantine"
            quarantine.mkdir(exist_ok=True)
            path.rename(quarantine / path.name)
            raise JobError(
                f"{entry.path}: stored bytes have digest {digest}, expected {entry.digest}; "
                f"moved to {quarantine}; rerun its stage"
            )
        return {entry.digest: stamp}

    def object_path(self, digest: str) -> Path:
        """Where a file's bytes are."""
        return self.root / object_name(digest)

    def manifest_path(self, digest: str) -> Path:
        """Where an artifact's manifest is."""
        return self.root / manifest_name(digest)


def object_name(digest: str) -> str:
    """The name of a file in a store and in its mirror: ``objects/ab/cdef…``."""
    return f"objects/{_split(digest)}"


def manifest_name(digest: str) -> str:
    """The name of an artifact in a store and in its mirror: ``manifests/ab/cdef….json``."""
    return f"manifests/{_split(digest)}.json"


def _split(digest: str) -> str:
    """``ab/cdef…``; refuses what is no digest, so that no name leaves its directory."""
    hexa = digest.removeprefix("sha256:")
    if len(hexa) != 64 or set(hexa) - _DIGITS:
        raise ConfigError(f"{digest!r} is not a digest; expected 'sha256:' and 64 hex digits")
    return f"{hexa[:2]}/{hexa[2:]}"


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_file() and not path.is_symlink():
        yield path, path.name
        return
    found = sorted(p for p in path.rglob("*") if not p.is_dir() or p.is_symlink())
    if not found:
        raise JobError(f"{path} holds no file to store")
    for file in found:
        if file.is_symlink() or not file.is_file():
            raise JobError(f"{file} is a link or a special file; an artifact holds plain files only")
        yield file, file.relative_to(path).as_posix()


def _hash(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return f"sha256:{digest.hexdigest()}", file.tell()


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_ino, status.st_mtime_ns, status.st_size]


def _read_stamps(path: Path) -> Stamps | None:
    try:
        stamps: Stamps = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return stamps


def _same_size(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size_bytes


def _same_file(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _write(target: Path, data: bytes, scratch: Path | None = None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    put_in_place((scratch or target.parent) / f".{uuid.uuid4().hex}", target, data)


def put_in_place(temporary: Path, target: Path, data: bytes) -> None:
    """Writes a file under a temporary name and gives it its own; where that fails, nothing is left."""
    try:
        temporary.write_bytes(data)
        sync(temporary)
        temporary.rename(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    """Flushes a file or a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fresh_directory(path: Path) -> Path:
    """Makes an empty directory, for what is quicker made again than resumed; what was there is removed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is either complete or absent."""
    _write(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n")
