"""Thresholds against brute force over all cuts, and their use on test films."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlib import UserError, metrics
from cxrlib.evaluation import thresholds
from cxrlib.labels import LABELS


def reading(seed=0, films=80, levels=50):
    rng = np.random.default_rng(seed)
    known = (rng.random((films, 15)) < 0.3).astype(np.uint8)
    scores = np.clip(0.25 * known + 0.7 * rng.random(known.shape), 0, 1)
    return known, np.round(scores * levels) / levels


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([5, 1000]))
@settings(max_examples=20, deadline=None)
def test_no_other_cut_does_better(seed, levels):
    known, scores = reading(seed, 30, levels)
    known[0], known[1] = 0, 1
    chosen = thresholds.choose(known, scores).set_index(["finding", "rule"])["threshold"]
    for k in (0, 7):
        cuts = [metrics.at_threshold(known[:, k], scores[:, k], cut) for cut in np.unique(scores[:, k])]
        at = {
            rule: metrics.at_threshold(known[:, k], scores[:, k], chosen[LABELS[k], rule]) for rule in thresholds.RULES
        }
        gain = [cut.sensitivity + cut.specificity for cut in cuts]
        assert at["youden"].sensitivity + at["youden"].specificity == pytest.approx(max(gain))
        assert at["f1"].f1 == pytest.approx(max(cut.f1 for cut in cuts))
        enough = [cut.specificity for cut in cuts if cut.sensitivity >= 0.9 - 1e-12]
        assert at["sensitivity_90"].sensitivity >= 0.9 - 1e-12
        assert at["sensitivity_90"].specificity == pytest.approx(max(enough))


def test_a_finding_absent_from_validation_has_no_threshold_anywhere():
    known, scores = reading()
    known[:, 13] = 0
    chosen = thresholds.choose(known, scores)
    absent = chosen[chosen["finding"] == "Hernia"]
    assert absent["threshold"].isna().all()
    assert (absent["reason"] == "validation: no film with the finding").all()
    fresh, fresh_scores = reading(1)
    judged = thresholds.judge(chosen, fresh, fresh_scores, np.arange(80), replicates=50)
    hernia = judged[judged["finding"] == "Hernia"]
    assert hernia[["sensitivity", "specificity_low", "f1_high"]].isna().all(axis=None)
    assert (hernia["positives"] == fresh[:, 13].sum()).all()


def test_judged_numbers_are_the_metrics_with_intervals_around():
    known, scores = reading(2, 300)
    chosen = thresholds.choose(*reading(3))
    judged = thresholds.judge(chosen, known, scores, np.arange(300) // 2, replicates=200)
    row = judged.iloc[4]
    k = LABELS.index(row["finding"])
    expected = metrics.at_threshold(known[:, k], scores[:, k], row["threshold"])
    for name, value in expected._asdict().items():
        assert row[name] == pytest.approx(value)
        assert row[f"{name}_low"] <= value <= row[f"{name}_high"]


def test_travels_as_json():
    known, scores = reading()
    known[:, 13] = 0
    values = json.loads(json.dumps(thresholds.as_dict(thresholds.choose(known, scores)), allow_nan=False))
    found = thresholds.vector(values, "youden")
    assert found.shape == (15,)
    assert np.isnan(found[13])
    assert not np.isnan(np.delete(found, 13)).any()
    with pytest.raises(UserError, match="youden"):
        thresholds.vector(values, "best")
