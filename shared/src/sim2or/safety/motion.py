"""Limited motion of joint targets: velocity, acceleration and range hold together, exactly, at every tick."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def stopping_speed(distance_rad: Vector, acceleration_radps2: Vector, period_s: float) -> Vector:
    """The greatest speed for the next tick from which braking still ends within ``distance_rad``.

    With d counted in units of a·dt² and the speed in units of a·dt, a speed k+f (k whole, 0 ≤ f < 1)
    followed by full braking travels (k+f) + (k+f-1) + … + f = (k+1)(k/2+f); solving for the speed gives k,
    then f.

    Args:
        distance_rad: Room left, shape (n_joints,), [rad]; negative counts as none.
        acceleration_radps2: Greatest deceleration, shape (n_joints,), [rad/s²].
        period_s: Tick length [s].

    Returns:
        Shape (n_joints,), [rad/s], ≥ 0.
    """
    unit = acceleration_radps2 * period_s
    room = np.maximum(distance_rad, 0.0) / (unit * period_s)
    whole = np.floor((np.sqrt(1.0 + 8.0 * room) - 1.0) / 2.0)
    return np.asarray((whole + np.maximum(room / (whole + 1.0) - whole / 2.0, 0.0)) * unit)


def limited_velocity(
    wanted_radps: Vector,
    velocity_radps: Vector,
    *,
    top_radps: Vector,
    acceleration_radps2: Vector,
    room_below_rad: Vector,
    room_above_rad: Vector,
    period_s: float,
) -> Vector:
    """The velocity nearest to the wanted one that keeps speed, acceleration and joint range.

    Args:
        wanted_radps: Shape (n_joints,), [rad/s].
        velocity_radps: The velocity commanded at the last tick, shape (n_joints,), [rad/s].
        top_radps: Greatest speed, shape (n_joints,), [rad/s].
        acceleration_radps2: Greatest change of velocity, shape (n_joints,), [rad/s²].
        room_below_rad: Distance to the lower end of the range, shape (n_joints,), [rad].
        room_above_rad: Distance to the upper end of the range, shape (n_joints,), [rad].
        period_s: Tick length [s].

    Returns:
        Shape (n_joints,), [rad/s].
    """
    change = acceleration_radps2 * period_s
    velocity = np.minimum(np.maximum(wanted_radps, -top_radps), top_radps)
    velocity = np.minimum(np.maximum(velocity, velocity_radps - change), velocity_radps + change)
    lowest = -stopping_speed(room_below_rad, acceleration_radps2, period_s)
    highest = stopping_speed(room_above_rad, acceleration_radps2, period_s)
    return np.asarray(np.minimum(np.maximum(velocity, lowest), highest))
