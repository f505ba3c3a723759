"""Figures show the numbers of their tables and name what is undefined; saved files are complete, small, repeatable."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxrlib import metrics
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.plots import common, exploration, results


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def reading():
    """150 films of 60 patients with 15 labels; Hernia has no film."""
    rng = np.random.default_rng(0)
    known = (rng.random((150, 14)) < 0.3).astype(np.uint8)
    known[:, 13] = 0
    known = np.column_stack([known, ~known.any(1)]).astype(np.uint8)
    scores = np.clip(0.3 * known + rng.random(known.shape) * 0.7, 0, 1)
    return known, scores, rng.integers(0, 60, 150)


def auc_table(known, scores):
    auc = metrics.auc_per_label(known, scores)[:14]
    rows = {
        "finding": list(FINDINGS),
        "positives": known[:, :14].sum(0),
        "auc": auc,
        "auc_low": auc - 0.05,
        "auc_high": auc + 0.05,
        "reason": [metrics.reason(known[:, k]) for k in range(14)],
    }
    mean = {"finding": metrics.MEAN, "positives": 9, "auc": 0.7, "auc_low": 0.6, "auc_high": 0.8, "reason": ""}
    return pd.concat([pd.DataFrame(rows), pd.DataFrame([mean])], ignore_index=True)


def texts(ax):
    return " ".join(text.get_text() for text in ax.texts)


def test_saving_is_whole_small_and_repeatable(tmp_path):
    numbers = pd.DataFrame({"x": [1, 2], "y": [0.123456789, np.nan]})
    for folder in ("a", "b"):
        fig, ax = plt.subplots()
        ax.plot(numbers["x"], [1, 2])
        path = common.save(fig, tmp_path / folder / "loss_1e-05", numbers)
        assert path == tmp_path / folder / "loss_1e-05.png"
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["loss_1e-05.csv", "loss_1e-05.png", "loss_1e-05.svg"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert path.stat().st_size < 20_000
    assert Image.open(path).size[0] > 400
    pd.testing.assert_frame_equal(pd.read_csv(path.with_suffix(".csv")), numbers, atol=1e-6)


def test_roc_points_are_the_curve_and_the_panel_says_auc_and_n(reading):
    known, scores, patients = reading
    points = results.roc_points(known, scores, patients, replicates=50)
    for k, finding in enumerate(FINDINGS):
        rows = points[points["finding"] == finding]
        if finding == "Hernia":
            assert rows["sensitivity"].isna().all()
            continue
        assert np.trapezoid(rows["sensitivity"], rows["rate"]) == pytest.approx(
            metrics.roc_auc(known[:, k], scores[:, k]), abs=0.01
        )
        assert (rows["low"] <= rows["sensitivity"] + 0.05).all()
    _, axes = plt.subplots(3, 5)
    assert results.roc_grid(points, axes, auc_table(known, scores)) is axes
    assert "AUC" in texts(axes[0, 0])
    assert f"n = {known[:, 0].sum()} of 150" in texts(axes[0, 0])
    assert axes[2, 2].get_title(loc="left") == "Pleural Thickening"
    assert "undefined" in texts(axes[2, 3])
    assert not axes[2, 4].axison


def test_pr_panel_draws_the_prevalence(reading):
    known, scores, patients = reading
    points = results.pr_points(known, scores, patients, replicates=30)
    _, ax = plt.subplots()
    results.pr(points[points["finding"] == "Mass"], ax)
    assert ax.lines[0].get_ydata()[0] == pytest.approx(known[:, 4].mean())
    rows = points[points["finding"] == "Mass"]
    curve = metrics.pr_curve(known[:, 4], scores[:, 4])
    assert rows["precision"].iloc[-1] == pytest.approx(curve.y[curve.x == 1][0])


def test_forest_orders_by_auc_and_names_the_undefined(reading):
    table = auc_table(*reading[:2])
    _, ax = plt.subplots()
    assert results.forest({"stage 1": table, "stage 2": table.assign(auc=table["auc"] + 0.01)}, ax) is ax
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names[-1] == metrics.MEAN
    assert names[-2].startswith("Hernia  (n = 0)")
    assert names[0].startswith(FINDINGS[table.iloc[:14]["auc"].idxmax()].replace("_", " "))
    assert "no film with the finding" in texts(ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["stage 1", "stage 2"]


def test_gain_tells_sure_from_unsure():
    table = pd.DataFrame(
        {
            "finding": ["Mass", "Edema", "Hernia", metrics.MEAN],
            "positives": [3, 4, 0, 7],
            "difference": [0.1, 0.01, np.nan, 0.05],
            "low": [0.05, -0.02, np.nan, -0.01],
            "high": [0.15, 0.04, np.nan, 0.1],
            "p_holm": [0.03, 0.9, np.nan, 0.2],
        }
    )
    _, ax = plt.subplots()
    results.gain(table, ax)
    drawn = {line.get_label(): list(line.get_xdata()) for line in ax.lines if not line.get_label().startswith("_")}
    assert drawn["differs, adjusted for all findings"] == [0.1]
    assert 0.01 in drawn["may be chance"]
    assert 0.1 not in drawn["may be chance"]
    assert "undefined" in texts(ax)


def test_films_take_tensors_and_odd_captions():
    import torch

    _, axes = plt.subplots(2, 3)
    images = [torch.randn(1, 8, 8), np.zeros((8, 8), np.uint8), np.full((8, 8), 0.5)]
    common.films(images, ["Pleural_Thickening|Mass", "a $file_{0}$.png", "x " * 200], axes)
    plt.gcf().canvas.draw()
    assert axes[0, 0].get_title() == "Pleural Thickening, Mass"
    assert axes[0, 1].get_title() == "a $file_{0}$.png"
    assert axes[0, 2].get_title().count("\n") == 2
    assert not axes[1, 2].axison


def test_pairs_and_bars_show_what_they_are_given():
    _, (left, right) = plt.subplots(1, 2)
    results.pairs(pd.DataFrame({"a": [0.1, np.nan], "b": [0.3, np.nan]}, index=["Mass", "Hernia"]), left)
    assert left.lines[0].get_xdata()[0] == 0.1
    assert "undefined" in texts(left)
    results.bars(pd.Series({"fc": 0.25, "stem": np.nan}), right, "distance")
    assert [text.get_text() for text in right.texts] == ["0.25", "none"]


@pytest.fixture
def films():
    """60 films of 25 patients with an unknown age, sex and view among them."""
    rng = np.random.default_rng(3)
    known = (rng.random((60, 14)) < 0.25).astype(np.uint8)
    known[:, 13] = 0
    frame = pd.DataFrame(np.column_stack([known, ~known.any(1)]).astype(np.uint8), columns=list(LABELS))
    who = {"patient": rng.integers(0, 25, 60), "age": rng.integers(1, 90, 60).astype(float)}
    frame = frame.assign(**who, sex=rng.choice(["M", "F", ""], 60), view=rng.choice(["PA", "AP", ""], 60))
    frame.loc[0, "age"] = np.nan
    return frame


def test_dataset_numbers_are_counts(films):
    shares = exploration.prevalences({"train": films, "test": films.iloc[:0]})
    mass = shares[(shares["label"] == "Mass")].set_index("part")
    assert mass.loc["train", "films"] == films["Mass"].sum()
    assert np.isnan(mass.loc["test", "share"])
    both = exploration.co_occurrences(films)
    assert both.loc["Mass", "Edema"] == films.loc[films["Mass"] == 1, "Edema"].mean()
    assert both.loc["Hernia"].isna().all()
    counts = exploration.follow_ups(films)
    assert counts["patients"].sum() == films["patient"].nunique()
    assert counts["share_of_films"].sum() == pytest.approx(1)


def test_dataset_figures_draw(films):
    _, axes = plt.subplots(2, 3)
    parts = {"train": films, "val": films.iloc[:20], "test": films.iloc[:0]}
    drawn = [
        exploration.prevalence(exploration.prevalences(parts), axes[0, 0]),
        exploration.co_occurrence(exploration.co_occurrences(films), axes[0, 1]),
        exploration.age(films, axes[0, 2]),
        exploration.view_and_sex(films, axes[1, 0]),
        exploration.films_per_patient(exploration.follow_ups(films), axes[1, 1]),
        exploration.grey_levels(np.random.default_rng(0).integers(0, 256, (5, 16, 16)).astype(np.uint8), axes[1, 2]),
    ]
    plt.gcf().canvas.draw()
    assert drawn == list(axes.flat)
    assert "age unknown, n = 1" in [text.get_text() for text in axes[0, 2].get_legend().get_texts()]
