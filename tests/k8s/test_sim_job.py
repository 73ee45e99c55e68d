"""Parallel simulation: shards as pods, every episode exactly once, whatever happens to a pod."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, kill
from hypothesis import given, settings
from hypothesis import strategies as st
from sim2or.artifacts.answers import Answers
from sim2or.artifacts.mirrored import open_store
from sim2or.artifacts.store import Store
from sim2or.bus.memory import MemoryBus, MemoryEvents, MemoryJobs
from sim2or.cli.terminal import EXIT_ERROR, EXIT_INTERRUPTED
from sim2or.cluster.plan import Desk, Plan, PlannedStep, load_plan, plan_of
from sim2or.cluster.render import MAX_NAME, failure_rules, job_manifest, pipeline_manifests, pod_templates
from sim2or.errors import ConfigError, JobError, TransientError
from sim2or.exit_status import ExitStatus, status_of
from sim2or.pipeline import load_pipeline
from sim2or.runner import Runner
from sim2or.stages import Table, load_table
from sim2or.supervisor import CONFIG_EXIT
from sim2or_sim.collect import shard_range
from sim2or_toy.bench import gone, toy_environment, until
from tree import ROOT, of_kind, rendered

SWEEP = "components/sim-sweep"
DIGESTS = {"service_code": "c", "code": "c", "lock": "l"}

TOY_POD: dict[str, Any] = {
    "metadata": {"labels": {"app.kubernetes.io/name": "toy"}},
    "spec": {
        "containers": [
            {
                "name": "main",
                "image": "toy:1",
                "args": ["serve"],
                "env": [
                    {"name": "SIM2OR_STORE", "value": "/runs/store"},
                    {"name": "SIM2OR_RUN_DIR", "value": "/runs/services"},
                ],
                "volumeMounts": [{"name": "runs", "mountPath": "/runs"}],
            }
        ],
        "volumes": [{"name": "runs", "emptyDir": {}}],
    },
}
"""A pod of the toy service, with what an overlay's pods have that matters here."""

OVERLAY = [
    {"kind": "Namespace", "metadata": {"name": "sim2or"}},
    {"kind": "Deployment", "metadata": {"name": "toy"}, "spec": {"template": TOY_POD}},
]


TOY_STAGES: dict[str, Any] = {
    "name": "toy",
    "stages": [{"stage": "write", "shards": 2, "with": {"count": 4}}],
}


class Unseen:
    """A display that nobody looks at."""

    def show(self, states: object) -> None:
        """Shows nothing."""


@pytest.fixture
def toys(tmp_path: Path) -> Cluster:
    """A cluster that has the toy service."""
    (tmp_path / "flags").mkdir()
    environment = toy_environment()
    environment["PYTHONPATH"] += f":{Path(__file__).parent}"
    return Cluster(tmp_path, {"toy": "toy_pod"}, environment)


@pytest.fixture
def table() -> Table:
    """The stages with the toy's."""
    return load_table("sim2or_toy.plugin")


@settings(deadline=None)
@given(demos=st.integers(1, 5000), data=st.data())
def test_the_pods_of_any_job_cover_all_episodes_once(demos: int, data: st.DataObject) -> None:
    """For any number of episodes and shards, the Job's indexes divide them without rest or overlap."""
    shards = data.draw(st.integers(1, min(1000, demos)))
    plan = Plan(
        run="sweep", steps=(PlannedStep(id="collect", stage="collect", jobs=shards, spec={"demos": demos}),)
    )
    job = job_manifest(plan.steps[0], TOY_POD, run="sweep", plan="plan-sweep-0", space="sim2or")
    indexes = range(job["spec"]["completions"])
    episodes = [episode for index in indexes for episode in shard_range(demos, index, shards)]
    assert episodes == list(range(demos))
    assert job["spec"]["completionMode"] == "Indexed"
    assert 1 <= job["spec"]["parallelism"] <= shards


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 200), shards=st.integers(1, 64))
def test_every_shard_is_its_own_question(count: int, shards: int) -> None:
    """Shards have different keys and job ids, so that no answer stands for another shard's."""
    plan = Plan(
        run="r",
        steps=(PlannedStep(id="write", stage="write", jobs=shards, spec={"count": count}, **DIGESTS),),
    )
    desk = Desk(plan, load_table("sim2or_toy.plugin"), lambda key: None)
    jobs = [desk.job("write", shard) for shard in range(shards)]
    assert len({job.key for job in jobs}) == len({job.job_id for job in jobs}) == shards


