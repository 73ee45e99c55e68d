"""Frictions and gravity of an asset in PhysX: the two numbers that Isaac Lab's assets do not reach.

PhysX without Kit and PhysX in Kit keep them behind views of their own; both keep them on the host.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import warp as wp
from isaaclab.assets import BaseArticulation
from numpy.typing import NDArray


class View(Protocol):
    """One asset in all environments."""

    def materials(self) -> NDArray[np.float32]:
        """Of each collider, shape (batch, n_colliders, 3): static friction, dynamic friction, restitution."""

    def set_materials(self, values: NDArray[np.float32]) -> None:
        """Sets what ``materials`` tells."""

    def set_weightless(self, flags: NDArray[np.bool_]) -> None:
        """Switches gravity off where true, shape (batch,)."""


def view_of(asset: Any) -> View:
    """The view of an articulation or a rigid object, whichever PhysX runs it."""
    return _OvView(asset) if asset.__backend_name__ == "ovphysx" else _KitView(asset)


class _OvView:
    """PhysX without Kit: tensors named by what they hold."""

    def __init__(self, asset: Any) -> None:
        from isaaclab_ov import tensor_types

        articulated = isinstance(asset, BaseArticulation)
        self._view = asset.root_view
        self._material = (
            tensor_types.SHAPE_FRICTION_AND_RESTITUTION
            if articulated
            else tensor_types.RIGID_BODY_SHAPE_FRICTION_AND_RESTITUTION
        )
        self._weightless = tensor_types.RIGID_BODY_DISABLE_GRAVITY

    def materials(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._view.get_attribute(self._material).numpy().copy()
        return found

    def set_materials(self, values: NDArray[np.float32]) -> None:
        self._view.set_attribute(self._material, wp.array(values, dtype=wp.float32, device="cpu"))

    def set_weightless(self, flags: NDArray[np.bool_]) -> None:
        self._view.set_attribute(self._weightless, wp.array(flags, dtype=wp.uint8, device="cpu"))


class _KitView:
    """PhysX in Kit: ``omni.physics.tensors``. Not verified: there is no Kit where this was written."""

    def __init__(self, asset: Any) -> None:
        self._view = asset.root_view
        self._all = wp.array(np.arange(asset.num_instances), dtype=wp.int32, device="cpu")

    def materials(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._view.get_material_properties().numpy().copy()
        return found

    def set_materials(self, values: NDArray[np.float32]) -> None:
        self._view.set_material_properties(wp.array(values, dtype=wp.float32, device="cpu"), self._all)

    def set_weightless(self, flags: NDArray[np.bool_]) -> None:
        self._view.set_disable_gravities(wp.array(flags, dtype=wp.uint8, device="cpu"), self._all)
