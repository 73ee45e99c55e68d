"""Jobs for Kubernetes, derived from the pods that the kustomize tree describes.

A step becomes one Indexed Job: its pods are those of the service's Deployment in the overlay (image, limits,
keys, volumes, everything) with another command and another end. What holds for the one holds for the other.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sim2or.cluster.plan import Plan, PlannedStep
from sim2or.errors import ConfigError, TransientError, choices
from sim2or.exit_status import FINAL, ExitStatus
from sim2or.stages import Table

Manifest = dict[str, Any]

NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
PART = {"app.kubernetes.io/part-of": "sim2or"}
RUN, STEP = "sim2or.io/run", "sim2or.io/step"
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"

MAIN = "main"
"""Name of the one container of a pod of ours."""

PLAN_FILE = "plan.json"
RETRIES = 3
DEADLINE_S = 86400
KEPT_S = 86400
MAX_NAME = 52
"""Characters of a Job's name: its pods append their index and a random text, and 63 is the end."""

ATTENDED = frozenset({"deploy"})
"""Stages that move a robot: another attempt is a person's decision."""

GROUPS = ("JobSet", "TrainingRuntime", "TrainJob")
"""What may have a Deployment's place and answers one question with all its pods, in order."""

URGENCY: Mapping[str, str] = {
    "evaluate": "sim2or-verdict",
    "train": "sim2or-training",
    "collect": "sim2or-simulation",
    "collect-isaaclab": "sim2or-simulation",
}
"""A stage's queue to its priority in Kueue; others are training's."""

RENDER_TIMEOUT_S = 60.0


def kustomize(directory: Path) -> list[Manifest]:
    """Renders a kustomization with kubectl, which needs no cluster for that.

    Raises:
        ConfigError: No kubectl, no such directory, or a mistake in it.
    """
    program = shutil.which("kubectl")
    if program is None:
        raise ConfigError(
            "no kubectl on PATH: it renders k8s/; install it (https://kubernetes.io/docs/tasks/tools)"
        )
    if not (directory / "kustomization.yaml").is_file():
        names = (path.parent.name for path in directory.parent.glob("*/kustomization.yaml"))
        raise ConfigError(f"--overlay {directory.name!r}: {choices(directory.name, names)}")
    try:
        done = subprocess.run(
            [program, "kustomize", str(directory)],
            capture_output=True,
            text=True,
            timeout=RENDER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"kubectl kustomize {directory}: no end in {RENDER_TIMEOUT_S:g} s") from error
    if done.returncode:
        raise ConfigError(f"kubectl kustomize {directory}: {done.stderr.strip()}")
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def pod_templates(objects: Iterable[Manifest]) -> dict[str, Manifest]:
    """The pods of each service, whatever starts them: a Deployment, or a ScaledJob or JobSet in its place."""
    found = {}
    for manifest in objects:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Deployment":
            template = spec["template"]
        elif manifest["kind"] == "ScaledJob":
            template = spec["jobTargetRef"]["template"]
        elif manifest["kind"] in ("JobSet", "TrainingRuntime"):
            template = _pods_of_group(manifest)
        else:
            continue
        found[template["metadata"]["labels"][NAME]] = template
    return found


def environment_of(objects: Iterable[Manifest]) -> dict[str, str]:
    """Every variable that a pod of ours is given as plain text; of several values the last."""
    return {
        variable["name"]: variable["value"]
        for template in pod_templates(objects).values()
        for container in template["spec"]["containers"]
        for variable in container.get("env", ())
        if "value" in variable
    }


def pipeline_manifests(
    plan: Plan, table: Table, objects: Sequence[Manifest], *, steps: Sequence[str], parallel: int = 0
) -> list[Manifest]:
    """Everything that the Jobs of some steps need, and those Jobs, in order.

    Args:
        plan: The run.
        table: Stages and services.
        objects: The rendered overlay.
        steps: Whose Jobs.
        parallel: How many pods of a Job run at a time at most; 0: all.
    """
    wanted = [plan.step(name) for name in steps]
    servers = {server for step in wanted for server in table.stage(step.stage).needs}
    around = [manifest for manifest in objects if _is_around(manifest, servers)]
    space = next((m["metadata"]["name"] for m in objects if m["kind"] == "Namespace"), "default")
    queue = next((m["metadata"]["name"] for m in objects if m["kind"] == "LocalQueue"), "")
    templates = pod_templates(objects)
    plan_map = plan_manifest(plan, space)
    named = {"run": plan.run, "plan": plan_map["metadata"]["name"], "space": space, "queue": queue}
    jobs: list[Manifest] = []
    for step in wanted:
        service = table.stage(step.stage).service
        template = _template_of(service, templates)
        group = [m for m in objects if m["kind"] in GROUPS and m["metadata"]["labels"][NAME] == service]
        if group:
            jobs += group_manifests(step, group, **named)
        else:
            jobs.append(job_manifest(step, template, parallel=parallel, **named))
    return [*around, plan_map, *jobs]


