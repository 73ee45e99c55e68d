"""Answers: what became of a question, found by its result key.

Redis remembers this for the jobs that went through it. A pod of an Indexed Job has no bus: it leaves the
record of its finished job beside the artifacts, under the key, and whoever needs the shard's outputs computes
the same key and reads it. The first record of a key stays: two that answered the same question agree.

Layout under the store's root::

    answers/ab/cdef….json    a ``JobRecord`` that is done
"""

from __future__ import annotations

import contextlib
import os
import uuid

from pydantic import ValidationError

from sim2or.artifacts.mirrored import MirroredStore
from sim2or.artifacts.store import Store, put_in_place, sync
from sim2or.errors import JobError
from sim2or.messages.job import JobRecord


class Answers:
    """The answers beside a store, and in its mirror where it has one.

    Args:
        store: Where the artifacts are that the answers name.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, key: str) -> JobRecord | None:
        """Reads the answer to a question; None where there is none, or where its files are gone.

        Raises:
            JobError: The record cannot be read.
            TransientError: The mirror does not answer.
        """
        name = _name(key)
        data = self._store.get_record(name) if isinstance(self._store, MirroredStore) else self._read(name)
        return None if data is None else self._whole(_parse(name, data))

    def put(self, record: JobRecord) -> JobRecord:
        """Keeps the answer of a job that is done, unless the question was answered before.

        In a directory, an answer whose files are gone makes room. In a mirror it does not: ask anew
        (``--force``).

        Returns:
            The answer that stands.

        Raises:
            TransientError: The mirror does not answer.
        """
        name, data = _name(record.job.key), record.model_dump_json().encode()
        if isinstance(self._store, MirroredStore):
            return _parse(name, self._store.put_record(name, data))
        path = self._store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and self.get(record.job.key) is None:
            path.unlink(missing_ok=True)
        own = path.with_name(f".{uuid.uuid4().hex}")
        try:
            put_in_place(own.with_suffix(".tmp"), own, data)
            with contextlib.suppress(FileExistsError):
                os.link(own, path)  # never replaces: the first answer stays
            sync(path.parent)
        finally:
            own.unlink(missing_ok=True)
        return _parse(name, self._read(name) or data)

    def _whole(self, record: JobRecord) -> JobRecord | None:
        """The record, if every artifact that it names is there."""
        outputs = record.result.outputs.values() if record.result else ()
        return record if outputs and all(map(self._store.holds, outputs)) else None

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._store.root / name).read_bytes()
        except FileNotFoundError:
            return None


def _name(key: str) -> str:
    return f"answers/{key[:2]}/{key[2:]}.json"


def _parse(name: str, data: bytes) -> JobRecord:
    try:
        return JobRecord.model_validate_json(data)
    except ValidationError as error:
        raise JobError(
            f"{name} is not the record of a job: {error}; remove it, its job runs again"
        ) from error
