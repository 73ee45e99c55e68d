"""The supervisor: starts the services of one run directory as subprocesses, and leaves none behind.

One supervisor per run directory (``supervisor.lock``). It starts a private Redis and the services with ``ipc://``
sockets in a short private directory, restarts what crashes, and ends what an earlier supervisor left, where
it can prove that it is its own. Children end with it: the kernel signals them, and their input closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from pydantic import Field, ValidationError

from sim2or import log
from sim2or.artifacts.mirrored import ASK_PATIENCE_S, open_store
from sim2or.artifacts.store import Store, write_json
from sim2or.bus.events import Events
from sim2or.bus.jobs import Jobs
from sim2or.bus.journal import NAME, Journal, recover
from sim2or.bus.queue import JobQueue
from sim2or.bus.server import PrivateRedis, connect
from sim2or.bus.server import start as start_redis
from sim2or.disk import is_full, room
from sim2or.errors import ConfigError, JobError, TransientError, choices
from sim2or.messages.message import Spec
from sim2or.process import (
    KILL_S,
    MARKER_VARIABLE,
    PARENT_VARIABLE,
    Identity,
    describe_exit,
    die_with_parent,
    end_leftover,
    identify,
    is_running,
    kill_group,
    on_end_of_input,
    start,
)
from sim2or.settings import Settings, load_settings, result_variables
from sim2or.stages import ServiceInfo, Table, load_table

STATE = "supervisor.json"
CONFIG_EXIT = 2
BACKOFF_S = (0.2, 10.0)
STEADY_S = 30.0
POLL_S = 0.1
RETRY_S = 1.0
MAX_PORT = 65535

Status = Literal["running", "restarting", "refused"]


class ProcessState(Spec):
    """One service process, for ``sim2or ps`` and for the next supervisor.

    Attributes:
        service: Its service.
        identity: The process; None while it waits to be restarted.
        status: ``refused``: it ended with a configuration error and is not restarted.
        restarts: How often it was restarted.
        log: Its log file, relative to the run directory.
        last_exit: How it ended last.
        metrics_port: Where it shows its metrics; 0: nowhere.
    """

    service: str
    identity: Identity | None
    status: Status
    restarts: int
    log: str
    last_exit: str = ""
    metrics_port: int = 0


class SupervisorState(Spec):
    """What ``supervisor.json`` says.

    Attributes:
        identity: The supervisor's own process.
        marker: Value of ``SIM2OR_SUPERVISOR`` in its children.
        redis_url: The bus.
        policy_endpoint: The policy server's endpoint.
        robot_endpoint: The robot process's endpoint.
        sockets: Private directory of the sockets.
        ready: Whether everything was started.
        variables: Settings of the services that change their results.
        processes: By process name.
    """

    identity: Identity
    marker: str
    redis_url: str = ""
    policy_endpoint: str = ""
    robot_endpoint: str = ""
    sockets: str = ""
    ready: bool = False
    variables: dict[str, str] = Field(default_factory=dict)
    processes: dict[str, ProcessState] = Field(default_factory=dict)


@dataclass
class Supervised:
    """A service process under supervision."""

    name: str
    info: ServiceInfo
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    restarts: int = 0
    backoff_s: float = BACKOFF_S[0]
    due_s: float = 0.0
    status: Status = "restarting"
    last_exit: str = ""
    metrics_port: int = 0


@dataclass
class Supervisor:
    """Runs the services of one run directory until it is told to stop.

    Attributes:
        run_dir: The run's directory.
        table: Every service there is.
        counts: How many processes of which service.
        settings: Store and lease; the endpoints are chosen here.
        anew: Forget the jobs that this run left unfinished earlier: a runner will ask for what it needs.
    """

    run_dir: Path
    table: Table
    counts: Mapping[str, int]
    settings: Settings
    anew: bool = False
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _redis: PrivateRedis | None = None
    _sockets: Path | None = None
    _ready: bool = False
    _recovered: bool = False
    _processes: list[Supervised] = field(default_factory=list)

    def stop(self) -> None:
        """Asks it to stop everything and return from ``run``."""
        self._stopping.set()

    def run(self) -> None:
        """Starts everything, keeps it running, and stops it.

        Raises:
            ConfigError: Another supervisor has the run directory, no Redis can be started, or a service's
                environment is missing.
        """
        check_environments(self.table.services[name] for name, count in self.counts.items() if count)
        logger = log.get_logger()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with locked(self.run_dir / "supervisor.lock"):
            ended = end_leftovers(self.run_dir)
            if ended:
                logger.warning("ended leftovers of an earlier supervisor", processes=ended)
            try:
                self._start()
                logger.info("ready", services=dict(self.counts), redis=self._redis_url)
                while not self._stopping.wait(POLL_S):
                    self._keep_trying()
            finally:
                self._stop_all()
                logger.info("stopped")

    @property
    def _redis_url(self) -> str:
        return self._redis.url if self._redis else self.settings.redis_url

    def _start(self) -> None:
        (self.run_dir / "logs").mkdir(exist_ok=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="s2o-", dir="/tmp" if Path("/tmp").is_dir() else None))
        if not self.settings.redis_url:
            self._start_redis()
        self._recover()
        if self.anew:
            cancel_unfinished(Jobs(connect(self._redis_url)), self.run_dir.name)
            Journal(self.run_dir / NAME).drop_unfinished()
        for name, count in self.counts.items():
            for number in range(1, count + 1):
                full = name if count == 1 else f"{name}-{number}"
                supervised = Supervised(
                    full, self.table.services[name], self.run_dir / "logs" / f"{full}.log"
                )
                supervised.metrics_port = self._metrics_port(len(self._processes))
                self._processes.append(supervised)
                self._launch(supervised)
        self._ready = True
        self._write(ready=True)

    def _start_redis(self) -> None:
        assert self._sockets is not None
        self._redis = start_redis(self.run_dir / "redis", socket=self._sockets / "redis.sock")

    def _open_store(self) -> Store:
        return open_store(self.settings.store_root, self.settings.mirror, patience_s=ASK_PATIENCE_S)

    def _recover(self) -> None:
        """Brings this run's jobs back to a bus that lost them."""
        with contextlib.closing(connect(self._redis_url)) as redis:
            recover(
                Jobs(redis),
                Journal(self.run_dir / NAME),
                Events(redis),
                holds=self._open_store().holds,
                resubmit=not self.anew or self._ready,
                run_id=self.run_dir.name,
            )
        self._recovered = True

    def _launch(self, supervised: Supervised) -> None:
        supervised.process = start(
            [str(interpreter(supervised.info)), "-m", supervised.info.module, *supervised.info.command],
            environment={
                **self._environment(supervised.info),
                "SIM2OR_METRICS_PORT": str(supervised.metrics_port),
            },
            log=supervised.log,
        )
        supervised.started_s = time.monotonic()
        supervised.status = "running"

    def _metrics_port(self, index: int) -> int:
        """The port of a process's metrics: ours and the next ones, in the table's order; 0: none."""
        first = self.settings.metrics_port
        return first + index if first and first + index <= MAX_PORT else 0

    def _environment(self, info: ServiceInfo) -> dict[str, str]:
        threads = str(info.threads or os.cpu_count() or 1)
        return {
            "SIM2OR_REDIS_URL": self._redis_url,
            "SIM2OR_RUN_DIR": str(self.run_dir.absolute()),
            "SIM2OR_STORE": str(self.settings.store_root.absolute()),
            "SIM2OR_POLICY_ENDPOINT": self._endpoint("policy"),
            "SIM2OR_ROBOT_ENDPOINT": self._endpoint("robot"),
            "SIM2OR_LEASE_S": str(self.settings.lease_s),
            "SIM2OR_GRACE_S": str(self.settings.grace_s),
            "SIM2OR_PLUGINS": self.settings.plugins,
            "SIM2OR_METRICS_HOST": self.settings.metrics_host,
            MARKER_VARIABLE: self.marker,
            **{f"{library}_NUM_THREADS": threads for library in ("OMP", "OPENBLAS", "MKL")},
        }

    def _endpoint(self, name: str) -> str:
        given: str = getattr(self.settings, f"{name}_endpoint")
        return given or f"ipc://{self._sockets}/{name}.sock"

    def _keep_trying(self) -> None:
        """Keeps everything running; where space is missing or Redis does not start, tries again."""
        try:
            self._keep_running()
        except (OSError, ConfigError) as error:
            if isinstance(error, OSError) and not is_full(error):
                raise
            log.get_logger().error("cannot go on for now", error=str(error), room=room(self.run_dir))
            self._stopping.wait(RETRY_S)

    def _keep_running(self) -> None:
        changed = False
        if self._redis and self._redis.process.poll() is not None:
            log.get_logger().warning("redis ended", how=describe_exit(self._redis.process.returncode))
            self._recovered = False
            self._start_redis()
            changed = True
        if not self._recovered:
            with contextlib.suppress(TransientError):
                self._recover()
        now_s = time.monotonic()
        for supervised in self._processes:
            if supervised.process is not None and supervised.process.poll() is not None:
                self._bury(supervised, now_s)
                changed = True
            elif supervised.status == "restarting" and now_s >= supervised.due_s:
                supervised.restarts += 1
                self._launch(supervised)
                changed = True
        if changed:
            self._write(ready=True)

    def _bury(self, supervised: Supervised, now_s: float) -> None:
        assert supervised.process is not None
        status = supervised.process.returncode
        kill_group(supervised.process.pid)
        supervised.last_exit = describe_exit(status)
        if now_s - supervised.started_s > STEADY_S:
            supervised.backoff_s = BACKOFF_S[0]
        supervised.status = "refused" if status == CONFIG_EXIT else "restarting"
        supervised.due_s = now_s + supervised.backoff_s
        supervised.backoff_s = min(BACKOFF_S[1], supervised.backoff_s * 2)
        supervised.process = None
        log.get_logger().warning(
            "service ended", process=supervised.name, how=supervised.last_exit, next=supervised.status
        )

    def _stop_all(self) -> None:
        """SIGTERM to all at once, grace for all together, SIGKILL to what is left; Redis last."""
        running = [p.process for p in self._processes if p.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline_s = time.monotonic() + self.settings.grace_s + 2.0
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.01, deadline_s - time.monotonic()))
            kill_group(process.pid)
        deadline_s = time.monotonic() + KILL_S
        for supervised in self._processes:
            self._wait_for_end(supervised, deadline_s)
        self._processes.clear()
        if self._redis:
            self._redis.stop()
        if self._sockets:
            shutil.rmtree(self._sockets, ignore_errors=True)
        (self.run_dir / STATE).unlink(missing_ok=True)

    @staticmethod
    def _wait_for_end(supervised: Supervised, deadline_s: float) -> None:
        """Waits for a killed process; one that does not end is told of, and holds up nothing else."""
        if supervised.process is None:
            return
        try:
            supervised.process.wait(timeout=max(0.01, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.get_logger().error(
                "process does not end", process=supervised.name, pid=supervised.process.pid
            )

    def _write(self, *, ready: bool) -> None:
        me = identify(os.getpid(), "")
        assert me is not None
        state = SupervisorState(
            identity=me,
            marker=self.marker,
            redis_url=self._redis_url,
            policy_endpoint=self._endpoint("policy"),
            robot_endpoint=self._endpoint("robot"),
            sockets=str(self._sockets),
            ready=ready,
            variables=result_variables(self.table.services),
            processes={p.name: self._state_of(p) for p in self._processes},
        )
        write_json(self.run_dir / STATE, state.model_dump(mode="json"))

    def _state_of(self, supervised: Supervised) -> ProcessState:
        process = supervised.process
        return ProcessState(
            service=supervised.info.name,
            identity=identify(process.pid, self.marker) if process else None,
            status=supervised.status,
            restarts=supervised.restarts,
            log=str(supervised.log.relative_to(self.run_dir)),
            last_exit=supervised.last_exit,
            metrics_port=supervised.metrics_port,
        )


def cancel_unfinished(jobs: JobQueue, run_id: str) -> None:
    """Cancels the jobs that a run left unfinished, and nobody else's."""
    for record in jobs.list():
        if record.job.run_id == run_id and not record.final:
            jobs.cancel(record.job_id)


def check_shared_bus(settings: Settings) -> None:
    """Refuses services on a bus that others may use while the store is this run's own.

    Raises:
        ConfigError: They would take other runs' jobs and could not read their inputs.
    """
    if settings.redis_url and settings.store is None:
        raise ConfigError(
            "SIM2OR_REDIS_URL is set and SIM2OR_STORE is not: this run's services would take other runs' "
            "jobs without having their files; set SIM2OR_STORE to the store that all runs share, or unset "
            "SIM2OR_REDIS_URL for a private Redis"
        )


@contextlib.contextmanager
def locked(path: Path, holder: str = "another supervisor runs") -> Iterator[IO[str]]:
    """Holds an exclusive lock on a file, which ends with the process.

    Args:
        path: The file, in a run's directory.
        holder: Who has it when we do not, for the message.

    Raises:
        ConfigError: Another process holds it.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path.parent}: {holder} here; see `sim2or ps --run {path.parent.name}`, "
                "or choose another name with --run"
            ) from None
        yield file


def read_state(run_dir: Path) -> SupervisorState | None:
    """What a supervisor wrote about itself; None when there is nothing readable."""
    try:
        return SupervisorState.model_validate_json((run_dir / STATE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def running_state(run_dir: Path) -> SupervisorState | None:
    """The state of the supervisor that runs in a directory; None when none does."""
    state = read_state(run_dir)
    return state if state and is_running(state.identity) else None


def end_leftovers(run_dir: Path) -> list[str]:
    """Ends the processes of a supervisor that died here, and removes its socket directory.

    Returns:
        Names of the processes that were still running.
    """
    state = read_state(run_dir)
    if state is None:
        return []
    ended = [name for name, p in state.processes.items() if p.identity and end_leftover(p.identity)]
    sockets = Path(state.sockets)
    if sockets.name.startswith("s2o-") and sockets.is_dir() and sockets.stat().st_uid == os.getuid():
        shutil.rmtree(sockets, ignore_errors=True)
    (run_dir / STATE).unlink(missing_ok=True)
    return ended


def default_counts(table: Table, only: Iterable[str] | None = None) -> dict[str, int]:
    """How many processes of each service, in the order of the table.

    Args:
        table: Every service there is.
        only: The services that are asked for; by default all, but none of those with an environment of their
            own, which this machine may not have.
    """
    if only is None:
        return {name: 0 if info.environment else info.count for name, info in table.services.items()}
    wanted = set(only)
    return {name: info.count for name, info in table.services.items() if name in wanted}


def interpreter(info: ServiceInfo) -> Path:
    """The Python that runs a service: this one, or that of its own environment beside this one.

    Raises:
        ConfigError: That environment is not here; says how it is made.
    """
    if not info.environment:
        return Path(sys.executable)
    python = Path(sys.prefix).with_name(info.environment) / "bin" / "python"
    if not python.is_file():
        raise ConfigError(
            f"service {info.name} runs in an environment of its own and {python} is not here; "
            f"run `{info.setup}`"
        )
    return python


def check_environments(services: Iterable[ServiceInfo]) -> None:
    """Refuses services whose environment is not here, before anything is started.

    Raises:
        ConfigError: One is missing.
    """
    for info in services:
        interpreter(info)


def scaled(counts: Mapping[str, int], scale: Iterable[str]) -> dict[str, int]:
    """Applies ``service=count`` texts.

    Raises:
        ConfigError: An unknown service or a wrong number.
    """
    result = dict(counts)
    for text in scale:
        name, _, number = text.partition("=")
        if name not in result:
            raise ConfigError(f"--scale {text}: unknown service {name!r}; {choices(name, result)}")
        if not number.isdigit() or not 0 <= int(number) <= 64:
            raise ConfigError(f"--scale {text}: {number!r} is no count; give {name}=0 to {name}=64")
        result[name] = int(number)
    return result


@dataclass
class EmbeddedSupervisor:
    """A supervisor in a process of its own, which ends with this one.

    Args:
        run_dir: The run's directory.
        services: Which services.
        scale: ``service=count`` texts.
    """

    run_dir: Path
    services: Iterable[str]
    scale: Iterable[str] = ()
    start_s: float = 30.0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SupervisorState:
        """Starts it and waits until it is ready."""
        check_shared_bus(load_settings())
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / "supervisor.log"
        offset = path.stat().st_size if path.exists() else 0
        scale = [part for text in self.scale for part in ("--scale", text)]
        command = [
            sys.executable,
            "-m",
            "sim2or.supervisor",
            str(self.run_dir),
            ",".join(self.services),
            *scale,
        ]
        self._process = start(command, log=path)
        deadline_s = time.monotonic() + self.start_s
        while time.monotonic() < deadline_s:
            state = read_state(self.run_dir)
            if state and state.ready and state.identity.pid == self._process.pid:
                return state
            if self._process.poll() is not None:
                lines = path.read_bytes()[offset:].decode(errors="replace").strip().splitlines()
                raise ConfigError(
                    f"the supervisor did not start: {lines[-1] if lines else 'no log'} ({path})"
                )
            time.sleep(0.02)
        self.__exit__()
        raise TransientError(f"the supervisor was not ready after {self.start_s:g} s; see {path}")

    def check(self) -> None:
        """Notices that it died, or that a service refuses to run.

        Raises:
            JobError: It did.
        """
        assert self._process is not None
        if self._process.poll() is not None:
            how = describe_exit(self._process.returncode)
            raise JobError(f"the supervisor ended ({how}); start the same command again to go on from here")
        check_services(self.run_dir)

    def __exit__(self, *_: object) -> None:
        """Stops it and everything it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)


def check_services(run_dir: Path) -> None:
    """Notices a service that refuses to run.

    Raises:
        JobError: One does.
    """
    state = read_state(run_dir)
    for name, process in (state.processes if state else {}).items():
        if process.status == "refused":
            path = run_dir / process.log
            lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
            raise JobError(f"service {name} refuses to run: {lines[-1] if lines else 'no log'}\nsee {path}")


def main() -> None:
    """``python -m sim2or.supervisor RUN_DIR SERVICES [--scale S=N]…``: started by ``sim2or run``."""
    die_with_parent(signal.SIGTERM)
    log.configure("supervisor")
    settings = load_settings()
    run_dir = Path(sys.argv[1])
    table = load_table(settings.plugins)
    counts = default_counts(table, filter(None, sys.argv[2].split(",")))
    supervisor = Supervisor(
        run_dir=run_dir,
        table=table,
        counts=scaled(counts, sys.argv[4::2]),
        settings=settings.model_copy(update={"run_dir": run_dir}),
        anew=True,
    )
    supervise(supervisor)


def supervise(supervisor: Supervisor) -> None:
    """Runs a supervisor in this process's main thread until SIGINT, SIGTERM or its parent's death."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: supervisor.stop())
    if PARENT_VARIABLE in os.environ:
        on_end_of_input(sys.stdin.buffer, supervisor.stop)
    try:
        supervisor.run()
    except (ConfigError, TransientError) as error:
        log.get_logger().error("cannot run", error=str(error))
        raise SystemExit(CONFIG_EXIT) from error


if __name__ == "__main__":
    main()