@pytest.mark.usefixtures("kubectl")
def test_the_sweep_in_the_tree_covers_its_plan() -> None:
    """`completions` is the number of shards of the plan, whose step exists and is possible."""
    (job,) = of_kind(SWEEP, "Job")
    (plan_map,) = [m for m in of_kind(SWEEP, "ConfigMap") if m["metadata"]["name"].startswith("sim-sweep")]
    plan = Plan.model_validate_json(json.dumps(yaml.safe_load(plan_map["data"]["plan.yaml"])))
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args == ["shard", "--plan", "/plan/plan.yaml", "--step", plan.steps[0].id]
    assert job["spec"]["completions"] == plan.steps[0].jobs
    asked = Desk(plan, load_table(), lambda key: None).job("collect", plan.steps[0].jobs - 1)
    assert asked.spec["demos"] == 260


@pytest.mark.usefixtures("kubectl")
def test_a_step_in_isaac_lab_is_a_job_of_its_pods() -> None:
    """With ``engine: isaaclab`` a step's Job has Isaac Lab's image; without that component it is refused."""
    plan = plan_of(
        load_pipeline(ROOT.parent / "pipelines" / "isaaclab.yaml", load_table()), load_table(), run="r"
    )
    objects = rendered("components/isaaclab")
    jobs = [
        m for m in pipeline_manifests(plan, load_table(), objects, steps=["collect"]) if m["kind"] == "Job"
    ]
    (container,) = jobs[0]["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("sim2or/sim-isaaclab:")
    assert container["args"][:1] + container["args"][-1:] == ["shard", "collect"]
    with pytest.raises(ConfigError, match="no pods of 'sim-isaaclab'"):
        pipeline_manifests(plan, load_table(), rendered("overlays/spark"), steps=["collect"])


@pytest.mark.usefixtures("kubectl")
def test_the_sweep_is_what_render_writes(tmp_path: Path) -> None:
    """Where the tree's Job and the rendered one overlap, they are the same."""
    (job,) = of_kind(SWEEP, "Job")
    plan = load_plan(ROOT / "components/sim-sweep/plan.yaml")
    template = pod_templates(rendered("overlays/spark"))["sim"]
    made = job_manifest(plan.steps[0], template, run=plan.run, plan="x", space="sim2or")
    for key in set(made["spec"]) - {"template"}:
        assert made["spec"][key] == job["spec"][key], key
    ours, theirs = made["spec"]["template"]["spec"], job["spec"]["template"]["spec"]
    assert _known(ours["volumes"]) == _known(theirs["volumes"])
    assert ours["containers"][0] | {"args": 0} == theirs["containers"][0] | {"args": 0}
    assert {k: v for k, v in ours.items() if k not in ("volumes", "containers")} == {
        k: v for k, v in theirs.items() if k not in ("volumes", "containers")
    }


def test_the_failure_policy_knows_our_exit_statuses() -> None:
    """Disruptions and interruptions count as no failure, permanent failures end the shard, others count."""
    rules = failure_rules()
    assert rules[0] == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    actions = {code: rule["action"] for rule in rules[1:] for code in rule["onExitCodes"]["values"]}
    assert actions == {
        ExitStatus.CONFIG: "FailIndex",
        ExitStatus.PERMANENT: "FailIndex",
        ExitStatus.INTERRUPTED: "Ignore",
    }
    for rule in rules[1:]:
        values = rule["onExitCodes"]["values"]
        assert values == sorted(set(values))
        assert 0 not in values, "Kubernetes refuses 0 with the operator In"


def test_exit_statuses_are_the_same_everywhere() -> None:
    """The command line and the supervisor end, and understand ends, with the numbers of the one table."""
    assert (EXIT_ERROR, EXIT_INTERRUPTED, CONFIG_EXIT) == (
        ExitStatus.CONFIG,
        ExitStatus.INTERRUPTED,
        ExitStatus.CONFIG,
    )
    assert status_of(ConfigError("x")) is ExitStatus.CONFIG
    assert status_of(TransientError("x")) is ExitStatus.TRANSIENT
    assert status_of(JobError("x")) is ExitStatus.PERMANENT


def test_a_robot_is_not_started_again_by_itself() -> None:
    """A deployment that failed or was disturbed stays so: its Job tries once, without exceptions."""
    plan = Plan(run="r", steps=(PlannedStep(id="deploy", stage="deploy"),))
    job = job_manifest(plan.steps[0], TOY_POD, run="r", plan="plan-r-0", space="sim2or")
    assert job["spec"]["backoffLimitPerIndex"] == 0
    assert "podFailurePolicy" not in job["spec"]


def test_names_fit_kubernetes() -> None:
    """A long run and step still give names whose pods' names are legal."""
    plan = Plan(run="a" * 63, steps=(PlannedStep(id="b" * 63, stage="write", jobs=1000),))
    job = job_manifest(plan.steps[0], TOY_POD, run=plan.run, plan="plan-aaa-12345678", space="sim2or")
    assert len(job["metadata"]["name"]) <= MAX_NAME
    other = job_manifest(plan.steps[0], TOY_POD, run=plan.run, plan="plan-aaa-87654321", space="sim2or")
    assert other["metadata"]["name"] != job["metadata"]["name"], (
        "a Job cannot be changed: another one is made"
    )


@pytest.mark.faults("F1")
def test_three_pods_and_one_that_is_killed(toys: Cluster, table: Table) -> None:
    """A pod that is killed in the middle is started again and goes on; no number is lost or doubled."""
    jobs = _jobs(toys, table, shards=3, count=9, pause_s=0.1)

    def disturb(index: int, process: subprocess.Popen[bytes]) -> None:
        if index == 1:
            until(lambda: list((toys.root / "flags").glob("wrote-1-*")), "first number of shard 1")
            kill(process)

    assert toys.run(jobs["write"], disturb) == set()
    assert [status for _, index, status in toys.ended if index == 1] == [-9, 0]
    assert toys.run(jobs["join"]) == set()
    numbers = [path.stem for record in _answers(toys, "write") for path in _files(toys, record, "numbers")]
    assert sorted(map(int, numbers)) == list(range(9))
    (joined,) = _answers(toys, "join")
    assert joined.result.summary == {"sum": sum(range(9))}
    wrote = Counter(path.name.split("-")[1] for path in (toys.root / "flags").glob("wrote-*"))
    assert wrote["1"] == 1, "what the killed pod had written was inherited"


def test_pods_with_nothing_but_a_mirror_between_them(toys: Cluster, table: Table) -> None:
    """With stores of their own, pods find one another's outputs and answers in the object store."""
    toys.private = True
    toys.variables["SIM2OR_MIRROR"] = (toys.root / "bucket").as_uri()
    (toys.root / "bucket").mkdir()
    jobs = _jobs(toys, table, shards=2, count=5)
    assert toys.run(jobs["write"]) == set()
    assert toys.run(jobs["join"]) == set()
    store = open_store(toys.root / "looker", toys.variables["SIM2OR_MIRROR"])
    desk = Desk(load_plan(toys.root / "plan.json"), table, Answers(store).get)
    assert desk.answer("join", 0).result.summary == {"sum": sum(range(5))}
    marks = sorted(path.name for path in (toys.root / "flags").iterdir())
    assert toys.run(jobs["write"]) == set()
    assert sorted(path.name for path in (toys.root / "flags").iterdir()) == marks


def test_pods_that_are_run_again_find_their_answers(toys: Cluster, table: Table) -> None:
    """A Job that is applied again ends at once and changes nothing."""
    jobs = _jobs(toys, table, shards=2, count=4)
    toys.run(jobs["write"])
    before = [record.model_dump() for record in _answers(toys, "write")]
    marks = sorted(path.name for path in (toys.root / "flags").iterdir())
    assert toys.run(jobs["write"]) == set()
    assert [record.model_dump() for record in _answers(toys, "write")] == before
    assert sorted(path.name for path in (toys.root / "flags").iterdir()) == marks


@pytest.mark.faults("F12")
def test_two_pods_of_one_shard_agree(toys: Cluster, table: Table) -> None:
    """Two pods that answer the same question at the same time leave one answer, with all its files."""
    jobs = _jobs(toys, table, shards=1, count=5, pause_s=0.05)
    both = [toys.start(jobs["write"], 0) for _ in range(2)]
    statuses = sorted(process.wait(60) for process in both)
    assert statuses[0] == ExitStatus.DONE
    (record,) = _answers(toys, "write")
    assert sorted(path.stem for path in _files(toys, record, "numbers")) == list("01234")


@pytest.mark.faults("F1")
@pytest.mark.parametrize(
    ("fault", "statuses"),
    [("permanent", [65]), ("bug", [65]), ("transient", [75, 0]), ("suicide", [75, 0])],
)
def test_a_pod_says_whether_another_is_worth_it(
    toys: Cluster, table: Table, fault: str, statuses: list[int]
) -> None:
    """What is permanent fails its index at once; what may pass, and a killed worker, is tried again."""
    jobs = _jobs(toys, table, shards=1, count=2, fault=fault)
    failed = toys.run(jobs["write"])
    assert [status for _, _, status in toys.ended] == statuses
    assert failed == ({0} if statuses[-1] else set())


@pytest.mark.faults("F19")
def test_an_interrupted_pod_hands_back_what_it_had(toys: Cluster, table: Table) -> None:
    """SIGTERM ends a pod with its own status, after its whole grace if need be, and the next one goes on."""
    toys.variables |= {"SIM2OR_LEASE_S": "1", "SIM2OR_GRACE_S": "20"}
    jobs = _jobs(toys, table, shards=1, count=40, pause_s=0.05, unwind_s=3)
    process = toys.start(jobs["write"], 0)
    until(lambda: list((toys.root / "flags").glob("wrote-2-*")), "third number")
    process.terminate()
    assert process.wait(30) == ExitStatus.INTERRUPTED
    assert list((toys.root / "flags").glob("unwound-0-*"))
    assert toys.run(jobs["write"]) == set()
    wrote = Counter(path.name.split("-")[1] for path in (toys.root / "flags").glob("wrote-*"))
    assert wrote["0"] == wrote["1"] == 1


@pytest.mark.faults("F1")
def test_no_child_outlives_its_pod(toys: Cluster, table: Table) -> None:
    """When a pod's process is killed, the worker that it had started ends too."""
    jobs = _jobs(toys, table, shards=1, count=100, pause_s=0.1)
    process = toys.start(jobs["write"], 0)
    (mark,) = until(lambda: list((toys.root / "flags").glob("started-0-*")), "start")
    kill(process)
    process.wait(10)
    until(lambda: gone(int(mark.name.split("-")[2])), "end of the worker", timeout_s=15)


def test_a_step_before_its_inputs_says_so(toys: Cluster, table: Table) -> None:
    """A pod whose inputs are not there names what is missing and ends as worth another try."""
    jobs = _jobs(toys, table, shards=2, count=2)
    assert toys.start(jobs["join"], 0).wait(30) == ExitStatus.TRANSIENT
    assert "write[0] has no result yet" in (toys.root / "pods.log").read_text()


def test_other_code_refuses_the_question(toys: Cluster, table: Table) -> None:
    """A pod whose image was built from other code than the plan's fails for good and says what to do."""
    jobs = _jobs(toys, table, shards=1, count=2, code="sha256:" + 64 * "0")
    assert toys.run(jobs["write"]) == {0}
    assert toys.ended[-1][2] == ExitStatus.PERMANENT
    assert "build all images from one commit" in (toys.root / "pods.log").read_text()


def test_an_answer_whose_files_are_gone_is_no_answer(toys: Cluster, table: Table) -> None:
    """When the store lost a file, the shard is run again and its answer replaced."""
    jobs = _jobs(toys, table, shards=1, count=3)
    toys.run(jobs["write"])
    for path in (toys.root / "runs/store/objects").rglob("*"):
        if path.is_file():
            path.unlink()
    assert _answers(toys, "write", whole=False) == []
    toys.run(jobs["write"])
    (record,) = _answers(toys, "write")
    assert len(list(_files(toys, record, "numbers"))) == 3


def test_keys_are_those_of_the_runner(tmp_path: Path, table: Table) -> None:
    """A pod asks under the key that the runner gives the same question: both find the same answers."""
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(TOY_STAGES))
    pipeline = load_pipeline(path, table)
    jobs = MemoryJobs(MemoryBus())
    runner = Runner(
        pipeline,
        jobs=jobs,
        events=MemoryEvents(MemoryBus()),
        store=Store(tmp_path / "store"),
        run_dir=tmp_path / "run",
        table=table,
        display=Unseen(),
    )
    runner._advance()
    desk = Desk(plan_of(pipeline, table, run="run"), table, lambda key: None)
    asked = [desk.job("write", shard) for shard in range(2)]
    assert [record.job.key for record in jobs.list()] == [job.key for job in asked]
    assert [record.job.code for record in jobs.list()] == [job.code for job in asked]


