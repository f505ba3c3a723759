"""Unknown labels in everything that takes labels: a film of unknown label does not count for that finding alone.

For finding K, a result with unknown labels equals the result on the films without these; for the other findings it
equals the result with all films. The films of unknown label belong to patients with further films, so that the
resamples of the patients are the same.
"""

import numpy as np
import pandas as pd
import pytest

from cxrlib import UserError, labels, metrics
from cxrlib.data import records, splits
from cxrlib.evaluation import calibration, delong, intervals, predict, subgroups, summary, thresholds
from cxrlib.plots import exploration, results

K = 2
FINDING = labels.LABELS[K]
OTHERS = [k for k in range(14) if k != K]
R = 60


def made_up(films: int = 240) -> tuple[pd.DataFrame, np.ndarray]:
    draw = np.random.default_rng(0)
    answers = (draw.random((films, 15)) < 0.35).astype(np.uint8)
    answers[::7] = 0
    answers[:, -1] = ~answers[:, :-1].any(1)
    probabilities = np.round(np.clip(0.3 * answers + 0.6 * draw.random((films, 15)), 0.01, 0.99), 2)  # with ties
    columns = dict(zip(labels.LABELS, answers.T, strict=True))
    frame = pd.DataFrame(
        {
            "image": [f"{i:08d}_000.png" for i in range(films)],
            "path": "",
            "patient": np.arange(films) // 3,
            "follow_up": np.arange(films) % 3,
            "age": draw.uniform(20, 80, films),
            "sex": draw.choice(["M", "F"], films),
            "view": draw.choice(["PA", "AP"], films),
            "dataset": "",
            **columns,
        }
    )
    return frame, probabilities


FILMS, P = made_up()
HIDDEN = np.arange(0, 90, 3)  # the first of three films of 30 patients
SEEN = np.setdiff1d(np.arange(len(FILMS)), HIDDEN)
HOLED = FILMS.astype(dict.fromkeys(labels.LABELS, np.float32))
HOLED.loc[HIDDEN, FINDING] = np.nan
FEWER = FILMS.iloc[SEEN].reset_index(drop=True)
OTHER_P = np.clip(P[::-1] * 0.3 + P * 0.7, 0, 1)


