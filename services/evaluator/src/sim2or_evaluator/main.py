"""Wires the evaluator service: trials to a verdict, evidence to a report."""

from sim2or.cli.service import service_app

app = service_app("evaluator")
