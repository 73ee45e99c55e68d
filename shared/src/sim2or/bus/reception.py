"""What a receiver keeps in mind: where artifacts go, how much it takes on, and the uploads under way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import ValidationError

from sim2or.artifacts.manifest import FileEntry, Manifest
from sim2or.bus.rpc import Request
from sim2or.clock import now_ns
from sim2or.errors import MessageError
from sim2or.messages.array import Buffer
from sim2or.messages.codec import explain
from sim2or.messages.upload import UploadChunk, UploadFile, UploadOffer

Question = UploadOffer | UploadChunk | UploadFile


class Part(Protocol):
    """A file of which the first ``written_bytes`` are here.

    Attributes:
        entry: Digest and size that it must have.
        written_bytes: How much of it is written.
        resumed: Whether an earlier writer began it.
    """

    entry: FileEntry
    written_bytes: int
    resumed: bool

    def write(self, data: Buffer) -> None:
        """Appends bytes."""

    def take(self, file: int) -> None:
        """Appends the rest of an open file, in any thread; ``JobError`` when that is too short."""

    def finish(self) -> None:
        """Makes the file durable and visible, in any thread; ``JobError`` when its digest is wrong."""

    def close(self) -> None:
        """Lets go of the file."""


class Intake(Protocol):
    """Where received artifacts go; ``artifacts.intake.StoreIntake`` is the one on the disk."""

    def holds(self, digest: str) -> bool:
        """Whether an artifact is here, with every file."""

    def lacking(self, entry: FileEntry) -> int | None:
        """How many bytes of a file are still to come; None when it is here."""

    def open_part(self, entry: FileEntry) -> Part:
        """Begins a file, or goes on with what an earlier writer left."""

    def keep(self, manifest: Manifest) -> None:
        """Makes an artifact visible, all of whose files are here."""

    def free_bytes(self) -> int:
        """How much it still takes."""


@dataclass(frozen=True)
class Limits:
    """What a receiver takes on.

    Attributes:
        uploads: Artifacts on their way at once; further senders are told "busy".
        window_bytes: Credits of one upload.
        in_flight_bytes: Credits of all uploads together.
        spare_bytes: What stays free on the disk; senders are told "no_space" before.
        idle_s: An upload whose sender is silent for so long is closed; it can be gone on with [s]. One that
            lives speaks every second.
        contested_s: The same, when another sender waits to send the same file [s].
    """

    uploads: int = 64
    window_bytes: int = 16 * 1024 * 1024
    in_flight_bytes: int = 256 * 1024 * 1024
    spare_bytes: int = 512 * 1024 * 1024
    idle_s: float = 10.0
    contested_s: float = 3.0


@dataclass
class ReceiverCounts:
    """What a receiver has seen.

    Attributes:
        offered: Offers read, repetitions included.
        received_bytes: Bytes written that came in messages.
        taken_bytes: Bytes written from files that senders on this host handed over.
        repeated_bytes: Bytes that came again and were passed over.
        stored: Artifacts that became durable.
        stored_files: Files that became durable.
        deduplicated: Offers of artifacts that were here already.
        deduplicated_files: Files of admitted offers that were here already.
        resumed: Files that were gone on with after a crash or a break.
        resumed_bytes: Bytes that did not have to come again because of that.
        busy: Offers refused because too many uploads were open.
        no_space: Offers and bytes refused because the disk was too full.
        corrupt: Files whose bytes did not have their digest.
        failed: Files and manifests that the disk did not take.
        rejected: Offers and chunks that broke the contract, without the malformed ones.
        gaps: Chunks that came out of order.
        unknown: Chunks of no open upload.
        expired: Uploads closed because their sender was silent.
    """

    offered: int = 0
    received_bytes: int = 0
    taken_bytes: int = 0
    repeated_bytes: int = 0
    stored: int = 0
    stored_files: int = 0
    deduplicated: int = 0
    deduplicated_files: int = 0
    resumed: int = 0
    resumed_bytes: int = 0
    busy: int = 0
    no_space: int = 0
    corrupt: int = 0
    failed: int = 0
    rejected: int = 0
    gaps: int = 0
    unknown: int = 0
    expired: int = 0


@dataclass
class Upload:
    """One artifact on its way from one sender.

    Attributes:
        request: The sender's last offer, which the answers belong to.
        manifest: What is coming.
        missing: Digest to entry of the files that have to come after this one.
        finishing: Digest to file of those that came from this sender and are being flushed and verified.
        part: The file that is coming now.
        granted_bytes: Its bytes before this offset may be sent.
        told_bytes: How much of it the sender knows to be written.
        gap: The sender was told to rewind and has not yet.
        keeping: The manifest is being written.
        seen_ns: When the sender was last heard of [ns].
    """

    request: Request[Question]
    manifest: Manifest
    missing: dict[str, FileEntry]
    finishing: dict[str, Part] = field(default_factory=dict)
    part: Part | None = None
    granted_bytes: int = 0
    told_bytes: int = 0
    gap: bool = False
    keeping: bool = False
    seen_ns: int = field(default_factory=now_ns)

    @property
    def key(self) -> tuple[bytes, str]:
        """Sender and artifact."""
        return self.request.peer, self.manifest.digest

    @property
    def outstanding_bytes(self) -> int:
        """Credits that the sender has not used yet."""
        return self.granted_bytes - self.part.written_bytes if self.part else 0

    @property
    def lacking_bytes(self) -> int:
        """How much is still to come."""
        parts = [*self.finishing.values(), *([self.part] if self.part else [])]
        waiting = sum(one.size_bytes for one in self.missing.values())
        return waiting + sum(one.entry.size_bytes - one.written_bytes for one in parts)


def read_manifest(offer: UploadOffer) -> Manifest:
    """Reads an offer's manifest.

    Raises:
        MessageError: It is none, or another artifact's.
    """
    try:
        manifest = Manifest.model_validate_json(offer.manifest.tobytes())
        digest = manifest.digest
    except ValidationError as error:
        raise MessageError(f"upload_offer.manifest: {explain(error)}") from error
    except ValueError as error:
        raise MessageError(f"upload_offer.manifest: {error}") from error
    if digest != offer.artifact:
        raise MessageError(f"upload_offer.manifest has digest {digest}, the offer says {offer.artifact}")
    for entry in _twice(manifest):
        raise MessageError(
            f"upload_offer.manifest: {entry.path}: {entry.digest} stands there with another size"
        )
    return manifest


def _twice(manifest: Manifest) -> Iterator[FileEntry]:
    """Entries whose digest another entry has with another size."""
    sizes: dict[str, int] = {}
    for entry in manifest.files:
        if sizes.setdefault(entry.digest, entry.size_bytes) != entry.size_bytes:
            yield entry
