"""Subgroups on simulated predictions with a built-in fault: chance for one sex, or the view instead of the finding."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from cxrlib import UserError, metrics
from cxrlib.evaluation import intervals, subgroups
from cxrlib.labels import FINDINGS, LABELS


def films(n=1500, seed=0):
    """Films of n / 3 patients; patients keep their sex, films differ in view; each finding is on about a fifth."""
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, n // 3, n)
    known = (rng.random((n, 14)) < 0.2).astype(np.uint8)
    frame = pd.DataFrame(np.column_stack([known, ~known.any(1)]).astype(np.uint8), columns=list(LABELS))
    sex = rng.choice(["M", "F"], n // 3)[patients]
    age = rng.integers(10, 90, n // 3)[patients].astype(float)
    return frame.assign(patient=patients, sex=sex, age=age, view=rng.choice(["AP", "PA"], n))


def reader(frame, strength=2.0, seed=1):
    """Probabilities that rise with the finding; ``strength`` may differ film by film."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(len(frame), 15))
    return 1 / (1 + np.exp(-(frame[list(LABELS)].to_numpy() * np.reshape(strength, (-1, 1)) + noise)))


def test_numbers_are_those_of_the_films_alone():
    frame = films()
    read = reader(frame)
    table = subgroups.auc(subgroups.measure(frame, read, replicates=50)).set_index(["group", "finding"])
    here = ((frame["sex"] == "F") & (frame["view"] == "AP")).to_numpy()
    row = table.loc[("women, AP", "Mass")]
    assert row["auc"] == pytest.approx(metrics.roc_auc(frame.loc[here, "Mass"], read[here, 4]))
    assert row["films"] == here.sum()
    assert row["patients"] == frame.loc[here, "patient"].nunique()
    assert row["low"] < row["auc"] < row["high"]
    mean = table.loc[("all films", "mean of 14")]
    assert mean["auc"] == pytest.approx(metrics.mean_auc(frame[list(LABELS)].to_numpy(), read))
    assert mean["findings"] == 14


def test_a_reader_blind_to_women_is_found_out():
    frame = films()
    blind = reader(frame, np.where(frame["sex"] == "F", 0.0, 2.0))
    found = subgroups.gaps(subgroups.measure(frame, blind, (blind >= 0.8).astype(float), replicates=200))
    mean = found[found["finding"] == "mean of 14"].set_index(["number", "kind"])
    assert mean.loc[("auc", "sex"), "high"] < -0.3
    assert mean.loc[("sensitivity", "sex"), "high"] < -0.2
    assert mean.loc[("auc", "view"), "low"] < 0 < mean.loc[("auc", "view"), "high"]


def test_a_fault_where_two_groups_meet_is_found_there_alone():
    frame = films(3000)
    where = ((frame["sex"] == "F") & (frame["view"] == "AP")).to_numpy()
    read = reader(frame, np.where(where, 0.0, 2.0))
    found = subgroups.gaps(subgroups.measure(frame, read, replicates=200))
    mean = found[found["finding"] == "mean of 14"].set_index(["group", "against"])
    assert mean.loc[("women, AP", "men, AP"), "high"] < -0.3
    assert mean.loc[("women, PA", "men, PA"), "low"] < 0 < mean.loc[("women, PA", "men, PA"), "high"]
    mass = found[(found["finding"] == "Mass") & (found["group"] == "women, AP")].iloc[0]
    assert mass["films"] == where.sum()
    assert mass["positives"] == frame.loc[where, "Mass"].sum()
    assert mass["films_against"] == ((frame["sex"] == "M") & (frame["view"] == "AP")).sum()


def test_every_pair_is_of_groups_that_exist_and_differ_in_one_thing():
    there = {group.name: group.kind for group in subgroups.groups(films(30))}
    for kind, one, other in subgroups.GAPS:
        assert there[one] == there[other] == kind
        assert len(set(one.split(", ")) ^ set(other.split(", "))) == 2


def test_a_fair_reader_shows_no_gap_in_most_findings():
    frame = films(seed=3)
    found = subgroups.gaps(subgroups.measure(frame, reader(frame), replicates=200))
    single = found[found["finding"].isin(FINDINGS)]
    assert ((single["low"] < 0) & (single["high"] > 0)).mean() > 0.8
    assert set(found["number"]) == {"auc"}


def test_reading_the_view_instead_of_the_finding_is_found_out():
    frame = films(3000)
    rng = np.random.default_rng(5)
    frame["view"] = np.where(rng.random(3000) < np.where(frame["Edema"] == 1, 0.9, 0.3), "AP", "PA")
    read = reader(frame)
    read[:, 9] = np.where(frame["view"] == "AP", 0.8, 0.2)
    table = subgroups.view_shortcut(frame, read, replicates=100).set_index("finding")
    assert table.loc["Edema", "auc"] > 0.75
    assert table.loc["Edema", "within"] == pytest.approx(0.5)
    assert table.loc["Edema", "low"] > 0.2
    assert abs(table.loc["Mass", "difference"]) < 0.03
    assert table.loc["mean of 14", "difference"] == pytest.approx(table["difference"].iloc[:14].mean())


def test_within_views_is_a_mean_over_pairs():
    frame = films(200)
    read = reader(frame, 1.0)
    table = subgroups.view_shortcut(frame, read, replicates=10).set_index("finding")
    won = pairs = 0.0
    for view in ("AP", "PA"):
        here = (frame["view"] == view).to_numpy()
        ones, zeros = read[here & (frame["Mass"] == 1), 4], read[here & (frame["Mass"] == 0), 4]
        won, pairs = won + (ones[:, None] > zeros).sum(), pairs + len(ones) * len(zeros)
    assert table.loc["Mass", "within"] == pytest.approx(won / pairs)


