"""Dataset cards: a dataset of another robot, camera, unit or rate is refused with names and choices."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.dataset_card import CameraCard, DatasetCard, EpisodeCard, channels_of, check_against, load_card
from sim2or.errors import ConfigError

ROBOT, TASK = load_robot("so101"), load_task("handover")


def make(**changes) -> DatasetCard:
    cameras = {
        name: CameraCard(key=f"observation.images.{name}", height_px=96, width_px=96, codec="h264")
        for name in ("wrist", "room")
    }
    episodes = tuple(
        EpisodeCard(
            episode_index=i,
            file=f"{i}.hdf5",
            seed=i,
            parent=f"p{i // 2}",
            request="Hand me the scalpel",
            frames=10,
            fps_measured=30.0,
        )
        for i in range(4)
    )
    values = {
        "name": "test",
        "robot": "so101",
        "robot_type": ROBOT.robot_type,
        "task": "handover",
        "calibration_id": ROBOT.calibration_id,
        "channels": channels_of(ROBOT),
        "cameras": cameras,
        "fps_declared": 30.0,
        "fps_measured": 30.0,
        "episodes": episodes,
        "splits": {"train": (0, 2), "validation": (2, 4)},
    }
    return DatasetCard(**{**values, **changes})


def test_a_fitting_dataset_passes(tmp_path):
    """A card survives its file and fits the robot and task it was made for."""
    card = make()
    card.save(tmp_path)
    assert load_card(tmp_path) == card
    check_against(card, ROBOT, TASK)


def _degrees_everywhere():
    channels = list(channels_of(ROBOT))
    channels[-1] = channels[-1].model_copy(update={"unit": "degrees"})
    return tuple(channels)


def _other_zero():
    channels = list(channels_of(ROBOT))
    channels[4] = channels[4].model_copy(update={"offset": 0.0})
    return tuple(channels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robot": "so100"}, r"robot = 'so100'; valid: 'so101'"),
        ({"calibration_id": "old"}, r"calibration_id = 'old'; valid: 'so101-new-calib'"),
        ({"cameras": {}}, r"cameras = none; valid: room, wrist"),
        ({"channels": channels_of(ROBOT)[::-1]}, r"channels.joint = gripper, .*; valid: shoulder_pan, "),
        ({"channels": _degrees_everywhere()}, r"channels.gripper.unit = 'degrees'; valid: 'percent'"),
        ({"channels": _other_zero()}, r"channels.wrist_roll.offset = 0; valid: -2.78"),
        ({"fps_measured": 60.0}, r"fps_measured = 60 Hz; valid: 30 Hz"),
    ],
)
def test_a_mismatch_is_named(changes, message):
    """Each mismatch is refused with the file, the key, the value and what is valid."""
    with pytest.raises(ConfigError, match=f"somewhere: .*{message}"):
        check_against(make(**changes), ROBOT, TASK, origin="somewhere")


def test_every_mismatch_is_told_at_once():
    """Two mistakes are reported together."""
    with pytest.raises(ConfigError, match=r"robot = .*task = "):
        check_against(make(robot="x", task="y"), ROBOT, TASK)


def test_siblings_in_two_splits_are_refused():
    """A card whose splits share a parent demonstration cannot be made."""
    with pytest.raises(ValidationError, match="parent p0 is in both splits"):
        make(splits={"train": (0, 1), "validation": (1, 4)})


def test_a_broken_card_is_named(tmp_path):
    """A missing card and an unknown key are told by file and key."""
    with pytest.raises(ConfigError, match=r"sim2or.json: no dataset card"):
        load_card(tmp_path)
    path = make().save(tmp_path)
    path.write_text(path.read_text().replace('"robot":', '"robott":', 1))
    with pytest.raises(ConfigError, match=r"sim2or.json: robot"):
        load_card(tmp_path)
