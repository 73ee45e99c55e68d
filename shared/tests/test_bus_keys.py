from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
import zmq.auth
from sim2or.bus import keys, sockets
from sim2or.bus.keys import Keyring, load_keyring
from sim2or.bus.pubsub import Publisher, Subscriber
from sim2or.bus.rpc import Client, Router, ServerLoop
from sim2or.errors import ConfigError, TransientError
from sim2or.messages.envelope import Origin
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotReport, RobotRequest
from sim2or.messages.robot_state import RobotState
from typer.testing import CliRunner

Eventually = Callable[..., None]

HERE = "tcp://127.0.0.1:*"
QUESTION = RobotRequest(action="report")
STATE = RobotState(
    seq=0,
    captured_ns=0,
    position_rad=np.zeros(6, np.float32),
    velocity_radps=np.zeros(6, np.float32),
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Keys of every service."""
    keys.make(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def elsewhere(tmp_path: Path, directory: Path) -> Path:
    """Somebody else's keys, who knows our public keys."""
    keys.make(tmp_path / "stranger")
    shutil.copy(keys.newest(directory / "public", "robot"), tmp_path / "stranger" / "public")
    return tmp_path / "stranger"


def free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def echo(questions: list[RobotRequest]) -> list[PolicyError]:
    return [PolicyError(code="busy", detail=question.action) for question in questions]


@contextmanager
def robot(ring: Keyring | None, endpoint: str = HERE) -> Iterator[ServerLoop[RobotRequest, PolicyError]]:
    """A server that answers."""
    loop = ServerLoop(endpoint, echo, RobotRequest, origin=Origin("robot"), keys=ring)
    stopped = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stopped.is_set,))
    thread.start()
    try:
        yield loop
    finally:
        stopped.set()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def bridge(
    endpoint: str, ring: Keyring | None, source: str = "bridge"
) -> Iterator[Client[RobotReport | PolicyError]]:
    client = Client(endpoint, Origin(source), RobotReport, PolicyError, keys=ring, server="robot")
    try:
        yield client
    finally:
        client.close()


def answered(client: Client[RobotReport | PolicyError], deadline_s: float = 5.0) -> bool:
    return client.call(QUESTION, deadline_s=deadline_s) == PolicyError(code="busy", detail="report")


def test_a_known_key_comes_in(directory: Path) -> None:
    """A client whose key is on the server's list is answered over an encrypted connection."""
    with robot(Keyring.load(directory, "robot")) as server:
        with bridge(server.router.endpoint, Keyring.load(directory, "bridge")) as client:
            assert answered(client)
            assert client.counts.refused == 0
        assert server.counts.refused == 0
        assert server.router.socket.getsockopt(zmq.MECHANISM) == zmq.CURVE


def test_a_stranger_is_turned_away_and_counted(
    directory: Path, elsewhere: Path, eventually: Eventually
) -> None:
    """An unknown key gets no answer, both ends count it, and a known client is served meanwhile."""
    with (
        robot(Keyring.load(directory, "robot")) as server,
        bridge(server.router.endpoint, Keyring.load(elsewhere, "bridge"), "stranger") as stranger,
        bridge(server.router.endpoint, Keyring.load(directory, "bridge")) as friend,
    ):
        eventually(lambda: server.counts.refused)
        assert answered(friend)
        eventually(lambda: stranger.counts.refused)
        with pytest.raises(TransientError, match=r"no server at .* handshakes failed, see SIM2OR_KEYS"):
            stranger.call(QUESTION, deadline_s=0.1)
        assert answered(friend)
        assert server.counts.received == 2


def test_a_plaintext_client_is_turned_away_and_counted(directory: Path, eventually: Eventually) -> None:
    """A client without keys gets no answer from a server with keys."""
    with (
        robot(Keyring.load(directory, "robot")) as server,
        bridge(server.router.endpoint, None) as plain,
        bridge(server.router.endpoint, Keyring.load(directory, "bridge"), "friend") as friend,
    ):
        eventually(lambda: server.counts.refused)
        with pytest.raises(TransientError, match="no server"):
            plain.call(QUESTION, deadline_s=0.3)
        assert answered(friend)