def plan_manifest(plan: Plan, space: str) -> Manifest:
    """The plan, immutable and named by its content."""
    text = plan.model_dump_json(indent=1)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"plan-{_plain(plan.run)[:30]}-{_digest(text)}",
            "namespace": space,
            "labels": {**PART, RUN: plan.run},
        },
        "immutable": True,
        "data": {PLAN_FILE: text},
    }


def job_manifest(
    step: PlannedStep,
    template: Manifest,
    *,
    run: str,
    plan: str,
    space: str,
    queue: str = "",
    parallel: int = 0,
) -> Manifest:
    """The Indexed Job of a step: pod i answers the question of shard i.

    Args:
        step: The step.
        template: The pods of its service.
        run: Names the run.
        plan: Name of the plan's ConfigMap.
        space: The namespace.
        queue: Kueue's queue, or "".
        parallel: How many pods run at a time at most; 0: all.
    """
    labels = {**PART, NAME: template["metadata"]["labels"][NAME], COMPONENT: "job", RUN: run, STEP: step.id}
    kueue = {QUEUE: queue, PRIORITY: URGENCY.get(step.stage, URGENCY["train"])} if queue else {}
    args = ["shard", "--plan", f"/plan/{PLAN_FILE}", "--step", step.id]
    pod = with_plan(job_template(template, args, labels), plan)
    spec = job_spec(pod, step, parallel=parallel)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(run, step.id, _digest(json.dumps(spec, sort_keys=True))),
            "namespace": space,
            "labels": {**labels, **kueue},
        },
        "spec": spec,
    }


def group_manifests(
    step: PlannedStep, objects: Sequence[Manifest], *, run: str, plan: str, space: str, queue: str = ""
) -> list[Manifest]:
    """The JobSet, or the TrainJob and its runtime, of a step: all pods answer its one question together.

    Args:
        step: The step.
        objects: What the overlay has for the service: a JobSet, or a TrainingRuntime and a TrainJob.
        run: Names the run.
        plan: Name of the plan's ConfigMap.
        space: The namespace.
        queue: Kueue's queue, or "".

    Returns:
        What is applied; the last one tells how it goes.

    Raises:
        ConfigError: The step is several jobs.
    """
    if step.jobs != 1:
        raise ConfigError(f"step {step.id!r} is {step.jobs} jobs; processes share one: make them steps")
    made = copy.deepcopy(sorted(objects, key=lambda m: GROUPS.index(m["kind"])))
    # Kubernetes tells the pods of a group their own index; the question is that of shard 0.
    args = ["shard", "--plan", f"/plan/{PLAN_FILE}", "--step", step.id, "--index", "0"]
    labels = {**PART, NAME: objects[0]["metadata"]["labels"][NAME], COMPONENT: "job", RUN: run, STEP: step.id}
    kueue = {QUEUE: queue, PRIORITY: URGENCY.get(step.stage, URGENCY["train"])} if queue else {}
    for manifest in made:
        spec = manifest["spec"]
        spec.pop("suspend", None)
        if manifest["kind"] == "TrainJob":
            spec["trainer"]["args"] = args
        else:
            pod = with_plan(_pods_of_group(manifest), plan)
            pod["metadata"]["labels"] = labels
            pod["spec"]["containers"][0]["args"] = args
    name = job_name(run, step.id, _digest(json.dumps(made, sort_keys=True)))
    for manifest in made:
        own = labels if manifest["kind"] == "TrainingRuntime" else {**labels, **kueue}
        manifest["metadata"] = {"name": name, "namespace": space, "labels": own}
        if manifest["kind"] == "TrainJob":
            manifest["spec"]["runtimeRef"]["name"] = name
    return made


def with_plan(pod: Manifest, plan: str) -> Manifest:
    """A pod with the plan's ConfigMap at ``/plan``."""
    (container,) = pod["spec"]["containers"]
    container["volumeMounts"].append({"name": "plan", "mountPath": "/plan", "readOnly": True})
    pod["spec"]["volumes"].append({"name": "plan", "configMap": {"name": plan}})
    return pod


def job_spec(pod: Manifest, step: PlannedStep, *, parallel: int = 0) -> Manifest:
    """How a step's pods are started, and started again."""
    attended = step.stage in ATTENDED
    return {
        "completionMode": "Indexed",
        "completions": step.jobs,
        "parallelism": min(step.jobs, parallel or step.jobs),
        "backoffLimitPerIndex": 0 if attended else RETRIES,
        "maxFailedIndexes": 0,  # every shard is needed: the first that failed for good ends the Job
        **({} if attended else {"podFailurePolicy": {"rules": failure_rules()}}),
        "podReplacementPolicy": "Failed",
        "activeDeadlineSeconds": DEADLINE_S,
        "ttlSecondsAfterFinished": KEPT_S,
        "template": pod,
    }


