"""Generated parts of a page that people write: they stand between markers, and nothing else is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PART = re.compile(r"(<!-- generated: (?P<name>[a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, generated: Mapping[str, str]) -> str:
    """Replaces what stands between the markers.

    Args:
        text: The page.
        generated: Name of a part to its text; a marker with another name raises ``KeyError``.
    """
    return _PART.sub(lambda found: found[1] + generated[found["name"]] + found[3], text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"
