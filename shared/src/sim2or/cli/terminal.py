"""Where commands write, and how they end."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from typer.core import TyperGroup

from sim2or.errors import Sim2OrError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class CleanGroup(TyperGroup):
    """Shows our own errors as plain lines instead of tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; an error of the ``Sim2OrError`` tree exits with status 2."""
        try:
            return super().invoke(ctx)
        except Sim2OrError as error:
            err.print(f"sim2or: {error}", markup=False, soft_wrap=True)
            raise SystemExit(EXIT_ERROR) from None
