"""Intervals against explicit resamples with scikit-learn, and the textbook forms of DeLong and Holm."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from cxrlib import UserError, metrics
from cxrlib.evaluation import delong, intervals


def reading(films=120, findings=3, patients=40, levels=1000, seed=0):
    """Clustered films: a patient's films share half of their score's noise; few levels make ties."""
    rng = np.random.default_rng(seed)
    who = rng.integers(0, patients, films)
    labels = (rng.random((films, findings)) < 0.3).astype(np.uint8)
    noise = rng.normal(size=(patients, findings))[who] + rng.normal(size=(films, findings))
    scores = 1 / (1 + np.exp(-(labels * 1.0 + noise)))
    return labels, np.round(scores * levels) / levels, who * 7 + 3


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([3, 20, 10**9]), patients=st.sampled_from([3, 25]))
@settings(max_examples=25, deadline=None)
def test_replicates_equal_scikit_learn_on_the_same_resamples(seed, levels, patients):
    labels, scores, who = reading(60, 2, patients, levels, seed)
    found = intervals.bootstrap(labels, scores, who, replicates=8, seed=seed)
    counts, rows = intervals.draw_resamples(who, 8, seed)
    for r in range(8):
        films = np.repeat(np.arange(len(who)), counts[rows, r])
        for k in range(labels.shape[1]):
            one_class = labels[films, k].min() == labels[films, k].max()
            if one_class:
                assert np.isnan(found.auc_replicates[r, k])
                continue
            auc = sklearn.roc_auc_score(labels[films, k], scores[films, k])
            ap = sklearn.average_precision_score(labels[films, k], scores[films, k])
            assert found.auc_replicates[r, k] == pytest.approx(auc, abs=1e-9)
            assert found.ap_replicates[r, k] == pytest.approx(ap, abs=1e-9)


def test_patients_are_drawn_whole():
    who = np.array([5, 5, 5, 9, 9, 2])
    counts, rows = intervals.draw_resamples(who, 50, seed=0)
    assert (counts.sum(0) == 3).all(), "as many patients as there are, each time"
    np.testing.assert_array_equal(counts[rows][0], counts[rows][2])
    np.testing.assert_array_equal(counts[:, :10], intervals.draw_resamples(who, 10, seed=0)[0])
    assert not np.array_equal(counts, intervals.draw_resamples(who, 50, seed=1)[0])


def test_micro_replicates_equal_scikit_learn_on_the_same_resamples(monkeypatch):
    labels, scores, who = reading(80, 4, 30, 20)
    monkeypatch.setattr(intervals, "POOLED", 7)
    counts, rows = intervals.draw_resamples(who, 20, seed=3)
    films = [np.repeat(np.arange(80), counts[rows, r]) for r in range(20)]
    replicates = [sklearn.roc_auc_score(labels[these], scores[these], average="micro") for these in films]
    found = intervals.micro_auc(labels, scores, who, replicates=20, seed=3)
    assert found.value == pytest.approx(sklearn.roc_auc_score(labels, scores, average="micro"))
    assert found[1:] == pytest.approx(np.quantile(replicates, [0.025, 0.975]), abs=1e-9)


def test_without_precision_the_aucs_are_the_same():
    data = reading()
    whole, half = (intervals.bootstrap(*data, replicates=30, precision=flag) for flag in (True, False))
    np.testing.assert_array_equal(whole.auc_replicates, half.auc_replicates)
    assert np.isnan(half.ap_replicates).all()
    assert np.isnan(half.mean_ap[1:]).all()


def test_blocks_do_not_show(monkeypatch):
    data = reading()
    whole = intervals.bootstrap(*data, replicates=30)
    monkeypatch.setattr(intervals, "BLOCK", 7)
    np.testing.assert_array_equal(whole.auc_replicates, intervals.bootstrap(*data, replicates=30).auc_replicates)


def test_each_film_twice_widens_nothing_by_patient_but_fools_a_film_bootstrap():
    labels, scores, _ = reading(150, 1, 150, 10**9)
    who = np.arange(150)
    doubled = np.concatenate([labels, labels]), np.concatenate([scores, scores])
    alone = _width(intervals.bootstrap(labels, scores, who))
    assert _width(intervals.bootstrap(*doubled, np.concatenate([who, who]))) == pytest.approx(alone, rel=0.02)
    assert _width(intervals.bootstrap(*doubled, np.arange(300))) < 0.85 * alone


def test_interval_holds_the_value_and_agrees_with_delong():
    labels, scores, who = reading(400, 2, 400, 10**9)
    found = intervals.bootstrap(labels, scores, who)
    low, high = found.auc_interval
    assert ((low < found.auc) & (found.auc < high)).all()
    for k in range(2):
        by_delong = intervals.delong_interval(labels[:, k], scores[:, k])
        assert (low[k], high[k]) == pytest.approx(by_delong[1:], abs=0.012)


def test_too_few_patients_with_the_finding_give_no_interval():
    labels, scores, who = reading(200, 15, 80, 10**9)
    labels[:, 0] = 0
    labels[1:, 1], labels[0, 1] = 0, 1
    found = intervals.bootstrap(labels, scores, who, replicates=100)
    assert np.isnan(found.auc[0])
    assert not np.isnan(found.auc[1])
    assert np.isnan(found.auc_interval[0][:2]).all()
    assert not np.isnan(found.auc_interval[0][2:]).any()
    assert found.mean_auc.value == pytest.approx(np.nanmean(found.auc[:14]))
    assert np.isnan([found.mean_auc.low, found.mean_ap.high]).all(), "one finding in it is on one patient"
    assert "1 patients with or without Cardiomegaly" in found.why_mean()
    labels[:, 1] = 0
    found = intervals.bootstrap(labels, scores, who, replicates=100)
    assert found.why_mean() == ""
    assert found.mean_auc.low < found.mean_auc.value < found.mean_auc.high
    assert found.mean_ap.low < found.mean_ap.value < found.mean_ap.high


def test_the_mean_is_of_the_same_findings_in_every_resample():
    """Three patients have Hernia, with reversed scores, so the mean without Hernia is always higher."""
    labels, scores, who = reading(300, 14, 60, 10**9)
    labels[:, 13] = np.isin(who, np.unique(who)[:3])
    scores[:, 13] = 1 - labels[:, 13]
    found = intervals.bootstrap(labels, scores, who, replicates=400)
    lacking = np.isnan(found.auc_replicates[:, 13])
    assert 0.01 < lacking.mean() < 0.2
    np.testing.assert_array_equal(np.isnan(found.mean_replicates()), np.isnan(found.auc_replicates).any(1))
    assert np.nanmean(found.auc_replicates[lacking], axis=1).min() > found.mean_auc.high, "as if it were another mean"


def test_p_of_a_bootstrap_is_never_less_than_its_resamples_can_tell():
    labels, scores, who = reading(400, 14, 200, 10**9)
    best, worst = (intervals.bootstrap(labels, sign * labels.astype(float), who, replicates=99) for sign in (1, -1))
    found = intervals.difference(best, worst)
    assert found.value == 1
    assert 2 / 100 <= found.p < 0.03
    with pytest.raises(UserError, match="different films"):
        intervals.difference(best, intervals.bootstrap(labels[:, ::-1], scores, who, replicates=99))


@given(seed=st.integers(0, 300))
@settings(max_examples=15, deadline=None)
def test_a_share_by_patient_is_the_textbooks_ratio_estimator(seed):
    """Cochran, Sampling Techniques, 6.4: the variance of a ratio of cluster totals, for an infinite population."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(25), rng.integers(1, 6, 25))
    whole = np.ones(len(rows))
    hits = (rng.random(len(rows)) < 0.4).astype(float)
    found = delong.share(hits, whole, rows, 25)
    totals, sizes = np.bincount(rows, hits), np.bincount(rows)
    rest = totals - totals.sum() / sizes.sum() * sizes
    assert found.value == pytest.approx(hits.mean())
    assert found.error**2 == pytest.approx(25 / 24 * (rest**2).sum() / sizes.sum() ** 2)


