"""What a machine can check of the notebooks as documents, without running them: over whatever is in ``notebooks/``."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cxrlib.training import schedules
from cxrlib.workbook import settings
from tests import pictures

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
ORDER = (
    "exploration",
    "stage1",
    "stage2",
    "stage3",
    "stage4",
    "stage5",
    "evaluation",
    "localisation",
    "reading_room",
    "labels",
)
STAGES = [book for book in BOOKS if settings.part(book).startswith("stage")]
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
LONGEST = 16
LARGEST = 500_000
"""Bytes of a notebook that a code host still shows at once."""
CELLS, SHARED = 26, 12
"""A stage notebook's cells, and those of them that may stand word for word in another notebook."""
PARAGRAPH = 60
"""Letters from which on a piece of text is a paragraph, and may stand only once in the book."""

each = pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)


def paragraphs(book):
    """The paragraphs of a notebook's prose, each with single spaces."""
    prose = [settings.source(cell) for cell in settings.cells(book) if cell["cell_type"] == "markdown"]
    pieces = [" ".join(piece.split()) for text in prose for piece in re.split(r"\n\s*\n", text)]
    return [piece for piece in pieces if len(piece) > PARAGRAPH]


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
    books = map(str, [*BOOKS, *SOLUTIONS])
    strip = [str(Path(sys.executable).with_name("nbstripout")), *words, "--verify", *books]
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
    parameters = next(i for i, cell in code(book) if "parameters" in cell["metadata"].get("tags", []))
    assert {i: n for i, n in lengths.items() if n > LONGEST + (i == parameters)} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 5


@each
def test_prose_goes_before_code(book):
    kinds = [cell["cell_type"] for cell in settings.cells(book)]
    assert kinds[0] == "markdown"
    assert settings.source(settings.cells(book)[0]).startswith("# ")
    assert kinds.count("markdown") >= len(kinds) / 4


@pytest.mark.parametrize("book", STAGES, ids=lambda book: book.stem)
def test_a_stage_has_few_cells_and_most_are_its_own(book):
    elsewhere = {settings.source(cell) for other in BOOKS if other != book for cell in settings.cells(other)}
    own = [settings.source(cell) for cell in settings.cells(book)]
    assert len(own) <= CELLS
    assert len([source for source in own if source in elsewhere]) <= SHARED


@pytest.mark.parametrize("book", STAGES, ids=lambda book: book.stem)
def test_a_stage_comes_to_its_experiment_in_its_first_third(book):
    sources = [settings.source(cell) for cell in settings.cells(book)]
    (place,) = [i for i, source in enumerate(sources) if source.startswith("## The experiment")]
    assert place < len(sources) / 3


@pytest.mark.parametrize("book", STAGES, ids=lambda book: book.stem)
def test_the_steps_of_a_stage_are_five_calls_in_this_order(book):
    text = "\n".join(settings.source(cell) for _, cell in code(book))
    steps = ["dataset.open(", "network.build(", "losses.make(recipe.loss", "fit.fit(", "summary.gain("]
    assert [text.count(step) for step in steps] == [1] * 5
    assert sorted(steps, key=text.index) == steps


@pytest.mark.parametrize("book", STAGES, ids=lambda book: book.stem)
def test_a_stage_ends_with_two_exercises_that_are_worked_out(book):
    _, _, last = settings.source(settings.cells(book)[-1]).partition("## Exercises")
    assert re.findall(r"^(\d)\. ", last, re.MULTILINE) == ["1", "2"]
    assert f"`solutions/{book.name}`" in last
    assert FOLDER / "solutions" / book.name in SOLUTIONS


def test_no_paragraph_stands_twice_in_the_book():
    places = {}
    for book in BOOKS:
        for paragraph in paragraphs(book):
            places.setdefault(paragraph, []).append(book.stem)
    assert {paragraph: where for paragraph, where in places.items() if len(where) > 1} == {}


def test_each_solution_is_of_a_stage_and_takes_its_parameters():
    assert [book.name for book in SOLUTIONS] == [book.name for book in STAGES]
    for solution, stage in zip(SOLUTIONS, STAGES, strict=True):
        own, known = settings.parameters(solution), settings.parameters(stage)
        assert own == {name: known[name] for name in own}
        test_it_is_small_enough_to_be_read_on_a_code_host(solution)
        test_it_tells_nothing_of_the_machine_it_ran_on(solution)


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


@pytest.mark.parametrize("book", [*STAGES, *SOLUTIONS], ids=lambda book: f"{book.parent.name}/{book.stem}")
def test_the_comment_on_the_schedule_names_them_all(book):
    source = "\n".join(settings.source(cell) for _, cell in code(book))
    for comment in re.findall(r'^schedule = "\w+" *# (.*)$', source, re.MULTILINE):
        assert set(re.findall(r"\w+", comment)) - {"or"} == set(schedules.SCHEDULES)


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
    """GitHub and others show a larger file late or not at all."""
    assert book.stat().st_size <= LARGEST
    shown = pictures.pictures(json.loads(book.read_text(encoding="utf-8")))
    assert all(pictures.reduced(pictures.opened(data)) for data in shown), "run make clean-notebooks"


@each
def test_it_tells_nothing_of_the_machine_it_ran_on(book):
    text = book.read_text()
    assert str(ROOT) not in text
    assert not re.search(r"/(home|Users|root|tmp)/\w", text)
