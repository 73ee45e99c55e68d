"""Records of JSON lines: durable, resumable, never written through a link into the store."""

from __future__ import annotations

from pathlib import Path

from sim2or.artifacts.record import Record
from sim2or.artifacts.store import Store


def test_a_record_survives_a_torn_line(tmp_path: Path) -> None:
    """Only complete lines count, and the next line is added after them."""
    path = tmp_path / "trials.jsonl"
    path.write_text('{"seed": 1}\n{"seed": 2')
    record = Record(path)
    assert record.lines == [{"seed": 1}]
    record.add({"seed": 2})
    assert path.read_text() == '{"seed": 1}\n{"seed": 2}\n'
    assert record.lines == Record(path).lines == [{"seed": 1}, {"seed": 2}]


def test_a_record_that_was_stored_is_continued_in_a_copy(tmp_path: Path) -> None:
    """What the store took over by hard link keeps its bytes."""
    store, path = Store(tmp_path / "store"), tmp_path / "trials.jsonl"
    Record(path).add({"seed": 1})
    stored = store.put(path, kind="rollouts")
    Record(path).add({"seed": 2})
    assert (store.checkout(stored.digest) / "trials.jsonl").read_text() == '{"seed": 1}\n'
    assert len(Record(path).lines) == 2
