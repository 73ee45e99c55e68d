"""A tiny service for tests: makes something that passes for an exported model."""
