"""Lineage: the chain of artifacts behind an artifact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sim2or.artifacts.manifest import Manifest
from sim2or.artifacts.store import Store


@dataclass(frozen=True)
class Ancestor:
    """One step of a lineage.

    Attributes:
        depth: 0 for the artifact that was asked about.
        role: The input role by which its child used it; "" at depth 0.
        digest: The artifact's digest.
        manifest: What it holds and was made from.
        repeated: Shown before: its own parents are not listed again.
    """

    depth: int
    role: str
    digest: str
    manifest: Manifest
    repeated: bool


def chain(store: Store, digest: str) -> Iterator[Ancestor]:
    """Walks from an artifact to everything it was made from, depth first, each subtree once.

    Raises:
        ConfigError: The artifact or one of its ancestors is not in the store.
    """
    seen: set[str] = set()

    def walk(role: str, name: str, depth: int) -> Iterator[Ancestor]:
        manifest = store.manifest(name)
        repeated = name in seen
        seen.add(name)
        yield Ancestor(depth=depth, role=role, digest=name, manifest=manifest, repeated=repeated)
        if not repeated:
            for parent_role, digests in sorted(manifest.parents.items()):
                for parent in digests:
                    yield from walk(parent_role, parent, depth + 1)

    return walk("", digest, 0)