def test_another_servers_key_is_turned_away_and_counted(directory: Path, eventually: Eventually) -> None:
    """A client that expects the policy's key at the robot's address sends nothing; both ends count it."""
    with robot(Keyring.load(directory, "robot")) as server:
        ring = Keyring.load(directory, "bridge")
        client = Client(server.router.endpoint, Origin("bridge"), PolicyError, keys=ring, server="policy")
        eventually(lambda: server.counts.refused and client.counts.refused)
        assert client.send(QUESTION, deadline_s=1) is None
        client.close()


def test_a_server_without_keys_is_refused_by_its_clients(directory: Path, eventually: Eventually) -> None:
    """A plaintext server at a known address hears nothing from a client with keys."""
    with robot(None) as server, bridge(server.router.endpoint, Keyring.load(directory, "bridge")) as client:
        eventually(lambda: client.counts.refused)
        assert client.send(QUESTION, deadline_s=1) is None
        assert server.counts.received == 0


def test_a_key_that_is_added_comes_in_by_itself(
    directory: Path, elsewhere: Path, eventually: Eventually
) -> None:
    """A refused client needs no restart: it is served once its key is put on the list."""
    with (
        robot(Keyring.load(directory, "robot")) as server,
        bridge(server.router.endpoint, Keyring.load(elsewhere, "bridge")) as client,
    ):
        eventually(lambda: server.counts.refused)
        new = keys.newest(elsewhere / "secret", "bridge")
        public, _ = zmq.auth.load_certificate(new)
        (directory / "allowed" / "robot" / "rpc" / "bridge.9.key").write_text(
            f'curve\n    public-key = "{public.decode()}"\n'
        )
        assert answered(client, 3 * sockets.HANDSHAKE_MS / 1000)


def test_a_revoked_key_is_refused_at_the_next_connection(directory: Path, eventually: Eventually) -> None:
    """Revoking needs no restart of the server; a new connection with the key is turned away."""
    ring = Keyring.load(directory, "bridge")
    with robot(Keyring.load(directory, "robot")) as server:
        with bridge(server.router.endpoint, ring) as client:
            assert answered(client)
        keys.revoke(directory, "bridge")
        with bridge(
            server.router.endpoint, Keyring(ring.name, ring.public, ring.secret, directory)
        ) as client:
            eventually(lambda: server.counts.refused)
            with pytest.raises(TransientError, match="no server"):
                client.call(QUESTION, deadline_s=0.3)


def test_a_rotated_key_and_the_one_before_are_both_accepted(directory: Path) -> None:
    """During a rotation old and new processes work side by side; then the old key is revoked."""
    old = Keyring.load(directory, "bridge")
    assert keys.rotate(directory, "bridge") == 2
    new = Keyring.load(directory, "bridge")
    assert new.public != old.public
    with robot(Keyring.load(directory, "robot")) as server:
        for ring in (old, new):
            with bridge(server.router.endpoint, ring) as client:
                assert answered(client)
    keys.revoke(directory, "bridge", old_only=True)
    lets_in = keys.admitted(directory, "robot")
    assert lets_in == {"rpc": ["bridge.2"], "pubsub": ["bridge.2", "console.1"]}
    assert Keyring.load(directory, "bridge") == new


def test_a_listener_may_not_command(directory: Path, eventually: Eventually) -> None:
    """The console's key opens the robot's state and not its commands: each road has its own list."""
    ring, console = Keyring.load(directory, "robot"), Keyring.load(directory, "console")
    endpoint = free_endpoint()
    states = Publisher(endpoint, Origin("robot"), RobotState, keys=ring)
    listener = Subscriber(endpoint, RobotState, keys=console, server="robot")

    def heard() -> object:
        states.publish(STATE)
        return listener.receive(0.05)

    eventually(heard)
    with robot(ring) as server, bridge(server.router.endpoint, console, "console") as client:
        eventually(lambda: server.counts.refused)
        assert client.send(QUESTION, deadline_s=1) is None
    listener.close()
    states.close()


