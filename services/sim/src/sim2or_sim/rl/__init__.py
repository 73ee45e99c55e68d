"""Reinforcement learning: one contract on every engine, and PPO on it."""

import sim2or_sim.backends.mujoco  # noqa: F401 before MuJoCo is imported: it chooses its GL library
