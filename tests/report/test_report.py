import re

import pandas as pd
import pytest

from cxrlib import UserError, paths
from cxrlib.report import report
from tests.report import browser, made_up
from tests.report.reader import Reader, read

TITLES = (
    *("ROC curves of the 14 findings", "Finding by finding", "Stage by stage", "Precision and recall", "Calibration"),
    *("Thresholds", "Patient groups", "Where it looks", "Beside published results", "Films, best and worst"),
    *("Provenance and lineage", "The executed notebooks"),
)


def shown(home) -> Reader:
    return read(report.build(home.name))


@pytest.fixture
def finished():
    return made_up.run()


def test_the_first_screen_answers_which_data_which_run_how_well(finished):
    first = shown(finished).words.split("ROC curves of the 14")[0]
    mean = pd.read_csv(finished.tables / "auc_test.csv").iloc[-1]
    for answer in (
        f"{mean.auc:.3f}",
        f"{mean.auc_low:.3f} to {mean.auc_high:.3f}",
        "120 test films",
        "1,520 films of 660 patients",
        "official list",
        "64 px",
        "random weights",
        "scratch · seed 0",
        "cpu, 2 threads",
        "of 40 patients",
        "than the mean of the other findings",
        "in the marked box in 27 of 100 cases (Grad-CAM) and 27 of 100 cases (Occlusion); a random point in 10",
        "lower in women than in men",
    ):
        assert answer in first
    assert "phantom" not in first


def test_sections_come_in_the_order_a_reader_asks(finished):
    page = report.build(finished.name).read_text()
    places = [page.index(f">{title}</h2>") for title in TITLES]
    assert places == sorted(places)


def test_every_section_shows_what_the_run_left(finished):
    seen = shown(finished)
    assert "+0.030 (+0.010 to +0.050) better p = 0.020" in seen.words
    assert "layer4 to fc focal loss, rate 0.001, 3 epochs" in seen.words
    assert "2 stage2_0.0001_6 stage1_0.001_3 6 0f0f0f0f0f0f0f0f" in seen.words
    assert "Of 2 differences of single findings from one stage to the next, 1 is shown" in seen.words
    assert (
        "Stage 2 lowered the mean on validation, which may be chance. Difference to the stage before: −0.020"
        in seen.words
    )
    assert "(−0.050 to +0.010, p = 0.20 adjusted for the stages)" in seen.words
    assert "micro AUC of 15: 0.810 (0.600–0.900)" in seen.words
    assert "No test patient was used in training" in seen.words
    assert "Pneumothorax 1,962 48 % (41–56) 50 %" in seen.words
    assert "+0.200 (+0.100 to +0.300) better" in seen.words
    assert "labels of <b>x</b>" in seen.words
    assert "What is missing" not in seen.words
    assert "is not there" not in seen.words.split("Films, best and worst")[0]
    assert "notebooks/01_stage1.ipynb" in seen.addresses
    assert not any("failed" in address for address in seen.addresses)


def test_nothing_is_asked_from_elsewhere(finished):
    page = report.build(finished.name).read_text()
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[^\"']+", "", page))
    assert all(address.startswith(("data:", "#", "notebooks/")) for address in shown(finished).addresses)
    assert "<script" not in page
    assert "@import" not in page


def test_links_within_the_page_lead_somewhere(finished):
    seen = shown(finished)
    assert {address[1:] for address in seen.addresses if address.startswith("#")} <= set(seen.ids)
    assert len(seen.ids) == len(set(seen.ids))


def test_all_that_comes_from_files_is_escaped(finished):
    thresholds = pd.read_csv(finished.tables / "thresholds.csv")
    thresholds.assign(rule="<script>alert(1)</script>").to_csv(finished.tables / "thresholds.csv", index=False)
    page = report.build(finished.name).read_text()
    for planted in ("<b>own", "<i>mine", "<script"):
        assert planted not in page
    assert "a-b" in page


def test_headings_go_step_by_step_and_pictures_and_tables_have_words(finished):
    seen = shown(finished)
    assert seen.headings[0] == 1
    assert seen.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(seen.headings, seen.headings[1:], strict=False))
    assert seen.pictures
    assert all(picture["alt"].strip() for picture in seen.pictures)
    assert all(drawing["aria-label"].strip() and drawing["role"] == "img" for drawing in seen.drawings)
    assert seen.unscoped == 0