def test_few_patients_widen_percentiles_and_many_do_not():
    found = np.random.default_rng(0).normal(size=(4000, 2))
    plain, few, many = (np.subtract(*intervals.percentiles(found, n)[::-1]).mean() for n in (None, 10, 3000))
    assert few / plain == pytest.approx(2.262 * np.sqrt(10 / 9) / 1.96, rel=0.05), "Student's t of nine"
    assert many == pytest.approx(plain, rel=1e-3)
    mixed = intervals.percentiles(found, np.array([10, 3000]))
    assert mixed[0][0] == intervals.percentiles(found, 10)[0][0]
    assert mixed[1][1] == intervals.percentiles(found, 3000)[1][1]


def test_difference_of_two_models_is_paired():
    labels, scores, who = reading(400, 14, 150, 10**9)
    worse = scores + np.random.default_rng(1).normal(0, 0.02, scores.shape)
    much_worse = np.random.default_rng(2).random(scores.shape)
    base = intervals.bootstrap(labels, scores, who, replicates=300)
    near = intervals.difference(base, intervals.bootstrap(labels, worse, who, replicates=300))
    far = intervals.difference(base, intervals.bootstrap(labels, much_worse, who, replicates=300))
    assert near.high - near.low < (base.mean_auc.high - base.mean_auc.low) / 2
    assert far.low > 0
    assert far.p <= 0.05
    same = intervals.difference(base, base)
    assert same == (0, 0, 0, 1)


