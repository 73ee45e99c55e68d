"""A tiny service for tests: real stages in a real package, with faults on request."""