def test_an_empty_run_gives_a_page_that_says_what_is_missing_in_every_section():
    paths.Run("empty").root.mkdir(parents=True)
    words = shown(paths.Run("empty")).words
    for missing in (
        *(
            "stage_findings.csv is not there",
            "Not evaluated yet",
            "auc_test.csv is not there",
            "stages.csv is not there",
            "run.json is not there",
        ),
        *("roc_test.csv is not there", "pr_test.csv is not there", "calibration.csv is not there"),
        *("thresholds.csv is not there", "subgroups.csv is not there", "gaps.csv is not there"),
        *("view_shortcut.csv is not there", "localisation.csv is not there", "published.csv is not there"),
        *("films_worst are not there", "no finished stage", "none in notebooks/"),
    ):
        assert missing in words


FILES = (
    *("tables/auc_test.csv", "tables/stages.csv", "tables/data.csv", "tables/calibration.csv", "tables/thresholds.csv"),
    *("tables/subgroups.csv", "tables/gaps.csv", "tables/view_shortcut.csv", "tables/localisation.csv"),
    *(
        "tables/overall.csv",
        "tables/stage_findings.csv",
        "tables/localisation_control.csv",
        "figures/roc_test.csv",
        "figures/pr_test.csv",
        "figures/reliability.csv",
    ),
    *("figures/published.csv", "run.json", "stage1/best.json"),
)


@pytest.mark.parametrize("content", ["", "finding,auc\nMass,0.5\n", "{", "\x00\x01", "[]"])
def test_damaged_files_are_told_each_in_its_place(finished, content):
    for file in FILES:
        (finished.root / file).write_text(content)
    words = shown(finished).words
    for file in FILES:
        assert f"{(finished.root / file).parent.name}/{(finished.root / file).name} cannot be read" in words
    assert all(title in words for title in TITLES)


@pytest.mark.parametrize("file", FILES)
def test_beside_a_damaged_file_the_rest_is_shown(finished, file):
    (finished.root / file).write_text("finding,auc\nMass,0.5\n")
    words = shown(finished).words
    assert words.count("cannot be read") <= 2  # where it belongs, and among what is missing at the top
    assert all(title in words for title in TITLES)
    assert not re.search(r"\bnan\b", words.lower())


@pytest.mark.parametrize("file", [file for file in FILES if file != "stage1/best.json"])
def test_a_missing_file_is_told_and_the_rest_is_shown(finished, file):
    (finished.root / file).unlink()
    words = shown(finished).words
    assert f"{(finished.root / file).parent.name}/{(finished.root / file).name} is not there" in words
    assert all(title in words for title in TITLES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": []},
        {"notebooks": {"01_stage1": 3}},
        {"versions": "1"},
        {"data": {"films": "many"}},
        {"data": {"left_out": {"films": "2"}}},
        {"data": {"left_out": 2}},
        [1],
    ],
)
def test_a_record_of_another_shape_is_told(finished, wrong):
    whole = made_up.record(finished.name)
    paths.write_json(finished.run_json, whole | wrong if isinstance(wrong, dict) else wrong)
    assert f"{finished.name}/run.json cannot be read" in shown(finished).words


def test_an_undefined_finding_is_said_and_stands_last(finished):
    file = finished.tables / "auc_test.csv"
    aucs = pd.read_csv(file).assign(reason="")
    aucs["reason"] = aucs["reason"].astype(object)
    aucs.loc[0, ["auc", "auc_low", "auc_high", "ap"]] = None
    aucs.loc[0, "reason"] = "no film with the finding"
    aucs.to_csv(file, index=False)
    words = shown(finished).words
    assert "mean ROC AUC of 13 of the 14 findings" in words
    assert "undefined: no film with the finding" in words
    assert "Left out of the mean because undefined: Atelectasis." in words
    assert not re.search(r"\bnan\b", words.lower())
    rows = report.gather(finished)["findings"]
    assert [row["finding"] for row in rows[-2:]] == ["Atelectasis", "No Finding"]


def test_a_run_without_any_defined_finding_has_no_headline(finished):
    file = finished.tables / "auc_test.csv"
    aucs = pd.read_csv(file)
    aucs[["auc", "auc_low", "auc_high", "ap"]] = None
    aucs.to_csv(file, index=False)
    assert "No finding has an AUC on these films" in shown(finished).words


def test_a_stage_that_harmed_is_called_harmful(finished):
    file = finished.tables / "stages.csv"
    pd.read_csv(file).assign(val_p_holm=[None, 0.01]).to_csv(file, index=False)
    words = shown(finished).words
    assert "Stage 2 lowered the validation AUC. Difference to the stage before: −0.020" in words
    assert "The next stage starts from it all the same" in words


