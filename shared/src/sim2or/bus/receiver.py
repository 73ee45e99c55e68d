"""Takes artifacts in: grants byte credits, and acknowledges what is durable under its digest.

One thread serves the socket and writes; flushing and verifying run beside it, so that a slow disk holds up
the upload it belongs to and no other. What a crash left of a file is gone on with; what is here already is
not asked for; bytes that do not have their digest never get its name.
"""

from __future__ import annotations

import errno
import os
import socket as sockets_of_os
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import structlog
import zmq

from sim2or.artifacts.manifest import FileEntry
from sim2or.bus.descriptor import Files
from sim2or.bus.keys import Keyring
from sim2or.bus.reception import Intake, Limits, Part, Question, ReceiverCounts, Upload, read_manifest
from sim2or.bus.rpc import Request, Router, RouterCounts
from sim2or.clock import now_ns
from sim2or.counts import LIVE
from sim2or.errors import JobError, MessageError
from sim2or.messages.envelope import Origin
from sim2or.messages.upload import (
    UploadChunk,
    UploadError,
    UploadFile,
    UploadGrant,
    UploadOffer,
    UploadStored,
)

log = structlog.get_logger()

FINISHERS = 2
"""Threads that flush and verify."""

MAX_FINISHING = 64
"""Files that wait for them; no further file is begun before."""

_AT_ONCE = 64
_EXPIRE_EVERY_S = 0.5


