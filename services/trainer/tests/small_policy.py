"""Sizes of a policy that trains in seconds."""

from __future__ import annotations

SMALL = {
    "dim_model": 32,
    "dim_feedforward": 64,
    "vector_width": 32,
    "stem_channels": [16, 16],
    "pose_width": 32,
}