def by_label(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of a table by finding, without what counts films of a group or of the table."""
    return {name: rows.reset_index(drop=True) for name, rows in table.groupby("finding", sort=False)}


def arrays(found: np.ndarray) -> dict[str, np.ndarray]:
    """A result's columns by finding; the last axis is the findings'."""
    return {labels.LABELS[k]: found[..., k] for k in range(found.shape[-1])}


def bands(make):
    """A band of every finding, by name."""
    return lambda films, y, p, who: {
        name: np.stack(make(y[:, k], p[:, k], who, replicates=R)) for k, name in enumerate(labels.LABELS)
    }


def each(make):
    """A number, or several, of every finding, by name."""

    def of(y, p, who):
        found = make(y, p, who)
        return np.hstack(found if isinstance(found, tuple) else [found]).astype(float)

    return lambda films, y, p, who: {name: of(y[:, k], p[:, k], who) for k, name in enumerate(labels.LABELS)}


def boot(films, y, p, who):
    made = intervals.bootstrap(y, p, who, replicates=R)
    parts = (made.auc[None], made.ap[None], made.auc_replicates, made.ap_replicates, made.patients, *made.auc_interval)
    return arrays(np.vstack([np.atleast_2d(part) for part in parts]))


def decided(films, y, p, who):
    made = thresholds.fit_decisions(y, p, "platt", gamma=2.0)
    table = made.chosen.assign(slope=np.repeat(made.calibration.slopes, 3))
    return by_label(table.assign(intercept=np.repeat(made.calibration.intercepts, 3)))


def judged(films, y, p, who):
    chosen = thresholds.choose(records.label_matrix(FILMS), P)  # the same for all films, so that the films alone differ
    return by_label(thresholds.judge(chosen, y, p, who, replicates=R))


def in_groups(which):
    def result(films, y, p, who):
        calls = (p >= 0.5).astype(float)
        table = which(subgroups.measure(films, p, calls, replicates=R))
        counted = ["films", "patients", "films_against", "patients_against", "p_holm"]
        return by_label(table.drop(columns=counted, errors="ignore"))

    return result


def over_time(films, y, p, who):
    other = OTHER_P if len(films) == len(FILMS) else OTHER_P[SEEN]
    return by_label(summary.gain(films, other, p, replicates=R).drop(columns="p_holm"))


def steps(films, y, p, who):
    other = OTHER_P if len(films) == len(FILMS) else OTHER_P[SEEN]
    return by_label(summary.steps(["a", "b"], films, [other, p]).drop(columns="p_holm"))


def swapped(labels_of, scores, who):
    perfect = np.where(labels_of == 1, 2.0, np.where(labels_of == 0, 1.0, 9.0)) + scores / 10
    apart = delong.imperfect(labels_of, perfect)
    return metrics.roc_auc(labels_of, apart)


def delong_auc(y, p, who):
    found = delong.auc(y, p, who, int(FILMS["patient"].max()) + 1)
    return found.value, found.error, found.freedom, found.counts


def prevalence(films, y, p, who):
    table = exploration.prevalences({"x": films}).rename(columns={"label": "finding"})
    return by_label(table)


WALK = {
    "metrics.auc_per_label": lambda films, y, p, who: arrays(metrics.auc_per_label(y, p)[None]),
    "metrics.ap_per_label": lambda films, y, p, who: arrays(metrics.ap_per_label(y, p)[None]),
    "metrics.roc_curve": each(lambda y, p, who: metrics.roc_curve(y, p)),
    "metrics.pr_curve": each(lambda y, p, who: metrics.pr_curve(y, p)),
    "metrics.at_threshold": each(lambda y, p, who: metrics.at_threshold(y, p, 0.5)),
    "metrics.positives": lambda films, y, p, who: arrays(metrics.positives(y)[None]),
    "metrics.mean_of_known": lambda films, y, p, who: arrays(metrics.mean_of_known(p, y)[None]),
    "metrics.reason": each(lambda y, p, who: len(metrics.reason(y))),
    "intervals.bootstrap": boot,
    "intervals.roc_band": bands(intervals.roc_band),
    "intervals.pr_band": bands(intervals.pr_band),
    "intervals.delong_interval": each(intervals.delong_interval),
    "intervals.delong_difference": each(
        lambda y, p, who: intervals.delong_difference(y, p, p**2 + 0.1 * (p < 0.4), who)
    ),
    "intervals.delong_difference_over_seeds": each(
        lambda y, p, who: intervals.delong_difference_over_seeds(y, [p, p**3], [p**2 + 0.1 * (p < 0.4)], who)
    ),
    "intervals.patients_of": lambda films, y, p, who: arrays(intervals.patients_of(y, who, 80)[0]),
    "delong.auc": each(delong_auc),
    "delong.imperfect": each(swapped),
    "calibration.scores": lambda films, y, p, who: by_label(calibration.scores(y, p, who, replicates=R)),
    "calibration.reliability": each(lambda y, p, who: calibration.reliability(y, p).to_numpy().ravel()),
    "calibration.ece": each(lambda y, p, who: calibration.ece(y, p)),
    "thresholds.fit_decisions": decided,
    "thresholds.judge": judged,
    "subgroups.auc": in_groups(subgroups.auc),
    "subgroups.gaps": in_groups(subgroups.gaps),
    "subgroups.view_shortcut": lambda films, y, p, who: by_label(subgroups.view_shortcut(films, p, replicates=R)),
    "summary.auc": lambda films, y, p, who: by_label(
        summary.auc(films, p, replicates=R).drop(columns=["p_chance", "p_others"])
    ),
    "summary.gain": over_time,
    "summary.steps": steps,
    "results.roc_points": lambda films, y, p, who: by_label(results.roc_points(y, p, who, replicates=R)),
    "results.pr_points": lambda films, y, p, who: by_label(results.pr_points(y, p, who, replicates=R)),
    "results.reliability_points": lambda films, y, p, who: by_label(results.reliability_points(y, {"a": p})),
    "exploration.prevalences": prevalence,
}


def result(name, films, p):
    return WALK[name](films, records.label_matrix(films), p, films["patient"].to_numpy())


@pytest.mark.parametrize("name", list(WALK))
def test_an_unknown_label_leaves_its_film_out_for_its_finding_alone(name):
    holed, fewer, whole = result(name, HOLED, P), result(name, FEWER, P[SEEN]), result(name, FILMS, P)
    for finding in [FINDING, *(labels.LABELS[k] for k in OTHERS)]:
        if finding not in whole and name.startswith(("results.reliability", "subgroups", "summary")):
            continue
        same(holed[finding], (fewer if finding == FINDING else whole)[finding])
    if name != "metrics.reason" and name != "delong.imperfect":  # the test can tell the two sets of films apart
        with pytest.raises(AssertionError):
            same(fewer[FINDING], whole[FINDING])


def same(one, other):
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, rtol=1e-9, atol=1e-12, check_dtype=False)
    else:
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_every_public_function_that_takes_labels_is_in_the_walk():
    """Names that take labels or films with labels, and are not in ``WALK``, with the test that has them instead."""
    elsewhere = {
        "metrics": {"mean_auc", "micro_auc", "average_precision", "roc_auc", "is_known", "of_known", "fill_unknown"},
        "intervals": {"running_weights", "micro_auc", "check"},
        "delong": set(),
        "calibration": {"fit"},
        "thresholds": {"choose"},
        "subgroups": {"groups", "measure", "why"},
        "summary": {"against", "overall", "at_half", "rank", "extremes", "stages"},
    }
    for module in (metrics, intervals, delong, calibration, thresholds, subgroups, summary):
        room = module.__name__.rpartition(".")[2]
        takes = {
            name
            for name, function in vars(module).items()
            if getattr(function, "__module__", "") == module.__name__
            and not name.startswith("_")
            and {"labels", "films", "known"} & {*getattr(getattr(function, "__code__", None), "co_varnames", ())[:2]}
        }
        walked = {name.partition(".")[2] for name in WALK if name.startswith(room)}
        assert takes - walked - elsewhere[room] == set(), room


def test_the_mean_and_the_tests_are_over_known_labels():
    y, p, who = records.label_matrix(HOLED), P, FILMS["patient"].to_numpy()
    single = metrics.auc_per_label(y, p)[:14]
    assert metrics.mean_auc(y, p) == single.mean()
    known = ~np.isnan(y)
    assert metrics.micro_auc(y, p) == metrics.roc_auc(y[known], p[known])
    assert intervals.micro_auc(y, p, who, replicates=20).value == metrics.micro_auc(y, p)
    table = summary.against(HOLED, p)
    expected = summary.against(FEWER, P[SEEN]).loc[K, "p_chance"]
    assert table.loc[K, "p_chance"] == pytest.approx(expected, rel=0.5)  # Holm's factor depends on the other findings
    half = summary.at_half(y, p)
    assert half["prevalence"] == pytest.approx(y[:, :14][known[:, :14]].mean())
    assert half["mean probability"] == pytest.approx(p[:, :14][known[:, :14]].mean())


def test_a_rank_compares_with_films_known_to_be_without_the_finding():
    rank = summary.rank(HOLED, P)
    y = records.label_matrix(HOLED)
    for i in (1, 30, 50):
        shares = []
        for k in np.flatnonzero(y[i, :14] == 1):
            others = P[y[:, k] == 0, k]
            shares.append(((others < P[i, k]) + 0.5 * (others == P[i, k])).mean())
        assert rank[i] == pytest.approx(np.mean(shares))


def test_findings_known_of_no_film_are_undefined_with_a_reason(tmp_path):
    nowhere = HOLED.assign(**{FINDING: np.float32(np.nan)})
    y, who = records.label_matrix(nowhere), nowhere["patient"].to_numpy()
    table = summary.auc(nowhere, P, replicates=R).set_index("finding")
    assert table.loc[FINDING, "reason"] == "no film with a known label"
    assert table.loc[FINDING, ["films", "positives"]].tolist() == [0, 0]
    assert table.index[-1] == "mean of 13 of 14"
    made = thresholds.fit_decisions(y, P)
    assert np.isnan(made.cuts()[K])
    assert "only 0 validation films" in made.calibration.reasons[K]
    assert np.isnan(calibration.ece(y[:, K], P[:, K]))
    judged = made.judge(y, P, who).set_index("finding").loc[FINDING]
    assert judged[["sensitivity", "ppv", "f1"]].isna().all(axis=None)
    assert np.isfinite(calibration.scores(y, P, who, replicates=R)["brier"].drop(K)).all()
    subgroups.gaps(subgroups.measure(nowhere, P, replicates=20))
    assert metrics.fill_unknown(y)[0, K] == 0.5


def test_figures_say_that_no_label_is_known():
    import matplotlib.pyplot as plt

    nowhere = HOLED.assign(**{FINDING: np.float32(np.nan)})
    y, who = records.label_matrix(nowhere), nowhere["patient"].to_numpy()
    for points, draw in (
        (results.roc_points(y, P, who, replicates=20), results.roc_grid),
        (results.pr_points(y, P, who, replicates=20), results.pr_grid),
        (results.reliability_points(y, {"a": P, "b": P**2}), results.reliability_grid),
    ):
        fig, axes = plt.subplots(3, 5)
        draw(points, axes)
        said = [text.get_text() for text in axes.flat[K].texts]
        assert any("no film with a known label" in text for text in said), draw
        plt.close(fig)


def test_predictions_keep_unknown_labels(tmp_path):
    csv = predict.write(tmp_path / "test.csv", HOLED, P)
    read = predict.read(csv, HOLED)
    np.testing.assert_array_equal(read.labels, records.label_matrix(HOLED))
    assert read.labels.dtype == np.float32
    lines = csv.read_text().splitlines()
    assert lines[1].split(",")[-15 + K] == ""
    csv.write_text(csv.read_text().replace(",,", ",NaN,"))
    np.testing.assert_array_equal(predict.read(csv).labels, read.labels)
    with pytest.raises(UserError, match=r"labels or patient of 00000000_000\.png are not those of the films"):
        predict.read(csv, FILMS)
    for cut in ("\n".join(lines[:-1]) + "\n" + lines[-1][: lines[-1].rindex(",")], "\n".join(lines)[:-1]):
        csv.write_text(cut)
        with pytest.raises(UserError, match="cut off"):
            predict.read(csv)
    assert predict.read(predict.write(csv, FILMS, P), FILMS).labels.dtype == np.uint8


def test_counts_of_a_split_and_of_a_folder_tell_unknown_from_absent():
    parts = splits.Parts(HOLED, FILMS, FILMS, "", 0)
    table = splits.summary(parts)
    assert table.loc["train", FINDING] == FEWER[FINDING].sum()
    assert table[f"{FINDING} known"].tolist() == [len(SEEN), len(FILMS), len(FILMS)]
    assert list(splits.summary(splits.Parts(FILMS, FILMS, FILMS, "", 0)).columns[2:]) == list(labels.LABELS)
    made = exploration.co_occurrences(HOLED).loc["Mass", FINDING]
    assert made == pytest.approx(FEWER.loc[FEWER["Mass"] == 1, FINDING].mean())
    triples = exploration.gaps(HOLED.assign(**{FINDING: np.float32(np.nan)})).set_index("finding")
    assert triples.loc[FINDING, "chances"] == 0


def test_a_drawn_part_has_its_share_of_the_unknown_labels(tmp_path):
    holed = HOLED.copy()
    holed.loc[holed["patient"] < 40, "Hernia"] = np.nan  # of half of the patients
    drawn = splits.make(holed, tmp_path, seed=3)
    assert drawn.test["Hernia"].isna().mean() == pytest.approx(0.5, abs=0.05)


def test_labels_that_are_not_known_have_a_fingerprint_of_their_own():
    assert records.fingerprint(HOLED) != records.fingerprint(FILMS)
    assert records.fingerprint(HOLED) != records.fingerprint(HOLED.fillna(0))
    as_float = FILMS.astype(dict.fromkeys(labels.LABELS, np.float32))
    assert records.fingerprint(as_float) == records.fingerprint(FILMS)
    assert labels.decode(HOLED.loc[0, list(labels.LABELS)]) == labels.decode(
        FILMS.loc[0, list(labels.LABELS)] * (np.array(labels.LABELS) != FINDING)
    )


HEADER = "Image Index,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"


def table_of(path, cells, no_finding=True):
    names = labels.LABELS if no_finding else labels.FINDINGS
    lines = [f"{i:08d}_000.png,0,{i},50,F,PA,{','.join(row)}" for i, row in enumerate(cells, 1)]
    path.write_text(HEADER + ",".join(names) + "\n" + "\n".join(lines) + "\n")
    return path


def test_a_table_with_empty_and_uncertain_cells(tmp_path):
    csv = table_of(tmp_path / "a.csv", [["0"] * 14, ["1", "-1", *["0"] * 12], ["", *["0"] * 13]], no_finding=False)
    told = []
    films = records.read_csv(csv, on_assumed=lambda what, cases: told.append((what, cases)))
    assert films["Mass"].dtype == np.float32
    np.testing.assert_array_equal(films[["Atelectasis", "Cardiomegaly"]], [[0, 0], [1, np.nan], [np.nan, 0]])
    np.testing.assert_array_equal(films["No Finding"], [1, np.nan, np.nan])
    assert ("labels unknown", ["Atelectasis of 1 films", "Cardiomegaly of 1 films", "No Finding of 2 films"]) in told
    for uncertain, value in (("positive", 1), ("negative", 0)):
        films = records.read_csv(csv, uncertain=uncertain)
        assert films.loc[1, ["Cardiomegaly", "No Finding"]].tolist() == [value, 0]
    with pytest.raises(UserError, match="uncertain 'maybe' is unknown; choose unknown, positive, negative"):
        records.read_csv(csv, uncertain="maybe")
    table_of(csv, [["0"] * 14, ["1", *["0"] * 13]], no_finding=False)
    assert records.read_csv(csv)["Mass"].dtype == np.uint8


def test_a_stated_no_finding_counts_and_a_contradiction_is_refused(tmp_path):
    stated = table_of(tmp_path / "a.csv", [[*[""] * 14, "1"], [*[""] * 14, "0"], ["1", *["0"] * 13, ""]])
    assert records.read_csv(stated)["No Finding"].tolist() == [1, 0, 0]
    with pytest.raises(UserError, match="line 2: No Finding '1'; it must be 1 where all 14 findings are 0"):
        records.read_csv(table_of(tmp_path / "b.csv", [["1", *[""] * 13, "1"]]))
    with pytest.raises(UserError, match="line 2: Mass '2'; expected 0, 1, nothing"):
        records.read_csv(table_of(tmp_path / "c.csv", [["0", "0", "0", "0", "2", *["0"] * 9, "0"]]))


def test_a_dataset_is_opened_with_a_meaning_for_uncertain_labels(tmp_path):
    import cv2

    from cxrlib import dataset
    from cxrlib.training import parameters

    draw = np.random.default_rng(0)
    cells = [["1" if k == i % 14 else "0" for k in range(14)] for i in range(30)]
    cells[4][0], cells[5][1] = "-1", ""
    table_of(tmp_path / records.TABLES[0], cells, no_finding=False)
    (tmp_path / "images").mkdir()
    for i in range(1, 31):
        cv2.imwrite(str(tmp_path / f"images/{i:08d}_000.png"), draw.integers(0, 256, (16, 16), dtype=np.uint8))
    opened = {name: dataset.open(str(tmp_path), 16, uncertain=name, progress=False) for name in parameters.UNCERTAIN}
    assert [opened[name].films.loc[4, "Atelectasis"] for name in ("positive", "negative")] == [1, 0]
    assert opened["unknown"].films[list(labels.LABELS)].isna().sum().sum() == 4  # two findings, and No Finding of both
    assert len({one.fingerprint for one in opened.values()}) == 3
    batch = next(iter(opened["unknown"].batches(8)[0].epoch(0)))
    assert batch.labels.shape == (8, 15)
    assert set(parameters.UNCERTAIN) == set(records.tables.UNCERTAIN)
