"""Label quality: the published numbers, scikit-learn as oracle, and what must hold whatever the films."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score, precision_recall_curve, precision_score, roc_auc_score, roc_curve

from cxrlib import labels
from cxrlib.data import radiologists, records
from cxrlib.data.radiologists import GROUPS
from cxrlib.evaluation import label_quality, predict
from cxrlib.plots import exploration


def made(n=600, seed=0, noise=0.15):
    """Films of patients with two films each, truth, a mined label with noise, and a score that follows the truth."""
    random = np.random.default_rng(seed)
    found = pd.DataFrame({"image": [f"{i}.png" for i in range(n)], "patient": np.arange(n) // 2, "set": "test"})
    scores = {}
    for name in GROUPS:
        truth = random.random(n) < 0.3
        found[f"read_{name}"] = truth.astype(float)
        found[f"mined_{name}"] = np.where(random.random(n) < noise, ~truth, truth).astype(float)
        scores[name] = truth + random.normal(0, 0.8, n)
    return found, scores


@pytest.mark.real
def test_the_mined_labels_are_as_good_as_others_found_them(nih_metadata):
    """FIELD.md's numbers for the official test part, by patient."""
    films = records.read_csv(records.find_table(nih_metadata)).assign(dataset="nih")
    found = radiologists.beside(films, radiologists.read(*radiologists.find(nih_metadata)))
    table = label_quality.agreement(found).set_index(["set", "finding"]).loc["test"]
    assert table["films"].tolist() == [1962] * 3
    assert table["patients"].tolist() == [860] * 3
    expected = {
        "Pneumothorax": (0.485, 0.411, 0.564, 0.497, 0.429, 0.572),
        "Nodule or mass": (0.565, 0.498, 0.639, 0.454, 0.391, 0.518),
        "Airspace opacity": (0.808, None, None, 0.448, None, None),
    }
    for name, numbers in expected.items():
        columns = ("ppv", "ppv_low", "ppv_high", "sensitivity", "sensitivity_low", "sensitivity_high")
        for column, number in zip(columns, numbers, strict=True):
            if number is not None:  # ends of an interval depend on the resamples
                tolerance = 0.012 if column.endswith(("low", "high")) else 0.0006
                assert table.loc[name, column] == pytest.approx(number, abs=tolerance), (name, column)


def test_kappa_and_auc_are_scikit_learns():
    found, scores = made()
    table = label_quality.agreement(found, replicates=50).set_index("finding")
    both = label_quality.against_both(found, scores).set_index("finding")
    for name in GROUPS:
        read, mined = found[f"read_{name}"], found[f"mined_{name}"]
        assert table.loc[name, "kappa"] == pytest.approx(cohen_kappa_score(read, mined))
        assert both.loc[name, "auc_read"] == pytest.approx(roc_auc_score(read, scores[name]))
        assert both.loc[name, "auc_mined"] == pytest.approx(roc_auc_score(mined, scores[name]))
        assert table.loc[name, "kappa_low"] < table.loc[name, "kappa"] < table.loc[name, "kappa_high"]


def test_a_network_that_knows_the_truth_is_better_against_it_and_better_than_noisy_labels():
    found, scores = made()
    assert (label_quality.against_both(found, scores)["low"] > 0).all()
    sharp = {name: values + found[f"read_{name}"].to_numpy() * 5 for name, values in scores.items()}
    curve = label_quality.beside_curve(found, sharp, replicates=200)
    assert (curve["low"] > 0).all()
    assert "better" in label_quality.sentence(curve)
    assert (curve["ppv_low"] > 0).all()
    cuts = label_quality.choose_thresholds(found, found, sharp, sharp)
    assert (cuts["basis"] == "radiologists").all()
    table = label_quality.sides(found, sharp, cuts, replicates=200)
    assert (table["share"] > 0.95).all()


def test_the_point_on_the_curve_is_scikit_learns():
    found, scores = made(seed=3)
    curve = label_quality.beside_curve(found, scores, replicates=20).set_index("finding")
    for name in GROUPS:
        false, true, _ = roc_curve(found[f"read_{name}"], scores[name], drop_intermediate=False)
        assert curve.loc[name, "network"] == pytest.approx(np.interp(curve.loc[name, "rate"], false, true))


def test_the_ppv_at_the_mined_labels_sensitivity_is_scikit_learns():
    found, scores = made(seed=4)
    curve = label_quality.beside_curve(found, scores, replicates=20).set_index("finding")
    for name in GROUPS:
        read, mined = found[f"read_{name}"], found[f"mined_{name}"]
        precision, recall, _ = precision_recall_curve(read, scores[name])
        assert curve.loc[name, "ppv_mined"] == pytest.approx(precision_score(read, mined))
        enough = np.flatnonzero(recall >= curve.loc[name, "mined"] - 1e-9)[-1]  # the highest such threshold
        assert curve.loc[name, "ppv_network"] == pytest.approx(precision[enough], abs=1e-6)


def test_a_mined_label_that_finds_nothing_has_no_ppv_to_equal():
    found, scores = made()
    found["mined_Pneumothorax"] = 0.0
    row = label_quality.beside_curve(found, scores, replicates=20).set_index("finding").loc["Pneumothorax"]
    assert np.isnan(row["ppv_network"])
    assert row["mined"] == 0


