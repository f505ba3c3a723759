"""The notebooks say what they said when they were committed.

nbval executes each with its committed defaults, in order, into an outputs folder of its own, and compares what every
cell says with what is committed: counts, shapes, names, truth values. Numbers with a fraction, times and places are
masked (``tests/nbval.cfg``); a cell that differs from machine to machine all the same, or that shows a progress bar,
has the tag ``nbval-ignore-output``. Such a cell is still executed, and an error in it still fails.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cxrlib.phantom import phantom

ROOT = Path(__file__).resolve().parents[1]
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def nbval(outputs, *books):
    """Run nbval over the notebooks in one process; exit code and what it said."""
    flags = [
        "--nbval",
        "--nbval-current-env",
        f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval.cfg'}",
        "-p",
        "no:cacheprovider",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *flags,
        "--rootdir",
        str(books[0].parent),
        "-c",
        os.devnull,
        *map(str, books),
    ]
    environment = {**os.environ, "CXR_OUTPUTS": str(outputs), "CXR_PROJECT": str(ROOT), "CXR_QUIET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.notebooks
def test_the_notebooks_say_what_they_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_OUTPUTS", str(tmp_path))
    phantom.default()  # drawn before, as by make notebooks, or a slow machine shows its progress
    code, said = nbval(tmp_path, *BOOKS)
    assert code == 0, said[-12_000:]
    tested = pd.read_csv(tmp_path / "demo" / "tables" / "auc_test.csv")
    assert tested["auc"].iloc[-1] > 0.75, "the demo's network has not learnt to read its films"


def book(path, *cells):
    """An executed notebook: pairs of source and what it is said to print; a third item is its tags."""
    made = nbformat.v4.new_notebook()
    for i, (source, output, *tags) in enumerate(cells, 1):
        cell = nbformat.v4.new_code_cell(source, execution_count=i, metadata={"tags": tags})
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)] if output else []
        made.cells.append(cell)
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, path)
    return path


@pytest.mark.slow
@pytest.mark.notebooks
def test_nbval_can_fail(tmp_path):
    """What may differ passes, and each fault is told with its cell; one notebook, since a kernel takes seconds."""
    good = [
        ("films = 3", ""),
        ("print(films, 'films')", "3 films\n"),
        ("print(f'AUC   {0.12345 * films}')", "AUC 0.999\n"),
        ("print('stage5_1e-06_22', '0:07')", "stage5_0.001_3 12:40\n"),
        ("import random; print(random.random(), 'x' * random.randint(1, 99))", "x\n", "nbval-ignore-output"),
    ]
    bad = [
        ("raise ValueError", ""),
        ("print(4, 'films')", "3 films\n"),
        ("print('shared patients', True)", "shared patients False\n"),
        ("raise ValueError", "", "nbval-ignore-output"),
        ("print('something')", ""),
    ]
    code, said = nbval(tmp_path, book(tmp_path / "book.ipynb", *good, *bad))
    assert code == 1
    assert "5 failed, 5 passed" in said
    for cell in range(len(good), len(good) + len(bad)):
        assert f"book.ipynb::Cell {cell}" in said
