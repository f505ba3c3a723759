import numpy as np
import pandas as pd
import pytest

from cxrlib.evaluation import summary
from cxrlib.labels import FINDINGS
from cxrlib.report import page, report, sections
from tests.report import made_up


@pytest.fixture
def home():
    return made_up.run()


def beside_published(home, mean=0.81):
    """The run among the published results, as the evaluation writes them."""
    ours = {"method": home.name, "network": "this run", "mean": mean, "source": "this run"}
    ours |= {"mean_low": mean - 0.01, "mean_high": mean + 0.01} | dict.fromkeys(FINDINGS, mean)
    table = pd.concat([pd.DataFrame([ours]), summary.published_table()], ignore_index=True)
    table.to_csv(home.figures / "published.csv", index=False)
    auc = [{"finding": name, "auc": mean, "auc_low": mean - 0.02, "auc_high": mean + 0.02} for name in FINDINGS]
    return sections.published(home, page.FigureAlbum(), auc)


def test_groups_where_two_traits_meet_are_set_apart(home):
    found = sections.subgroups(home, page.FigureAlbum())
    assert [row["group"] for row in found["rows"]] == ["all films", "women", "men"]
    assert [row["group"] for row in found["met"]] == ["women, AP"]
    assert [row["group"] for row in found["gaps"]["rows"]] == ["women", "AP", "women"]
    assert [row["group"] for row in found["gaps"]["met"]] == ["women, AP"]


def test_only_gaps_that_are_shown_after_adjusting_are_spoken_of(home):
    found = sections.subgroups(home, page.FigureAlbum())
    assert found["gaps"]["sentence"] == "Mean AUC is lower in women than in men."
    text = report.headline_gaps(found)
    assert "Mean AUC is lower in women than in men, by 0.05 (0.02 to 0.08)." in text
    assert "No other difference in mean AUC is shown between AP and PA." in text
    assert "Up to 0.020 of the mean AUC may come from recognising AP and PA films." in text
    assert "women, AP" not in text
    file = home.tables / "gaps.csv"
    pd.read_csv(file).assign(p_holm=0.06).to_csv(file, index=False)
    found = sections.subgroups(home, page.FigureAlbum())
    assert "lower" not in report.headline_gaps(found), "whatever the interval says"
    assert found["gaps"]["findings"] == []
    pd.read_csv(file).drop(columns="p_holm").to_csv(file, index=False)
    found = sections.subgroups(home, page.FigureAlbum())
    assert "lacks p_holm" in found["gaps"]["why"]
    assert "lower" not in report.headline_gaps(found)


def test_gaps_that_are_undefined_are_no_gaps(home):
    file = home.tables / "gaps.csv"
    pd.read_csv(file).assign(difference=np.nan, low=np.nan, high=np.nan).to_csv(file, index=False)
    found = sections.subgroups(home, page.FigureAlbum())["gaps"]
    assert found["rows"] == []
    assert "enough films" in found["why"]


def test_a_view_that_cannot_be_measured_says_so(home):
    file = home.tables / "view_shortcut.csv"
    pd.read_csv(file).assign(difference=np.nan).to_csv(file, index=False)
    assert "too few films" in sections.subgroups(home, page.FigureAlbum())["shortcut"]["why"]


def test_a_method_has_its_own_control_and_findings_stand_by_lift(home):
    cam, occlusion = sections.localisation(home, page.FigureAlbum())["methods"]
    assert (cam["name"], occlusion["name"]) == ("Grad-CAM", "Occlusion")
    assert [row["finding"] for row in cam["rows"]] == ["Mass", "Nodule", sections.ALL]
    assert [row["control"] for row in cam["rows"]] == [0.11] * 3
    assert [row["control"] for row in occlusion["rows"]] == [None] * 3
    assert cam["beyond_chance"] == ["Mass"]


def test_a_run_stands_among_published_results_where_its_mean_puts_it(home):
    found = beside_published(home, mean=0.81)
    means = [row["mean"] for row in found["rows"]]
    assert means == sorted(means, reverse=True)
    assert [row["method"] for row in found["rows"] if row["ours"]] == [home.name]
    assert len(found["rows"]) == 1 + len(summary.PUBLISHED)


def test_each_finding_is_set_among_those_published(home):
    published = summary.published_table()
    for row in beside_published(home, mean=0.81)["findings"]:
        values = published[row["finding"]].dropna()
        assert row["others"] == len(values)
        assert row["above"] == (values < 0.81).sum()
        assert (row["least"], row["most"]) == (values.min(), values.max())
        assert row["mark"].count('class="other"') == len(values)


def test_a_run_on_other_films_is_told_why_it_has_no_place_there(home):
    found = sections.published(home, page.FigureAlbum(), [])
    assert found["rows"] == []
    assert "tested on 120 films" in found["why"]
    assert "25,596" in found["why"]


def test_a_finding_with_few_rows_leaves_the_gist_out():
    assert report.headline_findings([{"finding": "Mass", "auc": 0.8, "auc_low": 0.7}]) == ""


def test_findings_that_may_be_guesses_are_named_in_the_gist(home):
    auc = sections.read_table(home.tables / "auc_test.csv").value
    auc.loc[:13, ["p_chance", "p_others"]] = 0.04, 0.9
    auc.loc[auc["finding"] == "Mass", "p_chance"] = 0.06
    named = report.headline_findings(sections.findings(auc, 120)).split("Not shown to be better than chance: ")[1]
    assert "Mass" in named
    assert "Atelectasis" not in named


def test_no_finding_is_read_best_on_a_film_or_two(home):
    """The highest AUC, 1.00, is of one patient: it has no p and is not called high."""
    auc = sections.read_table(home.tables / "auc_test.csv").value
    auc.loc[:13, ["p_chance", "p_others"]] = 0.01, 0.9
    auc.loc[auc["finding"] == "Nodule", ["auc", "p_chance", "p_others"]] = 1.0, np.nan, np.nan
    auc.loc[auc["finding"] == "Edema", "p_others"] = 0.01
    text = report.headline_findings(sections.findings(auc, 120))
    assert "Too few patients for a test: Nodule." in text
    assert "Nodule (" not in text
    assert "than the mean of the other findings: Edema (" in text


def test_a_table_without_adjusted_p_is_not_spoken_of(home):
    auc = sections.read_table(home.tables / "auc_test.csv").value.drop(columns=["p_chance", "p_others"])
    assert report.headline_findings(sections.findings(auc, 120)) == ""


def test_a_way_asked_on_few_boxes_is_left_out_of_the_gist(home):
    file = home.tables / "localisation.csv"
    table = pd.read_csv(file)
    table.loc[table["method"] == "occlusion", "boxes"] //= 5
    table.to_csv(file, index=False)
    text = report.headline_pointing(sections.localisation(home, page.FigureAlbum()))
    assert "in 27 of 100 cases (Grad-CAM); a random point in 10." in text
    assert "Shown to be better than a random point for Mass (Grad-CAM)." in text
    assert report.headline_pointing({"methods": []}) == ""


def test_each_number_of_the_gaps_has_a_scale_of_its_own(home):
    """AUC and sensitivity have separate scales, so the wide intervals of one do not shrink those of the other."""
    rows = sections.subgroups(home, page.FigureAlbum())["gaps"]["rows"]
    sensitivity = next(row for row in rows if row["number"] == "sensitivity")
    assert "M0.0 8H150.0" in sensitivity["mark"]  # -0.2 to 0.1 on a scale from -0.2 to 0.2
