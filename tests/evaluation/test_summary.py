import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxrlib import metrics
from cxrlib.evaluation import intervals, summary
from cxrlib.labels import FINDINGS, LABELS


@pytest.fixture
def reading():
    """200 films of 70 patients with 15 labels, and predictions that are better than chance."""
    rng = np.random.default_rng(3)
    known = np.zeros((200, 15), np.uint8)
    known[:, :14] = rng.random((200, 14)) < 0.15
    known[:, 14] = ~known.any(1)
    films = pd.DataFrame({"image": [f"{i:08d}_000.png" for i in range(200)], "patient": rng.integers(0, 70, 200)})
    films = pd.concat([films, pd.DataFrame(known, columns=list(LABELS))], axis=1)
    return films, 1 / (1 + np.exp(-(known * 1.5 + rng.normal(size=known.shape))))


def test_auc_table_agrees_with_scikit_learn_and_ends_with_the_mean_of_14(reading):
    films, probabilities = reading
    table = summary.auc(films, probabilities, replicates=50)
    expected = [roc_auc_score(films[name], probabilities[:, k]) for k, name in enumerate(LABELS)]
    np.testing.assert_allclose(table["auc"][:15], expected)
    assert table["finding"].iloc[-1] == metrics.MEAN
    assert table["auc"].iloc[-1] == pytest.approx(np.mean(expected[:14]))  # "No Finding" is not part of it
    assert (table["auc_low"] <= table["auc"]).all()
    assert (table["auc"] <= table["auc_high"]).all()


def test_a_finding_without_positives_is_undefined_with_its_reason_and_outside_the_mean(reading):
    films, probabilities = reading
    films["Hernia"] = np.uint8(0)
    table = summary.auc(films, probabilities, replicates=50).set_index("finding")
    assert np.isnan(table.loc["Hernia", "auc"])
    assert table.loc["Hernia", "reason"]
    assert table.index[-1] == "mean of 13 of 14"
    assert table["auc"].iloc[-1] == pytest.approx(table.loc[list(FINDINGS[:-1]), "auc"].mean())
    assert (
        summary.overall(table.reset_index(), films, probabilities, replicates=10)["number"][0] == "mean AUC of 13 of 14"
    )


def test_gain_of_a_reader_over_itself_is_exactly_nothing(reading):
    films, probabilities = reading
    table = summary.gain(films, probabilities, probabilities, replicates=50)
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)


def test_gain_sees_the_finding_that_was_spoilt(reading):
    films, probabilities = reading
    spoilt = probabilities.copy()
    spoilt[:, 2] = np.random.default_rng(0).random(200)
    table = summary.gain(films, probabilities, spoilt, replicates=200).set_index("finding")
    assert table["difference"].idxmin() == "Effusion"
    assert table.loc["Effusion", "high"] < 0
    assert table.loc["Mass", "difference"] == 0


def test_standing_averages_to_the_auc(reading):
    films, probabilities = reading
    one = films.assign(**{name: np.uint8(0) for name in FINDINGS if name != "Mass"})
    where = summary.rank(one, probabilities)
    assert np.isnan(where[one["Mass"] == 0]).all()
    assert np.nanmean(where) == pytest.approx(roc_auc_score(one["Mass"], probabilities[:, 4]))


def test_extremes_are_the_ends_of_the_standing(reading):
    films, probabilities = reading
    best, worst = summary.extremes(films, probabilities, n=4)
    where = summary.rank(films, probabilities)
    assert best["standing"].iloc[0] == np.nanmax(where)
    assert worst["standing"].iloc[0] == np.nanmin(where)
    assert len(best) == len(worst) == 4


def test_steps_are_delongs_differences_with_holm_over_all_of_them(reading):
    films, first = reading
    second = first.copy()
    second[:, 2] = np.random.default_rng(0).random(200)
    table = summary.steps(["one", "two", "three"], films, [first, second, first])
    assert table.groupby("comparison").size().to_dict() == {"step": 28, "whole": 14}
    rows = table.set_index(["stage", "against", "finding"]).sort_index()
    spoilt, mended = rows.loc[("two", "one", "Effusion")], rows.loc[("three", "two", "Effusion")]
    who = films["patient"].to_numpy()
    by_hand = intervals.delong_difference(films["Effusion"].to_numpy(), second[:, 2], first[:, 2], who)
    assert (spoilt["difference"], spoilt["low"], spoilt["high"], spoilt["p"]) == pytest.approx(by_hand)
    assert mended["difference"] == pytest.approx(-spoilt["difference"])
    assert spoilt["p_holm"] == pytest.approx(min(1, 28 * spoilt["p"]))
    assert spoilt["p_holm"] < 0.05
    whole = table[table["comparison"] == "whole"]
    assert (whole[["difference", "p_holm"]] == [0, 1]).all(axis=None), "the last reading is the first"
    assert summary.steps(["one"], films, [first]).empty


