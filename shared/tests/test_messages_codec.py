from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pydantic import ValidationError
from sim2or.errors import MessageError
from sim2or.messages import codec
from sim2or.messages.array import DTYPES, ArraySpec
from sim2or.messages.codec import decode, encode
from sim2or.messages.envelope import Envelope, Origin, uuid7
from sim2or.messages.joint_command import JointCommand
from sim2or.messages.message import Message
from sim2or.messages.observation import Observation
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.messages.robot_state import RobotState

ORIGIN = Origin("test", run_id="run")


class Many(Message):
    """Any number of byte arrays."""

    type_name: ClassVar[str] = "many"

    arrays: dict[str, Annotated[NDArray[np.uint8], ArraySpec("uint8", (None,))]]


def observation(**changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "robot": "so101",
        "task": "handover",
        "request": "Hand me the forceps",
        "episode": "e",
        "tick": 3,
        "state_rad": np.arange(6, dtype=np.float32),
        "images": {"wrist": np.full((4, 5, 3), 7, np.uint8)},
        "captured_ns": 12,
    }
    return Observation(**{**fields, **changes})


def frames_of(message: Message) -> list[Any]:
    return [bytes(frame) for frame in encode(message, ORIGIN.envelope(message, deadline_ms=50.0))]


def edited(frames: list[Any], edit: Any) -> list[Any]:
    header = json.loads(frames[1])
    edit(header)
    return [frames[0], json.dumps(header).encode(), *frames[2:]]


WHOLE = frames_of(observation())

