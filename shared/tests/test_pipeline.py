"""A pipeline is refused before any work starts, and the refusal says how to mend it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
from sim2or.cluster.plan import Desk, Plan, plan_of
from sim2or.errors import ConfigError
from sim2or.pipeline import Source, load_pipeline
from sim2or.stages import load_table

PIPELINES = Path(__file__).parents[2] / "pipelines"
GOOD = """\
name: small
seed: 4
stages:
  - stage: collect
    shards: 2
    with: {demos: 8}
  - stage: convert
    each: collect
    inputs: {episodes: collect}
  - stage: dataset
    inputs: {parts: convert}
  - stage: train
    inputs: {dataset: dataset}
    with: {}
  - stage: export
    inputs: {checkpoint: train, dataset: dataset}
  - id: trials
    stage: rollout
    inputs: {policy: export}
    with: {trials: 4}
  - stage: evaluate
    inputs: {trials: trials, model: export}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "small.yaml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_pipeline(path, load_table())
    return str(caught.value)


def test_a_good_pipeline_is_resolved(write) -> None:
    """Steps come in the order of their needs, with their jobs counted and their configuration complete."""
    pipeline = load_pipeline(write(GOOD), load_table())
    jobs = {step.id: step.jobs for step in pipeline.steps}
    assert jobs == {
        "collect": 2,
        "convert": 2,
        "dataset": 1,
        "train": 1,
        "export": 1,
        "trials": 1,
        "evaluate": 1,
    }
    collect = pipeline.steps[0]
    assert collect.spec["demos"] == 8
    assert collect.spec["robot"] == "so101"
    assert collect.spec["seed_list"] == "train"
    assert {"sim", "dataset", "trainer", "exporter", "evaluator", "policy"} == pipeline.services


STORED = f"""\
name: stored
stages:
  - stage: import
    inputs: {{recording: ["sha256:{"a" * 64}", "sha256:{"b" * 64}"]}}
  - stage: convert
    inputs: {{episodes: import}}
"""


def test_an_input_may_be_in_the_store_already(write) -> None:
    """An artifact named by its digest is an input of its own, also of a planned step; it needs no step."""
    pipeline, table = load_pipeline(write(STORED), load_table()), load_table()
    first = pipeline.steps[0]
    assert first.before == set()
    digests = tuple(f"sha256:{letter * 64}" for letter in "ab")
    assert first.inputs["recording"] == tuple(Source("", digest) for digest in digests)
    plan = Plan.model_validate_json(plan_of(pipeline, table, run="stored").model_dump_json())
    assert Desk(plan, table, lambda key: None).job("import", 0).inputs == {"recording": digests}
    one = STORED.replace("recording", "episodes").replace("stage: import", "stage: train")
    assert "takes one artifact" in refusal(write(one.replace("episodes:", "dataset:", 1)))
    assert "inputs.recording" in refusal(write(STORED.replace("sha256:a", "sha256:A")))


def test_a_configuration_chooses_the_service_that_answers(write) -> None:
    """With ``engine: isaaclab`` other workers answer, from a queue of their own; the stage keeps its name."""
    text = GOOD.replace("{demos: 8}", "{demos: 8, engine: isaaclab, num_envs: 4}")
    pipeline = load_pipeline(write(text), load_table())
    collect = pipeline.steps[0].info
    assert (collect.name, collect.service, collect.queue) == ("collect", "sim-isaaclab", "collect-isaaclab")
    assert pipeline.until("collect").services == {"sim-isaaclab"}
    assert {"sim", "sim-isaaclab"} < pipeline.services
    assert "unknown stage 'collect-isaaclab'" in refusal(
        write(GOOD.replace("stage: collect\n", "stage: collect-isaaclab\n", 1))
    )


def test_until_keeps_only_what_a_step_needs(write) -> None:
    """``--until`` takes an id or a stage's name, and cuts off what comes after."""
    pipeline = load_pipeline(write(GOOD), load_table())
    assert [step.id for step in pipeline.until("dataset").steps] == ["collect", "convert", "dataset"]
    assert pipeline.until("rollout").steps[-1].id == "trials"
    with pytest.raises(ConfigError, match=r"'trian'.*did you mean 'train'"):
        pipeline.until("trian")


