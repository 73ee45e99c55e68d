"""Open files handed to another process of this host, so that their bytes need not cross a socket.

Beside an ``ipc://`` endpoint lies a second unix socket, ``<path>.files``. The sender puts an open file and a
random token there (SCM_RIGHTS), then names the token in a message. It works between containers that share the
directory of the endpoint and nothing else; the receiver opens no path that anybody tells it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_WAITING = 64
_TOKEN_BYTES = 16
_SUFFIX = ".files"
_IPC = "ipc://"
_MAX_SOCKET_PATH = 107


def hand_over(endpoint: str, file: int) -> str:
    """Hands an open file to the process that serves an endpoint, without waiting.

    Args:
        endpoint: Of that process.
        file: The file's descriptor; it may be closed afterwards.

    Returns:
        The token that names it there; empty when that process takes no files.
    """
    path = _beside(endpoint)
    if path is None:
        return ""
    token = os.urandom(_TOKEN_BYTES)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sender:
        sender.setblocking(False)
        try:
            sender.connect(str(path))
            socket.send_fds(sender, [token], [file])
        except OSError:
            return ""
    return token.hex()


class Files:
    """Takes files that are handed over beside an ``ipc://`` endpoint; use it from one thread.

    Args:
        endpoint: Where this process listens; nothing is taken beside other endpoints.
    """

    def __init__(self, endpoint: str) -> None:
        self._path = _beside(endpoint)
        self._waiting: dict[str, int] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        if self._path:
            self._path.unlink(missing_ok=True)
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen(MAX_WAITING)

    def take(self, token: str) -> int | None:
        """Returns the plain file that a token names, for the caller to close; None when there is none."""
        for name, file in self._arrived():
            self._waiting[name] = file
            while len(self._waiting) > MAX_WAITING:
                os.close(self._waiting.pop(next(iter(self._waiting))))
        found = self._waiting.pop(token, None)
        if found is not None and not stat.S_ISREG(os.fstat(found).st_mode):
            os.close(found)
            return None
        return found

    def close(self) -> None:
        """Closes the socket and what nobody asked for."""
        self._socket.close()
        for file in self._waiting.values():
            os.close(file)
        self._waiting.clear()
        if self._path:
            self._path.unlink(missing_ok=True)

    def _arrived(self) -> Iterator[tuple[str, int]]:
        while self._path:
            try:
                sender, _ = self._socket.accept()
            except OSError:
                return
            with sender:
                sender.setblocking(False)
                with contextlib.suppress(OSError):
                    token, files, _, _ = socket.recv_fds(sender, _TOKEN_BYTES, 1)
                    yield from ((token.hex(), file) for file in files)


def _beside(endpoint: str) -> Path | None:
    path = endpoint.removeprefix(_IPC) + _SUFFIX
    fits = endpoint.startswith(f"{_IPC}/") and len(os.fsencode(path)) <= _MAX_SOCKET_PATH
    return Path(path) if fits else None
