"""External validation on two made-up hospitals: the other has lower contrast, other prevalence and portable films."""

import numpy as np
import pandas as pd
import pytest

from cxrlib import UserError, labels, metrics, paths
from cxrlib.data import splits
from cxrlib.evaluation import external, intervals, predict, thresholds


def hospital(seed, *, sharp=1.2, rate=0.3, shift=0.0, films=900, ap=0.3):
    """Films of 300 patients and a network's probabilities: logits of mean ±``sharp``, all moved by ``shift``."""
    draw = np.random.default_rng(seed)
    answers = (draw.random((films, 15)) < rate).astype(np.float32)
    logits = sharp * (2 * answers - 1) + draw.normal(size=answers.shape) * 1.5 + shift
    frame = pd.DataFrame(answers, columns=list(labels.LABELS)).assign(
        image=[f"{seed}{i:07d}.png" for i in range(films)], path="", patient=np.arange(films) // 3, follow_up=0,
        age=50.0, sex="F", view=np.where(draw.random(films) < ap, "AP", "PA"), dataset=f"h{seed}",
    )  # fmt: skip
    return frame, 1 / (1 + np.exp(-logits))


HOME, THERE = hospital(1), hospital(2, sharp=0.6, rate=0.1, shift=2, ap=0.9)


def sides():
    return external.Films.of(*HOME), external.Films.of(*THERE)


def test_the_drop_is_found_and_its_variances_add():
    home, there = sides()
    table = external.drop(home, there).set_index("finding")
    assert len(table) == 15
    assert table.index[-1] == metrics.MEAN
    for finding in ("Mass", "Hernia"):
        k, row = labels.column(finding), table.loc[finding]
        apart = [intervals.delong_interval(one.labels[:, k], one.probabilities[:, k], one.patients) for one in sides()]
        assert row["drop"] == pytest.approx(apart[0].value - apart[1].value)
        halves = [(one.high - one.low) / 2 for one in apart]
        assert (row["high"] - row["low"]) / 2 == pytest.approx(np.hypot(*halves), rel=0.02)
        assert row[["home_auc_low", "there_auc_high"]].tolist() == pytest.approx([apart[0].low, apart[1].high])
    assert (table["drop"] > 0).all()
    assert table.iloc[-1]["low"] > 0
    assert table.iloc[-1]["drop"] == pytest.approx(table["drop"].iloc[:-1].mean())


def test_another_sample_of_the_same_hospital_shows_no_drop():
    shown = [
        external.drop(sides()[0], external.Films.of(*hospital(seed))).iloc[-1]["p"] <= 0.05 for seed in range(3, 23)
    ]
    assert sum(shown) <= 4  # 1 of 20 is expected, and above 4 in 0.3 % of such experiments


def test_patients_of_the_same_number_are_different_people():
    home, there = sides()
    other = external.Films(there.labels, there.probabilities, there.patients + 10_000)
    pd.testing.assert_frame_equal(external.drop(home, there), external.drop(home, other))


def test_a_finding_that_one_side_does_not_label_is_not_compared():
    frame, probabilities = THERE
    there = external.Films.of(frame.assign(Mass=np.float32(np.nan)), probabilities)
    table = external.drop(sides()[0], there).set_index("finding")
    assert table.loc["Mass", "reason"] == "there: no film with a known label"
    assert table.loc["Mass", ["there_films", "home_films"]].tolist() == [0, 900]
    assert np.isnan(table.loc["Mass", "drop"])
    assert table.index[-1] == "mean of 13 of 14"
    assert table["home_auc"].iloc[-1] == pytest.approx(table["home_auc"].drop("Mass").iloc[:-1].mean())
    few = external.Films(*(values[:12] for values in (there.labels, there.probabilities, there.patients)))
    table = external.drop(sides()[0], few)
    assert table["low"].isna().all()
    assert (table["reason"] != "").all()


def test_fitting_again_mends_the_calibration_and_not_the_ranking():
    home, there = sides()
    carried = thresholds.fit_decisions(home.labels, home.probabilities)
    frame, probabilities = hospital(7, sharp=0.6, rate=0.1, shift=2)
    again = external.decisions_there(carried, external.Films.of(frame, probabilities))
    table = external.calibrations(carried, again, there, replicates=50).groupby("probabilities")
    assert table["ece"].mean()["fitted again"] < 0.2 * table["ece"].mean()["as it came"]
    assert table["brier"].mean()["fitted again"] < table["brier"].mean()["as it came"]
    np.testing.assert_array_equal(
        metrics.auc_per_label(there.labels, again.calibration(there.probabilities)),
        metrics.auc_per_label(there.labels, there.probabilities),
    )
    judged = external.judgements(carried, again, there)
    mean = judged[judged["rule"] == "youden"].groupby("thresholds")[["sensitivity", "specificity"]].mean()
    assert mean.loc["as they came", "specificity"] < 0.5 < mean.loc["chosen again", "specificity"]


def test_the_mix_of_both():
    table = external.mix(HOME[0], THERE[0]).set_index("number")
    assert table.loc["AP"].tolist() == pytest.approx([0.3, 0.9], abs=0.05)
    assert table.loc["Mass"].tolist() == pytest.approx([0.3, 0.1], abs=0.05)
    assert table.loc["films"].tolist() == [900, 900]


def test_films_of_another_dataset_are_recognised():
    nih = pd.DataFrame({"image": ["00000001_000.png"], "patient": [1]})
    seen = {"nih", "h1"}
    assert external.is_external(seen, THERE[0])
    assert not external.is_external(seen, HOME[0])
    assert not external.is_external(seen, nih.assign(dataset=""))
    assert not external.is_external(seen, nih.assign(dataset="", image="a.png"))
    assert not external.is_external((), HOME[0])


def test_without_an_official_split_all_but_the_validation_part_is_tested(tmp_path):
    parts = splits.make(HOME[0], tmp_path)
    divided = external.divide(parts)
    assert (len(divided.train), len(divided.val) + len(divided.test)) == (0, 900)
    assert splits.overlap(divided.val, divided.test) == 0
    assert "no official test part" in divided.source
    assert splits.summary(divided).loc["train", "films"] == 0
    official = splits.Parts(parts.train, parts.val, parts.test, "official lists of x", 0)
    assert external.divide(official).test is parts.test


def test_the_home_result_is_that_of_the_checkpoints_run(tmp_path):
    home, films = paths.Run("base"), HOME[0]
    tested = home.root / "stage1" / "stage1_x.safetensors"
    assert external.read_home(tested, paths.Run("elsewhere")) is None  # as for an exported checkpoint
    assert external.home_films(tested) is None
    predict.write(home.predictions / "test.csv", *HOME)
    own = external.read_home(tested, paths.Run("elsewhere"))
    np.testing.assert_array_equal(own.labels, films[list(labels.LABELS)])
    with pytest.raises(UserError, match="run base holds the checkpoint's own result"):
        external.read_home(tested, home)
    assert external.home_films(tested) is None
    paths.write_json(home.root / "run.json", {"data": {"folder": str(tmp_path / "gone")}})
    assert external.home_films(tested) is None