BAD = {
    "unknown key": ("name: small", "nmae: x\nname: small", ["small.yaml:1", "nmae", "did you mean 'name'"]),
    "unknown step key": ("    shards: 2", "    shard: 2", ["small.yaml:5", "shard", "did you mean 'shards'"]),
    "unknown stage": (
        "- stage: collect",
        "- stage: colect",
        ["small.yaml:4", "'colect'", "did you mean 'collect'"],
    ),
    "unknown spec key": ("demos: 8", "demoz: 8", ["small.yaml:6", "demoz", "did you mean 'demos'"]),
    "negative number": ("demos: 8", "demos: -8", ["small.yaml:6", "demos", "-8", "greater than 0"]),
    "wrong choice": (
        "trials: 4}",
        "trials: 4, actor: chance}",
        ["actor", "'chance'", "'policy', 'expert', 'random' or 'replay'"],
    ),
    "unknown robot": ("seed: 4", "robot: so100", ["small.yaml:2", "robot", "'so100'", "so101"]),
    "unknown task": ("seed: 4", "task: handoff", ["small.yaml:2", "task", "'handoff'", "handover"]),
    "negative seed": ("seed: 4", "seed: -4", ["small.yaml:2", "seed", "-4"]),
    "unknown input": (
        "{parts: convert}",
        "{part: convert}",
        ["small.yaml:11", "inputs.part", "did you mean 'parts'"],
    ),
    "unknown step": ("{parts: convert}", "{parts: convrt}", ["'convrt'", "did you mean 'convert'"]),
    "missing input": (
        "    inputs: {parts: convert}\n",
        "",
        ["missing input 'parts'", "made here by convert"],
    ),
    "missing policy": ("    inputs: {policy: export}\n", "", ["missing input 'policy'", "actor: policy"]),
    "kinds that do not fit": ("{dataset: dataset}", "{dataset: collect}", ["episodes", "takes dataset"]),
    "several for one": ("{policy: export}", "{policy: [export, train]}", ["takes one artifact", "give 2"]),
    "same id twice": ("- stage: dataset", "- id: convert\n    stage: dataset", ["'convert' is used twice"]),
    "cannot be divided": ("- stage: train", "- stage: train\n    shards: 3", ["'train' cannot be divided"]),
    "each of no input": ("each: collect", "each: train", ["small.yaml:8", "'train' is none of its inputs"]),
    "zero shards": ("shards: 2", "shards: 0", ["small.yaml:5", "shards", "greater than or equal to 1"]),
    "not YAML": ("stages:", "stages: [", ["not YAML"]),
    "no steps": (GOOD[GOOD.index("stages:") :], "stages: []", ["stages", "at least 1"]),
    "more shards than work": (
        "    shards: 2\n    with: {demos: 8}",
        "    shards: 9\n    with: {demos: 8}",
        ["small.yaml:5", "shards", "demos: 8", "1…8"],
    ),
    "unknown list": ("{demos: 8}", "{demos: 8, seed_list: trian}", ["seed_list", "did you mean 'train'"]),
    "more than the list holds": (
        "trials: 4}",
        "trials: 4, offset: 99998}",
        ["small.yaml:20", "4 scenarios from offset 99998", "holds 100000"],
    ),
    "unknown task of a step": ("{demos: 8}", "{demos: 8, task: handoff}", ["with.task", "'handoff'"]),
    "a low confidence": (
        "model: export}\n",
        "model: export}\n    with: {confidence: 0.01}\n",
        ["small.yaml:23", "confidence", "0.9", "0.01"],
    ),
    "a policy that cannot be a name": ("    with: {}", "    with: {policy: My ACT}", ["policy", "'My ACT'"]),
    "a verdict about another list": (
        "model: export}\n",
        "model: export}\n    with: {scenarios: validation}\n",
        ["small.yaml:23", "scenarios", "'validation'", "'trials' has list: 'heldout'"],
    ),
    "a verdict about more trials": (
        "model: export}\n",
        "model: export}\n    with: {trials: 200}\n",
        ["small.yaml:23", "trials", "200", "the rollouts of 'export' make 4"],
    ),
    "a verdict about more models": (
        "model: export}\n",
        "model: export}\n    with: {models: 3}\n",
        ["small.yaml:23", "models", "3, but 1 are given: export"],
    ),
    "the wrong actor": (
        "trials: 4}",
        "trials: 4, actor: expert}",
        ["inputs.trials", "'trials' has actor: expert", "valid: policy"],
    ),
    "trials of another policy": (
        "{policy: export}",
        "{policy: train}",
        ["inputs.trials", "rolls out 'train'", "valid: export"],
    ),
    "a gap about another list": (
        "model: export}\n",
        "model: export}\n  - {stage: gap, inputs: {reference: trials, other: trials}}\n",
        ["scenarios", "'validation'", "reference 'trials' has list: 'heldout'"],
    ),
    "a gap between two rooms": (
        "model: export}\n",
        "model: export}\n  - {id: there, stage: rollout, with: {trials: 4, actor: expert, room: theatre}}\n"
        "  - {stage: gap, inputs: {reference: trials, other: there}, with: {scenarios: heldout}}\n",
        ["inputs.other", "'there' has room: 'theatre', but 'trials' has room: ''"],
    ),
    "missing key": ("name: small\n", "", ["name", "missing"]),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_pipelines_are_refused(write, case: str) -> None:
    """The refusal names the file, the line, the key, the value and what is valid."""
    old, new, expected = BAD[case]
    assert old in GOOD
    message = refusal(write(GOOD.replace(old, new, 1)))
    assert "small.yaml" in message
    for words in expected:
        assert words in message


def test_all_mistakes_are_told_at_once(write) -> None:
    """Two mistakes give two lines."""
    text = GOOD.replace("demos: 8", "demos: -8").replace("{parts: convert}", "{part: convert}")
    assert len([line for line in refusal(write(text)).splitlines() if "stages[" in line]) == 3


def test_circles_are_refused(write) -> None:
    """Steps that wait for each other are named in order."""
    message = refusal(
        write(
            "name: x\nstages:\n- {stage: export, inputs: {checkpoint: train}}\n"
            "- {stage: train, inputs: {dataset: export}}"
        )
    )
    assert "takes dataset" in message
    report = (
        "name: x\nstages:\n- {id: a, stage: report, inputs: {x: b}}\n- {id: b, stage: report, inputs: {x: a}}"
    )
    assert "wait for each other" in refusal(write(report))


def test_missing_file_names_its_neighbours(write) -> None:
    """A mistyped file name is answered with the names that exist."""
    path = write(GOOD)
    assert "did you mean 'small.yaml'" in refusal(path.with_name("smal.yaml"))
    assert "no directory" in refusal(path.parent / "none" / "small.yaml")


@pytest.mark.parametrize("text", ["", "- a", "3"])
def test_a_pipeline_is_a_mapping(write, text: str) -> None:
    """Anything else is refused in a sentence."""
    assert "a pipeline is a mapping" in refusal(write(text))


def test_a_task_for_another_robot_is_refused(write, tmp_path: Path) -> None:
    """Robot and task of a pipeline must fit each other, whichever profiles they are."""
    robot = tmp_path / "so102.yaml"
    known = (files("sim2or.contracts.profiles") / "so101.yaml").read_text()
    robot.write_text(known.replace("so101", "so102"))
    message = refusal(write(GOOD.replace("seed: 4", f"robot: {robot}")))
    assert "small.yaml" in message
    assert "task 'handover' is for the robot 'so101', not 'so102'" in message


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_pipelines_are_valid(path: Path) -> None:
    """Every pipeline that we ship passes its own checks."""
    assert load_pipeline(path, load_table()).steps
