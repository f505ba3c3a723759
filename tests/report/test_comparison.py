import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind
from sklearn.metrics import roc_auc_score

from cxrlib import UserError, paths
from cxrlib.evaluation import intervals, predict
from cxrlib.labels import FINDINGS, column
from cxrlib.report import comparison, page
from cxrlib.workbook import cli
from tests.report import browser, made_up
from tests.report.reader import read, section


@pytest.fixture
def two():
    return made_up.run("base"), made_up.run("bce", seed=1, noise=2.5)


def between(*runs):
    return comparison.gather([paths.Run(run) for run in runs])["pairs"]


def shown(*runs):
    return read(comparison.build(runs)).words


def other_films(home, **changes):
    """Change the run's file of predictions."""
    file = home.predictions / "test.csv"
    pd.read_csv(file).assign(**changes).to_csv(file, index=False)


def test_the_mean_difference_is_the_paired_bootstrap_of_the_intervals_room(two):
    base, bce = (predict.read(home.predictions / "test.csv") for home in two)
    ours, theirs = (
        intervals.bootstrap(base.labels, read.probabilities, base.patients, replicates=1000, seed=0)
        for read in (bce, base)
    )
    expected = intervals.difference(ours, theirs)
    found = between("base", "bce")[0]["mean"]
    assert [found[name] for name in ("difference", "low", "high", "p")] == pytest.approx(list(expected))
    assert f"{expected.value:+.3f} ({expected.low:+.3f} to {expected.high:+.3f})".replace("-", "−") in shown(
        "base", "bce"
    )


def test_single_findings_are_compared_by_delong_by_patient_and_adjusted_together(two):
    base, bce = (predict.read(home.predictions / "test.csv") for home in two)
    rows = {row["finding"]: row for row in between("base", "bce")[0]["rows"]}
    p = []
    for finding in FINDINGS:
        k, row = column(finding), rows[finding]
        truth, scores = base.labels[:, k], (bce.probabilities[:, k], base.probabilities[:, k])
        expected = intervals.delong_difference(truth, *scores, base.patients)
        assert [row[name] for name in ("difference", "low", "high", "p")] == pytest.approx(list(expected))
        assert row["second"] - row["first"] == pytest.approx(
            roc_auc_score(truth, scores[0]) - roc_auc_score(truth, scores[1])
        )
        p.append(expected.p)
    assert [rows[finding]["p_holm"] for finding in FINDINGS] == pytest.approx(intervals.holm(np.array(p)))


def test_a_worse_reader_is_called_lower_and_an_equal_one_is_not(two):
    made_up.run("again")
    pairs = between("base", "bce", "again")
    assert pairs[0]["mean"]["says"] == "lower"
    assert pairs[0]["mean"]["words"] == "lower over patients; seeds not tested"
    assert pairs[1]["mean"]["difference"] == 0
    assert pairs[1]["mean"]["says"] == "no difference shown"
    assert not any(names for sides in pairs[1]["shown"].values() for names in sides.values())


def test_several_comparisons_are_adjusted_for_being_several(two):
    made_up.run("third", seed=2, noise=1.4)
    alone, beside = between("base", "bce"), between("base", "bce", "third")
    together = [pair["mean"]["p"] for pair in beside]
    assert [pair["mean"]["p_holm"] for pair in beside] == pytest.approx(intervals.holm(np.array(together)))
    singles = zip(alone[0]["rows"], beside[0]["rows"], strict=True)
    assert all(both["p_holm"] >= one["p_holm"] for one, both in singles)


def test_the_order_of_rows_in_a_file_does_not_matter(two):
    before = between("base", "bce")[0]["mean"]
    file = two[1].predictions / "test.csv"
    pd.read_csv(file).sample(frac=1, random_state=1).to_csv(file, index=False)
    after = between("base", "bce")[0]["mean"]
    assert after["difference"] == pytest.approx(before["difference"])
    assert after["low"] == pytest.approx(before["low"])


