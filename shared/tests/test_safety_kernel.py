"""The safety kernel: whatever goes in, what comes out is within every limit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim2or.contracts.kinematics import Kinematics
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.errors import SafetyError
from sim2or.safety.kernel import Decision, Reason, SafetyKernel
from sim2or.safety.limits import SafetyLimits, limits_of
from sim2or.safety.motion import stopping_speed
from sim2or.safety.slew import SlewLimiter
from sim2or.safety.stop import StopLatch, TorqueStage

PERIOD_S = 1 / 30
PERIOD_NS = round(1e9 / 30)
HOME = np.array(load_robot("so101").home_rad)
ROUNDING_RAD = 1e-6


def so101_limits() -> SafetyLimits:
    return limits_of(load_robot("so101"), load_task("handover"))


def kernel(limits: SafetyLimits | None = None, stage: TorqueStage = TorqueStage.FULL) -> SafetyKernel:
    """A kernel whose workspace never refuses, so that the other limits are seen alone."""
    return SafetyKernel(
        limits or so101_limits(), lambda q: np.array([0.2, 0.0, 0.1]), PERIOD_S, StopLatch(stage)
    )


def drive(subject: SafetyKernel, target: object, measured: object, tick: int = 0, **ages: int) -> Decision:
    """One tick with a fresh observation and a fresh measurement, unless ages say otherwise."""
    now = tick * PERIOD_NS
    return subject.filter(
        target,
        measured,
        now - ages.get("target_age_ns", 0),
        now,
        measured_ns=now - ages.get("measured_age_ns", 0),
        heartbeat_ns=now - ages["heartbeat_age_ns"] if "heartbeat_age_ns" in ages else None,
    )


def settle(subject: SafetyKernel, target: np.ndarray, start: np.ndarray, ticks: int) -> list[Decision]:
    """A perfect servo: what is commanded is measured at the next tick."""
    measured, seen = start, []
    for tick in range(ticks):
        seen.append(drive(subject, target, measured, tick))
        assert seen[-1].target_rad is not None
        measured = seen[-1].target_rad
    return seen


def test_a_small_target_passes_as_it_came() -> None:
    """A target close to the measured pose is passed unchanged, with no reason given."""
    decision = drive(kernel(), HOME + 0.005, HOME)
    np.testing.assert_allclose(decision.target_rad, HOME + 0.005, atol=1e-6)
    assert (decision.hold, decision.reasons, decision.torque_scale) == (False, (), 1.0)


def test_nominal_motion_is_transparent() -> None:
    """A smooth motion at 1.5 rad/s peak is passed unchanged at every tick, from the very start."""
    subject = kernel()
    for tick in range(60):
        wanted = HOME + 0.75 * (1 - np.cos(2 * tick * PERIOD_S)) * np.array([1, 0, 0, 0, 0, 0])
        decision = drive(subject, wanted, wanted, tick)
        assert decision.reasons == ()
        np.testing.assert_allclose(decision.target_rad, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "target",
    [
        np.full(6, np.nan),
        np.array([0, 0, np.inf, 0, 0, 0]),
        np.zeros(5),
        np.zeros((2, 6)),
        "forward",
        object(),
        [1, 2, [3]],
        [10**400] * 6,
    ],
)
def test_a_target_that_is_no_pose_holds(target: object) -> None:
    """NaN, infinity, a wrong shape or anything that is no numbers holds the measured pose and is counted."""
    subject = kernel()
    decision = drive(subject, target, HOME)
    np.testing.assert_allclose(decision.target_rad, HOME, atol=1e-6)
    assert decision.hold
    assert decision.reasons == (Reason.INVALID,)
    assert subject.counts == {Reason.INVALID: 1}


@pytest.mark.parametrize(
    ("ages", "reason"),
    [
        ({"target_age_ns": 300_000_001}, Reason.STALE),
        ({"target_age_ns": -1}, Reason.FUTURE),
        ({"measured_age_ns": 150_000_001}, Reason.OLD_MEASUREMENT),
        ({"measured_age_ns": -1}, Reason.OLD_MEASUREMENT),
        ({"heartbeat_age_ns": 500_000_001}, Reason.NO_HEARTBEAT),
    ],
)
def test_anything_too_old_or_from_the_future_holds(ages: dict[str, int], reason: Reason) -> None:
    """One nanosecond past an age limit is a hold."""
    decision = drive(kernel(), HOME + 0.005, HOME, 100, **ages)
    assert (decision.hold, decision.reasons) == (True, (reason,))


@pytest.mark.parametrize(
    "ages",
    [{"target_age_ns": 300_000_000}, {"measured_age_ns": 150_000_000}, {"heartbeat_age_ns": 500_000_000}],
)
def test_an_age_exactly_at_its_limit_moves(ages: dict[str, int]) -> None:
    """The limit itself is still allowed."""
    assert not drive(kernel(), HOME + 0.005, HOME, 100, **ages).hold


def test_a_capture_time_that_is_no_time_holds() -> None:
    """A target whose observation's time is unknown is refused."""
    decision = kernel().filter(HOME, HOME, None, 0, measured_ns=0)
    assert decision.reasons == (Reason.INVALID,)


