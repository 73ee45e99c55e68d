"""Sends artifacts to the store that keeps them; done when the receiver has them on its disk.

The receiver's grants say which file to send, from where and how far (byte credits), so what it has is not
sent again, what broke off is gone on with, and a slow disk slows the sender instead of filling memory::

    with closing(Uploader(endpoint, Origin("sim"))) as uploader:
        uploader.push(store, digest)          # returns when it is durable there, or raises
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog
import zmq

from sim2or.artifacts.store import Store
from sim2or.bus import sockets
from sim2or.bus.descriptor import hand_over
from sim2or.bus.keys import Keyring
from sim2or.bus.push import BACKOFF_S, Push
from sim2or.clock import now_ns
from sim2or.counts import LIVE
from sim2or.errors import ConfigError, MessageError, TransientError
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Envelope, Origin
from sim2or.messages.message import Message
from sim2or.messages.topics import high_water_mark
from sim2or.messages.upload import (
    MAX_CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    UploadChunk,
    UploadError,
    UploadFile,
    UploadGrant,
    UploadOffer,
    UploadStored,
)
from sim2or.tracing import new_traceparent, record

log = structlog.get_logger()

Answer = UploadGrant | UploadStored | UploadError

CHUNK_BYTES = MAX_CHUNK_BYTES
HAND_OVER_BYTES = 256 * 1024
"""Smaller files are sent: that takes fewer steps."""

REPEAT_S = 1.0
"""An offer is repeated when nothing was heard for so long [s]."""

PATIENCE_S = 60.0
CORRUPT_ATTEMPTS = 3
_WAIT_S = 0.1
_ANSWERS: tuple[type[Answer], ...] = (UploadGrant, UploadStored, UploadError)

Progress = Callable[[int, int], None]


@dataclass
class UploaderCounts:
    """What a sender has seen.

    Attributes:
        pushed: Artifacts that are durable at the receiver.
        deduplicated: Those among them that were there before anything was sent.
        offered: Offers sent, repetitions included.
        handed_bytes: Bytes of files that were handed over to a receiver on this host.
        sent_bytes: Bytes handed to the socket.
        resent_bytes: Those among them that had been handed over before.
        resumed_bytes: Bytes that the receiver had from an earlier attempt.
        busy: Times the receiver took no more uploads.
        no_space: Times the receiver's disk was too full.
        failed: Times the receiver's disk failed.
        corrupt: Times the receiver got bytes that do not have their digest.
        rejected: Messages of ours that broke the contract.
        refused: Connections that failed because one end does not accept the other's key.
        malformed: Answers that could not be read.
        waited_s: Time without anything to send: no credits, no receiver, or told to wait [s].
    """

    pushed: int = 0
    deduplicated: int = 0
    offered: int = 0
    handed_bytes: int = 0
    sent_bytes: int = 0
    resent_bytes: int = 0
    resumed_bytes: int = 0
    busy: int = 0
    no_space: int = 0
    failed: int = 0
    corrupt: int = 0
    rejected: int = 0
    refused: int = 0
    malformed: int = 0
    waited_s: float = 0.0


class Uploader:
    """Sends artifacts to one receiver, one after another; use it from one thread.

    Args:
        endpoint: The receiver's address.
        origin: Stamps the messages.
        chunk_bytes: Size of one message.
        patience_s: How long nothing may come forward before a push is given up [s].
        hand_over: Whether a receiver on this host is given the open files instead of their bytes.
        keys: Of the service that sends; needed beyond loopback.
        server: Whose public key is expected, where there are keys.
    """

    def __init__(
        self,
        endpoint: str,
        origin: Origin,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        patience_s: float = PATIENCE_S,
        hand_over: bool = True,
        keys: Keyring | None = None,
        server: str = "dataset",
    ) -> None:
        if not 1 <= chunk_bytes <= MAX_CHUNK_BYTES:
            raise ConfigError(f"chunk_bytes {chunk_bytes}: 1 to {MAX_CHUNK_BYTES} are accepted")
        self.endpoint = endpoint
        self.counts = UploaderCounts()
        LIVE.watch(self, self.counts)
        self._origin = origin
        self._chunk_bytes = chunk_bytes
        self._patience_s = patience_s
        self._hands_over = hand_over
        identity = f"{origin.source}/{origin.session}".encode()[:255]
        self._socket = sockets.open_socket(
            zmq.DEALER, hwm=high_water_mark(UploadOffer, UploadChunk), identity=identity
        )
        sockets.connect(self._socket, endpoint, keys=keys, server=server, counts=self.counts)

    def push(self, store: Store, digest: str, *, progress: Progress = lambda done, total: None) -> None:
        """Sends an artifact; returns when the receiver has it on its disk, verified and under its name.

        Its parents are not sent with it.

        Args:
            store: Where it is.
            digest: The artifact.
            progress: Called about ten times a second with the bytes that are there and their sum; what it
                raises ends the push.

        Raises:
            ConfigError: There is no such artifact in the store.
            JobError: Its files are damaged here.
            MessageError: The receiver refuses it.
            TransientError: Nothing came forward for ``patience_s``.
        """
        push, began_ns = Push(store, store.manifest(digest)), now_ns()
        failure = "given up"
        try:
            self._push(push, progress)
            failure = ""
        finally:
            record(
                "upload",
                own=new_traceparent(self._origin.traceparent),
                parent=self._origin.traceparent,
                started_ns=began_ns,
                kind="client",
                error=failure,
                artifact=digest,
                size_bytes=push.total_bytes,
            )

    def _push(self, push: Push, progress: Progress) -> None:
        told_ns = 0
        while True:
            now = now_ns()
            if now - told_ns > _WAIT_S * 1e9:
                told_ns = now
                progress(push.total_bytes - push.lacking_bytes, push.total_bytes)
                self._check_patience(push, now)
            if now >= push.offer_at_ns:
                self._offer(push)
            if not (push.fresh and self._hand_over(push)):
                self._send(push)
            if self._heed(push):
                progress(push.total_bytes, push.total_bytes)
                return

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _check_patience(self, push: Push, now: int) -> None:
        if now - push.moved_ns > self._patience_s * 1e9:
            raise TransientError(
                f"upload of {push.manifest.digest} to {self.endpoint}: nothing came forward for "
                f"{self._patience_s:g} s; {push.lacking_bytes} of {push.total_bytes} bytes are still to come"
            )

    def _offer(self, push: Push) -> None:
        text = push.manifest.model_dump_json().encode()
        if len(text) > MAX_MANIFEST_BYTES:
            raise MessageError(
                f"the manifest of {push.manifest.digest} has {len(text)} bytes; at most {MAX_MANIFEST_BYTES} "
                "are accepted: store fewer files"
            )
        push.wait(REPEAT_S)
        push.offered_ns = now_ns()
        offer = UploadOffer(artifact=push.manifest.digest, manifest=np.frombuffer(text, np.uint8))
        if sockets.send(self._socket, encode(offer, self._envelope(offer))):
            self.counts.offered += 1
        else:
            push.wait(_WAIT_S)

    def _hand_over(self, push: Push) -> bool:
        """Hands the wanted file over; False where its bytes must be sent."""
        push.fresh = False
        source = push.source
        if not self._hands_over or source is None or source.entry.size_bytes < HAND_OVER_BYTES:
            return False
        with source.path.open("rb") as file:
            token = hand_over(self.endpoint, file.fileno())
        message = UploadFile(artifact=push.manifest.digest, file=source.entry.digest, token=token or "0" * 32)
        if not token or not sockets.send(self._socket, encode(message, self._envelope(message))):
            return False
        self.counts.handed_bytes += source.entry.size_bytes - push.sent_bytes
        push.source = None
        return True

    def _envelope(self, message: Message) -> Envelope:
        return self._origin.envelope(message, sampled=False)

    def _send(self, push: Push) -> None:
        while push.sendable:
            assert push.source is not None
            end = min(push.limit_bytes, push.sent_bytes + self._chunk_bytes)
            chunk = UploadChunk(
                artifact=push.manifest.digest,
                file=push.source.entry.digest,
                offset_bytes=push.sent_bytes,
                data=push.source.bytes(push.sent_bytes, end),
            )
            if not sockets.send(self._socket, encode(chunk, self._envelope(chunk))):
                return
            self.counts.sent_bytes += chunk.data.nbytes
            self.counts.resent_bytes += push.sent(chunk.data.nbytes)

    def _heed(self, push: Push) -> bool:
        """Waits a moment for answers and does what they say; True when the artifact is durable there."""
        started = now_ns()
        wanted = zmq.POLLIN | (zmq.POLLOUT if push.sendable else 0)
        self._socket.poll(round(_WAIT_S * 1000), wanted)
        if not push.sendable:
            self.counts.waited_s += (now_ns() - started) / 1e9
        while frames := sockets.receive(self._socket):
            answer = self._read(frames)
            if answer and answer.artifact in ("", push.manifest.digest) and self._take(push, answer):
                return True
        return False

    def _read(self, frames: list[memoryview]) -> Answer | None:
        try:
            _, answer = decode(frames, *_ANSWERS)
        except MessageError as error:
            self.counts.malformed += 1
            log.warning("answer refused", endpoint=self.endpoint, reason=str(error))
            return None
        return answer

    def _take(self, push: Push, answer: Answer) -> bool:
        if isinstance(answer, UploadStored):
            self.counts.pushed += 1
            self.counts.deduplicated += answer.deduplicated
            return True
        if isinstance(answer, UploadGrant):
            push.offer_at_ns = now_ns() + int(REPEAT_S * 1e9)
            self.counts.resumed_bytes += push.granted(answer)
        else:
            self._told_no(push, answer)
        return False

    def _told_no(self, push: Push, error: UploadError) -> None:
        if error.code == "unknown":
            if now_ns() - push.offered_ns > BACKOFF_S[0] * 1e9:  # else its answer is on the way
                push.wait(0.0)
            return
        if error.code == "no_file":
            self._hands_over = False
            push.wait(0.0)
            return
        if error.code == "refused":
            self.counts.rejected += 1
            raise MessageError(f"{self.endpoint} refuses {push.manifest.digest}: {error.detail}")
        setattr(self.counts, error.code, getattr(self.counts, error.code) + 1)
        if error.code == "corrupt":
            self._sent_corrupt(push, error)
        else:
            log.warning(
                "upload waits", endpoint=self.endpoint, artifact=push.manifest.digest, reason=error.detail
            )
        push.back_off()

    def _sent_corrupt(self, push: Push, error: UploadError) -> None:
        """Our files are damaged: say so. They are whole: the way there damaged them, so send them again."""
        push.check_files()
        push.attempts += 1
        if push.attempts >= CORRUPT_ATTEMPTS:
            raise TransientError(
                f"upload of {push.manifest.digest} to {self.endpoint} arrived damaged {push.attempts} times, "
                f"the files here are whole; check memory and network: {error.detail}"
            )
