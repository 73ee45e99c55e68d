"""Robot and task profiles: what they say, and how they refuse what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError


def _written(tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    content = yaml.safe_load((files("sim2or.contracts.profiles") / f"{name}.yaml").read_text())
    change(content)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_arm_has_the_published_joints_and_mass() -> None:
    """The profile has LeRobot's six channels in order and the published total mass of 0.632 kg."""
    robot = load_robot("so101")
    assert robot.lerobot_keys == (
        "shoulder_pan.pos",
        "shoulder_lift.pos",
        "elbow_flex.pos",
        "wrist_flex.pos",
        "wrist_roll.pos",
        "gripper.pos",
    )
    assert sum(body.mass_kg for body in robot.bodies) == pytest.approx(0.632, abs=1e-3)


def test_tool_frame_at_joint_zero_is_where_the_maker_says() -> None:
    """Forward kinematics puts the tool frame at (0.3914, 0, 0.2265) m with all joints at zero."""
    kinematics = Kinematics(load_robot("so101"))
    np.testing.assert_allclose(kinematics.tool_position(np.zeros(6)), [0.3914, 0.0, 0.2265], atol=1e-4)


def test_pan_turns_the_tool_about_the_shoulder_axis() -> None:
    """A quarter turn of the pan joint carries the tool from ahead of the shoulder axis to its right."""
    tool = Kinematics(load_robot("so101")).tool_position([np.pi / 2, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(tool, [0.0388353, -(0.3914 - 0.0388353), 0.2265], atol=2e-4)


def test_kinematics_takes_any_leading_dimensions() -> None:
    """Poses of a batch equal the poses of its members."""
    kinematics = Kinematics(load_robot("so101"))
    angles = np.random.default_rng(0).uniform(-1, 1, (3, 4, 6))
    batch = kinematics.body_origins(angles)
    assert batch.shape == (3, 4, 7, 3)
    np.testing.assert_allclose(batch[2, 1], kinematics.body_origins(angles[2, 1]))
    np.testing.assert_allclose(
        kinematics.grasp_position(angles)[2, 1], kinematics.grasp_position(angles[2, 1])
    )


@pytest.mark.parametrize(
    ("load", "name", "meant"), [(load_robot, "so100", "so101"), (load_task, "handovr", "handover")]
)
def test_unknown_name_lists_the_valid_ones(load: Callable[[str], object], name: str, meant: str) -> None:
    """An unknown profile name is refused with the names that exist and the one probably meant."""
    with pytest.raises(ConfigError, match=rf"{name}.*valid: {meant}.*did you mean '{meant}'"):
        load(name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A path that does not exist is refused with the path."""
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_robot(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("handover", lambda c: c.update(control_hertz=30), r"control_hertz: unknown key.*control_hz"),
        ("handover", lambda c: c["zone"].update(radius=1), r"zone\.radius: unknown key.*radius_m"),
        ("handover", lambda c: c["tray"].pop("center_m"), r"tray\.center_m: missing key"),
        ("handover", lambda c: c.update(physics_hz=100), r"physics_hz 100\.0 must be a whole multiple"),
        ("handover", lambda c: c["ranges"].update(x_m=[-0.5, 0.5]), r"ranges\.x_m .*bounds -0\.05…0\.05"),
        (
            "handover",
            lambda c: c["ranges"].update(lag_s=[0.1, 0.0]),
            r"ranges\.lag_s.*low 0\.1 is above high",
        ),
        ("handover", lambda c: c["lists"]["deploy"].update(first_seed=899999), r"train.*share scenarios"),
        ("handover", lambda c: c["executor"].update(execute=21), r"execute 21 must not exceed horizon 20"),
        ("so101", lambda c: c["home_rad"].__setitem__(3, 2.0), r"home_rad of wrist_flex is 2\.0, outside"),
        ("so101", lambda c: c["joints"][0].update(lower_rad=3.0), r"lower_rad 3\.0 must be below"),
        ("so101", lambda c: c["bodies"][1].update(parent="bse"), r"parent 'bse' is not declared"),
        ("so101", lambda c: c["servo"].update(torque_max_nm="much"), r"servo\.torque_max_nm:.*'much'"),
    ],
)
def test_wrong_profile_is_refused(
    tmp_path: Path, name: str, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """A wrong key or value is refused with the file, the key, the value and what would be valid."""
    path = _written(tmp_path, name, change)
    with pytest.raises(ConfigError, match=message) as refused:
        (load_robot if name == "so101" else load_task)(path)
    assert str(path) in str(refused.value)


def test_digest_follows_the_content(tmp_path: Path) -> None:
    """Equal profiles have equal digests and a changed number changes it."""
    (tmp_path / "same").mkdir()
    same = load_task(_written(tmp_path / "same", "handover", lambda c: None))
    other = load_task(_written(tmp_path, "handover", lambda c: c.update(limit_s=9.0)))
    assert same.digest() == load_task("handover").digest()
    assert other.digest() != same.digest()


def test_lists_are_disjoint() -> None:
    """No seed belongs to two scenario lists."""
    lists = load_task("handover").lists.values()
    assert all(a.end_seed <= b.first_seed or b.end_seed <= a.first_seed for a, b in combinations(lists, 2))
