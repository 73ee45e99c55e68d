"""Worlds and tasks, experts, rollout workers and the simulated robot."""