def test_a_state_is_kept_from_strangers(directory: Path, elsewhere: Path, eventually: Eventually) -> None:
    """A subscriber with an unknown key hears nothing, while a known one hears."""
    endpoint = free_endpoint()
    states = Publisher(endpoint, Origin("robot"), RobotState, keys=Keyring.load(directory, "robot"))
    stranger = Subscriber(endpoint, RobotState, keys=Keyring.load(elsewhere, "console"), server="robot")
    friend = Subscriber(endpoint, RobotState, keys=Keyring.load(directory, "bridge"), server="robot")

    def heard() -> object:
        states.publish(STATE)
        return friend.receive(0.05)

    eventually(heard)
    assert stranger.receive(0.05) is None
    for subscriber in (stranger, friend):
        subscriber.close()
    states.close()


def test_beyond_loopback_keys_are_needed_and_suffice(directory: Path) -> None:
    """A wildcard address is refused without keys, naming what to set, and is served with them."""
    with pytest.raises(ConfigError, match=r"leaves this host.*make keys.*SIM2OR_KEYS"):
        Router("tcp://0.0.0.0:*", Origin("robot"), RobotRequest)
    with robot(Keyring.load(directory, "robot"), "tcp://0.0.0.0:*") as server:
        port = server.router.endpoint.rpartition(":")[2]
        with bridge(f"tcp://127.0.0.1:{port}", Keyring.load(directory, "bridge")) as client:
            assert answered(client)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://10.0.0.1:5555",
        "tcp://robot.local:5555",
        "tcp://127.0.0.1.example.org:5555",
        "tcp://127.0.0.1:0;10.0.0.1:5555",
        "tcp://[fe80::1]:5555",
    ],
)
def test_a_client_sends_nothing_in_the_clear_to_another_host(endpoint: str) -> None:
    """Connecting to another host without keys is refused, in whatever way its address is written."""
    with pytest.raises(ConfigError, match="leaves this host without encryption"):
        Client(endpoint, Origin("bridge"), PolicyError)
    with pytest.raises(ConfigError, match="leaves this host without encryption"):
        Subscriber(endpoint, RobotState)


def test_the_system_guards_ipc(directory: Path, tmp_path: Path) -> None:
    """Over ipc the same keys change nothing: file permissions guard it, and it stays fast."""
    with (
        robot(Keyring.load(directory, "robot"), f"ipc://{tmp_path}/r") as server,
        bridge(server.router.endpoint, None) as client,
    ):
        assert answered(client)
        assert server.router.socket.getsockopt(zmq.MECHANISM) == zmq.NULL


def test_an_unreadable_list_lets_nobody_in(directory: Path, tmp_path: Path, eventually: Eventually) -> None:
    """Without its allow-list, or with rubbish in it, a server turns everybody away and goes on."""
    place = directory / "allowed" / "robot" / "rpc"
    (place / "rubbish.1.key").write_bytes(b"\xff\xfe public-key")
    with robot(Keyring.load(directory, "robot")) as server:
        with bridge(server.router.endpoint, Keyring.load(directory, "bridge")) as client:
            assert answered(client)
        place.rename(tmp_path / "gone")
        with bridge(server.router.endpoint, Keyring.load(directory, "bridge"), "late") as client:
            eventually(lambda: server.counts.refused)
            assert client.send(QUESTION, deadline_s=1) is None


def test_closed_sockets_leave_no_thread(directory: Path, eventually: Eventually) -> None:
    """The threads that count refusals end with their sockets."""
    for _ in range(3):
        with (
            robot(Keyring.load(directory, "robot")) as server,
            bridge(server.router.endpoint, Keyring.load(directory, "bridge")) as client,
        ):
            assert answered(client)
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "gate-watch"])


