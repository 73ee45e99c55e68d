"""One process of a training group: ``rank.py SPEC DATASET WORK [RANK:STEP]``, told to stop at a rank's step.

It runs the train stage in WORK/RANK and ends with the status that a pod would end with.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sim2or.errors import Sim2OrError
from sim2or.exit_status import ExitStatus, status_of
from sim2or.messages.train import TrainSpec
from sim2or.stage import Cancelled
from sim2or_trainer.stage import run

from conftest import WorkContext


def main(spec: str, dataset: str, work: str, stop: str = "") -> int:
    """Runs this process's part."""
    rank, (told, _, step) = os.environ["RANK"], stop.partition(":")
    directory = Path(work) / rank
    directory.mkdir(parents=True, exist_ok=True)
    cancel_at = float(step) if told == rank else None
    context = WorkContext(
        directory, {"dataset": [Path(dataset)]}, {"dataset": ["sha256:tiny"]}, cancel_at=cancel_at
    )
    try:
        result = run(TrainSpec.model_validate_json(Path(spec).read_text()), context)
    except Cancelled:
        return ExitStatus.INTERRUPTED
    except Sim2OrError as error:
        sys.stderr.write(f"rank {rank}: {error}\n")
        return status_of(error)
    sys.stderr.write(f"rank {rank}: {dict(result.summary)}\n")
    return ExitStatus.DONE


if __name__ == "__main__":
    raise SystemExit(int(main(*sys.argv[1:])))
