"""A list of films to leave out: the forms that it may have, what it changes, and what it leaves as it is."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from cxrlib import UserError, dataset, paths
from cxrlib.data import exclusion, records
from cxrlib.evaluation import localisation
from cxrlib.report import report
from cxrlib.training import job, parameters
from cxrlib.workbook import cli, pipeline, settings

SIZE = 16


@pytest.fixture
def films(tiny_phantom):
    return records.read(tiny_phantom)


@pytest.fixture
def listed(films):
    """Three films of three patients, one of each part: of the first and the last row, and one between."""
    return films["image"].iloc[[0, 40, 95]].tolist()


def write(tmp_path, text, encoding="utf-8"):
    file = tmp_path / "bad.csv"
    file.write_text(text, encoding=encoding)
    return str(file)


FORMS = {
    "names alone": "{0}\n{1}\n{2}\n",
    "header": "image\n{0}\n{1}\n{2}\n",
    "reasons": "image,reason\n{0},inverted\n{1},\n{2},inverted\n",
    "other order and header": "Reason;Image Index\ninverted;{0}\n;{1}\ninverted;{2}\n",
    "tabs, no header": "{0}\tinverted\n{1}\n{2}\tinverted\n",
    "quotes and blank lines": '"image","reason"\r\n\r\n"{0}","inverted"\r\n"{1}",""\r\n"{2}","inverted"',
    "folders": "path\nimages_001/images/{0}\n/data/images/{1}\nC:\\films\\{2}\n",
    "a film twice": "{0}\n{1}\n{0}\n{2}\n",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_is_read_in_the_forms_that_people_have(films, listed, tmp_path, form, encoding):
    found = exclusion.find(films, write(tmp_path, FORMS[form].format(*listed), encoding))
    assert found.names == {*listed}
    assert found.unknown == ()
    expected = {"inverted": 2, exclusion.NO_REASON: 1} if "inverted" in FORMS[form] else {exclusion.NO_REASON: 3}
    assert found.reasons == expected


def test_a_name_may_lack_its_ending_or_have_another(films, listed, tmp_path):
    bare = [name.rpartition(".")[0] for name in listed]
    assert exclusion.find(films, write(tmp_path, "\n".join([bare[0], f"{bare[1]}.jpg", listed[2]]))).names == {*listed}


def test_a_films_own_name_counts_before_all_others(tmp_path):
    films = pd.DataFrame({"image": ["a/1.png", "b/1.png", "1.png", "2.png", "a/2.png"]})
    assert exclusion.find(films, write(tmp_path, "1.png\nb/1.png")).names == {"1.png", "b/1.png"}
    with pytest.raises(UserError, match=r"c/3 may be x/3.png or y/3.png; write the whole name"):
        exclusion.find(pd.DataFrame({"image": ["x/3.png", "y/3.png", "z.png"]}), write(tmp_path, "c/3"))


def test_films_named_with_folders_are_known_by_as_many_of_them_as_the_list_has(tmp_path):
    names = [f"train/patient{p}/study{s}/view1_frontal.jpg" for p in (1, 2) for s in (1, 2)]
    films = pd.DataFrame({"image": names})
    listed = f"CheXpert-v1.0-small/{names[0]}\npatient2/study1/view1_frontal\n"
    assert exclusion.find(films, write(tmp_path, listed)).names == {names[0], names[2]}
    with pytest.raises(UserError, match=r"view1_frontal\.jpg may be"):
        exclusion.find(films, write(tmp_path, "view1_frontal.jpg"))


WRONG = {
    "": "is empty; write one film's name per line",
    "film number,comment of reader\n": "has no column image; it has 'film number', 'comment of reader'",
    "image,reason\n,inverted\n": "row ',inverted' has no film's name",
    "nothing_1.png\nnothing_2.png\n": r"no film on this list is in the data \(2 listed, first nothing_1.png\)",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_list_that_cannot_be_meant_is_refused(films, tmp_path, text):
    with pytest.raises(UserError, match=WRONG[text]):
        exclusion.find(films, write(tmp_path, text))


def test_a_list_of_all_films_or_of_a_whole_part_is_refused(films, tiny_phantom, tmp_path):
    with pytest.raises(UserError, match="excludes all 96 films; leave some"):
        exclusion.find(films, write(tmp_path, "\n".join(films["image"])))
    test = dataset.open(str(tiny_phantom), SIZE, progress=False).parts.test["image"]
    with pytest.raises(UserError, match=f"excludes all {len(test)} films of the test part"):
        dataset.open(str(tiny_phantom), SIZE, exclude=write(tmp_path, "\n".join(test)))


@pytest.mark.parametrize("official", [True, False])
def test_listed_films_are_left_out_and_no_other_film_changes_its_part(tiny_phantom, tmp_path, official):
    folder = tmp_path / "films"
    shutil.copytree(tiny_phantom, folder)
    if not official:
        for file in folder.glob("*_list.txt"):
            file.unlink()
    whole = dataset.open(str(folder), SIZE, seed=1, progress=False)
    names = [getattr(whole.parts, part)["image"].iloc[0] for part in ("train", "val", "test")]
    less = dataset.open(str(folder), SIZE, seed=1, progress=False, exclude=write(tmp_path, "\n".join(names)))
    assert less.fingerprint != whole.fingerprint
    assert set(whole.films["image"]) - set(less.films["image"]) == {*names}
    for part in ("train", "val", "test"):
        before, now = getattr(whole.parts, part), getattr(less.parts, part)
        expected = before[~before["image"].isin(names)].reset_index(drop=True)
        pd.testing.assert_frame_equal(now[[*records.COLUMNS]], expected[[*records.COLUMNS]])


def test_without_a_list_nothing_is_another(tiny_phantom):
    opened = dataset.open(str(tiny_phantom), SIZE, progress=False)
    assert opened.excluded == exclusion.Excluded()
    assert len(str(opened).splitlines()) == 3
    assert "excluded" not in pipeline.data(str(tiny_phantom), known=True)


def test_an_excluded_film_may_be_absent_or_damaged(tiny_phantom, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(tiny_phantom, folder)
    absent, damaged, other = sorted((folder / "images").glob("*.png"))[:3]
    absent.unlink()
    damaged.write_bytes(b"no film")
    file = write(tmp_path, f"{absent.name}\n{damaged.name}\n")
    said = str(dataset.open(str(folder), SIZE, exclude=file, progress=False))
    assert said.startswith("94 films of 16 px, 0 left out\n")
    assert said.endswith("\n2 films excluded by bad.csv")
    assert pipeline.data(str(folder), exclude=file)["films"] == 94
    other.unlink()
    with pytest.raises(UserError, match="2 of the 96 films"):
        dataset.open(str(folder), SIZE, exclude=file, progress=False)
    assert len(dataset.open(str(folder), SIZE, exclude=file, allow_missing=True, progress=False).films) == 93


def test_names_that_are_not_there_are_counted_and_told(tiny_phantom, listed, tmp_path):
    file = write(tmp_path, "image,reason\n" + f"{listed[0]},upside down\nmissing_1.png,\nmissing_2.png,\n")
    said = (
        "1 film excluded by bad.csv (1 upside down); bad.csv: 2 of its 3 films are not in the data, first missing_1.png"
    )
    assert str(dataset.open(str(tiny_phantom), SIZE, exclude=file, progress=False)).endswith(said)
    assert pipeline.data(str(tiny_phantom), exclude=file)["doubts"][0].startswith("bad.csv: 2 of its 3 films")


def test_the_run_records_the_list_and_its_films_are_others(tiny_phantom, listed, tmp_path):
    file = write(tmp_path, f"image,reason\n{listed[0]},<b>inverted</b>\n{listed[1]},\n")
    before, found = pipeline.data(str(tiny_phantom)), pipeline.data(str(tiny_phantom), exclude=file)
    assert found["fingerprint"] != before["fingerprint"]
    assert found["films"] == before["films"] - 2 == sum(found["parts"].values())
    record = json.loads(json.dumps(found))["excluded"]
    assert record["file"] == file
    assert len(record["sha256"]) == 64
    assert (record["films"], record["reasons"]) == (2, {"<b>inverted</b>": 1, exclusion.NO_REASON: 1})
    home = paths.Run("cleaned")
    paths.write_json(home.run_json, {"run": "cleaned", "settings": {"run": "cleaned"}, "data": found, "notebooks": {}})
    page = report.build("cleaned").read_text()
    assert "2 films excluded by bad.csv (1 &lt;b&gt;inverted&lt;/b&gt;, 1 no reason given)" in page


def test_a_damaged_record_does_not_stop_the_report():
    record = {"run": "cleaned", "settings": {}, "data": {"excluded": {"films": "many", "reasons": {}}}, "notebooks": {}}
    paths.write_json(paths.Run("cleaned").run_json, record)
    assert "counts of films are not numbers" in report.build("cleaned").read_text()


def test_boxes_of_excluded_films_do_no_harm(tiny_phantom, films, tmp_path):
    boxes = records.read_boxes(tiny_phantom)
    opened = dataset.open(str(tiny_phantom), SIZE, exclude=write(tmp_path, boxes["image"].iloc[0]), progress=False)
    wanted = localisation.targets(opened.parts.test, boxes)
    assert boxes["image"].iloc[0] not in set(wanted["image"])
    assert wanted.attrs["elsewhere"] >= 1
    assert localisation.masks(wanted, boxes, SIZE).shape == (len(wanted), SIZE, SIZE)


def test_it_is_judged_before_a_film_is_read(tmp_path):
    faults = {
        str(tmp_path / "gone.csv"): "is not there",
        str(tmp_path): "is a folder; give a CSV",
        write(tmp_path, ""): "cannot be used: .* is empty",
    }
    for value, fault in faults.items():
        with pytest.raises(UserError, match=f"exclude .*{fault}"):
            parameters.judge("stage1", {"run": "demo", "exclude": value})
    parameters.judge("stage1", {"run": "demo", "exclude": ""})


def test_a_relative_path_starts_from_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings.located({"exclude": "bad.csv"}) == {"exclude": str(tmp_path / "bad.csv")}
    assert settings.located({"exclude": ""}) == {"exclude": ""}


def test_a_training_job_leaves_the_films_out(tiny_phantom, listed, tmp_path, monkeypatch):
    """The job opens the data with the list: its parameters are those of the notebook."""
    asked = {}

    def opened(folder, size, **how):
        asked.update(how)
        raise UserError("enough")

    monkeypatch.setattr(dataset, "open", opened)
    with pytest.raises(UserError, match="enough"):
        job.train(stage=1, data=str(tiny_phantom), exclude=write(tmp_path, listed[0]))
    assert asked["exclude"].endswith("bad.csv")


def test_what_is_written_is_read_back(tmp_path):
    reasons = {"a 1.png": 'said "so"; a, b', "b.png": "", "c.png": "two\nlines"}
    assert exclusion.read(exclusion.write(tmp_path / "list.csv", reasons)) == reasons | {"c.png": "two lines"}


def test_check_writes_a_list_that_a_run_takes(tiny_phantom, tmp_path, capsys):
    folder = tmp_path / "films"
    shutil.copytree(tiny_phantom, folder)
    damaged, black = sorted((folder / "images").glob("*.png"))[:2]
    damaged.write_bytes(b"no film")
    cv2.imwrite(str(black), np.zeros((64, 64), np.uint8))
    file = tmp_path / "remarks.csv"
    assert cli.call(["check", str(folder), "--list", str(file)]) == 1
    listed = exclusion.read(file)
    assert {damaged.name, black.name} <= {*listed}
    assert listed[damaged.name].startswith("cannot be decoded")
    assert f"Films with a remark: {len(listed)}: {file}" in capsys.readouterr().out
    dataset.open(str(folder), SIZE, exclude=str(file), progress=False)
    assert cli.call(["check", str(folder), "--fast", "--list", str(file)]) == 2


def test_a_list_of_thousands_is_found_in_moments(tmp_path):
    names = [f"{patient:08}_{film:03}.png" for patient in range(4000) for film in range(5)]
    films = pd.DataFrame({"image": names})
    chosen = np.random.default_rng(0).choice(names, 5000, replace=False)
    assert exclusion.find(films, write(tmp_path, "\n".join(chosen))).names == {*chosen}
