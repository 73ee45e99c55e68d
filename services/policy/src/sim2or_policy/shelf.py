"""The shelf of loaded models: by digest, least recently used out first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sim2or.artifacts.store import Store
from sim2or.contracts.robot import load_robot
from sim2or.errors import ConfigError, choices
from sim2or.log import get_logger
from sim2or.model_card import ModelCard

from sim2or_policy.backends.backend import PolicyBackend, warm_up

Open = Callable[[Path], PolicyBackend]


class Shelf:
    """Loads models on demand and keeps the last few.

    Args:
        store: Where artifacts are.
        openers: Artifact kind to what opens a directory of that kind.
        size: How many models stay loaded.
    """

    def __init__(self, store: Store, openers: dict[str, Open], *, size: int) -> None:
        self._store = store
        self._openers = openers
        self._size = size
        self._loaded: OrderedDict[str, PolicyBackend] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loaded)

    def get(self, digest: str) -> PolicyBackend:
        """The model with that digest, loaded, checked and warm.

        Raises:
            ConfigError: No such artifact, or none that can be served here.
            JobError: Its files are damaged.
            TransientError: It is in the mirror, which does not answer.
        """
        if digest not in self._loaded:
            self._loaded[digest] = self._load(digest)
            while len(self._loaded) > self._size:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(digest)
        return self._loaded[digest]

    def _load(self, digest: str) -> PolicyBackend:
        start = time.perf_counter()
        kind = self._store.manifest(digest).kind
        if kind not in self._openers:
            raise ConfigError(
                f"artifact {digest} is of kind {kind!r} and cannot be served; {choices(kind, self._openers)}"
            )
        directory = self._store.checkout(digest)
        check_servable(ModelCard.read(directory))
        backend = self._openers[kind](directory)
        warm_up(backend)
        get_logger().info(
            "model loaded",
            artifact=digest,
            kind=kind,
            backend=type(backend).__name__,
            load_s=round(time.perf_counter() - start, 3),
        )
        return backend


def check_servable(card: ModelCard) -> None:
    """Refuses a model that no robot could feed, or whose radians mean something else on today's profile.

    Raises:
        ConfigError: What does not fit.
    """
    if card.privileged:
        raise ConfigError(
            "the model takes simulator truth as input (privileged: true): it is for checks in simulation "
            "and is never served; train from pixels"
        )
    robot = load_robot(card.robot)
    for key, value, valid in (
        ("joints", card.joints, robot.joint_names),
        ("calibration_id", card.calibration_id, robot.calibration_id),
    ):
        if value != valid:
            raise ConfigError(
                f"the model's {key} {value!r} is not that of robot {card.robot}: valid: {valid!r}"
            )


def openers(backend: Literal["onnxruntime", "tensorrt"]) -> dict[str, Open]:
    """What opens each kind of artifact.

    The library for exported models is imported now, so that the first robot does not pay for it; torch only
    when a checkpoint is asked for.
    """
    return {"exported-model": _exported(backend), "checkpoint": _open_torch}


def _exported(backend: Literal["onnxruntime", "tensorrt"]) -> Open:
    if backend == "tensorrt":
        from sim2or_policy.backends.tensorrt import TensorRTBackend

        return TensorRTBackend
    from sim2or_policy.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend


def _open_torch(directory: Path) -> PolicyBackend:
    from sim2or_policy.backends.torch import TorchBackend

    return TorchBackend(directory)
