"""MuJoCo reads which GL library to use when it is first imported: ours chooses before any test imports it."""

import sim2or_sim.backends.mujoco  # noqa: F401
