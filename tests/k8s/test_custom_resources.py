"""Custom resources, field by field: what kubernetes-validate cannot know, written from their documentation.

Sources: KEDA, ScaledJob specification and Metrics API scaler, 2.14 to 2.20 · Kueue, API v1beta2 (0.15) ·
JobSet, api/jobset/v1alpha2 (0.8) · Kubeflow Trainer, trainer.kubeflow.org/v1alpha1, what 2.0 to 2.2 share ·
Prometheus operator, monitoring.coreos.com/v1, PodMonitor. An unknown field is an error here, as it is for an
API server that validates strictly.
"""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sim2or.bus.memory import MemoryBus, MemoryJobs
from sim2or.messages.job import Job
from sim2or.metrics import Metrics, queue_source
from sim2or.stages import STAGES
from tree import ALL, at, of_kind, pods, rendered

pytestmark = pytest.mark.usefixtures("kubectl")

Schema = dict[str, Any]


def record(required: str = "", **fields: Any) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(item: Schema, least: int = 1) -> Schema:
    """A list of alike items."""
    return {"type": "array", "items": item, "minItems": least}


def one_of(*values: str) -> Schema:
    """One of some texts."""
    return {"enum": list(values)}


TEXT: Schema = {"type": "string", "minLength": 1}
NUMBER: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?$"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
POD: Schema = {"type": "object", "required": ["metadata", "spec"]}
"""Validated as a pod, elsewhere."""

SELECTOR = record(matchLabels=LABELS)
TOLERATION = record(
    "key operator effect", key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT, effect=TEXT
)

JOB = record(
    "template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode=one_of("Indexed", "NonIndexed"),
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    ttlSecondsAfterFinished=COUNT,
    template=POD,
)

REPLICATED_JOB = record(
    "name template",
    name=TEXT,
    replicas=COUNT,
    template=record("spec", metadata=record(labels=LABELS), spec=JOB),
)

QUOTA = record("name nominalQuota", name=TEXT, nominalQuota=TEXT, borrowingLimit=TEXT, lendingLimit=TEXT)

SPECS: dict[tuple[str, str], Schema] = {
    ("keda.sh/v1alpha1", "ScaledJob"): record(
        "jobTargetRef triggers",
        jobTargetRef=JOB,
        pollingInterval=COUNT,
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        successfulJobsHistoryLimit=COUNT,
        failedJobsHistoryLimit=COUNT,
        rollout=record(
            strategy=one_of("default", "gradual"), propagationPolicy=one_of("background", "foreground")
        ),
        scalingStrategy=record(
            strategy=one_of("default", "custom", "accurate", "eager"),
            multipleScalersCalculation=one_of("max", "min", "avg", "sum"),
        ),
        triggers=listed(
            record(
                "type metadata",
                type=one_of("metrics-api"),
                metadata=record(
                    "url valueLocation targetValue",
                    url={"type": "string", "pattern": r"^https?://"},
                    format=one_of("json", "xml", "yaml", "prometheus"),
                    valueLocation=TEXT,
                    targetValue=NUMBER,
                    activationTargetValue=NUMBER,
                ),
            )
        ),
    ),
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): record(
        nodeLabels=LABELS, nodeTaints=listed(TOLERATION), tolerations=listed(TOLERATION), topologyName=TEXT
    ),
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): record(
        "resourceGroups namespaceSelector",
        namespaceSelector=SELECTOR,
        queueingStrategy=one_of("StrictFIFO", "BestEffortFIFO"),
        preemption=record(
            withinClusterQueue=one_of("Never", "LowerPriority", "LowerOrNewerEqualPriority"),
            reclaimWithinCohort=one_of("Never", "LowerPriority", "Any"),
        ),
        resourceGroups=listed(
            record(
                "coveredResources flavors",
                coveredResources=listed(TEXT),
                flavors=listed(record("name resources", name=TEXT, resources=listed(QUOTA))),
            )
        ),
    ),
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): record("clusterQueue", clusterQueue=TEXT),
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): record(
        "replicatedJobs",
        replicatedJobs=listed(REPLICATED_JOB),
        network=record(enableDNSHostnames=FLAG, subdomain=TEXT, publishNotReadyAddresses=FLAG),
        successPolicy=record("operator", operator=one_of("All", "Any"), targetReplicatedJobs=listed(TEXT)),
        failurePolicy=record(
            maxRestarts=COUNT, restartStrategy=one_of("Recreate", "BlockingRecreate", "InPlaceRestart")
        ),
        suspend=FLAG,
        ttlSecondsAfterFinished=COUNT,
    ),
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): record(
        "template",
        mlPolicy=record(numNodes=COUNT, torch=record()),
        template=record("spec", spec=record("replicatedJobs", replicatedJobs=listed(REPLICATED_JOB))),
    ),
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): record(
        "runtimeRef",
        runtimeRef=record(
            "name",
            name=TEXT,
            apiGroup=one_of("trainer.kubeflow.org"),
            kind=one_of("TrainingRuntime", "ClusterTrainingRuntime"),
        ),
        trainer=record(numNodes=COUNT, command=listed(TEXT), args=listed(TEXT)),
        suspend=FLAG,
    ),
    ("monitoring.coreos.com/v1", "PodMonitor"): record(
        "selector podMetricsEndpoints",
        jobLabel=TEXT,
        selector=SELECTOR,
        podMetricsEndpoints=listed(
            record("port", port=TEXT, path=TEXT, interval=TEXT, scrapeTimeout=TEXT, honorLabels=FLAG)
        ),
    ),
}

