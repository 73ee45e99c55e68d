"""Wires the dataset service: episodes to parts, parts to a dataset."""

from sim2or.cli.service import service_app

app = service_app("dataset")
