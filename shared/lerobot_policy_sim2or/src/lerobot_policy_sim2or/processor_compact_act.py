"""Pre- and post-processing of compact ACT: LeRobot's own normalisation of state and action."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors

from lerobot_policy_sim2or.configuration_compact_act import CompactACTConfig


def make_compact_act_pre_post_processors(
    config: CompactACTConfig, dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Builds the two processors, which LeRobot's factory finds by this function's name.

    Args:
        config: Its ``normalization_mapping`` says what is normalised.
        dataset_stats: Key to mean and std of the training data.
    """
    before, after = make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
    return before, after
