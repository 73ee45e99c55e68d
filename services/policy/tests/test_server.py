"""The policy server over a real socket."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sim2or.artifacts.store import Store
from sim2or.bus.rpc import PolicyClient, PolicyServerLoop
from sim2or.clock import now_ns
from sim2or.errors import ConfigError, TransientError
from sim2or.messages.action_chunk import ActionChunk
from sim2or.messages.envelope import Origin
from sim2or.messages.policy_request import PolicyError, PolicyRequest
from sim2or.settings import Settings
from sim2or_policy.inference import Inference
from sim2or_policy.server import serve_until
from sim2or_policy.settings import PolicySettings, load_policy_settings
from sim2or_policy.shelf import Shelf, openers

Ask = Callable[..., PolicyRequest]
Connect = Callable[..., PolicyClient]


def test_observation_becomes_a_chunk(connect: Connect, ask: Ask, artifact: str) -> None:
    """Joints at 0.2 rad and a white wrist image give 0.2 + 0.1 = 0.3 rad, stamped as the observation was."""
    answer = connect().call(ask(), deadline_s=20)
    assert isinstance(answer, ActionChunk)
    assert np.allclose(answer.actions_rad, 0.3, atol=1e-6)
    assert answer.actions_rad.shape == (4, 6)
    assert (answer.episode, answer.tick, answer.captured_ns) == ("e1", 7, 123_456_789)
    assert answer.period_s == pytest.approx(1 / 30)
    assert answer.artifact == artifact


def test_untrained_request_is_refused_with_the_trained_ones(connect: Connect, ask: Ask) -> None:
    """A policy is not asked for an instrument it never saw."""
    answer = connect().call(ask(request="Hand me the scissors"), deadline_s=20)
    assert isinstance(answer, PolicyError)
    assert answer.code == "refused"
    assert "request 'Hand me the scissors': valid: Hand me the forceps, Hand me the scalpel" in answer.detail


def test_wrong_camera_shape_is_refused(connect: Connect, ask: Ask) -> None:
    """An image of another size is refused with the size the model takes."""
    images = {"wrist": np.zeros((9, 8, 3), np.uint8), "room": np.zeros((8, 8, 3), np.uint8)}
    answer = connect().call(ask(images=images), deadline_s=20)
    assert isinstance(answer, PolicyError)
    assert answer.detail == "camera 'wrist' has shape (9, 8, 3): valid: (8, 8, 3)"


def test_unknown_digest_is_refused(connect: Connect, ask: Ask) -> None:
    """A model that is not in the store is refused, and the server goes on."""
    client = connect()
    answer = client.call(ask(digest="sha256:" + "0" * 64), deadline_s=20)
    assert isinstance(answer, PolicyError)
    assert answer.code == "refused"
    assert "no artifact sha256:0000" in answer.detail
    assert isinstance(client.call(ask(), deadline_s=20), ActionChunk)


def test_injected_delay_holds_answers_back(connect: Connect, ask: Ask) -> None:
    """With 150 ms of delay no answer comes sooner."""
    client = connect(delay_ms=150)
    client.call(ask(), deadline_s=20)
    start_ns = now_ns()
    assert isinstance(client.call(ask(), deadline_s=20), ActionChunk)
    assert now_ns() - start_ns >= 150e6


def test_delayed_answer_past_its_deadline_never_arrives(connect: Connect, ask: Ask) -> None:
    """An answer that the delay makes late is not handed to the robot."""
    client = connect(delay_ms=300)
    client.call(ask(), deadline_s=20)
    with pytest.raises(TransientError, match="no answer"):
        client.call(ask(), deadline_s=0.1)


def test_expired_request_is_not_inferred(store: Store, ask: Ask) -> None:
    """A request whose deadline passed on the way is told so and never reaches a model."""
    inference = Inference(Shelf(store, openers("onnxruntime"), size=1))
    loop = PolicyServerLoop("inproc://expired", inference.answer)
    client = PolicyClient("inproc://expired", Origin("test"))
    try:
        client.send(ask(), deadline_s=1e-6)
        until_ns = now_ns() + 5_000_000_000
        while not loop.counts.expired and now_ns() < until_ns:
            loop.step(0.05)
        assert (loop.counts.expired, inference.counts["batches"]) == (1, 0)
    finally:
        client.close()
        loop.close()


def test_server_without_an_endpoint_says_so(tmp_path: Path) -> None:
    """The missing setting is named."""
    with pytest.raises(ConfigError, match="SIM2OR_POLICY_ENDPOINT"):
        serve_until(lambda: True, PolicySettings(store=tmp_path, policy_endpoint=""))


def test_model_without_an_engine_is_refused_by_tensorrt(store: Store, artifact: str) -> None:
    """A model exported without an engine is refused by the TensorRT backend, naming what to do."""
    with pytest.raises(ConfigError, match=r"engine\.json is missing: .* export it with one"):
        Shelf(store, openers("tensorrt"), size=1).get(artifact)


def test_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delay that is no number stops the server at its start, with the variable's name."""
    monkeypatch.setenv("SIM2OR_POLICY_DELAY_MS", "soon")
    with pytest.raises(ConfigError, match="SIM2OR_POLICY_DELAY_MS='soon'"):
        load_policy_settings(Settings())


def test_process_serves_until_it_is_terminated(tmp_path: Path, store: Store, artifact: str, ask: Ask) -> None:
    """``python -m sim2or_policy serve`` answers, holds its answers back as told, and ends on SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="s2o-") as directory:
        endpoint = f"ipc://{directory}/policy"
        settings = {
            "SIM2OR_POLICY_ENDPOINT": endpoint,
            "SIM2OR_STORE": str(store.root),
            "SIM2OR_POLICY_DELAY_MS": "50",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "sim2or_policy", "serve"], env={**os.environ, **settings}
        )
        client = PolicyClient(endpoint, Origin("test"))
        try:
            assert isinstance(client.call(ask(), deadline_s=30), ActionChunk)
            process.terminate()
            assert process.wait(timeout=10) == 0
        finally:
            client.close()
            process.kill()
            process.wait(timeout=10)
