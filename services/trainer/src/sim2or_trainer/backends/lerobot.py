"""LeRobot's side of training: its policy factory, its processors, its dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    RenameObservationsProcessorStep,
)
from lerobot.utils.feature_utils import dataset_to_policy_features
from lerobot.utils.import_utils import register_third_party_plugins
from sim2or.contracts.task import TaskProfile
from sim2or.dataset_card import ACTION, IMAGE_PREFIX, STATE, DatasetCard
from sim2or.errors import ConfigError, JobError, choices
from sim2or.messages.train import TrainSpec
from torch import Tensor

PRIVILEGED_PREFIX = "observation.privileged."
SPREAD_MIN = 1e-3
_PLAIN_STEPS = (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    NormalizerProcessorStep,
    RenameObservationsProcessorStep,
)


@dataclass(frozen=True)
class Recipe:
    """A policy before training, with its processors.

    Attributes:
        policy: Fresh weights.
        preprocess: LeRobot's pipeline before the policy.
        postprocess: LeRobot's pipeline after it.
    """

    policy: PreTrainedPolicy
    preprocess: Any
    postprocess: Any

    @property
    def normalises_only(self) -> bool:
        """Whether the preprocessor is one affine map per channel: it can be applied once to everything."""
        return all(isinstance(step, _PLAIN_STEPS) for step in self.preprocess.steps)

    @property
    def privileged(self) -> bool:
        """Whether simulator truth is an input."""
        return any(key.startswith(PRIVILEGED_PREFIX) for key in self.policy.config.input_features)

    def save(self, policy: PreTrainedPolicy, directory: Path) -> None:
        """Writes a policy and the processors as LeRobot loads them."""
        policy.save_pretrained(directory)
        self.preprocess.save_pretrained(directory)
        self.postprocess.save_pretrained(directory)


def read_metadata(root: Path) -> LeRobotDatasetMetadata:
    """Reads LeRobot's description of a local dataset."""
    return LeRobotDatasetMetadata(f"local/{root.name}", root=root)


def make_recipe(
    spec: TrainSpec, metadata: LeRobotDatasetMetadata, task: TaskProfile, card: DatasetCard
) -> Recipe:
    """Builds a policy by LeRobot's factory; the random state decides its weights.

    Raises:
        ConfigError: The policy type or one of its fields is unknown, or it does not fit the dataset.
    """
    config = _policy_config(spec, task, card)
    features = dataset_to_policy_features(metadata.features)
    config.input_features = {
        key: feature
        for key, feature in features.items()
        if feature.type is not FeatureType.ACTION
        and (not key.startswith(PRIVILEGED_PREFIX) or hasattr(config, "privileged_input"))
    }
    try:
        policy = make_policy(config, ds_meta=metadata)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"policy {spec.policy!r} cannot be built for this dataset: {error}") from error
    _check_spread(metadata)
    stats = {key: {name: torch.as_tensor(v) for name, v in s.items()} for key, s in metadata.stats.items()}
    preprocess, postprocess = make_pre_post_processors(config, dataset_stats=stats, dataset_meta=metadata)
    return Recipe(policy, preprocess, postprocess)


def _check_spread(metadata: LeRobotDatasetMetadata) -> None:
    """Refuses channels that never change: normalising divides by their spread and the loss would explode."""
    for key in (STATE, ACTION):
        for name, spread in zip(metadata.features[key]["names"], metadata.stats[key]["std"], strict=True):
            if spread < SPREAD_MIN:
                raise ConfigError(
                    f"{metadata.root}: {key} {name} has a standard deviation of {spread:g}; valid: at least "
                    f"{SPREAD_MIN:g}. The joint never moves: collect more varied demonstrations"
                )


