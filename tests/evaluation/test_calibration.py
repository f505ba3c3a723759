"""Calibration against scikit-learn's logistic regression, simulated labels, and focal loss minimised on a grid."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from cxrlib import UserError, metrics
from cxrlib.evaluation import calibration


def forecasts(films=4000, seed=0, slope=1.0, shift=0.0):
    """15 labels with true probabilities; the network's probabilities have a scaled and shifted logit."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.2, (films, 15))
    known = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    return known, 1 / (1 + np.exp(-(logits * slope + shift))), np.arange(films)


def test_platt_undoes_a_stretch_and_a_shift():
    known, said, patients = forecasts(slope=0.4, shift=0.8)
    fitted = calibration.fit(known, said, "platt")
    fresh, fresh_said, _ = forecasts(seed=1, slope=0.4, shift=0.8)
    before = calibration.scores(fresh, fresh_said, patients, replicates=20)
    after = calibration.scores(fresh, fitted(fresh_said), patients, replicates=20)
    assert np.allclose(fitted.slopes, 2.5, rtol=0.2)
    assert (after["ece"] < 0.03).all()
    assert (before["ece"] > 0.1).all()
    assert (after["brier"] < before["brier"]).all()
    assert (after["brier"] < after["brier_prevalence"]).all()


def focal_answers(films=3000, gamma=2.0, seed=0):
    """Minimisers of focal loss for true probabilities, found on a grid instead of by the formula."""
    known, truth, patients = forecasts(films, seed)
    q = np.linspace(1e-4, 1 - 1e-4, 4001)
    grid = np.linspace(0.002, 0.998, 500)
    loss = [-t * (1 - q) ** gamma * np.log(q) - (1 - t) * q**gamma * np.log(1 - q) for t in grid]
    return known, np.interp(truth, grid, q[np.argmin(loss, axis=1)]), patients


def test_the_focal_bias_is_undone_without_a_single_film_and_with_films_no_worse():
    known, said, patients = focal_answers()
    few = calibration.fit(known[:5], said[:5], gamma=2.0)
    assert all("validation films" in reason for reason in few.reasons), "no line was fitted"
    fresh, fresh_said, _ = focal_answers(seed=1)
    whole = calibration.fit(known, said, gamma=2.0)
    before, undone, fitted = (
        calibration.scores(fresh, way, patients, replicates=5)[["ece", "brier"]].mean()
        for way in (fresh_said, few(fresh_said), whole(fresh_said))
    )
    assert before["ece"] > 0.08
    assert undone["ece"] < 0.03
    assert fitted["ece"] < 0.03
    assert undone["brier"] < before["brier"] - 0.005
    assert np.allclose(whole.slopes, 1, atol=0.2), "after the bias is undone little is left for the line"


def test_temperature_undoes_a_stretch_alone():
    known, said, _ = forecasts(slope=3.0)
    fitted = calibration.fit(known, said, "temperature")
    assert np.allclose(fitted.slopes, 1 / 3, rtol=0.12)
    assert fitted.intercepts == (0.0,) * 15


