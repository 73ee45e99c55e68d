"""The whole product in containers: what is killed in the middle loses nothing and doubles nothing."""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from composed import HERE, ROOT, Composed, until
from docker import DockerClient
from docker.models.containers import Container
from sim2or.contracts.scenario import scenario_list
from sim2or.contracts.task import load_task
from sim2or.messages.event import Event
from sim2or.messages.job import JobRecord

PIPELINE = yaml.safe_load((HERE / "kills.yaml").read_text())
WITH = {stage.get("id", stage["stage"]): stage.get("with", {}) for stage in PIPELINE["stages"]}
DEMOS = WITH["collect"]["demos"]
CHECKPOINT_STEPS = WITH["train"]["checkpoint_every_steps"]
BUILT = [
    name
    for name, service in yaml.safe_load((ROOT / "compose" / "compose.yaml").read_text())["services"].items()
    if "build" in service
]
FILES = ("compose/compose.yaml", "tests/compose/overlay.yaml")
SIMS = 3
LOOPBACK = ("127.0.0.1:", "::1:")

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Account:
    """What there is at a moment."""

    jobs: list[JobRecord]
    events: list[Event]
    digests: set[str]
    damaged: list[str]

    def of(self, stage: str) -> list[JobRecord]:
        """A stage's jobs by shard."""
        return sorted((job for job in self.jobs if job.job.stage == stage), key=lambda job: job.job.shard)

    def happened(self, kind: str) -> Counter[str]:
        """How often an event happened to each job."""
        return Counter(event.job_id for event in self.events if event.kind == kind)


@dataclass(frozen=True)
class Journey:
    """A finished pipeline and what was done to it.

    Attributes:
        interrupted: The demonstrations' job whose simulator was killed, as it was just before.
        frozen: Another, whose simulator was frozen until somebody else had the job.
        training: The training's job, as it was just before its container was killed.
        redis_restarts: How often the engine brought Redis back by itself.
        account: What there was at the end.
    """

    interrupted: JobRecord
    frozen: JobRecord
    training: JobRecord
    redis_restarts: int
    account: Account


def take_account(composed: Composed) -> Account:
    """Reads bus and store."""
    found = composed.observe("artifacts")
    return Account(composed.jobs(), composed.events(), set(found["digests"]), found["damaged"])


@pytest.fixture(scope="module")
def composed(engine: DockerClient, request: pytest.FixtureRequest) -> Iterator[Composed]:
    """The stack, built and up, with three simulators and the pipeline under way."""
    made = Composed(
        engine, "s2otest", FILES, SIM2OR_TAG="test", PIPELINE="tests/compose/kills.yaml", COMPOSE_ANSI="never"
    )
    made.down("--volumes")
    for service in BUILT:
        with made.phases.phase(f"build {service}"):
            made.compose("build", "--quiet", service, timeout_s=1200)
    with made.phases.phase(f"sim2or up --docker --scale sim={SIMS}"):
        made.sim2or("up", "--docker", "--scale", f"sim={SIMS}", timeout_s=300)
    failed = request.session.testsfailed
    yield made
    if request.session.testsfailed > failed:
        print(made.last_words(), flush=True)
    with made.phases.phase("down"):
        made.down("--volumes")
    print(made.phases.table(), flush=True)


