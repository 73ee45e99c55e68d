"""The simulated robot: newest command of its session, watchdog, age, and a log that can be judged alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import sample_scenario
from sim2or.contracts.task import load_task
from sim2or.errors import ConfigError
from sim2or.messages.joint_command import JointCommand
from sim2or.safety.kernel import SafetyKernel
from sim2or.safety.limits import limits_of
from sim2or.safety.stop import StopLatch, TorqueStage
from sim2or_sim.backends import make_world
from sim2or_sim.command_log import CommandLog, Judge, read_log
from sim2or_sim.robot import SimulatedRobot

ROBOT, TASK = load_robot("so101"), load_task("handover")
HOME = np.array(ROBOT.home_rad, dtype=np.float32)
PERIOD_NS = round(1e9 / 30)
LIMITS = limits_of(ROBOT, TASK)
GRASP = Kinematics(ROBOT).grasp_position
MAX_AGE_NS = round(TASK.executor.max_age_s * 1e9)
WATCHDOG_NS = round(TASK.safety.watchdog_s * 1e9)


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[SimulatedRobot]:
    world = make_world(ROBOT, TASK, render=False)
    arm = SimulatedRobot(world, TASK, CommandLog(tmp_path / "commands.jsonl"))
    arm.reset(sample_scenario(TASK, 1), "s", 0)
    yield arm
    arm.log.close()
    world.close()


def command(seq: int = 0, session: str = "s", captured_ns: int | None = 0, **changes: object) -> JointCommand:
    values = {"session": session, "seq": seq, "tick": seq, "target_rad": HOME, "issued_ns": 0}
    return JointCommand.model_validate(values | {"captured_ns": captured_ns, "hold": False} | changes)


def executed(arm: SimulatedRobot) -> list[dict]:
    return [line for line in arm.log.episode() if line["line"] == "executed"]


def test_it_executes_the_newest_command(arm: SimulatedRobot) -> None:
    """Of two commands between ticks the later one is executed."""
    arm.hear(command(0), 0)
    arm.hear(command(1, target_rad=HOME + np.float32(0.01)), 0)
    arm.act(PERIOD_NS)
    assert (executed(arm)[0]["seq"], executed(arm)[0]["hold"]) == (1, "")
    assert executed(arm)[0]["target_rad"][0] == pytest.approx(HOME[0] + 0.01, abs=1e-6)


@pytest.mark.parametrize(
    ("late", "why"), [(command(1, session="t"), "other session"), (command(0), "not newer")]
)
def test_it_refuses_what_is_not_its_sessions_newest(
    arm: SimulatedRobot, late: JointCommand, why: str
) -> None:
    """Another session's command, or one that was overtaken, is logged and not executed."""
    arm.hear(command(0), 0)
    assert not arm.hear(late, 0)
    assert [line["refused"] for line in arm.log.episode() if line["line"] == "received"] == ["", why]


def test_without_a_command_it_holds_the_pose_measured_when_the_hold_began(arm: SimulatedRobot) -> None:
    """The held target does not follow the sagging arm."""
    for tick in range(5):
        arm.act(tick * PERIOD_NS)
    targets = [line["target_rad"] for line in executed(arm)]
    assert {line["hold"] for line in executed(arm)} == {"watchdog"}
    assert targets == [targets[0]] * 5
    assert targets[0] == executed(arm)[0]["measured_rad"]


def test_its_watchdog_holds_when_the_commander_falls_silent(arm: SimulatedRobot) -> None:
    """Exactly at the watchdog's limit the command still counts; a nanosecond later the arm is held."""
    arm.hear(command(0, captured_ns=WATCHDOG_NS, hold=True), 0)
    arm.act(WATCHDOG_NS)
    arm.act(WATCHDOG_NS + 1)
    assert [line["hold"] for line in executed(arm)] == ["commander", "watchdog"]


def test_it_never_executes_a_command_of_an_old_observation(arm: SimulatedRobot) -> None:
    """Exactly at the age limit the command moves the arm; a nanosecond later the arm is held."""
    arm.hear(command(0, captured_ns=0), MAX_AGE_NS)
    arm.act(MAX_AGE_NS)
    arm.act(MAX_AGE_NS + 1)
    assert [line["hold"] for line in executed(arm)] == ["", "expired"]


