"""The real notebooks as one run on few, small films: from films to report, and what a second call does."""

import io
import shutil

import pandas as pd
import pytest
from rich.console import Console

from cxrlib import metrics, paths
from cxrlib.data import records
from cxrlib.labels import FINDINGS
from cxrlib.workbook import pipeline, run_record
from tests.conftest import SHARED

SMALL = {"size": 32, "batch_size": 16, "epochs": 1, "schedule": "scratch", "weights": "none"}


@pytest.fixture
def few_real(nih_1k, tmp_path):
    """120 real films in their official parts, the folder laid out as the download is."""
    films = records.read(nih_1k)
    listed = (nih_1k / "test_list.txt").read_text().split()
    test = films["image"].isin(listed)
    chosen = pd.concat([films[~test].head(90), films[test].head(30)])["image"]
    folder = tmp_path / "nih"
    (folder / "images").mkdir(parents=True)
    for image in chosen:
        shutil.copy(nih_1k / "images" / image, folder / "images")
    table = pd.read_csv(nih_1k / "Data_Entry_2017.csv", dtype=str)
    table[table["Image Index"].isin(chosen)].to_csv(folder / "Data_Entry_2017.csv", index=False)
    for name in ("train_val_list.txt", "test_list.txt"):
        lines = [image for image in (nih_1k / name).read_text().split() if image in set(chosen)]
        (folder / name).write_text("\n".join(lines))
    return folder


def check(films, monkeypatch):
    """Run a chain of two stages on the films, look at what it left, and run it again.

    Two stages, since ``test_nbval`` executes all notebooks, and what one stage hands to the next is always the same.
    """
    chosen = {"stages": [1, 2], "exploration": False, "console": Console(file=io.StringIO())}
    monkeypatch.setattr(run_record, "code_version", lambda book: "")  # the code may be edited while the tests run
    home = paths.Run("small")
    report = pipeline.run("small", {"data": str(films), **SMALL}, **chosen)
    table = pd.read_csv(home.tables / "auc_test.csv")
    assert list(table["finding"])[:-1] == [*FINDINGS, "No Finding"]
    assert metrics.is_mean(table["finding"].iloc[-1])  # of fewer than 14 where one is not on these few films
    assert 0 < table["auc"].iloc[-1] < 1
    page = report.read_text()
    assert f"{table['auc'].iloc[-1]:.3f}" in page
    assert "What is missing" not in page
    before = {
        file: file.stat().st_mtime_ns for file in home.root.rglob("*") if file.suffix in (".safetensors", ".ipynb")
    }
    assert len([file for file in before if file.suffix == ".ipynb"]) == 6
    assert {file.parent.name for file in before if file.suffix == ".safetensors"} == {"stage1", "stage2"}
    pipeline.run("small", **chosen)
    assert before == {file: file.stat().st_mtime_ns for file in before}


@pytest.mark.slow
@pytest.mark.notebooks
@pytest.mark.real
def test_the_chain_on_real_films(few_real, monkeypatch):
    check(few_real, monkeypatch)


@pytest.mark.slow
@pytest.mark.notebooks
@pytest.mark.skipif((SHARED / "nih-1k").is_dir(), reason="the same chain runs on real films, and takes minutes")
def test_the_chain_on_phantom_films(tiny_phantom, monkeypatch):
    check(tiny_phantom, monkeypatch)
