"""A store with models worked out by hand, and a policy server on a real socket."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sim2or.artifacts.store import Store
from sim2or.bus.rpc import PolicyClient
from sim2or.contracts.robot import load_robot
from sim2or.messages.envelope import Origin
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyRequest
from sim2or.model_card import ModelCard, action_spec, image_spec, state_spec
from sim2or_policy.server import serve_until
from sim2or_policy.settings import PolicySettings

HORIZON = 4
SIZE_PX = 8
INPUTS = ("observation.state", "observation.images.wrist", "observation.images.room")


@pytest.fixture(scope="session")
def card() -> ModelCard:
    """What the hand-made model takes and gives."""
    robot = load_robot("so101")
    return ModelCard(
        policy="by hand",
        robot="so101",
        task="handover",
        calibration_id=robot.calibration_id,
        requests=("Hand me the forceps", "Hand me the scalpel"),
        control_hz=30,
        privileged=False,
        inputs=(
            state_spec(robot.joint_names),
            image_spec("wrist", height_px=SIZE_PX, width_px=SIZE_PX),
            image_spec("room", height_px=SIZE_PX, width_px=SIZE_PX),
        ),
        outputs=(action_spec(robot.joint_names, horizon=HORIZON),),
    )


@pytest.fixture
def write_model(card: ModelCard) -> Callable[..., Path]:
    """Writes an exported model: ``write_model(directory, gain=1.0, **card_changes)``."""

    def write(directory: Path, *, gain: float = 1.0, answer_off_rad: float = 0.0, **changes: object) -> Path:
        directory.mkdir(parents=True)
        onnx.save(_graph(gain), directory / "model.onnx")
        ModelCard.model_validate(card.model_dump() | changes).write(directory)
        state_rad = np.full((1, 6), 0.5, np.float32)
        black = np.zeros((1, SIZE_PX, SIZE_PX, 3), np.uint8)
        action = np.full((1, HORIZON, 6), 0.5 * gain + answer_off_rad, np.float32)
        arrays = dict(zip((*INPUTS, "action"), (state_rad, black, black, action), strict=True))
        np.savez(directory / "selftest.npz", **arrays)
        return directory

    return write


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def artifact(store: Store, tmp_path: Path, write_model: Callable[..., Path]) -> str:
    """Digest of the hand-made model in the store."""
    return store.put(write_model(tmp_path / "model"), kind="exported-model").digest


@pytest.fixture
def observation() -> Observation:
    """Joints at 0.2 rad, a white wrist image, a black room image."""
    return Observation(
        robot="so101",
        task="handover",
        request="Hand me the forceps",
        episode="e1",
        tick=7,
        state_rad=np.full(6, 0.2, np.float32),
        images={
            "wrist": np.full((SIZE_PX, SIZE_PX, 3), 255, np.uint8),
            "room": np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8),
        },
        captured_ns=123_456_789,
    )


@pytest.fixture
def ask(artifact: str, observation: Observation) -> Callable[..., PolicyRequest]:
    """A request: ``ask(deadline_ms=…, artifact=…, **observation_changes)``."""

    def make(*, deadline_ms: float = 5000.0, digest: str = artifact, **changes: object) -> PolicyRequest:
        changed = Observation.model_validate(observation.model_dump() | changes)
        return PolicyRequest(artifact=digest, observation=changed, deadline_ms=deadline_ms)

    return make


@pytest.fixture
def connect(store: Store) -> Iterator[Callable[..., PolicyClient]]:
    """Starts a policy server and connects: ``connect(delay_ms=0)``."""
    with tempfile.TemporaryDirectory(prefix="s2o-") as directory, _closing() as closers:

        def start(*, delay_ms: float = 0.0) -> PolicyClient:
            endpoint = f"ipc://{directory}/policy"
            settings = PolicySettings(store=store.root, policy_endpoint=endpoint, policy_delay_ms=delay_ms)
            stopping = threading.Event()
            thread = threading.Thread(target=lambda: serve_until(stopping.is_set, settings), daemon=True)
            thread.start()
            client = PolicyClient(endpoint, Origin("test"))
            closers.extend([stopping.set, lambda: thread.join(timeout=10), client.close])
            return client

        yield start


@contextmanager
def _closing() -> Iterator[list[Callable[[], object]]]:
    closers: list[Callable[[], object]] = []
    try:
        yield closers
    finally:
        for close in closers:
            close()


def _graph(gain: float) -> onnx.ModelProto:
    """Every action is gain × state + 0.1 × (mean wrist level / 255) + 0.01 × (mean room level / 255)."""
    constants = {
        "gain": np.array(gain, np.float32),
        "wrist_gain": np.array(0.1 / 255, np.float32),
        "room_gain": np.array(0.01 / 255, np.float32),
        "axes": np.array([1, 2, 3], np.int64),
        "flat": np.array([-1, 1, 1], np.int64),
        "steps": np.array([1, HORIZON, 1], np.int64),
        "middle": np.array([1], np.int64),
    }
    nodes = [helper.make_node("Mul", [INPUTS[0], "gain"], ["scaled"])]
    nodes.append(helper.make_node("Unsqueeze", ["scaled", "middle"], ["row"]))
    nodes.append(helper.make_node("Expand", ["row", "steps"], ["rows"]))
    total = "rows"
    for camera, name in (("wrist", INPUTS[1]), ("room", INPUTS[2])):
        out = "action" if camera == "room" else f"with_{camera}"
        nodes += [
            helper.make_node("Cast", [name], [f"{camera}_f"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", [f"{camera}_f", "axes"], [f"{camera}_mean"], keepdims=0),
            helper.make_node("Reshape", [f"{camera}_mean", "flat"], [f"{camera}_column"]),
            helper.make_node("Mul", [f"{camera}_column", f"{camera}_gain"], [f"{camera}_part"]),
            helper.make_node("Add", [total, f"{camera}_part"], [out]),
        ]
        total = out
    image = ["batch", SIZE_PX, SIZE_PX, 3]
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [
            helper.make_tensor_value_info(INPUTS[0], TensorProto.FLOAT, ["batch", 6]),
            helper.make_tensor_value_info(INPUTS[1], TensorProto.UINT8, image),
            helper.make_tensor_value_info(INPUTS[2], TensorProto.UINT8, image),
        ],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", HORIZON, 6])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