def test_no_target_holds_the_pose_measured_when_the_hold_began() -> None:
    """A held arm keeps one pose: it neither follows its own sagging nor goes to zero."""
    subject = kernel()
    first = drive(subject, None, HOME, 0)
    sagged = drive(subject, None, HOME - 0.01, 1)
    np.testing.assert_allclose(first.target_rad, HOME, atol=1e-6)
    np.testing.assert_allclose(sagged.target_rad, HOME, atol=1e-6)
    assert sagged.reasons == (Reason.NO_TARGET,)


def test_nothing_is_sent_before_the_arm_was_ever_measured() -> None:
    """Without a valid measurement there is no pose to hold, so nothing is sent."""
    decision = drive(kernel(), HOME, np.full(6, np.nan))
    assert decision.target_rad is None
    assert (decision.hold, decision.reasons) == (True, (Reason.NO_MEASUREMENT,))


def test_a_lost_measurement_holds_the_last_good_one() -> None:
    """When the joints become unreadable the last valid pose is held."""
    subject = kernel()
    drive(subject, HOME + 0.005, HOME, 0)
    decision = drive(subject, HOME + 0.005, None, 1)
    np.testing.assert_allclose(decision.target_rad, HOME, atol=1e-6)
    assert decision.reasons == (Reason.NO_MEASUREMENT,)


def test_motion_after_a_hold_starts_from_the_measured_pose_at_a_crawl() -> None:
    """The first step after a hold is one twelfth of the top speed's step, and the speed then grows."""
    subject = kernel()
    drive(subject, None, HOME, 0)
    pan = [drive(subject, HOME + 0.5, HOME, tick).target_rad[0] - HOME[0] for tick in (1, 2)]  # type: ignore[index]
    share = PERIOD_S / 0.4
    assert pan[0] == pytest.approx(3.5 * share * PERIOD_S, abs=1e-5)
    assert pan[1] - pan[0] == pytest.approx(3.5 * 2 * share * PERIOD_S, abs=1e-5)


def test_after_a_silence_motion_starts_from_the_measured_pose() -> None:
    """A loop that stalled for more than half the robot's watchdog does not go on from its own old command."""
    subject = kernel()
    drive(subject, HOME + 0.1, HOME + 0.1, tick=0)
    stalled = 1 + int(subject.limits.silence_ns / PERIOD_NS)
    resumed = drive(subject, HOME + 0.1, HOME, tick=stalled)
    assert Reason.BLEND in resumed.reasons
    assert np.abs(resumed.target_rad - HOME).max() < 0.02


def test_a_far_target_is_reached_and_then_limits_are_silent() -> None:
    """A jump of the target becomes a limited motion that arrives; afterwards nothing is changed any more."""
    goal = HOME + np.array([0.8, 0.3, -0.3, -0.3, 0.5, 0.4])
    seen = settle(kernel(), goal, HOME, 60)
    assert Reason.BLEND in seen[0].reasons
    assert seen[-1].reasons == ()
    np.testing.assert_allclose(seen[-1].target_rad, goal, atol=1e-4)


def test_a_jump_during_motion_is_limited_without_a_blend() -> None:
    """Once the arm follows, a jump is limited by speed and acceleration and named so."""
    subject = kernel()
    drive(subject, HOME, HOME, 0)
    decision = drive(subject, HOME + np.array([0.5, 0, 0, 0, 0, 0]), HOME, 1)
    assert decision.reasons == (Reason.MOTION,)
    assert decision.target_rad is not None
    assert decision.target_rad[0] - HOME[0] == pytest.approx(60 * PERIOD_S**2, abs=1e-6)