CORE = ("v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1", "scheduling.k8s.io/v1")


@pytest.mark.parametrize("name", ALL)
def test_custom_resources_have_only_fields_of_their_documentation(name: str) -> None:
    """Each custom resource of each tree has a known kind, its required fields and no others."""
    for manifest in rendered(name):
        kind = (manifest["apiVersion"], manifest["kind"])
        if manifest["apiVersion"] in CORE:
            continue
        if kind == ("kueue.x-k8s.io/v1beta2", "WorkloadPriorityClass"):
            jsonschema.validate(
                {k: manifest[k] for k in ("value", "description")}, record(value=COUNT, description=TEXT)
            )
            continue
        jsonschema.validate(manifest.get("spec", {}), SPECS[kind])


@pytest.mark.parametrize("kind", [kind for _, kind in SPECS])
def test_every_custom_resource_is_in_some_tree(kind: str) -> None:
    """No schema of this page describes something that is not rendered."""
    assert any(of_kind(name, kind) for name in ALL)


def test_a_misspelt_field_is_found() -> None:
    """The check is one: a ScaledJob with a wrong key is refused."""
    (job,) = of_kind("components/keda", "ScaledJob")
    wrong = job["spec"] | {"maxReplicas": 3}
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate(wrong, SPECS["keda.sh/v1alpha1", "ScaledJob"])


@pytest.mark.parametrize("name", ["components/keda", "overlays/cluster", "overlays/cluster-s3"])
def test_elastic_workers_are_the_pods_of_the_deployment(name: str) -> None:
    """A worker that KEDA starts is what the Deployment would run, but it ends when it is idle."""
    (scaled,) = of_kind(name, "ScaledJob")
    elastic = at(scaled, "spec.jobTargetRef.template.spec")
    (plain,) = [t for where, t in pods(rendered("overlays/spark")) if where == "Deployment/sim"]
    assert elastic["containers"][0]["args"] == ["serve", "--idle-s", "60"]
    assert elastic["containers"][0]["image"] == plain["spec"]["containers"][0]["image"]
    for key in ("securityContext", "initContainers"):
        assert elastic[key] == plain["spec"][key]
    assert not [d for d in of_kind(name, "Deployment") if d["metadata"]["name"] == "sim"]


def test_the_trigger_reads_a_figure_that_exists() -> None:
    """KEDA's selectors, applied as KEDA applies them, find the outstanding jobs on a real page of metrics."""
    (scaled,) = of_kind("components/keda", "ScaledJob")
    jobs = MemoryJobs(MemoryBus())
    jobs.submit(Job(stage="collect", key="a"))
    page = _page(jobs)
    values = [_select(page, trigger["metadata"]["valueLocation"]) for trigger in scaled["spec"]["triggers"]]
    assert values == [1.0, 0.0]
    service = {stage.name for stage in STAGES if stage.service == "sim"}
    asked = {trigger["metadata"]["valueLocation"].split('"')[1] for trigger in scaled["spec"]["triggers"]}
    assert asked == service


def test_scaling_starts_what_is_missing() -> None:
    """Outstanding counts running jobs, so that outstanding less running workers is what must be started."""
    (scaled,) = of_kind("components/keda", "ScaledJob")
    assert scaled["spec"]["scalingStrategy"] == {"strategy": "default", "multipleScalersCalculation": "sum"}
    assert all(trigger["metadata"]["targetValue"] == "1" for trigger in scaled["spec"]["triggers"])
    jobs = MemoryJobs(MemoryBus())
    for key in "abc":
        jobs.submit(Job(stage="collect", key=key))
    jobs.claim("collect", "worker", block_s=0)
    assert _select(_page(jobs), 'sim2or_jobs_outstanding{stage="collect"}') - 1 == 2


def test_the_figures_are_reached_by_keda_only() -> None:
    """The trigger's address is the Service of the figures, and a policy lets KEDA's namespace in there."""
    (scaled,) = of_kind("overlays/cluster", "ScaledJob")
    (service,) = [s for s in of_kind("overlays/cluster", "Service") if s["metadata"]["name"] == "figures"]
    address = (
        f"http://figures.{service['metadata']['namespace']}.svc:{service['spec']['ports'][0]['port']}/metrics"
    )
    assert {trigger["metadata"]["url"] for trigger in scaled["spec"]["triggers"]} == {address}
    (policy,) = [
        p for p in of_kind("overlays/cluster", "NetworkPolicy") if p["metadata"]["name"] == "keda-to-figures"
    ]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= service["spec"]["selector"].items()


