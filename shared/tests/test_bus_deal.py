from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zmq.auth
from redis.exceptions import NoPermissionError
from sim2or.bus import acl, keys
from sim2or.bus.deal import deal, parties
from sim2or.bus.keys import Keyring
from sim2or.bus.rpc import Client, Router
from sim2or.bus.server import connect
from sim2or.errors import ConfigError
from sim2or.messages.envelope import Origin
from sim2or.messages.policy_request import PolicyError
from sim2or.messages.robot_request import RobotRequest
from sim2or.stages import load_table
from typer.testing import CliRunner

Eventually = Callable[..., None]

TABLE = load_table()
QUESTION = RobotRequest(action="report")
SECRETS = ("secret/*", "redis/*.password")


@pytest.fixture
def master(tmp_path: Path) -> Path:
    """Everybody's keys and passwords."""
    keys.make(tmp_path / "keys")
    acl.write(tmp_path / "keys", TABLE)
    return tmp_path / "keys"


@pytest.fixture
def dealt(master: Path, tmp_path: Path) -> Path:
    """A directory for each."""
    deal(master, tmp_path / "dealt", (), TABLE)
    return tmp_path / "dealt"


def held(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def secrets_of(place: Path) -> set[str]:
    return {path.name for pattern in SECRETS for path in place.glob(pattern)}


def test_each_gets_its_own_secrets_and_no_other(master: Path, dealt: Path) -> None:
    """A service holds its own secret key and password, Redis its health check's; every file is private."""
    names = {path.name for path in dealt.iterdir()}
    assert names == set(parties(master, TABLE)) - {"admin"}
    users = {user.name for user in acl.users(TABLE)}
    for name in names - {"redis"}:
        own = {f"{name}.1.key_secret"} if name in keys.services() else set()
        assert secrets_of(dealt / name) == own | ({f"{name}.password"} if name in users else set())
    assert held(dealt / "redis") == {"redis/users.acl", "redis/metrics.password"}
    every = [path for path in dealt.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in every} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in dealt.iterdir()} == {0o700}
    private = [path.read_bytes() for pattern in SECRETS for path in master.glob(pattern)]
    for name in names:
        found = b"".join(path.read_bytes() for path in (dealt / name).rglob("*") if path.is_file())
        assert sum(secret in found for secret in private) == len(secrets_of(dealt / name))


def test_a_service_gets_the_keys_of_its_servers_and_its_own_lists(dealt: Path) -> None:
    """The bridge asks policy, robot and store; the robot lets in bridge and console and asks nobody."""
    assert held(dealt / "bridge") == {
        "secret/bridge.1.key_secret",
        "public/dataset.1.key",
        "public/policy.1.key",
        "public/robot.1.key",
        "redis/bridge.password",
    }
    assert held(dealt / "robot") == {
        "secret/robot.1.key_secret",
        "allowed/robot/rpc/bridge.1.key",
        "allowed/robot/pubsub/bridge.1.key",
        "allowed/robot/pubsub/console.1.key",
    }
    assert held(dealt / "trainer") == {
        "secret/trainer.1.key_secret",
        "public/dataset.1.key",
        "redis/trainer.password",
    }
    assert held(dealt / "runner") == {"redis/runner.password"}


def test_a_second_deal_changes_nothing(master: Path, dealt: Path) -> None:
    """What is there and right is left alone, file by file."""
    before = {path: path.stat().st_ino for path in dealt.rglob("*")}
    assert deal(master, dealt, (), TABLE) == []
    assert {path: path.stat().st_ino for path in dealt.rglob("*")} == before


def test_a_rotation_reaches_those_it_concerns(master: Path, dealt: Path) -> None:
    """After a rotation the bridge has the new secret only; its servers let both in until the old goes."""
    keys.rotate(master, "bridge")
    acl.rotate(master, "trainer", TABLE)
    changed = deal(master, dealt, (), TABLE)
    assert changed == ["bridge", "dataset", "policy", "redis", "robot", "trainer"]
    assert secrets_of(dealt / "bridge") == {"bridge.2.key_secret", "bridge.password"}
    assert {"allowed/robot/rpc/bridge.1.key", "allowed/robot/rpc/bridge.2.key"} <= held(dealt / "robot")
    keys.revoke(master, "bridge", old_only=True)
    deal(master, dealt, (), TABLE)
    assert "allowed/robot/rpc/bridge.1.key" not in held(dealt / "robot")


def test_what_was_taken_off_a_list_is_taken_away(master: Path, dealt: Path) -> None:
    """A name that a server should no longer let in goes at the next deal; other files there stay."""
    (master / "allowed/policy/rpc/sim.1.key").unlink()
    note = dealt / "policy" / "note.txt"
    note.write_text("kept")
    assert deal(master, dealt, ["policy"], TABLE) == ["policy"]
    left = {path.name for path in (dealt / "policy/allowed/policy/rpc").iterdir()}
    assert left == {"bridge.1.key", "sim-isaaclab.1.key"}
    assert note.read_text() == "kept"


