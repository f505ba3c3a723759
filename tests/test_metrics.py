"""Metrics against outside oracles: scikit-learn, and a published model's 14 AUCs."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sklearn

from cxrlib import UserError, metrics
from cxrlib import labels as order


@st.composite
def readings(draw, most=60):
    """One finding's labels with both classes, and scores with many ties (few levels) or none."""
    n = draw(st.integers(2, most))
    labels = draw(arrays.arrays(np.uint8, n, elements=st.integers(0, 1)))
    labels[draw(st.integers(0, n - 1))] ^= 1
    if labels.min() == labels.max():
        labels[0] ^= 1
    levels = draw(st.sampled_from([2, 5, 10_000]))
    return labels, draw(arrays.arrays(np.float64, n, elements=st.integers(0, levels).map(lambda i: i / levels)))


@given(readings())
def test_auc_is_scikit_learns(reading):
    assert metrics.roc_auc(*reading) == pytest.approx(sklearn.roc_auc_score(*reading), abs=1e-12)


@given(readings())
def test_average_precision_is_scikit_learns(reading):
    assert metrics.average_precision(*reading) == pytest.approx(sklearn.average_precision_score(*reading), abs=1e-12)


@given(readings())
def test_roc_curve_is_scikit_learns(reading):
    false, true, thresholds = sklearn.roc_curve(*reading, drop_intermediate=False)
    curve = metrics.roc_curve(*reading)
    np.testing.assert_allclose(curve.x, false, atol=1e-12)
    np.testing.assert_allclose(curve.y, true, atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds[1:], thresholds[1:])


@given(readings())
def test_area_under_the_drawn_curve_is_the_auc(reading):
    curve = metrics.roc_curve(*reading)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(metrics.roc_auc(*reading), abs=1e-12)


@given(readings())
def test_pr_curve_is_scikit_learns(reading):
    precision, recall, _ = sklearn.precision_recall_curve(*reading)
    curve = metrics.pr_curve(*reading)
    np.testing.assert_allclose(np.interp(recall[::-1], curve.x, curve.x), recall[::-1], atol=1e-12)
    np.testing.assert_allclose(curve.y[1:], precision[:-1][::-1], atol=1e-12)


@given(readings(), st.floats(0, 1))
def test_numbers_at_a_threshold_are_scikit_learns(reading, threshold):
    labels, scores = reading
    called = (scores >= threshold).astype(int)
    found = metrics.at_threshold(labels, scores, threshold)
    assert found.sensitivity == pytest.approx(sklearn.recall_score(labels, called))
    assert found.specificity == pytest.approx(sklearn.recall_score(1 - labels, 1 - called))
    assert found.f1 == pytest.approx(sklearn.f1_score(labels, called))
    if called.any():
        assert found.ppv == pytest.approx(sklearn.precision_score(labels, called))
    else:
        assert np.isnan(found.ppv)
    if not called.all():
        assert found.npv == pytest.approx(sklearn.precision_score(1 - labels, 1 - called))
    else:
        assert np.isnan(found.npv)


@given(readings())
def test_auc_knows_ranks_alone_and_mirrors(reading):
    labels, scores = reading
    auc = metrics.roc_auc(labels, scores)
    assert metrics.roc_auc(labels, scores**3 * 7 - 2) == pytest.approx(auc)
    assert metrics.roc_auc(labels, -scores) == pytest.approx(1 - auc)
    assert metrics.roc_auc(1 - labels, scores) == pytest.approx(1 - auc)


@pytest.mark.parametrize(
    ("labels", "why"),
    [([0, 0, 0], "no film with the finding"), ([1, 1, 1], "no film without the finding"), ([], "no films")],
)
def test_one_class_is_undefined_and_says_why(labels, why):
    labels, scores = np.array(labels, np.uint8), np.linspace(0, 1, len(labels))
    assert np.isnan(metrics.roc_auc(labels, scores))
    assert len(metrics.roc_curve(labels, scores).x) == 0
    assert metrics.reason(labels) == why
    assert metrics.reason(np.array([0, 1])) == ""


def test_undefined_findings_and_no_finding_stay_out_of_the_mean():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (50, 15)), rng.random((50, 15))
    labels[:, 3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean = metrics.mean_auc(labels, scores)
        assert np.isnan(metrics.mean_auc(labels * 0, scores))
    others = [k for k in range(14) if k != 3]
    assert mean == pytest.approx(np.mean([sklearn.roc_auc_score(labels[:, k], scores[:, k]) for k in others]))


def test_micro_auc_is_scikit_learns():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, (40, 15)), rng.random((40, 15)).round(1)
    assert metrics.micro_auc(labels, scores) == pytest.approx(sklearn.roc_auc_score(labels, scores, average="micro"))


@pytest.mark.parametrize(
    ("labels", "scores", "says"),
    [
        ([0, 1], [0.1, np.nan], "NaN"),
        ([0, -1], [0.1, 0.2], "-1"),
        ([0, 1, 1], [0.1, 0.2], "films"),
        ([[0, 1]], [[0.1, 0.2]], "films"),
    ],
)
def test_bad_input_is_named(labels, scores, says):
    with pytest.raises(UserError, match=says):
        metrics.roc_auc(np.array(labels), np.array(scores))


def test_matrices_of_other_films_are_refused():
    with pytest.raises(UserError, match="shape"):
        metrics.auc_per_label(np.zeros((3, 15)), np.zeros((4, 15)))


@pytest.mark.real
def test_published_aucs_to_four_decimals(nih_metadata):
    published = pd.read_csv(nih_metadata / "densenet121_random_split_aucs.csv").set_index("label")["auc"]
    films, probabilities = published_predictions(nih_metadata)
    found = metrics.auc_per_label(films, probabilities)
    np.testing.assert_array_equal(found.round(4), published[list(order.FINDINGS)].to_numpy().round(4))
    assert metrics.mean_auc(films, probabilities) == pytest.approx(published.mean(), abs=5e-5)


def published_predictions(folder):
    """Predictions of a published DenseNet-121 on 22,433 films: labels (N, 14), probabilities (N, 14)."""
    read = pd.read_csv(folder / "densenet121_random_split_preds.csv.gz").set_index("Image Index")
    entries = pd.read_csv(folder / "Data_Entry_2017_v2020.csv.gz").set_index("Image Index").loc[read.index]
    labels = np.stack([order.encode(text) for text in entries["Finding Labels"]])[:, :14]
    return labels, read[[f"prob_{finding}" for finding in order.FINDINGS]].to_numpy()
