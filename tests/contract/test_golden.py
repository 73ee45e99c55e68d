"""Golden samples: today's code reads every version of every message that was ever made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from sim2or.bus.events import STREAM, Events
from sim2or.bus.jobs import Jobs
from sim2or.errors import ConfigError
from sim2or.messages.catalogue.golden import (
    Golden,
    add_missing,
    golden_of,
    golden_path,
    missing,
    plain,
    read,
    read_all,
)
from sim2or.messages.catalogue.inventory import messages
from sim2or.messages.catalogue.samples import sample
from sim2or.messages.catalogue.schema import version_of
from sim2or.messages.codec import decode
from sim2or.messages.envelope import Envelope
from sim2or.messages.message import Message

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden")
SAMPLES = {f"{path.parent.name} {path.stem}": golden for path, golden in read_all(GOLDEN).items()}
MESSAGES = messages()
FIELDS = {"job": "job", "progress": "progress", "job_result": "result", "job_failure": "error"}
"""Message type to the field of a job's record that holds it."""

JOB = '{"stage": "train", "key": "k"}'


def holds(expected: Any, found: Any) -> bool:
    """Whether everything that was said is found again; a newer version may say more."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(
            name in found and holds(value, found[name]) for name, value in expected.items()
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(expected) == len(found) and all(map(holds, expected, found))
    return type(expected) is type(found) and expected == found


def parsed(golden: Golden, redis: Redis) -> Message | None:
    """What today's code reads: the codec, the queue's or the event stream's parser."""
    kind = MESSAGES[golden.name]
    if golden.wire == "frames":
        return decode([golden.name.encode(), json.dumps(golden.content).encode(), *golden.frames], kind)[1]
    if golden.name == "event":
        redis.xadd(STREAM, golden.content["fields"], id=golden.content["id"])
        return Events(redis).read()[0]
    if golden.name == "job_record":
        redis.hset(f"job:{golden.content['id']}", mapping=golden.content["fields"])
        return Jobs(redis).get(golden.content["id"])
    text = json.dumps(golden.content)
    if kind is Envelope:
        return Envelope.model_validate_json(text, extra="ignore")
    fields = {"job": JOB, "state": "done", FIELDS[golden.name]: text}
    redis.hset("job:one", mapping=fields)
    found: Message | None = getattr(Jobs(redis).get("one"), FIELDS[golden.name])
    return found


@pytest.mark.parametrize("golden", SAMPLES.values(), ids=SAMPLES)
def test_every_version_is_read(golden: Golden, redis: Redis) -> None:
    """A sample on its road, through today's parser, still means what it meant when it was made."""
    message = parsed(golden, redis)
    assert message is not None
    found = json.loads(json.dumps(plain(message)))
    assert holds(golden.values, found), (golden.values, found)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_current_version_has_its_sample(name: str) -> None:
    """A message type whose version has no sample is named with the command that makes one."""
    assert list(missing(GOLDEN, {name: MESSAGES[name]})) == []


@pytest.mark.parametrize("name", MESSAGES)
def test_a_current_sample_says_everything(name: str) -> None:
    """The sample of the current version has every field of the message, and all its arrays."""
    golden = read(golden_path(GOLDEN, name, version_of(MESSAGES[name])))
    assert golden.values.keys() == MESSAGES[name].model_fields.keys()
    arrays = [
        value for value in _leaves(sample(MESSAGES[name]).model_dump()) if isinstance(value, np.ndarray)
    ]
    assert sorted(map(len, golden.frames)) == sorted(array.nbytes for array in arrays)


def test_samples_are_added_and_never_overwritten(tmp_path: Path) -> None:
    """What is missing is written once; a sample that exists is left alone, whatever it says."""
    added = add_missing(tmp_path)
    assert len(added) == len(MESSAGES)
    assert read_all(tmp_path) == {path: golden_of(MESSAGES[path.parent.name]) for path in sorted(added)}
    kept = golden_path(tmp_path, "job", version_of(MESSAGES["job"]))
    kept.write_text("kept")
    golden_path(tmp_path, "event", version_of(MESSAGES["event"])).unlink()
    assert [path.parent.name for path in add_missing(tmp_path)] == ["event"]
    assert kept.read_text() == "kept"


def test_a_damaged_sample_is_refused(tmp_path: Path) -> None:
    """A sample whose frames are cut, or that is no sample, is named."""
    add_missing(tmp_path)
    path = golden_path(tmp_path, "robot_state", version_of(MESSAGES["robot_state"]))
    path.with_suffix(".bin").write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"robot_state/.*\.bin: 3 bytes; 84 are announced"):
        read(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no golden sample"):
        read(path)


def test_no_sample_was_ever_edited() -> None:
    """The history of the repository adds samples; it neither changes nor removes one."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git history here")
    log = ["git", "log", "--format=", "--name-status", "--diff-filter=MDT"]
    now = ["git", "diff", "HEAD", "--name-status", "--diff-filter=MDT"]
    for command in (log, now):
        ran = subprocess.run(
            [*command, "--", "tests/contract/golden"], cwd=ROOT, capture_output=True, timeout=60, check=False
        )
        if ran.returncode:
            pytest.skip(f"git: {ran.stderr.decode().strip()}")
        assert ran.stdout.decode().split() == []


def _leaves(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return [value] if inner is None else [leaf for one in inner for leaf in _leaves(one)]
