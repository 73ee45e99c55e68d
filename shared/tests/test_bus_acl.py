from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest
import structlog
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError
from sim2or.bus import acl
from sim2or.bus.events import Events
from sim2or.bus.jobs import Claim, Jobs, Lease
from sim2or.bus.server import connect
from sim2or.errors import ConfigError, TransientError
from sim2or.messages.event import Event
from sim2or.messages.job import Job, JobFailure, JobResult, Progress
from sim2or.stages import load_table

Eventually = Callable[..., None]

TABLE = load_table()
SERVICES = sorted({info.service for info in TABLE.stages.values()})
FORBIDDEN = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("SHUTDOWN", "NOSAVE"),
    ("ACL", "LIST"),
    ("EVAL", "return 1", "0"),
    ("SCRIPT", "FLUSH"),
    ("SAVE",),
    ("MONITOR",),
    ("REPLICAOF", "NO", "ONE"),
    ("MODULE", "LIST"),
    ("CLIENT", "KILL", "ID", "1"),
    ("SUBSCRIBE", "x"),
    ("RENAME", "events", "x"),
    ("XTRIM", "secrets", "MAXLEN", "0"),
    ("GET", "secrets"),
)


@dataclass(frozen=True)
class Guarded:
    """A Redis that knows only the users of ``users.acl``."""

    keys: Path
    socket: Path

    def url(self, user: str) -> str:
        return f"unix://{user}@{self.socket}"

    def client(self, user: str) -> Redis:
        return connect(self.url(user))

    def jobs(self, user: str, *, lease_s: float = 10.0) -> Jobs:
        return Jobs(self.client(user), lease_s=lease_s, retry_delays_s={"transient": 0.0, "crashed": 0.0})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    acl.write(directory, TABLE)
    return directory