def test_keys_are_made_once_and_kept_private(tmp_path: Path) -> None:
    """A second call changes nothing; only the owner may enter the directory or read a secret."""
    directory = tmp_path / "keys"
    assert keys.make(directory) == list(keys.services())
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert keys.make(directory) == []
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    assert directory.stat().st_mode & 0o777 == 0o700
    secrets = list((directory / "secret").iterdir())
    assert {path.stat().st_mode & 0o777 for path in secrets} == {0o600}
    assert len({zmq.auth.load_certificate(path)[1] for path in secrets}) == len(keys.services())
    assert b"secret-key" not in b"".join(path.read_bytes() for path in (directory / "public").iterdir())


def test_who_may_connect_to_whom_comes_from_the_topic_table(directory: Path) -> None:
    """The robot takes commands from the bridge alone; the policy answers the bridge and the simulators."""
    assert keys.admitted(directory, "robot") == {"rpc": ["bridge.1"], "pubsub": ["bridge.1", "console.1"]}
    assert keys.admitted(directory, "policy") == {
        "rpc": ["bridge.1", "sim-isaaclab.1", "sim.1"],
        "pubsub": [],
    }
    assert keys.admitted(directory, "bridge") == {"rpc": [], "pubsub": []}


def test_what_was_taken_off_a_list_stays_off(directory: Path) -> None:
    """Making further keys admits the new name where it belongs and nobody who was removed."""
    (directory / "allowed" / "policy" / "rpc" / "sim.1.key").unlink()
    assert keys.make(directory) == []
    assert keys.make(directory, ["bridge@or1", "robot@or1"]) == ["bridge@or1", "robot@or1"]
    assert keys.admitted(directory, "policy")["rpc"] == ["bridge.1", "bridge@or1.1", "sim-isaaclab.1"]
    assert keys.admitted(directory, "robot")["rpc"] == ["bridge.1", "bridge@or1.1"]
    assert keys.admitted(directory, "robot@or1")["rpc"] == ["bridge.1", "bridge@or1.1"]


def test_a_host_needs_only_its_own_secret(directory: Path) -> None:
    """Where ``bridge@or1`` is the only bridge, that is who the bridge is; with two it must be told."""
    keys.make(directory, ["bridge@or1", "bridge@or2"])
    keys.revoke(directory, "bridge")
    with pytest.raises(ConfigError, match="secret keys of bridge@or1, bridge@or2; leave the one"):
        Keyring.load(directory, "bridge")
    keys.newest(directory / "secret", "bridge@or2").unlink()
    assert Keyring.load(directory, "bridge").name == "bridge@or1"


def test_a_secret_that_others_may_read_is_refused(directory: Path) -> None:
    """The error names the file, its mode and the command that mends it."""
    path = keys.newest(directory / "secret", "robot")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=f"secret key {path} has mode 0644.*chmod 600 {path}"):
        Keyring.load(directory, "robot")


def test_a_secret_is_never_shown(directory: Path) -> None:
    """A keyring's text holds the name and the public key, not the secret one."""
    ring = Keyring.load(directory, "robot")
    assert ring.secret.decode() not in repr(ring)
    assert ring.public.decode() in repr(ring)


def test_missing_keys_say_how_to_make_them(directory: Path, tmp_path: Path) -> None:
    """No secret, no key of the server, an unknown service: each error has the command or the valid names."""
    assert load_keyring(None, "robot") is None
    with pytest.raises(ConfigError, match=r"no secret key of 'robot'; make it with `sim2or keys make"):
        load_keyring(tmp_path / "none", "robot")
    with pytest.raises(ConfigError, match="no public key of 'router'"):
        Keyring.load(directory, "bridge").key_of("router")
    with pytest.raises(ConfigError, match="did you mean 'bridge'"):
        keys.make(directory, ["brigde"])
    for name in ("../bridge", "bridge@", "bridge@../x", "Bridge"):
        with pytest.raises(ConfigError, match="valid: bridge"):
            keys.make(directory, [name])


