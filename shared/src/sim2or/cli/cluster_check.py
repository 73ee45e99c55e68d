"""What Kubernetes needs of this machine: kubectl, and a cluster that answers."""

from __future__ import annotations

import json

from sim2or.cli.check import Check, Checks, ask, numbers

MIN_KUBECTL = (1, 27)
"""Lowest kubectl whose kustomize (5.0) takes what k8s/ says."""


def _kubectl() -> Check:
    answer = ask("kubectl", "version", "--client", "-o", "json")
    if not answer.ok:
        return Check("kubectl", False, "no kubectl on PATH: kubernetes.io/docs/tasks/tools")
    client = json.loads(answer.out)
    version, kustomize = client["clientVersion"]["gitVersion"], client.get("kustomizeVersion", "none")
    lowest = ".".join(map(str, MIN_KUBECTL))
    text = f"{version} with kustomize {kustomize} ({lowest} or newer is needed)"
    return Check("kubectl", numbers(version)[:2] >= MIN_KUBECTL, text)


def _cluster() -> Check:
    answer = ask("kubectl", "version", "-o", "json", "--request-timeout=5s")
    server = json.loads(answer.out).get("serverVersion") if answer.out.startswith("{") else None
    if server:
        return Check("cluster", True, f"{server['gitVersion']} answers")
    said = answer.last if answer.found else "no kubectl"
    return Check(
        "cluster", False, f"no cluster answers ({said}): kubectl config get-contexts, or set KUBECONFIG"
    )


CHECKS: Checks = {"kubectl": _kubectl, "cluster": _cluster}
