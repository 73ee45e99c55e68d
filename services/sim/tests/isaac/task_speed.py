"""How many steps per second an environment makes, as one line of JSON for each number of environments.

Usage: .venv-isaac/bin/python services/sim/tests/isaac/task_speed.py ID NUM_ENVS…
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from sim2or_sim.backends.isaaclab.tasks import HAND_OVER, make_env

WARM_UP, STEPS = 3, 20


def speed(name: str, num_envs: int) -> dict[str, Any]:
    """Steps that hold still, cameras of the hand-over included, after the first few."""
    env = make_env(name, num_envs=num_envs, seed=0).unwrapped
    env.reset()
    count = env.action_manager.total_action_dim
    action = torch.tensor([env.robot.home_rad] if name == HAND_OVER else [[0.0] * count])
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            began_s, cpu_s = time.monotonic(), time.process_time()
        env.step(action.expand(num_envs, count))
    wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    env.close()
    return {
        "id": name,
        "num_envs": num_envs,
        "physics_hz": round(1 / env.physics_dt),
        "env_steps_per_s": round(num_envs * STEPS / wall_s, 1),
        "wall_ms_per_step": round(1e3 * wall_s / STEPS, 1),
        "env_steps_per_cpu_s": round(num_envs * STEPS / cpu_s, 1),
        "cpu_ms_per_step": round(1e3 * cpu_s / STEPS, 1),
        "load_1min": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    for given in sys.argv[2:]:
        print(json.dumps(speed(sys.argv[1], int(given))))
