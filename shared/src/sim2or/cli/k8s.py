"""``sim2or k8s``: pipelines as Jobs, keys as Secrets, network policies from the topic table."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sim2or.cluster.plan import Plan
    from sim2or.cluster.render import Manifest
    from sim2or.stages import Table

k8s_app = typer.Typer(no_args_is_help=True, help="Manifests for Kubernetes (docs/kubernetes.md).")

out = Console(highlight=False)

PipelineFile = Annotated[Path, typer.Argument(help="A pipeline file.")]
Overlay = Annotated[str, typer.Option(help="Which of k8s/overlays/ the pods are taken from.")]
Tree = Annotated[Path, typer.Option(help="The kustomize tree.")]
RunName = Annotated[str, typer.Option("--run", help="Name of the run; the pipeline's by default.")]
Until = Annotated[str, typer.Option(help="Stop after this step.")]
Parallel = Annotated[int, typer.Option(min=0, help="Pods of a Job at a time; 0: all of them.")]
Force = Annotated[bool, typer.Option("--force", help="Ask every question anew.")]

_TREE = Path("k8s")


@k8s_app.command()
def render(
    pipeline: PipelineFile,
    overlay: Overlay = "spark",
    name: RunName = "",
    until: Until = "",
    step: Annotated[str, typer.Option(help="Only this step's Job and what it needs.")] = "",
    parallel: Parallel = 0,
    force: Force = False,
    elastic: Annotated[
        bool,
        typer.Option("--elastic", help="One Job that submits to the services on the bus (KEDA scales them)."),
    ] = False,
    tree: Tree = _TREE,
) -> None:
    """Print the manifests that run a pipeline: one Indexed Job a step."""
    from sim2or.cluster.render import kustomize, pipeline_manifests, runner_job

    objects = kustomize(tree / "overlays" / overlay)
    plan, table = _planned(pipeline, objects, name=name, until=until, force=force)
    if elastic:
        _say([*objects, *runner_job(pipeline, plan.run, objects)])
        return
    steps = [plan.step(step).id] if step else [one.id for one in plan.steps]
    _say(pipeline_manifests(plan, table, objects, steps=steps, parallel=parallel))


@k8s_app.command()
def run(
    pipeline: PipelineFile,
    overlay: Overlay = "spark",
    name: RunName = "",
    until: Until = "",
    parallel: Parallel = 0,
    force: Force = False,
    tree: Tree = _TREE,
) -> None:
    """Run a pipeline on kubectl's cluster, one step after the other; go on where it was stopped."""
    from sim2or.cluster.follow import apply, follow
    from sim2or.cluster.render import kustomize, pipeline_manifests

    objects = kustomize(tree / "overlays" / overlay)
    plan, table = _planned(pipeline, objects, name=name, until=until, force=force)
    for step in plan.steps:
        manifests = pipeline_manifests(plan, table, objects, steps=[step.id], parallel=parallel)
        apply(manifests)
        follow(manifests[-1], lambda text: out.print(text, markup=False, soft_wrap=True))
    out.print(f"run {plan.run}: {len(plan.steps)} steps complete", markup=False)


@k8s_app.command()
def keys(
    dealt: Annotated[Path, typer.Argument(help="Where `sim2or keys deal --to` put them.")],
) -> None:
    """Print a Secret for each service: `sim2or k8s keys keys/dealt | kubectl apply -f -`."""
    from sim2or.cluster.keys import secrets

    _say(secrets(dealt))


@k8s_app.command()
def policies() -> None:
    """Print k8s/base/space/network-policies.yaml: who may talk to whom, from the topic table."""
    from sim2or.cluster.network import policies as network_policies

    sys.stdout.write("# Written by `make k8s-render` from messages/topics.py: change that, not this.\n")
    _say(network_policies())


def _planned(
    pipeline: Path, objects: list[Manifest], *, name: str, until: str, force: bool
) -> tuple[Plan, Table]:
    from sim2or.cluster.plan import plan_of
    from sim2or.cluster.render import environment_of
    from sim2or.pipeline import load_pipeline
    from sim2or.settings import load_settings
    from sim2or.stages import load_table

    table = load_table(load_settings().plugins)
    found = load_pipeline(pipeline, table)
    if until:
        found = found.until(until)
    again = uuid.uuid4().hex if force else ""
    return (
        plan_of(found, table, run=name or found.name, variables=environment_of(objects), again=again),
        table,
    )


def _say(manifests: Iterable[Manifest]) -> None:
    from sim2or.cluster.render import to_yaml

    sys.stdout.write(to_yaml(manifests))
