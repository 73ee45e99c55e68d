"""What schemas do not say: every overlay and every component hangs together, and every pod is hardened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml
from sim2or.cluster.network import METRICS_PORT, connections, policies
from sim2or.stages import SERVICES, STAGES
from tree import ALL, ROOT, Manifest, at, of_kind, pods, rendered

pytestmark = pytest.mark.usefixtures("kubectl")

VERSIONS = ("1.29", "1.37")
"""The oldest Kubernetes with per-index backoff and pod replacement by default, and the newest known."""

CORE = ("v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1", "scheduling.k8s.io/v1")
QUANTITY = re.compile(r"(\d+)(Ki|Mi|Gi|Ti)")


@cache
def check_schema(manifest: str, version: str) -> None:
    """Validates one object; trees share most of theirs."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ALL)
def test_every_manifest_fits_the_schemas(name: str, version: str) -> None:
    """Each core object of each tree is valid, unknown fields included, at the oldest and newest version."""
    for manifest in rendered(name):
        if manifest["apiVersion"] in CORE:
            check_schema(json.dumps(manifest), version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ALL)
def test_pods_of_custom_resources_fit_the_schemas(name: str, version: str) -> None:
    """The pods inside a ScaledJob, JobSet or TrainingRuntime are valid pods."""
    for manifest in rendered(name):
        if manifest["apiVersion"] not in CORE:
            for _, template in pods([manifest]):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
                check_schema(json.dumps(pod), version)


@pytest.mark.parametrize("name", ALL)
def test_selectors_match_labels(name: str) -> None:
    """Workloads select their own pods; Services, budgets and monitors select pods that exist."""
    every = [template["metadata"]["labels"] for _, template in pods(rendered(name))]
    for manifest in rendered(name):
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items(), manifest["metadata"]
        wanted: Manifest = {}
        if kind in ("PodDisruptionBudget", "PodMonitor"):
            wanted = spec["selector"]["matchLabels"]
        elif kind == "Service":
            wanted = spec["selector"]
        assert any(wanted.items() <= labels.items() for labels in every), manifest["metadata"]


@pytest.mark.parametrize("name", ALL)
def test_no_two_workloads_select_the_same_pods(name: str) -> None:
    """A pod belongs to one Deployment or StatefulSet, and the pods of Jobs to none."""
    selectors = {
        f"{m['kind']}/{m['metadata']['name']}": m["spec"]["selector"]["matchLabels"]
        for m in rendered(name)
        if m["kind"] in ("Deployment", "StatefulSet")
    }
    for where, template in pods(rendered(name)):
        labels = template["metadata"]["labels"]
        owners = [owner for owner, chosen in selectors.items() if chosen.items() <= labels.items()]
        assert owners == ([where] if where in selectors else [])


