"""Phantom set: layout, determinism, labels, boxes, anatomy, and similarity to the dataset."""

import numpy as np
import pandas as pd
import pytest

from cxrlib import UserError
from cxrlib.data import records
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.phantom import chest, cohort, phantom, signs

CM = 1 / chest.FILM_CM


@pytest.fixture(scope="module")
def films(tiny_phantom) -> pd.DataFrame:
    return records.read(tiny_phantom)


def files(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_gives_the_same_bytes(tmp_path):
    first, again, other = (
        phantom.write(tmp_path / name, 24, 48, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert files(first) == files(again)
    assert files(first) != files(other)


def test_a_film_depends_on_its_arguments_alone():
    films = [{"findings": [finding], "patient": i, "size": 48} for i, finding in enumerate(FINDINGS)]
    forwards = [phantom.draw(**film).pixels for film in films]
    backwards = [phantom.draw(**film).pixels for film in reversed(films)][::-1]
    np.testing.assert_array_equal(forwards, backwards)


def test_layout_is_complete(tiny_phantom, films):
    assert {path.name for path in tiny_phantom.iterdir()} == {
        "Data_Entry_2017.csv",
        "images",
        "train_val_list.txt",
        "test_list.txt",
        "BBox_List_2017.csv",
        "dataset.txt",
    }
    listed = [
        name for part in ("train_val", "test") for name in (tiny_phantom / f"{part}_list.txt").read_text().split()
    ]
    assert sorted(listed) == sorted(films["image"]) == sorted(path.name for path in (tiny_phantom / "images").iterdir())
    header, first = (tiny_phantom / "Data_Entry_2017.csv").read_text().splitlines()[:2]
    assert header == phantom.DATA_HEADER
    assert header.count(",") == first.count(",")


def test_headers_are_the_datasets(nih_metadata):
    real = pd.read_csv(nih_metadata / "BBox_List_2017.csv.gz", nrows=0).columns
    assert list(real)[:6] == phantom.BOX_HEADER.split(",")[:6]
    real = pd.read_csv(nih_metadata / "Data_Entry_2017_v2020.csv.gz", nrows=0).columns
    assert [*real, ""] == phantom.DATA_HEADER.split(",")


def test_small_set_has_every_label_in_both_parts(tiny_phantom, films):
    test = films["image"].isin((tiny_phantom / "test_list.txt").read_text().split())
    assert films.loc[test, list(LABELS)].any().all()
    assert films.loc[~test, list(LABELS)].any().all()


def test_no_patient_is_in_both_lists(tiny_phantom, films):
    test = films["image"].isin((tiny_phantom / "test_list.txt").read_text().split())
    assert not set(films["patient"][test]) & set(films["patient"][~test])
    assert films["patient"].value_counts().max() > 1


def test_boxes_lie_on_test_films_with_that_finding(tiny_phantom, films):
    boxes = records.read_boxes(tiny_phantom)
    test = set((tiny_phantom / "test_list.txt").read_text().split())
    assert set(boxes["image"]) <= test
    labels = films.set_index("image")
    assert all(labels.at[box.image, box.finding] for box in boxes.itertuples())
    assert (boxes[["x", "y"]] >= 0).all(axis=None)
    assert (boxes[["w", "h"]] > 0).all(axis=None)
    assert (boxes["x"] + boxes["w"] <= phantom.BOX_PIXELS).all()
    assert (boxes["y"] + boxes["h"] <= phantom.BOX_PIXELS).all()
    boxed = boxes.groupby("finding")["image"].agg(set)
    for finding in phantom.BOXED:
        assert boxed[finding] == set(labels.index[(labels[finding] == 1) & labels.index.isin(test)])


def test_infiltration_is_spelt_in_the_box_file_as_in_the_dataset(tiny_phantom):
    text = (tiny_phantom / "BBox_List_2017.csv").read_text()
    assert ",Infiltrate," in text
    assert "Infiltration" not in text


@pytest.mark.parametrize("finding", FINDINGS)
def test_each_sign_changes_its_film_inside_its_box(finding):
    for patient in range(5):
        healthy = phantom.draw([], patient=patient, size=96).pixels.astype(int)
        film = phantom.draw([finding], patient=patient, size=96)
        change = np.abs(film.pixels - healthy)
        assert film.boxes[finding]
        for x, y, w, h in np.array(film.boxes[finding]) * 96:
            inside = change[int(y) : int(y + h), int(x) : int(x + w)]
            assert inside.max() > 12
            assert inside.mean() > 1.5 * change[:8].mean()


def test_heart_is_wider_than_half_the_thorax_only_in_cardiomegaly():
    for patient in range(40):
        for findings in ([], ["Edema"], ["Cardiomegaly"], ["Cardiomegaly", "Emphysema"]):
            body = phantom.draw(findings, patient=patient, view=("PA", "AP")[patient % 2], size=32).body
            ratio = np.ptp(body.heart()[:, 0]) / np.ptp(np.concatenate([body.lung(0), body.lung(1)])[:, 0])
            assert (ratio > 0.5) == ("Cardiomegaly" in findings)


def test_three_centimetres_divide_nodules_from_masses():
    pixel = 1 / 256
    for patient in range(8):
        nodules = phantom.draw(["Nodule"], patient=patient, size=256).boxes["Nodule"]
        (mass,) = phantom.draw(["Mass"], patient=patient, size=256).boxes["Mass"]
        assert max(max(box[2:]) for box in nodules) < 3 * CM + 2 * pixel
        assert max(mass[2:]) > 3 * CM
    assert signs.NODULE_CM[1] < 3 < signs.MASS_CM[0]


def test_emphysema_flattens_and_lowers_the_diaphragm():
    healthy, sick = (phantom.draw(findings, patient=5, size=32).body for findings in ([], ["Emphysema"]))
    assert min(sick.dome) > max(healthy.dome)
    assert sick.arch < healthy.arch / 1.5


def test_fluid_is_bright_and_free_air_dark():
    for patient in range(6):
        healthy = phantom.draw([], patient=patient, size=96).pixels.astype(int)
        for finding, sign in (("Effusion", 1), ("Pneumothorax", -1)):
            film = phantom.draw([finding], patient=patient, size=96)
            x, y, w, h = (np.array(film.boxes[finding][0]) * 96).astype(int)
            change = np.sort((film.pixels - healthy)[y : y + h, x : x + w].ravel() * sign)
            assert change[int(0.7 * len(change)) :].mean() > 8


def test_every_finding_has_a_sign():
    assert tuple(signs.DRAW) == FINDINGS
    assert set(signs.RESHAPE) <= set(FINDINGS)


def test_natural_prevalence_and_cooccurrence_are_the_datasets():
    table = cohort.sample_cohort(40_000, seed=0, least=0)
    has = table[list(FINDINGS)].to_numpy(int)
    np.testing.assert_allclose(has.mean(0), cohort.PREVALENCE, rtol=0.03)
    together, expected = has.T @ has * cohort.FILMS / len(table), cohort.TOGETHER
    often = expected > 1000
    assert np.all(together[often] / expected[often] > 0.7)
    assert np.all(together[often] / expected[often] < 1.5)
    assert abs((has.sum(1) == 0).mean() - 0.538) < 0.03
    for finding, share in zip(FINDINGS[:-1], cohort.AP_SHARE, strict=False):
        assert abs((table["view"][table[finding] == 1] == "AP").mean() - share) < 0.08
    assert abs(table["test"].mean() - cohort.TEST_SHARE) < 0.01


def test_constants_are_the_datasets_counts(nih_metadata):
    table = pd.read_csv(nih_metadata / "Data_Entry_2017_v2020.csv.gz")
    has = np.array([[finding in text.split("|") for finding in FINDINGS] for text in table["Finding Labels"]], int)
    np.testing.assert_array_equal(has.T @ has, cohort.TOGETHER)
    portable = (table["View Position"] == "AP").to_numpy()
    assert len(table) == cohort.FILMS
    assert portable.sum() == cohort.FILMS_AP
    np.testing.assert_allclose(has[portable].sum(0) / has.sum(0), cohort.AP_SHARE, atol=0.006)
    per_patient = np.minimum(table.groupby("Patient ID").size(), 12)
    np.testing.assert_allclose(np.bincount(per_patient)[1:] / len(per_patient), cohort.FILMS_PER_PATIENT, atol=0.002)
    assert abs((table["Patient Gender"] == "M").mean() - cohort.MALE) < 0.001


def test_least_raises_the_rare_findings_and_leaves_the_common():
    shares = cohort.sample_cohort(2000, seed=0, least=0.1)[list(FINDINGS)].mean()
    np.testing.assert_allclose(shares, np.maximum(cohort.PREVALENCE, 0.1), atol=0.001)


def test_a_patient_keeps_findings_and_build():
    table = cohort.sample_cohort(20_000, seed=1, least=0)
    again = (table["patient"].diff() == 0).to_numpy()
    before = table["Effusion"].shift(fill_value=0).to_numpy() == 1
    assert table["Effusion"][again & before].mean() > 2 * table["Effusion"].mean()
    first, second = (phantom.draw([], patient=7, follow_up=f, size=32) for f in (0, 1))
    assert first.body.half == second.body.half
    assert (first.pixels != second.pixels).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": 0},
        {"images": -5},
        {"images": 2.5},
        {"size": 0},
        {"size": -64},
        {"size": 10**5},
        {"seed": -1},
        {"least": -0.1},
        {"least": 0.9},
        {"least": float("nan")},
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        phantom.write(tmp_path / "set", **wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        phantom.write(tmp_path, 4, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="not an empty folder"):
        phantom.write(tmp_path / "mine.txt", 4, 32)


def test_an_interrupted_set_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom.drawing, "draw_film", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        phantom.write(tmp_path / "set", 4, 32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [1, 2, 5])
def test_the_smallest_sets_can_be_written(tmp_path, images):
    assert len(records.read(phantom.write(tmp_path / "set", images, 32))) == images


def test_default_is_made_once(monkeypatch):
    monkeypatch.setattr(phantom, "DEFAULT", phantom.DEFAULT | {"images": 6, "size": 32})
    folder = phantom.default()
    before = files(folder)
    monkeypatch.setattr(phantom, "write", None)
    assert phantom.default() == folder
    assert files(folder) == before


def test_two_processes_may_make_the_default_at_once(monkeypatch):
    monkeypatch.setattr(phantom, "DEFAULT", phantom.DEFAULT | {"images": 4, "size": 32})
    fill, raced = phantom._fill, []

    def lose_the_race(folder, films, **settings):
        fill(folder, films, **settings)
        if not raced:
            raced.append(True)
            phantom.default()

    monkeypatch.setattr(phantom, "_fill", lose_the_race)
    folder = phantom.default()
    assert len(records.read(folder)) == 4
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
