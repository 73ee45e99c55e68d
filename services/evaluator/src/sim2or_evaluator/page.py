"""What every page of the evaluator shares: its templates, and how numbers and pictures are shown."""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def environment() -> Environment:
    """Our templates, with filters for numbers: percent, angle, duration, words."""
    found = Environment(
        loader=PackageLoader("sim2or_evaluator"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = lambda value: f"{100 * value:.1f}\u00a0%"
    found.filters["angle"] = angle
    found.filters["duration"] = duration
    found.filters["words"] = lambda text: str(text).replace("_", " ")
    return found


def angle(rad: float) -> str:
    """A small angle with a fitting unit."""
    unit, factor = ("µrad", 1e6) if rad < 1e-3 else ("mrad", 1e3)
    return f"{factor * rad:.2g}\u00a0{unit}"


def duration(seconds: float) -> str:
    """Seconds, with minutes where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest:02d}\u00a0s" if minutes else f"{rest}\u00a0s"


def data_uri(picture: bytes) -> str:
    """A JPEG as an address that needs no file."""
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