def test_bands_hold_the_curve():
    labels, scores, who = reading(500, 1, 300, 10**9)
    labels, scores = labels[:, 0], scores[:, 0]
    band = intervals.roc_band(labels, scores, who, replicates=200)
    curve = metrics.roc_curve(labels, scores)
    drawn = np.interp(band.x, curve.x, curve.y)
    assert (band.low <= drawn + 0.02).all()
    assert (band.high >= drawn - 0.02).all()
    assert (band.low[20:80] < band.high[20:80]).all()
    band = intervals.pr_band(labels, scores, who, replicates=200)
    assert ((band.low >= 0) & (band.low <= band.high) & (band.high <= 1)).all()


@given(seed=st.integers(0, 1000), levels=st.sampled_from([4, 10**9]))
@settings(max_examples=20, deadline=None)
def test_curves_of_a_resample_equal_scikit_learns(seed, levels):
    labels, scores, who = reading(80, 1, 30, levels, seed)
    labels, scores = labels[:, 0], scores[:, 0]
    counts, rows = intervals.draw_resamples(who, 3, seed)
    at, x = intervals.running_weights(labels, scores, counts, rows), np.linspace(0.013, 0.987, 20)
    true, precise = intervals.resampled_sensitivity(at, x), intervals.resampled_precision(at, x)
    for r in range(3):
        films = np.repeat(np.arange(len(who)), counts[rows, r])
        if labels[films].min() == labels[films].max():
            continue
        false_rates, rates, _ = sklearn.roc_curve(labels[films], scores[films], drop_intermediate=False)
        np.testing.assert_allclose(true[r], np.interp(x, false_rates, rates), atol=1e-9)
        precisions, recalls, _ = sklearn.precision_recall_curve(labels[films], scores[films])
        first = [precisions[np.flatnonzero(recalls >= level - 1e-12)[-1]] for level in x]
        np.testing.assert_allclose(precise[r], first, atol=1e-9)


def _textbook_delong(labels, scores):
    """DeLong, DeLong & Clarke-Pearson (1988) with the full matrix of comparisons."""
    ones, zeros = scores[:, labels == 1], scores[:, labels == 0]
    kernel = (ones[:, :, None] > zeros[:, None]) + 0.5 * (ones[:, :, None] == zeros[:, None])
    return np.cov(kernel.mean(2)) / ones.shape[1] + np.cov(kernel.mean(1)) / zeros.shape[1]


