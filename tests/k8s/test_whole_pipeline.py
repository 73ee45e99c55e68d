"""A whole pipeline as Kubernetes would run it: Jobs one after the other, no bus, servers beside them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from sim2or.artifacts.answers import Answers
from sim2or.artifacts.store import Store
from sim2or.cluster.plan import Desk, plan_of
from sim2or.cluster.render import pipeline_manifests
from sim2or.pipeline import load_pipeline
from sim2or.stages import SERVICES, load_table
from tree import ROOT, rendered


@contextlib.contextmanager
def servers(root: Path, variables: dict[str, str]) -> Iterator[None]:
    """The policy server and the simulated robot, as their Deployments would run."""
    place = {"SIM2OR_STORE": str(root / "runs/store"), "SIM2OR_RUN_DIR": str(root / "runs/services")}
    with (root / "servers.log").open("ab") as log:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", *command], env=os.environ | variables | place, stdout=log, stderr=log
            )
            for command in (("sim2or_policy", "serve"), ("sim2or_sim", "robot"))
        ]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)


@pytest.mark.deep
@pytest.mark.usefixtures("kubectl")
def test_the_smoke_pipeline_runs_as_jobs(tmp_path: Path) -> None:
    """From demonstrations to the deployment and its report, by rendered Jobs and their answers alone."""
    table = load_table()
    plan = plan_of(load_pipeline(ROOT.parent / "pipelines/smoke.yaml", table), table, run="smoke")
    images = {f"sim2or/{info.module.removeprefix('sim2or_')}": info.module for info in SERVICES}
    endpoints = {f"SIM2OR_{name}_ENDPOINT": f"ipc://{tmp_path}/{name}" for name in ("POLICY", "ROBOT")}
    node = Cluster(tmp_path, images, endpoints)
    with servers(tmp_path, endpoints):
        for step in plan.steps:
            manifests = pipeline_manifests(plan, table, rendered("overlays/spark"), steps=[step.id])
            node.apply(manifests)
            assert node.run(manifests[-1]) == set(), (tmp_path / "pods.log").read_text()[-2000:]
    assert all(status == 0 for _, _, status in node.ended)
    desk = Desk(plan, table, Answers(Store(tmp_path / "runs/store")).get)
    report = desk.answer("report", 0).job.spec
    assert {"train", "deploy"} <= report["summaries"].keys(), "the report was told what only the others know"
    assert report["wall_s"]["total"] > 0
    assert desk.answer("deploy", 0).result.summary["refused"] == ""
