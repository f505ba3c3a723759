"""RSNA Pneumonia Detection Challenge 2018: ``stage_2_train_labels.csv`` with boxes, DICOM films of 1024 x 1024 pixels.

One finding of the 14 is labelled: pneumonia, as an opacity that radiologists took for it.
``stage_2_detailed_class_info.csv`` says which films are normal. Age, sex and view are in the films' headers; a CSV of
them (``*dicom_headers*.csv``) is used if it is there.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import labels
from cxrlib.data import tables as cells
from cxrlib.data.sources import film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

WORDS = {"Pneumonia": Words(("Target",), "Shih et al., Radiology: AI 2019: opacity suspicious for pneumonia")}
TARGETS = {"0": 0.0, "1": 1.0}
CLASSES = {"NORMAL": 1.0, "NO LUNG OPACITY / NOT NORMAL": 0.0, "LUNG OPACITY": 0.0}
"""Class of a film, and its "No Finding". Without the classes it is unknown for all films."""
SEXES = {"M": "M", "F": "F", "O": "", "": ""}
VIEWS = {"PA": "PA", "AP": "AP", "": ""}


def find(folder: Path) -> Tables:
    """Labels, classes and header values of a folder."""
    found = {
        "labels": film_rows.find_csv(folder, ["stage_2_train_labels.csv"], ("patientId", "x", "width", "Target")),
        "classes": film_rows.find_csv(folder, ["stage_2_detailed_class_info.csv"], ("patientId", "class")),
        "headers": film_rows.find_csv(folder, ["*dicom_headers*.csv"], ("PatientID", "PatientSex", "PatientAge")),
    }
    return {role: file for role, file in found.items() if file} if found["labels"] else {}


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of the films, in the order in which the labels first name them."""
    file = tables["labels"]
    table = film_rows.read_columns(file, ["patientId"], ["Target"], hear)
    films, names = pd.factorize(table["patientId"])
    target = film_rows.translate(table["Target"], TARGETS, file, hear)
    positive = np.bincount(films, target == 1, len(names)) > 0
    advice = "it is 0 here and 1 in another row of this film; restore the line"
    hear.on_wrong(file, table["patientId"], positive[films] & (target == 0), "Target", advice)
    rows = film_rows.blank_rows(len(names))
    rows["file"] = rows["image"] = [f"{name}.dcm" for name in names]
    rows["patient"], rows["Pneumonia"] = names, positive.astype(np.float32)
    if "classes" in tables:
        _add_classes(rows, tables["classes"], file, hear)
    if "headers" in tables:
        _add_headers(rows, tables["headers"], file, hear)
    return film_rows.check_rows(rows, file, hear)


def _add_classes(rows: pd.DataFrame, file: Path, labels_file: Path, hear: Hear) -> None:
    table = film_rows.read_columns(file, ["patientId"], ["class"], hear)
    normal = pd.Series(film_rows.translate(table["class"], CLASSES, file, hear), table["patientId"])
    normal = normal[~normal.index.duplicated()].reindex(rows["patient"]).to_numpy(np.float32)
    film_rows.check_same_films(file, ~np.isnan(normal), labels_file)
    other = pd.Series(rows["patient"].to_numpy())
    contradicts = (normal == 1) & (rows["Pneumonia"] == 1).to_numpy()
    hear.on_wrong(
        file, other, contradicts, "class of film", "it is Normal and has Target 1; take both files from one download"
    )
    rows[labels.NO_FINDING] = normal


def _add_headers(rows: pd.DataFrame, file: Path, labels_file: Path, hear: Hear) -> None:
    table = film_rows.read_columns(file, ["PatientID"], ["PatientSex", "PatientAge"], hear, ["ViewPosition"])
    table = table.drop_duplicates("PatientID").set_index("PatientID")
    film_rows.check_same_films(file, rows["patient"].isin(table.index).to_numpy(), labels_file)
    here = table.reindex(rows["patient"]).reset_index(drop=True)
    blank = {name: here[name].astype("object").fillna("").astype("str") for name in here}
    rows["age"] = cells.parse_ages(blank["PatientAge"], file, hear.on_wrong, hear.on_assumed)
    rows["sex"] = film_rows.translate(blank["PatientSex"], SEXES, file, hear, "PatientSex")
    if "ViewPosition" in blank:
        rows["view"] = film_rows.translate(blank["ViewPosition"], VIEWS, file, hear, "ViewPosition")


def boxes(tables: Tables) -> pd.DataFrame:
    """Boxes of opacities as boxes of Pneumonia: image, finding, x, y, w, h in pixels of the film, which has 1024²."""
    table = pd.read_csv(tables["labels"], dtype={"patientId": "str"})
    table = table[table["Target"] == 1]
    boxes = table[["x", "y", "width", "height"]].set_axis(["x", "y", "w", "h"], axis=1).astype("float64")
    boxes.insert(0, "image", table["patientId"] + ".dcm")
    boxes.insert(1, "finding", "Pneumonia")
    return boxes.reset_index(drop=True)


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films, in ``stage_2_train_images/`` or another folder below."""
    return film_rows.by_name(folder, rows["file"])


SOURCE = Source(
    name="rsna",
    title="RSNA Pneumonia Challenge 2018",
    paper="Shih et al., Radiology: Artificial Intelligence 2019",
    table="stage_2_train_labels.csv, stage_2_detailed_class_info.csv",
    films="stage_2_train_images/<patientId>.dcm",
    views="all are frontal; PA or AP only with a CSV of the headers",
    patients="unknown: a patientId is of one film",
    split="drawn by film",
    words=WORDS,
    find=find,
    read=read,
    locate=locate,
    named=r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\.\w+",
    doubts=(
        "RSNA's patientId is of one film: each film counts as a patient of its own, and a split may leak",
        "RSNA's films are films of NIH ChestX-ray14 under other names: a network that was trained on NIH has seen them",
    ),
    boxes=boxes,
)
