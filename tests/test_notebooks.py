"""What a machine can check of the notebooks as documents, without running them: over whatever is in ``notebooks/``."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cxrlib.workbook import settings
from tests import pictures

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
ORDER = ("exploration", "stage1", "stage2", "stage3", "stage4", "stage5", "evaluation", "localisation", "reading_room")
LONGEST = 15

each = pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)


def code(book):
    """(number from 1, cell) of every code cell."""
    return [(i, cell) for i, cell in enumerate(settings.cells(book), 1) if cell["cell_type"] == "code"]


def tree(cell):
    lines = settings.source(cell).splitlines()
    return ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines))


def test_the_books_are_numbered_without_a_gap_and_in_order():
    assert [book.name for book in BOOKS] == [f"{i:02}_{name}.ipynb" for i, name in enumerate(ORDER[: len(BOOKS)])]
    assert len(BOOKS) >= 7


@each
def test_it_was_executed_from_top_to_bottom_without_an_error(book):
    counts = [cell["execution_count"] for _, cell in code(book)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [i for i, cell in code(book) for out in cell["outputs"] if out["output_type"] == "error"]


@each
def test_it_has_outputs_to_be_checked_against(book):
    """nbval says nothing of a cell without outputs, or told to ignore them: enough must be left for it to fail on."""
    compared = [cell for _, cell in code(book) if "nbval-ignore-output" not in cell["metadata"].get("tags", [])]
    assert sum(bool(cell["outputs"]) for cell in compared) >= 3


def test_their_metadata_are_clean():
    """make clean-notebooks leaves nothing to do."""
    flags = re.search(r"^STRIP := (.+)$", (ROOT / "Makefile").read_text().replace("\\\n", ""), re.MULTILINE).group(1)
    words = [quoted or plain for quoted, plain in re.findall(r'"([^"]+)"|(\S+)', flags)]
    strip = [str(Path(sys.executable).with_name("nbstripout")), *words, "--verify", *map(str, BOOKS)]
    done = subprocess.run(strip, capture_output=True, text=True)
    assert done.returncode == 0, f"run make clean-notebooks: {done.stdout}{done.stderr}"


@each
def test_it_shows_and_does_not_define(book):
    for i, cell in code(book):
        nodes = list(ast.walk(tree(cell)))
        assert not [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)], (
            f"cell {i}"
        )
        loops = [n for n in nodes if isinstance(n, ast.For | ast.While)]
        steps = {"backward", "zero_grad", "step"}
        trained = [n for loop in loops for n in ast.walk(loop) if isinstance(n, ast.Attribute) and n.attr in steps]
        assert not trained, f"cell {i} holds a training loop"


@each
def test_its_cells_are_short(book):
    lengths = {i: len(settings.source(cell).strip().splitlines()) for i, cell in code(book)}
    assert {i: n for i, n in lengths.items() if n > LONGEST} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 8


@each
def test_prose_goes_before_code(book):
    kinds = [cell["cell_type"] for cell in settings.cells(book)]
    assert kinds[0] == "markdown"
    assert settings.source(settings.cells(book)[0]).startswith("# ")
    assert kinds.count("markdown") >= len(kinds) / 4


@each
def test_it_has_one_parameters_cell_of_plain_scalars(book):
    tagged = [i for i, cell in code(book) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert tagged == [code(book)[0][0]], "the parameters come before all other code"
    assert "run" in settings.parameters(book)


def test_a_parameter_has_one_name_one_default_and_one_type_everywhere():
    defaults = {}
    for book in BOOKS:
        for name, value in settings.parameters(book).items():
            defaults.setdefault(name, set()).add((type(value), value))
    assert defaults.pop("size") == {(int, 64), (int, 0)}, "a test takes the size of its checkpoint"
    assert {name: values for name, values in defaults.items() if len(values) > 1} == {}


def test_the_stages_have_the_same_parameters():
    names = {book.stem: list(settings.parameters(book)) for book in BOOKS if settings.part(book).startswith("stage")}
    assert len({tuple(sorted(own)) for own in names.values()}) == 1, names


def test_the_committed_defaults_are_the_demo():
    for book in BOOKS:
        own = settings.parameters(book)
        assert own["run"] == "demo"
        assert {own.get(name, "") for name in ("data", "ckpt")} == {""}


@each
def test_it_imports_rooms_not_names(book):
    for i, cell in code(book):
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "cxrlib":
                for alias in node.names:
                    room = importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert room, f"cell {i}: {node.module}.{alias.name} is no room"
                    assert alias.asname is None
            if isinstance(node, ast.Import):
                assert not [a.name for a in node.names if a.name.split(".")[0] == "cxrlib"], f"cell {i}"


@each
def test_it_imports_in_one_place(book):
    importing = [
        i for i, cell in code(book) if any(isinstance(n, ast.Import | ast.ImportFrom) for n in ast.walk(tree(cell)))
    ]
    assert len(importing) <= 1


@each
def test_it_is_small_enough_to_be_read_on_a_code_host(book):
    assert book.stat().st_size < 900_000
    colours = {pictures.opened(data).mode for data in pictures.pictures(json.loads(book.read_text(encoding="utf-8")))}
    assert colours <= {"P"}, "run make clean-notebooks"


@each
def test_it_tells_nothing_of_the_machine_it_ran_on(book):
    text = book.read_text()
    assert str(ROOT) not in text
    assert not re.search(r"/(home|Users|root|tmp)/\w", text)