def test_a_plan_is_refused_with_words(tmp_path: Path) -> None:
    """A plan that is missing, wrong or lacks the step is named, with what is valid."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="sim2or k8s render"):
        load_plan(tmp_path / "plan.json")
    plan = Plan(run="r", steps=(PlannedStep(id="write", stage="write"),))
    with pytest.raises(ConfigError, match=r"'wirte'.*did you mean 'write'"):
        plan.step("wirte")


@pytest.mark.faults("F1")
@pytest.mark.usefixtures("kubectl")
def test_real_simulations_with_a_killed_pod(tmp_path: Path) -> None:
    """Three pods of the real simulator record five episodes, one is killed: each episode is there once."""
    table = load_table()
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: sweep\nrobot: so101\ntask: handover\nstages: [{stage: collect, shards: 3, with: {demos: 5}}]\n"
    )
    plan = plan_of(load_pipeline(path, table), table, run="sweep")
    manifests = pipeline_manifests(plan, table, rendered("overlays/spark"), steps=["collect"])
    node = Cluster(tmp_path, {"sim2or/sim": "sim2or_sim"})
    node.apply(manifests)

    def recorded() -> list[Path]:
        return list(tmp_path.rglob("episode_*.hdf5"))

    def disturb(index: int, process: subprocess.Popen[bytes]) -> None:
        if index == 2:
            until(lambda: recorded() or process.poll() is not None, "first episode", timeout_s=120)
            kill(process)

    assert node.run(manifests[-1], disturb) == set(), (tmp_path / "pods.log").read_text()[-2000:]
    assert Counter(index for _, index, _ in node.ended) == {0: 1, 1: 1, 2: 2}
    store = Store(tmp_path / "runs/store")
    desk = Desk(plan, table, Answers(store).get)
    episodes = [
        int(file.stem.split("_")[1])
        for shard in range(3)
        for file in store.checkout(desk.answer("collect", shard).result.outputs["episodes"]).glob("episode_*")
    ]
    assert sorted(episodes) == [0, 1, 2, 3, 4]


def _jobs(node: Cluster, table: Table, *, shards: int, code: str = "", **spec: object) -> dict[str, Any]:
    """The Jobs of a run of the toy service: numbers in shards, and their sum."""
    stages = [
        {"stage": "write", "shards": shards, "with": {"flags": str(node.root / "flags")} | spec},
        {"stage": "join", "inputs": {"numbers": "write"}},
    ]
    path = node.root / "toy.yaml"
    path.write_text(yaml.safe_dump({"name": "toy", "stages": stages}))
    plan = plan_of(load_pipeline(path, table), table, run="toy")
    if code:
        plan = plan.model_copy(
            update={"steps": tuple(s.model_copy(update={"service_code": code}) for s in plan.steps)}
        )
    (node.root / "plan.json").write_text(plan.model_dump_json())
    manifests = pipeline_manifests(plan, table, OVERLAY, steps=["write", "join"])
    node.apply(manifests)
    return {m["metadata"]["labels"]["sim2or.io/step"]: m for m in manifests if m["kind"] == "Job"}


def _answers(node: Cluster, step: str, *, whole: bool = True) -> list[Any]:
    """The answers to a step's shards, in order; those that are there."""
    plan = load_plan(node.root / "plan.json")
    desk = Desk(plan, load_table("sim2or_toy.plugin"), Answers(Store(node.root / "runs/store")).get)
    found = []
    for shard in range(plan.step(step).jobs):
        try:
            found.append(desk.answer(step, shard))
        except TransientError:
            assert not whole
    return found


def _files(node: Cluster, record: Any, role: str) -> Iterator[Path]:
    return Store(node.root / "runs/store").checkout(record.result.outputs[role]).glob("*.txt")


def _known(volumes: list[dict[str, Any]]) -> dict[str, Any]:
    return {v["name"]: v for v in volumes if v["name"] != "plan"}
