"""LeRobot datasets, format v3.0 (LeRobot 0.6.1): tables and metadata, without importing LeRobot.

Importing LeRobot's dataset package costs each process 3 to 10 CPU seconds, as much as converting 40 to 140
episodes. The format is small and documented, so it is written directly; tests load the result with LeRobot,
run its tools on it and compare it with what LeRobot itself writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray
from sim2or.dataset_card import ACTION, IMAGE_PREFIX, INFO_FILE, INSTRUMENT, STATE, EpisodeCard
from sim2or.episode import INSTRUMENT_NAMES
from sim2or.errors import JobError

from sim2or_dataset.backends.statistics import Stats, aggregate, column_stats
from sim2or_dataset.backends.video import Clip

VERSION = "v3.0"
CHUNK = 1000
ROWS_PER_FILE = 400_000
_PATH = "chunk-{chunk:03d}/file-{file:03d}"
_BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
_STATISTICS = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")

type Features = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """One episode of a dataset.

    Attributes:
        columns: Feature to shape (T, n), float32, what the table stores.
        stats: Feature to its statistics, cameras included.
        clips: Camera's key to where its frames lie.
        card: Where it comes from; its episode number is set when it is written.
    """

    columns: Mapping[str, NDArray[np.float32]]
    stats: Mapping[str, Stats]
    clips: Mapping[str, Clip]
    card: EpisodeCard

    @property
    def frames(self) -> int:
        """Rows."""
        return self.card.frames


def features_of(channels: Sequence[str], cameras: Mapping[str, dict[str, Any]]) -> Features:
    """LeRobot's description of what a row holds.

    Args:
        channels: Names of the joint channels.
        cameras: Camera's key to its video information.
    """
    joints = {"dtype": "float32", "shape": [len(channels)], "names": list(channels)}
    images = {
        key: {
            "dtype": "video",
            "shape": [info["video.height"], info["video.width"], 3],
            "names": ["height", "width", "channels"],
            "info": info,
        }
        for key, info in cameras.items()
    }
    truth = {"dtype": "float32", "shape": [len(INSTRUMENT_NAMES)], "names": list(INSTRUMENT_NAMES)}
    scalars = {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _BOOKKEEPING.items()}
    return {STATE: joints, ACTION: dict(joints), **images, INSTRUMENT: truth, **scalars}


def video_path(root: Path, key: str, number: int) -> Path:
    """Path of a camera's video file of that number."""
    return root / "videos" / key / f"{_numbered(number)}.mp4"


def write_dataset(
    root: Path,
    records: Sequence[Record],
    *,
    features: Features,
    fps: int,
    robot_type: str,
    splits: Mapping[str, tuple[int, int]],
) -> tuple[EpisodeCard, ...]:
    """Writes tables and metadata; the video files are in place already.

    Args:
        root: The dataset's directory.
        records: Its episodes, in order.
        features: What a row holds.
        fps: Frames per second [Hz].
        robot_type: LeRobot's name of the robot.
        splits: Split to (first, one past the last) episode.

    Returns:
        The episodes' cards with their numbers in this dataset.
    """
    tasks = sorted({record.card.request for record in records})
    files = list(_files(records))
    rows: list[dict[str, Any]] = []
    all_stats: list[Mapping[str, Stats]] = []
    for number, members in enumerate(files):
        writer = _TableWriter(root / "data" / f"{_numbered(number)}.parquet", features)
        for episode in members:
            first = rows[-1]["dataset_to_index"] if rows else 0
            scalars = _bookkeeping(records[episode], episode, first, tasks, fps)
            writer.add({**records[episode].columns, **scalars})
            stats = {
                **records[episode].stats,
                **{key: column_stats(values) for key, values in scalars.items()},
            }
            rows.append(_episode_row(records[episode], episode, first, number, stats, fps))
            all_stats.append(stats)
        writer.close()
    _write_table(root / "meta" / "episodes" / f"{_numbered(0)}.parquet", pa.Table.from_pylist(rows))
    _write_tasks(root, tasks)
    totals = {key: aggregate([stats[key] for stats in all_stats]) for key in all_stats[0]}
    _write_json(
        root / "meta" / "stats.json", {k: {s: v.tolist() for s, v in t.items()} for k, t in totals.items()}
    )
    _write_json(
        root / INFO_FILE,
        {
            "codebase_version": VERSION,
            "fps": fps,
            "features": features,
            "total_episodes": len(records),
            "total_frames": sum(record.frames for record in records),
            "total_tasks": len(tasks),
            "chunks_size": CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
            "robot_type": robot_type,
            "splits": {name: f"{first}:{end}" for name, (first, end) in splits.items()},
        },
    )
    return tuple(r.card.model_copy(update={"episode_index": i}) for i, r in enumerate(records))


def read_info(root: Path) -> dict[str, Any]:
    """LeRobot's ``info.json``.

    Raises:
        JobError: It is missing, not JSON or of another format version.
    """
    path = root / INFO_FILE
    try:
        info: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise JobError(f"{path}: not LeRobot's metadata ({error})") from error
    if info.get("codebase_version") != VERSION:
        raise JobError(f"{path}: codebase_version = {info.get('codebase_version')!r}; valid: {VERSION!r}")
    return info


