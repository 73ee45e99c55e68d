"""Inference over waiting requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sim2or.artifacts.mirrored import open_store
from sim2or.artifacts.store import Store
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or_policy.inference import Inference
from sim2or_policy.shelf import Shelf, openers

Ask = Callable[..., PolicyRequest]


@pytest.fixture
def inference(store: Store) -> Inference:
    """Inference over the store's models."""
    return Inference(Shelf(store, openers("onnxruntime"), size=2))


def test_requests_for_one_model_run_together(inference: Inference, ask: Ask) -> None:
    """Four robots that wait at once cost one call, and each gets its own joints back, plus 0.1 for white."""
    states = [np.full(6, value, np.float32) for value in (0.1, 0.2, 0.3, 0.4)]
    answers = inference.answer([ask(state_rad=state) for state in states])
    for state, answer in zip(states, answers, strict=True):
        assert isinstance(answer, ActionChunk)
        assert np.allclose(answer.actions_rad, state + 0.1, atol=1e-6)
    assert inference.counts == {"batches": 1, "chunks": 4}


def test_one_refused_request_does_not_spoil_the_batch(inference: Inference, ask: Ask) -> None:
    """The request in the middle is refused in its place; its neighbours are answered."""
    answers = inference.answer([ask(tick=1), ask(tick=2, request="Sing"), ask(tick=3)])
    assert [type(answer) for answer in answers] == [ActionChunk, PolicyError, ActionChunk]
    assert [a.tick for a in answers if isinstance(a, ActionChunk)] == [1, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"robot": "so100"}, "robot 'so100': valid: so101"),
        ({"task": "suturing"}, "task 'suturing': valid: handover"),
        ({"images": {}}, "camera 'room' is missing; camera 'wrist' is missing"),
        ({"images": {"rist": np.zeros((8, 8, 3), np.uint8)}}, "did you mean 'wrist'"),
    ],
)
def test_mismatch_is_refused_by_name(
    inference: Inference, ask: Ask, change: dict[str, object], said: str
) -> None:
    """The refusal names the key, the value and what is valid."""
    (answer,) = inference.answer([ask(**change)])
    assert isinstance(answer, PolicyError)
    assert (answer.code, said in answer.detail) == ("refused", True), answer.detail


def test_a_mirror_that_is_away_is_no_refusal(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a model cannot be fetched its askers hear "busy", and ask again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    store = open_store(tmp_path / "here", "s3://bucket/x", patience_s=1.0)
    (answer,) = Inference(Shelf(store, openers("onnxruntime"), size=1)).answer([ask()])
    assert isinstance(answer, PolicyError)
    assert answer.code == "busy"
    assert "no connection" in answer.detail


def test_action_that_is_not_finite_is_a_failure(
    inference: Inference, ask: Ask, store: Store, write_model: Callable[..., object], tmp_path: object
) -> None:
    """A network that overflows fails its request; no infinite target leaves the server."""
    digest = store.put(write_model(tmp_path / "m", gain=3e38), kind="exported-model").digest  # type: ignore[operator,arg-type]
    (answer,) = inference.answer([ask(digest=digest, state_rad=np.full(6, 9.0, np.float32))])
    assert isinstance(answer, PolicyError)
    assert answer.code == "failed"