def test_what_a_group_cannot_give_is_undefined_with_a_reason():
    frame = films(300)
    frame["view"] = "PA"
    frame["Hernia"] = 0
    frame.loc[frame["sex"] == "F", "Edema"] = 0
    read = reader(frame)
    table = subgroups.auc(subgroups.measure(frame, read, replicates=20)).set_index(["group", "finding"])
    assert table.loc[("AP", "Mass"), ["auc", "low"]].isna().all()
    assert table.loc[("AP", "Mass"), "reason"] == "no films"
    assert table.loc[("AP", "mean of 14"), "reason"] == "no films"
    assert table.loc[("women", "Edema"), "reason"] == "no film with the finding"
    assert table.loc[("women", "mean of 12 of 14"), "findings"] == 12
    found = subgroups.gaps(subgroups.measure(frame, read, replicates=20)).set_index(["kind", "finding"])
    assert np.isnan(found.loc[("view", "mean of 14"), "difference"])
    assert found.loc[("view", "mean of 14"), "reason"]
    assert np.isnan(found.loc[("sex", "Edema"), "difference"])
    assert found.loc[("sex", "mean of 12 of 14"), "findings"] == 12
    view = subgroups.view_shortcut(frame, read, replicates=10).set_index("finding")
    assert view.loc["Mass", "reason"] == "films of one view only"
    assert view.loc["Mass", ["AP", "PA"]].tolist() == [0, frame["Mass"].sum()]


def test_sensitivity_in_a_group_is_scikit_learns_and_undefined_without_a_threshold():
    frame = films(600)
    read = reader(frame)
    calls = (read >= 0.6).astype(float)
    calls[:, 4] = np.nan
    measured = subgroups.measure(frame, read, calls, replicates=20)
    here = ((frame["sex"] == "M") & (frame["view"] == "PA")).to_numpy()
    estimates = measured.numbers["sensitivity"]["men, PA"]
    assert estimates[2].value == pytest.approx(recall_score(frame.loc[here, "Effusion"], read[here, 2] >= 0.6))
    assert estimates[4] is None
    assert np.isnan(subgroups.gaps(measured).set_index(["number", "finding"]).loc[("sensitivity", "Mass"), "low"]).all()


def test_readings_of_other_films_are_refused():
    frame = films(60)
    with pytest.raises(UserError, match=r"probabilities \(59, 15\)"):
        subgroups.measure(frame, reader(frame)[:-1], replicates=5)
    with pytest.raises(UserError, match=r"calls \(60, 14\)"):
        subgroups.measure(frame, reader(frame), np.zeros((60, 14)), replicates=5)


def test_a_gap_is_of_independent_groups_what_the_textbook_says_and_holm_counts_all_gaps():
    frame, rng = films(900), np.random.default_rng(3)
    frame["patient"] = np.arange(900)  # one film per patient, so that the textbook's DeLong by film applies
    frame["sex"] = rng.choice(["M", "F"], 900)
    read = reader(frame, 1.0)
    table = subgroups.gaps(subgroups.measure(frame, read, replicates=2)).set_index(["kind", "group", "finding"])
    row = table.loc[("sex", "women", "Mass")]
    ends = []
    for code in ("F", "M"):
        here = (frame["sex"] == code).to_numpy()
        ends.append(intervals.delong_interval(frame.loc[here, "Mass"].to_numpy(), read[here, 4]))
    error = np.hypot(*((one.high - one.low) / 2 / 1.959964 for one in ends))
    assert row["difference"] == pytest.approx(ends[0].value - ends[1].value)
    assert (row["high"] - row["low"]) / 2 / error == pytest.approx(2, abs=0.1), "t of many patients"
    means = table[[metrics.is_mean(name) for _, _, name in table.index]]
    assert len(means) == len(subgroups.GAPS)
    np.testing.assert_allclose(means["p_holm"], intervals.holm(means["p"].to_numpy()))
    assert (table["p_holm"] >= table["p"]).all()


def test_patients_who_are_in_both_groups_are_counted_once():
    """Each AP film has a copy among the PA films of the same patient, so the gap and its error are 0."""
    frame = films(600)
    frame["view"] = "AP"
    read = reader(frame)
    both = pd.concat([frame, frame.assign(view="PA")], ignore_index=True)
    table = subgroups.gaps(subgroups.measure(both, np.tile(read, (2, 1)), replicates=2))
    view = table[(table["kind"] == "view")]
    assert (view["difference"] == 0).all()
    assert view["p_holm"].isna().all()


def test_few_patients_have_no_gap():
    frame = films(600)
    frame["patient"] = np.arange(600) % 200
    frame["sex"] = np.where(frame["patient"] < 6, "F", "M")
    frame.loc[frame["sex"] == "F", "Mass"] = (frame["patient"] < 4).astype(int)  # on many films of four women
    found = subgroups.gaps(subgroups.measure(frame, reader(frame), replicates=2)).set_index(["kind", "finding"])
    assert np.isnan(found.loc[("sex", "Mass"), "difference"])
    assert "5 patients" in found.loc[("sex", "Mass"), "reason"]
    mean = found.loc["sex"].iloc[-1]
    assert np.isnan(mean["p"]), "six women are too few"
