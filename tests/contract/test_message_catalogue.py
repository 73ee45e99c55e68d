"""The generated catalogue: schemas, AsyncAPI and page are right, current and the same every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from sim2or.cli.main import app
from sim2or.errors import ConfigError
from sim2or.messages.catalogue.asyncapi import answers, asyncapi, example
from sim2or.messages.catalogue.documents import documents, incompatible, outdated, write
from sim2or.messages.catalogue.golden import Golden, read_all
from sim2or.messages.catalogue.inventory import attributes, declared, messages, paragraphs, parts
from sim2or.messages.catalogue.page import page
from sim2or.messages.catalogue.schema import Schema, committed, schema_of, schema_path, version_of
from sim2or.messages.message import Message
from sim2or.messages.robot_state import RobotState
from sim2or.messages.topics import TOPICS, Topic
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
DOCUMENTS = ROOT / "docs" / "messages"
SAMPLES = {
    f"{path.parent.name} {path.stem}": golden
    for path, golden in read_all(ROOT / "tests/contract/golden").items()
}
MESSAGES = messages()
COMMITTED = [(name, version) for name in MESSAGES for version in committed(DOCUMENTS, name)]
DOCUMENT = asyncapi(TOPICS)

KEY = re.compile(r"^[A-Za-z0-9_\-]+$")
"""Source: AsyncAPI 3.0.0, Components Object: names of its members."""


def schema(name: str, version: Any = None) -> Schema:
    return committed(DOCUMENTS, name)[version or version_of(MESSAGES[name])]


def test_the_committed_catalogue_is_current() -> None:
    """Every file under docs/messages is what the table and the classes say now; `make messages` mends it."""
    assert [*incompatible(DOCUMENTS), *outdated(DOCUMENTS)] == []


def test_this_repository_passes_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sim2or bus check` finds nothing here."""
    monkeypatch.chdir(ROOT)
    checked = CliRunner().invoke(app, ["bus", "check"])
    assert checked.exit_code == 0, checked.output


def test_the_catalogue_is_the_same_every_time(tmp_path: Path) -> None:
    """Two processes whose hashes differ write the same bytes."""
    texts = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", "from sim2or.cli.main import app; app()", "bus", "docs"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([*command, str(tmp_path / seed)], env=environment, check=True, timeout=60)
        files = sorted((tmp_path / seed).rglob("*.*"))
        texts.append({path.relative_to(tmp_path / seed): path.read_bytes() for path in files})
    assert texts[0] == texts[1]
    assert len(texts[0]) == len(MESSAGES) + 2


def test_every_message_is_in_the_catalogue() -> None:
    """What the modules of messages declare, the envelope included, is in the table or inside another."""
    assert set(declared()) == set(MESSAGES)
    assert {kind.type_name for kind in parts(MESSAGES["job_record"])} == {
        "job",
        "progress",
        "job_result",
        "job_failure",
    }


@pytest.mark.parametrize(("name", "version"), COMMITTED, ids=str)
def test_a_schema_is_a_schema(name: str, version: Any) -> None:
    """Every committed schema is valid JSON Schema 2020-12 and names its message and version."""
    found = schema(name, version)
    Draft202012Validator.check_schema(found)
    assert (found["x-type"], found["x-version"]) == (name, str(version))


@pytest.mark.parametrize("golden", SAMPLES.values(), ids=SAMPLES)
def test_a_golden_sample_fits_the_schema_of_its_version(golden: Golden) -> None:
    """What was on the wire is what the committed schema of that version describes."""
    content = golden.content.get("payload", golden.content) if golden.wire != "redis" else golden.values
    Draft202012Validator(schema(golden.name, golden.version)).validate(content)
    if golden.wire == "frames":
        Draft202012Validator(schema("envelope")).validate(golden.content["envelope"])


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        ("robot_state", {"seq": -1}, "-1 is less than the minimum of 0"),
        ("robot_state", {"speed": 1}, "'speed' was unexpected"),
        (
            "robot_state",
            {"position_rad": {"frame": 0, "dtype": "float64", "shape": [6]}},
            "'float32' was expected",
        ),
        ("robot_state", {"position_rad": None}, "is not of type 'object'"),
        ("job", {"stage": "No Stage"}, "does not match"),
        ("policy_error", {"code": "tired"}, "is not one of"),
        ("joint_command", {"torque_scale": 1.5}, "is greater than the maximum of 1"),
    ],
)
def test_a_wrong_message_does_not_fit_its_schema(name: str, edit: dict[str, Any], said: str) -> None:
    """The schemas refuse what the messages refuse."""
    with pytest.raises(ValidationError, match=said):
        Draft202012Validator(schema(name)).validate(example(MESSAGES[name]) | edit)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_schema_describes_every_field(name: str) -> None:
    """Each field has the sentence that the message's docstring says about it."""
    found = schema_of(MESSAGES[name])
    told = attributes(MESSAGES[name])
    assert told.keys() == found["properties"].keys()
    assert all(field["description"].startswith(told[key]) for key, field in found["properties"].items())
    assert found["description"].startswith(paragraphs(MESSAGES[name])[0])


