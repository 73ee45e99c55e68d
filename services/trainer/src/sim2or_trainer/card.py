"""The card of a trained checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.dataset_card import INSTRUMENT, DatasetCard
from sim2or.model_card import ModelCard, TensorSpec, action_spec, image_spec, state_spec

from sim2or_trainer.backends.lerobot import Recipe


def make_card(
    recipe: Recipe,
    robot: RobotProfile,
    task: TaskProfile,
    dataset: DatasetCard,
    *,
    sources: Mapping[str, Sequence[str]],
    figures: Mapping[str, Any],
) -> ModelCard:
    """Says what a policy takes, gives and was trained for.

    Args:
        recipe: The policy and its processors.
        robot: Its robot.
        task: Its task.
        dataset: What it was trained on.
        sources: Role to digests.
        figures: Measured in training.
    """
    config = recipe.policy.config
    inputs = [state_spec(robot.joint_names)]
    inputs += [
        image_spec(name, height_px=camera.height_px, width_px=camera.width_px)
        for name, camera in dataset.cameras.items()
        if camera.key in config.input_features
    ]
    inputs += [_truth(key, dataset) for key in dataset.privileged if key in config.input_features]
    order = {key: number for number, key in enumerate(config.input_features)}
    return ModelCard(
        policy=config.type,
        robot=robot.name,
        task=task.name,
        calibration_id=robot.calibration_id,
        requests=dataset.requests,
        control_hz=task.control_hz,
        privileged=recipe.privileged,
        inputs=tuple(sorted(inputs, key=lambda tensor: order[tensor.name])),
        outputs=(action_spec(robot.joint_names, horizon=len(config.action_delta_indices)),),
        sources={role: tuple(digests) for role, digests in sources.items()},
        figures=figures,
    )


def _truth(key: str, dataset: DatasetCard) -> TensorSpec:
    names = dataset.privileged[key]
    unit = "m and unit vectors: PRIVILEGED" if key == INSTRUMENT else "PRIVILEGED"
    return TensorSpec(name=key, dtype="float32", shape=(len(names),), unit=unit, names=names)