class Receiver:
    """Takes artifacts from many senders; use it from one thread.

    Args:
        endpoint: Where to listen; port ``*`` takes a free one, ``self.endpoint`` says which.
        intake: Where they go.
        origin: Stamps the answers.
        limits: What it takes on.
        keys: Of the service that listens; needed beyond loopback.
    """

    def __init__(
        self,
        endpoint: str,
        intake: Intake,
        *,
        origin: Origin | None = None,
        limits: Limits | None = None,
        keys: Keyring | None = None,
    ) -> None:
        self.counts = ReceiverCounts()
        LIVE.watch(self, self.counts)
        self._router: Router[Question] = Router(
            endpoint,
            origin or Origin("dataset"),
            UploadOffer,
            UploadChunk,
            UploadFile,
            error=UploadError,
            keys=keys,
        )
        self.endpoint = self._router.endpoint
        self._files = Files(self.endpoint)
        self._intake = intake
        self._limits = limits or Limits()
        self._uploads: dict[tuple[bytes, str], Upload] = {}
        self._taken: set[str] = set()
        self._work: list[tuple[Future[None], Callable[[Future[None]], None]]] = []
        self._executor = ThreadPoolExecutor(FINISHERS, thread_name_prefix="finish")
        self._done, self._signal = sockets_of_os.socketpair()
        self._done.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._router.socket, zmq.POLLIN)
        self._poller.register(self._done, zmq.POLLIN)
        self._next_expiry_ns = 0

    @property
    def router_counts(self) -> RouterCounts:
        """What the socket has seen, malformed messages included."""
        return self._router.counts

    def run(self, stopped: Callable[[], bool]) -> None:
        """Serves until ``stopped()``, which is asked at least ten times a second, then closes."""
        try:
            while not stopped():
                self.step(0.1)
        finally:
            self.close()

    def step(self, timeout_s: float) -> None:
        """Waits for something to happen, at most ``timeout_s`` [s], and does what can be done."""
        self._poller.poll(round(timeout_s * 1000))
        with suppress(BlockingIOError):
            self._done.recv(4096)
        for _ in range(_AT_ONCE):
            request = self._router.receive()
            if request is None:
                break
            self._handle(request)
        self._collect()
        for upload in self._uploads.values():
            self._credit(upload)
        self._expire()

    def close(self) -> None:
        """Stops listening; what was written of unfinished files stays for the next receiver."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        for upload in list(self._uploads.values()):
            for part in upload.finishing.values():
                part.close()
            self._drop(upload)
        self._router.close()
        self._files.close()
        self._done.close()
        self._signal.close()

    def _handle(self, request: Request[Question]) -> None:
        if isinstance(request.message, UploadOffer):
            self._offered(request, request.message)
        else:
            self._continued(request, request.message)

    def _offered(self, request: Request[Question], offer: UploadOffer) -> None:
        self.counts.offered += 1
        upload = self._uploads.get((request.peer, offer.artifact))
        if upload:
            upload.request, upload.seen_ns = request, now_ns()
            self._tell(upload, rewind=True)
        elif self._intake.holds(offer.artifact):
            self.counts.deduplicated += 1
            self._router.answer(request, UploadStored(artifact=offer.artifact, deduplicated=True))
        else:
            self._admit(request, offer)

    def _admit(self, request: Request[Question], offer: UploadOffer) -> None:
        try:
            manifest = read_manifest(offer)
        except MessageError as error:
            self.counts.rejected += 1
            self._refuse(request, "refused", str(error))
            return
        entries = {entry.digest: entry for entry in manifest.files}
        lacking = {
            name: count
            for name, entry in entries.items()
            if (count := self._intake.lacking(entry)) is not None
        }
        if len(self._uploads) >= self._limits.uploads:
            self.counts.busy += 1
            self._refuse(
                request, "busy", f"{len(self._uploads)} uploads are open, at most {self._limits.uploads}"
            )
            return
        if shortage := self._shortage(sum(lacking.values())):
            self.counts.no_space += 1
            self._refuse(request, "no_space", shortage)
            return
        self.counts.deduplicated_files += len(entries) - len(lacking)
        upload = Upload(request, manifest, {name: entries[name] for name in lacking})
        self._uploads[upload.key] = upload
        self._advance(upload)
        if upload.part is None and upload.key in self._uploads:
            self._tell(upload, rewind=True)

    def _shortage(self, wanted_bytes: int) -> str:
        """Says what is missing on the disk for so many more bytes; empty when nothing is."""
        promised = sum(upload.lacking_bytes for upload in self._uploads.values())
        free = self._intake.free_bytes()
        if wanted_bytes + promised + self._limits.spare_bytes <= free:
            return ""
        return (
            f"{wanted_bytes} bytes are to come and {promised} of others, {free} are free, of which "
            f"{self._limits.spare_bytes} stay free; make room"
        )

    def _continued(self, request: Request[Question], message: UploadChunk | UploadFile) -> None:
        upload = self._uploads.get((request.peer, message.artifact))
        if upload is None:
            self.counts.unknown += 1
            self._refuse(request, "unknown", f"no upload of {message.artifact} is open; offer it first")
            return
        upload.seen_ns = now_ns()
        if isinstance(message, UploadFile):
            self._handed_over(upload, request, message)
        else:
            self._chunk(upload, request, message)

    def _handed_over(self, upload: Upload, request: Request[Question], message: UploadFile) -> None:
        file, part = self._files.take(message.token), upload.part
        if file is None:
            self._refuse(request, "no_file", "no plain file came with that token; send its bytes")
        elif part is None or part.entry.digest != message.file:
            os.close(file)
        else:
            self._finish(upload, part, file)
            self._advance(upload)

    def _chunk(self, upload: Upload, request: Request[Question], chunk: UploadChunk) -> None:
        part, end = upload.part, chunk.offset_bytes + chunk.data.nbytes
        if part is None or part.entry.digest != chunk.file or end <= part.written_bytes:
            self.counts.repeated_bytes += chunk.data.nbytes
        elif end > upload.granted_bytes:
            self.counts.rejected += 1
            self._refuse(
                request,
                "refused",
                f"bytes up to {end} came, {upload.granted_bytes} were granted; wait for credits",
            )
            self._drop(upload)
        elif chunk.offset_bytes > part.written_bytes:
            self._gap(upload)
        else:
            self._write(upload, part, chunk.data.data[part.written_bytes - chunk.offset_bytes :])

    def _gap(self, upload: Upload) -> None:
        self.counts.gaps += 1
        if not upload.gap:
            upload.gap = True
            self._tell(upload, rewind=True)

    def _write(self, upload: Upload, part: Part, data: memoryview) -> None:
        upload.gap = False
        before = part.written_bytes
        try:
            part.write(data)
        except OSError as error:
            self._disk_failed(upload, error)
            return
        finally:
            self.counts.received_bytes += part.written_bytes - before
        if part.written_bytes == part.entry.size_bytes:
            self._finish(upload, part)
            self._advance(upload)

    def _finish(self, upload: Upload, part: Part, file: int | None = None) -> None:
        """Makes a file durable beside this thread; the rest of its bytes is in one that was handed over."""
        upload.part = None
        upload.finishing[part.entry.digest] = part
        self._beside(partial(_finish, part, file), partial(self._finished, upload, part, part.written_bytes))

    def _finished(self, upload: Upload, part: Part, began_at: int, end: Future[None]) -> None:
        part.close()
        entry = part.entry
        self.counts.taken_bytes += part.written_bytes - began_at
        self._taken.discard(entry.digest)
        upload.finishing.pop(entry.digest)
        try:
            end.result()
        except JobError as error:
            self._mismatched(upload, part, error)
            upload.missing[entry.digest] = entry
        except OSError as error:
            self._disk_failed(upload, error)
        else:
            self.counts.stored_files += 1
            for one in self._uploads.values():
                one.missing.pop(entry.digest, None)

    def _mismatched(self, upload: Upload, part: Part, error: JobError) -> None:
        """What an earlier writer began is asked for once more, from its start; the rest is the sender's."""
        self.counts.corrupt += 1
        log.warning(
            "upload corrupt", artifact=upload.manifest.digest, reason=str(error), resumed=part.resumed
        )
        if not part.resumed:
            self._refuse(upload.request, "corrupt", str(error), artifact=upload.manifest.digest)
            self._drop(upload)

    def _disk_failed(self, upload: Upload, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self.counts.no_space += full
        self.counts.failed += not full
        log.warning("upload not written", artifact=upload.manifest.digest, reason=str(error))
        code = "no_space" if full else "failed"
        self._refuse(upload.request, code, f"the disk says: {error}", artifact=upload.manifest.digest)
        self._drop(upload)

    def _advance(self, upload: Upload) -> None:
        """Asks for the next file that nobody else is sending; keeps the manifest when there is none left."""
        while not (upload.part or upload.keeping) and self._uploads.get(upload.key) is upload:
            if not upload.missing and not upload.finishing:
                upload.keeping = True
                self._beside(partial(self._intake.keep, upload.manifest), partial(self._kept, upload))
                return
            entry = next((one for name, one in upload.missing.items() if name not in self._taken), None)
            if entry is None or len(self._work) >= MAX_FINISHING:
                return
            self._begin(upload, entry)

    def _begin(self, upload: Upload, entry: FileEntry) -> None:
        try:
            part = self._intake.open_part(entry)
        except OSError as error:
            self._disk_failed(upload, error)
            return
        self._taken.add(part.entry.digest)
        upload.part, upload.gap = part, False
        del upload.missing[part.entry.digest]
        upload.granted_bytes = part.written_bytes
        self.counts.resumed += part.resumed
        self.counts.resumed_bytes += part.written_bytes
        if part.written_bytes == part.entry.size_bytes:
            self._finish(upload, part)
        else:
            self._tell(upload, rewind=True)

    def _kept(self, upload: Upload, end: Future[None]) -> None:
        try:
            end.result()
        except OSError as error:
            self._disk_failed(upload, error)
            return
        self.counts.stored += 1
        self._router.answer(upload.request, UploadStored(artifact=upload.manifest.digest, deduplicated=False))
        self._drop(upload)

    def _beside(self, work: Callable[[], None], then: Callable[[Future[None]], None]) -> None:
        """Does slow work in another thread, and ``then`` in this one."""
        future = self._executor.submit(work)
        self._work.append((future, then))
        future.add_done_callback(self._notify)

    def _notify(self, _: Future[None]) -> None:
        with suppress(OSError):
            self._signal.send(b"1")

    def _collect(self) -> None:
        done = [pair for pair in self._work if pair[0].done()]
        self._work = [pair for pair in self._work if pair not in done]
        for future, then in done:
            then(future)
        for upload in list(self._uploads.values()) if done else ():
            self._advance(upload)

    def _credit(self, upload: Upload) -> None:
        """Grants more once a quarter of the window is written, or when credits have come back from others."""
        if upload.part is None:
            return
        limit = self._affordable(upload, upload.part)
        step = min(self._limits.window_bytes // 4, upload.part.entry.size_bytes - upload.granted_bytes)
        news = upload.part.written_bytes - upload.told_bytes >= self._limits.window_bytes // 4
        if news or limit - upload.granted_bytes >= max(1, step):
            self._tell(upload, rewind=False)

    def _affordable(self, upload: Upload, part: Part) -> int:
        others = sum(one.outstanding_bytes for one in self._uploads.values() if one is not upload)
        window = min(self._limits.window_bytes, max(0, self._limits.in_flight_bytes - others))
        return max(upload.granted_bytes, min(part.entry.size_bytes, part.written_bytes + window))

    def _tell(self, upload: Upload, *, rewind: bool) -> None:
        part = upload.part
        if part:
            upload.granted_bytes = self._affordable(upload, part)
            upload.told_bytes = part.written_bytes
        grant = UploadGrant(
            artifact=upload.manifest.digest,
            file=part.entry.digest if part else "",
            written_bytes=part.written_bytes if part else 0,
            limit_bytes=upload.granted_bytes if part else 0,
            lacking_bytes=upload.lacking_bytes,
            rewind=rewind,
        )
        self._router.answer(upload.request, grant)

    def _refuse(self, request: Request[Question], code: str, detail: str, *, artifact: str = "") -> None:
        name = artifact or request.message.artifact
        self._router.answer(request, UploadError(code=code, detail=detail[:4000], artifact=name))  # type: ignore[arg-type]

    def _drop(self, upload: Upload) -> None:
        """Forgets an upload; its file stays as it is, for whoever goes on."""
        if self._uploads.get(upload.key) is upload:
            del self._uploads[upload.key]
        if upload.part:
            upload.missing[upload.part.entry.digest] = upload.part.entry
            self._taken.discard(upload.part.entry.digest)
            upload.part.close()
            upload.part = None

    def _expire(self) -> None:
        now = now_ns()
        if now < self._next_expiry_ns:
            return
        self._next_expiry_ns = now + int(_EXPIRE_EVERY_S * 1e9)
        wanted = {name for one in self._uploads.values() if one.part is None for name in one.missing}
        silent = [one for one in self._uploads.values() if now - one.seen_ns > self._patience_ns(one, wanted)]
        for upload in silent:
            self.counts.expired += 1
            self._drop(upload)
        if silent:
            for upload in list(self._uploads.values()):
                self._advance(upload)

    def _patience_ns(self, upload: Upload, wanted: Container[str]) -> float:
        contested = upload.part is not None and upload.part.entry.digest in wanted
        return 1e9 * (self._limits.contested_s if contested else self._limits.idle_s)


def _finish(part: Part, file: int | None) -> None:
    if file is not None:
        try:
            part.take(file)
        finally:
            os.close(file)
    part.finish()
