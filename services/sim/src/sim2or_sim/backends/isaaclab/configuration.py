"""What Isaac Lab is told: physics, scene and cameras of a batch of operating rooms."""

from __future__ import annotations

from typing import Any, Literal

import isaaclab.sim as isaac
from isaaclab.actuators import ImplicitActuatorCfg
from isaaclab.assets import ArticulationCfg, AssetBaseCfg, RigidObjectCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sensors import CameraCfg
from isaaclab.sim import SimulationCfg
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg
from isaaclab_newton.renderers import NewtonWarpRendererCfg
from pydantic_settings import BaseSettings, SettingsConfigDict
from sim2or.contracts.task import TaskProfile

from sim2or_sim.backends.isaaclab.usd import Assets

ROBOT, ROOM = "robot", "theatre"
PARKED_M = -5.0  # what is not in use hangs here, under the floor
_SPACING_M = 0.0  # Newton keeps environments apart by itself, so each may have its base at the origin
_CONTACTS, _CONSTRAINTS = 64, 300  # room for this many in each environment


class IsaacSettings(BaseSettings):
    """Where Isaac Lab computes, from ``SIM2OR_ISAAC_…``.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        renderer: What renders the cameras: ``newton`` anywhere, ``ovrtx`` or ``isaacsim_rtx`` on an RTX card.
        iterations: Most iterations of the constraint solver in a physics step.
    """

    model_config = SettingsConfigDict(env_prefix="SIM2OR_ISAAC_")

    device: str = "cpu"
    renderer: Literal["newton", "ovrtx", "isaacsim_rtx"] = "newton"
    iterations: int = 30


def simulation(task: TaskProfile, settings: IsaacSettings) -> SimulationCfg:
    """Physics with the same integrator, friction cone and step as the MuJoCo model."""
    graphs = settings.device.startswith("cuda")
    solver = MJWarpSolverCfg(
        njmax=_CONSTRAINTS,
        nconmax=_CONTACTS,
        cone="elliptic",
        impratio=10.0,
        integrator="implicitfast",
        iterations=settings.iterations,
        ls_iterations=50,
        disable_sensors=True,
    )
    return SimulationCfg(
        device=settings.device,
        dt=1.0 / task.physics_hz,
        render_interval=task.substeps,
        physics=NewtonCfg(solver_cfg=solver, use_cuda_graph=graphs, deterministic_mode="run_to_run"),
    )


def scene(assets: Assets, batch: int) -> InteractiveSceneCfg:
    """The room with every instrument and both hands; what an episode does not use is parked."""
    made = InteractiveSceneCfg(num_envs=batch, env_spacing=_SPACING_M, replicate_physics=True)
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
    for name, thing in things.items():
        setattr(made, name, thing)
    return made


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
