"""The dataset's README: a card for people, in the form that dataset hubs read."""

from __future__ import annotations

from collections import Counter

from sim2or.dataset_card import DatasetCard

_HEADER = """---
license: apache-2.0
task_categories:
- robotics
tags:
- LeRobot
- sim2or
configs:
- config_name: default
  data_files: data/*/*.parquet
---
"""


def readme(card: DatasetCard) -> str:
    """Renders the card as Markdown."""
    requests = Counter(episode.request for episode in card.episodes)
    reasons = Counter(dropped.reason for dropped in card.dropped)
    lines = [
        f"# {card.name}",
        "",
        f"Simulated demonstrations of *{card.task}* with {card.robot} ({card.robot_type}), LeRobot v3.0.",
        "",
        f"- {len(card.episodes)} episodes, {card.frames} frames at {card.fps_measured:.2f} frames/s "
        f"(measured; {card.fps_declared:g} declared)",
        f"- left out: {len(card.dropped)}"
        + "".join(f"; {n} × {reason}" for reason, n in sorted(reasons.items())),
        "- splits, by parent demonstration: "
        + ", ".join(f"{name} {first}:{end}" for name, (first, end) in card.splits.items()),
        f"- calibration: {card.calibration_id}",
        "- cameras: "
        + ", ".join(f"{c.key} {c.height_px}×{c.width_px} px {c.codec}" for c in card.cameras.values()),
        "",
        "| Joint | Key | Unit |",
        "|---|---|---|",
        *(f"| {c.joint} | `{c.key}` | {c.unit} |" for c in card.channels),
        "",
        "| Request | Episodes |",
        "|---|---|",
        *(f"| {request} | {count} |" for request, count in sorted(requests.items())),
        "",
        "`observation.privileged.*` is simulator truth: a training target, never a policy's input.",
    ]
    return _HEADER + "\n".join(lines) + "\n"
