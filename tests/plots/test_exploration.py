"""Counts of patients by finding, and of gaps in their labels, on made-up films."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cxrlib.data import records
from cxrlib.labels import LABELS
from cxrlib.plots import exploration


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def films(rows) -> pd.DataFrame:
    """Films of (patient, follow-up, age, sex, view, findings)."""
    known = [{name: int(name in row[5]) for name in LABELS} for row in rows]
    table = pd.DataFrame([row[:5] for row in rows], columns=["patient", "follow_up", "age", "sex", "view"])
    return pd.concat([table, pd.DataFrame(known)], axis=1)


@pytest.fixture
def few() -> pd.DataFrame:
    return films(
        [
            (1, 0, 20, "F", "PA", ["Mass"]),
            (1, 1, 30, "F", "AP", ["Mass", "Edema"]),
            (2, 0, 40, "M", "AP", ["Mass"]),
            (3, 0, np.nan, "", "", ["Edema"]),
        ]
    )


def test_patients_by_finding_leaves_out_what_is_not_known(few):
    table = exploration.patients_by_finding(few).set_index("label")
    assert list(table.index) == ["all films", *LABELS]
    assert table.loc["Mass", ["films", "age"]].tolist() == [3, 30]
    assert table.loc["Mass", ["women", "ap"]].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert table.loc["Edema", ["films", "age", "women", "ap"]].tolist() == [2, 30, 1, 1]
    assert table.loc["Hernia", ["age", "women", "ap"]].isna().all()


@pytest.mark.parametrize("column", ["age", "women", "ap"])
def test_every_label_has_its_point(column, few):
    _, ax = plt.subplots()
    numbers = exploration.patients_by_finding(few)
    exploration.by_finding(numbers, column, ax)
    plt.gcf().canvas.draw()
    drawn = ax.lines[0].get_xdata() / (1 if column == "age" else 100)
    np.testing.assert_allclose(drawn, numbers[column][1:])
    assert [text.get_text() for text in ax.get_yticklabels()][4] == "Mass (3)"


def test_a_gap_lies_between_two_films_of_one_patient():
    named = ["Hernia"]
    table = films(
        [
            (1, 2, 50, "F", "PA", named),
            (1, 0, 50, "F", "PA", named),
            (1, 1, 50, "F", "PA", []),
            (1, 3, 50, "F", "PA", named),
            (1, 4, 50, "F", "PA", named),
            (2, 0, 50, "F", "PA", named),
            (2, 1, 50, "F", "PA", []),
            (3, 0, 50, "F", "PA", named),
        ]
    )
    row = exploration.gaps(table).set_index("finding").loc["Hernia"]
    assert row[["chances", "gaps"]].tolist() == [2, 1]
    assert row["share"] == 0.5
    assert exploration.gaps(table.head(1))["share"].isna().all()


@pytest.mark.real
def test_gaps_of_the_whole_dataset_against_a_loop(nih_metadata):
    table = records.read_csv(records.find_table(nih_metadata)).head(20_000)
    chances = gone = 0
    for _, own in table.sort_values("follow_up").groupby("patient"):
        named = own["Fibrosis"].tolist()
        runs = [named[i : i + 3] for i in range(len(named) - 2) if named[i] and named[i + 2]]
        chances, gone = chances + len(runs), gone + sum(not run[1] for run in runs)
    row = exploration.gaps(table).set_index("finding").loc["Fibrosis"]
    assert row[["chances", "gaps"]].tolist() == [chances, gone]
    assert chances > 20
