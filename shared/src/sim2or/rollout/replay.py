"""Replay: the recorded commands of a scenario, open loop, whatever the engine makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim2or.contracts.scenario import Scenario
from sim2or.episode import INDEX_FILE, EpisodeFile, read_index
from sim2or.errors import JobError
from sim2or.messages.observation import Observation
from sim2or.rollout.actor import Chunk, PromptActor
from sim2or.rollout.motion import motion_path, read

TRIALS_FILE = "trials.jsonl"


@dataclass(frozen=True)
class Recording:
    """The commands of one episode.

    Attributes:
        scenario: What it started from, as JSON values.
        commands_rad: Shape (T, n_joints), joint position targets [rad], one row a tick.
    """

    scenario: Mapping[str, Any]
    commands_rad: NDArray[np.float32]


class ReplayActor(PromptActor):
    """Plays recorded commands by tick; past their end it repeats the last one.

    Args:
        recordings: By the seed of their scenario.
        horizon: Actions per chunk.
    """

    sees = False

    def __init__(self, recordings: Mapping[int, Recording], *, horizon: int) -> None:
        self.horizon = horizon
        self._recordings = recordings
        self._commands: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def reset(self, scenario: Scenario) -> None:
        """Takes the commands that were recorded in this scenario.

        Raises:
            JobError: None were, or the scenario of this seed was another one.
        """
        found = self._recordings.get(scenario.seed)
        if found is None:
            raise JobError(
                f"replay: no commands of seed={scenario.seed}; the input 'commands' holds "
                f"{_spread(self._recordings)}. Record that scenario first, or set list and offset"
            )
        asked = scenario.model_dump(mode="json")
        if found.scenario != asked:
            keys = sorted(key for key in asked if found.scenario.get(key) != asked[key])
            raise JobError(
                f"replay: seed={scenario.seed} was recorded in another scenario (differs in "
                f"{', '.join(keys)}): the task's ranges have changed; record it anew"
            )
        self._commands = found.commands_rad

    def act(self, observation: Observation) -> Chunk:
        """Gives the recorded commands from the observation's tick on."""
        last = len(self._commands) - 1
        rows = np.minimum(np.arange(observation.tick, observation.tick + self.horizon), last)
        return Chunk(self._commands[rows], observation.captured_ns, observation.episode)


def read_recordings(directories: Iterable[Path]) -> dict[int, Recording]:
    """Reads the commands of rollouts or of collected episodes.

    Of rollouts: what the robot was told, measured position where it held for want of a command. Of episodes:
    their labels, which leave the demonstrator's noise out.

    Raises:
        JobError: A directory is neither, a seed occurs twice, or a trial kept no motion.
    """
    found: dict[int, Recording] = {}
    for directory in directories:
        for seed, recording in _read(directory):
            if seed in found:
                raise JobError(f"{directory}: seed={seed} occurs twice in the input 'commands'; give it once")
            found[seed] = recording
    return found


def _read(directory: Path) -> Iterable[tuple[int, Recording]]:
    if (directory / TRIALS_FILE).is_file():
        return [_trial(directory, json.loads(line)) for line in (directory / TRIALS_FILE).open()]
    if (directory / INDEX_FILE).is_file():
        return [_episode(directory / entry.file) for entry in read_index(directory)]
    raise JobError(
        f"{directory}: neither {TRIALS_FILE} nor {INDEX_FILE} is here; the input 'commands' takes "
        "artifacts of kind 'rollouts' or 'episodes'"
    )


def _trial(directory: Path, line: Mapping[str, Any]) -> tuple[int, Recording]:
    motion = read(motion_path(directory, line["seed"]))
    sent = np.isfinite(motion["commanded_rad"]).all(axis=1, keepdims=True)
    commands = np.where(sent, motion["commanded_rad"], motion["measured_rad"])
    return line["seed"], Recording(line["scenario"], commands)


def _episode(path: Path) -> tuple[int, Recording]:
    with EpisodeFile(path) as episode:
        return episode.header.seed, Recording(episode.header.scenario, episode.actions_rad())


def _spread(recordings: Mapping[int, Recording]) -> str:
    if not recordings:
        return "none"
    return f"{len(recordings)} seeds in {min(recordings)}…{max(recordings)}"
