"""Dataset cards: what a LeRobot dataset holds and where it comes from. No framework needed to read one.

LeRobot's own metadata names features and frame rate; the card adds what decides whether a dataset fits a
robot: each channel's unit and zero, the calibration, the measured rate, the parents of every episode.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from sim2or.contracts.robot import RobotProfile
from sim2or.contracts.task import TaskProfile
from sim2or.contracts.units import affine
from sim2or.errors import ConfigError
from sim2or.messages.message import Spec

CARD_FILE = "meta/sim2or.json"
INFO_FILE = "meta/info.json"
IMAGE_PREFIX = "observation.images."
STATE = "observation.state"
ACTION = "action"
INSTRUMENT = "observation.privileged.instrument"
RATE_TOLERANCE = 1e-3
AFFINE_TOLERANCE = 1e-6


class ChannelCard(Spec):
    """One joint as the dataset stores it: ``value = scale * rad + offset``.

    Attributes:
        joint: The robot profile's name.
        key: LeRobot's name.
        unit: Of the stored value.
        scale: Stored units per rad.
        offset: Stored units at zero rad.
    """

    joint: str
    key: str
    unit: Literal["degrees", "percent"]
    scale: float
    offset: float


class CameraCard(Spec):
    """One camera.

    Attributes:
        key: LeRobot's key.
        height_px: Rows.
        width_px: Columns.
        codec: How it is stored.
    """

    key: str
    height_px: PositiveInt
    width_px: PositiveInt
    codec: str


class EpisodeCard(Spec):
    """Where one episode of the dataset comes from.

    Attributes:
        episode_index: Its number in the dataset.
        file: The episode file it was converted from.
        seed: Seed of its scenario.
        parent: The demonstration it stems from.
        request: Its language instruction.
        frames: Rows.
        fps_measured: Rate at which its rows were taken [Hz].
    """

    episode_index: int = Field(ge=0)
    file: str
    seed: int
    parent: str
    request: str
    frames: PositiveInt
    fps_measured: float = Field(gt=0)


class DroppedCard(Spec):
    """An episode that was left out, and why."""

    file: str
    seed: int
    reason: str


class DatasetCard(Spec):
    """What a dataset, or a part of one, holds.

    Attributes:
        name: For people.
        robot: Robot profile.
        robot_type: LeRobot's name of the robot.
        task: Task profile.
        calibration_id: Calibration that the joint zeros and ranges belong to.
        profiles: Profile kind to the digests found in the episodes.
        channels: Joints in the order of state and action.
        cameras: Camera name to its card.
        fps_declared: Frames per second that LeRobot reads.
        fps_measured: Mean rate at which rows were really taken [Hz].
        privileged: Simulator truth stored beside the observations: a training target, never an input.
        episodes: Kept episodes, in the dataset's order.
        dropped: Episodes left out.
        splits: Split to (first, one past the last) episode number; parents are never shared between splits.
        parents: Digests of what it was made from.
    """

    name: str
    robot: str
    robot_type: str
    task: str
    calibration_id: str
    profiles: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    channels: tuple[ChannelCard, ...]
    cameras: dict[str, CameraCard]
    fps_declared: float = Field(gt=0)
    fps_measured: float = Field(gt=0)
    privileged: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    episodes: tuple[EpisodeCard, ...]
    dropped: tuple[DroppedCard, ...] = ()
    splits: dict[str, tuple[int, int]] = Field(default_factory=dict)
    parents: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _splits_apart(self) -> Self:
        owner: dict[str, str] = {}
        for split, (first, end) in self.splits.items():
            if not 0 <= first <= end <= len(self.episodes):
                raise ValueError(f"split {split} {first}:{end} leaves 0:{len(self.episodes)}")
            for episode in self.episodes[first:end]:
                if owner.setdefault(episode.parent, split) != split:
                    raise ValueError(
                        f"parent {episode.parent} is in both splits {owner[episode.parent]} and {split}"
                    )
        return self

    @property
    def frames(self) -> int:
        """Rows of all episodes."""
        return sum(episode.frames for episode in self.episodes)

    @property
    def requests(self) -> tuple[str, ...]:
        """Every language instruction, sorted."""
        return tuple(sorted({episode.request for episode in self.episodes}))

    def split_episodes(self, split: str) -> tuple[int, ...]:
        """Episode numbers of a split; of an unknown or absent split: none."""
        first, end = self.splits.get(split, (0, 0))
        return tuple(range(first, end))

    def save(self, root: Path) -> Path:
        """Writes the card into a dataset's directory."""
        path = root / CARD_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=1))
        return path


def load_card(root: Path) -> DatasetCard:
    """Reads the card of a dataset's directory.

    Raises:
        ConfigError: It is missing or broken; names the file, the key and the value.
    """
    path = root / CARD_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no dataset card; make the dataset with the convert and dataset stages")
    try:
        return DatasetCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in item["loc"])
        raise ConfigError(f"{path}: {where or 'card'}: {item['msg']}") from error


