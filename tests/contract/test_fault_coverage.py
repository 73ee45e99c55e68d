"""Every fault of the table is shown by tests, and the page about them says which."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
ROWS = [f"F{number}" for number in (*range(1, 8), *range(9, 18), 19, 20)]
PLACES = ("tests", "shared/tests", "services/*/tests")


def rows_of(node: ast.expr) -> Iterator[str]:
    """The rows that ``pytest.mark.faults("F1", …)``, or a list of marks, names."""
    if isinstance(node, ast.List | ast.Tuple):
        for one in node.elts:
            yield from rows_of(one)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.faults":
        yield from (ast.literal_eval(argument) for argument in node.args)


def rows_in(path: Path) -> Iterator[str]:
    """The rows that a file's tests are marked with, on functions, classes, or the whole file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                yield from rows_of(decorator)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from rows_of(node.value)


@cache
def shown() -> dict[str, set[str]]:
    """Row to the files whose tests show it."""
    found: dict[str, set[str]] = defaultdict(set)
    for place in PLACES:
        for path in ROOT.glob(f"{place}/**/test_*.py"):
            for row in rows_in(path):
                found[row].add(path.relative_to(ROOT).as_posix())
    return dict(found)


def page() -> dict[str, set[str]]:
    """Row to the files that the page names for it."""
    rows = re.findall(r"^\| (F\d+) \|.*\|([^|]*)\|$", PAGE.read_text(), re.MULTILINE)
    return {row: set(re.findall(r"`([\w/]+\.py)`", files)) for row, files in rows}


def test_every_fault_has_a_test() -> None:
    """Each row of the table has at least one test with its mark."""
    assert [row for row in ROWS if row not in shown()] == []


def test_every_mark_is_a_row() -> None:
    """No mark names a row that the page lacks."""
    assert sorted(shown().keys() - page().keys()) == []


def test_the_page_names_the_files_that_show_each_fault() -> None:
    """``docs/faults.md`` lists, for each row, exactly the files with its mark."""
    found, told = shown(), page()
    assert told == {row: found.get(row, set()) for row in told}