names = st.text(max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
images = arrays(np.uint8, st.tuples(st.integers(0, 5), st.integers(0, 5), st.just(3)))
observations = st.builds(
    Observation,
    robot=names,
    task=names,
    request=names,
    episode=names,
    tick=st.integers(0, 2**53),
    state_rad=arrays(np.float32, 6, elements=finite),
    images=st.dictionaries(names, images, max_size=4),
    captured_ns=st.integers(-(2**63), 2**63 - 1),
)


@settings(max_examples=60, deadline=None)
@given(observation=observations, deadline_ms=st.floats(0.1, 1000))
def test_a_message_comes_back_as_it_was_sent(observation: Observation, deadline_ms: float) -> None:
    """Every field, array and envelope entry survives the wire, whatever the values."""
    request = PolicyRequest(artifact="sha256:1", observation=observation, deadline_ms=deadline_ms)
    envelope = ORIGIN.envelope(request, deadline_ms=deadline_ms)
    received, message = decode(
        [bytes(frame) for frame in encode(request, envelope)], PolicyError, PolicyRequest
    )
    assert received == envelope
    assert message.observation.images.keys() == observation.images.keys()
    for name, image in observation.images.items():
        np.testing.assert_array_equal(message.observation.images[name], image)
    np.testing.assert_array_equal(message.observation.state_rad, observation.state_rad)
    left, right = (m.model_dump(exclude={"observation": {"state_rad", "images"}}) for m in (message, request))
    assert left == right


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_allowed_dtype_travels(dtype: str) -> None:
    """Each dtype of the allow-list crosses unchanged, non-contiguous and 0-d arrays included."""
    kind = type(
        "Typed",
        (Message,),
        {
            "__annotations__": {
                "grid": Annotated[NDArray[Any], ArraySpec(dtype, (None, None))],
                "scalar": Annotated[NDArray[Any], ArraySpec(dtype, ())],
            },
            "type_name": "typed",
        },
    )
    grid = np.arange(12).astype(dtype).reshape(3, 4).T
    message = kind(grid=grid, scalar=np.array(1, dtype))
    _, got = decode(frames_of(message), kind)
    np.testing.assert_array_equal(got.grid, grid)
    assert got.grid.dtype == np.dtype(dtype)
    assert got.scalar.shape == ()


def test_arrays_are_read_only_views_of_the_frames() -> None:
    """Nothing is copied between a frame and the array, on either side, and nobody can write to it."""
    image = np.zeros((4, 5, 3), np.uint8)
    message = observation(images={"wrist": image})
    frames = encode(message, ORIGIN.envelope(message))
    assert any(np.shares_memory(np.frombuffer(frame, np.uint8), image) for frame in frames[2:])
    _, got = decode(frames, Observation)
    assert np.shares_memory(got.images["wrist"], image)
    with pytest.raises(ValueError, match="read-only"):
        got.images["wrist"][0, 0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state_rad": np.zeros(6)}, "expected dtype float32, got float64"),
        ({"state_rad": np.zeros(5, np.float32)}, r"expected shape \[6\], got \[5\]"),
        ({"state_rad": np.array([0, 0, np.nan, 0, np.inf, 0], np.float32)}, "2 of 6 numbers are not finite"),
        ({"state_rad": [0.0] * 6}, "expected a numpy array"),
        ({"state_rad": np.zeros(6, ">f4")}, "expected dtype float32"),
        ({"images": {"wrist": np.zeros((4, 5, 4), np.uint8)}}, r"expected shape \[any, any, 3\]"),
        ({"tick": -1}, "greater than or equal to 0"),
        ({"tick": 1.0}, "valid integer"),
        ({"speed": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_message_cannot_be_made(changes: dict[str, Any], said: str) -> None:
    """The sender is told which field is wrong and what would be right; unknown fields are refused."""
    with pytest.raises(ValidationError, match=said):
        observation(**changes)


def _reference(header: dict[str, Any]) -> dict[str, Any]:
    return header["payload"]["state_rad"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda h: _reference(h).update(dtype="object"),
            "state_rad: .*dtype 'object' is refused; valid: bool",
        ),
        (lambda h: _reference(h).update(dtype="V8"), "dtype 'V8' is refused"),
        (lambda h: _reference(h).update(dtype=["f4"]), "is refused"),
        (lambda h: _reference(h).update(shape=[7]), r"frame 0 has 24 bytes; float32\[7\] needs 28"),
        (lambda h: _reference(h).update(shape=[-6]), "is not a list of sizes"),
        (lambda h: _reference(h).update(shape=[2**40, 2**40]), "needs"),
        (lambda h: _reference(h).update(shape=[1] * 9), "9 dimensions; at most 8"),
        (lambda h: _reference(h).update(shape=[6, 1]), "expected shape"),
        (lambda h: _reference(h).update(frame=9), "frame 9 does not exist; the message has 2"),
        (lambda h: _reference(h).update(frame=True), "does not exist"),
        (lambda h: h["payload"].update(state_rad=[0.0] * 6), "state_rad: .*expected a numpy array"),
        (lambda h: h["payload"].update(tick="3"), "tick: Input should be a valid integer"),
        (lambda h: h["payload"].pop("robot"), "robot: Field required"),
        (lambda h: h["envelope"].update(type="job"), "'job' is not accepted here; valid: observation"),
        (lambda h: h["envelope"].update(version="2.0"), "version 2.0 is refused"),
        (lambda h: h["envelope"].update(traceparent="x"), "envelope.traceparent"),
        (lambda h: h.pop("payload"), "payload: Field required"),
        (lambda h: h.pop("envelope"), "header is not"),
    ],
)
def test_a_malformed_header_is_refused(edit: Any, said: str) -> None:
    """The receiver's error names the field and the limit."""
    with pytest.raises(MessageError, match=said):
        decode(edited(frames_of(observation()), edit), Observation)


def test_not_finite_numbers_are_refused_on_arrival() -> None:
    """A NaN inside a raw frame never reaches the application."""
    frames = frames_of(observation())
    frames[2] = np.full(6, np.nan, np.float32).tobytes()
    with pytest.raises(MessageError, match="6 of 6 numbers are not finite"):
        decode(frames, Observation)


def test_unknown_fields_of_a_newer_sender_are_ignored() -> None:
    """A minor version may add fields, also with arrays; an older receiver reads the rest."""

    def grow(header: dict[str, Any]) -> None:
        header["envelope"].update(version="1.9", tenant="b")
        header["payload"].update(speed_mps=1.0, depth={"frame": 5, "dtype": "float32", "shape": [1]})

    _, got = decode(edited(frames_of(observation()), grow), Observation)
    assert got.robot == "so101"


def test_caps_hold_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 64 arrays, too many bytes, or too large a header are refused with the limit."""
    too_many = Many(arrays={str(i): np.zeros(1, np.uint8) for i in range(65)})
    with pytest.raises(MessageError, match="more than 64 arrays"):
        encode(too_many, ORIGIN.envelope(too_many))
    with pytest.raises(MessageError, match="67 frames; topic, header and at most 64"):
        decode([b""] * 67, Many)
    with pytest.raises(MessageError, match="1 frames"):
        decode([b"x"], Many)
    with pytest.raises(MessageError, match=r"header has .* at most 262144"):
        decode([b"", b" " * 300_000], Many)
    monkeypatch.setattr(codec, "MAX_BYTES", 100)
    with pytest.raises(MessageError, match="at most 100 are accepted"):
        encode(observation(), ORIGIN.envelope(observation()))


def test_an_envelope_of_another_message_is_refused() -> None:
    """A message cannot travel under another type's envelope."""
    error = PolicyError(code="busy", detail="")
    with pytest.raises(MessageError, match="envelope says 'policy_error'"):
        encode(observation(), ORIGIN.envelope(error))


@settings(max_examples=200, deadline=None)
@given(frames=st.lists(st.binary(max_size=200), max_size=5))
def test_noise_is_refused(frames: list[bytes]) -> None:
    """Random bytes raise MessageError and nothing else."""
    with pytest.raises(MessageError):
        decode(frames, Observation, PolicyRequest)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_message_is_refused_or_reads(data: st.DataObject) -> None:
    """A flipped byte anywhere either raises MessageError or leaves a valid message."""
    frames = list(WHOLE)
    index = data.draw(st.integers(1, len(frames) - 1))
    damaged = bytearray(frames[index])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    frames[index] = bytes(damaged)
    try:
        _, got = decode(frames, Observation)
    except MessageError:
        return
    assert got.state_rad.shape == (6,)


def test_deeply_nested_json_is_refused() -> None:
    """A header nested a hundred thousand deep is an error, not a crash."""
    with pytest.raises(MessageError):
        decode([b"", b"[" * 100_000], Observation)


def test_an_answer_carries_the_question_s_chain() -> None:
    """Correlation, causation, run and trace follow from the cause; sequence numbers grow."""
    question, answer = Origin("bridge", run_id="run-1"), Origin("policy")
    asked = question.envelope(observation(), deadline_ms=5.0)
    first, second = (answer.envelope(PolicyError(code="busy", detail=""), cause=asked) for _ in range(2))
    assert first.causation_id == asked.id
    assert first.correlation_id == asked.correlation_id == asked.id
    assert first.run_id == "run-1"
    assert first.traceparent.split("-")[1] == asked.traceparent.split("-")[1]
    assert first.traceparent != asked.traceparent
    assert (first.seq, second.seq) == (0, 1)
    assert not asked.expired(asked.mono_ns + 5_000_000)
    assert asked.expired(asked.mono_ns + 5_000_001)


def test_identifiers_sort_by_time() -> None:
    """UUIDs are version 7 of RFC 9562, unique, and ordered by millisecond."""
    made = [uuid7() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {one.version for one in made} == {7}
    stamps = [one.int >> 80 for one in made]
    assert stamps == sorted(stamps)


def test_a_command_s_torque_is_bounded() -> None:
    """A torque share outside 0 to 1 is refused."""
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        JointCommand(
            session="s",
            seq=0,
            tick=0,
            target_rad=np.zeros(6, np.float32),
            issued_ns=1,
            captured_ns=None,
            hold=True,
            torque_scale=1.5,
        )


def test_schemas_describe_the_arrays() -> None:
    """A message's JSON Schema says dtype and shape of its arrays."""
    schema = RobotState.model_json_schema()["properties"]["position_rad"]
    assert schema["properties"]["dtype"] == {"const": "float32"}
    assert schema["x-shape"] == [6]


def test_envelope_fields_are_strict() -> None:
    """An envelope made by hand needs valid fields."""
    with pytest.raises(ValidationError):
        Envelope.model_validate({"id": "x"})