# No AsyncAPI validator is among the locked packages: what the specification requires of the objects that we
# use is checked here, and every reference is followed.


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "$ref")
        for value in node.values():
            yield from references(value)
    if isinstance(node, list):
        for value in node:
            yield from references(value)


def resolved(reference: str) -> Any:
    """What a reference points to, here or in a file beside the document."""
    file, _, pointer = reference.partition("#")
    node = json.loads((DOCUMENTS / file).read_text()) if file else DOCUMENT
    for part in filter(None, pointer.split("/")):
        node = node[part]
    return node


def test_the_committed_document_is_ours() -> None:
    """The YAML file holds what was generated."""
    assert yaml.safe_load((DOCUMENTS / "asyncapi.yaml").read_text()) == DOCUMENT


def test_every_reference_leads_somewhere() -> None:
    """Each $ref resolves, to an object."""
    found = list(references(DOCUMENT))
    assert len(found) > 100
    assert all(isinstance(resolved(reference), dict) for reference in found)


def test_the_document_has_what_asyncapi_requires() -> None:
    """Version, info, servers with host and protocol, and nothing beside the objects of AsyncAPI 3."""
    root = {"asyncapi", "info", "defaultContentType", "servers", "channels", "operations", "components"}
    assert DOCUMENT.keys() == root
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    for server in DOCUMENT["servers"].values():
        assert server["protocol"] in ("zmq", "redis")
        assert set(re.findall(r"{(\w+)}", server["host"])) == server["variables"].keys()
    for group in ("servers", "channels", "operations"):
        assert all(KEY.match(name) for name in DOCUMENT[group])


@pytest.mark.parametrize("name", DOCUMENT["channels"])
def test_a_channel_has_its_servers_messages_and_parameters(name: str) -> None:
    """A channel names servers of the document, messages of its components, and each part of its address."""
    channel = DOCUMENT["channels"][name]
    assert channel["servers"]
    assert all(reference["$ref"].startswith("#/servers/") for reference in channel["servers"])
    for message, reference in channel["messages"].items():
        assert reference == {"$ref": f"#/components/messages/{message}"}
    parameters = set(re.findall(r"{(\w+)}", channel["address"] or ""))
    assert parameters == channel.get("parameters", {}).keys()


@pytest.mark.parametrize("name", DOCUMENT["operations"])
def test_an_operation_uses_messages_of_its_channel(name: str) -> None:
    """An operation sends or receives, and its messages and replies are among its channels' messages."""
    operation = DOCUMENT["operations"][name]
    assert operation["action"] in ("send", "receive")
    for part in filter(None, (operation, operation.get("reply"))):
        channel = part["channel"]["$ref"]
        assert channel.removeprefix("#/channels/") in DOCUMENT["channels"]
        for reference in part["messages"]:
            assert reference["$ref"].startswith(f"{channel}/messages/")


@pytest.mark.parametrize("row", TOPICS.values(), ids=TOPICS)
def test_the_document_says_what_the_table_says(row: Topic) -> None:
    """Each publisher sends and each consumer receives, as an operation or as a reply; the promises stand."""
    said = DOCUMENT["components"]["messages"][row.name]["x-sim2or"]
    assert (said["rate_hz"], said["max_age_s"], said["policy"]) == (row.rate_hz, row.max_age_s, row.policy)
    assert said["version"] == row.message.schema_version
    for action, replying, parties in (
        ("send", "receive", row.publishers),
        ("receive", "send", row.consumers),
    ):
        own = _parties(action, "messages", row.name)
        replies = _parties(replying, "reply", row.name)
        assert (replies if row.name in answers(TOPICS) else own) == set(parties)


def _parties(action: str, part: str, name: str) -> set[str]:
    """The services whose operations of one kind have a message, as their own or as a reply."""
    found = set()
    for operation in DOCUMENT["operations"].values():
        used = operation["messages"] if part == "messages" else operation.get("reply", {}).get("messages", [])
        names = {reference["$ref"].rpartition("/")[2] for reference in used}
        if operation["action"] == action and name in names:
            found.add(operation["x-sim2or"]["service"])
    return found


@pytest.mark.parametrize("name", DOCUMENT["components"]["messages"])
def test_an_example_fits_the_schema_beside_it(name: str) -> None:
    """The example of a message is valid by the schema that its payload refers to."""
    message = DOCUMENT["components"]["messages"][name]
    found = resolved(message["payload"]["schema"]["$ref"])
    for one in message["examples"]:
        Draft202012Validator(found).validate(one["payload"])
    assert ("headers" in message) == (TOPICS[name].road in ("rpc", "pubsub"))


