"""The supervisor and ``sim2or run``, as a user starts and kills them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "toy"))
from redis import Redis
from sim2or.bus.jobs import Jobs
from sim2or.errors import ConfigError
from sim2or.messages.job import Job
from sim2or.process import Identity, end_leftover, identify, is_running
from sim2or.settings import Settings
from sim2or.stages import ServiceInfo, load_table
from sim2or.supervisor import (
    Supervised,
    Supervisor,
    SupervisorState,
    cancel_unfinished,
    check_shared_bus,
    default_counts,
    interpreter,
    read_state,
    running_state,
    scaled,
)
from sim2or_toy.bench import gone, marked, until, variables

PIPELINE = """\
name: toy
stages:
  - stage: write
    shards: 2
    with: {{count: {count}, pause_s: {pause_s}, flags: {flags}, fault: {fault}}}
  - id: each
    stage: copy
    each: write
    inputs: {{numbers: write}}
  - stage: join
    inputs: {{numbers: write}}
    with: {{times: {times}}}
"""


AT_A_TERMINAL = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore Ctrl-C
from sim2or.cli.main import app
app()
"""


class Place:
    """A directory in which a user works."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_dir = root / "runs" / "toy"
        self.flags = root / "flags"
        self.flags.mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def pipeline(self, *, count: int = 6, pause_s: float = 0.0, times: int = 1, fault: str = "none") -> Path:
        path = self.root / "toy.yaml"
        path.write_text(
            PIPELINE.format(count=count, pause_s=pause_s, times=times, fault=fault, flags=self.flags)
        )
        return path

    def sim2or(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        command = self.start(*arguments)
        output, errors = command.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(arguments, command.returncode, output, errors)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = subprocess.Popen(
            [sys.executable, "-c", AT_A_TERMINAL, *arguments],
            cwd=self.root,
            env=variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(command)
        return command

    def marks(self, prefix: str) -> list[str]:
        return sorted(path.name for path in self.flags.glob(f"{prefix}*"))

    def state(self) -> SupervisorState:
        return until(lambda: s if (s := read_state(self.run_dir)) and s.ready else None, "supervisor")

    def ours(self) -> list[int]:
        """Processes of this directory's runs."""
        state = read_state(self.run_dir)
        supervisor = [state.identity.pid] if state and is_running(state.identity) else []
        return supervisor + marked(str(self.run_dir))

    def run_json(self) -> dict:
        return json.loads((self.run_dir / "run.json").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty directory; what was started in it is killed at the end."""
    made = Place(tmp_path)
    yield made
    for command in made.started:
        command.kill()
        command.wait()


def test_run_does_everything_and_stops_everything(place: Place) -> None:
    """One command runs the pipeline, exports the report, writes run.json, and leaves no process behind."""
    done = place.sim2or("run", str(place.pipeline()))
    assert done.returncode == 0, done.stderr
    assert "report: runs/toy/report" in done.stdout
    assert sorted(p.read_text() for p in (place.run_dir / "report").iterdir()) == ["15"]
    run = place.run_json()
    assert run["finished"]
    assert [len(run["stages"][name]["jobs"]) for name in ("write", "each", "join")] == [2, 2, 1]
    assert set(run["wall_s"]) == {"write", "each", "copy", "join", "total"}
    assert place.ours() == []
    assert running_state(place.run_dir) is None


def test_finished_stages_are_reused_and_a_changed_setting_is_not(place: Place) -> None:
    """The same pipeline again does nothing; one changed value redoes the step that depends on it."""
    place.sim2or("run", str(place.pipeline()))
    started = place.marks("started-")
    again = place.sim2or("run", str(place.pipeline()))
    assert again.returncode == 0
    assert "write: " in again.stdout
    assert again.stdout.count("reused") == 3
    changed = place.sim2or("run", str(place.pipeline(times=3)))
    assert changed.stdout.count("reused") == 2
    assert sorted(p.read_text() for p in (place.run_dir / "report").iterdir()) == ["45"]
    assert place.marks("started-") == started
    forced = place.sim2or("run", str(place.pipeline()), "--force", "--until", "write")
    assert forced.returncode == 0
    assert len(place.marks("started-")) > len(started)


def test_lost_artifacts_are_made_again(place: Place) -> None:
    """A finished job whose files are gone is asked again."""
    import shutil

    place.sim2or("run", str(place.pipeline()))
    shutil.rmtree(place.run_dir / "store")
    again = place.sim2or("run", str(place.pipeline()))
    assert again.returncode == 0, again.stderr
    assert "reused" not in again.stdout


def test_lost_objects_are_made_again_once(place: Place) -> None:
    """Files that are gone while their manifests are there are made again, and the next run does nothing."""
    import shutil

    place.sim2or("run", str(place.pipeline()))
    shutil.rmtree(place.run_dir / "store" / "objects")
    assert "reused" not in place.sim2or("run", str(place.pipeline())).stdout
    started = place.marks("started-")
    third = place.sim2or("run", str(place.pipeline()))
    assert third.stdout.count("reused") == 3
    assert place.marks("started-") == started


def test_a_second_run_in_one_directory_is_told_of_the_first(place: Place) -> None:
    """Two runs do not work in one directory; the second hears that a run, not a supervisor, has it."""
    path = place.pipeline(count=60, pause_s=0.1)
    first = place.start("run", str(path))
    until(lambda: place.marks("wrote-"), "numbers")
    second = place.sim2or("run", str(path))
    assert second.returncode == 2
    assert "another `sim2or run` is at work here" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=20)


def test_a_shared_bus_without_a_shared_store_is_refused(place: Place) -> None:
    """With SIM2OR_REDIS_URL alone a run would take others' jobs: refused before anything starts."""
    with pytest.raises(ConfigError, match="set SIM2OR_STORE to the store that all runs share"):
        check_shared_bus(Settings(redis_url="redis://localhost:6379/0", store=None))
    check_shared_bus(Settings(redis_url="redis://localhost:6379/0", store=place.root))
    check_shared_bus(Settings(redis_url=""))


def test_starting_a_run_cancels_only_its_own_jobs(redis: Redis) -> None:
    """On a shared bus, what another run asked for goes on."""
    jobs = Jobs(redis)
    ours = jobs.submit(Job(stage="write", key="1", run_id="toy")).job_id
    theirs = jobs.submit(Job(stage="write", key="2", run_id="other")).job_id
    cancel_unfinished(jobs, "toy")
    assert (jobs.get(ours).state, jobs.get(theirs).state) == ("cancelled", "queued")


def test_a_process_that_does_not_end_holds_up_nothing(tmp_path: Path) -> None:
    """Stopping goes on to the next process when one is stuck in the kernel."""
    stuck = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        supervised = Supervised("stuck", ServiceInfo("toy", "sim2or_toy"), tmp_path / "log", process=stuck)
        Supervisor._wait_for_end(supervised, time.monotonic())
        assert stuck.poll() is None
    finally:
        stuck.kill()
        stuck.wait()


PARENT = """\
import sys, time
from sim2or.process import start
code = (
    "from sim2or.cli.service import service_app\\n"
    "service_app('toy', servers={'deaf': 'sim2or_toy.deaf:serve'})()"
)
print(start([sys.executable, "-c", code, "deaf"]).pid, flush=True)
time.sleep(60)
"""


def test_a_server_deaf_to_sigterm_ends_with_its_supervisor(place: Place) -> None:
    """A server that is busy when its supervisor is killed is gone within five seconds."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env=variables({"TOY_FLAGS": str(place.flags)}), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    server = int(parent.stdout.readline())
    until(lambda: place.marks("deaf"), "server")
    parent.kill()
    parent.communicate()
    until(lambda: gone(server), "end of the server", timeout_s=5)


@pytest.mark.faults("F19")
def test_ctrl_c_stops_cleanly_and_the_run_goes_on_later(place: Place) -> None:
    """Ctrl-C ends all processes and says how to resume; the same command redoes nothing that was done."""
    path = place.pipeline(count=30, pause_s=0.1)
    first = place.start("run", str(path))
    until(lambda: len(place.marks("wrote-")) >= 6, "numbers")
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=20)
    assert first.returncode == 130
    assert "go on with: sim2or run" in output
    assert place.ours() == []
    done = place.sim2or("run", str(path))
    assert done.returncode == 0, done.stderr
    twice = [n for n in range(30) if len(place.marks(f"wrote-{n}-")) > 1]
    assert len(twice) <= 2  # one number in hand for each of the two workers


@pytest.mark.faults("F1")
@pytest.mark.parametrize("victim", ["supervisor", "command"])
def test_kill_9_leaves_no_orphan_and_the_run_goes_on(place: Place, victim: str) -> None:
    """Five seconds after kill -9 nothing of the run is alive; the same command finishes the work."""
    path = place.pipeline(count=30, pause_s=0.1)
    first = place.start("run", str(path))
    state = place.state()
    until(lambda: len(place.marks("wrote-")) >= 6, "numbers")
    os.kill(state.identity.pid if victim == "supervisor" else first.pid, signal.SIGKILL)
    until(lambda: not place.ours(), "end of all processes", timeout_s=5)
    _, errors = first.communicate(timeout=20)
    assert first.returncode != 0
    if victim == "supervisor":
        assert "start the same command again" in errors
    done = place.sim2or("run", str(path))
    assert done.returncode == 0, done.stderr
    assert len([n for n in range(30) if len(place.marks(f"wrote-{n}-")) > 1]) <= 2


@pytest.mark.faults("F1")
def test_a_crashed_service_is_restarted(place: Place) -> None:
    """kill -9 of an agent costs time; the supervisor starts another, and the run ends well."""
    path = place.pipeline(count=20, pause_s=0.1)
    first = place.start("run", str(path))
    state = place.state()
    until(lambda: len(place.marks("wrote-")) >= 4, "numbers")
    victim = state.processes["toy-1"].identity
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    renewed = until(
        lambda: s if (s := read_state(place.run_dir)) and s.processes["toy-1"].restarts else None, "restart"
    )
    assert renewed.processes["toy-1"].last_exit.startswith("killed by SIGKILL")
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 0, errors


def test_a_failed_job_ends_the_run_with_its_error(place: Place) -> None:
    """The error is shown in a clean line with the command that shows more, and that command works."""
    failed = place.sim2or("run", str(place.pipeline(fault="permanent")))
    assert failed.returncode == 2
    assert "3 wheels, expected 4; add a wheel" in failed.stderr
    assert "Traceback" not in failed.stderr
    command = next(line for line in failed.stderr.splitlines() if "sim2or jobs show" in line)
    shown = place.sim2or(*command.partition("sim2or ")[2].split())
    assert shown.returncode == 0
    assert "write.py" in shown.stdout
    dead = place.sim2or("jobs", "dead", "--run", "toy")
    assert "add a wheel" in dead.stdout
    assert place.ours() == []


def test_up_serves_several_commands(place: Place) -> None:
    """``up`` keeps services running; ``run`` uses them; a second ``up`` is refused; SIGTERM ends all."""
    up = place.start("up", "--run", "toy", "--services", "toy", "--scale", "toy=1")
    place.state()
    second = place.sim2or("up", "--run", "toy", "--services", "toy")
    assert second.returncode == 2
    assert "another supervisor" in second.stdout + second.stderr
    assert place.sim2or("run", str(place.pipeline())).returncode == 0
    assert running_state(place.run_dir) is not None
    shown = place.sim2or("ps", "--run", "toy")
    assert "toy" in shown.stdout
    assert "running" in shown.stdout
    listed = place.sim2or("jobs", "ls", "--run", "toy", "--state", "done")
    assert listed.stdout.count("done") == 5
    assert "job.done" in place.sim2or("events", "--run", "toy").stdout
    up.terminate()
    assert up.wait(timeout=20) == 0
    assert place.ours() == []


def test_lineage_is_printed(place: Place) -> None:
    """``lineage`` takes the first digits and shows what an artifact was made from."""
    place.sim2or("run", str(place.pipeline()))
    digest = place.run_json()["stages"]["join"]["jobs"][0]["outputs"]["report"]
    shown = place.sim2or("lineage", digest.removeprefix("sha256:")[:12])
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("numbers: numbers") == 2
    wrong = place.sim2or("lineage", "ffffffffffffffff")
    assert wrong.returncode == 2
    assert "no artifact starts with" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "toy.yaml", "--scale", "tyo=2"), "did you mean 'toy'"),
        (("run", "toy.yaml", "--scale", "toy=x"), "'x' is no count"),
        (("run", "toy.yaml", "--until", "jion"), "did you mean 'join'"),
        (("run", "toi.yaml"), "did you mean 'toy.yaml'"),
        (("run", "toy.yaml", "--run", "a/b"), "plain name"),
        (("up", "--services", "tyo"), "did you mean 'toy'"),
        (("ps", "--run", "none"), "sim2or up --run none"),
        (("jobs", "ls", "--run", "none"), "no such run"),
        (("jobs", "ls", "--state", "finished"), "valid: "),
    ],
)
def test_mistakes_get_one_clean_answer(place: Place, arguments: tuple[str, ...], words: str) -> None:
    """A mistake exits with status 2, a message with the valid choices, no traceback, and no run directory."""
    place.pipeline()
    answer = place.sim2or(*arguments)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (place.root / "runs").exists()


def test_leftovers_are_ended_only_when_they_are_proven_ours() -> None:
    """Another process that got the same id, or lacks the marker, is left alone."""
    environment = os.environ | {"SIM2OR_SUPERVISOR": "abc"}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    try:
        identity = until(lambda: identify(process.pid, "abc"), "process")
        until(lambda: is_running(identity), "marker in the environment")
        wrong: list[Identity] = [
            identity.model_copy(update={"start_ticks": identity.start_ticks + 1}),
            identity.model_copy(update={"marker": "xyz"}),
            identity.model_copy(update={"boot": "another"}),
        ]
        assert not any(end_leftover(other) for other in wrong)
        assert process.poll() is None
        started_s = time.monotonic()
        assert end_leftover(identity)
        assert time.monotonic() - started_s < 5
        process.wait(timeout=5)
        assert gone(process.pid)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("text", "words"), [("sin=2", "did you mean 'sim'"), ("sim=-1", "'-1'"), ("sim", "sim=0")]
)
def test_scale_is_checked(text: str, words: str) -> None:
    """``--scale`` names the valid services and numbers."""
    with pytest.raises(ConfigError, match=words):
        scaled({"sim": 2}, [text])


def test_a_service_with_its_own_environment_starts_only_where_it_is_asked_for() -> None:
    """All services by default leave it out, a list or ``--scale`` brings it."""
    table = load_table()
    assert default_counts(table)["sim-isaaclab"] == 0
    assert default_counts(table, ["sim-isaaclab", "dataset"]) == {"sim-isaaclab": 1, "dataset": 1}
    assert scaled(default_counts(table), ["sim-isaaclab=1"])["sim-isaaclab"] == 1


def test_a_missing_environment_is_refused_before_anything_starts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the service, the interpreter that is missing and the command that makes it."""
    info = load_table().services["sim-isaaclab"]
    monkeypatch.setattr("sys.prefix", str(place.root / ".venv"))
    with pytest.raises(ConfigError, match=r"sim-isaaclab.*\.venv-isaac/bin/python.*run `make setup-isaac`"):
        interpreter(info)
    counts = {"sim-isaaclab": 1}
    supervisor = Supervisor(place.run_dir, load_table(), counts, Settings(run_dir=place.run_dir))
    with pytest.raises(ConfigError, match="make setup-isaac"):
        supervisor.run()
    assert not place.run_dir.exists()
