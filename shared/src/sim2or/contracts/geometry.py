"""Shapes and poses as profiles describe them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim2or.messages.message import Spec

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Part(Spec):
    """One primitive of a body.

    Attributes:
        shape: What it is.
        at_m: Centre in the body's frame [m].
        half_m: Half sizes [m]: box and ellipsoid (x, y, z); cylinder and capsule (radius,
            half length along z).
        euler_rad: Turn about the body's x, then the new y, then the new z [rad].
        color: Red, green, blue in 0–1.
        contact: Whether it touches things; the others are for the eye only.
        visible: Whether it is seen; a part that only touches may be hidden.
        gloss: 0 dull … 1 mirror-like.
    """

    shape: Literal["box", "cylinder", "capsule", "ellipsoid"]
    at_m: Vector = (0.0, 0.0, 0.0)
    half_m: tuple[Positive, ...]
    euler_rad: Vector = (0.0, 0.0, 0.0)
    color: tuple[Fraction, Fraction, Fraction]
    contact: bool = False
    visible: bool = True
    gloss: Fraction = 0.3


class Friction(Spec):
    """Coulomb friction of a surface.

    Attributes:
        slide: Sliding coefficient.
        spin_m: Torsional coefficient [m].
        roll_m: Rolling coefficient [m].
    """

    slide: Positive
    spin_m: Positive = 0.005
    roll_m: Positive = 0.0001
