"""The fault proxy does to a connection what it is told, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from proxy import FaultProxy

PIECE = b"0123456789" * 100


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that says back what it hears; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def speak(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=speak, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[FaultProxy]:
    """A proxy before the echo."""
    with FaultProxy(("127.0.0.1", echo), seed=1) as made:
        yield made


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    """A connection through the proxy, whose every wait ends."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as made:
        yield made


def told(client: socket.socket, count: int) -> bytes:
    """So many bytes, or what came before the end."""
    data = b""
    while len(data) < count and (piece := client.recv(count - len(data))):
        data += piece
    return data


def silent(client: socket.socket) -> bool:
    """Whether nothing comes for a moment."""
    client.settimeout(0.1)
    try:
        return client.recv(1) == b"never"
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)


def test_it_forwards_every_byte_in_order(
    client: socket.socket, proxy: FaultProxy, eventually: Callable[..., None]
) -> None:
    """A healthy proxy changes nothing."""
    client.sendall(PIECE * 200)
    assert told(client, len(PIECE) * 200) == PIECE * 200
    eventually(lambda: proxy.counts.bytes == {"up": 200_000, "down": 200_000})


def test_it_delays_with_jitter_and_keeps_the_order(client: socket.socket, proxy: FaultProxy) -> None:
    """Nothing arrives before the delay, and nothing overtakes."""
    proxy.line(delay_s=0.1, jitter_s=0.05)
    asked_s = time.monotonic()
    client.sendall(PIECE)
    assert told(client, len(PIECE)) == PIECE
    assert time.monotonic() - asked_s >= 0.2


@pytest.mark.parametrize("way", ["up", "down", None])
def test_a_cut_is_silent_and_heals_without_loss(client: socket.socket, proxy: FaultProxy, way: str) -> None:
    """While the line is dark nothing comes and nobody is told; healed, it delivers what it held."""
    proxy.cut(way)
    client.sendall(PIECE)
    assert silent(client)
    proxy.heal()
    assert told(client, len(PIECE)) == PIECE


def test_a_reset_ends_the_connection_with_an_error_and_a_new_one_works(
    client: socket.socket, proxy: FaultProxy
) -> None:
    """Both ends see RST; who connects again is served."""
    client.sendall(b"x")
    assert told(client, 1) == b"x"
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
        again.sendall(b"y")
        assert told(again, 1) == b"y"


def test_a_slow_line_keeps_its_rate(client: socket.socket, proxy: FaultProxy) -> None:
    """Twenty thousand bytes at a hundred thousand a second take at least most of 0.2 s."""
    proxy.line("up", rate_bps=100_000)
    asked_s = time.monotonic()
    client.sendall(PIECE * 20)
    assert told(client, 20_000) == PIECE * 20
    assert time.monotonic() - asked_s > 0.15


def test_a_torn_line_ends_in_the_middle(client: socket.socket, proxy: FaultProxy) -> None:
    """Exactly so many bytes arrive, then the end; the next connection is whole."""
    proxy.tear(7)
    client.sendall(PIECE)
    assert told(client, len(PIECE)) == PIECE[:7]
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
        again.sendall(PIECE)
        assert told(again, len(PIECE)) == PIECE


def test_it_speaks_unix_sockets_on_both_sides(tmp_path: Path) -> None:
    """A unix socket upstream can be reached by TCP, and by another unix socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "u"))
    listener.listen()
    for listen in (("127.0.0.1", 0), tmp_path / "p"):
        with FaultProxy(tmp_path / "u", listen) as proxy:
            family = socket.AF_UNIX if isinstance(proxy.address, Path) else socket.AF_INET
            with socket.socket(family) as client:
                client.settimeout(5)
                client.connect(str(proxy.address) if family == socket.AF_UNIX else proxy.address)
                far, _ = listener.accept()
                with far:
                    client.sendall(b"ping")
                    assert far.recv(4) == b"ping"
    listener.close()


def test_without_an_upstream_the_connection_ends(tmp_path: Path) -> None:
    """A server that is away looks as it would without a proxy: connections end at once."""
    with (
        FaultProxy(tmp_path / "nobody") as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client,
        contextlib.suppress(ConnectionResetError),
    ):
        assert client.recv(1) == b""
