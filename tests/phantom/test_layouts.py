"""Phantom sets in other datasets' layouts, and of the second hospital: the same for a seed, and different where
meant."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cxrlib import UserError, labels
from cxrlib.data import check, images, records, sources, splits
from cxrlib.phantom import hospitals, layouts, phantom

SMALL = {"images": 5, "size": 32, "seed": 5}


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_there_is_a_layout_for_each_dataset():
    assert layouts.LAYOUTS.keys() == sources.SOURCES.keys()


def test_the_default_drawing_is_that_of_the_phantom_set(tmp_path):
    assert contents(layouts.write(tmp_path / "a", **SMALL)) == contents(phantom.write(tmp_path / "b", **SMALL))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_a_seed_gives_the_same_set_and_another_seed_another(layout, tmp_path):
    hospital = "B" if layout in ("nih", "vindr") else "A"
    sets = [
        layouts.write(tmp_path / str(k), **SMALL | {"seed": k // 2}, layout=layout, hospital=hospital) for k in range(3)
    ]
    first, again, other = map(contents, sets)
    assert first == again
    assert first != other


def test_films_are_drawn_alike_in_any_chunks(tmp_path):
    films = hospitals.sample_cohort("B", 6, 1, 0.12)
    cases = layouts._cases(films)
    how = ("openi", "B", 32, 1)
    one = layouts.draw_files(str(tmp_path / "one"), *how, cases)
    two = layouts.draw_files(str(tmp_path / "two"), *how, cases[4:])
    assert one[4:] == two
    assert contents(tmp_path / "two").items() <= contents(tmp_path / "one").items()


@pytest.mark.parametrize("layout", ["vindr", "rsna", "padchest", "openi"])
def test_each_file_type_holds_the_film_that_was_drawn(layout, layout_set):
    """All without loss: 8 bits of DICOM, 12 bits and inverted, 16 bits of PNG."""
    films = records.read(layout_set(layout))
    plain = records.read(layout_set("nih"))
    for k in (0, 1):
        drawn, read = images.read(plain["path"][k]), images.read(films["path"][k])
        low, high = int(drawn.min()), int(drawn.max())
        stretched = (drawn.astype(float) - low) / (high - low) * 255
        assert min(np.abs(read - drawn.astype(float)).max(), np.abs(read - stretched).max()) <= 2


def test_jpeg_films_are_close_to_what_was_drawn():
    pixels = phantom.draw(["Effusion"], size=64).pixels
    import cv2

    read = cv2.imdecode(np.frombuffer(layouts.jpeg(pixels), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.abs(read.astype(int) - pixels).mean() < 2


@pytest.fixture(scope="module")
def two_hospitals():
    return [hospitals.sample_cohort(name, 600, 0, 0.12) for name in hospitals.NAMES]


def test_hospital_b_has_other_people_and_more_portable_films(two_hospitals):
    a, b = two_hospitals
    assert len(a) == len(b) == 600
    assert b["patient"].min() >= hospitals.FIRST_PATIENT_OF_B > a["patient"].max()
    assert (b["view"] == "AP").mean() > (a["view"] == "AP").mean() + 0.2
    assert not b.duplicated(["patient", "follow_up"]).any()
    assert 0.1 < b["test"].mean() < 0.4


def test_hospital_b_has_another_prevalence_and_every_finding(two_hospitals):
    a, b = (table[list(labels.FINDINGS)].mean() for table in two_hospitals)
    assert (b > 0).all()
    assert (b[["Effusion", "Edema", "Consolidation"]] > 1.2 * a[["Effusion", "Edema", "Consolidation"]]).all()
    assert (b[["Nodule", "Mass"]] < 0.8 * a[["Nodule", "Mass"]]).all()
    rare = hospitals.sample_cohort("B", 40, 1, 0.0)
    assert (rare[list(labels.FINDINGS)].sum() > 0).all()


def test_hospital_b_has_another_exposure_noise_and_marker():
    who = {"seed": 0, "patient": 7, "follow_up": 0, "view": "AP"}
    drawn = phantom.draw([], size=128, **who).pixels
    a, b = (hospitals.develop(name, drawn, **who) for name in hospitals.NAMES)
    assert a is drawn
    inside = slice(48, 90), slice(20, 110)
    assert abs(b[inside].mean() - a[inside].mean()) > 10

    def noise(film):
        return np.abs(np.diff(film[inside].astype(int), axis=1)).mean()

    assert noise(b) > noise(a)
    assert b[:20, 111:].max() == 0
    assert b[20:45, :20].max() > 235


def test_a_set_of_hospital_b_is_fit_and_of_its_own_dataset(layout_set):
    folder = layout_set("nih", "B")
    report = check.folder(folder, progress=False)
    assert report.fit
    assert not [problem for problem in report.problems if problem.level == "warning"], str(report)
    films = records.read(folder)
    assert (films["dataset"] == "phantom-b-3").all()
    parts = splits.make(films, folder)
    assert "official lists" in parts.source
    boxes = records.read_boxes(folder)
    assert boxes["image"].isin(parts.test["image"]).all()
    assert len(boxes)


def test_hospital_b_in_another_layout(layout_set):
    films = records.read(layout_set("chexpert", "B"))
    assert films["patient"].min() >= hospitals.FIRST_PATIENT_OF_B
    assert (films["dataset"] == "phantom-b-3").all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"layout": "iu"}, "layout is 'iu'; give one of nih, chexpert"),
        ({"hospital": "C"}, "hospital is 'C'; give A or B"),
        ({"layout": "mimic", "folders": 12}, "folders is for the layout nih"),
        ({"layout": "mimic", "size": 3}, "phantom size is 3"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_drawing(how, message, tmp_path):
    with pytest.raises(UserError, match=message):
        layouts.write(tmp_path / "set", **SMALL | how)
    assert not (tmp_path / "set").exists()


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        layouts.write(tmp_path, **SMALL, layout="openi")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_draws_layouts_and_hospitals(tmp_path):
    from cxrlib.workbook import cli

    words = [str(tmp_path / "b"), "--images", "14", "--size", "32", "--layout", "chexpert", "--hospital", "b"]
    result = CliRunner().invoke(cli.app, ["phantom", *words])
    assert result.exit_code == 0, result.output
    rows = pd.concat([pd.read_csv(tmp_path / "b" / f"{name}.csv") for name in ("train", "valid")])
    assert (rows["Frontal/Lateral"] == "Frontal").sum() == 14
