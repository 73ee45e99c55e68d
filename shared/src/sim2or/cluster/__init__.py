"""Kubernetes: a pipeline as Jobs that need no bus, and the manifests that are derived from our own tables."""