def test_it_refuses_a_command_that_was_under_way_too_long(arm: SimulatedRobot) -> None:
    """Issued longer ago than the age limit, or in the future: neither a motion nor a hold is taken."""
    for seq, (issued_ns, hold) in enumerate([(0, False), (0, True), (MAX_AGE_NS + 2, True)]):
        assert not arm.hear(command(seq, issued_ns=issued_ns, hold=hold), MAX_AGE_NS + 1)
    assert arm.hear(command(3, issued_ns=1, hold=True), MAX_AGE_NS + 1)


def test_a_hold_command_keeps_the_arms_own_pose_and_moves_nothing(arm: SimulatedRobot) -> None:
    """Holds that name a moving target, of any age, leave the arm where it was measured."""
    for tick in range(10):
        arm.hear(command(tick, hold=True, captured_ns=None, target_rad=HOME + np.float32(0.1 * tick)), 0)
        arm.act(0)
    lines = executed(arm)
    assert {line["hold"] for line in lines} == {"commander"}
    assert all(line["target_rad"] == lines[0]["measured_rad"] for line in lines)
    assert np.ptp([line["measured_rad"] for line in lines], axis=0).max() < 0.01


def test_its_log_is_complete_at_any_moment(arm: SimulatedRobot) -> None:
    """A line stands in the file as soon as it was written: a kill loses nothing."""
    arm.hear(command(0), 0)
    arm.act(0)
    assert [line["line"] for line in read_log(arm.log.path)] == ["episode", "received", "executed"]
    assert arm.log.episode_bytes().tobytes() == arm.log.path.read_bytes()


def test_a_new_episode_forgets_the_old_command(arm: SimulatedRobot) -> None:
    """After a reset the first tick holds, and commands of the old session are refused."""
    arm.hear(command(0), 0)
    arm.reset(sample_scenario(TASK, 2), "t", 0)
    assert not arm.hear(command(1), 0)
    arm.act(0)
    assert executed(arm)[0]["hold"] == "watchdog"
    assert arm.phase == "running"


def test_a_reset_that_is_played_back_changes_nothing(arm: SimulatedRobot) -> None:
    """A session runs once: its reset, heard again during it or later, is refused and the episode goes on."""
    arm.reset(sample_scenario(TASK, 2), "t", 0)
    for session in ("t", "s"):
        with pytest.raises(ConfigError, match=f"session '{session}' was run before"):
            arm.reset(sample_scenario(TASK, 1), session, 0)
    assert (arm.session, arm.phase) == ("t", "running")
    assert arm.hear(command(0, session="t"), 0)


def line(
    target_rad: list[float],
    at_ns: int = 0,
    captured_ns: int | None = 0,
    hold: str = "",
    seq: int = 0,
    measured_rad: list[float] | None = None,
) -> dict:
    return {
        "line": "executed",
        "session": "s",
        "seq": seq,
        "at_ns": at_ns,
        "captured_ns": captured_ns,
        "hold": hold,
        "target_rad": target_rad,
        "measured_rad": pan(0) if measured_rad is None else measured_rad,
    }


def pan(offset: float) -> list[float]:
    """Home, turned about the vertical axis; the tool is 0.2 m above the floor of its box there."""
    return [float(ROBOT.home_rad[0]) + offset, *(float(value) for value in ROBOT.home_rad[1:])]


def drive(offsets: Sequence[float], executed_at: Sequence[int] | None = None) -> list[dict]:
    """Commands 0, 1, 2 … as they were executed, at those control periods."""
    at = executed_at or range(len(offsets))
    return [
        line(pan(offset), at_ns=tick * PERIOD_NS, captured_ns=tick * PERIOD_NS, seq=seq)
        for seq, (offset, tick) in enumerate(zip(offsets, at, strict=True))
    ]


def sunk(lift_rad: float) -> list[float]:
    """Home with the shoulder so much further down."""
    pose = pan(0)
    pose[1] += lift_rad
    return pose


