"""What both loads share: the commands, the clock, and a worker process that does as it is told."""

from __future__ import annotations

import contextlib
import cProfile
import json
import pstats
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sim2or.contracts.robot import load_robot
from sim2or.contracts.scenario import Scenario, scenario_list
from sim2or.contracts.task import load_task

ROBOT, TASK = load_robot("so101"), load_task("handover")
KINDS = 6
"""So many scenarios; more environments repeat them."""

MARK = "@"
"""Begins the lines that are answers: engines print what they like."""

Parts = Mapping[str, tuple[str, ...]]
"""Name of a part of the work to the functions that do it, as ``file.py:function``; builtins by name alone."""


@dataclass(frozen=True)
class Commands:
    """What the arms are told.

    Attributes:
        scenarios: One for each environment, without lag: bare engines have no delays.
        rad: Shape (ticks, environments, n_joints), joint targets [rad].
    """

    scenarios: list[Scenario]
    rad: NDArray[np.float32]


class Load(Protocol):
    """Rooms that are stepped and drawn; a yield follows every control step."""

    parts: Parts

    def ours(self, ticks: int, timer: Timer, *, frames: bool) -> Iterator[None]:
        """With our code."""

    def bare(self, ticks: int, timer: Timer, *, frames: bool) -> Iterator[None]:
        """The engine alone; raises ``RuntimeError`` when it did not come where our code came before it."""


class Timer:
    """Adds up what is measured [s]."""

    def __init__(self) -> None:
        self.took_s = 0.0

    @contextlib.contextmanager
    def when(self, measured: bool) -> Iterator[None]:
        """Measures what is inside, or not."""
        began_s = time.perf_counter()
        yield
        if measured:
            self.took_s += time.perf_counter() - began_s


def commands(environments: int) -> Commands:
    """The scripted expert's commands in MuJoCo, until the surgeon takes the first instrument."""
    from sim2or_sim.backends import make_world
    from sim2or_sim.expert import Expert

    drawn = scenario_list(TASK, "validation", KINDS)
    scenarios = [scenario.model_copy(update={"lag_s": 0.0}) for scenario in drawn]
    world = make_world(ROBOT, TASK, batch=KINDS, render=False)
    world.reset(scenarios)
    experts = [Expert(ROBOT, TASK) for _ in scenarios]
    for index, (expert, scenario) in enumerate(zip(experts, scenarios, strict=True)):
        expert.reset(world, index, scenario)
    told = []
    while not any(world.truth(index).taken for index in range(KINDS)):
        told.append(np.stack([expert.act(world, index)[1] for index, expert in enumerate(experts)]))
        world.step(told[-1])
    world.close()
    which = np.arange(environments) % KINDS
    # The last command is the one with which the hand takes it, which a bare engine knows nothing of.
    return Commands([scenarios[number] for number in which], np.stack(told[:-1])[:, which])


def same(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> None:
    """Raises ``RuntimeError`` unless both engines' states are the same numbers."""
    if not all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True)):
        far = max(float(np.abs(one - two).max()) for one, two in zip(found, expected, strict=True))
        raise RuntimeError(f"the bare engine came to another state, {far:g} away: it did other work")


def same_pictures(
    found: Sequence[Mapping[str, NDArray[np.uint8]]], expected: Sequence[Mapping[str, NDArray[np.uint8]]]
) -> None:
    """Raises ``RuntimeError`` unless all pictures are the same."""
    for one, two in zip(found, expected, strict=True):
        for name, picture in one.items():
            if not np.array_equal(picture, two[name]):
                raise RuntimeError(f"camera {name}: the bare engine drew another picture than our code")


def serve(load: Load) -> None:
    """Does what lines on stdin ask for: ``{"ticks", "frames", "bare", "profile"}``."""
    answer({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        play = load.bare if asked["bare"] else load.ours
        timer, profile = Timer(), cProfile.Profile()
        if asked.get("profile"):
            profile.enable()
        for _ in play(asked["ticks"], timer, frames=asked["frames"]):
            pass
        profile.disable()
        answer({"took_s": timer.took_s, "shares": spent(profile, load.parts) if asked.get("profile") else {}})


def spent(profile: cProfile.Profile, parts: Parts) -> dict[str, float]:
    """Share of a control step's time in each part; what is in none of them is "the rest"."""
    stats: Any = pstats.Stats(profile)
    times = {
        f"{Path(file).name}:{name}" if line else name.rsplit(".", 1)[-1].rstrip(">"): cumulative_s
        for (file, line, name), (_, _, _, cumulative_s, _) in stats.stats.items()
    }
    whole_s = times["world.py:step"]
    shares = {part: sum(times.get(name, 0.0) for name in names) / whole_s for part, names in parts.items()}
    return shares | {"the rest": max(0.0, 1.0 - sum(shares.values()))}


def answer(told: Mapping[str, Any]) -> None:
    """One line that is an answer."""
    print(MARK + json.dumps(told), flush=True)