def channels_of(robot: RobotProfile) -> tuple[ChannelCard, ...]:
    """How LeRobot's terms store this robot's joints."""
    scale, offset = affine(robot)
    return tuple(
        ChannelCard(
            joint=joint.name, key=joint.lerobot.key, unit=joint.lerobot.unit, scale=float(s), offset=float(o)
        )
        for joint, s, o in zip(robot.joints, scale, offset, strict=True)
    )


def check_against(
    card: DatasetCard, robot: RobotProfile, task: TaskProfile, *, origin: Path | str = CARD_FILE
) -> None:
    """Refuses a dataset that does not fit a robot and a task.

    Args:
        card: What the dataset holds.
        robot: The robot it is to be used for.
        task: The task it is to be used for.
        origin: The card's file, for the message.

    Raises:
        ConfigError: Naming the file, every wrong key, its value and what is valid.
    """
    problems = [
        f"{key} = {_text(value)}; valid: {_text(valid)}"
        for key, value, valid in [
            ("robot", card.robot, robot.name),
            ("robot_type", card.robot_type, robot.robot_type),
            ("task", card.task, task.name),
            ("calibration_id", card.calibration_id, robot.calibration_id),
            ("channels.joint", tuple(c.joint for c in card.channels), robot.joint_names),
            ("channels.key", tuple(c.key for c in card.channels), robot.lerobot_keys),
            ("cameras", tuple(sorted(card.cameras)), tuple(sorted(task.cameras))),
        ]
        if value != valid
    ]
    problems += _unit_problems(card, robot) + _image_problems(card, task) + _rate_problems(card, task)
    unknown = sorted(set(card.requests) - set(task.requests.values()))
    if unknown:
        problems.append(f"requests: {_text(unknown)}; valid: {_text(sorted(task.requests.values()))}")
    if problems:
        raise ConfigError(f"{origin}: {'; '.join(problems)}")


def check_dataset(root: Path, robot: RobotProfile, task: TaskProfile) -> DatasetCard:
    """Reads a dataset's card and LeRobot's own ``info.json`` and refuses what does not fit or contradicts.

    Args:
        root: The dataset's directory.
        robot: The robot it is to be used for.
        task: The task it is to be used for.

    Returns:
        The card.

    Raises:
        ConfigError: Naming the file, every wrong key, its value and what is valid.
    """
    card = load_card(root)
    check_against(card, robot, task, origin=root / CARD_FILE)
    path = root / INFO_FILE
    try:
        info = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: missing; this is not a LeRobot dataset") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    problems = [
        f"{key} = {_text(value)}; valid: {_text(valid)}"
        for key, value, valid in _info_facts(info, card)
        if value != valid
    ]
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    return card


def _info_facts(info: dict[str, Any], card: DatasetCard) -> list[tuple[str, object, object]]:
    """LeRobot's metadata as (key, value, what the card says)."""
    features = info.get("features", {})
    names = [channel.key for channel in card.channels]
    facts: list[tuple[str, object, object]] = [
        ("codebase_version", info.get("codebase_version"), "v3.0"),
        ("robot_type", info.get("robot_type"), card.robot_type),
        ("fps", info.get("fps"), card.fps_declared),
        ("total_episodes", info.get("total_episodes"), len(card.episodes)),
        ("total_frames", info.get("total_frames"), card.frames),
    ]
    for key in (STATE, ACTION):
        facts.append((f"features.{key}.names", features.get(key, {}).get("names"), names))
        facts.append((f"features.{key}.shape", list(features.get(key, {}).get("shape", ())), [len(names)]))
    cameras = {camera.key: [camera.height_px, camera.width_px, 3] for camera in card.cameras.values()}
    stored = {
        key: list(feature["shape"]) for key, feature in features.items() if key.startswith(IMAGE_PREFIX)
    }
    return [*facts, ("features (cameras)", stored, cameras)]


def _unit_problems(card: DatasetCard, robot: RobotProfile) -> list[str]:
    problems = []
    for channel, valid in zip(card.channels, channels_of(robot), strict=False):
        if channel.unit != valid.unit:
            problems.append(f"channels.{channel.joint}.unit = {channel.unit!r}; valid: {valid.unit!r}")
        for key in ("scale", "offset"):
            value, right = getattr(channel, key), getattr(valid, key)
            if abs(value - right) > AFFINE_TOLERANCE * max(1.0, abs(right)):
                problems.append(
                    f"channels.{channel.joint}.{key} = {value:g}; valid: {right:g} (another calibration?)"
                )
    return problems


def _image_problems(card: DatasetCard, task: TaskProfile) -> list[str]:
    valid = (task.images.height_px, task.images.width_px)
    return [
        f"cameras.{name} is {camera.height_px}×{camera.width_px} px; valid: {valid[0]}×{valid[1]} px"
        for name, camera in card.cameras.items()
        if (camera.height_px, camera.width_px) != valid
    ]


def _rate_problems(card: DatasetCard, task: TaskProfile) -> list[str]:
    return [
        f"{key} = {value:g} Hz; valid: {task.control_hz:g} Hz"
        for key, value in (("fps_declared", card.fps_declared), ("fps_measured", card.fps_measured))
        if abs(value / task.control_hz - 1) > RATE_TOLERANCE
    ]


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value) or "none"
    return repr(value)
