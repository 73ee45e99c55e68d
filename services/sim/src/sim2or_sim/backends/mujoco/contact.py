"""Who touches whom, and how stiffly."""

from __future__ import annotations

import mujoco
from sim2or.contracts.geometry import Friction

PAD, INSTRUMENT, GROUND, LOOSE = 1, 2, 4, 8
"""Contact classes: pads and instruments touch each other and the ground; loose things touch everything."""

_SOLREF, _SOLIMP = (0.005, 1.0), (0.95, 0.99, 0.001, 0.5, 2.0)


def touch(geom: mujoco.MjsGeom, own: int, others: int, friction: Friction) -> None:
    """Makes a geom touch what is of some classes; it weighs nothing yet."""
    geom.contype, geom.conaffinity, geom.condim = own, others, 4
    geom.friction = [friction.slide, friction.spin_m, friction.roll_m]
    geom.solref, geom.solimp = _SOLREF, _SOLIMP
    geom.mass = 0.0
