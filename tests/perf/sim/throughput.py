"""Environment steps and camera frames per second, against the bare engine in the same process and round."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from load import TASK
from paired import Figures, Section, paired, section
from sim2or.goals import Goal, at_least
from worker import Worker, together

ROOT = Path(__file__).parents[3]
ISAAC = ROOT / ".venv-isaac" / "bin" / "python"
MUJOCO_ENVIRONMENTS = (4, 16)
STEP_NOTES = (
    "Control steps (1/30 s, 20 physics steps) of all environments per second. bare: the engine alone, the"
    " same commands (the scripted expert's, of validation scenarios, without lag), from the same states "
    "in the same process; it must end in the same states. share: of the bare rate; episodes with our code"
    " and without take turns. Timed by perf_counter around the steps alone; resets are not timed. MuJoCo:"
    " 100 control steps, from the start over the grasp into the lift; workers have one environment each "
    "and step at once. Isaac Lab: the first 10."
)
FRAME_NOTES = (
    "Pictures of 96x96 of the wrist and the room camera of every environment, per second, as arrays on "
    "the host; between two pictures of a camera lies a control step, which is not timed. bare: "
    "mujoco.Renderer with the same options (no shadows, reflections and multisampling), or the camera "
    "sensors' data; it must draw the same pictures."
)
PROFILE_NOTES = (
    "Shares of a control step by cProfile, one pass. A profile makes Python's own share larger than it "
    "is, and an engine that works in Python (Isaac Lab on a CPU launches its kernels from there) larger "
    "too."
)
SHARE = 0.9
"""Of the bare engine's throughput, that is to be reached."""

Results = dict[str, list[Figures]]


@dataclass(frozen=True)
class Size:
    """How much work a round is.

    Attributes:
        ticks: Control steps of an episode.
        episodes: Episodes with our code, and as many without.
        frame_ticks: Control steps of which the pictures are timed.
    """

    ticks: int
    episodes: int
    frame_ticks: int


MUJOCO = Size(ticks=100, episodes=8, frame_ticks=10)
"""A hundred steps reach from the start over the grasp into the lift."""

ISAAC_LAB = Size(ticks=10, episodes=2, frame_ticks=3)


def measure_mujoco(rounds: int) -> list[Section]:
    """Workers with one environment each, then one worker with more."""
    cores = os.cpu_count() or 1
    workers = {f"{count} worker{'s' * (count > 1)}": (count, 1) for count in range(1, cores + 2)}
    batches = {f"{count} environments": (1, count) for count in MUJOCO_ENVIRONMENTS}
    start = partial(Worker, Path(sys.executable), "mujoco_load.py")
    return measure("MuJoCo", workers | batches, start, MUJOCO, rounds, pictures=set(workers))


def measure_isaac(rounds: int, counts: Sequence[int], device: str) -> list[Section]:
    """One worker with so many environments."""
    settings = {"SIM2OR_ISAAC_DEVICE": device}
    names = {f"{count} environment{'s' * (count > 1)}": (1, count) for count in counts}
    start = partial(Worker, ISAAC, "isaac_load.py", settings=settings)
    return measure(f"Isaac Lab on {device}", names, start, ISAAC_LAB, rounds, pictures=set(names))


def measure(
    engine: str,
    contenders: Mapping[str, tuple[int, int]],
    start: Callable[[int], Worker],
    size: Size,
    rounds: int,
    *,
    pictures: set[str],
) -> list[Section]:
    """Steps, frames and the profile of every contender.

    Args:
        engine: Its name.
        contenders: Name to workers and the environments of each.
        start: Starts a worker with so many environments.
        size: How much work a round is.
        rounds: How many.
        pictures: The contenders that draw, too.
    """
    steps, frames, shares = Results(), Results(), Results()
    for name, (count, environments) in contenders.items():
        with contextlib.ExitStack() as stack:
            team = Team([stack.enter_context(start(environments)) for _ in range(count)], environments, size)
            steps |= paired(f"{engine}: steps", {name: team.steps}, rounds=rounds)
            if name in pictures:
                frames |= paired(f"{engine}: frames", {name: team.frames}, rounds=rounds)
            shares[name] = [team.profile()]
    return [
        section(f"{engine}: environment steps", STEP_NOTES, steps, partial(_goals, f"{engine} steps")),
        section(f"{engine}: camera frames", FRAME_NOTES, frames, partial(_goals, f"{engine} frames")),
        section(f"{engine}: where a control step's time goes", PROFILE_NOTES, shares),
    ]


class Team:
    """Workers that do the same at once, with our code and without in turns.

    Args:
        workers: They; each is waited for.
        environments: How many each has.
        size: How much work a round is.
    """

    def __init__(self, workers: Sequence[Worker], environments: int, size: Size) -> None:
        self._workers, self._environments, self._size = workers, environments, size
        for worker in workers:
            worker.hear()
        self._warm: set[bool] = set()

    def steps(self) -> Figures:
        """One round of control steps."""
        return self._round("steps", self._size.ticks, 1, frames=False)

    def frames(self) -> Figures:
        """One round of pictures."""
        return self._round("frames", self._size.frame_ticks, len(TASK.cameras), frames=True)

    def profile(self) -> Figures:
        """Shares of the time of one worker's control steps."""
        asked = {"ticks": self._size.ticks, "frames": False, "bare": False, "profile": True}
        shares: Figures = together(self._workers[:1], **asked)[0]["shares"]
        return shares

    def _round(self, what: str, ticks: int, each: int, *, frames: bool) -> Figures:
        if frames not in self._warm:
            self._episode(ticks, frames=frames, bare=False)
            self._episode(ticks, frames=frames, bare=True)
            self._warm.add(frames)
        took_s: dict[bool, list[list[float]]] = {False: [], True: []}
        for number in range(self._size.episodes):
            for bare in (False, True) if number % 2 == 0 else (True, False):
                took_s[bare].append(self._episode(ticks, frames=frames, bare=bare))
        work = ticks * self._environments * each * self._size.episodes
        ours, alone = (
            sum(work / sum(one) for one in zip(*took_s[bare], strict=True)) for bare in (False, True)
        )
        return {f"{what}_per_s": ours, f"bare_{what}_per_s": alone, "share": ours / alone}

    def _episode(self, ticks: int, *, frames: bool, bare: bool) -> list[float]:
        """How long each worker took [s]."""
        return [told["took_s"] for told in together(self._workers, ticks=ticks, frames=frames, bare=bare)]


def _goals(what: str, figures: Mapping[str, Figures]) -> list[Goal]:
    return [at_least(f"{what}: {name}, × bare", one["share"], SHARE) for name, one in figures.items()]