def test_a_mean_of_few_patients_has_no_interval_and_says_why(finished):
    file = finished.tables / "auc_test.csv"
    aucs = pd.read_csv(file)
    aucs.loc[15, "finding"] = "mean of 12 of 14"
    aucs.loc[15, ["auc_low", "auc_high"]] = None
    aucs["no_interval"] = ""
    aucs.loc[15, "no_interval"] = "14 patients, 20 are needed"
    aucs.to_csv(file, index=False)
    words = shown(finished).words
    assert re.search("No interval ?: 14 patients, 20 are needed. Measured on 120 test films of 40 patients", words)
    assert "mean of 12 of 14" in words
    assert not re.search(r"\bnan\b", words.lower())


def test_nothing_is_called_sure(finished):
    words = shown(finished).words.lower()
    assert not re.search(r"\bsure(ly)?\b|beyond doubt", words)


def test_phantom_films_are_never_taken_for_patients(finished):
    paths.write_json(finished.run_json, paths.read_json(finished.run_json) | {"settings": {}})
    assert "drawn phantom films" in shown(finished).words


def test_a_contaminated_test_is_marked_on_the_first_screen(finished):
    assert "Contaminated" not in shown(finished).words
    parts = pd.read_csv(finished.tables / "data.csv").assign(seen_in_training=[None, None, 12])
    parts.to_csv(finished.tables / "data.csv", index=False)
    page = shown(finished).words
    assert "has seen 12 of the test patients" in page
    assert page.index("Contaminated") < page.index("ROC curves of the 14")


def test_a_test_that_did_not_look_for_contamination_is_not_called_clean(finished):
    pd.read_csv(finished.tables / "data.csv").drop(columns="seen_in_training").to_csv(
        finished.tables / "data.csv", index=False
    )
    words = shown(finished).words
    assert "Whether test patients were seen in training is not recorded" in words
    assert "No test patient was used" not in words


@pytest.mark.parametrize("table", ["lineage", "lineage_localisation"])
def test_what_nobody_knows_of_a_checkpoint_is_on_the_first_screen(finished, table):
    assert "No test patient was used" in shown(finished).words
    assert "Not known" not in shown(finished).words
    words = "what the starting weights w.pth had seen"
    rows = pd.DataFrame({"checkpoint": ["s1", "s2"], "origin": "unknown", "seen": 9, "patients": 0, "films": 0})
    rows.assign(first="", unknown=["", words]).to_csv(finished.tables / f"{table}.csv", index=False)
    page = shown(finished).words
    assert f"Not known: {words}" in page
    assert page.index("Not known") < page.index("ROC curves of the 14")
    assert "As far as recorded, no test patient" in page
    rows.assign(first="", unknown="", patients=[0, 3]).to_csv(finished.tables / f"{table}.csv", index=False)
    assert "has seen 3 of the test patients" in shown(finished).words
    (finished.tables / f"{table}.csv").write_text("checkpoint\n")
    assert f"tables/{table}.csv cannot be read" in shown(finished).words


def test_doubts_about_the_films_are_on_the_first_screen(finished):
    record = paths.read_json(finished.run_json)
    record["data"]["doubts"] = ["9 films have another patient in their name than in their row, first a.png"]
    paths.write_json(finished.run_json, record)
    page = shown(finished).words
    assert "In doubt: 9 films have another patient in their name" in page
    assert page.index("In doubt") < page.index("ROC curves of the 14")


def test_films_left_out_are_counted(finished):
    record = paths.read_json(finished.run_json)
    record["data"]["left_out"] = {"films": 1234, "first": ["a.png"]}
    paths.write_json(finished.run_json, record)
    assert "1,234 films of the table were absent" in shown(finished).words


def test_a_run_with_too_many_figures_stays_below_5_mb_and_names_those_left_out(finished):
    noisy = bytes(range(256)) * 1200
    for i in range(20):
        text = noisy.hex()[: 280_000 - i]
        (finished.figures / f"figure_{i:02}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg"><!--{text}--></svg>'
        )
    page = report.build(finished.name)
    assert 3_000_000 < page.stat().st_size <= 5_000_000
    assert "Left out to keep this page small; see figures/figure_19.svg" in read(page).words


def test_the_same_run_gives_the_same_page(finished):
    pages = [re.sub(r"\d\d:\d\d UTC", "", report.build(finished.name).read_text()) for _ in range(2)]
    assert pages[0] == pages[1]


def test_an_unknown_run_is_named_beside_those_there_are(finished):
    with pytest.raises(UserError, match=r"no run 'nowhere'.*there are: a-b"):
        report.build("nowhere")