def job_template(template: Manifest, args: list[str], labels: Mapping[str, str]) -> Manifest:
    """The pods of a service as those of a Job: they end, and nobody sends them traffic."""
    pod = copy.deepcopy(template)
    pod["metadata"] = {"labels": dict(labels)}
    pod["spec"]["restartPolicy"] = "Never"
    container = _main(pod)
    container["args"] = args
    container.pop("readinessProbe", None)
    return pod


def failure_rules() -> list[Manifest]:
    """What an ended pod means. Source: Kubernetes, Job, Pod failure policy; our exit statuses."""
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return [
        disrupted,
        _on_exit("FailIndex", sorted(map(int, FINAL))),
        _on_exit("Ignore", [int(ExitStatus.INTERRUPTED)]),
    ]


def job_name(run: str, step: str, digest: str) -> str:
    """A Job's name: readable, and another one for whatever is different in it, as a Job cannot be changed."""
    return f"{_plain(f'{run}-{step}')[: MAX_NAME - len(digest) - 1].rstrip('-')}-{digest}"


def runner_job(pipeline: Path, run: str, objects: Sequence[Manifest]) -> list[Manifest]:
    """A Job that submits a pipeline to the services on the bus and follows it.

    Args:
        pipeline: The file.
        run: Names the run.
        objects: The rendered overlay.
    """
    space = next((m["metadata"]["name"] for m in objects if m["kind"] == "Namespace"), "default")
    text = pipeline.read_text()
    templates = pod_templates(objects)
    labels = {**PART, NAME: "runner", COMPONENT: "job", RUN: run}
    command = ["run", "/pipeline/pipeline.yaml", "--run", run, "--no-services"]
    pod = job_template(_template_of("figures", templates), command, labels)
    spec, container = pod["spec"], _main(pod)
    container["command"] = ["sim2or"]
    container["workingDir"] = "/"
    container["env"] = [
        {"name": "SIM2OR_REDIS_URL", "value": "redis://runner@redis:6379/0"}
        if variable["name"] == "SIM2OR_REDIS_URL"
        else variable
        for variable in container["env"]
    ]
    for probe in ("startupProbe", "livenessProbe"):
        container.pop(probe, None)  # a command line has no health page; the deadline ends it
    spec["volumes"] += [
        volume
        for volume in _template_of("evaluator", templates)["spec"]["volumes"]
        if volume["name"] == "runs"
    ] + [{"name": "pipeline", "configMap": {"name": f"pipeline-{_plain(run)}"}}]
    container["volumeMounts"] += [
        {"name": "runs", "mountPath": "/runs"},
        {"name": "pipeline", "mountPath": "/pipeline", "readOnly": True},
    ]
    for volume in spec["volumes"]:
        if volume.get("secret", {}).get("secretName") == "keys-metrics":
            volume["secret"] = {**volume["secret"], "secretName": "keys-runner"}
    meta = {"namespace": space, "labels": labels}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"pipeline-{_plain(run)}", **meta},
            "data": {"pipeline.yaml": text},
        },
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"run-{_plain(run)}-{_digest(text)}"[:MAX_NAME], **meta},
            "spec": {
                "backoffLimit": RETRIES,
                "podFailurePolicy": {
                    "rules": [
                        {**rule, "action": "FailJob"} if rule["action"] == "FailIndex" else rule
                        for rule in failure_rules()
                    ]
                },
                "podReplacementPolicy": "Failed",
                "activeDeadlineSeconds": DEADLINE_S,
                "ttlSecondsAfterFinished": KEPT_S,
                "template": pod,
            },
        },
    ]


def to_yaml(manifests: Iterable[Manifest]) -> str:
    """Writes manifests as one stream of YAML documents."""
    return yaml.safe_dump_all(manifests, sort_keys=False, width=110)


def _is_around(manifest: Manifest, servers: set[str]) -> bool:
    """Whether Jobs need this of an overlay: everything that runs nothing, and the servers that they ask."""
    named = manifest["metadata"].get("labels", {}).get(NAME, "")
    return not named or named in servers


def _template_of(service: str, templates: Mapping[str, Manifest]) -> Manifest:
    if service not in templates:
        raise ConfigError(f"the overlay has no pods of {service!r}; {choices(service, templates)}")
    return templates[service]


def _pods_of_group(manifest: Manifest) -> Manifest:
    spec = manifest["spec"]["template"]["spec"] if manifest["kind"] == "TrainingRuntime" else manifest["spec"]
    pods: Manifest = spec["replicatedJobs"][0]["template"]["spec"]["template"]
    return pods


def _main(pod: Manifest) -> Manifest:
    found: Manifest = next(one for one in pod["spec"]["containers"] if one["name"] == MAIN)
    return found


def _on_exit(action: str, values: list[int]) -> Manifest:
    return {"action": action, "onExitCodes": {"containerName": MAIN, "operator": "In", "values": values}}


def _plain(text: str) -> str:
    """A name as Kubernetes allows it."""
    return text.replace("_", "-").strip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
