"""The comparison of schedules: passes shared out, variants kept from the test part, differences paired."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.stats import ttest_rel

from cxrlib import UserError, metrics
from cxrlib.evaluation import predict
from cxrlib.training import schedules
from tests.benchmarks import compare_schedules, verdict


@given(some.sampled_from(compare_schedules.SCHEDULES), some.integers(5, 60))
def test_every_schedule_gets_the_passes_it_is_given(schedule, passes):
    table = [stage for stage in schedules.SCHEDULES[schedule] if stage.epochs]
    found = compare_schedules.scaled(schedules.SCHEDULES[schedule], passes)
    assert sum(stage.epochs for stage in found) == passes
    assert [stage.number for stage in found] == [stage.number for stage in table]
    whole = sum(stage.epochs for stage in table)
    for stage, own in zip(found, table, strict=True):
        share = own.epochs * passes / whole
        assert stage.epochs >= 1
        assert abs(stage.epochs - share) < 1 or stage.epochs == 1 or share > stage.epochs


@pytest.mark.parametrize("schedule", compare_schedules.SCHEDULES)
def test_a_schedule_at_its_own_passes_is_unchanged(schedule):
    table = tuple(stage for stage in schedules.SCHEDULES[schedule] if stage.epochs)
    assert compare_schedules.scaled(schedules.SCHEDULES[schedule], sum(stage.epochs for stage in table)) == table


def test_too_few_passes_are_refused():
    with pytest.raises(UserError, match="5 stages need 5"):
        compare_schedules.scaled(schedules.SCHEDULES["seed"], 4)


def test_a_variant_changes_all_stages_or_one():
    found = compare_schedules.trial("modern ema=0 stage1.lr=0.003", 16)
    own = compare_schedules.trial("modern", 16)
    assert not found.tested
    assert own.tested
    assert compare_schedules.trial("modern ema=0", 16, chosen=True).tested
    assert {stage.ema for stage in found.recipes} == {0.0}
    assert found.recipes[0].lr == 0.003
    assert [stage.lr for stage in found.recipes[1:]] == [stage.lr for stage in own.recipes[1:]]
    with pytest.raises(UserError, match="no emma"):
        compare_schedules.trial("modern emma=0", 16)


def test_a_variant_that_is_chosen_too_is_trained_once():
    words = ["--data", "x", "--schedules", "modern", "--variant", "modern  ema=0", "--variant", "modern clip=0"]
    found = compare_schedules.all_trials(compare_schedules.parser().parse_args([*words, "--chosen", "modern ema=0"]))
    assert [(one.name, one.tested) for one in found] == [
        ("modern", True),
        ("modern ema=0", True),
        ("modern clip=0", False),
    ]


def test_differences_by_seed_are_a_paired_t_test():
    runs = [made(name, seed, quality) for name, quality in (("seed", 0.4), ("modern", 1.0)) for seed in range(4)]
    row = chosen(verdict.table(runs, "here"), "difference by seed", "test")
    ours, theirs = ([run.auc("test") for run in runs if run.name == name] for name in ("seed", "modern"))
    oracle = ttest_rel(ours, theirs)
    interval = oracle.confidence_interval(0.95)
    assert row["value"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert [row["low"], row["high"], row["p"]] == pytest.approx([interval.low, interval.high, oracle.pvalue])


def test_a_schedule_does_not_differ_from_its_equal():
    runs = [made("seed", seed, 1.0) for seed in range(2)]
    runs += [verdict.Run("modern", "modern", run.seed, 9, 1.0, run.readings) for run in runs]
    row = chosen(verdict.table(runs, ""), "difference by patient", "test")
    assert [row["value"], row["low"], row["high"]] == [0, 0, 0]


def test_the_difference_by_patient_is_of_the_mean_over_seeds():
    runs = [made(name, seed, quality) for name, quality in (("seed", 0.2), ("modern", 1.5)) for seed in range(3)]
    table = verdict.table(runs, "")
    row = chosen(table, "difference by patient", "test")
    assert row["value"] == pytest.approx(chosen(table, "difference by seed", "test")["value"])
    assert row["low"] < row["value"] < row["high"] < 0


def test_a_variant_is_compared_on_validation_films_alone():
    runs = [made("modern", seed, 1.0) for seed in range(2)]
    runs += [made("modern ema=0", seed, 1.2, schedule="modern", parts=("val",)) for seed in range(2)]
    table = verdict.table(runs, "")
    assert set(table.loc[table["schedule"] == "modern ema=0", "part"]) == {"val"}
    assert chosen(table, "difference by seed", "val")["against"] == "modern"


def test_a_chosen_variant_is_compared_on_the_test_films_too():
    runs = [made("modern", seed, 1.0) for seed in range(2)]
    runs += [made("modern ema=0", seed, 1.2, schedule="modern") for seed in range(2)]
    assert chosen(verdict.table(runs, ""), "difference by patient", "test")["against"] == "modern"


@pytest.mark.parametrize(
    ("qualities", "expected"),
    [((0.5, 0.9, 0.7, 0.6, 3.0), 18), ((0.5, 0.4, 0.3, 3.0), 12), ((0.5, 0.4, 1.0, 0.9, 0.9, 3.0), 27),
     ((0.5, 0.5, 0.5, 3.0), 12), ((0.5, 0.8, 1.1, 1.5, 1.2, 1.4), 41)],
)  # fmt: skip
def test_a_schedule_gets_more_passes_until_validation_stops(qualities, expected, monkeypatch):
    by_passes = dict(zip((12, 18, 27, 41, 62, 93), qualities, strict=False))

    def run(one, seed, setting, folder):
        """A run in which more passes on test films would always be better."""
        readings = made("modern", 0, by_passes[one.passes], parts=("val",)).readings
        readings["test"] = made("modern", 0, one.passes, parts=("test",)).readings["test"]
        return verdict.Run(one.name, one.schedule, seed, one.passes, 1.0, readings)

    monkeypatch.setattr(compare_schedules, "run", run)
    found = compare_schedules.run_until_validation_stops(compare_schedules.trial("modern", 12), 0, None, None)
    assert found.passes == expected


def made(name, seed, quality, schedule="", parts=("val", "test")):
    """A run whose scores tell labels apart the better the higher its quality; all have the same films."""
    random, noise = np.random.default_rng(0), np.random.default_rng([seed, len(name)])
    labels = (random.random((120, 15)) < 0.3).astype(np.uint8)
    scores = 1 / (1 + np.exp(-(quality * labels + noise.normal(size=labels.shape))))
    reading = predict.Predictions([f"{i}.png" for i in range(120)], np.arange(120) // 2, labels, scores)
    assert metrics.mean_auc(labels, scores) > 0.5
    return verdict.Run(name, schedule or name, seed, 9, 1.0, dict.fromkeys(parts, reading))


def chosen(table, what, part):
    rows = table[(table["what"] == what) & (table["part"] == part)]
    assert len(rows) == 1
    return rows.iloc[0]
