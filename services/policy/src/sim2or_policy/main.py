"""Wires the policy server: observations to action chunks."""

from sim2or.cli.service import service_app

app = service_app("policy", servers={"serve": "sim2or_policy.server:serve"})
