"""A robot in another process: the Robot protocol over sockets."""

from __future__ import annotations

from contextlib import ExitStack
from urllib.parse import urlsplit

from sim2or.bus.keys import Keyring
from sim2or.bus.pubsub import Subscriber
from sim2or.bus.rpc import Client
from sim2or.clock import now_ns
from sim2or.contracts.scenario import Scenario
from sim2or.errors import HardwareError, TransientError
from sim2or.messages.envelope import Origin, uuid7
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.messages.robot_state import RobotState
from sim2or.worlds.world import Sensed, WorldSpec

COMMAND_DEADLINE_S = 0.1
LOST_AFTER_S = 1.0


def state_endpoint(endpoint: str) -> str:
    """Where a robot publishes its state: beside its command endpoint (ipc: ``.state``, tcp: next port)."""
    parts = urlsplit(endpoint)
    if parts.scheme == "tcp" and parts.port is not None:
        return f"tcp://{parts.hostname}:{parts.port + 1}"
    return f"{endpoint}.state"


class RemoteRobot:
    """A robot process, seen from the bridge; use it from one thread.

    Args:
        endpoint: Its command endpoint.
        lost_after_s: Silence after which it counts as lost [s].
        keys: Of the bridge; needed beyond loopback.
    """

    spec: WorldSpec

    def __init__(
        self, endpoint: str, *, lost_after_s: float = LOST_AFTER_S, keys: Keyring | None = None
    ) -> None:
        self.session = ""
        self.phase = ""
        self._endpoint, self._lost_after_s, self._keys = endpoint, lost_after_s, keys
        self._newest: Sensed | None = None
        self._heard_ns = now_ns()
        self._sockets = ExitStack()

    def connect(self, *, timeout_s: float) -> None:
        """Opens the connection and learns what the robot is.

        Raises:
            HardwareError: Nothing answers at the endpoint within the time; the sockets are closed again.
        """
        try:
            self._connect(timeout_s)
        except HardwareError:
            self.close()
            raise

    def _connect(self, timeout_s: float) -> None:
        self._client: Client[RobotReport | PolicyError] = Client(
            self._endpoint, Origin("bridge"), RobotReport, PolicyError, keys=self._keys, server="robot"
        )
        self._sockets.callback(self._client.close)
        self._states = Subscriber(state_endpoint(self._endpoint), RobotState, keys=self._keys, server="robot")
        self._sockets.callback(self._states.close)
        report = self._ask(RobotRequest(action="report"), timeout_s)
        self.spec = WorldSpec(
            robot=report.robot,
            task=report.task,
            joints=report.joints,
            cameras=report.cameras,
            control_hz=report.control_hz,
            batch=1,
        )
        self._heard_ns = now_ns()

    def sense(self, *, cameras: bool = True, timeout_s: float) -> Sensed:
        """Waits at most ``timeout_s`` for a reading newer than the last; without one returns the last again.

        ``time_ns`` is the robot host's monotonic clock at capture; whoever moves the arm judges its age.

        Raises:
            HardwareError: The robot was not heard of for ``lost_after_s``.
        """
        state = self._next_state(now_ns() + int(timeout_s * 1e9))
        if state is not None:
            self.phase, self._heard_ns = state.phase, now_ns()
            images = state.images if cameras else {}
            self._newest = Sensed(state.position_rad, state.velocity_radps, images, state.captured_ns)
        silence_s = (now_ns() - self._heard_ns) / 1e9
        if silence_s > self._lost_after_s:
            raise HardwareError(
                f"robot at {self._endpoint}: silent for {silence_s:.2f} s (limit {self._lost_after_s:g} s); "
                "its own watchdog holds the arm: look at its log, then start it again"
            )
        if self._newest is None:
            raise HardwareError(f"robot at {self._endpoint}: no state within {timeout_s:g} s; reset it first")
        return self._newest

    def command(self, command: JointCommand) -> None:
        """Sends a joint target without waiting; what cannot be sent is lost."""
        self._client.send(command, deadline_s=COMMAND_DEADLINE_S)

    def reset(self, scenario: Scenario | None, *, timeout_s: float) -> None:
        """Begins an episode under a new session name.

        Raises:
            HardwareError: The robot refuses or does not answer.
        """
        session = f"{scenario.seed if scenario else 'operator'}-{uuid7()}"
        content = None if scenario is None else scenario.model_dump(mode="json")
        self._ask(RobotRequest(action="reset", session=session, scenario=content), timeout_s)
        self.session, self.phase, self._newest, self._heard_ns = session, "running", None, now_ns()

    def status(self, *, timeout_s: float) -> dict[str, object]:
        """The episode's outcome, and the counts that the robot draws from its own command log (``log_…``)."""
        report = self._ask(RobotRequest(action="report"), timeout_s)
        return {"session": report.session, "phase": report.phase, **report.status}

    def log(self, *, timeout_s: float) -> bytes:
        """What the robot wrote down about this episode, as JSON lines."""
        report = self._ask(RobotRequest(action="log"), timeout_s)
        return b"".join(part.tobytes() for part in report.log.values())

    def close(self) -> None:
        """Closes the sockets; the robot's watchdog holds the measured position."""
        self._sockets.close()

    def _next_state(self, until_ns: int) -> RobotState | None:
        """The newest state of this session; states of earlier sessions are passed over."""
        while True:
            received = self._states.newest(max(0.0, (until_ns - now_ns()) / 1e9))
            if received is None or received[1].episode == self.session:
                return received[1] if received else None

    def _ask(self, request: RobotRequest, timeout_s: float) -> RobotReport:
        try:
            answer = self._client.call(request, deadline_s=timeout_s)
        except TransientError as error:
            raise HardwareError(f"robot: {error}; is the robot process running?") from error
        if isinstance(answer, PolicyError):
            raise HardwareError(f"robot refused {request.action}: {answer.detail}")
        return answer
