"""The make stage: a file in the place of a model."""

from __future__ import annotations

from sim2or.messages.message import Spec
from sim2or.stage import Context, Stage, StageResult


class MakeSpec(Spec):
    """What is written.

    Attributes:
        text: The file's content.
    """

    text: str = "a model"


def run(spec: MakeSpec, context: Context) -> StageResult:
    """Writes the file."""
    out = context.work / "model"
    out.mkdir(exist_ok=True)
    (out / "model.txt").write_text(spec.text)
    return StageResult({"model": out}, {"characters": len(spec.text)})


STAGE = Stage("make", MakeSpec, run)
