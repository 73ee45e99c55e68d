"""What Isaac Lab is told: physics, scene and cameras of a batch of operating rooms."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Literal

import isaaclab.sim as isaac
import torch
from isaaclab.actuators import ImplicitActuatorCfg
from isaaclab.assets import ArticulationCfg, AssetBaseCfg, RigidObjectCfg
from isaaclab.physics import PhysicsCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sensors import CameraCfg, ContactSensorCfg
from isaaclab.sim import SimulationCfg
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg
from isaaclab_newton.renderers import NewtonWarpRendererCfg
from pydantic_settings import BaseSettings, SettingsConfigDict
from sim2or.contracts.task import TaskProfile
from sim2or.errors import ConfigError

from sim2or_sim.backends.isaaclab.usd import Assets

ROBOT, ROOM = "robot", "theatre"
PARKED_M = -5.0  # what is not in use hangs here, under the floor
_APART_M = 0.0  # physics and Newton's cameras keep environments apart: each may have its base at the origin
_APART_SEEN_M = 6.0  # RTX sees all environments at once, so that they stand side by side
_CONTACTS, _CONSTRAINTS = 64, 300  # room for this many in each environment
_LOOSE_CONTACTS, _LOOSE_CONSTRAINTS = 16, 64  # and for each loose part of an own room
_CONTACT_POINTS = 64  # that PhysX tells of an instrument in a step
# What Isaac Lab 3.0.0 asks for; without dependencies, as ovphysx wants a packaging that is too old for us.
_OVPHYSX = "--no-deps ovphysx==0.6.4.72118723 ovstage==0.2.1.385922"
_OVRTX = "--no-deps ovrtx==0.5.1.385782 ovstage==0.2.1.385922"
_ISAACSIM = "'isaaclab[isaacsim]==3.0.0'"


class IsaacSettings(BaseSettings):
    """Where Isaac Lab computes, and with what, from ``SIM2OR_ISAAC_…``.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        physics: ``newton`` (MuJoCo-Warp), ``ovphysx`` (PhysX without Kit) or ``physx`` (in Isaac Sim's Kit).
        renderer: What renders the cameras: ``newton`` anywhere, ``ovrtx`` or ``isaacsim_rtx`` on an RTX card.
        iterations: Most iterations of the constraint solver in a physics step.
    """

    model_config = SettingsConfigDict(env_prefix="SIM2OR_ISAAC_")

    device: str = "cpu"
    physics: Literal["newton", "ovphysx", "physx"] = "newton"
    renderer: Literal["newton", "ovrtx", "isaacsim_rtx"] = "newton"
    iterations: int = 30

    @property
    def kit(self) -> bool:
        """Whether Isaac Sim's Kit is needed."""
        return self.physics == "physx" or self.renderer == "isaacsim_rtx"


def check(settings: IsaacSettings) -> None:
    """Refuses what cannot work together or is not installed.

    Raises:
        ConfigError: Which setting, why, and what to do.
    """
    alone = [name for name in (settings.physics, settings.renderer) if name in ("ovphysx", "ovrtx")]
    if settings.kit and alone:
        raise ConfigError(
            f"SIM2OR_ISAAC_PHYSICS={settings.physics} with SIM2OR_ISAAC_RENDERER={settings.renderer}: "
            f"{alone[0]} cannot share a process with Isaac Sim's Kit; valid with Kit: newton or physx, "
            "newton or isaacsim_rtx; without: newton or ovphysx, newton or ovrtx"
        )
    for chosen, module, install in (
        (settings.physics == "ovphysx", "ovphysx", _OVPHYSX),
        (settings.renderer == "ovrtx", "ovrtx", _OVRTX),
        (settings.kit, "isaacsim", _ISAACSIM),
    ):
        if chosen and find_spec(module) is None:
            raise ConfigError(
                f"SIM2OR_ISAAC_PHYSICS={settings.physics}, SIM2OR_ISAAC_RENDERER={settings.renderer}: "
                f"{module} is not installed; run: uv pip install --python .venv-isaac {install}"
            )
    if settings.renderer != "newton" and not torch.cuda.is_available():
        raise ConfigError(
            f"SIM2OR_ISAAC_RENDERER={settings.renderer}: there is no RTX card with a driver here; use newton"
        )
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"SIM2OR_ISAAC_DEVICE={settings.device}: there is no CUDA device here; use cpu")


def runtime(settings: IsaacSettings, render: bool) -> AbstractContextManager[Any]:
    """Isaac Sim's Kit while it is needed, nothing otherwise; enter it before the simulation is made.

    Raises:
        ConfigError: Settings that cannot work together, or what they need is not installed.
    """
    check(settings)
    if not settings.kit:
        return nullcontext()
    from isaaclab.app import launch_simulation

    wanted = {"require_kit": True, "headless": True, "enable_cameras": render, "device": settings.device}
    launched: AbstractContextManager[Any] = launch_simulation(_physics(settings), wanted)
    return launched


def simulation(task: TaskProfile, settings: IsaacSettings, loose: int = 0) -> SimulationCfg:
    """Physics with the step of the MuJoCo model.

    Args:
        task: The task.
        settings: Where and with what.
        loose: How many parts of an own room move when they are pushed.

    Raises:
        ConfigError: Settings that cannot work together, or what they need is not installed.
    """
    check(settings)
    return SimulationCfg(
        device=settings.device,
        dt=1.0 / task.physics_hz,
        render_interval=task.substeps,
        physics=_physics(settings, loose),
    )


