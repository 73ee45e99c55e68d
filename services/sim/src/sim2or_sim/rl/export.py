"""A learnt policy as files: TorchScript and ONNX with their contract, card and self-test, proven equal."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from sim2or.artifacts.store import fresh_directory
from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.errors import JobError
from sim2or.model_card import (
    ACTION,
    MODEL_FILE,
    SELF_TEST_FILE,
    ModelCard,
    TensorSpec,
    action_spec,
)
from torch import Tensor, nn

from sim2or_sim.rl.served import ServedPolicy, served_inputs
from sim2or_sim.rl.task import LearningTask

SCRIPT_FILE, REPORT_FILE = "model.pt", "export.json"
OPSET = 17
BATCHES = (1, 2, 7, 32)
MAX_ABS_DIFF_RAD = 1e-4
REACH_REQUEST = "Reach the target"
_BATCH = "batch"

Inputs = dict[str, NDArray[np.float32]]


def export_policy(
    learning: LearningTask,
    robot: RobotProfile,
    task: TaskProfile,
    *,
    network: nn.Module,
    instrument: str,
    directory: Path,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """Writes the model and proves that torch, TorchScript and ONNX say the same.

    Args:
        learning: The task.
        robot: The arm.
        task: The operating room.
        network: From observations to actions, its normaliser inside, on the CPU.
        instrument: What the grasp was learnt on.
        directory: Where the files go; made anew.
        figures: For the card.

    Returns:
        The largest differences [rad].

    Raises:
        JobError: They differ by more than ``MAX_ABS_DIFF_RAD``.
    """
    out = fresh_directory(directory)
    module = ServedPolicy(learning, robot, network.cpu()).eval()
    inputs = served_inputs(learning, robot)
    names = [tensor.name for tensor in inputs]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # tracing warns of shapes that Python saw; parity at other sizes decides
        example = tuple(map(torch.from_numpy, _samples(inputs, robot, 2).values()))
        script = torch.jit.trace(module, example)
        script.save(str(out / SCRIPT_FILE))
        torch.onnx.export(
            module,
            example,
            str(out / MODEL_FILE),
            input_names=names,
            output_names=[ACTION],
            dynamic_axes={name: {0: _BATCH} for name in [*names, ACTION]},
            opset_version=OPSET,
            dynamo=False,
        )
    _declare_output(out / MODEL_FILE, len(robot.joints))
    parity = _parity(module, out, inputs, robot)
    learning.contract(robot, task.control_hz).write(out)
    _card(learning, robot, task, instrument, inputs, figures | parity).write(out)
    (out / REPORT_FILE).write_text(json.dumps(parity | {"opset": OPSET}, indent=1, sort_keys=True) + "\n")
    return parity


def _parity(
    module: ServedPolicy, out: Path, inputs: tuple[TensorSpec, ...], robot: RobotProfile
) -> dict[str, Any]:
    """Compares at several batch sizes and keeps one answer for servers to check themselves by."""
    script = torch.jit.load(str(out / SCRIPT_FILE))
    session = onnxruntime.InferenceSession(str(out / MODEL_FILE), providers=["CPUExecutionProvider"])
    worst = {"torchscript": 0.0, "onnx": 0.0}
    with torch.no_grad():
        for batch in BATCHES:
            given = _samples(inputs, robot, batch)
            tensors = [torch.from_numpy(value) for value in given.values()]
            expected: Tensor = module(*tensors)
            for name, found in (
                ("torchscript", script(*tensors).numpy()),
                ("onnx", session.run(None, given)[0]),
            ):
                worst[name] = max(worst[name], float(np.abs(found - expected.numpy()).max()))
    for name, difference_rad in worst.items():
        if not difference_rad <= MAX_ABS_DIFF_RAD:
            raise JobError(
                f"{name} differs from torch by {difference_rad:.3g} rad; at most {MAX_ABS_DIFF_RAD:g}"
            )
    kept = _samples(inputs, robot, 2)
    arrays: dict[str, Any] = {**kept, ACTION: session.run(None, kept)[0]}
    np.savez(out / SELF_TEST_FILE, **arrays)
    return {f"{name}_max_abs_diff_rad": value for name, value in worst.items()}


def _samples(inputs: tuple[TensorSpec, ...], robot: RobotProfile, batch: int) -> Inputs:
    """Random inputs: joints in their ranges, commands near them, poses within reach."""
    rng = np.random.default_rng(batch)
    joints = rng.uniform(robot.lower_rad, robot.upper_rad, (batch, len(robot.joints)))
    made: Inputs = {}
    for tensor in inputs:
        if tensor.unit == "rad":
            values = joints + (0.0 if not made else rng.normal(0.0, 0.02, joints.shape))
        else:
            values = rng.uniform(-0.3, 0.3, (batch, *tensor.shape))
        made[tensor.name] = values.astype(np.float32)
    return made


def _declare_output(path: Path, joints: int) -> None:
    """States the output's full shape, which tracing leaves open."""
    model = onnx.load(path)
    typed = onnx.helper.make_tensor_value_info(ACTION, onnx.TensorProto.FLOAT, [_BATCH, 1, joints])
    model.graph.output[0].CopyFrom(typed)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _card(
    learning: LearningTask,
    robot: RobotProfile,
    task: TaskProfile,
    instrument: str,
    inputs: tuple[TensorSpec, ...],
    figures: dict[str, Any],
) -> ModelCard:
    request = REACH_REQUEST if learning.name == "reach" else task.instruments[instrument].request
    return ModelCard(
        policy=f"ppo-{learning.name}",
        robot=robot.name,
        task=task.name,
        calibration_id=robot.calibration_id,
        requests=(request,),
        control_hz=task.control_hz,
        privileged=learning.privileged,
        inputs=inputs,
        outputs=(action_spec(robot.joint_names, horizon=1),),
        figures=figures,
    )
