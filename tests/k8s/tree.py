"""The kustomize tree, rendered: every overlay, and every component on the base with keys."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sim2or.cluster.render import kustomize

ROOT = Path(__file__).parents[2] / "k8s"
OVERLAYS = sorted(path.parent.name for path in ROOT.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in ROOT.glob("components/*/kustomization.yaml"))
ALL = [f"overlays/{name}" for name in OVERLAYS] + [f"components/{name}" for name in COMPONENTS]

WORKLOADS = {
    "Deployment": "spec.template",
    "StatefulSet": "spec.template",
    "Job": "spec.template",
    "ScaledJob": "spec.jobTargetRef.template",
    "JobSet": "spec.replicatedJobs.0.template.spec.template",
    "TrainingRuntime": "spec.template.spec.replicatedJobs.0.template.spec.template",
}
"""Kind to where its pods are described."""

Manifest = dict[str, Any]


@cache
def rendered(name: str) -> tuple[Manifest, ...]:
    """An overlay, or a component on the base and its keys."""
    kind, _, part = name.partition("/")
    if kind == "overlays":
        return tuple(kustomize(ROOT / name))
    with tempfile.TemporaryDirectory() as place:
        up = os.path.relpath(ROOT.resolve(), Path(place).resolve())
        keys = [] if part in ("curve-keys", "hardening") else [f"{up}/components/curve-keys"]
        parts = [*keys, *([] if part == "hardening" else [f"{up}/components/{part}"])]
        text = f"namespace: sim2or\nresources: [{up}/base]\ncomponents: [{', '.join(parts)}]\n"
        (Path(place) / "kustomization.yaml").write_text(text)
        return tuple(kustomize(Path(place)))


def at(manifest: Any, path: str) -> Any:
    """What is at a dotted path."""
    for part in path.split("."):
        manifest = manifest[int(part)] if isinstance(manifest, list) else manifest[part]
    return manifest


def pods(manifests: tuple[Manifest, ...] | list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod template, by kind and name."""
    for manifest in manifests:
        if manifest["kind"] in WORKLOADS:
            yield (
                f"{manifest['kind']}/{manifest['metadata']['name']}",
                at(manifest, WORKLOADS[manifest["kind"]]),
            )


def of_kind(name: str, kind: str) -> list[Manifest]:
    """The rendered manifests of one kind."""
    return [manifest for manifest in rendered(name) if manifest["kind"] == kind]