def test_the_page_is_made_again_when_a_room_or_template_changes():
    here = report.Path(report.__file__).parent
    named = {f"{room}.py" for room in report.ROOMS} | set(report.TEMPLATES)
    own = {file.name for file in here.glob("*.j2")} - {
        f"{page}.j2" for page in ("comparison.html", "predictions.html", "model_card.md")
    }
    assert own <= named
    assert all((here / file).is_file() for file in named)


@pytest.mark.slow
def test_in_a_browser_nothing_is_said_asked_or_cut_off(finished, tmp_path):
    made_up.strip(finished.figures / "hits_and_misses.png", rows=2, films=6)
    address = report.build(finished.name).as_uri()
    with browser.page(tmp_path) as page:
        page.open(address)
        assert page.overhang(browser.A4, "print") == []
        assert page.value("[...document.querySelectorAll('details td')].every(cell => cell.checkVisibility())")
        for width in (1280, 768, 390, 320):
            assert page.overhang(width) == [], width
            assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value("[...document.images].filter(i => !i.naturalWidth).length") == 0
    assert not page.said
    assert [url for url in page.asked if not url.startswith(("data:", "file:"))] == []


def test_the_split_and_the_size_are_those_that_the_numbers_came_from():
    home = made_up.run()
    table = pd.read_csv(home.tables / "data.csv").assign(split="drawn by patient", size=32)
    table.to_csv(home.tables / "data.csv", index=False)
    facts = dict(report.gather(home)["facts"])
    assert facts["Split"].startswith("drawn by patient")
    assert ", 32 px" in facts["Network"]
    record = paths.read_json(home.run_json)
    home.run_json.unlink()
    assert dict(report.gather(home)["facts"])["Network"] == "ResNet-50, weights not recorded, 32 px"
    paths.write_json(home.run_json, record)
    table.drop(columns=["split", "size"]).to_csv(home.tables / "data.csv", index=False)
    assert "lies there now" not in dict(report.gather(home)["facts"])["Split"]


@pytest.mark.parametrize(("source", "says"), [("MADE UP: no radiologist", "no radiologist read them"), (None, "")])
def test_made_up_labels_give_no_numbers_and_no_labels_no_section(finished, source, says):
    file = finished.tables / "labels_curve.csv"
    if source:
        pd.read_csv(file).assign(source=source).to_csv(file, index=False)
    else:
        file.unlink()
    words = shown(finished).words
    assert ("What the labels are worth" in words) == bool(source)
    assert says in words
    assert "1,962 48 %" not in words


@pytest.mark.parametrize(("source", "jumps"), [("MADE UP: no radiologist", False), ("no radiologists' labels", True)])
def test_labels_that_jump_need_no_radiologists_but_real_films(finished, source, jumps):
    made_up.picture(finished.figures / "labels_jumps.png")
    for name, changed in (("curve", {"source": source}), ("auc", {"films": 0})):
        file = finished.tables / f"labels_{name}.csv"
        pd.read_csv(file).assign(**changed).to_csv(file, index=False)
    words = shown(finished).words
    assert ("Labels that jump" in words) == jumps
    assert "1,962 48 %" not in words


def test_the_mean_has_one_interval_on_the_page(finished):
    """The table of groups has an interval of its own for all films; the page shows that of the AUC table."""
    seen = shown(finished).words
    auc = pd.read_csv(finished.tables / "auc_test.csv").iloc[-1]
    groups = seen.split("Patient groups")[-1].split("Differences between groups")[0]
    said = f"{auc.auc:.3f} ({auc.auc_low:.3f}–{auc.auc_high:.3f})"
    assert said in groups
    assert seen.count(said) >= 2


def test_thresholds_have_two_decimals(finished):
    file = finished.tables / "thresholds.csv"
    table = pd.read_csv(file)
    table.assign(threshold=[0.2, 0.004, 0.125][: len(table)] + [0.5] * (len(table) - 3)).to_csv(file, index=False)
    seen = shown(finished).words.split("Thresholds")[-1]
    assert re.search(r"\b0\.20 ", seen)
    assert "0.004" in seen
    assert not re.search(r"\b0\.2 ", seen)


def test_a_finding_with_few_boxes_is_in_the_sum_alone(finished):
    file = finished.tables / "localisation.csv"
    table = pd.read_csv(file)
    few = table.loc[table["finding"] != "all findings", "finding"].iloc[0]
    table.loc[table["finding"] == few, "boxes"] = 2
    table.to_csv(file, index=False)
    section = shown(finished).words.split("Where it looks")[-1].split("Films, best")[0]
    assert f"and so in the sum alone: {few.replace('_', ' ')}" in section
    assert not re.search(rf"{few} 2 ", section)
