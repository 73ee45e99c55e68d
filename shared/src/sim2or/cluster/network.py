"""NetworkPolicies, written from the topic table: who may talk to whom, on which port, and nobody else.

A message that a topic carries gives its sender a way to whoever binds the road's socket: Redis for jobs and
events, the server for questions and for what it publishes. A policy is needed at both ends of a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sim2or.bus.keys import ROADS, callers
from sim2or.messages.topics import TOPICS

Manifest = dict[str, Any]

REDIS, REDIS_PORT = "redis", 6379
METRICS_PORT = 9464

PORTS: Mapping[tuple[str, str], int] = {
    ("policy", "rpc"): 7601,
    ("robot", "rpc"): 7602,
    ("robot", "pubsub"): 7603,
}
"""(server, road) to the port that it binds in a pod. Uploads have none: pods share a store or a mirror."""

PODS: Mapping[str, tuple[str, ...]] = {"cli": ("runner",), "console": ()}
"""What the table's people and tools are in a cluster; a service is its own pod, and there is no console."""

READERS = ("figures",)
"""Pods that only read the bus: they tell its figures."""

_NAME = "app.kubernetes.io/name"
_SPACE = "kubernetes.io/metadata.name"


def connections() -> dict[tuple[str, int], frozenset[str]]:
    """Every way there is: (server, port) to the pods that connect there."""
    durable = [topic for topic in TOPICS.values() if topic.road in ("jobs", "events")]
    members = {name for topic in durable for name in (*topic.publishers, *topic.consumers)}
    ways = {(REDIS, REDIS_PORT): frozenset(_pods(members)) | frozenset(READERS)}
    for (server, road), port in PORTS.items():
        table = {
            name: clients for known in ROADS if known == road for name, clients in callers(known).items()
        }
        ways[server, port] = frozenset(_pods(table[server]))
    return ways


def policies() -> list[Manifest]:
    """The policies of the namespace: nothing but name look-ups and what ``connections`` says."""
    ways = connections()
    clients = sorted({client for each in ways.values() for client in each})
    return [_default_deny(), _names(), *_incoming(ways), *(_outgoing(ways, client) for client in clients)]


def _pods(members: set[str] | frozenset[str]) -> Iterator[str]:
    for name in sorted(members):
        yield from PODS.get(name, (name,))


def _policy(name: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def _default_deny() -> Manifest:
    return _policy("default-deny", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})


def _names() -> Manifest:
    """Names are looked up in kube-system: its pods, as some networks match no selector with a ClusterIP."""
    ports = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    resolvers = {
        "namespaceSelector": {"matchLabels": {_SPACE: "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    return _policy(
        "names",
        {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [resolvers], "ports": ports}]},
    )


def _incoming(ways: Mapping[tuple[str, int], frozenset[str]]) -> Iterator[Manifest]:
    for server in sorted({server for server, _ in ways}):
        rules = [
            {"from": [_of(client) for client in sorted(clients)], "ports": [_tcp(port)]}
            for (name, port), clients in ways.items()
            if name == server
        ]
        yield _policy(f"to-{server}", {**_of(server), "policyTypes": ["Ingress"], "ingress": rules})


def _outgoing(ways: Mapping[tuple[str, int], frozenset[str]], client: str) -> Manifest:
    rules = [
        {"to": [_of(server)], "ports": [_tcp(port)]}
        for (server, port), clients in ways.items()
        if client in clients
    ]
    return _policy(f"from-{client}", {**_of(client), "policyTypes": ["Egress"], "egress": rules})


def _of(pod: str) -> Manifest:
    return {"podSelector": {"matchLabels": {_NAME: pod}}}


def _tcp(port: int) -> Manifest:
    return {"protocol": "TCP", "port": port}