def test_runs_tested_on_different_films_are_not_paired_and_it_is_said(two):
    made_up.run("small", films=90)
    words = shown("base", "small")
    assert "Not paired. They were tested on different films (120 and 90, 90 of them the same)" in words
    assert "Paired differences" not in words
    assert "not all tested on the same films" in words


def test_runs_tested_on_the_same_films_with_other_labels_are_not_paired(two):
    truth = pd.read_csv(two[1].predictions / "test.csv")["label_Mass"]
    other_films(two[1], label_Mass=truth.where(truth.index > 3, 1 - truth))
    assert "4 have other labels or patients; they are not paired" in between("base", "bce")[0]["why"]


@pytest.mark.parametrize("content", [None, "", "image,patient\na,1\n", "\x00"])
def test_a_run_without_readable_predictions_is_shown_but_not_paired(two, content):
    file = two[1].predictions / "test.csv"
    file.unlink() if content is None else file.write_text(content)
    words = shown("base", "bce")
    assert "no readable predictions of bce" in words
    assert "What is missing in bce" in words
    assert not re.search(r"\bnan\b", words.lower())


def test_tables_and_predictions_of_different_readings_are_told(two):
    assert "of different evaluations" not in shown("base", "bce")
    other_films(two[1], prob_Mass=0.5)
    assert "the files are of different evaluations; run 06_evaluation again" in shown("base", "bce")


def test_a_finding_of_one_class_only_is_undefined_and_does_not_count(two):
    for home in two:
        other_films(home, label_Hernia=0)
    pair = between("base", "bce")[0]
    hernia = next(row for row in pair["rows"] if row["finding"] == "Hernia")
    assert hernia["says"] == "undefined"
    assert pair["rows"][-1] is hernia
    assert "undefined: one class only" in shown("base", "bce")


def test_contaminated_runs_are_marked(two):
    assert "contaminated" not in shown("base", "bce").lower()
    parts = pd.read_csv(two[1].tables / "data.csv").assign(seen_in_training=[None, None, 12])
    parts.to_csv(two[1].tables / "data.csv", index=False)
    words = shown("base", "bce")
    assert "bce has seen 12 of the test patients" in words
    assert "This is no fair comparison" in words
    assert words.index("Contaminated") < words.index("Is the difference real?")


def test_settings_that_differ_are_shown_and_equal_ones_are_set_apart(two):
    record = made_up.record("bce")
    record["settings"]["loss"], record["parameters"]["seed"] = "bce", 3
    paths.write_json(two[1].run_json, record)
    stages = pd.read_csv(two[1].tables / "stages.csv").assign(lr=[1e-3, 5e-5])
    stages.to_csv(two[1].tables / "stages.csv", index=False)
    rows = {row["name"]: row["values"] for row in comparison.gather(two)["settings"]["rows"]}
    assert rows == {
        "seed": ["0", "3"],
        "loss": ["not recorded", "bce"],
        "stage 2": [f"layer4 to fc, focal loss, rate {rate}, 3 epochs" for rate in ("0.001", "5e-05")],
    }
    differing = section(shown("base", "bce"), "Settings that differ", "The same in all")
    assert "size" not in differing


def test_names_and_settings_are_escaped(two):
    made_up.run("other")
    page = comparison.build(["base", "other"]).read_text()
    assert "<i>mine" not in page
    assert 'href="other/report.html"' in page


def test_nothing_is_asked_from_elsewhere_and_all_has_words(two):
    page = comparison.build(["base", "bce"])
    assert not re.search(r"(https?:)?//[a-z]", page.read_text())
    assert "<script" not in page.read_text()
    seen = read(page)
    assert all(address.startswith("data:") or address.endswith("report.html") for address in seen.addresses)
    assert all(after - before <= 1 for before, after in zip(seen.headings, seen.headings[1:], strict=False))
    assert seen.unscoped == 0
    forest = [drawing["aria-label"] for drawing in seen.drawings if "; bce" in drawing["aria-label"]]
    assert len(forest) == len(FINDINGS)


