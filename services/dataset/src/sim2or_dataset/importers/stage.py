"""The import stage: recordings become episodes, which the convert stage takes as it takes collected ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim2or.artifacts.store import fresh_directory
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.episode import IndexEntry, write_episode, write_index
from sim2or.errors import ConfigError, JobError, choices
from sim2or.messages.recording import ImportSpec
from sim2or.stage import Context, Stage, StageResult

from sim2or_dataset.importers.isaaclab import Recording

SUFFIXES = (".hdf5", ".h5")
DIGEST_CHARACTERS = 19


def import_recordings(spec: ImportSpec, context: Context) -> StageResult:
    """Makes an episode of every demonstration of every file.

    Raises:
        ConfigError: An unknown robot, task or camera.
        JobError: No file, or one that does not fit; see ``Recording``.
    """
    robot, task = load_robot(spec.robot), load_task(spec.task)
    for camera in spec.cameras:
        if camera not in task.cameras:
            raise ConfigError(f"cameras: {camera!r}; {choices(camera, task.cameras)}")
    directory = fresh_directory(context.work / "episodes")
    entries: list[IndexEntry] = []
    files = recordings(context.inputs["recording"], context.digests.get("recording", ()))
    for number, (path, parent) in enumerate(files):
        context.progress(number, len(files), "files", episodes=len(entries))
        with Recording(path, spec, robot, task) as recording:
            for episode in recording.episodes(len(entries), parent):
                write_episode(episode, directory)
                entries.append(episode.index_entry())
                context.progress(number, len(files), "files", episodes=len(entries))
    write_index(entries, directory)
    context.progress(len(files), len(files), "files", episodes=len(entries))
    return StageResult(outputs={"episodes": directory}, summary=_summary(entries, len(files)))


STAGE: Stage[Any] = Stage("import", ImportSpec, import_recordings)


def recordings(directories: Sequence[Path], digests: Sequence[str]) -> list[tuple[Path, str]]:
    """The files of artifacts, each with the name that its demonstrations stem from.

    Raises:
        JobError: An artifact has none.
    """
    found: list[tuple[Path, str]] = []
    for number, directory in enumerate(directories):
        files = sorted(path for path in directory.rglob("*") if path.suffix in SUFFIXES)
        if not files:
            there = ", ".join(sorted(path.name for path in directory.iterdir())) or "nothing"
            raise JobError(f"{directory}: holds {there}; valid: files that end in {' or '.join(SUFFIXES)}")
        origin = digests[number][:DIGEST_CHARACTERS] if number < len(digests) else directory.name
        found += [(path, f"{origin}:{path.relative_to(directory)}") for path in files]
    return found


def _summary(entries: list[IndexEntry], files: int) -> dict[str, Any]:
    kept = [entry for entry in entries if entry.success]
    return {
        "files": files,
        "episodes": len(entries),
        "kept": len(kept),
        "frames": sum(entry.steps for entry in kept),
        "kept_by_request": dict(Counter(entry.request for entry in kept)),
    }
