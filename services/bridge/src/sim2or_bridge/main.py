"""Wires the bridge: real-time trials of a verified model on a robot."""

from sim2or.cli.service import service_app

app = service_app("bridge")
