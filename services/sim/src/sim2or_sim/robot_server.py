"""The robot process: a simulated arm that lives in real time behind a socket, like a real one."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from sim2or.bus.keys import Keyring, load_keyring
from sim2or.bus.pubsub import Publisher
from sim2or.bus.rpc import Request, Router
from sim2or.clock import now_ns
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.scenario import Scenario, sample_scenario
from sim2or.contracts.task import TaskProfile, load_task
from sim2or.counts import LATENCY_BOUNDS_S, LIVE, PULSE, Distribution
from sim2or.errors import ConfigError, Sim2OrError
from sim2or.log import get_logger
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.messages.robot_state import RobotState
from sim2or.settings import Settings
from sim2or.worlds.remote_robot import state_endpoint

from sim2or_sim.backends import make_world
from sim2or_sim.command_log import CommandLog, Judge
from sim2or_sim.robot import SimulatedRobot

LOG = "commands.jsonl"
REST_AFTER_NS = 2_000_000_000
"""After its episode an arm to which nobody speaks stops ticking: an idle robot costs no processor."""

IDLE_WAIT_S = 0.2


@dataclass
class RobotCounts:
    """How a robot's ticks kept time.

    Attributes:
        ticks: Control ticks executed.
        late_ticks: Ticks that passed without one, because the tick before took too long.
        tick_s: How long a tick took: sensing, publishing, executing.
    """

    ticks: int = 0
    late_ticks: int = 0
    tick_s: Distribution = field(default_factory=lambda: Distribution(LATENCY_BOUNDS_S))


class RobotServer:
    """Ticks a robot at its control rate on absolute deadlines, and answers between the ticks.

    Args:
        robot: The arm's profile.
        task: The task's profile.
        arm: The robot.
        endpoint: Where commands and requests arrive; states leave beside it.
        keys: Of the robot; needed beyond loopback.
    """

    def __init__(
        self,
        robot: RobotProfile,
        task: TaskProfile,
        arm: SimulatedRobot,
        endpoint: str,
        *,
        keys: Keyring | None = None,
    ) -> None:
        origin = Origin(f"robot/{robot.name}", calibration=robot.calibration_id)
        self._arm, self._task, self._robot = arm, task, robot
        self._router: Router[JointCommand | RobotRequest] = Router(
            endpoint, origin, JointCommand, RobotRequest, keys=keys
        )
        self._states = Publisher(state_endpoint(endpoint), origin, RobotState, keys=keys)
        self._period_ns = round(task.period_s * 1e9)
        self._judge = Judge(robot, task)
        self._next_ns = self._spoken_ns = now_ns()
        self._late_ticks = 0
        self._begins = True
        self._slowest_ns = 0
        self._began: Envelope | None = None
        self._counts = RobotCounts()
        LIVE.watch(self, self._counts)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Serves until ``stopped()``, which is asked every tick, then closes."""
        try:
            while not stopped():
                PULSE.beat()
                if self._rests():
                    self._listen(now_ns() + int(IDLE_WAIT_S * 1e9))
                    self._next_ns = now_ns()
                else:
                    self._listen(self._next_ns)
                    self._tick()
        finally:
            self._router.close()
            self._states.close()
            self._arm.log.close()

    def _rests(self) -> bool:
        quiet = now_ns() - self._spoken_ns > REST_AFTER_NS
        return self._arm.phase == "idle" or (self._arm.phase == "done" and quiet)

    def _listen(self, until_ns: int) -> None:
        """Takes commands and requests until the next tick is due."""
        while True:
            request = self._router.receive(max(0.0, (until_ns - now_ns()) / 1e9))
            if request is not None:
                self._take(request)
            elif now_ns() >= until_ns:
                return
            if self._rests() or now_ns() >= until_ns:
                return

    def _take(self, request: Request[JointCommand | RobotRequest]) -> None:
        self._spoken_ns = now_ns()
        if isinstance(request.message, JointCommand):
            self._arm.hear(request.message, self._spoken_ns)
            return
        try:
            if request.message.action == "reset":
                self._reset(request.message)
                self._began = request.envelope
            self._router.answer(request, self._report(with_log=request.message.action == "log"))
        except Sim2OrError as error:
            self._router.refuse(request, "refused", str(error))

    def _reset(self, request: RobotRequest) -> None:
        if not request.session:
            raise ConfigError("reset: session is empty; give every episode its own name")
        if request.scenario is None:
            raise ConfigError("reset: a simulated robot needs a scenario")
        try:
            scenario = Scenario.model_validate(request.scenario)
        except ValidationError as error:
            raise ConfigError(f"reset: scenario: {error}") from error
        self._arm.reset(scenario, request.session, now_ns())
        self._late_ticks = self._slowest_ns = 0
        self._spoken_ns = now_ns()
        self._begins = True

    def _tick(self) -> None:
        """Senses and publishes this instant, then executes one period; late ticks are counted."""
        started_ns = now_ns()
        if self._begins:  # the grid of ticks starts with the first one, however long the answer to reset took
            self._next_ns, self._begins = started_ns, False
        self._states.publish(self._arm.sense(started_ns), cause=self._began)
        self._arm.act(started_ns)
        took_ns = now_ns() - started_ns
        self._slowest_ns = max(self._slowest_ns, took_ns)
        self._counts.ticks += 1
        self._counts.tick_s.add(took_ns / 1e9)
        self._next_ns += self._period_ns
        behind = (now_ns() - self._next_ns) // self._period_ns + 1
        if behind > 0:
            self._late_ticks += behind
            self._counts.late_ticks += behind
            self._next_ns += behind * self._period_ns

    def _report(self, *, with_log: bool) -> RobotReport:
        spec = self._arm.world.spec
        counts = self._judge.judge(self._arm.log.episode()).get(self._arm.session, {})
        return RobotReport(
            robot=spec.robot,
            task=spec.task,
            joints=spec.joints,
            cameras=dict(spec.cameras),
            control_hz=spec.control_hz,
            session=self._arm.session,
            phase=self._arm.phase,
            status=self._arm.status()
            | {f"log_{name}": count for name, count in counts.items()}
            | {"late_ticks": self._late_ticks, "slowest_tick_ms": self._slowest_ns / 1e6},
            log={LOG: self._arm.log.episode_bytes()} if with_log else {},
        )


