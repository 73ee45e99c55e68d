"""MuJoCo: the default engine, on a CPU."""

from sim2or_sim.backends.mujoco.gl import choose_gl

choose_gl(render=False)  # MuJoCo reads MUJOCO_GL once, when it is first imported
