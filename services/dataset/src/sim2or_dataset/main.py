"""Wires the dataset service: episodes to parts, parts to a dataset; and the storekeeper."""

from sim2or.cli.service import service_app

app = service_app("dataset", servers={"receive": "sim2or.storekeeper:serve"})