def test_a_target_outside_the_range_is_clipped_and_named() -> None:
    """A target beyond a joint's range is taken as its end."""
    end = so101_limits().upper_rad
    seen = settle(kernel(), end + 1.0, end - 0.01, 30)
    assert seen[-1].reasons == (Reason.RANGE,)
    np.testing.assert_allclose(seen[-1].target_rad, end, atol=1e-4)


def test_a_target_far_from_a_blocked_arm_is_held_near_it() -> None:
    """An arm that does not follow is not pulled harder and harder: its target stays near."""
    subject = kernel()
    for tick in range(60):
        decision = drive(subject, HOME + np.array([1.5, 0, 0, 0, 0, 0]), HOME, tick)
    assert Reason.TRACKING in decision.reasons
    assert decision.target_rad is not None
    assert decision.target_rad[0] - HOME[0] == pytest.approx(0.6, abs=1e-4)


def planar(low_m: float) -> SafetyKernel:
    """A kernel whose grasp point's height is joint 0 in metres."""
    limits = dataclasses.replace(
        so101_limits(), workspace_lower_m=np.array([-1, -1, low_m]), workspace_upper_m=np.ones(3)
    )
    return SafetyKernel(limits, lambda q: np.array([0.0, 0.0, q[0]]), PERIOD_S, StopLatch(TorqueStage.FULL))


def test_the_tool_may_not_leave_the_workspace() -> None:
    """A command that would take the tool below the table is refused and the measured pose held."""
    subject = planar(low_m=0.0)
    start = np.array([0.002, 0, 0, 0, 0, 0])
    decision = drive(subject, start - 0.005, start)
    assert (decision.hold, decision.reasons) == (True, (Reason.WORKSPACE,))
    np.testing.assert_allclose(decision.target_rad, start, atol=1e-6)


def test_a_tool_outside_the_workspace_may_only_come_back() -> None:
    """From outside, deeper is refused and back is allowed."""
    start = np.array([-0.1, 0, 0, 0, 0, 0])
    assert drive(planar(low_m=0.0), start - 0.005, start).reasons == (Reason.WORKSPACE,)
    assert not drive(planar(low_m=0.0), start + 0.005, start).hold


def test_kinematics_that_fail_count_as_outside() -> None:
    """A tool position that is not finite refuses the command."""
    subject = SafetyKernel(
        so101_limits(), lambda q: np.full(3, np.nan), PERIOD_S, StopLatch(TorqueStage.FULL)
    )
    # outside by an infinite distance both before and after: "no further outside" must not let it pass
    assert drive(subject, HOME + 0.005, HOME).reasons == (Reason.WORKSPACE,)


def test_the_real_arm_at_home_is_inside_its_workspace() -> None:
    """The profile's own home pose passes with the profile's own limits and kinematics."""
    grasp = Kinematics(load_robot("so101")).grasp_position
    subject = SafetyKernel(so101_limits(), grasp, PERIOD_S, StopLatch(TorqueStage.FULL))
    assert not drive(subject, HOME, HOME).hold


def test_a_withdrawn_decision_leaves_no_trace_in_the_motion() -> None:
    """A command that was not executed does not double the next step; a second withdrawal changes nothing."""
    subject = kernel()
    drive(subject, HOME, HOME, 0)
    far = HOME + np.array([0.5, 0, 0, 0, 0, 0])
    first = drive(subject, far, HOME, 1)
    subject.withdraw()
    subject.withdraw()
    again = drive(subject, far, HOME, 2)
    np.testing.assert_array_equal(again.target_rad, first.target_rad)


def test_a_hold_keeps_the_pose_of_the_tick_at_which_it_took_effect() -> None:
    """On a robot that tick's measurement arrives after the decision: motion goes on from where the arm is."""
    subject = kernel()
    drive(subject, HOME, HOME, 0)
    moving = [HOME + np.array([step * 0.02, 0, 0, 0, 0, 0]) for step in range(5)]
    for tick in (1, 2, 3):  # decided on the measurement of the tick before
        decision = drive(subject, None, moving[tick - 1], tick, measured_age_ns=PERIOD_NS)
        wanted = moving[0] if tick == 1 else moving[1]
        np.testing.assert_allclose(decision.target_rad, wanted, atol=1e-6)
    decision = drive(subject, moving[1] + 0.002, moving[3], 4, measured_age_ns=PERIOD_NS)
    np.testing.assert_allclose(decision.target_rad, moving[1] + 0.002, atol=1e-6)