@pytest.mark.parametrize("runs", [["base"], ["base", "base"], ["base", "bce", "c", "d", "e", "f"]])
def test_one_run_or_too_many_are_refused(two, runs):
    with pytest.raises(UserError, match=f"name two to {len(page.SHAPES)}"):
        comparison.build(runs)


def test_a_page_of_runs_with_long_names_has_a_name_that_fits():
    assert comparison.address(["a", "b"]).name == "compare-a-b.html"
    names = [["r" * 90, "s" * 90 + end] for end in "xy"]
    files = [comparison.address(runs).name for runs in names]
    assert len(set(files)) == 2
    assert all(len(file) < 255 for file in files)


def test_the_command_writes_every_report_and_the_comparison_and_says_where(two, capsys):
    assert cli.call(["report", "base", "bce", "base"]) == 0
    told = capsys.readouterr().out.splitlines()
    files = [two[0].report, two[1].report, paths.outputs() / "compare-base-bce.html"]
    assert [line.split(": ")[0] for line in told] == ["Report", "Report", "Comparison"]
    assert all(line.endswith(str(file)) and file.is_file() for line, file in zip(told, files, strict=True))


@pytest.mark.parametrize("words", [["nowhere"], ["base", "nowhere"], ["base", "a/b"]])
def test_an_unknown_run_is_one_line_and_nothing_is_written(two, capsys, words):
    assert cli.call(["report", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.strip().splitlines()) == 1
    assert words[-1] in err
    assert not list(paths.outputs().glob("**/*.html"))


def test_an_empty_folder_is_compared_as_far_as_it_goes(two):
    paths.Run("empty").root.mkdir()
    words = shown("empty", "base")
    assert "no readable predictions of empty" in words
    assert not re.search(r"\bnan\b", words.lower())


def test_a_pair_without_any_pair_gives_no_rows():
    assert comparison.paired_differences([]) == []


@pytest.mark.slow
def test_in_a_browser_nothing_is_said_asked_or_cut_off(two, tmp_path):
    made_up.run("a_very_long_name_of_a_run_with_many_words_in_it_and_no_space_at_all", seed=3)
    runs = ["base", "bce", "a_very_long_name_of_a_run_with_many_words_in_it_and_no_space_at_all"]
    address = comparison.build(runs).as_uri()
    with browser.page(tmp_path) as page:
        page.open(address)
        assert page.overhang(browser.A4, "print") == []
        for width in (1280, 768, 390, 320):
            assert page.overhang(width) == [], width
            assert page.value("document.documentElement.scrollWidth") <= width
    assert not page.said
    assert [url for url in page.asked if not url.startswith(("data:", "file:"))] == []


def test_a_test_on_another_dataset_is_shown_with_its_drop(two):
    mean = {"home_auc": 0.84, "home_auc_low": 0.82, "home_auc_high": 0.86, "there_auc": 0.79, "drop": 0.05}
    ends = {"there_auc_low": 0.75, "there_auc_high": 0.83, "low": 0.01, "high": 0.09, "p_holm": 0.02, "reason": ""}
    counts = {"there_films": 70, "there_positives": 12}
    rows = [{"finding": name, **mean, **ends, **counts} for name in ("Mass", "mean of 14")]
    names = [home.name for home in two]
    assert "In another dataset" not in shown(*names)
    pd.DataFrame(rows).to_csv(two[1].tables / "external.csv", index=False)
    words = shown(*names)
    assert "In another dataset" in words
    assert "0.840 (0.820–0.860)" in words
    assert "+0.050 (+0.010 to +0.090)" in words


def recipe(name, seeds, *, noise, films=240, **settings):
    """Leave a series of runs."""
    for seed in seeds:
        home, own = made_up.run(f"{name}-s{seed}", seed=seed, noise=noise, films=films), made_up.record(name)
        own["parameters"]["seed"] = seed
        own["settings"] |= {"run": f"{name}-s{seed}", **settings}
        paths.write_json(home.run_json, own)
    return [f"{name}-s{seed}" for seed in seeds]


@pytest.fixture
def series():
    """Two recipes of three seeds each, the second of which reads worse."""
    return recipe("base", (0, 1, 2), noise=1.6) + recipe("bce", (0, 1, 2), noise=2.6, loss="bce")


def gathered(names):
    return comparison.gather([paths.Run(name) for name in names])


def probabilities(name):
    return predict.read(paths.Run(name).predictions / "test.csv")


def mean_auc(name):
    own = probabilities(name)
    columns = range(len(FINDINGS))
    return np.mean([roc_auc_score(own.labels[:, k], own.probabilities[:, k]) for k in columns])


def test_a_series_has_its_mean_and_sd_over_seeds_beside_the_interval_over_patients(series):
    unit = gathered(series)["units"][0]
    by_seed = [mean_auc(name) for name in series[:3]]
    assert unit["seeds"] == [0, 1, 2]
    assert unit["by_seed"] == pytest.approx(by_seed)
    assert (unit["mean"].value, unit["sd"]) == pytest.approx((np.mean(by_seed), np.std(by_seed, ddof=1)))
    assert unit["mean"].low < unit["mean"].value < unit["mean"].high
    aucs = [roc_auc_score(read.labels[:, 4], read.probabilities[:, 4]) for read in map(probabilities, series[:3])]
    assert unit["rows"]["Mass"]["auc"] == pytest.approx(np.mean(aucs))
    assert unit["rows"]["Mass"]["sd"] == pytest.approx(np.std(aucs, ddof=1))
    words = shown(*series)
    assert f"± {unit['sd']:.3f} SD over 3 seeds" in words
    assert f"± {unit['rows']['Mass']['sd']:.3f}" in words


def test_a_difference_between_series_is_tested_over_patients_and_over_seeds(series):
    pair = gathered(series)["pairs"][0]
    first, second = ([mean_auc(name) for name in names] for names in (series[:3], series[3:]))
    expected = ttest_ind(second, first, equal_var=False)
    assert pair["mean"]["difference"] == pytest.approx(np.mean(second) - np.mean(first))
    assert pair["mean"]["seeds_p"] == pytest.approx(expected.pvalue, rel=1e-6)
    boots = [
        intervals.bootstrap(read.labels, read.probabilities, read.patients, precision=False)
        for read in map(probabilities, series)
    ]
    means = [np.mean([boot.auc_replicates for boot in side], axis=0)[:, :14].mean(1) for side in (boots[:3], boots[3:])]
    gaps = means[1] - means[0]
    assert [pair["mean"]["low"], pair["mean"]["high"]] == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=2e-3)
    singles = [row["seeds_p"] for row in pair["rows"]]
    assert [row["seeds_p_holm"] for row in pair["rows"]] == pytest.approx(intervals.holm(np.array(singles)))
    assert pair["mean"]["holds"] == "both"
    words = shown(*series)
    assert "The difference holds over patients and over seeds: bce is worse" in words
    assert "bce against base" in words