FLOOR_M = TASK.safety.tool_low_m[2]
LOW = next(lift for lift in np.arange(0, 2, 0.01) if GRASP(np.array(sunk(lift)))[2] < FLOOR_M)
BELOW, NEAR_BELOW = sunk(LOW + 0.02), sunk(LOW)


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([line(pan(1.67)), line(pan(1.68))], "outside_range"),
        (drive([0.0, 0.13]), "steps_too_large"),
        (drive([0.0, 0.06, 0.178]), "too_fast"),
        (drive([0.0, 0.068]), "too_sudden"),
        (drive([0.0, 0.06, 0.11, 0.09]), "too_sudden"),
        (drive([0.13]), "steps_too_large"),
        (drive([0.068]), "too_sudden"),
        ([line(BELOW, measured_rad=NEAR_BELOW)], "outside_workspace"),
        ([line(pan(0.02), hold="watchdog")], "holds_away"),
        ([line(pan(0), hold="commander"), line(pan(0.005), hold="commander")], "holds_away"),
    ],
)
def test_the_judge_finds_each_violation(lines: list[dict], count: str) -> None:
    """Each limit, also at an episode's first tick: range 1.91986 rad (home is at 0.25), step 0.12 rad,
    speed 3.5 rad/s (0.1167 rad a tick), acceleration 60 rad/s² (0.0667 rad a tick), box, a hold that moves.
    """
    counts = Judge(ROBOT, TASK).judge(lines)["s"]
    assert counts[count] > 0
    assert counts["violations"] > 0


def test_the_judge_finds_stale_commands_but_not_holds() -> None:
    """Older than 0.3 s is stale, a moving command of unknown age too; holds are exempt."""
    lines = [
        line(pan(0), at_ns=300_000_000),
        line(pan(0), at_ns=300_000_001),
        line(pan(0), at_ns=300_000_001, captured_ns=None),
        line(pan(0), at_ns=900_000_000, hold="commander"),
    ]
    counts = Judge(ROBOT, TASK).judge(lines)["s"]
    assert (counts["stale_executed"], counts["violations"], counts["executed"]) == (2, 0, 4)


def test_a_command_one_tick_late_is_no_violation() -> None:
    """At a steady 1.5 rad/s one target is executed twice and the next is skipped: timing, not motion."""
    speed = [0.03, 0.08, 0.13, 0.13, 0.23, 0.28, 0.33]
    lines = drive(speed)
    lines[3]["seq"] = 2
    counts = Judge(ROBOT, TASK).judge(lines)["s"]
    assert counts["violations"] == 0


def test_the_judge_accepts_all_that_the_kernel_lets_through() -> None:
    """Random jumps through the kernel, executed as commanded, holds kept by the robot: not one violation."""
    random, kernel = (
        np.random.default_rng(0),
        SafetyKernel(LIMITS, GRASP, 1 / 30, StopLatch(TorqueStage.FULL)),
    )
    pose, held, lines = HOME.astype(np.float64), None, []
    for tick in range(600):
        if tick % 7 == 0:
            wanted = random.uniform(LIMITS.lower_rad, LIMITS.upper_rad) * 0.7
        wants = None if tick % 50 > 46 else wanted
        # decided on the measurement of the tick before, as on a robot
        before, pose_before = (tick - 1) * PERIOD_NS, pose
        decision = kernel.filter(wants, pose_before, before, tick * PERIOD_NS, measured_ns=before)
        assert decision.target_rad is not None
        pose = pose if not lines else np.array(lines[-1]["target_rad"])
        held = (pose if held is None else held) if decision.hold else None
        target = decision.target_rad if held is None else held
        lines.append(
            line(
                [float(value) for value in target],
                at_ns=tick * PERIOD_NS,
                captured_ns=before,
                hold="commander" if decision.hold else "",
                seq=tick,
                measured_rad=[float(value) for value in pose],
            )
        )
    counts = Judge(ROBOT, TASK).judge(lines)["s"]
    assert counts["violations"] == 0, counts
    assert 12 <= counts["holds_by_commander"] < 300


