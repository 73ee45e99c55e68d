"""The mirror: artifacts in an object store, so that hosts need no disk in common.

The names are a store's own, and what has a manifest is complete: objects are written first, the manifest
last, and a request that breaks off leaves nothing visible::

    objects/ab/cdef…          file contents
    manifests/ab/cdef….json   artifacts of which every object is there
    lineage/ab/cdef….json     manifests of ancestors whose objects were never sent, so that lineage is whole

Nothing is believed: what goes is hashed on its way, and what comes is hashed on the disk before it gets its
name. Two who send the same artifact write the same bytes under the same names.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from sim2or.artifacts.bucket import PART_BYTES, Bucket, part_bytes
from sim2or.artifacts.intake import PartFile
from sim2or.artifacts.manifest import FileEntry, Manifest
from sim2or.artifacts.store import Store, manifest_name, object_name
from sim2or.artifacts.transfer import PATIENCE_S, Progress, Transfer, in_parallel, parts, run
from sim2or.clock import now_ns
from sim2or.counts import LIVE
from sim2or.errors import ConfigError, JobError
from sim2or.tracing import environment_traceparent, new_traceparent, record

log = structlog.get_logger()

CORRUPT_ATTEMPTS = 3
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_RECORD_BYTES = 64 * 1024
_RECORD = re.compile(r"[a-z0-9]+(/[a-z0-9]+)*\.json")


@dataclass
class MirrorCounts:
    """What went to the mirror and came from it.

    Attributes:
        pushed: Artifacts that are complete there.
        fetched: Artifacts that came whole.
        sent_bytes: Bytes of files sent.
        received_bytes: Bytes of files received.
        present_bytes: Bytes of files that did not travel, because they were there.
        corrupt: Files that came with other bytes than their name says.
        failed: Pushes and fetches that were given up.
    """

    pushed: int = 0
    fetched: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    present_bytes: int = 0
    corrupt: int = 0
    failed: int = 0


class Mirror:
    """Artifacts far away; use it from one thread, and not from a coroutine.

    Args:
        url: Its address, see ``bucket``.
        patience_s: How long nothing may come forward before a transfer is given up [s].

    Attributes:
        counts: What was transferred.
        where: The address, for messages.

    Raises:
        ConfigError: The address is wrong.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        self.counts = MirrorCounts()
        LIVE.watch(self, self.counts)
        self._bucket = Bucket(url, patience_s=patience_s)
        self._patience_s = patience_s
        self.where = f"mirror {self._bucket.where}"

    def check(self) -> None:
        """Finds out whether the mirror answers and lets us in.

        Raises:
            ConfigError: It does not let us in; the message names the setting.
            TransientError: It does not answer.
        """
        run(self._bucket.check())

    def holds(self, digest: str) -> bool:
        """Whether an artifact is there, with every file.

        Raises:
            TransientError: No answer.
        """
        return run(self._bucket.size(manifest_name(digest))) is not None

    def digests(self, prefix: str = "") -> list[str]:
        """Every artifact's digest that starts with some digits, sorted.

        Raises:
            TransientError: No answer.
        """

        async def found() -> list[str]:
            place = f"manifests/{prefix[:2]}" if len(prefix) >= 2 else "manifests"
            return [name async for name in self._bucket.names(place)]

        digits = (name.removesuffix(".json").replace("/", "")[-64:] for name in run(found()))
        return sorted(f"sha256:{one}" for one in digits if one.startswith(prefix))

    def push(
        self,
        store: Store,
        digest: str,
        *,
        progress: Progress = lambda done, total: None,
        anew: bool = False,
    ) -> None:
        """Sends an artifact; returns when it is complete there. What is there is not sent again.

        Its ancestors' manifests go with it, their files do not.

        Args:
            store: Where it is.
            digest: The artifact.
            progress: Told about ten times a second.
            anew: Sends again what is there, in place of files that were altered there.

        Raises:
            ConfigError: There is no such artifact in the store.
            JobError: Its files are damaged here.
            TransientError: Nothing came forward for ``patience_s``, or the mirror refuses.
        """
        transfer = Transfer(store.manifest(digest), self._patience_s)
        with self._recorded("mirror push", transfer):
            run(transfer.watch(self._push(store, transfer, anew), progress, where=self.where))
        self.counts.pushed += 1

    def fetch(self, store: Store, digest: str, *, progress: Progress = lambda done, total: None) -> None:
        """Brings an artifact into a store, with its ancestors' manifests. What is here is not fetched again.

        Args:
            store: Where it goes.
            digest: The artifact.
            progress: Told about ten times a second.

        Raises:
            ConfigError: There is no such artifact in the mirror.
            JobError: The mirror's manifest or files are not what their names say.
            TransientError: Nothing came forward for ``patience_s``, or the mirror refuses.
        """
        transfer = Transfer(run(self._manifest(digest)), self._patience_s)
        with self._recorded("mirror fetch", transfer), store.scratch() as scratch:
            run(transfer.watch(self._fetch(store, transfer, scratch), progress, where=self.where))
        self.counts.fetched += 1

    def fetch_manifest(self, store: Store, digest: str) -> None:
        """Brings what is known of an artifact into a store, without its files.

        Raises:
            ConfigError: There is no such artifact in the mirror.
            JobError: The mirror's manifest is not what its name says.
            TransientError: No answer.
        """

        async def bring() -> None:
            manifest = await self._manifest(digest)
            await self._fetch_lineage(store, manifest)
            store.keep(manifest)

        run(bring())

    def put_record(self, name: str, data: bytes) -> bytes:
        """Keeps a small JSON record under a name for good: who comes first stays.

        Args:
            name: For example ``answers/ab/cdef….json``.
            data: At most 64 KB.

        Returns:
            The record that stands.

        Raises:
            ConfigError: The name or the size is not allowed.
            TransientError: No answer.
        """
        if len(data) > MAX_RECORD_BYTES:
            raise ConfigError(f"record {name}: {len(data)} bytes; at most {MAX_RECORD_BYTES}")

        async def put() -> bytes:
            made = await self._bucket.create(_checked_record(name), data)
            return data if made else await self._bucket.read(name, MAX_RECORD_BYTES) or data

        return run(put())

    def get_record(self, name: str) -> bytes | None:
        """Reads a record; None where there is none.

        Raises:
            ConfigError: The name is not allowed.
            TransientError: No answer.
        """
        return run(self._bucket.read(_checked_record(name), MAX_RECORD_BYTES))

    async def _push(self, store: Store, transfer: Transfer, anew: bool) -> None:
        name = manifest_name(transfer.manifest.digest)
        if not anew and await self._bucket.size(name) is not None:
            self.counts.present_bytes += transfer.total_bytes
            return
        await in_parallel(transfer.entries, lambda entry: self._send(store, entry, transfer, anew))
        await self._push_lineage(store, transfer.manifest)
        await self._write_manifest(name, transfer.manifest)

    async def _send(self, store: Store, entry: FileEntry, transfer: Transfer, anew: bool) -> None:
        name = object_name(entry.digest)
        if not anew and await self._bucket.size(name) == entry.size_bytes:
            self.counts.present_bytes += entry.size_bytes
            transfer.moved(entry.size_bytes)
            return
        own = parts(store.object_path(entry.digest), entry, part_bytes(entry.size_bytes))

        async def sent() -> AsyncIterator[bytes]:
            for part in own:
                yield part
                self._sent(len(part), transfer)

        if entry.size_bytes > PART_BYTES:
            await self._bucket.write(name, sent(), entry.size_bytes)
        else:
            await self._bucket.write(name, b"".join(own), entry.size_bytes)
            self._sent(entry.size_bytes, transfer)

    def _sent(self, count: int, transfer: Transfer) -> None:
        self.counts.sent_bytes += count
        transfer.moved(count)

    async def _push_lineage(self, store: Store, manifest: Manifest) -> None:
        """Sends the manifests of those ancestors that are not there; behind those that are, all are."""

        async def send(digest: str) -> Manifest | None:
            kept = store.kept(digest)
            if kept is None or await self._bucket.size(manifest_name(digest)) is not None:
                return None
            await self._write_manifest(lineage_name(digest), kept)
            return kept

        await _visit(manifest, send)

    async def _write_manifest(self, name: str, manifest: Manifest) -> None:
        text = manifest.model_dump_json(indent=1).encode()
        await self._bucket.write(name, text, len(text))

    async def _fetch(self, store: Store, transfer: Transfer, scratch: Path) -> None:
        await in_parallel(transfer.entries, lambda entry: self._bring(store, entry, transfer, scratch))
        await self._fetch_lineage(store, transfer.manifest)
        store.keep(transfer.manifest)

    async def _bring(self, store: Store, entry: FileEntry, transfer: Transfer, scratch: Path) -> None:
        if store.has(entry):
            self.counts.present_bytes += entry.size_bytes
            transfer.moved(entry.size_bytes)
            return
        problem: Exception | str = ""
        for _ in range(CORRUPT_ATTEMPTS):
            try:
                await self._receive(store, entry, transfer, scratch)
                return
            except JobError as error:
                self.counts.corrupt += 1
                problem = error
            except FileNotFoundError:
                problem = "it is missing"
                break
        raise JobError(
            f"{self.where}: {object_name(entry.digest)} is not what its name says: {problem}; send it again "
            f"from a host that has it whole: sim2or store push --anew {transfer.manifest.digest}"
        )

    async def _receive(self, store: Store, entry: FileEntry, transfer: Transfer, scratch: Path) -> None:
        part = PartFile(scratch / uuid.uuid4().hex, store, entry)
        try:
            async for piece in self._bucket.pieces(object_name(entry.digest)):
                if part.written_bytes + len(piece) > entry.size_bytes:
                    raise JobError(f"{entry.path} has more than {entry.size_bytes} bytes")
                part.write(piece)
                self.counts.received_bytes += len(piece)
                transfer.moved(len(piece))
            finishing = asyncio.ensure_future(asyncio.to_thread(part.finish))
            try:
                await asyncio.shield(finishing)
            finally:
                await asyncio.wait({finishing})  # a thread is not cancelled, and its file is closed below
        except BaseException:
            transfer.moved(-part.written_bytes)
            raise
        finally:
            part.close()

    async def _fetch_lineage(self, store: Store, manifest: Manifest) -> None:
        """Brings the manifests of all ancestors, so far as the mirror knows them."""

        async def bring(digest: str) -> Manifest | None:
            if kept := store.kept(digest):
                return kept
            found = await self._read_manifest(manifest_name(digest), digest)
            found = found or await self._read_manifest(lineage_name(digest), digest)
            if found is None:
                log.warning("an ancestor is not in the mirror", artifact=digest, mirror=self.where)
            else:
                store.keep(found)
            return found

        await _visit(manifest, bring)

    async def _manifest(self, digest: str) -> Manifest:
        manifest = await self._read_manifest(manifest_name(digest), digest)
        if manifest is None:
            raise ConfigError(
                f"{self.where}: no artifact {digest}; send it from the host that has it: "
                f"sim2or store push {digest}"
            )
        return manifest

    async def _read_manifest(self, name: str, digest: str) -> Manifest | None:
        data = await self._bucket.read(name, MAX_MANIFEST_BYTES)
        if data is None:
            return None
        problem = ""
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            problem = f"is not a manifest: {error}"
        else:
            if manifest.digest == digest:
                return manifest
            problem = f"was altered: its content has digest {manifest.digest}"
        raise JobError(
            f"{self.where}: {name} {problem}; send it again from a host that has it whole: "
            f"sim2or store push --anew {digest}"
        )

    @contextmanager
    def _recorded(self, what: str, transfer: Transfer) -> Iterator[None]:
        """Counts and traces a transfer."""
        began_ns, failure, parent = now_ns(), "given up", environment_traceparent()
        try:
            yield
            failure = ""
        finally:
            self.counts.failed += bool(failure)
            record(
                what,
                own=new_traceparent(parent),
                parent=parent,
                started_ns=began_ns,
                kind="client",
                error=failure,
                artifact=transfer.manifest.digest,
                size_bytes=transfer.total_bytes,
            )


async def _visit(manifest: Manifest, one: Callable[[str], Awaitable[Manifest | None]]) -> None:
    """Visits an artifact's ancestors, generation by generation, each once; not what is behind a None."""

    async def visit(digest: str) -> None:
        if found := await one(digest):
            ahead.update(_parents(found))

    ahead, seen = _parents(manifest), set[str]()
    while generation := ahead - seen:
        seen |= generation
        await in_parallel(sorted(generation), visit)


def lineage_name(digest: str) -> str:
    """The name of an ancestor whose files were never sent: ``lineage/ab/cdef….json``."""
    return manifest_name(digest).replace("manifests/", "lineage/", 1)


def _parents(manifest: Manifest) -> set[str]:
    return {digest for digests in manifest.parents.values() for digest in digests}


def _checked_record(name: str) -> str:
    if not _RECORD.fullmatch(name):
        raise ConfigError(f"record {name!r}: expected lower-case letters and digits, '/' between, '.json'")
    return name
