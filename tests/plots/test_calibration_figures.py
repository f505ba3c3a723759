"""Figures of calibration, thresholds and groups: they show their tables' numbers and name what is undefined."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cxrlib.evaluation import subgroups, summary, thresholds
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.plots import results


@pytest.fixture(autouse=True)
def headless():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def films(n=240):
    rng = np.random.default_rng(0)
    known = (rng.random((n, 14)) < 0.3).astype(np.uint8)
    known[:, 13] = 0
    frame = pd.DataFrame(np.column_stack([known, ~known.any(1)]).astype(np.uint8), columns=list(LABELS))
    who = {"patient": np.arange(n) // 2, "age": rng.integers(1, 90, n).astype(float)}
    return frame.assign(**who, sex=rng.choice(["M", "F"], n), view="PA"), rng.random((n, 15))


def said(ax):
    return " ".join(text.get_text() for text in ax.texts)


def test_reliability_of_two_readings():
    frame, read = films()
    points = results.reliability_points(frame[list(LABELS)].to_numpy(), {"as trained": read, "Platt": read**2})
    assert len(points["finding"].unique()) == 14
    _, axes = plt.subplots(3, 5)
    results.reliability_grid(points, axes)
    plt.gcf().canvas.draw()
    assert [text.get_text().split(",")[0] for text in axes[0, 0].get_legend().get_texts()] == ["as trained", "Platt"]
    assert not axes[2, 4].axison


def test_groups_without_films_are_named():
    frame, read = films()
    _, ax = plt.subplots()
    results.groups(subgroups.auc(subgroups.measure(frame, read, replicates=20)), ax)
    assert "undefined: no films" in said(ax)
    assert "mean of 13" in said(ax)
    assert ax.get_yticklabels()[0].get_text() == "all films  (240 films)"


def test_gaps_and_shortcut_draw_with_undefined_findings():
    frame, read = films()
    table = subgroups.gaps(subgroups.measure(frame, read, (read > 0.5).astype(float), replicates=20))
    _, axes = plt.subplots(1, 2)
    results.gaps(table, axes)
    names = [tick.get_text() for tick in axes[0].get_yticklabels()]
    women, men = ((frame["sex"] == code).sum() for code in "FM")
    assert names[0] == f"women − men  ({women}, {men})"
    assert len(names) == len(subgroups.GAPS)
    assert "undefined" in said(axes[0]), "all films are PA"
    basic = table[table["kind"].isin(["sex", "age", "view"])]
    for number in subgroups.NUMBERS:
        _, axes = plt.subplots(1, 4)
        results.gaps_by_finding(basic, axes, number)
        assert said(axes[3]).count("undefined") == 15
        assert axes[0].get_yticklabels()[0].get_text() == FINDINGS[0]
    _, ax = plt.subplots()
    results.shortcut(subgroups.view_shortcut(frame, read, replicates=10), ax)
    plt.gcf().canvas.draw()
    assert "undefined" in said(ax)


def test_thresholds_of_every_rule_are_drawn_with_undefined_findings():
    frame, read = films()
    known = frame[list(LABELS)].to_numpy()
    judged = thresholds.judge(thresholds.choose(known, read), known, read, frame["patient"].to_numpy(), replicates=20)
    _, axes = plt.subplots(1, 3)
    results.thresholds(judged, axes)
    assert [ax.get_title(loc="left") for ax in axes] == ["Youden", "best F1", "90 % sensitivity"]
    assert all(said(ax) == "undefined" for ax in axes), "Hernia alone"
    assert set(results.RULE_TITLES) == set(thresholds.RULES)


def test_published_says_why_not():
    auc = pd.DataFrame({"finding": [*FINDINGS, "mean of 14"], "auc": 0.8, "auc_low": 0.79, "auc_high": 0.81})
    _, (left, right) = plt.subplots(1, 2)
    results.published(*_swapped(summary.beside_published(auc, ["a.png"], "demo"), left))
    assert "not compared" in said(left)
    ours = pd.DataFrame([{"method": "base", "network": "this run", "mean": 0.81, "mean_low": 0.80, "mean_high": 0.82}])
    results.published(pd.concat([ours, summary.published_table()], ignore_index=True), right)
    bold = [tick.get_text() for tick in right.get_yticklabels() if tick.get_fontweight() == "bold"]
    assert bold == ["base · this run"]


def _swapped(table_and_why, ax):
    table, why = table_and_why
    return table, ax, why