def test_a_hold_decided_on_its_own_ticks_measurement_keeps_that() -> None:
    """In simulation nothing happens between measurement and command."""
    subject = kernel()
    for tick in range(3):
        decision = drive(subject, None, HOME + 0.02 * tick, tick)
        np.testing.assert_allclose(decision.target_rad, HOME, atol=1e-6)


def test_a_locked_arm_holds_with_full_torque() -> None:
    """The locked stage moves nothing, and does not let the arm sink."""
    decision = drive(kernel(stage=TorqueStage.LOCKED), HOME + 0.005, HOME)
    assert (decision.hold, decision.reasons, decision.torque_scale) == (True, (Reason.LOCKED,), 1.0)


@pytest.mark.parametrize(("name", "scale"), [("25%", 0.25), ("50%", 0.5), ("100%", 1.0)])
def test_the_torque_stage_travels_with_the_command(name: str, scale: float) -> None:
    """Each stage allows its share of the torque."""
    assert drive(kernel(stage=TorqueStage.named(name)), HOME, HOME).torque_scale == scale


def test_an_unknown_torque_stage_is_refused() -> None:
    """The error names the valid stages."""
    with pytest.raises(SafetyError, match="valid: 100%, 25%, 50%, locked"):
        TorqueStage.named("75%")


def test_an_emergency_stop_stays_until_a_person_resets_it() -> None:
    """Only a named person releases the latch, and afterwards the arm is locked."""
    subject = kernel()
    subject.emergency_stop("button")
    subject.emergency_stop("second")
    assert [drive(subject, HOME, HOME, tick).reasons for tick in range(3)] == [(Reason.STOPPED,)] * 3
    subject.reset()
    assert subject.latch.tripped == "button"
    with pytest.raises(SafetyError, match="operator's name"):
        subject.latch.reset(" ")
    with pytest.raises(SafetyError, match="latched"):
        subject.latch.promote(TorqueStage.FULL, "sha256:1")
    subject.latch.reset("A. Person")
    assert drive(subject, HOME, HOME, 4).reasons == (Reason.LOCKED,)
    with pytest.raises(SafetyError, match="evidence"):
        subject.latch.promote(TorqueStage.QUARTER, "")
    subject.latch.promote(TorqueStage.QUARTER, "sha256:1")
    assert not drive(subject, HOME, HOME, 5).hold
    assert subject.latch.journal == [
        "stopped: button",
        "stopped: second",
        "reset by A. Person",
        "promoted to 25% on sha256:1",
    ]


def test_stopping_speed_by_hand() -> None:
    """With a·dt² = 1: room 0 → 0, ½ → ½, 1 → 1, 3 → 2 (2+1), 4 → 2⅓ (2⅓+1⅓+⅓), and a negative room → 0."""
    room = np.array([0.0, 0.5, 1.0, 3.0, 4.0, -1.0])
    np.testing.assert_allclose(stopping_speed(room, np.ones(6), 1.0), [0, 0.5, 1, 2, 7 / 3, 0], atol=1e-12)


