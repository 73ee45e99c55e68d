"""``python bare_stage.py DEMOS WORK``: the collect stage without the bus; prints how long its ``run`` took.

One demonstration goes before, as the sim services have warmed up too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import questions
from sim2or.messages.collect import CollectSpec
from sim2or.worker import StageContext
from sim2or_sim.collect import STAGE


def run(demos: int, work: Path) -> float:
    """Runs the stage; returns the time it took [s]."""
    context = StageContext(work=work, inputs={}, digests={}, report=lambda _: None)
    spec = CollectSpec.model_validate_json(json.dumps(questions.configuration(demos)))
    began_s = time.monotonic()
    STAGE.run(spec, context)
    return time.monotonic() - began_s


def main() -> None:
    """Warms up, runs, prints."""
    with tempfile.TemporaryDirectory() as directory:
        run(1, Path(directory))
    print(json.dumps({"took_s": run(int(sys.argv[1]), Path(sys.argv[2]))}))


if __name__ == "__main__":
    main()
