import numpy as np
import pandas as pd
import pytest

from cxrlib.labels import FINDINGS
from cxrlib.report import page, sections
from tests.report import made_up


@pytest.fixture
def home():
    return made_up.run()


def test_findings_stand_best_first_with_their_prevalence(home):
    auc = sections.read_table(home.tables / "auc_test.csv").value
    rows = sections.findings(auc, 120)
    single = [row["auc"] for row in rows[:14]]
    assert single == sorted(single, reverse=True)
    assert [row["finding"] for row in rows[14:]] == ["No Finding", "mean of 14"]
    assert all(row["prevalence"] == row["positives"] / 120 for row in rows)
    assert sections.findings(auc.drop(columns="films"), None)[0]["prevalence"] is None
    known = sections.findings(auc.assign(films=60), 120)[0]  # half of the labels are known
    assert known["prevalence"] == known["positives"] / 60


@pytest.mark.parametrize(
    ("groups", "said"),
    [("stem layer1 layer2 layer3 layer4 fc", "everything"), ("layer3 layer4 fc", "layer3 to fc"), ("fc", "fc")],
)
def test_what_a_stage_trained_in_words(groups, said):
    assert sections.trained(groups) == said


@pytest.mark.parametrize(
    ("sides", "p", "said"),
    [
        ((0.03, 0.01, 0.05), np.nan, "better"),
        ((-0.03, -0.05, -0.01), 0.01, "worse"),
        ((0.03, 0.01, 0.05), 0.2, "no difference shown"),
        ((0.03, -0.01, 0.05), np.nan, "no difference shown"),
        ((0.03, np.nan, np.nan), np.nan, "no difference shown"),
        ((np.nan, np.nan, np.nan), np.nan, "undefined"),
    ],
)
def test_a_difference_is_only_called_better_or_worse_when_it_is_sure(sides, p, said):
    assert page.verdict(*sides, p) == said


def test_the_first_stage_is_held_against_nothing(home):
    rows = sections.stages(sections.read_table(home.tables / "stages.csv").value)
    assert [row["helped"] for row in rows] == ["first stage", "better"]


def test_stages_of_an_older_run_without_differences_are_shown(home):
    file = home.tables / "stages.csv"
    pd.read_csv(file)[list(sections.NEEDED["stages"])].to_csv(file, index=False)
    rows = sections.stages(sections.read_table(file).value)
    assert [row["helped"] for row in rows] == ["first stage", "undefined"]


def test_precision_stands_by_its_lift_over_the_prevalence(home):
    rows = sections.findings(sections.read_table(home.tables / "auc_test.csv").value, 120)
    found = sections.precision(home, page.FigureAlbum(), rows)["rows"]
    times = [row["times"] for row in found]
    assert times == sorted(times, reverse=True)
    assert times == pytest.approx([row["ap"] * 120 / row["positives"] for row in found])


def test_calibration_is_averaged_kind_by_kind(home):
    found = sections.calibration(home, page.FigureAlbum())
    assert found["kinds"] == ["as it came", "calibrated"]
    assert [row["ece"] for row in found["means"]] == pytest.approx([0.21, 0.02])
    assert found["truth"] == pytest.approx({"prevalence": 0.1, "brier_prevalence": 0.09})
    assert len(found["rows"]) == len(found["curves"]) == len(FINDINGS)


def test_thresholds_are_averaged_over_the_findings_that_are_defined(home):
    file = home.tables / "thresholds.csv"
    table = pd.read_csv(file)
    table.loc[table["finding"] == "Mass", "sensitivity"] = np.nan
    table.loc[table["finding"] == "No Finding", "sensitivity"] = 0.0
    table.to_csv(file, index=False)
    rules = sections.thresholds(home, page.FigureAlbum())["rules"]
    assert [rule["title"] for rule in rules] == [title for title, _ in sections.RULES.values()]
    assert rules[0]["mean"]["sensitivity"] == pytest.approx(0.8)


def test_only_steps_that_are_shown_are_listed(home):
    found = sections.steps(home)
    assert [row["finding"] for row in found["shown"]] == ["Mass"]
    assert found["looked_at"] == 2
    assert [row["finding"] for row in found["whole"]] == ["Mass"]


@pytest.mark.parametrize("stem", ["roc_test", "pr_test", "reliability"])
def test_where_no_curve_can_be_drawn_the_figure_is_shown_instead(home, stem):
    made_up.picture(home.figures / f"{stem}.png")
    section = {"roc_test": sections.roc, "pr_test": sections.precision}.get(stem)
    arguments = (home, page.FigureAlbum(), []) if section else (home, page.FigureAlbum())
    section = section or sections.calibration
    assert section(*arguments)["figure"] is None
    (home.figures / f"{stem}.csv").unlink()
    assert section(*arguments)["figure"]["address"].startswith("data:image/png")


@pytest.mark.parametrize(("value", "said"), [(0.0123, "+0.012"), (-0.0123, "−0.012"), (-0.0001, "0.000"), (0, "0.000")])
def test_a_difference_has_a_sign_unless_it_rounds_to_nothing(value, said):
    assert page.signed(value) == said