numbers = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.floats(-3.0, 3.0, width=32)
vectors = st.lists(numbers, min_size=6, max_size=6).map(np.array)
poses = st.lists(st.floats(-1.5, 1.5, width=32), min_size=6, max_size=6).map(np.array)
targets = st.none() | vectors | poses | st.just(np.zeros(4)) | st.text(max_size=3)
ages = st.integers(-PERIOD_NS, 20 * PERIOD_NS)
ticks = st.lists(st.tuples(targets, vectors | poses, ages, ages), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(ticks)
def test_any_input_gives_an_output_within_every_limit(
    sequence: list[tuple[object, np.ndarray, int, int]],
) -> None:
    """Whatever actors and sensors say: finite, in range, and step and acceleration limited."""
    limits = so101_limits()
    grasp = Kinematics(load_robot("so101")).grasp_position
    subject = SafetyKernel(limits, grasp, PERIOD_S, StopLatch(TorqueStage.FULL))
    previous, velocity, awaited_ns, holding, measured_ns = None, np.zeros(6), None, False, 0
    for tick, (target, measured, age, measured_age) in enumerate(sequence):
        now_ns, is_vector = tick * PERIOD_NS, measured.shape == (6,) and np.isfinite(measured).all()
        if awaited_ns is not None and is_vector and now_ns - measured_age >= awaited_ns - PERIOD_NS / 2:
            # where the robot holds by now
            previous, awaited_ns = np.clip(measured, limits.lower_rad, limits.upper_rad), None
        if is_vector:
            measured_ns = now_ns - measured_age
        decision = drive(subject, target, measured, tick, target_age_ns=age, measured_age_ns=measured_age)
        if decision.target_rad is None:
            assert decision.hold
            continue
        output = decision.target_rad.astype(np.float64)
        assert np.isfinite(output).all()
        assert (output >= limits.lower_rad - ROUNDING_RAD).all()
        assert (output <= limits.upper_rad + ROUNDING_RAD).all()
        if decision.hold or previous is None:
            velocity = np.zeros(6)
            began = decision.hold and not holding
            awaited_ns = now_ns if began and now_ns - measured_ns > PERIOD_NS / 2 else awaited_ns
        else:
            assert (np.abs(output - previous) <= limits.step_rad + ROUNDING_RAD).all()
            change = np.abs((output - previous) / PERIOD_S - velocity)
            assert (change <= limits.acceleration_radps2 * PERIOD_S + 60 * ROUNDING_RAD).all()
            velocity, awaited_ns = (output - previous) / PERIOD_S, None
        previous, holding = output, decision.hold


@settings(max_examples=50, deadline=None)
@given(st.lists(poses, min_size=1, max_size=40), poses)
def test_a_followed_target_never_leaves_the_workspace(sequence: list[np.ndarray], start: np.ndarray) -> None:
    """Every command that moves is inside the box, or no further outside than the arm was."""
    limits = so101_limits()
    grasp = Kinematics(load_robot("so101")).grasp_position
    subject = SafetyKernel(limits, grasp, PERIOD_S, StopLatch(TorqueStage.FULL))

    def outside(pose: np.ndarray) -> float:
        point = grasp(pose)
        return float(np.maximum(limits.workspace_lower_m - point, point - limits.workspace_upper_m).max())

    measured = np.clip(start, limits.lower_rad, limits.upper_rad)
    for tick, target in enumerate(sequence):
        decision = drive(subject, target, measured, tick)
        assert decision.target_rad is not None
        if not decision.hold:
            assert outside(decision.target_rad) <= max(0.0, outside(measured)) + 1e-6
        measured = decision.target_rad.astype(np.float64)


def slew() -> SlewLimiter:
    """At rest at home; step 0.12 rad, speed 3.5 rad/s (0.1167 rad a tick), 60 rad/s² (0.0667)."""
    return SlewLimiter(so101_limits(), lambda q: np.array([0.2, 0.0, 0.1]), PERIOD_S, HOME.astype(np.float32))


def followed(subject: SlewLimiter, offsets: list[float], ticks: list[int] | None = None) -> list[float]:
    """Commands 0, 1, 2 … that turn the first joint so far from home; how far each was followed."""
    at = ticks or range(len(offsets))
    seen = []
    for number, (offset, tick) in enumerate(zip(offsets, at, strict=True)):
        wanted = HOME + np.eye(6)[0] * offset
        step = subject.follow(wanted.astype(np.float32), HOME.astype(np.float32), number, tick * PERIOD_NS)
        assert step is not None
        target, limited = step
        seen.append(float(target[0] - HOME[0]))
        assert limited == (abs(seen[-1] - offset) > 1e-4)
    return seen


def test_the_robot_follows_what_the_kernel_lets_through() -> None:
    """Speeding up by 0.05 rad a tick, going on and slowing down pass as they came; so does one tick late."""
    steady = [0.05, 0.15, 0.25, 0.30, 0.30]
    assert followed(slew(), steady) == pytest.approx(steady, abs=1e-6)
    late = [0.05, 0.15, 0.25, 0.35]
    assert followed(slew(), late, [0, 1, 3, 4]) == pytest.approx(late, abs=1e-6)


def test_the_same_command_again_is_one_target() -> None:
    """A command that is executed twice, because the next is late, neither moves nor stops the arm."""
    subject, wanted = slew(), (HOME + 0.05).astype(np.float32)
    for tick in range(3):
        step = subject.follow(wanted, wanted, 7, tick * PERIOD_NS)
        assert step is not None
        assert (step[0] == wanted).all()
        assert not step[1]


def test_the_robot_does_not_jump_after_its_own_hold() -> None:
    """The kernel went on while the robot held: it goes there from the held pose, from rest, and arrives."""
    subject = slew()
    followed(subject, [0.05, 0.15])
    subject.hold(HOME.astype(np.float32))
    steps = np.diff([0.0, *followed(subject, [0.3] * 12)])
    assert steps[0] == pytest.approx(0.0667, abs=1e-4)
    assert np.abs(steps).max() <= 3.5 / 30 + 1e-4
    assert np.abs(np.diff(steps)).max() <= 60 / 900 + 1e-4
    assert steps.sum() == pytest.approx(0.3, abs=1e-4)


def test_two_commands_in_one_tick_are_no_double_step() -> None:
    """At 3 rad/s the one that was overtaken leaves a gap of 0.2 rad: closed at 3.5 rad/s, not at once."""
    seen = followed(slew(), [0.05, 0.15, 0.35, 0.45, 0.55, 0.65])
    assert seen[2] == pytest.approx(0.15 + 3.5 / 30, abs=1e-4)
    assert np.diff(seen).max() <= 3.5 / 30 + 1e-4


def test_the_robot_stays_behind_a_fast_command_by_what_it_needs_to_stop() -> None:
    """A gap behind 3 rad/s (0.1 rad a tick) shrinks to 0.0333 rad, the way of braking at 60 rad/s² after this
    tick, as any command may be the last; it closes when the command stops, and not a bit is overshot.
    """
    moving = [0.05, 0.15, 0.35, *(0.35 + 0.1 * tick for tick in range(1, 11))]
    wanted = [*moving, *[moving[-1]] * 4]
    gaps = np.array(wanted) - followed(slew(), wanted)
    assert gaps[2] == pytest.approx(0.35 - 0.15 - 3.5 / 30, abs=1e-4)
    assert gaps[12] == pytest.approx(0.1 - 60 / 900, abs=1e-3)
    assert gaps[-1] == pytest.approx(0.0, abs=1e-4)
    assert gaps.min() > -1e-4


def test_the_robot_leaves_the_workspace_on_no_way_of_its_own() -> None:
    """From home to 0.3 rad the tool dips below the floor between 0.1 and 0.2 rad: it is not led there, unless
    it is there already, nor does it set out for what lies below.
    """
    limits, home = so101_limits(), HOME.astype(np.float32)

    def dip(joints_rad: np.ndarray) -> np.ndarray:
        below = 0.1 < joints_rad[0] - HOME[0] < 0.2
        return np.array([0.2, 0.0, limits.workspace_lower_m[2] + (-0.01 if below else 0.01)])

    def turned(offset: float) -> np.ndarray:
        return (HOME + np.eye(6)[0] * offset).astype(np.float32)

    subject = SlewLimiter(limits, dip, PERIOD_S, home)
    first, limited = subject.follow(turned(0.3), home, 0, 0) or (home, False)
    assert first[0] - home[0] == pytest.approx(0.0667, abs=1e-4)
    assert limited
    assert subject.follow(turned(0.3), first, 0, PERIOD_NS) is None
    assert subject.follow(turned(0.3), turned(0.15), 0, PERIOD_NS) is not None
    assert SlewLimiter(limits, dip, PERIOD_S, home).follow(turned(0.15), home, 0, 0) is None


@pytest.mark.parametrize("wanted", [[5.0] * 60, list(np.arange(0.05, 3.0, 0.05))], ids=["far", "creeping"])
def test_the_robot_stays_in_its_range(wanted: list[float]) -> None:
    """Targets beyond the end of the range, at once or little by little, are followed to the end, softly."""
    seen = followed(slew(), wanted)
    assert max(seen) == pytest.approx(so101_limits().upper_rad[0] - HOME[0], abs=1e-4)
    assert np.abs(np.diff(np.diff([0.0, *seen]))).max() <= 60 / 900 + 1e-4