def test_platt_is_logistic_regression_on_smoothed_targets():
    known, said, _ = forecasts(300, slope=0.5)
    x, y = np.log(said[:, 0] / (1 - said[:, 0])), known[:, 0]
    positives = y.sum()
    high, low = (positives + 1) / (positives + 2), 1 / (len(y) - positives + 2)
    weights = np.concatenate([np.where(y, high, low), np.where(y, 1 - high, 1 - low)])
    oracle = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000)
    oracle.fit(np.tile(x, 2)[:, None], np.repeat([1, 0], len(y)), sample_weight=weights)
    fitted = calibration.fit(known, said, "platt")
    assert fitted.slopes[0] == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
    assert fitted.intercepts[0] == pytest.approx(oracle.intercept_[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_ranking_stays(kind):
    known, said, _ = forecasts(500, slope=0.3, shift=1)
    said = said.round(2)
    after = calibration.fit(known, said, kind)(said)
    np.testing.assert_allclose(metrics.auc_per_label(known, after), metrics.auc_per_label(known, said), atol=1e-12)
    assert ((after >= 0) & (after <= 1)).all()


LINES = {"slopes": st.floats(0.05, 50), "intercepts": st.floats(-10, 10)}
SINGLES = st.floats(0, 1, width=32, allow_subnormal=True)
DIGITS = st.integers(0, 10**9).map(lambda number: number / 10**9)


@given(
    said=st.lists(st.one_of(SINGLES, DIGITS), min_size=2, max_size=40),
    gamma=st.sampled_from([0.0, 1.0, 2.0, 3.5]),
    slope=LINES["slopes"],
    intercept=LINES["intercepts"],
)
@settings(max_examples=300, deadline=None)
def test_no_rank_changes_and_no_tie_is_made(said, gamma, slope, intercept):
    """Calibration changes no AUC, of float32 probabilities or of a file's nine digits."""
    line = calibration.Calibration("platt", gamma, (slope,) * 15, (intercept,) * 15, ("",) * 15)
    said = np.array(said)
    for after in (line(said[:, None])[:, 0], line.logits(said[:, None])[:, 0], calibration.unfocal(said, gamma)):
        np.testing.assert_array_equal(rankdata(after), rankdata(said))
        assert np.isfinite(after).all()
    assert ((line(said[:, None]) >= 0) & (line(said[:, None]) <= 1)).all()


def test_saturated_answers_keep_their_auc():
    rng = np.random.default_rng(0)
    known = rng.random((400, 15)) < 0.3
    logits = np.float32(-25 + 8 * rng.normal(size=(400, 15)) + 6 * known)
    said = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert np.quantile(said, 0.75) < 1e-7, "most lie below where they were once cut off"
    fitted = calibration.fit(known, said, gamma=2.0)
    after = metrics.auc_per_label(known, fitted(said))
    np.testing.assert_allclose(after, metrics.auc_per_label(known, said), atol=1e-12)


def test_what_cannot_be_fitted_stays_and_says_why():
    known, said, _ = forecasts(200)
    known[:, 0], known[:, 1] = 0, said[:, 1] < np.median(said[:, 1])
    known[:, 2] = said[:, 2] > np.median(said[:, 2])  # a perfect ranking: no infinite slope
    said[0, 3], said[1, 3] = 0.0, 1.0
    fitted = calibration.fit(known, said, "platt")
    assert "0 validation films" in fitted.reasons[0]
    assert "do not rise" in fitted.reasons[1]
    assert fitted.reasons[2] == fitted.reasons[3] == ""
    assert np.isfinite(fitted.slopes).all()
    np.testing.assert_array_equal(fitted(said)[:, :2], said[:, :2])
    np.testing.assert_array_equal(calibration.fit(known, said, "none")(said), said)
    with pytest.raises(UserError, match="temperature"):
        calibration.fit(known, said, "isotonic")


def test_travels_as_json():
    known, said, _ = forecasts(300)
    fitted = calibration.fit(known, said)
    values = json.loads(json.dumps(fitted.as_dict(), allow_nan=False))
    assert calibration.from_dict(values) == fitted
    assert calibration.from_dict(calibration.fit(known, said, gamma=2).as_dict()).gamma == 2
    values["labels"] = values["labels"][::-1]
    with pytest.raises(UserError, match="order"):
        calibration.from_dict(values)
    with pytest.raises(UserError, match="slopes"):
        calibration.from_dict({key: value for key, value in fitted.as_dict().items() if key != "slopes"})


@pytest.mark.parametrize("gamma", [0, 1, 2, 3.5])
def test_unfocal_inverts_what_focal_loss_drives_a_network_to(gamma):
    q = np.linspace(1e-4, 1 - 1e-4, 200_001)
    for truth in (0.01, 0.1, 0.4, 0.5, 0.9):
        loss = -truth * (1 - q) ** gamma * np.log(q) - (1 - truth) * q**gamma * np.log(1 - q)
        driven = q[np.argmin(loss)]
        assert calibration.unfocal(driven, gamma) == pytest.approx(truth, abs=1e-3)
        assert abs(driven - 0.5) <= abs(truth - 0.5) + 1e-4, "nearer to the middle than the truth"


def test_reliability_bins_hold_all_films_and_ties_together():
    known, said, _ = forecasts(1000)
    rows = calibration.reliability(known[:, 0], said[:, 0].round(1), bins=8)
    assert rows["films"].sum() == 1000
    assert (rows["low"].to_numpy()[1:] > rows["high"].to_numpy()[:-1]).all()
    assert ((rows["observed_low"] <= rows["observed"]) & (rows["observed"] <= rows["observed_high"])).all()
    assert len(calibration.reliability(known[:5, 0] * 0, np.full(5, 0.3))) == 1


def test_ece_by_hand():
    labels, said = np.array([0, 0, 1, 1]), np.array([0.2, 0.2, 0.6, 0.6])
    assert calibration.ece(labels, said, bins=2) == pytest.approx((0.2 + 0.4) / 2)
    assert calibration.ece(np.array([0, 1]), np.array([0.0, 1.0]), bins=2) == 0
    assert np.isnan(calibration.ece(labels[:0], said[:0]))


def test_brier_is_scikit_learns():
    from sklearn.metrics import brier_score_loss

    known, said, patients = forecasts(200)
    table = calibration.scores(known, said, patients // 2, replicates=200)
    assert table["brier"][3] == pytest.approx(brier_score_loss(known[:, 3], said[:, 3]))
    assert ((table["brier_low"] < table["brier"]) & (table["brier"] < table["brier_high"])).all()
