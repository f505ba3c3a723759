"""Nothing is chosen on the test part: in no notebook does a test film reach code that fits or chooses something.

Two ways to see it: the notebooks' code is read, and a run is made with noise in place of the test part. In the code a
name is of the test part if it comes from ``….test`` or ``…["test"]``, or from an expression with such a name.
"""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from cxrlib import paths
from cxrlib.evaluation import thresholds
from cxrlib.phantom import phantom
from cxrlib.plots import common
from cxrlib.training import checkpoint, history_tables, network
from tests.cells import execute

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


def with_noise(folder: Path, to: Path) -> Path:
    """A copy of a data folder with noise in place of the test films, and other findings and views in their rows."""
    shutil.copytree(folder, to)
    random, table = np.random.default_rng(0), pd.read_csv(to / "Data_Entry_2017.csv")
    test = table["Image Index"].isin((to / "test_list.txt").read_text().split())
    assert 0 < test.sum() < len(table)
    table.loc[test, "Finding Labels"] = random.choice(["Hernia", "Mass|Nodule", "No Finding"], test.sum())
    table.loc[test, "View Position"] = random.choice(["PA", "AP"], test.sum())
    table.to_csv(to / "Data_Entry_2017.csv", index=False)
    for name in table.loc[test, "Image Index"]:
        file = next(to.rglob(name))
        shape = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).shape
        cv2.imwrite(str(file), random.integers(0, 256, shape, np.uint8))
    return to


def decided(run: str) -> dict[str, Any]:
    """All that a run of one stage fits or chooses, as plain values and hashes."""
    home = paths.Run(run)
    best = paths.read_json(home.stage(1) / "best.json")
    tested = checkpoint.best(home.stage(1))
    kept = checkpoint.read_meta(tested)["attached"]
    stated = {"judged_on", "rates"}
    return {
        "weights": best["result"],
        "best epoch": (best["best"], best["why"]),
        "history": history_tables.read_history(home.stage(1)).drop(columns=history_tables.TIMES).to_csv(),
        "calibration": kept[thresholds.CALIBRATION],
        "thresholds": kept[thresholds.THRESHOLDS],
        "gate": checkpoint.tensors_sha256(load_file(checkpoint.gate_beside(tested))),
        "reference": {name: value for name, value in kept["reference"].items() if name not in stated},
        "validation": (home.predictions / "val.csv").read_bytes(),
    }


@pytest.mark.slow
def test_noise_in_place_of_the_test_part_changes_nothing_that_is_chosen(tmp_path, monkeypatch):
    """Weights, best epoch, calibration, thresholds, gate: to the bit, whatever the test films and their labels are."""
    build = network.build
    monkeypatch.setattr(network, "build", lambda weights, seed=0: build(weights, seed=seed, layers=(1, 1, 1, 1)))
    monkeypatch.setattr(plt, "show", lambda: None)
    films = phantom.write(tmp_path / "films", images=800, size=32, seed=1)
    folders = {"true": films, "noise": with_noise(films, tmp_path / "noise" / "films")}
    monkeypatch.setattr(common, "save", lambda *_, **more: None)
    for run, folder in folders.items():
        paths.write_json(paths.Run(run).run_json, {})
        for stem, until in {"01_stage1": "", "06_evaluation": "gate.fit_once"}.items():
            how = {"size": 32, "batch_size": 32, "epochs": 2, "schedule": "scratch"}
            execute(paths.notebooks() / f"{stem}.ipynb", until, data=str(folder), run=run, **how)
    true, noise = decided("true"), decided("noise")
    assert "" in true["calibration"]["reasons"], "nothing is fitted on so few films"
    for what, value in true.items():
        assert value == noise[what], f"{what} depend on the test part"
    read = [(paths.Run(run).predictions / "test.csv").read_bytes() for run in folders]
    assert read[0] != read[1], "the noise did not arrive"