@pytest.fixture(scope="module")
def server(redis_program: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("r")
    guarded = Guarded(keys, directory / "s")
    configuration = (
        f'port 0\nunixsocket {guarded.socket}\ndir {directory}\nsave ""\naclfile {keys}/redis/{acl.FILE}\n'
    )
    (directory / "redis.conf").write_text(configuration)
    with subprocess.Popen([redis_program, directory / "redis.conf"], stdout=subprocess.DEVNULL) as process:
        yield guarded
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.fixture
def guarded(server: Guarded, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    """An empty Redis with users, and the passwords where ``connect`` finds them."""
    monkeypatch.setenv("SIM2OR_KEYS", str(server.keys))
    server.client("admin").flushall()
    return server


def stages_of(service: str) -> list[str]:
    return sorted(TABLE.of_service(service))


def question(stage: str, key: str = "k") -> Job:
    return Job(stage=stage, key=key, spec={"steps": 1}, run_id="run-1")


def claimed(jobs: Jobs, stage: str, worker: str = "w") -> Claim:
    claim = jobs.claim(stage, worker, block_s=2)
    assert claim is not None
    return claim


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_does_its_whole_work(guarded: Guarded, service: str) -> None:
    """Claim, renew, progress, complete, fail, release and count: all with the service's own user."""
    runner, jobs = guarded.jobs("runner"), guarded.jobs(service)
    for stage in stages_of(service):
        for key in ("done", "failing", "broken", "handed back", "cancelled"):
            runner.submit(question(stage, key))
        claim = claimed(jobs, stage)
        assert jobs.renew(claim) is Lease.OWNED
        assert jobs.progress(claim, Progress(done=1.0, total=2.0)) is Lease.OWNED
        result = JobResult(outputs={"model": "sha256:1"}, kinds={"model": "verdict"}, summary={"n": 1})
        assert jobs.complete(claim, result)
        jobs.fail(claimed(jobs, stage), JobFailure(kind="transient", message="again"))
        jobs.fail(claimed(jobs, stage), JobFailure(kind="permanent", message="never"))
        jobs.release(claimed(jobs, stage))
        assert runner.cancel(claimed(jobs, stage).job_id)
        states = {record.job.key: record.state for record in runner.list(stage=stage)}
        assert (states["done"], states["broken"]) == ("done", "failed")
        assert jobs.outstanding(stage) > 0
        assert jobs.get(claim.job_id).result == result
        assert jobs.figures(stage).done == 1
    kinds = {event.kind for event in Events(guarded.client("runner")).read()}
    assert {"job.submitted", "job.started", "artifact.stored", "verdict.recorded", "job.done"} <= kinds
    assert {"job.retry", "job.failed", "job.released", "job.cancelling"} <= kinds


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_takes_over_and_buries(guarded: Guarded, service: str, eventually: Eventually) -> None:
    """What a silent worker lost is taken over, and a job that outlives its workers is dead."""
    stage = stages_of(service)[0]
    runner = guarded.jobs("runner")
    jobs = Jobs(guarded.client(service), lease_s=0.02, max_deliveries=2)
    job_id = runner.submit(question(stage)).job_id
    first, second = claimed(jobs, stage, "frozen"), claimed(jobs, stage, "heir")
    assert (second.job_id, second.attempt) == (first.job_id, 2)
    assert not jobs.complete(first, JobResult())
    eventually(lambda: jobs.claim(stage, "w2", block_s=0.05) is None and runner.get(job_id).state == "dead")
    assert [record.job_id for record in runner.dead()] == [job_id]
    assert jobs.figures(stage).dead == 1


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_knows_when_to_warm_up(guarded: Guarded, service: str) -> None:
    """An agent may ask whether the stages before its own have work."""
    jobs = guarded.jobs(service)
    for stage in stages_of(service):
        before = TABLE.stages[stage].warm_after
        assert jobs.outstanding(before or stage) == 0


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_kept_from_other_stages(guarded: Guarded, service: str) -> None:
    """Another service's stage can be neither claimed, submitted, cancelled nor looked into."""
    mine, runner = guarded.jobs(service), guarded.jobs("runner")
    for other in sorted(set(TABLE.stages) - set(stages_of(service))):
        job_id = runner.submit(question(other)).job_id
        for forbidden in (
            lambda stage=other: mine.claim(stage, "thief", block_s=0),
            lambda stage=other: mine.submit(question(stage, "smuggled")),
            lambda name=job_id: mine.cancel(name),
            lambda name=job_id: mine.get(name),
        ):
            with pytest.raises(ConfigError, match="this Redis user may not do that"):
                forbidden()
        assert runner.get(job_id).state == "queued"


@pytest.mark.parametrize("user", [*SERVICES, "runner", "metrics"])
def test_nobody_but_the_admin_rules(guarded: Guarded, user: str) -> None:
    """Emptying the store, configuration, listing keys, own scripts and foreign keys are refused."""
    client = guarded.client(user)
    for command in FORBIDDEN:
        with pytest.raises(NoPermissionError):
            client.execute_command(*command)
        called = ", ".join(f"'{word}'" for word in command)
        with pytest.raises(ResponseError, match=r"can't (run|access)|No permissions|not allowed"):
            client.register_script(f"return redis.call({called})")()


@pytest.mark.parametrize("service", SERVICES)
def test_dead_letters_of_others_hide_no_figures(guarded: Guarded, service: str) -> None:
    """A service counts its own queue while jobs of every stage lie among the dead letters."""
    runner = guarded.jobs("runner")
    for stage, info in TABLE.stages.items():
        runner.submit(question(stage))
        owner = guarded.jobs(info.service)
        owner.fail(claimed(owner, stage), JobFailure(kind="permanent", message="no"))
    for stage in stages_of(service):
        assert guarded.jobs(service).figures(stage).dead_letters == 1


def test_the_runner_does_its_whole_work(guarded: Guarded) -> None:
    """Submit, list, cancel, retry, follow, recover and prune: all with the runner's user."""
    client = guarded.client("runner")
    jobs = Jobs(client, run_id="run-1")
    job_id = jobs.submit(question("train")).job_id
    assert [record.job_id for record in jobs.list()] == [job_id]
    assert jobs.cancel(job_id)
    assert jobs.retry(job_id)
    trainer = guarded.jobs("trainer")
    trainer.fail(claimed(trainer, "train"), JobFailure(kind="permanent", message="no"))
    assert [record.job_id for record in jobs.dead()] == [job_id]
    assert jobs.epoch() == jobs.epoch()
    events = Events(client)
    last = events.last()
    events.append(Event(kind="run.noted"))
    assert [event.kind for event in events.read(last)] == ["run.noted"]
    assert next(events.follow(last, timeout_s=2)).kind == "run.noted"
    record = jobs.get(job_id)
    assert jobs.prune(older_s=0.0).jobs == 1
    assert jobs.restore(record.model_copy(update={"state": "done", "result": JobResult()}))


def test_metrics_may_only_look(guarded: Guarded) -> None:
    """The metrics user reads figures and events, and changes nothing."""
    guarded.jobs("runner").submit(question("train"))
    client = guarded.client("metrics")
    jobs = Jobs(client)
    assert jobs.figures("train").queued == 1
    assert [event.kind for event in Events(client).read()] == ["job.submitted"]
    for forbidden in (
        lambda: jobs.submit(question("train", "2")),
        lambda: jobs.claim("train", "w", block_s=0),
        lambda: jobs.cancel(question("train").job_id),
        lambda: Events(client).append(Event(kind="lie")),
    ):
        with pytest.raises(ConfigError, match="may not do that"):
            forbidden()
    assert guarded.jobs("runner").get(question("train").job_id).state == "queued"


def test_without_a_login_nothing_is_served(guarded: Guarded) -> None:
    """The default user is off: an address without a user is refused with what to set."""
    with pytest.raises(ConfigError, match=r"refuses the login.*redis://USER@HOST.*SIM2OR_KEYS"):
        connect(f"unix://{guarded.socket}", timeout_s=1)


def test_a_restart_with_users_loses_nothing(
    redis_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that knows only our users is killed, and reads back what they and the script wrote."""
    acl.write(tmp_path, TABLE)
    monkeypatch.setenv("SIM2OR_KEYS", str(tmp_path))
    guarded = Guarded(tmp_path, tmp_path / "s")
    configuration = (
        f'port 0\nunixsocket {guarded.socket}\ndir {tmp_path}\nsave ""\naclfile {tmp_path}/redis/{acl.FILE}\n'
        "appendonly yes\nappendfsync always\n"
    )
    (tmp_path / "redis.conf").write_text(configuration)

    def facts() -> object:
        records = {record.job.key: record.state for record in guarded.jobs("runner").list()}
        return records, [event.kind for event in Events(guarded.client("metrics")).read()]

    with killed(redis_program, tmp_path / "redis.conf"):
        for key in ("done", "running", "queued"):
            guarded.jobs("runner").submit(question("train", key))
        trainer = guarded.jobs("trainer")
        assert trainer.complete(claimed(trainer, "train"), JobResult())
        claimed(trainer, "train")
        before = facts()
    with killed(redis_program, tmp_path / "redis.conf"):
        assert facts() == before
        for name in ("", "default:guess@"):
            with pytest.raises(ConfigError, match="refuses the login"):
                connect(f"unix://{name}{guarded.socket}", timeout_s=1)


@contextmanager
def killed(program: Path, configuration: Path) -> Iterator[None]:
    """A Redis that is killed at the end of the block."""
    with subprocess.Popen([program, configuration], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def test_a_wrong_password_is_refused_and_not_told(guarded: Guarded) -> None:
    """A login that fails names the address; neither the error nor a client shows the password."""
    with pytest.raises(ConfigError, match="refuses the login") as caught:
        connect(f"unix://trainer:guessed@{guarded.socket}", timeout_s=1)
    assert "guessed" not in str(caught.value)
    secret = acl.password(guarded.keys, "trainer")
    assert secret not in repr(guarded.client("trainer"))


def test_every_command_of_the_script_is_granted() -> None:
    """What the queue's script calls, its users may call; a new command must be added to ``bus/acl.py``."""
    script = (files("sim2or.bus") / "jobs.lua").read_text()
    calls = set(re.findall(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?", script))
    granted = {command.partition("|")[0] for command in acl.RUNS}
    parts = {command for command in acl.RUNS if "|" in command}
    missing = {command.lower() for command, _ in calls} - granted
    missing |= {
        f"{command}|{first}".lower()
        for command, first in calls
        if command in ("XGROUP", "XINFO") and f"{command}|{first}".lower() not in parts
    }
    assert not missing


def test_passwords_are_made_once_and_kept_private(tmp_path: Path) -> None:
    """A second call changes nothing; passwords differ, are long and 0600; the users' file has digests."""
    made = acl.write(tmp_path, TABLE)
    assert made == [user.name for user in acl.users(TABLE)]
    before = {path: path.read_text() for path in (tmp_path / "redis").glob("*.password")}
    assert len(set(before.values())) == len(made)
    text = (tmp_path / "redis" / acl.FILE).read_text()
    assert acl.write(tmp_path, TABLE) == []
    assert {path: path.read_text() for path in before} == before
    assert (tmp_path / "redis" / acl.FILE).read_text() == text
    for path, content in before.items():
        assert path.stat().st_mode & 0o777 == 0o600
        assert len(content.strip()) >= 40
        assert content.strip() not in text


def test_a_password_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """A readable password, an unknown user and a missing directory each say what to do."""
    acl.write(tmp_path, TABLE)
    path = tmp_path / "redis" / "trainer.password"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=f"mode 0640.*chmod 600 {path}"):
        acl.password(tmp_path, "trainer")
    with pytest.raises(ConfigError, match=r"no redis/trainr.password.*did you mean 'trainer'"):
        acl.password(tmp_path, "trainr")
    with pytest.raises(ConfigError, match=r"no redis/\.\./x.password"):
        acl.password(tmp_path, "../x")
    with pytest.raises(ConfigError, match="set SIM2OR_KEYS"):
        acl.password(None, "trainer")


def test_a_rotated_password_is_accepted_until_it_is_revoked(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rotation the old and the new password work; after the revocation only the new one."""
    old, admin = acl.password(guarded.keys, "trainer"), guarded.client("admin")
    old_url = f"unix://trainer:{old}@{guarded.socket}"
    acl.rotate(guarded.keys, "trainer", TABLE)
    admin.acl_load()
    assert acl.password(guarded.keys, "trainer") != old
    assert guarded.client("trainer").ping()
    assert connect(old_url).ping()
    acl.revoke(guarded.keys, "trainer", TABLE, old_only=True)
    admin.acl_load()
    assert guarded.client("trainer").ping()
    with pytest.raises(ConfigError, match="refuses the login"):
        connect(old_url, timeout_s=1)


def test_an_unencrypted_way_to_another_host_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain Redis beyond this host is one line in the log, without the password; TLS is none."""
    from sim2or.bus import server

    with structlog.testing.capture_logs() as lines:
        for url in (
            "redis://trainer:geheim@bus.example:6379/0",
            "rediss://bus.example:6379/0",
            "redis://[::1]:1",
        ):
            server._warn_if_plain(url)
        server._warn_if_plain("unix:///tmp/redis.sock")
    (line,) = lines
    assert line["event"] == "redis is not encrypted"
    assert line["address"] == "bus.example:6379/0"


def test_tls_with_a_known_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Path) -> None:
    """``rediss://`` logs in over TLS where the certificate is known, and refuses an unknown one."""
    program, openssl = shutil.which("redis-server"), shutil.which("openssl")
    if program is None or openssl is None:
        pytest.skip("needs redis-server with TLS and openssl")
    monkeypatch.setenv("SIM2OR_KEYS", str(keys))
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, *request.split(), *names], check=True, capture_output=True, timeout=30)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = (
        f"port 0\ntls-port {port}\nbind 127.0.0.1\ntls-cert-file {certificate}\ntls-key-file {key}\n"
        f'tls-auth-clients no\ndir {tmp_path}\nsave ""\naclfile {keys}/redis/{acl.FILE}\n'
    )
    (tmp_path / "redis.conf").write_text(options)
    with subprocess.Popen([program, tmp_path / "redis.conf"], stdout=subprocess.DEVNULL) as process:
        try:
            url = f"rediss://runner@localhost:{port}/0"
            assert connect(f"{url}?ssl_ca_certs={certificate}").ping()
            with pytest.raises(TransientError, match="CERTIFICATE_VERIFY_FAILED"):
                connect(url, timeout_s=0.2)
        finally:
            process.terminate()


def test_a_poisoned_event_hides_no_other(guarded: Guarded) -> None:
    """Nonsense that a service writes among the events is passed over and counted; what follows is read."""
    client, events = guarded.client("trainer"), Events(guarded.client("runner"))
    client.xadd("events", {"kind": "x", "detail": "[" * 20_000})
    client.xadd("events", {"kind": "job.done"})
    assert [event.kind for event in events.read()] == ["job.done"]
    assert events.malformed == 1