@pytest.fixture(scope="module")
def journey(composed: Composed) -> Journey:
    """The pipeline's run to its end through kills, and the freezing of a simulator."""
    phase, say = composed.phases.phase, composed.phases.say
    with phase("collect until a simulator is killed"):
        interrupted = composed.busy("collect", timeout_s=120)
        killed = composed.owner(interrupted)
        killed.kill()
        say(f"killed {killed.name}; it stays away")
    with phase("collect until the job of a frozen simulator is another's"):
        frozen = composed.busy("collect", timeout_s=120)
        with paused(composed.owner(frozen)):
            until(lambda: taken_over(composed, frozen), "other owner of the job", timeout_s=180)
        say("it wakes up, and finds that the job is not its own any more")
    with phase("collect, convert, merge and train until the trainer is killed"):
        training = composed.busy("train", beyond=CHECKPOINT_STEPS, timeout_s=240)
        composed.owner(training).kill()
        revive(composed, "trainer")
    with phase("train until Redis is killed"):
        composed.busy("train", beyond=CHECKPOINT_STEPS, attempt=2, timeout_s=120)
        composed.container("redis").kill()
        revive(composed, "redis")
    with phase("train, export and rollout until Redis crashes"):
        composed.busy("rollout", timeout_s=240)
        crash(composed.container("redis"))
        restarts = until(
            lambda: restart_count(composed, "redis"), "restart of Redis by the engine", timeout_s=30
        )
        say("Redis is back by its restart policy")
    with phase("rollout, evaluate, deploy and report"):
        composed.finish(timeout_s=300)
    return Journey(interrupted, frozen, training, restarts, take_account(composed))


def revive(composed: Composed, service: str) -> None:
    """Starts a killed container again, as a person would: the engine takes its own ``kill`` for a wish."""
    state = composed.state(service)
    assert (state["Status"], state["ExitCode"]) == ("exited", 137), state
    composed.container(service).start()
    composed.phases.say(f"killed {service}, and started it again")


@contextlib.contextmanager
def paused(container: Container) -> Iterator[None]:
    """Freezes a container's processes for a while."""
    container.pause()
    try:
        yield
    finally:
        container.unpause()


def taken_over(composed: Composed, before: JobRecord) -> bool:
    """Whether another worker has a job, or had it."""
    record = composed.job(before.job_id)
    return record is not None and record.attempts > before.attempts and record.owner != before.owner


def crash(container: Container) -> None:
    """Kills a container's processes from inside, which the engine takes for a crash."""
    container.exec_run(["sh", "-c", "kill -9 -1"])


def restart_count(composed: Composed, service: str) -> int:
    """How often the engine started a service's container again, once it runs."""
    container = composed.container(service)
    return int(container.attrs["RestartCount"]) if container.status == "running" else 0


def test_every_container_is_locked_down(composed: Composed) -> None:
    """Nobody is root or can write its image, everybody is limited, and what is published is local."""
    for container, state in zip(composed.stack.containers(), composed.stack.states(), strict=True):
        config, host = container.attrs["Config"], container.attrs["HostConfig"]
        assert config["User"] == "10001:10001", state.name
        assert host["ReadonlyRootfs"], state.name
        assert host["CapDrop"] == ["ALL"], state.name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], state.name
        assert host["Memory"] > 0, state.name
        assert host["PidsLimit"] > 0, state.name
        assert not host["Privileged"], state.name
        assert not [one for one in container.attrs["Mounts"] if "docker" in one["Destination"]], state.name
        assert all(address.startswith(LOOPBACK) for address in state.published), state
        if state.status == "running" and state.service != "pipeline":
            answer = container.exec_run(["sh", "-c", "id -u; touch /probe || echo refused"], demux=True)
            assert answer.output[0].split() == [b"10001", b"refused"], state.name


def test_no_container_holds_anothers_secret(composed: Composed) -> None:
    """Secret keys and passwords, compared by content, lie in the containers of one service each."""
    holders: dict[str, set[str]] = defaultdict(set)
    find = r"find /keys -type f \( -name '*.key_secret' -o -name '*.password' \) -exec sha256sum {} +"
    for container in composed.stack.containers():
        service = container.labels["com.docker.compose.service"]
        if container.status == "running" and service != "pipeline":
            for line in container.exec_run(["sh", "-c", find]).output.decode().splitlines():
                holders[line.split()[0]].add(service)
    assert set().union(*holders.values()) >= {"redis", "sim", "trainer", "bridge", "policy", "robot"}
    assert {digest: names for digest, names in holders.items() if len(names) > 1} == {}