def test_a_finding_without_positives_takes_no_part_in_the_steps(reading):
    films, probabilities = reading
    films["Hernia"] = np.uint8(0)
    table = summary.steps(["one", "two"], films, [probabilities, probabilities**2]).set_index("finding")
    assert table.loc["Hernia", ["difference", "p", "p_holm"]].isna().all()
    assert table.loc["Hernia", "reason"] == "no film with the finding"


def test_the_micro_average_stands_beside_the_means(reading):
    films, probabilities = reading
    table = summary.auc(films, probabilities, replicates=50)
    rows = summary.overall(table, films, probabilities, replicates=120).set_index("number")
    micro = roc_auc_score(films[list(LABELS)].to_numpy(), probabilities, average="micro")
    assert rows.loc["micro AUC of 15", "value"] == pytest.approx(micro)
    assert rows.loc["mean AUC of 14", "value"] == table["auc"].iloc[-1]
    assert ((rows["low"] < rows["value"]) & (rows["value"] < rows["high"])).all()


def test_an_interval_says_on_how_many_patients_it_stands_and_too_few_have_none(reading):
    films, probabilities = reading
    films["Hernia"] = np.uint8(0)
    films.loc[films["patient"] == films["patient"][0], "Hernia"] = 1  # several films of one patient
    table = summary.auc(films, probabilities, replicates=50).set_index("finding")
    assert table.loc["Hernia", "patients"] == 1
    assert not np.isnan(table.loc["Hernia", "auc"])
    assert np.isnan(table.loc["Hernia", ["auc_low", "ap_high", "p_chance"]].astype(float)).all()
    assert "1 patients of a class, 10 are needed" in table.loc["Hernia", "no_interval"]
    mean = table.loc[metrics.MEAN]
    assert mean["patients"] == films["patient"].nunique()
    assert np.isnan(mean["auc_low"])
    assert "1 patients with or without Hernia" in mean["no_interval"]


def test_a_finding_read_far_better_or_less_well_than_the_others_is_found_and_a_perfect_one_too(reading):
    films, probabilities = reading
    films = films.assign(patient=np.arange(200) // 2)
    read = probabilities.copy()
    read[:, 4] = films["Mass"] + 0.1 * np.random.default_rng(0).random(200)
    read[:, 5] = np.random.default_rng(1).random(200)
    table = summary.against(films, np.clip(read, 0, 1.1) / 1.1)
    assert table.loc[4, "p_others"] < 0.05, "Mass, all right"
    assert table.loc[4, "p_chance"] < 0.001
    assert table.loc[5, "p_others"] < 0.05, "Nodule, guessed"
    assert table.loc[5, "p_chance"] > 0.05
    assert (table.loc[6:13, "p_others"] > 0.05).all()
    assert table.loc[14].isna().all(), "No Finding is none of the 14"


def test_what_a_stage_came_to_is_said_plainly(reading):
    films, good = reading
    poor = 0.5 * good + 0.5 * np.random.default_rng(5).random(good.shape)
    harmed, helped = (
        summary.outcome(summary.gain(films, *pair, replicates=200)) for pair in ((good, poor), (poor, good))
    )
    assert "The stage lowered the mean. The next stage starts from it all the same" in harmed
    assert helped.endswith("The stage helped.")
    near = good + np.random.default_rng(6).normal(0, 1e-3, good.shape)
    same = summary.outcome(summary.gain(films, good, near, replicates=200))
    assert "may be chance" in same or "not been shown" in same
    few = films["patient"] < 12
    rows = films[few].reset_index(drop=True)
    assert "too few patients" in summary.outcome(summary.gain(rows, good[few], poor[few], replicates=20))
