"""Exploration of the whole dataset's table, without films."""

import pandas as pd
import papermill
import pytest

from cxrlib import paths


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.notebooks
def test_the_whole_dataset_is_explored_without_films(nih_metadata, own_outputs, monkeypatch):
    monkeypatch.setenv("CXR_QUIET", "1")
    book = paths.notebooks() / "00_exploration.ipynb"
    given = {"data": str(nih_metadata), "run": "whole"}
    done = papermill.execute_notebook(book, own_outputs / "out.ipynb", given, progress_bar=False, kernel_name="python3")
    text = "".join("".join(out.get("text", "")) for cell in done.cells for out in cell.get("outputs", []))
    assert "112,120 films of 30,805 patients" in text
    figures = own_outputs / "whole" / "figures"
    shares = pd.read_csv(figures / "prevalence.csv").set_index(["part", "label"])
    assert shares.loc[("test", "No Finding"), "films"] == 9861
    people = pd.read_csv(figures / "patients_by_finding.csv").set_index("label")
    assert people.loc["Edema", "ap"] == pytest.approx(0.88, abs=0.01)
