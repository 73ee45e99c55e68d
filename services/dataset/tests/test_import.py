"""The import stage takes Isaac Lab's recordings as they are, and says why it cannot take one."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from sim2or.contracts.kinematics import Kinematics
from sim2or.episode import EpisodeFile, read_index
from sim2or.errors import ConfigError, JobError
from sim2or.messages.convert import ConvertSpec
from sim2or.messages.recording import ImportSpec
from sim2or_dataset.importers.stage import STAGE
from sim2or_dataset.stage import STAGES

sys.path.insert(0, str(Path(__file__).parent))
import recordings
from recordings import ROBOT, STEPS, TASK, changed, demo, record


@pytest.fixture
def imported(tmp_path, context):
    """Imports recordings and gives the result."""

    def run(*files, **spec):
        directories = [file.parent for file in files] or [tmp_path / "recording"]
        digests = [f"sha256:{number:064d}" for number in range(len(directories))]
        work = context(tmp_path / "work", {"recording": directories}, digests={"recording": digests})
        return STAGE.run(ImportSpec(**spec), work)

    return run


@pytest.fixture
def file(tmp_path):
    """Where a recording goes."""
    return tmp_path / "recording" / "demos.hdf5"


def episodes(result):
    """The episodes that were made, read whole."""
    directory = result.outputs["episodes"]
    found = []
    for entry in read_index(directory):
        with EpisodeFile(directory / entry.file) as opened:
            opened.check(ROBOT, TASK)
            found.append(opened.read())
    return found


def test_rows_are_what_was_before_the_action(file, imported):
    """Row t has the state before action t, the action's joint targets and the picture of that instant."""
    columns = demo()
    (episode,) = episodes(imported(record(file, [columns])))
    before = np.vstack(
        [columns[f"{part}/articulation/robot/joint_position"] for part in ("initial_state", "states")]
    )[:-1]
    np.testing.assert_allclose(episode.position_rad, before, atol=1e-6)
    np.testing.assert_allclose(episode.position_rad[0], columns["obs/joint_pos"][0], atol=1e-6)
    np.testing.assert_allclose(episode.velocity_radps, columns["obs/joint_vel"], atol=1e-6)
    np.testing.assert_allclose(episode.actions_rad, columns["processed_actions"], atol=1e-6)
    np.testing.assert_allclose(episode.time_s, np.arange(STEPS) / 30)
    assert episode.images["wrist"][:, 0, 0, 0].tolist() == columns["obs/wrist"][:, 0, 0, 0].tolist()
    header = episode.header
    assert (header.success, header.request, header.control_hz) == (True, TASK.requests["scalpel"], 30.0)
    assert header.physics_hz == pytest.approx(600)
    assert header.parent == f"sha256:{0:012d}:demos.hdf5:demo_0"


def test_the_instrument_is_told_in_the_arms_base(file, imported):
    """With the arm turned in its environment, position and tip axis come out in its base and in its tool."""
    (episode,) = episodes(imported(record(file)))
    np.testing.assert_allclose(episode.instrument[:, :3], np.tile(recordings.LYING_M, (STEPS, 1)), atol=1e-6)
    np.testing.assert_allclose(episode.instrument[:, 3:6], np.tile([1, 0, 0], (STEPS, 1)), atol=1e-6)
    kinematics = Kinematics(ROBOT)
    position = episode.position_rad.astype(float)
    tool = kinematics.body_poses(position)[:, kinematics.body_names.index(ROBOT.tool.body), :3, :3]
    seen = kinematics.grasp_position(position) + np.einsum("tij,tj->ti", tool, episode.instrument[:, 6:9])
    np.testing.assert_allclose(seen, episode.instrument[:, :3], atol=1e-6)
    assert not episode.taken.any()


def test_our_own_recorder_s_truth_is_taken_as_it_is(file, imported):
    """Where the recording has the simulator's truth, it is not computed again."""
    truth = np.random.default_rng(1).normal(size=(STEPS, 12))
    taken = (np.arange(STEPS) > 3).astype(np.uint8)
    columns = demo() | {"privileged/instrument": truth, "privileged/taken": taken}
    (episode,) = episodes(imported(record(file, [columns])))
    np.testing.assert_allclose(episode.instrument, truth, atol=1e-6)
    assert episode.taken.tolist() == taken.tolist()


