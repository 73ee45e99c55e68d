"""Loading models: what is checked before one is served, and how many stay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sim2or.artifacts.mirror import Mirror
from sim2or.artifacts.mirrored import open_store
from sim2or.artifacts.store import Store
from sim2or.errors import ConfigError, JobError
from sim2or.model_card import ModelCard, TensorSpec
from sim2or_policy.shelf import Shelf, openers

Write = Callable[..., Path]


@pytest.fixture
def shelf(store: Store) -> Shelf:
    """Room for two models."""
    return Shelf(store, openers("onnxruntime"), size=2)


def test_least_recently_used_model_leaves_first(
    shelf: Shelf, store: Store, write_model: Write, tmp_path: Path
) -> None:
    """With room for two, asking for a third drops the one that was asked for longest ago."""
    first, second, third = (
        store.put(write_model(tmp_path / f"m{gain}", gain=gain), kind="exported-model").digest
        for gain in (1.0, 2.0, 3.0)
    )
    kept, dropped = shelf.get(first), shelf.get(second)
    shelf.get(first)
    shelf.get(third)
    assert len(shelf) == 2
    assert shelf.get(first) is kept
    assert shelf.get(second) is not dropped


def test_damaged_model_is_refused(shelf: Shelf, store: Store, artifact: str) -> None:
    """Bytes that no longer match their digest never become commands."""
    entry = next(e for e in store.manifest(artifact).files if e.path == "model.onnx")
    hexa = entry.digest.removeprefix("sha256:")
    stored = store.root / "objects" / hexa[:2] / hexa[2:]
    stored.chmod(0o644)
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(JobError, match="stored bytes have digest"):
        shelf.get(artifact)


def test_a_model_of_another_host_is_fetched(store: Store, artifact: str, tmp_path: Path) -> None:
    """What is only in the mirror is served from there, checked as if it had been made here."""
    (tmp_path / "share").mkdir()
    mirror = (tmp_path / "share").as_uri()
    Mirror(mirror).push(store, artifact)
    shelf = Shelf(open_store(tmp_path / "here", mirror), openers("onnxruntime"), size=1)
    assert shelf.get(artifact).card == ModelCard.read(store.checkout(artifact))
    with pytest.raises(ConfigError, match="no artifact"):
        shelf.get("sha256:" + "0" * 64)


def test_other_kinds_are_refused(shelf: Shelf, store: Store, write_model: Write, tmp_path: Path) -> None:
    """A dataset is no policy."""
    digest = store.put(write_model(tmp_path / "m"), kind="dataset").digest
    with pytest.raises(ConfigError, match=r"kind 'dataset' .* valid: checkpoint, exported-model"):
        shelf.get(digest)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"calibration_id": "older"}, "calibration_id 'older' is not that of robot so101"),
        ({"robot": "so999"}, "so999"),
        (
            {
                "privileged": True,
                "inputs": (
                    TensorSpec(
                        name="observation.privileged.instrument", dtype="float32", shape=(12,), unit="m"
                    ),
                ),
            },
            "takes simulator truth as input .* never served",
        ),
    ],
)
def test_model_that_no_robot_can_use_is_refused(
    shelf: Shelf, store: Store, write_model: Write, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    """Another calibration, an unknown robot or simulator truth as input: refused when it is loaded."""
    digest = store.put(write_model(tmp_path / "m", **change), kind="exported-model").digest
    with pytest.raises(ConfigError, match=said):
        shelf.get(digest)


def test_model_that_answers_otherwise_than_its_export_is_refused(
    shelf: Shelf, store: Store, write_model: Write, tmp_path: Path
) -> None:
    """A model that strays 0.01 rad from the answer stored at export is not served."""
    digest = store.put(write_model(tmp_path / "m", answer_off_rad=0.01), kind="exported-model").digest
    with pytest.raises(ConfigError, match=r"0\.01 rad away from its export's self-test"):
        shelf.get(digest)


def test_serving_an_exported_model_needs_no_torch(store: Store, artifact: str) -> None:
    """The server, an exported model and an answer, without torch or LeRobot in the process."""
    code = f"""
import sys
from pathlib import Path
import numpy as np
import sim2or_policy.server
from sim2or.artifacts.store import Store
from sim2or_policy.shelf import Shelf, openers
model = Shelf(Store(Path({str(store.root)!r})), openers("onnxruntime"), size=1).get({artifact!r})
assert model.infer(np.zeros((1, 6), np.float32), {{
    name: np.zeros((1, *shape), np.uint8) for name, shape in model.card.cameras.items()
}}).shape == (1, 4, 6)
assert not {{"torch", "lerobot"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_batches_of_any_size_give_each_row_its_own_answer(shelf: Shelf, artifact: str) -> None:
    """Three robots at 0.1, 0.2 and 0.3 rad with black images get their own joints back."""
    model = shelf.get(artifact)
    state_rad = np.repeat(np.array([[0.1], [0.2], [0.3]], np.float32), 6, axis=1)
    black = {name: np.zeros((3, *shape), np.uint8) for name, shape in model.card.cameras.items()}
    assert np.allclose(model.infer(state_rad, black), state_rad[:, None, :])
