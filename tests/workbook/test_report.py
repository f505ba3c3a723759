import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from cxrlib import labels, paths
from cxrlib.errors import UserError
from cxrlib.workbook import pictures, report

VOID = {"meta", "link", "img", "br", "input", "hr"}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c63680000008200817700"
    "cd720000000049454e44ae426082"
)


class Reader(HTMLParser):
    """Collects text, addresses and headings, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.headings, self.pictures = [], [], [], []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "img":
            self.pictures.append(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words += " " + " ".join(data.split())


def read(run):
    reader = Reader()
    reader.feed(report.build(run).read_text())
    assert not reader.open
    reader.words = re.sub(r"\s+", " ", reader.words)
    return reader


def table(aucs):
    rows = [
        {"finding": name, "positives": 10 + i, "auc": auc, "auc_low": auc - 0.05, "auc_high": auc + 0.05, "ap": 0.3}
        for i, (name, auc) in enumerate(aucs.items())
    ]
    return pd.DataFrame(rows).assign(ap_low=0.2, ap_high=0.4)


@pytest.fixture
def finished():
    """A run folder with everything in it that a report shows, in made-up numbers."""
    home = paths.Run("a & b")
    aucs = {name: 0.9 - 0.02 * i for i, name in enumerate(labels.LABELS)} | {"mean of 14": 0.77}
    home.tables.mkdir(parents=True)
    table(aucs).to_csv(home.tables / "auc_test.csv", index=False)
    parts = pd.DataFrame({"part": ["train", "val", "test"], "films": [1100, 300, 600], "patients": [500, 120, 250]})
    parts.to_csv(home.tables / "data.csv", index=False)
    stages = pd.DataFrame({"stage": [1, 2], "checkpoint": ["stage1_0.001_3", "stage2_0.0001_6"], "groups": "fc"})
    stages = stages.assign(lr=1e-3, epochs=3, val_auc=0.8, val_low=0.7, val_high=0.9, test_auc=0.75)
    stages = stages.assign(test_low=0.7, test_high=0.8, difference=[None, 0.03], difference_low=[None, 0.01])
    stages.assign(difference_high=[None, 0.05]).to_csv(home.tables / "stages.csv", index=False)
    home.figures.mkdir()
    curves = [pd.DataFrame({"finding": name, "rate": [0, 1], "sensitivity": [0, 1]}) for name in labels.FINDINGS]
    pd.concat(curves).to_csv(home.figures / "roc_test.csv", index=False)
    for stem in ("films_best", "pr_test", "my <b>own figure"):
        (home.figures / f"{stem}.png").write_bytes(PIXEL)
    for k, name in enumerate(stages["checkpoint"], 1):
        parent = {"name": "stage1_0.001_3", "sha256": "ab"} if k == 2 else None
        meta = {"name": name, "parent": parent, "weights": "none", "epochs_so_far": 3 * k, "sha256": "0f" * 32}
        paths.write_json(home.stage(k) / f"{name}.json", meta)
        paths.write_json(home.stage(k) / "best.json", {"best": name})
        (home.stage(k) / "loss.png").write_bytes(PIXEL)
    paths.write_text(home.notebooks / "01_stage1.ipynb", "{}")
    paths.write_text(home.notebooks / "02_stage2.failed.ipynb", "{}")
    record = {
        "run": home.name,
        "updated": "2026-01-02T03:04:05+00:00",
        "parameters": {"size": 64, "batch_size": 32, "weights": "none", "schedule": "scratch", "seed": 0},
        "settings": {"data": "/films/of <i>mine</i>"},
        "data": {"folder": "/films", "films": 2000, "patients": 870, "source": "official list", "fingerprint": "f"},
        "device": "cpu, 2 threads",
        "versions": {"torch": "2.0"},
        "notebooks": {
            "01_stage1": {"state": "done", "seconds": 61.0},
            "02_stage2": {"state": "failed", "seconds": 1.0},
        },
    }
    paths.write_json(home.run_json, record)
    return home


def test_the_first_screen_answers_which_data_which_run_how_well(finished):
    first = read(finished.name).words.split("ROC curves")[0]
    for answer in (
        "0.770",
        "0.720 to 0.820",
        "600 test films",
        "2,000 films of 870 patients",
        "official list",
        "64 px",
    ):
        assert answer in first
    assert "random weights" in first
    assert "scratch · seed 0" in first
    assert "cpu, 2 threads" in first
    assert "reads best Atelectasis (0.90), Cardiomegaly (0.88), Effusion (0.86); least well Hernia" in first
    assert "phantom" not in first


def test_every_section_shows_what_the_run_left(finished):
    seen = read(finished.name)
    assert "stage2_0.0001_6" in seen.words
    assert "+0.030 better" in seen.words
    assert "stage1_0.001_3 6 0f0f0f0f0f0f0f0f" in seen.words
    assert "What is missing" not in seen.words
    assert len(seen.pictures) == 5
    assert "notebooks/01_stage1.ipynb" in seen.addresses
    assert not any("failed" in address for address in seen.addresses)
    assert "6.7 %" not in seen.words.split("mean of 14")[1].split("No Finding")[0]


def test_nothing_is_asked_from_elsewhere(finished):
    page = report.build(finished.name).read_text()
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[^\"']+", "", page))
    assert all(address.startswith(("data:", "#", "notebooks/")) for address in read(finished.name).addresses)
    assert "<script" not in page
    assert "@import" not in page


def test_all_that_comes_from_files_is_escaped(finished):
    page = report.build(finished.name).read_text()
    assert "<b>own" not in page
    assert "<i>mine" not in page
    assert "a &amp; b" in page


def test_headings_go_step_by_step_and_pictures_have_words(finished):
    seen = read(finished.name)
    assert seen.headings[0] == 1
    assert seen.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(seen.headings, seen.headings[1:], strict=False))
    assert all(picture["alt"].strip() for picture in seen.pictures)


def test_an_empty_run_gives_a_page_that_says_what_is_missing():
    paths.Run("empty").root.mkdir(parents=True)
    words = read("empty").words
    for missing in (
        "auc_test.csv is not there",
        "stages.csv is not there",
        "run.json is not there",
        "Not evaluated yet",
    ):
        assert missing in words


@pytest.mark.parametrize(
    "file", ["tables/auc_test.csv", "tables/stages.csv", "tables/data.csv", "run.json", "stage1/best.json"]
)
@pytest.mark.parametrize("content", ["", "finding,auc\nMass,0.5\n", "{", "\x00\x01"])
def test_a_damaged_file_is_told_and_the_rest_is_shown(finished, file, content):
    (finished.root / file).write_text(content)
    words = read(finished.name).words
    assert f"{(finished.root / file).parent.name}/{(finished.root / file).name} cannot be read" in words
    assert "Provenance" in words


def test_an_undefined_finding_is_said_and_stands_last(finished):
    file = finished.tables / "auc_test.csv"
    aucs = pd.read_csv(file).assign(reason="")
    aucs["reason"] = aucs["reason"].astype(object)
    aucs.loc[0, ["auc", "auc_low", "auc_high", "ap"]] = None
    aucs.loc[0, "reason"] = "no film with the finding"
    aucs.to_csv(file, index=False)
    words = read(finished.name).words
    assert "undefined: no film with the finding" in words
    assert not re.search(r"\bnan\b", words.lower())
    rows = report.gather(finished)["findings"]
    assert [row["finding"] for row in rows[-2:]] == ["Atelectasis", "No Finding"]


def test_phantom_films_are_never_taken_for_patients(finished):
    record = paths.read_json(finished.run_json)
    paths.write_json(finished.run_json, record | {"settings": {}})
    assert "drawn phantom films" in read(finished.name).words


def test_a_contaminated_test_is_marked_on_the_first_screen(finished):
    assert "Contaminated" not in read(finished.name).words
    parts = pd.read_csv(finished.tables / "data.csv").assign(seen_in_training=[None, None, 12])
    parts.to_csv(finished.tables / "data.csv", index=False)
    page = read(finished.name).words
    assert "trained on 12 of the test patients" in page
    assert page.index("Contaminated") < page.index("ROC curves")


def test_films_left_out_are_counted(finished):
    record = paths.read_json(finished.run_json)
    record["data"]["left_out"] = {"films": 1234, "first": ["a.png"]}
    paths.write_json(finished.run_json, record)
    assert "1,234 films of the table were absent" in read(finished.name).words


def test_a_heavy_svg_gives_way_to_the_png(finished, monkeypatch):
    stem = finished.figures / "pr_test"
    stem.with_suffix(".svg").write_text("<svg/>")
    assert "svg+xml" in pictures.read(stem)["address"]
    monkeypatch.setattr(pictures, "HEAVY", 3)
    assert "image/png" in pictures.read(stem)["address"]


def test_an_unknown_run_is_named():
    with pytest.raises(UserError, match="no run 'nowhere'"):
        report.build("nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_nothing_is_said_asked_or_cut_off(finished, width):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = shutil.which("chromium") or pytest.skip("no chromium on this machine")
    address, said, asked = report.build(finished.name).as_uri(), [], []
    with sync_api.sync_playwright() as player:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        page = player.chromium.launch(executable_path=browser, args=flags).new_page()
        page.set_viewport_size({"width": width, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not said
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