def test_old_quaternions_are_turned(file, imported, tmp_path):
    """A file without a format version has quaternions wxyz: the same demonstration comes out the same."""
    columns = demo()
    for key in [key for key in columns if key.endswith("root_pose")]:
        columns[key] = np.hstack([columns[key][:, :3], np.roll(columns[key][:, 3:], 1, axis=1)])
    (new,) = episodes(imported(record(file)))
    for version in (None, 0):
        (old,) = episodes(imported(record(tmp_path / "old" / "demos.hdf5", [columns], version=version)))
        np.testing.assert_allclose(old.instrument, new.instrument, atol=1e-6)


def test_joints_in_another_order_are_sorted(file, imported):
    """With the recording's own order of joints told, by the file or the configuration, columns are sorted."""
    order = [5, 0, 1, 2, 3, 4]
    names = tuple(ROBOT.joint_names[i] for i in order)
    columns = demo()
    for key in [key for key in columns if "joint_" in key or "actions" in key]:
        columns[key] = columns[key][:, order]
    (told,) = episodes(imported(record(file, [columns]), joints=names))
    (said,) = episodes(imported(record(file, [columns], env={"joints": names})))
    (plain,) = episodes(imported(record(file)))
    for episode in (told, said):
        np.testing.assert_array_equal(episode.position_rad, plain.position_rad)
        np.testing.assert_array_equal(episode.actions_rad, plain.actions_rad)


def test_failures_stay_failures_and_files_add_up(tmp_path, imported, context):
    """Demonstrations of several artifacts are numbered through; failed ones do not reach the dataset."""
    one = record(tmp_path / "a" / "one.hdf5", [demo(1), demo(2)])
    two = record(tmp_path / "b" / "two.hdf5", [demo(3)], attrs={"success": False})
    result = imported(one, two)
    assert [entry.header.index for entry in episodes(result)] == [0, 1, 2]
    assert result.summary == {
        "files": 2,
        "episodes": 3,
        "kept": 2,
        "frames": 2 * STEPS,
        "kept_by_request": {TASK.requests["scalpel"]: 2},
    }
    work = context(tmp_path / "convert", {"episodes": [result.outputs["episodes"]]})
    summary = STAGES["convert"].run(ConvertSpec(), work).summary
    assert (summary["episodes"], summary["dropped"], summary["fps_measured"]) == (2, 1, pytest.approx(30))


def test_other_names_and_no_verdict(file, imported):
    """The names of another recorder's cameras and arm are told; a missing verdict is assumed."""
    columns = {key.replace("articulation/robot/", "articulation/arm/"): v for key, v in demo().items()}
    for key in ("wrist", "room"):
        columns[f"obs/{key}_cam"] = columns.pop(f"obs/{key}")
    names = {"wrist": "wrist_cam", "room": "room_cam"}
    recorded = record(file, [columns], attrs={"success": None})
    (episode,) = episodes(imported(recorded, cameras=names, articulation="arm", unjudged_succeeded=True))
    assert episode.header.success
    with pytest.raises(JobError, match=r"demo_0: has no attribute 'success'; valid: .*unjudged_succeeded"):
        imported(recorded, cameras=names, articulation="arm")


def _nan(values):
    values[3, 2] = np.nan
    return values


def _other_instrument(value):
    def change(values):
        values[:, 2] = value
        return values

    return change


