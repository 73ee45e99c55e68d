"""Manifests: what an artifact holds, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from sim2or.messages.message import Spec

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def canonical_json(value: Any) -> bytes:
    """Encodes JSON in one way only: sorted keys, no spaces, UTF-8, finite numbers."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(data: bytes) -> str:
    """The digest of some bytes, as ``sha256:<64 hex digits>``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _is_digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise ValueError(f"{text!r} is not a digest; expected 'sha256:' and 64 hex digits")
    return text


def _is_inside(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{text!r} leaves the artifact; expected a relative path without '..'")
    return text


Digest = Annotated[str, AfterValidator(_is_digest)]


class FileEntry(Spec):
    """One file of an artifact: its path inside, the digest of its bytes, and its size."""

    path: Annotated[str, AfterValidator(_is_inside)]
    digest: Digest
    size_bytes: Annotated[int, Field(ge=0)]


class Manifest(Spec):
    """What an artifact holds and what it was made from.

    The artifact's digest covers everything except ``producer``, which tells who made it and how it went.

    Attributes:
        kind: For example ``"dataset"``; pipelines are checked by kind.
        files: Sorted by path.
        meta: Facts that belong to the content, as JSON values.
        parents: Input role to the digests it was made from, in order.
        key: The result key: what was asked for. Empty for imported artifacts.
        producer: Job id, attempt, time, figures: not part of the digest.
    """

    kind: str
    files: tuple[FileEntry, ...]
    meta: Mapping[str, Any] = Field(default_factory=dict)
    parents: Mapping[str, tuple[Digest, ...]] = Field(default_factory=dict)
    key: str = ""
    producer: Mapping[str, Any] = Field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """The artifact's name: the digest of this manifest without its producer."""
        return digest_of(canonical_json(self.model_dump(mode="json", exclude={"producer"})))

    @property
    def size_bytes(self) -> int:
        """Total size of the files [bytes]."""
        return sum(entry.size_bytes for entry in self.files)