def test_queues_fit_together() -> None:
    """Flavours, queues and priorities that are named exist, and what can wait in a queue names it."""
    tree = "overlays/cluster"
    flavours = {f["metadata"]["name"] for f in of_kind(tree, "ResourceFlavor")}
    (queue,), (local,) = of_kind(tree, "ClusterQueue"), of_kind(tree, "LocalQueue")
    named = [f for group in queue["spec"]["resourceGroups"] for f in group["flavors"]]
    assert {flavour["name"] for flavour in named} == flavours
    for group in queue["spec"]["resourceGroups"]:
        for flavour in group["flavors"]:
            assert [r["name"] for r in flavour["resources"]] == group["coveredResources"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (scaled,) = of_kind(tree, "ScaledJob")
    assert scaled["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    asked = {
        key for _, pod in pods(rendered(tree)) for key in at(pod, "spec.containers.0.resources.requests")
    }
    covered = {r for group in queue["spec"]["resourceGroups"] for r in group["coveredResources"]}
    assert asked <= covered, "Kueue never admits what asks for a resource that no group covers"


@pytest.mark.parametrize("kind", ["JobSet", "TrainingRuntime"])
def test_training_meets_in_one_group(kind: str) -> None:
    """As many pods start as torchrun waits for; they meet at the first of the set that they belong to."""
    name = {"JobSet": "components/jobset", "TrainingRuntime": "components/trainjob"}[kind]
    (found,) = of_kind(name, kind)
    (replicated,) = at(
        found, "spec.replicatedJobs" if kind == "JobSet" else "spec.template.spec.replicatedJobs"
    )
    job = replicated["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    if kind == "JobSet":
        nodes, command, args = job["completions"], container["command"], container["args"]
        assert (job["parallelism"], replicated["replicas"], job["completionMode"]) == (nodes, 1, "Indexed")
        assert found["spec"]["suspend"] is True
    else:
        (train_job,) = of_kind(name, "TrainJob")
        nodes, command, args = (
            at(train_job, f"spec.trainer.{key}") for key in ("numNodes", "command", "args")
        )
        assert at(found, "spec.mlPolicy.numNodes") == nodes
        assert train_job["spec"]["suspend"] is True
    options = dict(text[2:].split("=", 1) for text in command if text.startswith("--"))
    assert (command[0], command[-2:]) == ("torchrun", ["-m", "sim2or_trainer"])
    assert options["nnodes"] == str(nodes)
    assert options["rdzv-backend"] == "c10d"
    assert options["rdzv-endpoint"] == f"$(SET)-{replicated['name']}-0-0.$(SET):29400"
    (label,) = [one["valueFrom"]["fieldRef"]["fieldPath"] for one in container["env"] if one["name"] == "SET"]
    assert label == "metadata.labels['jobset.sigs.k8s.io/jobset-name']"
    assert args[0] == "shard"
    assert args[-2:] == ["--index", "0"], "the pods of a set have indexes of their own, the question has none"


@pytest.mark.parametrize("name", ["components/jobset", "components/trainjob"])
def test_processes_of_a_group_reach_one_another(name: str) -> None:
    """The trainers of Jobs may talk to one another and the policy lets nobody else in."""
    (policy,) = [p for p in of_kind(name, "NetworkPolicy") if p["metadata"]["name"] == "trainer-group"]
    spec = policy["spec"]
    own = spec["podSelector"]
    assert spec["ingress"][0]["from"] == spec["egress"][0]["to"] == [{"podSelector": own}]
    (labels,) = [t["metadata"]["labels"] for where, t in pods(rendered(name)) if "trainer" in where]
    assert own["matchLabels"].items() <= labels.items()


def test_a_train_job_finds_its_runtime() -> None:
    """The TrainJob names the runtime beside it, where Kubeflow finds the container `node` of its trainer."""
    (job,), (runtime,) = (
        of_kind("components/trainjob", "TrainJob"),
        of_kind("components/trainjob", "TrainingRuntime"),
    )
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (replicated,) = at(runtime, "spec.template.spec.replicatedJobs")
    labels = replicated["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert [c["name"] for c in replicated["template"]["spec"]["template"]["spec"]["containers"]] == ["node"]


def _page(jobs: MemoryJobs) -> str:
    from prometheus_client.exposition import generate_latest

    source = queue_source(jobs, [stage.queue for stage in STAGES])
    return generate_latest(Metrics("figures", {"bus": source}).registry).decode()


def _select(page: str, selector: str) -> float:
    """What KEDA reads: the one sample whose name and labels fit. Source: KEDA, metrics_api_scaler.go."""
    name, _, rest = selector.partition("{")
    key, _, value = rest.rstrip("}").partition("=")
    found = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and sample.labels.get(key) == value.strip('"')
    ]
    (only,) = found
    return only