def serve(settings: Settings, robot: str = "so101", task: str = "handover") -> None:
    """Runs the robot process until SIGTERM.

    Args:
        settings: Its endpoint, and the run's directory for ``commands.jsonl``.
        robot: Robot profile.
        task: Task profile.

    Raises:
        ConfigError: No endpoint is set.
    """
    if not settings.robot_endpoint:
        raise ConfigError("robot: set SIM2OR_ROBOT_ENDPOINT, for example ipc:///tmp/robot.sock")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    profile, task_profile = load_robot(robot), load_task(task)
    keys = load_keyring(settings.keys, "robot")
    world = make_world(profile, task_profile)
    started_s = time.monotonic()
    for seed in range(
        len(task_profile.instruments)
    ):  # each instrument's first picture takes longer than a tick
        world.reset([sample_scenario(task_profile, seed)])
        world.sense(0)
    directory = settings.run_dir / "robot"
    directory.mkdir(parents=True, exist_ok=True)
    arm = SimulatedRobot(world, task_profile, CommandLog(fresh_log(directory)))
    get_logger().info(
        "robot ready", endpoint=settings.robot_endpoint, warm_up_s=round(time.monotonic() - started_s, 2)
    )
    try:
        RobotServer(profile, task_profile, arm, settings.robot_endpoint, keys=keys).run(stop.is_set)
    finally:
        world.close()


def fresh_log(directory: Path) -> Path:
    """The path of a new log; an earlier process's log is kept under a number, it is evidence."""
    path = directory / LOG
    if path.exists():
        number = sum(1 for _ in directory.glob("commands.*.jsonl"))
        path.rename(directory / f"commands.{number:03d}.jsonl")
    return path