def test_the_pipeline_completes_and_every_job_is_done_once(journey: Journey) -> None:
    """Every job is done, and the events tell of one ``job.done`` for each, no more and no less."""
    account = journey.account
    assert {job.job.name: job.state for job in account.jobs if job.state != "done"} == {}
    assert account.happened("job.done") == {job.job_id: 1 for job in account.jobs}
    assert account.damaged == []


def test_every_demonstration_is_there_exactly_once(composed: Composed, journey: Journey) -> None:
    """The seeds in the episodes, and in the data set, are the first scenarios of the list, each once."""
    expected = [scenario.seed for scenario in scenario_list(load_task("handover"), "train", DEMOS, 0)]
    collected = [
        entry["seed"]
        for job in journey.account.of("collect")
        for entry in json_lines(composed, output(job, "episodes"), "index.jsonl")
    ]
    assert collected == expected
    (merged,) = journey.account.of("dataset")
    (card,) = json_lines(composed, output(merged, "dataset"), "meta/sim2or.json", whole=True)
    kept, dropped = ([one["seed"] for one in card[key]] for key in ("episodes", "dropped"))
    assert sorted(kept + dropped) == sorted(expected)
    assert len(kept) > 0.9 * DEMOS


def test_jobs_of_lost_simulators_were_taken_over(journey: Journey) -> None:
    """Another simulator finished what the killed one, and the frozen one, had begun."""
    for before in (journey.interrupted, journey.frozen):
        (after,) = [job for job in journey.account.jobs if job.job_id == before.job_id]
        assert after.attempts > before.attempts
        assert after.owner != before.owner


def test_the_killed_training_went_on_from_a_checkpoint(journey: Journey) -> None:
    """The trainer's last attempt began at a checkpoint, not before the one that was there at the kill."""
    (after,) = [job for job in journey.account.jobs if job.job_id == journey.training.job_id]
    assert after.attempts >= 2
    assert after.result is not None
    assert journey.training.progress is not None
    resumed = after.result.summary["resumed_from_step"]
    assert resumed >= journey.training.progress.done - CHECKPOINT_STEPS
    print(f"killed after {journey.training.progress.done:g} steps, resumed from {resumed}")


def test_redis_comes_back_by_itself_from_a_crash(journey: Journey) -> None:
    """The restart policy brings a crashed Redis back, without anybody's help."""
    assert journey.redis_restarts >= 1


def test_down_and_up_again_finds_everything(composed: Composed, journey: Journey) -> None:
    """After ``down`` and ``up`` the artifacts are there, byte by byte, and nothing runs again."""
    with composed.phases.phase("down, up again, and the pipeline that finds everything"):
        composed.down()
        composed.sim2or("up", "--docker", "--scale", f"sim={SIMS}", timeout_s=300)
        composed.finish(timeout_s=120)
    after = take_account(composed)
    assert after.digests == journey.account.digests
    assert after.damaged == []
    for kind in ("job.submitted", "job.started", "job.done"):
        assert after.happened(kind) == journey.account.happened(kind), kind
    log = composed.container("pipeline").logs().decode()
    assert "report: " in log
    assert "sim-3" in composed.sim2or("ps", "--docker")
    assert "redis-1" in composed.sim2or("stats", "--docker")
    assert "report: " in composed.sim2or("logs", "--docker", "pipeline")


def output(job: JobRecord, role: str) -> str:
    """The digest that a done job made."""
    assert job.result is not None
    return job.result.outputs[role]


def json_lines(composed: Composed, digest: str, name: str, *, whole: bool = False) -> list[Any]:
    """The JSON of each line of an artifact's file, or of the whole file."""
    lines = composed.observe("lines", digest, name)
    return [json.loads("\n".join(lines))] if whole else [json.loads(line) for line in lines]