def test_the_command_line_makes_lists_rotates_and_revokes(tmp_path: Path) -> None:
    """``sim2or keys`` makes keys and passwords once, shows who is let in, and never shows a secret."""
    from sim2or.cli.main import app

    directory = tmp_path / "keys"

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["keys", *arguments, "--keys", str(directory)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "robot" in said("make")
    assert "none, all are there" in said("make")
    assert "bridge: new key 2" in said("make", "--rotate", "bridge")
    listed = said("ls")
    assert "bridge.1 bridge.2" in listed
    secrets = [zmq.auth.load_certificate(path)[1] for path in (directory / "secret").iterdir()]
    passwords = [path.read_text().strip() for path in (directory / "redis").glob("*.password")]
    assert not [secret for secret in secrets if secret and secret.decode() in listed]
    assert not [password for password in passwords if password in listed]
    assert "7 files removed" in said("revoke", "bridge", "--old")
    assert keys.names_in(directory)["bridge"] == [2]
    assert "trainer: new Redis password" in said("make", "--rotate", "trainer")
    refused = CliRunner().invoke(app, ["keys", "revoke", "brigde", "--keys", str(directory)])
    assert refused.exit_code == 2


def test_the_keys_are_ignored_by_git() -> None:
    """``keys/`` cannot be committed by accident."""
    root = Path(__file__).parents[2]
    assert "/keys/" in (root / ".gitignore").read_text().splitlines()


@pytest.mark.faults("F16")
def test_a_server_under_siege_serves_its_friends(directory: Path, elsewhere: Path) -> None:
    """A real server process meets unknown, revoked, plaintext and misled clients and port scanners at once:
    it lives, counts them, answers none of them and all of its friends' questions."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        endpoint = server.stdout.readline().strip()
        revoked = Keyring.load(directory, "sim")
        keys.revoke(directory, "sim")
        hostile = [
            *(
                Client(endpoint, Origin(f"u{n}"), PolicyError, keys=stranger(elsewhere), server="robot")
                for n in range(5)
            ),
            *(Client(endpoint, Origin(f"r{n}"), PolicyError, keys=revoked, server="robot") for n in range(5)),
            *(Client(endpoint, Origin(f"p{n}"), PolicyError) for n in range(5)),
            *(
                Client(endpoint, Origin(f"w{n}"), PolicyError, keys=stranger(directory), server="policy")
                for n in range(5)
            ),
        ]
        with bridge(endpoint, Keyring.load(directory, "bridge")) as friend:
            for noise in (
                b"",
                b"GET / HTTP/1.1\r\n\r\n",
                os.urandom(4096),
                b"\xff" + b"\0" * 8 + b"\x7f\x03",
            ):
                scan(endpoint, noise)
                assert answered(friend)
            assert not [client for client in hostile if client.send(QUESTION, deadline_s=1)]
            assert answered(friend)
        server.stdin.close()
        refused, received = map(int, server.stdout.readline().split())
        assert refused >= len(hostile)
        assert received == 5
        for client in hostile:
            client.close()
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.wait()


SERVER = """
import sys, threading
from pathlib import Path
from sim2or.bus.keys import Keyring
from sim2or.bus.rpc import ServerLoop
from sim2or.messages.envelope import Origin
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotRequest

def echo(questions):
    return [PolicyError(code="busy", detail=question.action) for question in questions]

ring = Keyring.load(Path(sys.argv[1]), "robot")
loop = ServerLoop("tcp://127.0.0.1:*", echo, RobotRequest, origin=Origin("robot"), keys=ring)
stopped = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
print(loop.router.endpoint, flush=True)
sys.stdout, out = sys.stderr, sys.stdout
loop.run(stopped.is_set)
print(loop.counts.refused, loop.counts.received, file=out, flush=True)
"""


def stranger(directory: Path) -> Keyring:
    return Keyring.load(directory, "bridge")


def scan(endpoint: str, noise: bytes) -> None:
    """Says something that is not ZMTP, and hangs up."""
    port = int(endpoint.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(noise)