def row(patients, seeds, difference=0.1):
    """A row with adjusted p over patients and over seeds."""
    ends = {"difference": difference, "low": difference - 0.05, "high": difference + 0.05}
    numbers = {"finding": "Mass", "p_holm": patients, "seeds_p_holm": seeds, "positives": 9}
    return {**numbers, **ends}


@pytest.mark.parametrize(
    ("patients", "seeds", "words"),
    [
        (0.01, 0.01, "better over patients and over seeds"),
        (0.01, 0.2, "higher over patients, not over seeds"),
        (0.2, 0.01, "higher over seeds, not over patients"),
        (0.2, 0.2, "no difference shown"),
        (0.01, np.nan, "higher over patients; seeds not tested"),
        (0.2, np.nan, "no difference shown"),
    ],
)
def test_it_says_what_a_difference_survives(patients, seeds, words):
    table = pd.DataFrame([row(patients, seeds), row(patients, seeds, -0.1), row(patients, seeds)])
    above, _, below = comparison._verdicts(table)["rows"]
    assert above["words"] == words
    assert below["words"] == words.replace("higher", "lower").replace("better", "worse")


@pytest.mark.parametrize("noise", [0.2, 2.6, 6.0])
def test_no_run_of_one_seed_is_called_better(noise):
    """Whatever the difference, and also where one of the two is a series."""
    made_up.run("base")
    made_up.run("bce", seed=1, noise=noise)
    names = [["base", "bce"], ["bce", "base"], ["bce", *recipe("many", (0, 1), noise=1.0, films=120)]]
    for runs in names:
        page = comparison.build(runs).read_text()
        assert not re.search(r"\b(better|worse|best|worst)\b", page, re.IGNORECASE)
        assert "seeds are not tested" in page


