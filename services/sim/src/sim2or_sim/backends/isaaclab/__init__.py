"""Isaac Lab 3: Newton or PhysX, without Kit; an environment of its own (``make setup-isaac``)."""

import sim2or_sim.backends.mujoco  # noqa: F401 before Newton imports MuJoCo: it chooses its GL library
