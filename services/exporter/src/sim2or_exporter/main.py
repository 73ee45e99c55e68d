"""Wires the exporter service: a checkpoint to a model that runs without its framework."""

from sim2or.cli.service import service_app

app = service_app("exporter")
