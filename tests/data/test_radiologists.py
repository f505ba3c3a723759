"""Radiologists' labels: read in the forms that people have, matched to films, refused where they are wrong."""

import numpy as np
import pandas as pd
import pytest

from cxrlib import UserError
from cxrlib.data import radiologists, records, splits

HEADER = "Image Index,Patient ID,Fracture,Pneumothorax,Airspace opacity,Nodule or mass,Set Id\n"
ROWS = "00000001_000.png,1,NO,YES,NO,NO,test\n00000002_000.png,2,NO,NO,YES,NO,val\n"


def films():
    table = pd.DataFrame({"image": ["00000002_000.jpg", "00000001_000.png", "00000003_000.png"], "patient": [2, 1, 3]})
    for label in {label for group in radiologists.GROUPS.values() for label in group}:
        table[label] = np.array([0, 1, 0], np.uint8) if label == "Nodule" else np.zeros(3, np.uint8)
    return table


def write(folder, text, name="google2019_nih-chest-xray-labels.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_films_are_found_by_name_whatever_their_ending(tmp_path):
    found = radiologists.beside(films(), radiologists.read(write(tmp_path, HEADER + ROWS)))
    assert found["patient"].tolist() == [2, 1]
    assert found["set"].tolist() == ["val", "test"]
    assert found["read_Pneumothorax"].tolist() == [0, 1]
    assert found["read_Airspace opacity"].tolist() == [1, 0]
    assert found["mined_Nodule or mass"].tolist() == [0, 1]


def test_an_unknown_label_is_unknown_unless_another_of_the_group_is_there(tmp_path):
    table = films().astype({"Mass": np.float32, "Nodule": np.float32})
    table["Mass"] = np.array([np.nan, np.nan, 0], np.float32)
    found = radiologists.beside(table, radiologists.read(write(tmp_path, HEADER + ROWS)))
    assert np.isnan(found["mined_Nodule or mass"].iloc[0])
    assert found["mined_Nodule or mass"].iloc[1] == 1


def test_googles_own_two_files_are_read_as_one(tmp_path):
    columns = "Image Index,Patient ID,Fracture,Pneumothorax,Airspace opacity,Nodule or mass\n"
    write(tmp_path, columns + "a_000.png,1,NO,YES,NO,NO\n", "test_labels.csv")
    write(tmp_path, columns + "b_000.png,2,NO,NO,NO,YES\n", "validation_labels.csv")
    table = radiologists.read(*radiologists.find(tmp_path))
    assert table.set_index("image")["set"].to_dict() == {"a_000.png": "test", "b_000.png": "val"}
    write(tmp_path, HEADER + ROWS)  # the merged file goes first
    assert [file.name for file in radiologists.find(tmp_path)] == ["google2019_nih-chest-xray-labels.csv"]


COLUMNS = "Image Index,Patient ID,Patient Gender,View Position,Fracture,Pneumothorax,Airspace opacity,Nodule or mass\n"


@pytest.mark.parametrize("form", ["{}", "four_findings_expert_labels_{}", "four_findings_expert_labels/{}"])
def test_both_of_googles_files_are_found_under_the_names_that_people_give_them(tmp_path, form):
    for i, name in enumerate(("test_labels.csv", "validation_labels.csv")):
        path = tmp_path / form.format(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(COLUMNS + f"0000000{i}_000.png,{i},M,PA,NO,YES,NO,NO\n")
    assert radiologists.read(*radiologists.find(tmp_path))["set"].tolist() == ["test", "val"]
    (tmp_path / "test_labels.csv").write_text(COLUMNS + "00000000_000.png,0,M,PA,NO,YES,NO,NO\n")
    assert len(radiologists.read(*radiologists.find(tmp_path))) == 2  # a second copy is not read too


def test_files_that_name_the_same_film_are_refused(tmp_path):
    files = [write(tmp_path, HEADER + ROWS, name) for name in ("one.csv", "two.csv")]
    with pytest.raises(UserError, match=r"both have 00000001_000.png; keep one"):
        radiologists.read(*files)


def test_a_test_labels_csv_of_somebody_else_is_left_alone(tmp_path):
    write(tmp_path, "Image ID,Normal,Effusion\n00000001_000.png,NO,YES\n", "test_labels.csv")
    assert radiologists.find(tmp_path) == []


def parts_of(views):
    """Four films of the names in NIH's file, with these views, in the test part."""
    table = pd.concat([films()] * 2, ignore_index=True).head(4).assign(sex="M", view=views)
    table["image"] = [f"0000000{i}_000.png" for i in range(4)]
    return splits.Parts(table[:0], table[:0], table, source="", seed=0)


def test_labels_of_other_films_with_the_same_names_are_refused(tmp_path):
    rows = "".join(f"0000000{i}_000.png,{i},M,PA,NO,YES,NO,NO\n" for i in range(5))
    file = write(tmp_path, COLUMNS + rows, "four_findings_expert_labels_test_labels.csv")
    table = radiologists.labels_for(tmp_path, "", parts_of(["PA"] * 4), drawn=False)
    assert "4 of its 5 films are in this data folder" in table.attrs["source"]
    assert "set test has 5 of 1,962 published films; set val has 0 of 2,412" in table.attrs["source"]
    with pytest.raises(UserError, match=r"4 films here have names .* the same for 62% only: it is of other films"):
        radiologists.labels_for(tmp_path, str(file), parts_of(["AP", "AP", "AP", "PA"]), drawn=True)
    assert (
        len(radiologists.labels_for(tmp_path, "", parts_of([""] * 4), drawn=False)) == 5
    )  # no view is no contradiction


def test_the_setting_takes_a_folder_and_says_what_it_lacks(tmp_path):
    inner = tmp_path / "labels"
    inner.mkdir()
    with pytest.raises(UserError, match=r"labels holds no radiologists' labels; give google2019"):
        radiologists.labels_for(tmp_path, str(inner), parts_of(["PA"] * 4), drawn=False)
    write(inner, COLUMNS + "00000001_000.png,1,M,PA,NO,YES,NO,NO\n", "test_labels.csv")
    assert len(radiologists.labels_for(tmp_path, str(inner), parts_of(["PA"] * 4), drawn=False)) == 1


def test_without_a_file_nothing_is_found(tmp_path):
    assert radiologists.find(tmp_path) == []
    table = radiologists.labels_for(tmp_path, "", parts_of(["PA"] * 4), drawn=False)
    assert table.empty
    assert table.attrs["source"].startswith("no radiologists' labels beside the data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("Nodule or mass", "Other") + ROWS, "lacks the column Nodule or mass"),
        (HEADER.replace("Image Index", "File") + ROWS, "lacks the column Image Index"),
        (HEADER + ROWS.replace("YES", "MAYBE", 1), "line 2, Pneumothorax: 'MAYBE' is neither YES nor NO"),
        (HEADER + ROWS + ROWS, "00000001_000.png occurs twice"),
        (HEADER + ROWS.replace("val", "train"), "'train' is neither test nor val"),
        ("", "is empty"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        radiologists.read(write(tmp_path, text))


def test_a_made_up_reading_is_the_same_each_time_and_differs_from_the_labels():
    table = pd.concat([films()] * 200, ignore_index=True)
    table["image"] = [f"{i}.png" for i in range(len(table))]
    one = radiologists.made_up(table, "test", seed=1)
    pd.testing.assert_frame_equal(one, radiologists.made_up(table, "test", seed=1))
    found = radiologists.beside(table, one)
    kept = found.loc[found["mined_Nodule or mass"] == 1, "read_Nodule or mass"].mean()
    gained = found.loc[found["mined_Nodule or mass"] == 0, "read_Nodule or mass"].mean()
    assert 0.7 < kept < 0.9
    assert 0.01 < gained < 0.07


@pytest.mark.real
def test_the_real_file_has_the_films_that_its_paper_names(nih_metadata):
    table = radiologists.read(*radiologists.find(nih_metadata))
    assert table["set"].value_counts().to_dict() == {"val": 2414, "test": 1962}
    assert table[list(radiologists.GROUPS)].sum().to_dict() == {
        "Pneumothorax": 238,
        "Airspace opacity": 2166,
        "Nodule or mass": 605,
    }
    official = {records.stem(name) for name in (nih_metadata / "test_list.txt").read_text().split()}
    in_test = table["image"].map(records.stem).isin(official)
    assert in_test[table["set"] == "test"].all()
    assert not in_test[table["set"] == "val"].any()