@given(seed=st.integers(0, 1000), levels=st.sampled_from([5, 10**9]))
@settings(max_examples=25, deadline=None)
def test_fast_delong_is_the_textbooks(seed, levels):
    labels, scores, _ = reading(90, 2, 90, levels, seed)
    truth, a, b = labels[:, 0], scores[:, 0], scores[:, 1]
    spread = _textbook_delong(truth, np.stack([a, b]))
    found = intervals.delong_interval(truth, a)
    assert found.high - found.value == pytest.approx(
        min(1.959964 * np.sqrt(spread[0, 0]), 1 - found.value), rel=1e-5, abs=1e-12
    )
    gap = intervals.delong_difference(truth, a, b)
    error = np.sqrt(spread[0, 0] + spread[1, 1] - 2 * spread[0, 1])
    assert gap.high - gap.value == pytest.approx(1.959964 * error, rel=1e-5)


def test_delong_by_patient_ignores_copies_of_films():
    labels, scores, _ = reading(200, 1, 200, 10**9)
    labels, scores = labels[:, 0], scores[:, 0]
    twice = np.tile(labels, 2), np.tile(scores, 2)
    alone, by_patient = (
        intervals.delong_interval(labels, scores, np.arange(200)),
        intervals.delong_interval(*twice, np.tile(np.arange(200), 2)),
    )
    by_film = intervals.delong_interval(*twice)
    assert by_patient.high - by_patient.low == pytest.approx(alone.high - alone.low, rel=1e-9)
    assert by_film.high - by_film.low < 0.75 * (alone.high - alone.low)


def test_delong_undefined_and_equal():
    assert np.isnan(intervals.delong_interval(np.zeros(5), np.arange(5.0))).all()
    assert np.isnan(intervals.delong_interval(np.array([1, 0, 0]), np.arange(3.0))[1:]).all()
    assert np.isnan(intervals.delong_difference(np.array([1, 0, 0]), np.arange(3.0), -np.arange(3.0)).p)
    labels, scores, _ = reading()
    assert intervals.delong_difference(labels[:, 0], scores[:, 0], scores[:, 0] / 2) == (0, 0, 0, 1)


