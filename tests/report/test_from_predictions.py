"""The report's tables and figures from predictions alone are those that ``06_evaluation`` leaves."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from cxrlib import dataset, paths
from cxrlib.data import film_quality
from cxrlib.evaluation import predict
from cxrlib.report import from_predictions
from cxrlib.training import schedules
from cxrlib.workbook import settings
from tests.cells import execute
from tests.evaluation.tiny_reader import small_networks
from tests.workbook import members, rooms

OF_A_NETWORK = {"stages", "first_to_last"}
"""Figures of ``06_evaluation`` that need checkpoints."""


def files(folder, suffix):
    return {file.stem: file for file in folder.glob(f"*{suffix}")}


@pytest.mark.slow
def test_it_writes_what_the_notebook_writes(tiny_phantom, monkeypatch):
    """On one run's predictions: every table and every figure of it has the same numbers as the notebook's."""
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setattr(film_quality, "judge", lambda film: film_quality.Judged(film.pixels))
    run, again = members.leave("one", tiny_phantom), paths.Run("again")
    book = next(book for book in settings.chain() if book.stem == "06_evaluation")
    with small_networks():
        execute(book, run="one", data=str(tiny_phantom), size=rooms.SIZE)
    opened = dataset.open(str(tiny_phantom), rooms.SIZE, progress=False)
    said = {part: predict.read(run.predictions / f"{part}.csv").probabilities for part in ("val", "test")}
    recipe = schedules.recipe("scratch", 1)
    gamma = recipe.gamma if recipe.loss == "focal" else 0.0
    from_predictions.write(again, opened.parts, said["val"], said["test"], pixels=opened.store, gamma=gamma)
    ours, theirs = files(again.tables, ".csv"), files(run.tables, ".csv")
    assert {"auc_test", "overall", "calibration", "thresholds", "subgroups", "gaps", "view_shortcut"} == {*ours}
    for name, file in ours.items():
        pd.testing.assert_frame_equal(pd.read_csv(file), pd.read_csv(theirs[name]))
    drawn, expected = files(again.figures, ".csv"), files(run.figures, ".csv")
    assert {*expected} - OF_A_NETWORK == {*drawn}
    for name, file in drawn.items():
        if name != "published":  # it names the run
            assert file.read_bytes() == expected[name].read_bytes(), name
            assert file.with_suffix(".svg").read_bytes() == expected[name].with_suffix(".svg").read_bytes(), name


def test_figures_are_closed_and_those_of_others_stay(tiny_phantom):
    """A notebook's own figure that is open stays so."""
    opened = dataset.open(str(tiny_phantom), rooms.SIZE, progress=False)
    own = plt.figure()
    rng = pd.Series(range(len(opened.parts.test))).to_numpy()[:, None] % 7 / 7
    from_predictions._closed(
        from_predictions.extremes, paths.Run("x"), opened.parts.test, rng.repeat(15, 1), opened.store
    )
    assert plt.get_fignums() == [own.number]
    plt.close(own)
