"""Nothing is chosen on the test part: in no notebook does a test film reach code that fits or chooses something.

A name is of the test part if it comes from ``….test`` or ``…["test"]``, or from an expression with such a name.
"""

import ast
import json
from pathlib import Path

import pytest

from cxrlib import paths

CHOOSING = {
    *("fit.fit", "frozen.fit_head", "gate.fit", "gate.fit_once", "losses.positive_weights", "teachers.soft_labels"),
    *("calibration.fit", "thresholds.choose", "thresholds.fit_decisions"),
}
"""Calls that fit or choose. ``reference.make`` only states a test result beside what was chosen before."""
BOOKS = sorted([*paths.notebooks().glob("*.ipynb"), *paths.notebooks().glob("solutions/*.ipynb")])


def source(book: Path) -> str:
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def is_test(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression holds something of the test part."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part.attr == "test":
            return True
        if isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant) and part.slice.value == "test":
            return True
        if isinstance(part, ast.Name) and part.id in names:
            return True
    return False


def pairs(target: ast.AST, value: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def leaks(code: str) -> list[str]:
    """Choosing calls with an argument of the test part, as source."""
    names: set[str] = set()
    found = []
    for node in ast.walk(ast.parse(code)):  # statements come in their order
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target, value in (pair for one in targets for pair in pairs(one, node.value)):
                if is_test(value, names):
                    names |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CHOOSING:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            found += [ast.unparse(node)] if any(is_test(value, names) for value in given) else []
    return found


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_no_test_film_reaches_what_chooses(book):
    assert not leaks(source(book))


def test_the_choosing_calls_are_there_and_a_leak_is_found():
    everything = "\n".join(source(book) for book in BOOKS)
    assert all(f"{call}(" in everything for call in ("fit.fit", "thresholds.fit_decisions", "gate.fit_once"))
    for leak in (
        "made = thresholds.fit_decisions(answers, said['test'][-1])",
        "known = records.label_matrix(parts.test)\nrow = known[0]\nmade = thresholds.fit_decisions(row, on_val)",
        "a, b = parts.val, parts.test\ngate.fit(model, train, val=b)",
    ):
        assert leaks(leak)
    assert not leaks("a, b = parts.val, parts.test\ngate.fit(model, train, val=a)")