def test_one_of_several_meets_its_own_place(master: Path, tmp_path: Path) -> None:
    """``bridge@or1`` gets the key of ``robot@or1``, and of the only policy there is."""
    keys.make(master, ["bridge@or1", "robot@or1", "robot@or2"])
    deal(master, tmp_path / "to", ["bridge@or1", "robot@or1"], TABLE)
    assert held(tmp_path / "to/bridge@or1") == {
        "secret/bridge@or1.1.key_secret",
        "public/dataset.1.key",
        "public/policy.1.key",
        "public/robot@or1.1.key",
        "redis/bridge.password",
    }
    assert Keyring.load(tmp_path / "to/robot@or1", "robot").name == "robot@or1"
    ring = Keyring.load(tmp_path / "to/bridge@or1", "bridge")
    assert ring.key_of("robot") == Keyring.load(tmp_path / "to/robot@or1", "robot").public


def test_bridge_and_robot_talk_with_just_their_own(dealt: Path, eventually: Eventually) -> None:
    """A server with its dealt directory hears a client with its own, and refuses one that was not let in."""
    robot = Router(
        "tcp://127.0.0.1:*", Origin("robot"), RobotRequest, keys=Keyring.load(dealt / "robot", "robot")
    )
    with closing(robot):
        ring = Keyring.load(dealt / "bridge", "bridge")
        friend = Client(robot.endpoint, Origin("bridge"), PolicyError, keys=ring, server="robot")
        with closing(friend):
            eventually(lambda: friend.send(QUESTION, deadline_s=1))
            eventually(robot.receive)
        with pytest.raises(ConfigError, match="no public key of 'robot'"):
            Keyring.load(dealt / "sim", "sim").key_of("robot")
        shutil.copy(dealt / "bridge/public/robot.1.key", dealt / "sim/public")
        ring = Keyring.load(dealt / "sim", "sim")
        with closing(Client(robot.endpoint, Origin("sim"), PolicyError, keys=ring, server="robot")):
            eventually(lambda: robot.counts.refused)


@pytest.fixture
def guarded(redis_program: Path, dealt: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a Redis that has only what was dealt to it."""
    directory = tmp_path_factory.mktemp("r")
    users = dealt / "redis" / "redis" / acl.FILE
    configuration = f'port 0\nunixsocket {directory}/s\ndir {directory}\nsave ""\naclfile {users}\n'
    (directory / "redis.conf").write_text(configuration)
    with subprocess.Popen([redis_program, directory / "redis.conf"], stdout=subprocess.DEVNULL) as process:
        yield directory / "s"
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def test_each_logs_in_with_just_its_own(guarded: Path, dealt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Redis user logs in with its directory, has its own rights, and cannot log in as another."""
    users = [user.name for user in acl.users(TABLE) if user.name != "admin"]
    for name in users:
        monkeypatch.setenv("SIM2OR_KEYS", str(dealt / name))
        with closing(connect(f"unix://{name}@{guarded}")) as redis:
            assert redis.ping()
            with pytest.raises(NoPermissionError):
                redis.flushall()
        for other in {*users, "admin"} - {name}:
            with pytest.raises(ConfigError, match=f"no redis/{other}.password; valid: {name}"):
                connect(f"unix://{other}@{guarded}")
    monkeypatch.setenv("SIM2OR_KEYS", str(dealt / "redis"))
    with closing(connect(f"unix://metrics@{guarded}")) as redis:
        assert redis.ping()


def test_wrong_names_and_places_are_told(master: Path, tmp_path: Path) -> None:
    """An unknown name, a secret that is elsewhere and a place that is a file: each error says what to do."""
    with pytest.raises(ConfigError, match=r"no keys for 'brigde'; valid: .*did you mean 'bridge'"):
        deal(master, tmp_path / "to", ["brigde"], TABLE)
    (master / "secret/robot.1.key_secret").unlink()
    with pytest.raises(ConfigError, match=r"no secret of the newest key of 'robot'.*--rotate robot"):
        deal(master, tmp_path / "to", ["sim", "robot"], TABLE)
    assert not (tmp_path / "to").exists()
    (tmp_path / "to").write_text("")
    with pytest.raises(ConfigError, match=f"{tmp_path}/to/sim: keys cannot be written there"):
        deal(master, tmp_path / "to", ["sim"], TABLE)


def test_the_command_line_makes_and_deals_once(tmp_path: Path) -> None:
    """``sim2or keys deal`` makes what is missing, deals to the names given, and shows no secret."""
    from sim2or.cli.main import app

    command = ["keys", "deal", "--keys", str(tmp_path / "keys"), "--to", str(tmp_path / "to"), "redis", "sim"]
    said = [CliRunner().invoke(app, command) for _ in range(2)]
    assert [done.exit_code for done in said] == [0, 0]
    assert f"dealt in {tmp_path}/to: redis, sim" in said[0].output
    assert f"dealt in {tmp_path}/to: nothing new" in said[1].output
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"redis", "sim"}
    _, secret = zmq.auth.load_certificate(tmp_path / "to/sim/secret/sim.1.key_secret")
    assert secret is not None
    assert secret.decode() not in said[0].output
