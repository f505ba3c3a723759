"""A data folder of DICOM films: the same run as of PNGs, from the check to the batches."""

import cv2
import dicom_files
import numpy as np
import pytest
import samples

from cxrlib import UserError
from cxrlib.data import check, dicom, images, records, splits, store

pytest.importorskip("pydicom", reason="pydicom is not installed")


def as_dicom(folder):
    """The folder with every film as an 8-bit DICOM file of the same name and the ending .dcm, named so in the CSV."""
    for file in sorted((folder / "images").glob("*.png")):
        pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        (folder / "images" / f"{file.stem}.dcm").write_bytes(dicom_files.encode(dicom_files.dataset(pixels)))
        file.unlink()
    for table in (*folder.glob("*.csv"), *folder.glob("*.txt")):
        table.write_text(table.read_text().replace(".png", ".dcm"))
    return folder


def test_a_folder_of_dicom_films_is_checked_stored_and_split_as_one_of_pngs(tmp_path):
    png = samples.write_folder(tmp_path / "png")
    other = as_dicom(samples.write_folder(tmp_path / "dicom"))
    found = check.folder(other, progress=False)
    assert found.fit, found
    films, twins = records.read(other), records.read(png)
    assert list(films["image"]) == [name.replace(".png", ".dcm") for name in twins["image"]]
    pixels = []
    for i, table in enumerate((films, twins)):
        made = store.build(table, 16, folder=tmp_path / f"store{i}", progress=False)
        pixels.append(np.empty((len(table), 16, 16), np.uint8))
        made.gather(made.rows(table), pixels[-1])
    assert np.array_equal(*pixels)
    assert len(splits.make(films, other).train) == len(splits.make(twins, png).train)


def test_images_know_a_dicom_film_by_its_content_and_its_size_by_its_header(tmp_path):
    pixels = np.arange(30 * 20, dtype=np.uint8).reshape(30, 20)
    for name in ("film.dcm", "film.png"):  # the second is named wrongly, as in many archives
        (tmp_path / name).write_bytes(dicom_files.encode(dicom_files.dataset(pixels)))
        assert np.array_equal(images.read(tmp_path / name), dicom.read(tmp_path / name))
        assert images.size(tmp_path / name) == (20, 30)
    (tmp_path / "text.dcm").write_text("no film at all, whatever its name says")
    with pytest.raises(UserError, match=r"text\.dcm"):
        images.read(tmp_path / "text.dcm")


def test_a_table_of_png_names_finds_dicom_films_of_the_same_stem(tmp_path):
    folder = samples.write_folder(tmp_path / "png")
    names = list(records.read(folder)["image"])
    tables = {file: file.read_text() for file in (*folder.glob("*.csv"), *folder.glob("*.txt"))}
    as_dicom(folder)
    for file, text in tables.items():
        file.write_text(text)
    films = records.read(folder)
    assert list(films["image"]) == names
    assert {path[-4:] for path in films["path"]} == {".dcm"}
    assert len(store.build(films, 16, folder=tmp_path / "store", progress=False).present(films)) == len(names)