def test_runs_that_differ_in_more_than_the_seed_are_no_series_and_it_is_said(series):
    record = paths.read_json(paths.Run("base-s1").run_json)
    record["settings"]["lr"] = 0.1
    paths.write_json(paths.Run("base-s1").run_json, record)
    units = gathered(series[:3])["units"]
    assert [unit["name"] for unit in units] == series[:3]
    assert "The runs of base are shown one by one: base-s0 and base-s1 differ in lr." in shown(*series[:3])


def test_runs_of_a_series_on_other_films_or_of_another_seed_are_none(series):
    made_up.run("base-s1", seed=1, films=90)
    assert "base-s1 has seed 0" in comparison._units(gathered(series[:3])["runs"])[1][0]
    recipe("base", (1,), noise=1.0, films=90)
    assert "not tested on the same films" in comparison._units(gathered(series[:3])["runs"])[1][0]


def test_a_series_alone_is_shown_without_a_comparison(series):
    words = shown(*series[:3])
    assert "base, 3 seeds" in words
    assert "Is the difference real?" not in words
    assert "The runs differ in their seed only." in words


def test_a_series_name_stands_for_its_runs_by_seed(series, capsys):
    recipe("base", (10,), noise=1.6)
    assert comparison.expand(["bce", "base", "bce-s0"]) == [*series[3:], *series[:3], "base-s10"]
    assert cli.call(["report", "base", "bce"]) == 0
    assert "Comparison: " in capsys.readouterr().out
    made_up.run("base")
    assert comparison.expand(["base"]) == ["base"]
    assert comparison.expand(["nowhere"]) == ["nowhere"]


def test_five_series_fit_on_a_page_and_six_do_not():
    names = [f"{letter}-s{seed}" for letter in "abcdef" for seed in range(3)]
    comparison.check(names[:15])
    with pytest.raises(UserError, match="a series of seeds counts as one"):
        comparison.check(names)


def test_a_series_beside_a_run_is_one_column(series):
    made_up.run("single", seed=4, noise=2.0, films=240)
    page = comparison.build([*series, "single"])
    seen = read(page)
    assert seen.unscoped == 0
    forest = [drawing["aria-label"] for drawing in seen.drawings if "; bce" in drawing["aria-label"]]
    assert len(forest) == len(FINDINGS)
    assert all(label.count(";") == 2 or label.count(";") == 5 for label in forest)


def test_a_mean_of_runs_is_said_to_be_one_and_has_its_members_settings(series):
    home, own = made_up.run("average", seed=9, noise=1.2, films=240), made_up.record("average")
    own |= {"members": [{"run": "base-s0"}, {"run": "base-s1"}], "parameters": {}}
    paths.write_json(home.run_json, own)
    words = shown(*series[:3], "average")
    assert "A mean of runs is one result, so seeds are not tested" in words
    assert "average has one seed" not in words
    rows = {row["name"]: row["values"] for row in gathered([*series[:3], "average"])["settings"]["rows"]}
    assert rows["mean of"] == ["not recorded", "base-s0, base-s1"]
    assert rows["schedule"] == ["scratch", "as its members"]
