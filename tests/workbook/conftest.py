"""A chain of notebooks that take a second each: the same parameters cell as the real ones, and no training."""

from pathlib import Path

import nbformat
import pytest

from cxrlib import paths
from cxrlib.training import parameters
from cxrlib.workbook import pipeline, run_record

COMMON = 'run = "demo"\ndata = ""\nschedule = "scratch"\nsize = 64\nbatch_size = 32\nweights = "none"\nseed = 0'
STAGE = COMMON + '\nlr = 0.0\nepochs = -1\nloss = ""\nckpt = ""'
HOME = "import json, os\nfrom cxrlib import paths\nhome = paths.Run(run)"
TRAIN = """stage = home.stage({k})
before = home.stage({k} - 1) / "best.json"
parent = json.loads(before.read_text())["lr"] if before.exists() else None
paths.write_json(stage / "best.json", {{"lr": lr, "parent": parent, "ckpt": ckpt, "pid": os.getpid()}})"""
EVALUATE = """stages = sorted(file.parent.name for file in home.root.glob("stage*/best.json"))
paths.write_json(home.tables / "auc.json", stages)"""


def write(path: Path, parameters: str, *sources: str) -> Path:
    """A notebook with a title, a parameters cell and these code cells."""
    cell = nbformat.v4.new_code_cell
    tagged = cell(parameters, metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(f"# {path.stem}"), tagged, *map(cell, sources)]
    )
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


@pytest.fixture
def chain(tmp_path, monkeypatch) -> Path:
    """Folder of notebooks 00, 01, 02 and 06; the project's folder, its films and its code are replaced."""
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    write(folder / "00_exploration.ipynb", 'run = "demo"\ndata = ""\nsize = 64\nseed = 0', "print(size)")
    for k in (1, 2):
        write(folder / f"0{k}_stage{k}.ipynb", STAGE, HOME, TRAIN.format(k=k))
    write(folder / "06_evaluation.ipynb", COMMON + '\nckpt = ""', HOME, EVALUATE)
    monkeypatch.setenv("CXR_PROJECT", str(folder.parent))
    films = {"films": 4, "patients": 2, "fingerprint": "f" * 16}
    monkeypatch.setattr(pipeline, "data", lambda data, console=None, **_: {"folder": data, **films})
    monkeypatch.setattr(parameters, "capacity", lambda: (8, "cores"))  # whatever machine this is
    monkeypatch.setattr(run_record, "code_version", lambda book: "c" * 16)  # the code may be edited while tests run
    return folder


@pytest.fixture
def best():
    """Contents of a stage's ``best.json``."""
    return lambda k, run="demo": paths.read_json(paths.Run(run).stage(k) / "best.json")
