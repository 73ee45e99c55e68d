"""The toy stage that adds numbers up."""

from __future__ import annotations

from sim2or.stage import Context, Stage, StageResult

from sim2or_toy.spec import JoinSpec


def run(spec: JoinSpec, context: Context) -> StageResult:
    """Adds up all numbers of all inputs."""
    files = sorted(file for path in context.inputs["numbers"] for file in path.glob("*.txt"))
    total = spec.times * sum(int(file.read_text()) for file in files)
    out = context.work / "sum.txt"
    out.write_text(str(total))
    context.progress(1, 1, "sums")
    return StageResult(outputs={"report": out}, summary={"sum": total})


STAGES = {name: Stage(name, JoinSpec, run) for name in ("copy", "join")}