def test_holm_by_hand():
    np.testing.assert_allclose(intervals.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(intervals.holm([0.6, np.nan, 0.02]), [0.6, np.nan, 0.04])
    assert np.isnan(intervals.holm([np.nan])).all()


def test_all_or_none_is_no_certainty():
    """Every resample of 20 hits is 20 hits; ten patients still allow a share of 0.72 (Wilson)."""
    who, ones = np.repeat(np.arange(10), 2), np.ones((20, 3))
    hits = np.stack([np.ones(20), np.zeros(20), np.arange(20) % 3 == 0], 1)
    value, low, high = intervals.ratio(hits, ones, who, replicates=100)
    assert (value[0], high[0], value[1], low[1]) == (1, 1, 0, 0)
    assert (low[0], high[1]) == pytest.approx((0.7225, 0.2775), abs=1e-3)
    assert 0 < low[2] < value[2] < high[2] < 1
    lift = intervals.ratio(hits[:, :1] * 3, ones[:, :1] * 3, who, replicates=100)
    assert lift[1] == low[0]
    pairs = np.tile([1.0, 3.0], 10)[:, None]
    assert intervals.ratio(pairs, 2 * ones[:, :1], who, replicates=100)[1] == 1, "a ratio of 1 need not be a share"


def test_wilson_by_hand():
    share, low, high = intervals.proportion(8, 10)
    assert (share, low, high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert np.isnan(intervals.proportion(0, 0)).all()


def test_films_of_another_order_are_refused():
    labels, scores, who = reading()
    with pytest.raises(UserError, match="same films"):
        intervals.bootstrap(labels, scores, who[:-1])
    with pytest.raises(UserError, match="empty"):
        intervals.bootstrap(labels[:0], scores[:0], who[:0])


def _width(found):
    low, high = found.auc_interval
    return float((high - low)[0])


def of_seeds(labels, who, seeds, strength=1.0):
    """Bootstraps of several trainings on the same films: each seed has noise of its own."""
    rows = []
    for seed in seeds:
        noise = np.random.default_rng(seed).normal(size=labels.shape)
        rows.append(1 / (1 + np.exp(-(strength * labels + noise))))
    return rows, [intervals.bootstrap(labels, scores, who, replicates=200, precision=False) for scores in rows]


def test_one_seed_is_itself_and_equal_seeds_change_nothing():
    labels, scores, who = reading(200, 14, 60)
    boot = intervals.bootstrap(labels, scores, who, replicates=50)
    for runs in ([boot], [boot, boot]):
        together = intervals.over_seeds(runs)
        np.testing.assert_allclose(together.auc_replicates, boot.auc_replicates)
        assert together.mean_auc == pytest.approx(boot.mean_auc)
    alone = intervals.delong_difference(labels[:, 0], scores[:, 0], scores[:, 1], who)
    several = intervals.delong_difference_over_seeds(labels[:, 0], [scores[:, 0]] * 3, [scores[:, 1]] * 2, who)
    assert several == pytest.approx(alone)


def test_the_mean_over_seeds_is_resampled_with_the_patients():
    """The AUC of each resample is the mean of the seeds' own AUCs on it, by scikit-learn."""
    labels, _, who = reading(150, 14, 50)
    rows, boots = of_seeds(labels, who, (1, 2, 3))
    together, (counts, places) = intervals.over_seeds(boots), intervals.draw_resamples(who, 200, 0)
    for r in (0, 7):
        films = np.repeat(np.arange(len(who)), counts[places, r])
        aucs = [sklearn.roc_auc_score(labels[films, 2], scores[films, 2]) for scores in rows]
        assert together.auc_replicates[r, 2] == pytest.approx(np.mean(aucs), abs=1e-9)


def test_bootstraps_of_other_films_are_no_series():
    one, other = (reading(120, 14, patients) for patients in (40, 30))
    boots = [intervals.bootstrap(*read, replicates=10) for read in (one, other)]
    with pytest.raises(UserError, match="cannot be paired"):
        intervals.over_seeds(boots)


@given(st.lists(st.floats(0.5, 1), min_size=2, max_size=6), st.lists(st.floats(0.5, 1), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_difference_over_seeds_is_welchs(ours, theirs):
    found = intervals.seeds_difference(ours, theirs)
    assert found.value == pytest.approx(np.mean(ours) - np.mean(theirs))
    if min(np.std(ours), np.std(theirs)) < 1e-6:  # SciPy warns of rounding there
        return
    expected = scipy.stats.ttest_ind(ours, theirs, equal_var=False)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((ends.low, ends.high, expected.pvalue), rel=1e-6, abs=1e-9)
    back = intervals.seeds_difference(theirs, ours)
    assert (back.low, back.high, back.p) == pytest.approx((-found.high, -found.low, found.p), nan_ok=True)


@pytest.mark.parametrize(
    ("ours", "theirs"), [([0.8], [0.7, 0.71]), ([0.8, 0.8], [0.7, 0.7]), ([np.nan, 0.8], [0.7, 0.6])]
)
def test_seeds_that_cannot_be_tested_have_a_difference_and_no_p(ours, theirs):
    found = intervals.seeds_difference(ours, theirs)
    assert np.isnan(found[1:]).all()
    assert np.isnan(found.value) == np.isnan(np.sum(ours))


@pytest.mark.slow
def test_seeds_and_patients_err_as_often_as_they_say():
    """Two equal recipes of three seeds each: Welch's p is below 0.05 in about 5 % of 2,000 such studies."""
    rng = np.random.default_rng(0)
    wrong = [intervals.seeds_difference(*rng.normal(0.8, 0.005, (2, 3))).p <= 0.05 for _ in range(2000)]
    assert 0.02 < np.mean(wrong) < 0.065