def test_few_films_of_radiologists_give_the_threshold_of_all_mined_labels():
    """Of 600 validation films radiologists read eight; the mined labels of all give Youden's threshold."""
    found, scores = made(noise=0)
    few, part = found.head(8), {name: values[:8] for name, values in scores.items()}
    cuts = label_quality.choose_thresholds(few, found, part, scores)
    assert (cuts["basis"] == "mined labels").all()
    assert (cuts["films"] == 600).all()
    by_radiologists = label_quality.choose_thresholds(found, found, scores, scores)
    assert (by_radiologists["basis"] == "radiologists").all()
    assert cuts["threshold"].tolist() == by_radiologists["threshold"].tolist()  # the labels are equal here


def test_films_that_differ_are_those_that_are_counted():
    found, scores = made()
    found.loc[:99, "read_Pneumothorax"] = np.nan
    cuts = label_quality.choose_thresholds(found, found, scores, scores)
    films = label_quality.differing(found, scores, cuts)
    counted = label_quality.sides(found, scores, cuts, replicates=20).query("kind == 'all'").set_index("finding")
    by_finding = films.groupby("finding")
    assert by_finding.size().to_dict() == counted["films"].to_dict()
    share = by_finding["network"].agg(lambda sides: (sides == "radiologists").mean())
    assert share.to_dict() == pytest.approx(counted["share"].to_dict())
    assert (films["mined"] != films["radiologists"]).all()


def test_equal_labels_give_no_difference():
    found, scores = made(noise=0)
    both = label_quality.against_both(found, scores)
    assert (both["difference"] == 0).all()
    assert label_quality.agreement(found, replicates=20)["kappa"].tolist() == [1, 1, 1]
    cuts = label_quality.choose_thresholds(found, found, scores, scores)
    assert label_quality.sides(found, scores, cuts)["films"].sum() == 0
    assert label_quality.differing(found, scores, cuts).empty


def test_unknown_labels_are_left_out():
    found, scores = made()
    name = "Pneumothorax"
    gone = np.arange(len(found)) % 5 == 0
    unknown = found.assign(**{f"mined_{name}": found[f"mined_{name}"].where(~gone)})
    one = label_quality.against_both(unknown, scores).set_index("finding").loc[name]
    rest = {key: values[~gone] for key, values in scores.items()}
    other = label_quality.against_both(found[~gone], rest).set_index("finding").loc[name]
    columns = ["films", "auc_read", "auc_mined", "low", "high"]
    assert one[columns].tolist() == pytest.approx(other[columns].tolist())


@pytest.mark.parametrize("films", [0, 8])
def test_few_films_are_undefined_and_say_why(films):
    found, scores = made()
    found, scores = found.head(films), {name: values[:films] for name, values in scores.items()}
    table = label_quality.agreement(found)
    assert len(table) == (3 if films else 0)
    fig, axes = plt.subplots(1, 2)
    exploration.label_agreement(table, axes)
    plt.close(fig)
    assert label_quality.against_both(found, scores)["p"].isna().all()
    curve = label_quality.beside_curve(found, scores)
    assert curve["difference"].isna().all()
    assert "are needed" in label_quality.sentence(curve)
    cuts = label_quality.choose_thresholds(found, found, scores, scores)
    assert cuts["threshold"].isna().all()
    assert (label_quality.differing(found, scores, cuts)["network"] == "").all()
    assert label_quality.sides(found, scores, cuts)["share"].isna().all()


def test_the_score_of_a_group_is_the_chance_of_any_of_its_labels():
    probabilities = np.zeros((1, 15))
    probabilities[0, [labels.column("Nodule"), labels.column("Mass")]] = 0.5, 0.2
    scores = label_quality.group_scores(probabilities)
    assert scores["Nodule or mass"] == pytest.approx([0.6])
    assert scores["Pneumothorax"] == [0]
    assert predict.PROBABILITIES[labels.column("Nodule")] == "prob_Nodule"


def test_jumps_are_counted_by_hand():
    """Patient 1: 1 0 1 1; patient 2: 1 1 1; patient 3 has two films only; follow-ups are given out of order."""
    series = {1: [1, 0, 1, 1], 2: [1, 1, 1], 3: [0, 1]}
    rows = [(patient, i, value) for patient, values in series.items() for i, value in enumerate(values)]
    films = pd.DataFrame(rows, columns=["patient", "follow_up", "Mass"]).assign(dataset="x")
    for label in labels.FINDINGS:
        films[label] = films["Mass"] if label == "Mass" else 0
    table = label_quality.jumps(films.iloc[::-1]).set_index("finding").loc["Mass"]
    assert (table["patients"], table["triples"], table["gap"]) == (2, 2, 0.5)
    assert table["independent"] == pytest.approx(1 - 6 / 7)
    assert table["changes"] == pytest.approx(2 / 5)


def test_without_patients_of_three_films_there_are_no_jumps():
    films = pd.DataFrame({"patient": [1, 2], "follow_up": 0, "dataset": "x", **dict.fromkeys(labels.FINDINGS, 0)})
    assert label_quality.jumps(films).empty