START = "initial_state/rigid_object"
BAD = {
    "missing camera": (
        changed("obs/wrist", None),
        r"demos.hdf5: data/demo_0: obs/wrist is missing; valid: actions, joint_pos, joint_vel, room",
    ),
    "float camera": (
        changed("obs/wrist", lambda v: v / 255),
        r"obs/wrist is float32; valid: uint8.*normalize=False",
    ),
    "wrong size": (
        changed("obs/room", lambda v: v[:, ::2]),
        r"obs/room has shape \(6, 48, 96, 3\); valid: \(6, 96",
    ),
    "lost picture": (
        changed("obs/room", lambda v: v[:-1]),
        r"obs/room has shape \(5, 96, 96, 3\); valid: \(6, 96",
    ),
    "wrong joint count": (
        changed("states/articulation/robot/joint_position", lambda v: v[:, :5]),
        r"joint_position has shape \(6, 5\); valid: \(6, 6\)",
    ),
    "not finite": (
        changed("processed_actions", _nan),
        r"demo_0: processed_actions\[3, 2\] = nan; valid: finite",
    ),
    "degrees": (
        changed("processed_actions", np.rad2deg),
        r"processed_actions of shoulder_pan in row 0 = 1\d\.\d+; valid: radians in -1.91986…1.91986",
    ),
    "steps, not targets": (
        changed("processed_actions", lambda v: v * 0),
        r"processed_actions of wrist_flex is 1\.\d+ rad from it .*valid: joint targets within 0.6 rad",
    ),
    "no states": (
        changed("initial_state/articulation/robot/joint_position", None),
        r"initial_state/articulation/robot/joint_position is missing; valid: joint_velocity, root_pose",
    ),
    "no instrument": (
        changed(f"{START}/scalpel/root_pose", _other_instrument(-5.0)),
        r"instruments on the tray at the start: none; valid: one of scalpel, forceps, scissors",
    ),
    "two instruments": (
        changed(f"{START}/forceps/root_pose", _other_instrument(0.01)),
        r"instruments on the tray at the start: scalpel, forceps; valid: one of",
    ),
    "no quaternion": (
        changed("states/rigid_object/scalpel/root_pose", lambda v: v * 2),
        r"rigid_object/scalpel/root_pose: a quaternion is 2 long",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_demonstration_that_does_not_fit_is_refused(file, imported, name):
    """The error names the file, the demonstration, the value and what is valid."""
    columns, said = BAD[name]
    with pytest.raises(JobError, match=said):
        imported(record(file, [columns]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, r"format_version = 2; valid: 1 \(quaternions xyzw\), 0 or none \(wxyz\)"),
        (
            {"sim_args": {"dt": 1 / 120, "decimation": 2}},
            r"demos.hdf5: recorded at 60.000 Hz \(dt 0.00833333 s · decimation 2\); valid: handover's 30 Hz",
        ),
        (
            {"sim_args": {"dt": 0.0, "decimation": 2}},
            r"sim_args.dt = 0 s, decimation = 2; valid: both above zero",
        ),
        ({"sim_args": {"dt": 0.01}}, r"env_args.sim_args = \{'dt': 0.01\}; valid: dt \[s\] and decimation"),
        ({"demos": []}, r"/data holds nothing; valid: demo_0, demo_1 …; nothing was recorded"),
        ({"env": {"task": "suture"}}, r"env_args.task = 'suture'; valid: 'handover'"),
        ({"env": {"joints": ["a", "b"]}}, r"joints a, b; valid, in any order: shoulder_pan, "),
        ({"attrs": {"num_samples": 7}}, r"num_samples = 7, 6 rows in 'actions'; valid: equal, 2 or more"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(file, imported, change, said):
    """Version, rate, emptiness, task, joints and row counts are judged before anything is converted."""
    with pytest.raises(JobError, match=said):
        imported(record(file, **change))


def test_what_is_no_recording_is_refused(file, imported, tmp_path):
    """A torn file, one of another program, a link out of the file, and no file at all cost one line each."""
    file.parent.mkdir()
    file.write_bytes(b"\x89HDF\r\n\x1a\n torn")
    with pytest.raises(JobError, match=r"demos.hdf5: cannot be opened as HDF5"):
        imported(file)
    with h5py.File(file, "w") as other:
        other["x"] = 1
    with pytest.raises(JobError, match=r"no group /data; valid: a recording of Isaac Lab's RecorderManager"):
        imported(file)
    record(file)
    with h5py.File(file, "a") as recorded:
        del recorded["data/demo_0/actions"]
        recorded["data/demo_0/actions"] = h5py.ExternalLink("/etc/passwd", "x")
    with pytest.raises(JobError, match=r"demo_0: actions is no dataset of the file itself"):
        imported(file)
    file.rename(file.with_suffix(".txt"))
    with pytest.raises(JobError, match=r"holds demos.txt; valid: files that end in .hdf5 or .h5"):
        imported(file)
    with pytest.raises(ConfigError, match=r"cameras: 'wirst'; valid: room, wrist \(did you mean 'wrist'\?\)"):
        imported(file, cameras={"wirst": "x"})
    with pytest.raises(JobError, match=r"instrument: 'scalpal'; .*did you mean 'scalpel'"):
        imported(record(file), instrument="scalpal")
