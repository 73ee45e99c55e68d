"""The bridge's loop as a process of its own, for another network namespace.

``python bridge_drive.py DIRECTORY POLICY_ENDPOINT TICKS KEYS``; prints the session and what the link counted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from stand import Stand, hand_over


def main(directory: str, policy_endpoint: str, ticks: str, keys: str) -> None:
    """Runs one hand-over."""
    place = Stand(Path(directory), policy_endpoint)
    episode, _, counts = hand_over(place, int(ticks), keys=Path(keys) if keys else None)
    print(json.dumps({"session": episode.session, "link": counts, "chunks": episode.chunks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