@pytest.mark.parametrize("reach_rad", [0.4, 1.2], ids=["within the box", "beyond the box"])
@pytest.mark.parametrize("seed", range(5))
def test_no_line_makes_the_arm_jump(arm: SimulatedRobot, seed: int, reach_rad: float) -> None:
    """Commands that the kernel made come late, two at a time or never, and the robot holds in between:
    whatever reaches it, what it executes breaks no limit, and it stays behind some of the commands.
    """
    random, kernel = (
        np.random.default_rng(seed),
        SafetyKernel(LIMITS, GRASP, 1 / 30, StopLatch(TorqueStage.FULL)),
    )
    on_the_way: list[tuple[int, JointCommand]] = []
    for tick in range(400):
        now_ns = tick * PERIOD_NS
        pose = arm.world.sense(0, cameras=False).position_rad
        if tick % 11 == 0:
            wanted = HOME + random.uniform(-reach_rad, reach_rad, HOME.shape)
        decision = kernel.filter(wanted, pose, now_ns, now_ns, measured_ns=now_ns)
        late_ns = round(random.choice([0.5, 0.5, 1.7, 2.6, 12]) * PERIOD_NS)
        if random.random() < 0.95 and tick % 60 < 45 and decision.target_rad is not None:
            sent = command(
                tick, captured_ns=now_ns, issued_ns=now_ns, target_rad=decision.target_rad, hold=decision.hold
            )
            on_the_way.append((now_ns + late_ns, sent))
        for due_ns, sent in [one for one in on_the_way if one[0] <= now_ns]:
            arm.hear(sent, due_ns)
            on_the_way.remove((due_ns, sent))
        if random.random() < 0.03:
            now_ns += PERIOD_NS // 3
        arm.act(now_ns)
    counts = Judge(ROBOT, TASK).judge(arm.log.episode())["s"]
    motion = (
        "outside_range",
        "outside_workspace",
        "steps_too_large",
        "too_fast",
        "too_sudden",
        "holds_away",
    )
    assert {name: counts[name] for name in motion} == dict.fromkeys(motion, 0)
    assert counts["limited"] > 0
    assert counts["holds_by_watchdog"] + counts.get("holds_by_expired", 0) > 0


def test_it_holds_where_its_own_way_leaves_the_box(arm: SimulatedRobot) -> None:
    """Near the floor the arm does not set out for what lies below: it is held where it is measured, the log
    says why, and it goes on when a command leads up again.
    """

    def go(tick: int, target_rad: Sequence[float]) -> None:
        times = {"captured_ns": tick * PERIOD_NS, "issued_ns": tick * PERIOD_NS}
        arm.hear(command(tick, target_rad=np.array(target_rad, np.float32), **times), tick * PERIOD_NS)
        arm.act(tick * PERIOD_NS)

    for tick, lift in enumerate(np.linspace(0, LOW - 0.02, 40)):
        go(tick, sunk(lift))
    for tick in range(40, 44):
        go(tick, sunk(LOW + 0.4))
    held = [one for one in executed(arm) if one["hold"] == "workspace"]
    assert held == executed(arm)[-4:]
    assert held[0]["target_rad"] == held[0]["measured_rad"] == held[-1]["target_rad"]
    go(44, pan(0))
    assert (executed(arm)[-1]["hold"], executed(arm)[-1]["limited"]) == ("", True)
    counts = Judge(ROBOT, TASK).judge(arm.log.episode())["s"]
    assert (counts["violations"], counts["holds_by_workspace"]) == (0, len(held))


def test_a_step_across_a_reset_is_no_violation() -> None:
    """A simulator's reset moves the arm without a command."""
    begin = {"line": "episode", "session": "s", "seed": 1, "at_ns": 0}
    counts = Judge(ROBOT, TASK).judge([line(pan(0)), begin, line(pan(1), measured_rad=pan(1))])["s"]
    assert counts["violations"] == 0


def test_a_torn_last_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    """A robot that was killed leaves a readable log."""
    path = tmp_path / "commands.jsonl"
    path.write_text('{"line": "episode"}\n{"li')
    assert read_log(path) == [{"line": "episode"}]
