"""Which films the paths that a user names stand for."""

import os

import pytest

from cxrlib import UserError
from cxrlib.data import film_paths

DICOM = bytes(128) + b"DICM"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Films at two depths, other files, and a link back to the top."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "films" / "more").mkdir(parents=True)
    for name in ("b.PNG", "a.jpeg", ".hidden.png", "notes.txt", "more/c.dcm"):
        (tmp_path / "films" / name).touch()
    for name in ("IM0001", "1.2.840.113", "DICOMDIR"):
        (tmp_path / "films" / "more" / name).write_bytes(DICOM)
    (tmp_path / "films" / "more" / "README").write_text("no film")
    (tmp_path / "films" / "more" / "again").symlink_to(tmp_path / "films")
    return tmp_path / "films"


def test_a_folder_stands_for_the_films_below_it_once_each_though_a_link_goes_round(folder):
    names = ["a.jpeg", "b.PNG", "more/1.2.840.113", "more/IM0001", "more/c.dcm"]
    assert film_paths.collect(["films"]) == [os.path.join("films", name) for name in names]  # noqa: PTH118
    assert film_paths.collect(["films/b.PNG", "films", folder / "a.jpeg"])[:2] == ["films/b.PNG", "films/a.jpeg"]
    assert len(film_paths.collect(["films/b.PNG", "films", folder])) == len(names)


@pytest.mark.parametrize(
    "text",
    [
        "id,Path\n1,films/a.jpeg\n2,absent.png\n",
        "file;label\nfilms/a.jpeg;1\n\nabsent.png;0\n",
        "films/a.jpeg\nabsent.png\n",
        "\ufeffwhere it is\r\nfilms/a.jpeg\r\nabsent.png",
        "Image Index,Finding Labels\nfilms/a.jpeg,Mass\nabsent.png,Hernia\n",
    ],
)
def test_a_csv_stands_for_its_paths_which_start_from_it(folder, text, monkeypatch):
    (folder.parent / "list.csv").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    assert film_paths.collect(["../list.csv"]) == [str(folder / "a.jpeg"), str(folder.parent / "absent.png")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("nothing", None, "nothing is not there"),
        ("list.csv", "a,b\n1,2\n", "no column path, image or file; it has 'a', 'b'"),
        ("list.csv", "", "is empty"),
        ("list.csv", "path\n", "there are no films in list.csv"),
        ("films/more/again/none", None, "is not there"),
    ],
)
def test_a_mistake_is_told(folder, name, text, says, monkeypatch):
    if text is not None:
        (folder.parent / name).write_text(text)
    with pytest.raises(UserError, match=says):
        film_paths.collect([name])


def test_a_folder_without_films_is_a_mistake(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="there are no films in"):
        film_paths.collect([tmp_path])
