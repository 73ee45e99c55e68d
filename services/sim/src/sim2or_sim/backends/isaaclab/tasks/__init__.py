"""Isaac Lab environments of our operating room; importing this registers them with gymnasium.

::

    import gymnasium
    import sim2or_sim.backends.isaaclab.tasks
    from sim2or_sim.backends.isaaclab.tasks.reach import ReachEnvCfg

    env = gymnasium.make("Sim2or-Reach-SO101-v0", cfg=ReachEnvCfg())
"""

from __future__ import annotations

from typing import Any

import gymnasium

HAND_OVER, REACH, GRASP = (f"Sim2or-{name}-SO101-v0" for name in ("HandOver", "Reach", "Grasp"))


def _register(name: str, module: str, env: str) -> None:
    gymnasium.register(
        id=name,
        entry_point=f"{__name__}.{module}:{env}",
        kwargs={"env_cfg_entry_point": f"{__name__}.{module}:{env}Cfg"},
        disable_env_checker=True,
    )


_register(HAND_OVER, "hand_over", "HandOverEnv")
_register(REACH, "reach", "ReachEnv")
_register(GRASP, "grasp", "GraspEnv")


def make_env(name: str, *, num_envs: int, seed: int | None = None, device: str = "", **fields: Any) -> Any:
    """Makes an environment by its id, as the command-line tools of Isaac Lab do.

    Args:
        name: One of the ids above.
        num_envs: How many environments step together.
        seed: Of everything that is drawn; None: not seeded.
        device: ``cpu`` or ``cuda:N``; default: what ``SIM2OR_ISAAC_DEVICE`` says.
        fields: Of its configuration, for example ``instruments=("scalpel",)``.
    """
    from isaaclab.utils.string import string_to_callable

    entry = gymnasium.spec(name).kwargs["env_cfg_entry_point"]
    cfg = string_to_callable(entry)(**fields)
    cfg.scene.num_envs, cfg.seed = num_envs, seed
    cfg.sim.device = device or cfg.sim.device
    return gymnasium.make(name, cfg=cfg)
