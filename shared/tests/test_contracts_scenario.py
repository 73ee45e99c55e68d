"""Scenarios: reproducible, within their ranges, refused when impossible."""

from __future__ import annotations

from typing import Any

import pytest
from sim2or.contracts.scenario import (
    CameraOffset,
    Scenario,
    Visuals,
    check_scenario,
    sample_scenario,
    scenario_list,
)
from sim2or.contracts.task import Ranges, load_task
from sim2or.errors import ConfigError

TASK = load_task("handover")


def test_same_seed_same_scenario_through_json() -> None:
    """A seed always gives the same scenario, and JSON carries it unchanged."""
    scenario = sample_scenario(TASK, 900007)
    assert scenario == sample_scenario(TASK, 900007)
    assert Scenario.model_validate_json(scenario.model_dump_json()) == scenario


def test_instrument_is_seed_modulo_three() -> None:
    """Three seeds in a row lay the three instruments on the tray, each with its own request."""
    drawn = [sample_scenario(TASK, seed) for seed in (900000, 900001, 900002)]
    assert [scenario.instrument for scenario in drawn] == ["scalpel", "forceps", "scissors"]
    assert drawn[1].request == "Hand me the forceps"


def test_ranges_are_the_declared_ones() -> None:
    """Over 400 seeds each quantity stays within its range and uses most of it."""
    drawn = scenario_list(TASK, "validation", 400)
    for key, low, high in (
        ("x_m", -0.03, 0.03),
        ("y_m", -0.05, 0.05),
        ("yaw_rad", -0.7853982, 0.7853982),
        ("mass_factor", 0.8, 1.2),
        ("grip_friction_factor", 0.7, 1.3),
        ("lag_s", 0.0, 0.05),
        ("gain_factor", 0.9, 1.1),
    ):
        values = [getattr(scenario, key) for scenario in drawn]
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high


def test_demonstrations_go_beyond_the_box_of_the_trials() -> None:
    """The train list turns instruments up to ±50°: 10 % of them by more than the ±45° of any trial."""
    yaws = [abs(scenario.yaw_rad) for scenario in scenario_list(TASK, "train", 1000)]
    trials = [abs(scenario.yaw_rad) for scenario in scenario_list(TASK, "validation", 1000)]
    assert sum(yaw > 0.7853982 for yaw in yaws) / 1000 == pytest.approx(0.10, abs=0.03)
    assert max(yaws) <= 0.8726647
    assert max(trials) <= 0.7853982


def test_a_mixture_draws_its_pieces_by_weight() -> None:
    """Three quarters from the right piece, one quarter from the left one, none between."""
    pieces = [{"weight": 1.0, "between": [-0.8, -0.4]}, {"weight": 3.0, "between": [0.4, 0.8]}]
    ranges = Ranges.model_validate(TASK.ranges.model_dump() | {"yaw_rad": pieces})
    yaws = [scenario.yaw_rad for scenario in scenario_list(TASK, "train", 1000, ranges=ranges)]
    assert sum(yaw > 0 for yaw in yaws) / 1000 == pytest.approx(0.75, abs=0.05)
    assert min(abs(yaw) for yaw in yaws) >= 0.4


def test_gains_have_a_stream_of_their_own() -> None:
    """A task that varies no gains draws the same values for everything else."""
    ranges = TASK.ranges.model_copy(update={"gain_factor": (1.0, 1.0)})
    plain = sample_scenario(TASK, 900007, ranges)
    assert plain.gain_factor == 1.0
    assert plain.model_copy(update={"gain_factor": 0.0}) == sample_scenario(TASK, 900007).model_copy(
        update={"gain_factor": 0.0}
    )


def test_offset_continues_a_list() -> None:
    """Two pieces of a list are the list."""
    assert scenario_list(TASK, "heldout", 2) + scenario_list(TASK, "heldout", 3, 2) == scenario_list(
        TASK, "heldout", 5
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heldot", 1), "'heldot'.*did you mean 'heldout'"),
        (("heldout", 100001), "100001 from offset 0.*holds 100000"),
        (("heldout", 2, 99999), "2 from offset 99999"),
        (("train", -1), "count -1"),
    ],
)
def test_lists_refuse_what_they_do_not_hold(arguments: tuple[Any, ...], message: str) -> None:
    """An unknown list, a negative count and more than a list holds are refused."""
    with pytest.raises(ConfigError, match=message):
        scenario_list(TASK, *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"yaw_rad": 2.0}, r"yaw_rad = 2 is impossible; bounds -1\.0472…1\.0472"),
        ({"mass_factor": 0.0}, r"mass_factor = 0 is impossible"),
        ({"gain_factor": 9.0}, r"gain_factor = 9 is impossible; bounds 0\.2…5"),
        ({"start_rad": (0, 0, 0, 0, 0, 1.0)}, r"start_rad\[5\] = 1 is impossible"),
        ({"start_rad": (0.0,)}, r"start_rad has 1 values"),
        ({"instrument": "scalpell"}, r"'scalpell'.*did you mean 'scalpel'"),
        ({"task": "suturing"}, r"'suturing'"),
        ({"visuals": Visuals(light_factor=9.0)}, r"visuals\.light_factor = 9"),
        ({"visuals": Visuals(cameras={"rom": CameraOffset()})}, r"cameras\.rom.*did you mean 'room'"),
        ({"visuals": Visuals(cameras={"room": CameraOffset(shift_m=(0, 1, 0))})}, r"room\.shift_m = 1"),
    ],
)
def test_impossible_scenario_is_refused(change: dict[str, Any], message: str) -> None:
    """What is physically impossible is refused with the key, the value and its bounds."""
    scenario = sample_scenario(TASK, 900000).model_copy(update=change)
    with pytest.raises(ConfigError, match=message):
        check_scenario(TASK, scenario)
