"""Wires the trainer service: a dataset to a checkpoint."""

from sim2or.cli.service import service_app

app = service_app("trainer")