def test_the_page_shows_every_message_and_field() -> None:
    """A newcomer finds each message with its parties, promise, fields, units and an example; links work."""
    text = page(TOPICS)
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE))
    assert sections.keys() == MESSAGES.keys()
    for name, kind in MESSAGES.items():
        assert all(f"| `{field}` |" in sections[name] for field in kind.model_fields)
        assert "```json" in sections[name]
    for row in TOPICS.values():
        assert f"{', '.join(row.publishers)} → {', '.join(row.consumers)}" in sections[row.name]
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= sections.keys()
    assert "| `position_rad` | array float32[6] | rad | – |" in sections["robot_state"]
    assert "| `velocity_radps` | array float32[6] | rad/s |" in sections["robot_state"]
    assert "| `torque_scale` | number | – | ≥ 0, ≤ 1, optional, 1.0 |" in sections["joint_command"]
    assert "| `period_s` | number | s | > 0 |" in sections["action_chunk"]
    assert "30 Hz · max age: 0.1 s · queue: 4 messages" in sections["robot_state"]
    assert "Part of [policy_request](#policy_request)." in sections["observation"]


class Grown(RobotState):
    """Joint state of a later version.

    Attributes:
        seq: As before.
        captured_ns: As before.
        position_rad: As before.
        velocity_radps: As before.
        images: As before.
        episode: As before.
        phase: As before.
        status: As before.
        effort_nm: Torque of one joint [N·m].
    """

    effort_nm: float = 0.0


class GrownProperly(Grown):
    __doc__ = Grown.__doc__

    schema_version: ClassVar[str] = "1.1"


def table_with(kind: type[Message]) -> dict[str, Topic]:
    return TOPICS | {"robot_state": replace(TOPICS["robot_state"], message=kind)}


def test_a_grown_message_needs_its_version(tmp_path: Path) -> None:
    """A changed message of the same version is refused and nothing is written; with a new one both stay."""
    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(ConfigError, match=r"version is still 1\.0, but effort_nm: new optional field"):
        write(tmp_path, table_with(Grown))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    written = write(tmp_path, table_with(GrownProperly))
    assert schema_path(tmp_path, "robot_state", version_of(GrownProperly)) in written
    assert list(map(str, committed(tmp_path, "robot_state"))) == ["1.0", "1.1"]
    assert list(incompatible(tmp_path, table_with(GrownProperly))) == []


def test_a_message_that_went_away_is_told(tmp_path: Path) -> None:
    """Schemas of a message that no longer exists are named: somebody may still send it."""
    write(tmp_path)
    table = {name: row for name, row in TOPICS.items() if name != "robot_state"}
    assert any(line.startswith("robot_state: its schemas are in") for line in incompatible(tmp_path, table))


def test_a_file_that_is_out_of_date_is_named(tmp_path: Path) -> None:
    """A page that somebody edited, or a schema that is missing, is told with the command that mends it."""
    for path, text in documents(tmp_path).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(outdated(tmp_path)) == []
    (tmp_path / "README.md").write_text("mine")
    schema_path(tmp_path, "event", version_of(MESSAGES["event"])).unlink()
    assert sorted(outdated(tmp_path)) == [
        f"{tmp_path}/README.md: is not up to date; `make messages` makes it",
        f"{tmp_path}/event/1.0.schema.json: is missing; `make messages` makes it",
    ]


def test_the_command_line_checks_and_generates(tmp_path: Path) -> None:
    """An empty directory has problems, one a line, with status 2; generating mends them."""
    runner = CliRunner()
    places = [str(tmp_path / "documents"), "--golden", str(tmp_path / "golden")]
    bad = runner.invoke(app, ["bus", "check", *places])
    assert bad.exit_code == 2
    assert bad.output.count("is missing") == 2 * len(MESSAGES) + 2
    assert runner.invoke(app, ["bus", "docs", places[0], "--check"]).exit_code == 2
    assert runner.invoke(app, ["bus", "golden", "--golden", places[2]]).exit_code == 2
    assert runner.invoke(app, ["bus", "docs", places[0]]).exit_code == 0
    assert runner.invoke(app, ["bus", "golden", "--add", "--golden", places[2]]).exit_code == 0
    good = runner.invoke(app, ["bus", "check", *places])
    assert (good.exit_code, "every consumer has a producer" in good.output) == (0, True)


def test_the_table_is_printed() -> None:
    """`sim2or bus topics` shows a line for each topic with its version and promise."""
    shown = CliRunner().invoke(app, ["bus", "topics"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for row in TOPICS.values():
        assert f"{row.name} {row.message.schema_version}" in shown.output