def read_records(root: Path, cards: Sequence[EpisodeCard]) -> list[Record]:
    """Reads a dataset's episodes back, in order, without their images.

    Args:
        root: The dataset's directory.
        cards: Where each episode comes from.

    Raises:
        JobError: The tables contradict each other or the cards.
    """
    features = read_info(root)["features"]
    stored = [
        key for key, feature in features.items() if feature["dtype"] == "float32" and key not in _BOOKKEEPING
    ]
    cameras = [key for key, feature in features.items() if feature["dtype"] == "video"]
    table = pa.concat_tables([pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))])
    columns = {key: _matrix(table.column(key), features[key]["shape"][0]) for key in stored}
    rows = pa.concat_tables(
        [pq.read_table(path) for path in sorted((root / "meta" / "episodes").rglob("*.parquet"))]
    ).to_pylist()
    if [row["length"] for row in rows] != [card.frames for card in cards] or len(table) != sum(
        card.frames for card in cards
    ):
        raise JobError(f"{root}: meta/episodes, data and the card disagree about the episodes' lengths")
    fps = read_info(root)["fps"]
    return [
        Record(
            columns={
                key: values[row["dataset_from_index"] : row["dataset_to_index"]]
                for key, values in columns.items()
            },
            stats={key: _read_stats(row, key) for key in (*stored, *cameras)},
            clips={key: _read_clip(row, key, fps) for key in cameras},
            card=card,
        )
        for row, card in zip(rows, cards, strict=True)
    ]


class _TableWriter:
    """Writes the data table, one row group per episode, as LeRobot's recorder does."""

    def __init__(self, path: Path, features: Features) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = {key: feature for key, feature in features.items() if feature["dtype"] != "video"}
        self._schema = pa.schema([(key, _arrow_type(feature)) for key, feature in stored.items()])
        self._writer = pq.ParquetWriter(path, self._schema, compression="snappy", use_dictionary=True)

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self._writer.write_table(
            pa.table(
                [_arrow_array(columns[field.name], field.type) for field in self._schema], schema=self._schema
            )
        )

    def close(self) -> None:
        self._writer.close()


def _files(records: Sequence[Record]) -> Iterator[list[int]]:
    """Episode numbers of each data file."""
    members: list[int] = []
    rows = 0
    for episode, record in enumerate(records):
        if members and rows + record.frames > ROWS_PER_FILE:
            yield members
            members, rows = [], 0
        members.append(episode)
        rows += record.frames
    yield members


def _bookkeeping(
    record: Record, episode: int, first: int, tasks: Sequence[str], fps: int
) -> dict[str, NDArray[Any]]:
    frame = np.arange(record.frames, dtype=np.int64)
    return {
        "timestamp": frame / fps,
        "frame_index": frame,
        "episode_index": np.full_like(frame, episode),
        "index": frame + first,
        "task_index": np.full_like(frame, tasks.index(record.card.request)),
    }


def _episode_row(
    record: Record, episode: int, first: int, data_file: int, stats: Mapping[str, Stats], fps: int
) -> dict[str, Any]:
    """One row of ``meta/episodes``."""
    row: dict[str, Any] = {
        "episode_index": episode,
        "tasks": [record.card.request],
        "length": record.frames,
        "data/chunk_index": data_file // CHUNK,
        "data/file_index": data_file % CHUNK,
        "dataset_from_index": first,
        "dataset_to_index": first + record.frames,
    }
    for key, clip in record.clips.items():
        row[f"videos/{key}/chunk_index"] = clip.file // CHUNK
        row[f"videos/{key}/file_index"] = clip.file % CHUNK
        row[f"videos/{key}/from_timestamp"] = clip.first / fps
        row[f"videos/{key}/to_timestamp"] = (clip.first + record.frames) / fps
    for key, values in stats.items():
        row |= {f"stats/{key}/{name}": values[name].tolist() for name in _STATISTICS}
    return row | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}


def _read_stats(row: Mapping[str, Any], key: str) -> Stats:
    return {name: np.array(row[f"stats/{key}/{name}"]) for name in _STATISTICS}


def _read_clip(row: Mapping[str, Any], key: str, fps: int) -> Clip:
    number = row[f"videos/{key}/chunk_index"] * CHUNK + row[f"videos/{key}/file_index"]
    return Clip(file=number, first=round(row[f"videos/{key}/from_timestamp"] * fps))


def _write_tasks(root: Path, tasks: Sequence[str]) -> None:
    """``meta/tasks.parquet``, a data frame indexed by task, as pandas would write it."""
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())}
    )
    column = {
        "metadata": None,
        "field_name": "task_index",
        "name": "task_index",
        "pandas_type": "int64",
        "numpy_type": "int64",
    }
    index = {
        "metadata": None,
        "field_name": "task",
        "name": "task",
        "pandas_type": "unicode",
        "numpy_type": "object",
    }
    description = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [column, index],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    _write_table(
        root / "meta" / "tasks.parquet", table.replace_schema_metadata({"pandas": json.dumps(description)})
    )


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False))


def _arrow_type(feature: Mapping[str, Any]) -> pa.DataType:
    scalar = pa.type_for_alias(feature["dtype"])
    return scalar if feature["shape"] == [1] else pa.list_(scalar, feature["shape"][0])


def _arrow_array(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values.astype(kind.to_pandas_dtype()), kind)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).ravel(), kind.value_type), type=kind
    )


def _matrix(column: pa.ChunkedArray, width: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, width)


def _numbered(number: int) -> str:
    return _PATH.format(chunk=number // CHUNK, file=number % CHUNK)


def camera_key(name: str) -> str:
    """LeRobot's key of a camera."""
    return IMAGE_PREFIX + name