def _physics(settings: IsaacSettings, loose: int = 0) -> PhysicsCfg:
    """Newton with MuJoCo's integrator and friction cone; PhysX with its own solver, the same in every run."""
    if settings.physics == "newton":
        solver = MJWarpSolverCfg(
            njmax=_CONSTRAINTS + loose * _LOOSE_CONSTRAINTS,
            nconmax=_CONTACTS + loose * _LOOSE_CONTACTS,
            cone="elliptic",
            impratio=10.0,
            integrator="implicitfast",
            iterations=settings.iterations,
            ls_iterations=50,
            disable_sensors=True,
        )
        graphs = settings.device.startswith("cuda")
        return NewtonCfg(solver_cfg=solver, use_cuda_graph=graphs, deterministic_mode="run_to_run")
    if settings.physics == "ovphysx":
        from isaaclab_ov.physics import OvPhysxCfg

        return OvPhysxCfg(enable_enhanced_determinism=True)
    from isaaclab_physx.physics import PhysxCfg

    return PhysxCfg(enable_enhanced_determinism=True)


def scene(assets: Assets, batch: int, settings: IsaacSettings | None = None) -> InteractiveSceneCfg:
    """The room with every instrument and both hands; what an episode does not use is parked.

    Args:
        assets: The USD files.
        batch: How many environments.
        settings: Default from ``SIM2OR_ISAAC_…``.
    """
    chosen = settings or IsaacSettings()
    apart_m = _APART_M if chosen.renderer == "newton" else _APART_SEEN_M
    made = InteractiveSceneCfg(num_envs=batch, env_spacing=apart_m, replicate_physics=True)
    things: dict[str, Any] = {
        ROOM: AssetBaseCfg(prim_path=_path(ROOM), spawn=isaac.UsdFileCfg(usd_path=str(assets.room))),
        ROBOT: ArticulationCfg(
            prim_path=_path(ROBOT),
            spawn=isaac.UsdFileCfg(usd_path=str(assets.robot)),
            actuators={"servos": ImplicitActuatorCfg(joint_names_expr=[".*"], stiffness=None, damping=None)},
        ),
    }
    for number, (name, file) in enumerate({**assets.instruments, **assets.hands}.items()):
        things[name] = RigidObjectCfg(
            prim_path=_path(name),
            spawn=isaac.UsdFileCfg(usd_path=str(file)),
            init_state=RigidObjectCfg.InitialStateCfg(pos=parked_m(number)),
        )
    for name, part in assets.loose.items():
        w, x, y, z = part.turn_wxyz
        things[name] = RigidObjectCfg(
            prim_path=_path(name),
            spawn=isaac.UsdFileCfg(usd_path=str(part.file)),
            init_state=RigidObjectCfg.InitialStateCfg(pos=part.at_m, rot=(x, y, z, w)),
        )
    if chosen.physics != "newton":
        _suit_physx(things, assets, chosen)
    for name, thing in things.items():
        setattr(made, name, thing)
    return made


def _suit_physx(things: dict[str, Any], assets: Assets, settings: IsaacSettings) -> None:
    """What PhysX has to be told of each thing: its solver's work, and which contacts are asked for."""
    from isaaclab.sim.schemas import UsdPhysicsRigidBodyCfg
    from isaaclab_physx.sim.schemas import PhysxArticulationCfg, PhysxRigidBodyCfg

    still = UsdPhysicsRigidBodyCfg(kinematic_enabled=True)  # a body, so that its frictions can vary
    room = isaac.UsdFileCfg(usd_path=str(assets.room), rigid_props=still)
    things[ROOM] = RigidObjectCfg(prim_path=_path(ROOM), spawn=room)
    work = {"solver_position_iteration_count": settings.iterations}
    things[ROBOT].spawn.articulation_props = {"": [PhysxArticulationCfg(**work)]}
    for name in assets.instruments:
        things[name].spawn.rigid_props = {"": [PhysxRigidBodyCfg(**work)]}
        things[name].spawn.activate_contact_sensors = True
        things[contacts_of(name)] = ContactSensorCfg(
            prim_path=_path(name),
            filter_prim_paths_expr=[_path(f"{ROBOT}/{pad}") for pad in assets.pads],
            max_contact_data_count_per_prim=_CONTACT_POINTS,
            force_threshold=0.0,
        )


def contacts_of(instrument: str) -> str:
    """The name of the sensor of what an instrument touches; only PhysX needs one."""
    return f"{instrument}_contacts"


def camera(task: TaskProfile, name: str, *, height: int, width: int, settings: IsaacSettings) -> CameraCfg:
    """A camera that the robot's USD has; its pose is asked for anew before every picture."""
    body = {**task.cameras, **task.views}[name].body
    return CameraCfg(
        prim_path=_path(f"{ROBOT}/{body}/{name}"),
        spawn=None,
        update_latest_camera_pose=True,
        renderer_cfg=_renderer(settings),
        height=height,
        width=width,
        data_types=["rgb"],
        update_period=0.0,
    )


def parked_m(number: int) -> tuple[float, float, float]:
    """Where a thing hangs while it is not in use, apart from the others [m]."""
    return (0.5 * number, 0.0, PARKED_M)


def _path(name: str) -> str:
    return "{ENV_REGEX_NS}/" + name


def _renderer(settings: IsaacSettings) -> Any:
    if settings.renderer == "newton":
        # An offset may push the wrist camera into its own housing, which OpenGL would not draw from inside.
        return NewtonWarpRendererCfg(
            use_cuda_graph=settings.device.startswith("cuda"), enable_backface_culling=True
        )
    if settings.renderer == "ovrtx":
        from isaaclab_ov.renderers import OVRTXRendererCfg

        return OVRTXRendererCfg()
    from isaaclab_physx.renderers import IsaacRtxRendererCfg

    return IsaacRtxRendererCfg()
