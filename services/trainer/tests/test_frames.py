"""The dataset in memory gives what LeRobot's own dataset and processors give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sim2or.contracts.robot import load_robot
from sim2or.contracts.task import load_task
from sim2or.dataset_card import check_dataset
from sim2or.messages.train import TrainSpec
from sim2or_trainer.backends.lerobot import Recipe, make_recipe, read_metadata
from sim2or_trainer.frames import Batches, Frames, Order
from sim2or_trainer.stage import _load

ROBOT, TASK = load_robot("so101"), load_task("handover")


def prepared(dataset: Path, **fields: object) -> tuple[Recipe, Frames]:
    """A policy and the frames it is trained on."""
    card, metadata = check_dataset(dataset, ROBOT, TASK), read_metadata(dataset)
    recipe = make_recipe(TrainSpec(**fields), metadata, TASK, card)
    return recipe, _load(dataset, metadata, card, recipe, threads=1, decoded=lambda done, total: None)


@pytest.mark.parametrize(
    "fields",
    [{}, {"policy": "act", "policy_overrides": {"pretrained_backbone_weights": None}}],
    ids=["compact", "act"],
)
def test_batches_equal_lerobots(dataset: Path, fields: dict[str, object]) -> None:
    """State, actions, padding and images equal LeRobotDataset after the preprocessor, also at an end."""
    from lerobot.datasets import LeRobotDataset

    recipe, frames = prepared(dataset, **fields)
    deltas = {"action": [k / TASK.control_hz for k in range(TASK.executor.horizon)]}
    reference = LeRobotDataset("local/tiny", root=dataset, delta_timestamps=deltas, video_backend="pyav")
    rows = torch.tensor([0, 23, 24, 70])
    items = [reference[int(row)] for row in rows]
    raw = {
        key: torch.stack([item[key] for item in items])
        for key in items[0]
        if key.startswith(("obs", "action"))
    }
    expected = recipe.preprocess(raw)
    found = Batches(frames, recipe, dtype=torch.float32).make(rows)
    for key in ("observation.state", "action", "observation.images.wrist", "observation.images.room"):
        torch.testing.assert_close(found[key], expected[key], atol=2e-6, rtol=1e-5)
    assert torch.equal(found["action_is_pad"], raw["action_is_pad"])


def test_every_epoch_sees_every_row_once() -> None:
    """Steps of 4 over 10 rows: after 5 steps each row was seen twice, in two different orders."""
    order = Order(torch.arange(100, 110), batch_size=4, seed=3)
    seen = torch.cat([order.step(number) for number in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(100, 110))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_order_is_a_function_of_seed_and_step() -> None:
    """A step's rows do not depend on which steps were asked for before."""
    rows = torch.arange(10)
    forward, jumping = Order(rows, batch_size=4, seed=3), Order(rows, batch_size=4, seed=3)
    expected = [forward.step(number) for number in range(6)][5]
    assert torch.equal(jumping.step(5), expected)