def _policy_config(spec: TrainSpec, task: TaskProfile, card: DatasetCard) -> PreTrainedConfig:
    register_third_party_plugins()
    known = PreTrainedConfig.get_known_choices()
    if spec.policy not in known:
        raise ConfigError(f"policy: unknown type {spec.policy!r}; {choices(spec.policy, known)}")
    fields = {field.name for field in dataclasses.fields(PreTrainedConfig.get_choice_class(spec.policy))}
    unknown = sorted(set(spec.policy_overrides) - fields)
    if unknown:
        raise ConfigError(
            f"policy_overrides: {spec.policy} has no {unknown[0]!r}; {choices(unknown[0], fields)}"
        )
    if spec.preset == "state" and "privileged_input" not in fields:
        raise ConfigError(f"preset: 'state' needs policy compact_act, and policy is {spec.policy!r}")
    defaults = {
        "device": "cpu",
        "push_to_hub": False,
        "chunk_size": task.executor.horizon,
        "n_action_steps": task.executor.execute,
        "privileged_input": spec.preset == "state",
        "requests": list(card.requests),
    }
    values = {key: value for key, value in defaults.items() if key in fields} | spec.policy_overrides
    try:
        return make_policy_config(spec.policy, **values)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"policy_overrides: {error}") from error


def read_table(root: Path, metadata: LeRobotDatasetMetadata) -> dict[str, Tensor]:
    """Reads the low-dimensional columns in the dataset's order.

    Returns:
        Key to float32 tensor of shape (frames, width): state, action and simulator truth.
    """
    keys = [
        key
        for key, feature in metadata.features.items()
        if key in (STATE, ACTION) or (key.startswith("observation.") and feature["dtype"] == "float32")
    ]
    paths = dict.fromkeys(root / metadata.get_data_file_path(n) for n in range(metadata.total_episodes))
    table = pa.concat_tables(pq.read_table(path, columns=[*keys, "index"]) for path in paths)
    index = table["index"].to_numpy()
    if len(index) != metadata.total_frames or (index != range(len(index))).any():
        raise JobError(f"{root}: rows are not 0…{metadata.total_frames - 1} in order; make the dataset again")
    columns = {}
    for key in keys:
        values = table[key].combine_chunks()
        flat = values.flatten().to_numpy(zero_copy_only=False).copy()
        columns[key] = torch.from_numpy(flat).reshape(len(table), -1)
    return columns


def read_videos(
    root: Path, metadata: LeRobotDatasetMetadata, *, threads: int, decoded: Callable[[int, int], None]
) -> dict[str, Tensor]:
    """Decodes every frame of every camera once, in the dataset's order.

    Args:
        root: The dataset.
        metadata: Its description.
        threads: Videos decoded at a time.
        decoded: Called with (frames done, frames in all) from this thread.

    Returns:
        Camera key to uint8 tensor of shape (frames, height, width, 3).

    Raises:
        JobError: A video holds fewer frames than the table has rows.
    """
    keys = [key for key in metadata.video_keys if key.startswith(IMAGE_PREFIX)]
    frames = metadata.total_frames
    images = {key: torch.empty((frames, *metadata.features[key]["shape"]), dtype=torch.uint8) for key in keys}
    done = 0
    with ThreadPoolExecutor(max_workers=threads) as pool:
        jobs = [
            pool.submit(_decode, root / path, images[key], rows, metadata.fps)
            for key in keys
            for path, rows in _clips(metadata, key).items()
        ]
        for job in jobs:
            done += job.result()
            decoded(done, frames * len(keys))
    return images


type Rows = list[tuple[float, int, int]]


def _clips(metadata: LeRobotDatasetMetadata, key: str) -> dict[Path, Rows]:
    """Video file to its episodes as (start [s], first row, one past the last row)."""
    clips: dict[Path, Rows] = {}
    for number in range(metadata.total_episodes):
        episode: Mapping[str, Any] = metadata.episodes[number]
        rows = (
            float(episode[f"videos/{key}/from_timestamp"]),
            int(episode["dataset_from_index"]),
            int(episode["dataset_to_index"]),
        )
        clips.setdefault(metadata.get_video_file_path(number, key), []).append(rows)
    return clips


def _decode(path: Path, images: Tensor, rows: Rows, fps: int) -> int:
    """Decodes a file from its beginning and copies each frame to its row."""
    row_of = {
        round(start_s * fps) + offset: first + offset
        for start_s, first, end in rows
        for offset in range(end - first)
    }
    target = images.numpy()
    left = len(row_of)
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            row = row_of.get(number)
            if row is not None:
                target[row] = frame.to_ndarray(format="rgb24")
                left -= 1
    if left:
        raise JobError(f"{path}: {left} of {len(row_of)} frames are missing; make the dataset again")
    return len(row_of)
