"""Model cards: what they refuse to say, and what they give back."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from sim2or.errors import ConfigError
from sim2or.messages.export import EngineProfile, ExportSpec
from sim2or.model_card import ModelCard, TensorSpec, action_spec, image_spec, state_spec

JOINTS = ("pan", "lift", "grip")
TRUTH = TensorSpec(name="observation.privileged.instrument", dtype="float32", shape=(12,), unit="m")


def make_card(*inputs: TensorSpec, privileged: bool = False) -> ModelCard:
    """A card of a three-joint arm."""
    return ModelCard(
        policy="compact_act",
        robot="so101",
        task="handover",
        calibration_id="c1",
        requests=("Hand me the forceps",),
        control_hz=25,
        privileged=privileged,
        inputs=(state_spec(JOINTS), *inputs),
        outputs=(action_spec(JOINTS, horizon=7),),
    )


def test_card_survives_its_file(tmp_path: Path) -> None:
    """What was written is read back, and says joints, cameras, horizon and period."""
    make_card(image_spec("wrist", height_px=4, width_px=6)).write(tmp_path)
    card = ModelCard.read(tmp_path)
    assert (card.joints, card.cameras, card.horizon) == (JOINTS, {"wrist": (4, 6, 3)}, 7)
    assert card.period_s == pytest.approx(0.04)


def test_simulator_truth_is_declared_or_refused() -> None:
    """A model that takes simulator truth cannot have a card that hides it."""
    with pytest.raises(ValidationError, match=r"privileged\.instrument are no sensor .* privileged is false"):
        make_card(TRUTH)
    assert make_card(TRUTH, privileged=True).privileged


def test_missing_card_says_what_to_do(tmp_path: Path) -> None:
    """Without a card a model is not used."""
    with pytest.raises(ConfigError, match="export or train it again"):
        ModelCard.read(tmp_path)


def test_names_must_fit_the_shape() -> None:
    """Three names for two values are refused."""
    with pytest.raises(ValidationError, match="3 names for 2 values"):
        TensorSpec(name="observation.state", dtype="float32", shape=(2,), unit="rad", names=JOINTS)


def test_engine_batches_must_be_in_order() -> None:
    """A profile whose best batch exceeds its largest is refused."""
    with pytest.raises(ValidationError, match="opt_batch 8, max_batch 4"):
        EngineProfile(opt_batch=8, max_batch=4)


def test_unknown_export_key_is_refused() -> None:
    """A misspelt key is named before any work starts."""
    with pytest.raises(ValidationError, match="opset_version"):
        ExportSpec.model_validate({"opset_version": 17})
