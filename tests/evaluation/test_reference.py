"""The reference that travels with a checkpoint: percentiles, base rates, PPV and NPV, against counting by hand."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import percentileofscore

from cxrlib import UserError, paths
from cxrlib.evaluation import reference, thresholds
from cxrlib.labels import LABELS
from cxrlib.training import checkpoint, lineage, schedules


@pytest.fixture
def path(own_outputs):
    """A checkpoint of one weight; only its JSON matters here."""
    line, stage = lineage.of_stage(None, "none"), paths.Run("demo").stage(1)
    state = {"fc.bias": torch.zeros(15)}
    return checkpoint.save(stage, state, schedules.recipe("scratch", 1), line, epoch=1, metrics={})


def films(count, seed=0):
    """Labels (count, 15), the last finding absent, and probabilities that rise with them."""
    rng = np.random.default_rng(seed)
    known = (rng.random((count, 15)) < 0.3).astype(np.uint8)
    known[:, 13] = 0
    return known, np.clip(0.2 + 0.2 * known + 0.5 * rng.random(known.shape), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    known, said = films(900)
    decisions = thresholds.fit_decisions(known, said)
    return known, said, decisions, reference.make(known, said, decisions)


@pytest.mark.parametrize("count", [60, 900])
def test_a_percentile_counts_the_validation_films_without_the_finding_that_got_less(count):
    known, said = films(count)
    decisions = thresholds.fit_decisions(known, said)
    ref = reference.make(known, said, decisions)
    new = decisions.calibration(films(40, seed=1)[1])
    for k in (0, 4, 14):
        without = decisions.calibration(said)[known[:, k] == 0, k]
        expected = [percentileofscore(without, value, "mean") for value in new[:, k]]
        np.testing.assert_allclose(ref.percentiles(new)[:, k], expected, atol=1e-9 if count < 201 else 1.0)
    assert (ref.percentiles(np.full((1, 15), -1.0)) == 0).all()
    assert (ref.percentiles(np.full((1, 15), 2.0)) == 100).all()


def test_predictive_values_are_those_of_a_population_with_this_prevalence(made):
    """Bayes' rule against counting the calls of films drawn again so that the prevalence is another."""
    known, said, decisions, ref = made
    calls = decisions.calls(said, "youden")
    for k, prevalence in ((0, 0.02), (4, 0.5), (14, 0.9)):
        weights = np.where(
            known[:, k] == 1, prevalence / known[:, k].sum(), (1 - prevalence) / (known[:, k] == 0).sum()
        )
        ppv, npv = ref.predictive_values("youden", np.full(15, prevalence))
        assert ppv[k] == pytest.approx(np.average(known[:, k], weights=weights * calls[:, k]))
        assert npv[k] == pytest.approx(np.average(1 - known[:, k], weights=weights * (1 - calls[:, k])))
    assert np.isnan(ppv[13]), "no threshold for a finding that validation lacks"
    always, never = reference.predictive_values(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.1, 0.1]))
    assert always[0] == pytest.approx(0.1)
    assert np.isnan([always[1], never[0]]).all()


def test_few_films_do_not_make_a_decision_always_right_or_always_wrong(made):
    *_, ref = made
    rows = ref.rates.assign(sensitivity=0.0, specificity=1.0, positives=9.0, negatives=99.0)
    few = replace(ref, rates=rows)
    ppv, npv = few.predictive_values("f1", np.full(15, 0.5))
    np.testing.assert_allclose(ppv, (0.5 / 10) / (0.5 / 10 + 0.5 / 100))
    np.testing.assert_allclose(npv, (99.5 / 100) / (99.5 / 100 + 9.5 / 10))
    unknown = replace(ref, rates=rows.assign(negatives=np.nan, sensitivity=0.5))
    assert (unknown.predictive_values("f1", np.full(15, 0.5))[0] == 1).all()


def test_rates_come_from_test_films_where_there_are_any(made):
    known, said, decisions, own = made
    others, said_of_others = films(300, seed=2)
    judged = decisions.judge(others, said_of_others, np.arange(300))
    ref = reference.make(known, said, decisions, judged)
    assert (ref.judged_on, own.judged_on) == ("test", "validation")
    rows = judged[judged["rule"] == "f1"]
    np.testing.assert_array_equal(ref.sensitivity_specificity("f1")[0], rows["sensitivity"])
    np.testing.assert_array_equal(ref.rates["positives"], judged["positives"])
    assert not np.allclose(own.sensitivity_specificity("f1")[0], rows["sensitivity"], equal_nan=True)
    with pytest.raises(UserError, match="choose youden, f1, sensitivity_90"):
        ref.predictive_values("best", np.full(15, 0.1))


def test_an_unknown_label_leaves_the_film_out_for_this_label_only(made):
    known, said, decisions, _ = made
    unsure = known.astype(np.float64)
    unsure[100:, 2] = np.nan
    found = reference.make(unsure, said, decisions)
    assert found.known.tolist() == [900] * 2 + [100] + [900] * 12
    assert found.base_rates[2] == known[:100, 2].mean()
    np.testing.assert_array_equal(np.delete(found.base_rates, 2), np.delete(known.mean(0), 2))
    assert len(found.without[2]) == (known[:100, 2] == 0).sum()
    alone = reference.make(known[:100], said[:100], decisions)
    pd.testing.assert_frame_equal(
        found.rates[found.rates["finding"] == LABELS[2]], alone.rates[alone.rates["finding"] == LABELS[2]]
    )


def test_it_travels_with_the_checkpoint(path, made):
    *_, ref = made
    assert reference.read(path) is None
    reference.attach(path, ref)
    found = reference.read(path)
    pd.testing.assert_frame_equal(found.rates, ref.rates)
    np.testing.assert_array_equal(found.base_rates, ref.base_rates)
    np.testing.assert_allclose(np.concatenate(found.without), np.concatenate(ref.without), rtol=1e-5)
    assert path.with_suffix(".json").stat().st_size < 60_000


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"labels": LABELS[::-1]}, "labels are"),
        ({"format": 9}, "format 9"),
        ({"known": [1, 2]}, "damaged"),
        ({"positives": [10**6] * 15}, "damaged"),
        ({"without": ["0.3 0.1"] * 15}, "damaged"),
        ({"without": [3] * 15}, "damaged"),
        ({"rates": {"finding": ["Mass"]}}, "damaged"),
        ({"rates": {"finding": [], "rule": []}}, "damaged"),
    ],
)
def test_a_damaged_one_is_named(path, made, damage, says):
    reference.attach(path, made[-1])
    file = path.with_suffix(".json")
    meta = paths.read_json(file)  # without the guard
    meta["attached"]["reference"] |= damage
    file.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=says) as caught:
        reference.read(path)
    assert path.stem in str(caught.value)
