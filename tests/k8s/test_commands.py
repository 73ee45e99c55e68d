"""``sim2or k8s``: what it prints is complete and equal to the tree, and it drives a cluster step by step."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sim2or.bus import acl
from sim2or.bus.deal import deal
from sim2or.bus.keys import Keyring, make
from sim2or.bus.secret import check_private
from sim2or.cluster.follow import follow
from sim2or.cluster.keys import FILE, secrets, unpack
from sim2or.cluster.plan import Plan
from sim2or.cluster.render import (
    MAX_NAME,
    pipeline_manifests,
    plan_manifest,
    pod_templates,
    runner_job,
)
from sim2or.errors import ConfigError, JobError
from sim2or.stages import load_table
from tree import ROOT, pods, rendered

SMOKE = ROOT.parent / "pipelines/smoke.yaml"


def command(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs ``sim2or k8s …`` in the checkout."""
    return subprocess.run(
        [sys.executable, "-c", "from sim2or.cli.main import app; app()", "k8s", *map(str, arguments)],
        cwd=ROOT.parent,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def printed(*arguments: str | Path) -> list[dict[str, Any]]:
    """What a command prints, as manifests."""
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def smoke() -> list[dict[str, Any]]:
    """The smoke pipeline on the overlay of one machine."""
    return printed("render", SMOKE, "--overlay", "spark")


@pytest.fixture(scope="module")
def plan(smoke: list[dict[str, Any]]) -> Plan:
    """The plan that came with it."""
    (found,) = [m for m in smoke if m["metadata"]["name"].startswith("plan-")]
    return Plan.model_validate_json(found["data"]["plan.json"])


@pytest.mark.usefixtures("kubectl")
def test_a_pipeline_becomes_its_jobs(smoke: list[dict[str, Any]]) -> None:
    """One Indexed Job a step, in the pipeline's order, with as many indexes as it has shards."""
    jobs = [manifest for manifest in smoke if manifest["kind"] == "Job"]
    counts = {job["metadata"]["labels"]["sim2or.io/step"]: job["spec"]["completions"] for job in jobs}
    assert counts == {
        "collect": 2,
        "expert": 1,
        "convert": 2,
        "dataset": 1,
        "train": 1,
        "export": 1,
        "trials": 2,
        "evaluate": 1,
        "deploy": 1,
        "report": 1,
    }
    steps = list(counts)
    assert steps.index("convert") < steps.index("dataset") < steps.index("train") < steps.index("export")
    assert len({job["metadata"]["name"] for job in jobs}) == len(jobs)
    assert all(len(job["metadata"]["name"]) <= MAX_NAME for job in jobs)


@pytest.mark.usefixtures("kubectl")
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_rendered_jobs_fit_the_schemas(smoke: list[dict[str, Any]], version: str) -> None:
    """Everything that is printed is valid, unknown fields included."""
    for manifest in smoke:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.usefixtures("kubectl")
def test_rendered_pods_are_those_of_the_tree(smoke: list[dict[str, Any]]) -> None:
    """A step's pods differ from the service's own in the command, the plan, and that they end."""
    tree = pod_templates(rendered("overlays/spark"))
    for where, made in pods([m for m in smoke if m["kind"] == "Job"]):
        known = tree[made["metadata"]["labels"]["app.kubernetes.io/name"]]
        assert made["spec"]["restartPolicy"] == "Never"
        for key in set(known["spec"]) - {"containers", "volumes"}:
            assert made["spec"][key] == known["spec"][key], where
        ours, theirs = made["spec"]["containers"][0], known["spec"]["containers"][0]
        for key in set(theirs) - {"args", "readinessProbe", "volumeMounts"}:
            assert ours[key] == theirs[key], where
        assert [v for v in made["spec"]["volumes"] if v["name"] != "plan"] == known["spec"]["volumes"]
        assert [m for m in ours["volumeMounts"] if m["name"] != "plan"] == theirs["volumeMounts"]
        assert ours["args"][0] == "shard"


@pytest.mark.usefixtures("kubectl")
def test_what_is_not_a_job_is_the_trees(smoke: list[dict[str, Any]]) -> None:
    """Beside the Jobs and their plan there is only what the overlay has: servers that are asked."""
    known = list(rendered("overlays/spark"))
    around = [m for m in smoke if m["kind"] != "Job" and not m["metadata"]["name"].startswith("plan-")]
    assert all(manifest in known for manifest in around)
    assert {m["metadata"]["name"] for m in around if m["kind"] == "Deployment"} == {"policy", "robot"}
    (plan,) = [m for m in smoke if m["metadata"]["name"].startswith("plan-")]
    assert plan["immutable"] is True


@pytest.mark.usefixtures("kubectl")
def test_one_step_brings_only_what_it_asks(plan: Plan) -> None:
    """A simulation without a policy needs no server; its Job runs as many pods at a time as one allows."""
    tree = rendered("overlays/spark")
    manifests = pipeline_manifests(plan, load_table(), tree, steps=["collect"], parallel=1)
    assert [m["spec"]["parallelism"] for m in manifests if m["kind"] == "Job"] == [1]
    assert not [m for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]


@pytest.mark.usefixtures("kubectl")
@pytest.mark.parametrize("overlay", ["cluster", "cluster-s3"])
def test_jobs_of_a_cluster_wait_in_its_queue(plan: Plan, overlay: str) -> None:
    """Where there is a queue every Job waits in it, simulations behind verdicts."""
    tree = rendered(f"overlays/{overlay}")
    steps = [step.id for step in plan.steps]
    jobs = [m for m in pipeline_manifests(plan, load_table(), tree, steps=steps) if m["kind"] == "Job"]
    labels = {job["metadata"]["labels"]["sim2or.io/step"]: job["metadata"]["labels"] for job in jobs}
    assert {one["kueue.x-k8s.io/queue-name"] for one in labels.values()} == {"sim2or"}
    known = {m["metadata"]["name"] for m in tree if m["kind"] == "WorkloadPriorityClass"}
    assert {one["kueue.x-k8s.io/priority-class"] for one in labels.values()} <= known
    assert labels["collect"]["kueue.x-k8s.io/priority-class"] == "sim2or-simulation"
    assert labels["evaluate"]["kueue.x-k8s.io/priority-class"] == "sim2or-verdict"
    for job in jobs:
        kubernetes_validate.validate(job, "1.29", strict=True)


@pytest.mark.usefixtures("kubectl")
@pytest.mark.parametrize(("name", "service"), [("keda", "sim"), ("jobset", "trainer")])
def test_what_takes_a_deployments_place_gives_jobs_their_pods(name: str, service: str) -> None:
    """A step of a service that KEDA or JobSet starts has the pods that these would start."""
    found = pod_templates(rendered(f"components/{name}"))[service]["spec"]["containers"][0]
    known = pod_templates(rendered("overlays/spark"))[service]["spec"]["containers"][0]
    assert found["image"] == known["image"]
    assert found["resources"] == known["resources"]


@pytest.mark.usefixtures("kubectl")
@pytest.mark.parametrize("name", ["jobset", "trainjob"])
def test_a_train_step_is_one_group(plan: Plan, name: str) -> None:
    """Where a JobSet or TrainJob has the trainer's place, the train step is one of it, with the plan."""
    tree = rendered(f"components/{name}")
    manifests = pipeline_manifests(plan, load_table(), tree, steps=["train"])
    made = [m for m in manifests if m["metadata"]["labels"].get("sim2or.io/step") == "train"]
    assert [m["kind"] for m in made] == {"jobset": ["JobSet"], "trainjob": ["TrainingRuntime", "TrainJob"]}[
        name
    ]
    assert manifests[-1] == made[-1]
    (template,) = [template for _, template in pods(made)]
    (container,) = template["spec"]["containers"]
    (plan_map,) = [m for m in manifests if m["metadata"]["name"].startswith("plan-")]
    assert {"name": "plan", "configMap": {"name": plan_map["metadata"]["name"]}} in template["spec"][
        "volumes"
    ]
    assert container["volumeMounts"][-1]["mountPath"] == "/plan"
    args = ["shard", "--plan", "/plan/plan.json", "--step", "train", "--index", "0"]
    told = made[-1]["spec"]["trainer"]["args"] if name == "trainjob" else container["args"]
    assert told == args
    assert not any("suspend" in m["spec"] for m in made)
    assert len({m["metadata"]["name"] for m in made}) == 1
    if name == "trainjob":
        assert made[1]["spec"]["runtimeRef"]["name"] == made[0]["metadata"]["name"]


def test_a_forced_run_is_another_plan(plan: Plan) -> None:
    """Asking anew gives other names, so that finished Jobs are not taken for these."""
    forced = plan.model_copy(update={"again": "x"})
    names = [plan_manifest(one, "sim2or")["metadata"]["name"] for one in (plan, plan, forced)]
    assert names[0] == names[1] != names[2]


@pytest.mark.usefixtures("kubectl")
def test_the_elastic_form_submits_to_the_bus() -> None:
    """One Job as the runner, hardened like all, beside the whole overlay."""
    tree = rendered("overlays/cluster")
    _, job = runner_job(SMOKE, "smoke", tree)
    kubernetes_validate.validate(job, "1.29", strict=True)
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["sim2or"]
    assert container["args"] == ["run", "/pipeline/pipeline.yaml", "--run", "smoke", "--no-services"]
    assert {"name": "SIM2OR_REDIS_URL", "value": "redis://runner@redis:6379/0"} in container["env"]
    assert [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v] == ["keys-runner"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    made = {volume["name"] for volume in spec["volumes"]}
    assert mounted | {"secret"} == made
    assert job["spec"]["podFailurePolicy"]["rules"][1]["action"] == "FailJob"


@pytest.mark.usefixtures("kubectl")
def test_bad_input_is_one_line(plan: Plan) -> None:
    """An unknown overlay, step or file is named, with what is valid."""
    with pytest.raises(ConfigError, match="did you mean 'collect'"):
        plan.step("colect")
    with pytest.raises(ConfigError, match="the overlay has no pods of 'sim'; valid: bridge, robot"):
        pipeline_manifests(plan, load_table(), rendered("overlays/edge"), steps=["collect"])
    for arguments, words in (
        ((SMOKE, "--overlay", "sparc"), "did you mean 'spark'"),
        (("pipelines/smokes.yaml",), "did you mean 'smoke.yaml'"),
    ):
        done = command("render", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_without_kubectl_there_is_a_line(tmp_path: Path) -> None:
    """Where kubectl is missing the command says so and how to get it."""
    done = command("render", SMOKE, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "no kubectl on PATH" in done.stderr


@pytest.mark.usefixtures("kubectl")
def test_without_a_cluster_there_is_a_line(tmp_path: Path) -> None:
    """Where no cluster answers, the command ends with kubectl's own word and where to look."""
    nowhere = tmp_path / "config"
    nowhere.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: none\n"
        "clusters: [{name: none, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "contexts: [{name: none, context: {cluster: none, user: none}}]\nusers: [{name: none, user: {}}]\n"
    )
    done = command("run", _short(tmp_path), KUBECONFIG=str(nowhere))
    assert done.returncode == 2
    assert "kubectl apply: " in done.stderr
    assert "refused" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


SCRIPT = """#!/bin/sh
# Stands for a cluster: keeps what is applied, and tells of each Job what the file `state` says.
case "$*" in
  "kustomize "*) exec "{kubectl}" "$@" ;;
  "apply -f -") cat >"{root}/applied-$(ls "{root}" | grep -c applied)" ;;
  *"get job"*) cat "{root}/state" ;;
  *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def scripted(kubectl: str, tmp_path: Path) -> Path:
    """A directory with a kubectl that stands for a cluster."""
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    program.write_text(SCRIPT.format(kubectl=kubectl, root=tmp_path))
    program.chmod(0o755)
    return tmp_path


def test_a_run_applies_one_step_after_the_other(scripted: Path) -> None:
    """Each step's Job is applied when the one before is complete, with the plan that all of them share."""
    _state(scripted, Complete="all done")
    path = f"{scripted / 'bin'}:{os.environ['PATH']}"
    done = command("run", _short(scripted), "--until", "convert", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "2 steps complete" in done.stdout
    applied = [list(yaml.safe_load_all(p.read_text())) for p in sorted(scripted.glob("applied-*"))]
    steps = [
        [m["metadata"]["labels"]["sim2or.io/step"] for m in one if m["kind"] == "Job"] for one in applied
    ]
    assert steps == [["collect"], ["convert"]]
    plans = {
        m["metadata"]["name"] for one in applied for m in one if m["metadata"]["name"].startswith("plan-")
    }
    assert len(plans) == 1


def test_a_failed_step_ends_the_run(scripted: Path) -> None:
    """A Job that failed is named with the cluster's reason and the command that shows its logs."""
    _state(scripted, Failed="Pod failure policy: index 1 failed")
    path = f"{scripted / 'bin'}:{os.environ['PATH']}"
    done = command("run", _short(scripted), PATH=path)
    assert done.returncode == 2
    assert "index 1 failed" in done.stderr
    assert "kubectl -n sim2or logs -l job-name=short-collect-" in done.stderr
    assert len(list(scripted.glob("applied-*"))) == 1


@pytest.mark.parametrize(
    ("kind", "parts", "good"),
    [("JobSet", "replicatedJobsStatus", "Completed"), ("TrainJob", "jobsStatus", "Complete")],
)
def test_a_group_is_followed_to_its_end(
    scripted: Path, monkeypatch: pytest.MonkeyPatch, kind: str, parts: str, good: str
) -> None:
    """A JobSet and a TrainJob are asked how they go by their own kind and in their own words."""
    program = scripted / "bin/kubectl"
    program.write_text(program.read_text().replace("get job", f"get {kind.lower()} "))
    monkeypatch.setenv("PATH", f"{scripted / 'bin'}:{os.environ['PATH']}")
    job = {"kind": kind, "metadata": {"name": "r-train", "namespace": "sim2or"}, "spec": {}}
    status = {parts: [{"name": "node", "succeeded": 1, "active": 0}]}
    ended = [{"type": good, "status": "True", "message": ""}]
    (scripted / "state").write_text(json.dumps({"status": status | {"conditions": ended}}))
    told: list[str] = []
    follow(job, told.append)
    assert told == ["r-train: 1/1 done, 0 running"]
    ended[0] |= {"type": "Failed", "message": "reached max restarts"}
    (scripted / "state").write_text(json.dumps({"status": status | {"conditions": ended}}))
    with pytest.raises(JobError, match=r"reached max restarts.*jobset-name=r-train"):
        follow(job, told.append)


def _short(place: Path) -> Path:
    """A pipeline of three steps."""
    path = place / "short.yaml"
    path.write_text(
        "name: short\nstages:\n  - {stage: collect, shards: 2, with: {demos: 2}}\n"
        "  - {stage: convert, each: collect, inputs: {episodes: collect}}\n"
        "  - {stage: dataset, inputs: {parts: convert}}\n"
    )
    return path


def _state(place: Path, **conditions: str) -> None:
    told = [{"type": kind, "status": "True", "message": text} for kind, text in conditions.items()]
    (place / "state").write_text(json.dumps({"status": {"succeeded": 1, "conditions": told}}))


def test_secrets_carry_what_was_dealt(tmp_path: Path) -> None:
    """Each service's Secret unpacks to what it was dealt, usable as its keys and readable by nobody else."""
    master, dealt, keys = tmp_path / "keys", tmp_path / "dealt", tmp_path / "unpacked"
    make(master)
    acl.write(master, load_table())
    deal(master, dealt, (), load_table())
    made = {one["metadata"]["name"]: one for one in secrets(dealt)}
    for _, template in pods(rendered("overlays/spark")):
        for volume in template["spec"]["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in made
    for secret in made.values():
        kubernetes_validate.validate(secret, "1.29", strict=True)
    source = tmp_path / FILE
    source.write_text(made["keys-bridge"]["stringData"][FILE])
    keys.mkdir()
    written = unpack(source, keys)
    assert {path.relative_to(keys) for path in written} == {
        path.relative_to(dealt / "bridge") for path in (dealt / "bridge").rglob("*") if path.is_file()
    }
    for path in written:
        check_private(path, "key")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Keyring.load(keys, "bridge").name == "bridge"
    assert acl.password(keys, "bridge")
    assert unpack(source, keys) == written, "a restarted pod unpacks again"
    assert set(made["keys-redis"]["stringData"]) == {"users.acl", "metrics.password"}


def test_keys_never_leave_their_directory(tmp_path: Path) -> None:
    """A Secret whose names point elsewhere is refused and writes nothing there."""
    source = tmp_path / FILE
    (tmp_path / "keys").mkdir()
    for name in ("../stolen", "/tmp/stolen", ""):
        source.write_text(json.dumps({name: "x"}))
        with pytest.raises(ConfigError, match="leaves the directory"):
            unpack(source, tmp_path / "keys")
    assert not (tmp_path / "stolen").exists()
    source.write_text("no json")
    with pytest.raises(ConfigError, match="not the keys of a service"):
        unpack(source, tmp_path / "keys")


def test_no_dealt_keys_is_one_line(tmp_path: Path) -> None:
    """An empty place of keys is named with the command that fills it."""
    done = command("keys", tmp_path)
    assert done.returncode == 2
    assert f"sim2or keys deal --to {tmp_path}" in done.stderr
