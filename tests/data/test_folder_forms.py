"""Data folders as people have them: read to the same films and the same split, said by the check, and never guessed."""

import shutil

import cv2
import pandas as pd
import pytest

from cxrlib import UserError, labels
from cxrlib.data import check, records, splits, store

TABLE = records.TABLES[0]


@pytest.fixture
def whole(folder):
    """Folder with its lists."""
    films = records.read(folder)
    tested = films["patient"] > 12
    for name, part in ((splits.TEST_LIST, films[tested]), (splits.TRAIN_LIST, films[~tested])):
        (folder / name).write_text("".join(f"{image}\n" for image in part["image"]))
    return folder


def edit(folder, name, change, encoding="utf-8"):
    """Change the text of a file."""
    path = folder / name
    path.write_bytes(change(path.read_text()).encode(encoding))


def edit_lists(folder, change, encoding="utf-8"):
    """Change each line of both lists."""
    for name in (splits.TRAIN_LIST, splits.TEST_LIST):
        edit(folder, name, lambda text: "\n".join(map(change, text.splitlines())), encoding)


def move(folder, into, *patterns):
    """Move the parts of a folder into a folder in it."""
    parts = [path for pattern in patterns for path in folder.glob(pattern)]
    (folder / into).mkdir(parents=True, exist_ok=True)
    for path in parts:
        path.rename(folder / into / path.name)


def to_jpeg(folder):
    for film in sorted((folder / "images").iterdir()):
        cv2.imwrite(str(film.with_suffix(".jpg")), cv2.imread(str(film), 0))
        film.unlink()


def rename_films(folder, ending):
    for film in sorted((folder / "images").iterdir()):
        film.rename(film.with_suffix(ending))


def twelve_folders_in_images(folder):
    for i, film in enumerate(sorted((folder / "images").iterdir())):
        target = folder / "images" / f"images_{i % 3:03d}" / "images" / film.name
        target.parent.mkdir(parents=True, exist_ok=True)
        film.rename(target)


def with_header(folder):
    for name in (splits.TRAIN_LIST, splits.TEST_LIST):
        edit(folder, name, lambda text: "Image Index\n" + text)


def with_labels(folder):
    """The lists of CheXNet's ports: a header, folders, 14 columns of 0 and 1."""
    marks = " ".join("0101" * 3 + "00")
    edit_lists(folder, lambda line: f"images_001/images/{line} {marks}")
    for name in (splits.TRAIN_LIST, splits.TEST_LIST):
        edit(folder, name, lambda text: f"Image Index {' '.join(labels.FINDINGS)}\n{text}")


