"""Artifacts on their way to the store that keeps them: what is offered, wanted, sent and stored.

::

    sender → receiver   UploadOffer                what I have (its manifest)
    receiver → sender   UploadGrant                send this file, from here, up to there
    sender → receiver   UploadChunk …              its bytes, in order
                        or UploadFile              take it yourself: same host, here it is, open
    receiver → sender   UploadGrant …              so much is written, send on up to there
    receiver → sender   UploadStored | UploadError every byte is on the disk under its digest | why not
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from sim2or.messages.array import ArraySpec
from sim2or.messages.message import Message
from sim2or.messages.observation import Count, Name

MAX_CHUNK_BYTES = 4 * 1024 * 1024
MAX_MANIFEST_BYTES = 8 * 1024 * 1024

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


def _at_most(limit: int) -> AfterValidator:
    def check(value: NDArray[Any]) -> NDArray[Any]:
        if value.nbytes > limit:
            raise ValueError(f"{value.nbytes} bytes; at most {limit} are accepted")
        return value

    return AfterValidator(check)


class UploadOffer(Message):
    """Offers an artifact. Sent again when the receiver is silent: the answer tells where to go on.

    Attributes:
        artifact: The artifact's digest.
        manifest: Its manifest, as UTF-8 JSON; names every file by digest and size.
    """

    type_name: ClassVar[str] = "upload_offer"

    artifact: Digest
    manifest: Annotated[NDArray[np.uint8], ArraySpec("uint8", (None,)), _at_most(MAX_MANIFEST_BYTES)]


class UploadGrant(Message):
    """Says what the receiver has written and how far the sender may go on: the receiver's byte credits.

    Attributes:
        artifact: The artifact's digest.
        file: Digest of the file that is wanted now; empty while the receiver finishes others.
        written_bytes: How much of that file the receiver has written.
        limit_bytes: The sender may send that file's bytes before this offset; it never shrinks.
        lacking_bytes: How much of the whole artifact is still to come.
        rewind: Whether to go on sending at ``written_bytes``, whatever was sent already.
    """

    type_name: ClassVar[str] = "upload_grant"

    artifact: Digest
    file: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")]
    written_bytes: Count
    limit_bytes: Count
    lacking_bytes: Count
    rewind: bool


class UploadChunk(Message):
    """Some bytes of one file.

    Attributes:
        artifact: The artifact's digest.
        file: The file's digest.
        offset_bytes: Where in the file they belong.
        data: The bytes.
    """

    type_name: ClassVar[str] = "upload_chunk"

    artifact: Digest
    file: Digest
    offset_bytes: Count
    data: Annotated[NDArray[np.uint8], ArraySpec("uint8", (None,)), _at_most(MAX_CHUNK_BYTES)]


class UploadFile(Message):
    """Hands over the wanted file itself, to a receiver on the same host, in place of its bytes.

    Attributes:
        artifact: The artifact's digest.
        file: The file's digest.
        token: Names the open file among those that were handed over beside the endpoint.
    """

    type_name: ClassVar[str] = "upload_file"

    artifact: Digest
    file: Digest
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class UploadStored(Message):
    """Says that the artifact is durable: written, flushed to the disk, verified, and under its name.

    Attributes:
        artifact: The artifact's digest.
        deduplicated: Whether it was there already when it was offered.
    """

    type_name: ClassVar[str] = "upload_stored"

    artifact: Digest
    deduplicated: bool


class UploadError(Message):
    """Says why an upload does not go on.

    Attributes:
        code: ``busy``: too many uploads are open; ``no_space``: the disk is too full; ``failed``: the disk
            failed; offer again later in these three cases. ``unknown``: offer first. ``no_file``: send the
            bytes instead. ``corrupt``: the bytes do not have the digest. ``refused``: the message breaks the
            contract.
        detail: The numbers: what was found and what would be accepted.
        artifact: The artifact's digest; empty where the message could not be read.
    """

    type_name: ClassVar[str] = "upload_error"

    code: Literal["busy", "no_space", "failed", "unknown", "no_file", "corrupt", "refused"]
    detail: Annotated[str, Field(max_length=4000)]
    artifact: Name = ""