@pytest.mark.parametrize("name", ALL)
def test_services_reach_ports_that_exist(name: str) -> None:
    """Each port of a Service is a named port of the pods that it selects."""
    for service in of_kind(name, "Service"):
        chosen = service["spec"]["selector"].items()
        (pod,) = [t for _, t in pods(rendered(name)) if chosen <= t["metadata"]["labels"].items()]
        offered = {p["name"]: p["containerPort"] for c in pod["spec"]["containers"] for p in c["ports"]}
        for port in service["spec"]["ports"]:
            assert offered[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("name", ALL)
def test_volumes_exist(name: str) -> None:
    """Every mount has its volume, every volume a mount, every claim and config map is there."""
    made = {(m["kind"], m["metadata"]["name"]) for m in rendered(name)}
    claims = {
        c["metadata"]["name"]
        for m in of_kind(name, "StatefulSet")
        for c in m["spec"].get("volumeClaimTemplates", ())
    }
    for where, template in pods(rendered(name)):
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert len(volumes) == len(spec["volumes"]), f"{where}: a volume twice"
        mounted = {mount["name"] for one in _containers(spec) for mount in one["volumeMounts"]}
        assert mounted - claims == set(volumes), where
        for volume in volumes.values():
            assert len(volume) == 2, f"{where}: {volume} has not exactly one source"
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
            if "secret" in volume:
                assert volume["secret"]["secretName"].startswith("keys-")
        for one in spec["containers"]:
            for source in one.get("envFrom", ()):
                if "configMapRef" in source:
                    assert ("ConfigMap", source["configMapRef"]["name"]) in made


@pytest.mark.parametrize("name", ALL)
def test_every_container_is_hardened(name: str) -> None:
    """No root, no privilege, nothing writable but volumes, no API token: `restricted` and more."""
    for where, template in pods(rendered(name)):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["enableServiceLinks"] is False, where
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), where
        assert not [v for v in spec["volumes"] if "hostPath" in v], where
        for one in _containers(spec):
            context = one["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, where
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert "privileged" not in context


@pytest.mark.parametrize("name", ALL)
def test_every_container_is_limited(name: str) -> None:
    """Requests and limits of processor, memory and disk; no memory overcommitted, no volume beyond it."""
    for where, template in pods(rendered(name)):
        spec = template["spec"]
        assert spec["terminationGracePeriodSeconds"] >= 15, where
        for one in _containers(spec):
            requests, limits = one["resources"]["requests"], one["resources"]["limits"]
            assert {"cpu", "memory", "ephemeral-storage"} <= requests.keys() & limits.keys(), where
            assert requests["memory"] == limits["memory"], where
        empty = [v["emptyDir"] for v in spec["volumes"] if "emptyDir" in v]
        assert all("sizeLimit" in volume for volume in empty), where
        disk = sum(_bytes(volume["sizeLimit"]) for volume in empty if volume.get("medium") != "Memory")
        assert disk <= max(_bytes(c["resources"]["limits"]["ephemeral-storage"]) for c in spec["containers"])


@pytest.mark.parametrize("name", ALL)
def test_every_container_is_probed(name: str) -> None:
    """Start-up and liveness everywhere, readiness where somebody waits for it: not for Jobs, which end."""
    for where, template in pods(rendered(name)):
        service = template["metadata"]["labels"]["app.kubernetes.io/component"] == "service"
        for one in template["spec"]["containers"]:
            probes = {"startupProbe", "livenessProbe"} | ({"readinessProbe"} if service else set())
            assert {key for key in one if key.endswith("Probe")} == probes, where
        assert template["spec"].get("restartPolicy") == (None if service else "Never"), where


@pytest.mark.parametrize("name", ALL)
def test_the_grace_of_the_kubelet_is_longer_than_ours(name: str) -> None:
    """A service that takes its whole grace to unwind, twice, still ends before it is killed."""
    for where, template in pods(rendered(name)):
        for one in template["spec"]["containers"]:
            grace_s = float(_environment(one).get("SIM2OR_GRACE_S", 3.0))
            assert template["spec"]["terminationGracePeriodSeconds"] >= 1.5 * grace_s, where


@pytest.mark.parametrize("name", ALL)
def test_images_are_pinned(name: str) -> None:
    """Every image has a version or a digest, never `latest`; ours is the version of the package."""
    version = re.search(r'^version = "(.+)"', (ROOT.parent / "shared/pyproject.toml").read_text(), re.M)
    assert version
    for where, template in pods(rendered(name)):
        for one in _containers(template["spec"]):
            image, _, tag = one["image"].rpartition(":")
            assert image, f"{where}: {one['image']} has no tag"
            assert tag not in ("", "latest"), f"{where}: {one['image']}"
            if image.startswith("sim2or/"):
                assert tag == version[1], where


@pytest.mark.parametrize("name", ALL)
def test_nobody_has_anothers_keys(name: str) -> None:
    """Each service mounts the Secret of its own name and logs in to Redis as itself."""
    for where, template in pods(rendered(name)):
        service = template["metadata"]["labels"]["app.kubernetes.io/name"]
        own = {"figures": "metrics"}.get(service, service)
        found = [v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v]
        assert found in ([f"keys-{own}"], [] if name == "components/hardening" else [f"keys-{own}"]), where
        for one in template["spec"]["containers"]:
            url = _environment(one).get("SIM2OR_REDIS_URL", "")
            assert not url or url.startswith(f"redis://{own}@"), where


def test_every_service_of_the_table_has_pods() -> None:
    """The base, or a component for it, runs each service with its image and the command of the table."""
    trees = ("overlays/spark", "components/isaaclab", "components/rl")
    found = {where.partition("/")[2]: template for name in trees for where, template in pods(rendered(name))}
    images = {"sim-isaaclab": "sim-isaaclab", "rl": "rl"}
    for info in SERVICES:
        (container,) = found[info.name]["spec"]["containers"]
        image = images.get(info.name, info.module.removeprefix("sim2or_"))
        assert container["image"].startswith(f"sim2or/{image}:")
        assert container["args"] == list(info.command)


def test_the_network_policies_are_those_of_the_topic_table() -> None:
    """The committed file is what the generator writes today."""
    text = (ROOT / "base/space/network-policies.yaml").read_text()
    assert list(yaml.safe_load_all(text)) == policies(), "make k8s-render writes it anew"


def test_the_ways_are_those_that_stages_need() -> None:
    """A stage's service reaches the bus and every server that the stage needs, and nobody reaches more."""
    ways = connections()
    for stage in STAGES:
        assert stage.service in ways["redis", 6379]
        for server in stage.needs:
            assert any(stage.service in clients for (name, _), clients in ways.items() if name == server)
    assert ways["robot", 7602] == {"bridge"}
    assert ways["robot", 7603] == {"bridge"}
    assert ways["policy", 7601] == {"bridge", "sim", "sim-isaaclab"}
    assert ways["redis", 6379] == {stage.service for stage in STAGES} | {"runner", "figures"}


@pytest.mark.parametrize("name", ["overlays/spark", "overlays/cluster", "overlays/edge"])
def test_everything_is_forbidden_first(name: str) -> None:
    """A policy without rules holds for every pod of the namespace, in both directions."""
    (deny,) = [p for p in of_kind(name, "NetworkPolicy") if p["metadata"]["name"] == "default-deny"]
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (space,) = of_kind(name, "Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("name", ALL)
def test_endpoints_lead_where_policies_allow(name: str) -> None:
    """Whoever is told the address of a server in the namespace may reach it there."""
    ways = connections()
    services = {service["metadata"]["name"] for service in of_kind(name, "Service")}
    for where, template in pods(rendered(name)):
        pod = template["metadata"]["labels"]["app.kubernetes.io/name"]
        for one in template["spec"]["containers"]:
            for host, port in _addresses(one):
                if host in services:
                    assert pod in ways[host, port], f"{where} asks {host}:{port}"


def test_the_robot_side_listens_to_nobody() -> None:
    """In the edge overlay nobody from outside the namespace is let in, and the bridge has no Service."""
    assert {service["metadata"]["name"] for service in of_kind("overlays/edge", "Service")} == {"robot"}
    for policy in of_kind("overlays/edge", "NetworkPolicy"):
        for rule in policy["spec"].get("ingress", ()):
            assert all(set(peer) == {"podSelector"} for peer in rule["from"]), policy["metadata"]
    for where, template in pods(rendered("overlays/edge")):
        assert template["spec"]["nodeSelector"] == {"sim2or.io/robot": "or1"}, where
    assert all(
        deployment["spec"]["strategy"] == {"type": "Recreate"} and deployment["spec"]["replicas"] == 1
        for deployment in of_kind("overlays/edge", "Deployment")
    )


def test_no_pod_waits_for_a_file_system_that_one_node_has() -> None:
    """With an object store nothing shares a volume: each claim has one user."""
    claims = [
        volume["persistentVolumeClaim"]["claimName"]
        for _, template in pods(rendered("overlays/cluster-s3"))
        for volume in template["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert claims == ["trainer"]


def test_metrics_have_one_port() -> None:
    """The port in the pods, the monitor and the policies is the same."""
    for _, template in pods(rendered("overlays/cluster")):
        for one in template["spec"]["containers"]:
            ports = {port["name"]: port["containerPort"] for port in one["ports"]}
            assert ports.get("metrics", METRICS_PORT) == METRICS_PORT
            assert _environment(one).get("SIM2OR_METRICS_PORT", str(METRICS_PORT)) == str(METRICS_PORT)
    (monitor,) = of_kind("overlays/cluster", "PodMonitor")
    assert at(monitor, "spec.podMetricsEndpoints.0.port") == "metrics"


def _containers(spec: Manifest) -> list[Manifest]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def _environment(container: Manifest) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}


def _addresses(container: Manifest) -> Iterator[tuple[str, int]]:
    for value in _environment(container).values():
        if found := re.fullmatch(r"(?:redis|tcp)://(?:\w+@)?([a-z]+):(\d+)(?:/0)?", value):
            yield found[1], int(found[2])


def _bytes(text: Any) -> int:
    found = QUANTITY.fullmatch(str(text))
    assert found, text
    return int(found[1]) * 1024 ** (1 + ("Ki", "Mi", "Gi", "Ti").index(found[2]))