FORMS = {
    "semicolons": (lambda f: edit(f, TABLE, lambda t: t.replace(",", ";")), "table separated by semicolons"),
    "UTF-16": (lambda f: edit(f, TABLE, lambda t: t.replace(",", "\t"), "utf-16"), "file in UTF-16"),
    "labels in lower case": (lambda f: edit(f, TABLE, lambda t: t.replace("Mass", "mass")), "labels written"),
    "JPEG files": (to_jpeg, "another ending than in the table (40): 00000001_000.jpg is 00000001_000.png"),
    "endings in capitals": (lambda f: rename_films(f, ".PNG"), "another ending than in the table (40)"),
    "lists with folders": (lambda f: edit_lists(f, "images_002/images/{}".format), "folders before the names"),
    "lists of Windows": (lambda f: edit_lists(f, "images\\{}\r".format), "folders before the names"),
    "lists with line ends of Windows": (lambda f: edit_lists(f, "{}\r".format), ""),
    "lists in UTF-16": (lambda f: edit_lists(f, str, "utf-16"), "file in UTF-16"),
    "lists with a header": (with_header, "with a header (1): Image Index"),
    "lists in quotes": (lambda f: edit_lists(f, '"{}",'.format), ""),
    "lists without endings": (lambda f: edit_lists(f, lambda line: line[:-4]), "names without an ending"),
    "lists with other endings": (lambda f: edit_lists(f, lambda line: line[:-4] + ".jpg"), ""),
    "lists with labels": (with_labels, "labels behind the names, not used"),
    "lists of more films": (
        lambda f: edit(f, splits.TEST_LIST, lambda t: t + "00030000_000.png\n"),
        "films of test_list.txt that are not in the table (1): 00030000_000",
    ),
    "one folder deeper": (lambda f: move(f, "nih", "*"), "parts in a folder below (4): nih/Data_Entry_2017.csv"),
    "films one folder deeper": (lambda f: move(f, "nih", "images"), "parts in a folder below (1): nih/images"),
    "table and lists in images/": (lambda f: move(f, "images", "*.*"), "below (3): images/Data_Entry_2017.csv"),
    "twelve folders in images/": (twelve_folders_in_images, ""),
    "all of it in images/": (
        lambda f: (twelve_folders_in_images(f), move(f, "images", "*.*")),
        "below (3): images/Data_Entry_2017.csv",
    ),
    "the sample's name": (lambda f: (f / TABLE).rename(f / "sample_labels.csv"), ""),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_folder_in_any_form_is_read_whole(name, whole):
    expected = records.read(whole)
    parts = splits.make(expected, whole)
    change, note = FORMS[name]
    change(whole)
    report = check.folder(whole, progress=False)
    assert report.fit, report
    assert note in str(report)
    films = records.read(whole)
    pd.testing.assert_frame_equal(films.drop(columns="path"), expected.drop(columns="path"))
    assert len(store.build(films, 16, progress=False).present(films)) == 40
    found = splits.make(films, whole)
    assert found.source.startswith("official lists")
    for part in ("train", "val", "test"):
        assert getattr(found, part)["image"].tolist() == getattr(parts, part)["image"].tolist()


@pytest.mark.parametrize("name", FORMS)
def test_a_change_of_what_is_read_is_noticed(name, whole):
    FORMS[name][0](whole)
    films = records.read(whole)
    before = store.folder_fingerprints(whole, films)
    read = [records.find_table(whole), *splits.find_lists(whole).values()]
    assert len(read) == 3
    for path in read:
        data = path.read_bytes()
        path.write_bytes(data + b" ")
        assert store.folder_fingerprints(whole, films)["tables"] != before["tables"], path
        path.write_bytes(data)
    assert store.folder_fingerprints(whole, films) == before
    film = next(iter(records.find_images(whole).values()))
    film.write_bytes(film.read_bytes() + b" ")
    assert store.folder_fingerprints(whole, films)["films"] != before["films"]


def test_some_rows_of_the_table_beside_the_whole_lists(whole):
    edit(whole, TABLE, lambda text: "".join(text.splitlines(keepends=True)[::2]))
    report = check.folder(whole, progress=False)
    assert report.fit, report
    assert "films of train_val_list.txt that are not in the table" in str(report)
    parts = splits.make(records.read(whole), whole)
    assert "20 of their films not in the table" in parts.source
    assert parts.test["patient"].min() > 12


def test_the_table_is_jpg_and_the_files_and_lists_are_png(whole):
    edit(whole, TABLE, lambda text: text.replace(".png", ".jpg"))
    films = records.read(whole)
    assert films["path"].str.endswith(".png").all()
    assert films["image"].str.endswith(".jpg").all()
    assert len(splits.make(films, whole).test) > 0
    some = store.build(films, 16, progress=False)
    assert store.build(films.head(10), 16, progress=False).names == some.names  # the others' files are still there
    assert check.folder(whole, progress=False).fit


def test_two_files_for_one_film_are_refused(whole):
    film = sorted((whole / "images").iterdir())[0]
    shutil.copy(film, film.with_suffix(".jpg"))
    assert check.folder(whole, fast=True, progress=False).fit  # the file of the film's own name counts
    film.rename(film.with_suffix(".jpeg"))
    with pytest.raises(
        UserError, match=r"1 films have no file of their own; first 00000001_000\.png \(.*jpeg or .*jpg"
    ):
        records.read(whole)
    assert "films that several files may be (1)" in str(check.folder(whole, fast=True, progress=False))


def test_one_file_for_two_films_is_refused(whole):
    edit(whole, TABLE, lambda text: text + text.splitlines()[1].replace(".png", ".jpeg") + "\n")
    film = sorted((whole / "images").iterdir())[0]
    film.rename(film.with_suffix(".jpg"))
    with pytest.raises(UserError, match="2 films have no file of their own"):
        records.read(whole)


def test_several_folders_below_are_not_chosen_from(whole):
    move(whole, "nih", "*")
    shutil.copytree(whole / "nih", whole / "other")
    with pytest.raises(UserError, match=r"holds 2 data folders \(nih, other\); give one of them"):
        records.read(whole)
    assert "holds 2 data folders" in str(check.folder(whole, progress=False))


def test_a_table_outside_that_differs_from_the_one_inside_is_told(whole):
    move(whole, "sample", "*")
    text = (whole / "sample" / TABLE).read_text()
    (whole / TABLE).write_text(text)
    assert records.rivals(whole) == ""
    (whole / TABLE).write_text(text.replace("Mass|Nodule", "Mass"))
    assert records.rivals(whole).startswith("Data_Entry_2017.csv is used, and sample/Data_Entry_2017.csv beside it")


def test_the_nearest_thing_that_works_is_named(whole):
    with pytest.raises(UserError, match=f"holds no {TABLE}; give {whole}, which holds the table"):
        records.read(whole / "images")
    (whole / TABLE).rename(whole / "nih_labels.csv")
    with pytest.raises(UserError, match=rf"nih_labels\.csv has the columns of a label table: name it {TABLE}"):
        records.read(whole)
    (whole / "nih_labels.csv").write_text("Path,Sex\n1.png,F\n")
    with pytest.raises(UserError, match=r"nih_labels\.csv has no column 'Image Index'.*it has 'Path', 'Sex'\. A table"):
        records.read(whole)


WRONG_LISTS = {
    "a table for a list": (lambda f: edit_lists(f, "{},1,0".format), "is no film's name"),
    "a film twice, with and without ending": (
        lambda f: edit(f, splits.TEST_LIST, lambda t: t + t[:12] + "\n"),
        "00000013_000 twice",
    ),
    "a film in both, in two forms": (
        lambda f: edit(f, splits.TRAIN_LIST, lambda t: t + "images/00000013_000.jpg"),
        "films are in both lists",
    ),
    "no film of the table in the test part": (
        lambda f: edit(f, TABLE, lambda t: "".join(line for line in t.splitlines(True) if ",13," not in line)[:1500]),
        r"parts of the official split have no film of the CSV, first test_list\.txt",
    ),
    "no film's name": (lambda f: edit(f, splits.TEST_LIST, lambda t: "a;b\n" + t), "line 1: 'a;b' is no film's name"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_a_list_that_may_be_wrong_is_refused(name, whole):
    change, message = WRONG_LISTS[name]
    change(whole)
    edit(whole, TABLE, lambda text: text[: text.rindex("\n") + 1])
    with pytest.raises(UserError, match=message):
        splits.make(records.read(whole), whole)
    report = check.folder(whole, fast=True, progress=False)
    assert "lists" in {problem.group for problem in report.problems if problem.level == "error"}


CASES = {
    "excel_semicolon": "table separated by semicolons (1)",
    "jpg_mirror": "films with another ending than in the table (9)",
    "kaggle_five_percent_sample": "official lists absent (2)",
    "no_finding_lower_case": "'No finding' as No Finding",
}


@pytest.mark.real
@pytest.mark.parametrize("name", CASES)
def test_the_cases_that_were_refused(name, nih_1k):
    folder = nih_1k.parent / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    report = check.folder(folder, progress=False)
    assert report.fit, report
    assert CASES[name] in str(report)
    films = records.read(folder)
    assert len(films) == 9
    numbers = records.read(nih_1k).set_index("image").loc[films["image"], [*labels.LABELS, "patient", "age"]]
    pd.testing.assert_frame_equal(films.set_index("image")[numbers.columns], numbers)
    assert len(store.build(films, 32, progress=False).names) == 9
    assert len(splits.make(films, folder).test) >= 1


def test_what_lies_beside_the_data_by_chance_is_no_data_folder(whole):
    move(whole, "nih", "*")
    (whole / "__MACOSX" / "images").mkdir(parents=True)
    (whole / ".trash" / "images").mkdir(parents=True)
    (whole / "notes").mkdir()
    assert len(records.read(whole)) == 40
