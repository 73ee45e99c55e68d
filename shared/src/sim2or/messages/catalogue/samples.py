"""One example of every message: shown in the catalogue, and kept as a golden sample of its version.

The values are made up but plausible: a SO-101 in the middle of handing over a scalpel. Pictures are tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from sim2or.errors import ConfigError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.envelope import Envelope
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobFailure, JobRecord, JobResult, Progress
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.message import Message
from sim2or.messages.observation import Channel, Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.messages.robot_state import RobotState
from sim2or.messages.upload import (
    UploadChunk,
    UploadError,
    UploadFile,
    UploadGrant,
    UploadOffer,
    UploadStored,
)

MODEL = "sha256:" + "3f" * 32
EPISODES = "sha256:" + "a1" * 32
FILE = "sha256:" + "fe" * 32
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SESSION = "019aa5a2-1f00-7000-8000-000000000001"
BOOT = "6c0f9a3e-52c1-4b7f-9f0a-2d9f3c1b7a55"
CAPTURED_NS = 81_234_567_890_123


def sample(kind: type[Message]) -> Message:
    """Makes the example of a message type.

    Raises:
        ConfigError: There is none; the message says where to add it.
    """
    if kind.type_name not in SAMPLES:
        raise ConfigError(f"{kind.type_name}: no example; add one to {__name__}")
    return SAMPLES[kind.type_name]()


def sample_envelope(kind: type[Message]) -> Envelope:
    """Makes the envelope in which an example travels."""
    return _envelope().model_copy(update={"type": kind.type_name, "version": kind.schema_version})


def _envelope() -> Envelope:
    return Envelope(
        id=UUID("019aa5a2-2b6c-7d3e-9a41-5f2c8e7b1d90"),
        type="policy_request",
        version="1.0",
        run_id="handover",
        correlation_id=UUID("019aa5a2-2b6c-7d3e-9a41-5f2c8e7b1d90"),
        causation_id=None,
        traceparent=TRACEPARENT,
        source="bridge",
        session=SESSION,
        seq=42,
        mono_ns=CAPTURED_NS + 4_000_000,
        boot_id=BOOT,
        utc="2026-11-20T09:30:00.000+00:00",
        deadline_ms=300.0,
        calibration="so101-new-calib",
    )


def _joints(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def _picture(first: int) -> NDArray[np.uint8]:
    return np.arange(first, first + 36, dtype=np.uint8).reshape(3, 4, 3)


def _observation() -> Observation:
    return Observation(
        robot="so101",
        task="handover",
        request="Hand me the scalpel, please",
        episode=SESSION,
        tick=17,
        state_rad=_joints(0.1, -1.2, 1.3, 0.4, -0.05, 0.6),
        images={"wrist": _picture(0), "room": _picture(100)},
        captured_ns=CAPTURED_NS,
        channels={"target_m": _channel()},
    )


def _channel() -> Channel:
    return Channel(unit="m", values=np.array([0.22, 0.05, 0.12], dtype=np.float32))


def _action_chunk() -> ActionChunk:
    return ActionChunk(
        episode=SESSION,
        tick=17,
        actions_rad=np.linspace(-1.0, 1.0, 18, dtype=np.float32).reshape(3, 6),
        period_s=1 / 30,
        captured_ns=CAPTURED_NS,
        inference_s=0.0008,
        artifact=MODEL,
    )


def _robot_report() -> RobotReport:
    return RobotReport(
        robot="so101",
        task="handover",
        joints=("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"),
        cameras={"wrist": (96, 96, 3), "room": (96, 96, 3)},
        control_hz=30.0,
        session=SESSION,
        phase="done",
        status={"success": True, "failure": "", "time_s": 5.4, "log_commands": 162, "late_ticks": 0},
        log={"commands.jsonl": np.frombuffer(b'{"tick": 0}\n', np.uint8)},
    )


def _robot_state() -> RobotState:
    return RobotState(
        seq=17,
        captured_ns=CAPTURED_NS,
        position_rad=_joints(0.1, -1.2, 1.3, 0.4, -0.05, 0.6),
        velocity_radps=_joints(0.0, 0.25, -0.5, 0.125, 0.0, 0.0),
        images={"wrist": _picture(0)},
        episode=SESSION,
        phase="running",
        status={"held": False, "tick": 17},
    )


def _joint_command() -> JointCommand:
    return JointCommand(
        session=SESSION,
        seq=17,
        tick=17,
        target_rad=_joints(0.12, -1.18, 1.28, 0.4, -0.05, 0.6),
        issued_ns=CAPTURED_NS + 6_000_000,
        captured_ns=CAPTURED_NS,
        hold=False,
        torque_scale=0.5,
        artifact=MODEL,
    )


def _job() -> Job:
    return Job(
        stage="rollout",
        key="sha256:" + "0b" * 32,
        spec={"task": "handover", "list": "heldout", "trials": 200, "actor": "policy"},
        inputs={"policy": (MODEL,)},
        shard=1,
        shards=2,
        run_id="handover",
        name="rollout-policy",
        traceparent=TRACEPARENT,
    )


def _progress() -> Progress:
    return Progress(done=120.0, total=200.0, unit="trials", eta_s=21.5, metrics={"success": 0.985})


def _job_result() -> JobResult:
    return JobResult(
        outputs={"episodes": EPISODES},
        kinds={"episodes": "rollouts"},
        summary={"trials": 100, "successes": 98, "engine": "mujoco"},
    )


def _job_failure() -> JobFailure:
    return JobFailure(
        kind="transient",
        message="policy server answered nothing but 'busy' for 20000 ms",
        traceback='Traceback (most recent call last):\n  File "rollout.py", line 61, in run\n',
    )


def _job_record() -> JobRecord:
    return JobRecord(
        job_id=_job().job_id,
        job=_job(),
        state="done",
        priority="normal",
        attempts=2,
        strikes=1,
        owner="sim@lab:4711-1f2e3d",
        progress=_progress(),
        result=_job_result(),
        error=_job_failure(),
        submitted_ms=1_795_000_000_000,
        started_ms=1_795_000_002_000,
        finished_ms=1_795_000_060_500,
        progress_ms=1_795_000_060_000,
    )


def _event() -> Event:
    return Event(
        id="1795000060500-0",
        kind="artifact.stored",
        run_id="handover",
        job_id=_job().job_id,
        stage="rollout",
        worker="sim@lab:4711-1f2e3d",
        attempt=2,
        traceparent=TRACEPARENT,
        detail={"role": "episodes", "kind": "rollouts", "digest": EPISODES, "parents": {"policy": [MODEL]}},
    )


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


def _upload_grant() -> UploadGrant:
    return UploadGrant(
        artifact=EPISODES,
        file=FILE,
        written_bytes=1_048_576,
        limit_bytes=9_437_184,
        lacking_bytes=89_000_000,
        rewind=False,
    )


SAMPLES: Mapping[str, Callable[[], Message]] = {
    "envelope": _envelope,
    "job": _job,
    "progress": _progress,
    "job_result": _job_result,
    "job_failure": _job_failure,
    "job_record": _job_record,
    "event": _event,
    "observation": _observation,
    "channel": _channel,
    "policy_request": lambda: PolicyRequest(artifact=MODEL, observation=_observation(), deadline_ms=300.0),
    "action_chunk": _action_chunk,
    "policy_error": lambda: PolicyError(code="busy", detail="64 sessions wait already; try again later"),
    "robot_request": lambda: RobotRequest(action="reset", session=SESSION, scenario={"seed": 7}),
    "robot_report": _robot_report,
    "joint_command": _joint_command,
    "robot_state": _robot_state,
    "upload_offer": lambda: UploadOffer(artifact=EPISODES, manifest=_bytes('{"kind": "rollouts"}')),
    "upload_grant": _upload_grant,
    "upload_chunk": lambda: UploadChunk(
        artifact=EPISODES, file=FILE, offset_bytes=1_048_576, data=_bytes("so many bytes")
    ),
    "upload_file": lambda: UploadFile(artifact=EPISODES, file=FILE, token="5e" * 16),
    "upload_stored": lambda: UploadStored(artifact=EPISODES, deduplicated=False),
    "upload_error": lambda: UploadError(
        code="no_space", detail="1.2 GB are free; 90 MB and a reserve of 2 GB are needed", artifact=EPISODES
    ),
}
