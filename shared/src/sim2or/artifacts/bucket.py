"""A bucket of an object store, or a directory that hosts share: where a mirror keeps its bytes.

``s3://BUCKET/PREFIX`` (any S3 server), ``gs://…``, ``az://…`` or ``file:///DIRECTORY``. Credentials, region
and endpoint come from the variables that the library knows (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL`` …), never from the address. Connections are
encrypted unless the endpoint itself says ``http://``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import LocalStore, from_url

from sim2or.errors import ConfigError, TransientError, choices

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SETTING = "SIM2OR_MIRROR"
SCHEMES = ("s3", "gs", "az", "file")
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
IDENTITIES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""One of these says who we are to a server that is not AWS's own."""

CONNECT_S = 5.0
PIECE_BYTES = 4 * 1024 * 1024
PART_BYTES = 5 * 1024 * 1024
"""The smallest part that S3 takes. Source: Amazon S3 user guide, "Multipart upload limits"."""

PARTS = 9_000
"""An upload has at most 10,000 parts. Source: the same."""

PARTS_AT_ONCE = 2
NOT_IMPLEMENTED = 501
_GIVEN_UP = (408, 429)
_DENIED = (401, 403)


class Bucket:
    """Bytes by name, far away.

    Args:
        url: Where; a prefix is put before every name.
        patience_s: How long failed requests are repeated [s]; a request without an answer for half of that
            counts as failed.

    Attributes:
        where: The place, for messages.

    Raises:
        ConfigError: The address or the environment is wrong; the message names the setting.
    """

    def __init__(self, url: str, *, patience_s: float) -> None:
        self.url = checked(url)
        endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
        own_server = url.startswith("s3:") and endpoint
        if own_server and not any(map(os.environ.get, IDENTITIES)):
            raise ConfigError(
                f"{SETTING}={url}: AWS_ENDPOINT_URL is set, but nothing says who we are there: set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        self.where = f"{url} at {_without_user(endpoint)}" if own_server else url
        try:
            self._far = _connected(url, plain=endpoint.startswith("http://"), patience_s=patience_s)
        except (BaseError, ValueError) as error:
            raise ConfigError(f"{SETTING}={url}: {reason(error)}; {_remedy(0)}") from None

    async def check(self) -> None:
        """Asks for a list, to find out at start whether address and credentials are right.

        Raises:
            ConfigError: The server refuses: wrong bucket, credentials, region or rights.
            TransientError: No answer.
        """
        try:
            await anext(aiter(self._far.list("manifests", chunk_size=1)), None)
        except (BaseError, FileNotFoundError) as error:
            told = f"{SETTING}={self.where}: {reason(error)}; {_remedy(status(error))}"
            refused = 300 <= status(error) < 500 and status(error) not in _GIVEN_UP
            raise (ConfigError if refused else TransientError)(told) from None

    async def size(self, name: str) -> int | None:
        """The size of an object [bytes]; None when it is not there."""
        with self._trouble(name), contextlib.suppress(FileNotFoundError):
            return (await self._far.head_async(name))["size"]
        return None

    async def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A small object's bytes, at most one more than the limit; None when it is not there."""
        data = b""
        try:
            async with contextlib.aclosing(self.pieces(name)) as pieces:
                async for piece in pieces:
                    data += piece[: limit_bytes + 1 - len(data)]
                    if len(data) > limit_bytes:
                        break
        except FileNotFoundError:
            return None
        return data

    async def pieces(self, name: str) -> AsyncGenerator[bytes]:
        """An object's bytes, piece by piece.

        Raises:
            FileNotFoundError: It is not there.
        """
        with self._trouble(name):
            async for piece in (await self._far.get_async(name)).stream(PIECE_BYTES):
                yield piece

    async def write(self, name: str, data: bytes | AsyncIterator[bytes], size_bytes: int) -> None:
        """Makes an object, visible when it is whole; what the iterator raises ends it, and nothing is left.

        Args:
            name: Its name.
            data: Its bytes, or a part of ``part_bytes(size_bytes)`` at a time.
            size_bytes: How many there are.
        """
        with self._trouble(name, absent=True):
            await self._far.put_async(
                name, data, chunk_size=part_bytes(size_bytes), max_concurrency=PARTS_AT_ONCE
            )

    async def create(self, name: str, data: bytes) -> bool:
        """Makes a small object unless there is one; whether it did.

        A server without conditional writes is asked first: then two at the same moment may both succeed.
        """
        with self._trouble(name, absent=True):
            try:
                await self._far.put_async(name, data, mode="create")
            except AlreadyExistsError:
                return False
            except BaseError as error:
                if status(error) != NOT_IMPLEMENTED and not isinstance(error, NotSupportedError):
                    raise
                if await self.size(name) is not None:
                    return False
                await self._far.put_async(name, data)
        return True

    async def names(self, prefix: str) -> AsyncIterator[str]:
        """The names of the objects in a directory of the bucket, in no order."""
        with self._trouble(prefix):
            async for page in self._far.list(prefix):
                for found in page:
                    yield found["path"]

    @contextlib.contextmanager
    def _trouble(self, name: str, *, absent: bool = False) -> Iterator[None]:
        """Says what went wrong as a ``TransientError``: a right lost after the start is no job's fault.

        Args:
            name: What was asked for.
            absent: Whether "not found" is trouble too, and not an answer.
        """
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and not absent and "NoSuchBucket" not in str(error):
                raise
            raise TransientError(
                f"mirror {self.where}: {name}: {reason(error)}; {_remedy(status(error))}"
            ) from None


def checked(url: str) -> str:
    """An address that names a bucket and no secret.

    Raises:
        ConfigError: It does not; a secret is not repeated.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            f"{SETTING} holds more than {parts.scheme}://BUCKET/PREFIX; credentials belong into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server into AWS_ENDPOINT_URL"
        )
    if parts.scheme not in SCHEMES:
        known = choices(parts.scheme, SCHEMES)
        raise ConfigError(f"{SETTING}={url}: unknown scheme {parts.scheme!r}; {known}")
    if bool(parts.netloc) == (parts.scheme == "file") or (parts.scheme == "file" and parts.path in ("", "/")):
        raise ConfigError(f"{SETTING}={url}: give s3://BUCKET/PREFIX or file:///DIRECTORY")
    if parts.scheme == "file" and not Path(unquote(parts.path)).is_dir():
        raise ConfigError(f"{SETTING}={url}: no such directory on this host; make it or mount it")
    if ".." in parts.path.split("/") or "//" in parts.path:
        raise ConfigError(f"{SETTING}={url}: the prefix {parts.path!r} holds '..' or '//'")
    return url


def part_bytes(size_bytes: int) -> int:
    """How large the parts of an upload are [bytes]."""
    return max(PART_BYTES, -(-size_bytes // PARTS))


def reason(error: Exception) -> str:
    """What the server or the library says, in one line and without the request."""
    text = str(error)
    if said := re.search(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", text, re.DOTALL):
        return f"{said[1]}: {said[2]}"[:300]
    kind = re.search(r"kind: (Timeout|Connect)\b", text)
    why = {"Timeout": "no answer in time", "Connect": "no connection"}.get(kind[1] if kind else "", "")
    certificate = re.search(r"InvalidCertificate\(\s*(\w+)", text)
    first = " ".join(text.partition("Debug source")[0].split())[:300]
    return " ".join(filter(None, (first, why, f"certificate: {certificate[1]}" if certificate else "")))


def status(error: Exception) -> int:
    """The HTTP status of a refusal; 0 where there was none."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else 0


def _remedy(code: int) -> str:
    if code in _DENIED:
        return (
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may list the bucket, get and "
            "put objects under the prefix"
        )
    if code == 404:
        return f"make the bucket, or correct {SETTING}"
    if 300 <= code < 500:
        return f"check {SETTING}, AWS_REGION and AWS_ENDPOINT_URL"
    return "see that it is there and can be reached from this host (AWS_ENDPOINT_URL, network, certificates)"


def _without_user(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _connected(url: str, *, plain: bool, patience_s: float) -> ObjectStore:
    if url.startswith("file:"):
        return LocalStore.from_url(url)
    half = timedelta(seconds=patience_s / 2)
    options: ClientConfig = {
        "allow_http": plain,
        "connect_timeout": min(half, timedelta(seconds=CONNECT_S)),
        "read_timeout": half,  # also what one part of an upload may take
        "timeout": timedelta(days=1),  # ours is the patience for what does not come forward
    }
    retry: RetryConfig = {
        "max_retries": 20,
        "retry_timeout": timedelta(seconds=patience_s),
        "backoff": {"max_backoff": timedelta(seconds=patience_s / 12)},
    }
    return from_url(url, client_options=options, retry_config=retry)
