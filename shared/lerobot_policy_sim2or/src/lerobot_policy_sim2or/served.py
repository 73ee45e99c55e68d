"""A trained checkpoint behind SI units: loaded strictly, run through LeRobot's own processors.

For services only: LeRobot itself never imports this module, so the plugin needs no sim2or to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.import_utils import register_third_party_plugins
from numpy.typing import NDArray
from sim2or.contracts.robot import RobotProfile, load_robot
from sim2or.contracts.units import from_lerobot, to_lerobot
from sim2or.errors import ConfigError, choices
from sim2or.model_card import IMAGE_PREFIX, STATE, ModelCard

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ServedCheckpoint:
    """A policy with its processors and its card.

    Attributes:
        policy: In evaluation mode, on the CPU.
        preprocess: LeRobot's pipeline before the policy.
        postprocess: LeRobot's pipeline after it.
        card: What it takes and gives, in SI units.
        robot: The profile whose zeros and ranges convert radians.
    """

    policy: PreTrainedPolicy
    preprocess: Any
    postprocess: Any
    card: ModelCard
    robot: RobotProfile

    @classmethod
    def load(cls, directory: Path) -> ServedCheckpoint:
        """Loads a checkpoint; every weight must fit.

        Args:
            directory: Holds ``config.json``, ``model.safetensors``, LeRobot's processors and ``card.json``.

        Raises:
            ConfigError: A file is missing, a weight does not fit, or the robot profile has changed since.
        """
        _check_files(directory)
        card = ModelCard.read(directory)
        robot = load_robot(card.robot)
        check_calibration(card, robot)
        register_third_party_plugins()
        config = PreTrainedConfig.from_pretrained(directory)
        config.device = "cpu"
        try:
            policy = get_policy_class(config.type).from_pretrained(directory, config=config, strict=True)
        except RuntimeError as error:
            raise ConfigError(
                f"{directory / WEIGHTS_FILE} does not fit policy {config.type}: {error}"
            ) from error
        device = {"device_processor": {"device": "cpu"}}
        preprocess, postprocess = make_pre_post_processors(
            config, str(directory), preprocessor_overrides=device, postprocessor_overrides=device
        )
        return cls(policy.eval(), preprocess, postprocess, card, robot)

    def actions_rad(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Runs the checkpoint through LeRobot's own processors.

        Args:
            inputs: Name to array, as the card says, with a leading batch dimension.

        Returns:
            Shape (batch, horizon, n_joints), joint position targets [rad].
        """
        batch = {name: torch.from_numpy(self._lerobot_value(name, value)) for name, value in inputs.items()}
        with torch.inference_mode():
            actions = self.postprocess(self.policy.predict_action_chunk(self.preprocess(batch)))
        return from_lerobot(self.robot, actions.numpy()).astype(np.float32)

    def _lerobot_value(self, name: str, value: NDArray[Any]) -> NDArray[np.float32]:
        if name == STATE:
            return to_lerobot(self.robot, value).astype(np.float32)
        if name.startswith(IMAGE_PREFIX):
            return np.ascontiguousarray(value.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
        return value.astype(np.float32)


def check_calibration(card: ModelCard, robot: RobotProfile) -> None:
    """Refuses a model whose radians would mean something else on today's robot profile.

    Raises:
        ConfigError: The joints or the calibration differ.
    """
    if card.joints != robot.joint_names:
        raise ConfigError(
            f"the model's joints {card.joints} are not those of robot {card.robot}: {robot.joint_names}"
        )
    if card.calibration_id != robot.calibration_id:
        raise ConfigError(
            f"the model was trained with calibration_id {card.calibration_id!r}; "
            f"{choices(card.calibration_id, [robot.calibration_id])} for robot {card.robot}: "
            "record with the new calibration and train again"
        )


def _check_files(directory: Path) -> None:
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (directory / name).exists()]
    if missing:
        raise ConfigError(f"{directory} holds no checkpoint: {', '.join(missing)} missing")
