"""MIMIC-CXR-JPG (Beth Israel Deaconess, PhysioNet): CheXpert's labels by study, views and dates by film.

Tables: ``mimic-cxr-2.0.0-chexpert.csv`` (labels), ``-metadata.csv`` (views, needed) and ``-split.csv`` (official
parts), each gzipped or not, of any version. With MIMIC-IV's ``patients.csv`` beside them, films have age and sex.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError
from cxrlib.data.sources import chexpert, film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

_PAPER = "Johnson et al., MIMIC-CXR-JPG, arXiv 1901.07042 (CheXpert's labeler)"
WORDS = {name: Words(words.own, _PAPER) for name, words in chexpert.WORDS.items()}

VIEWS = {"PA": "PA", "AP": "AP"}
PARTS = {"TRAIN": "train", "VALIDATE": "val", "TEST": "test"}


def find(folder: Path) -> Tables:
    """Label table, metadata, split and MIMIC-IV's patients of a folder."""
    found = {
        "labels": film_rows.find_csv(
            folder, ["mimic-cxr-*-chexpert.csv"], ("subject_id", "study_id", "Pleural Effusion")
        ),
        "metadata": film_rows.find_csv(
            folder, ["mimic-cxr-*-metadata.csv"], ("dicom_id", "subject_id", "ViewPosition")
        ),
        "split": film_rows.find_csv(folder, ["mimic-cxr-*-split.csv"], ("dicom_id", "split")),
        "patients": film_rows.find_csv(folder, ["patients.csv"], ("subject_id", "gender", "anchor_age", "anchor_year")),
    }
    return {role: file for role, file in found.items() if file} if found["labels"] else {}


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of the films in the metadata. A study without a row of labels has unknown labels."""
    if "metadata" not in tables:
        folder = tables["labels"].parent
        raise UserError(f"{folder} holds no mimic-cxr-2.0.0-metadata.csv; its views tell laterals apart, put it there")
    file = tables["metadata"]
    repeated = ["study_id", "subject_id", "ViewPosition", "StudyDate", "StudyTime"]
    films = film_rows.read_columns(file, ["dicom_id"], repeated, hear)
    rows = film_rows.blank_rows(len(films))
    subject, study = (films[name].astype("str") for name in ("subject_id", "study_id"))
    for column in (subject, study):
        hear.on_wrong(file, column, ~column.str.fullmatch(r"\d{1,12}").to_numpy(bool), column.name, "expected a number")
    rows["image"] = films["dicom_id"] + ".jpg"
    places = zip(subject, study, rows["image"], strict=True)
    rows["file"] = [f"p{patient[:2]}/p{patient}/s{number}/{image}" for patient, number, image in places]
    rows["patient"] = subject
    when = [
        pd.to_numeric(films[name].astype("str"), errors="coerce").to_numpy(float) for name in ("StudyDate", "StudyTime")
    ]
    rows["follow_up"] = film_rows.visits(subject, np.nan_to_num(when[0]) * 1e6 + np.nan_to_num(when[1]))
    view = films["ViewPosition"].astype("str").str.strip().str.upper()
    rows["view"] = view.map(VIEWS).fillna("").to_numpy(object)
    rows["left_out"] = np.where(rows["view"] != "", "", np.where(view == "", film_rows.NO_VIEW, "lateral or oblique"))
    film_rows.check_same_films(tables["labels"], _add_labels(rows, study, tables["labels"], hear), file)
    if "split" in tables:
        film_rows.check_same_films(tables["split"], _add_parts(rows, tables["split"], hear), file)
    if "patients" in tables:
        _add_people(rows, when[0] // 10_000, tables["patients"], hear)
    return film_rows.check_rows(rows, file, hear)


def _add_labels(rows: pd.DataFrame, study: pd.Series, file: Path, hear: Hear) -> np.ndarray:
    """Add the labels. Returns whether each film's study has any, (N,) bool."""
    table = film_rows.read_columns(file, ["study_id"], list(chexpert.COLUMNS.values()), hear)
    hear.on_wrong(
        file, table["study_id"], table["study_id"].duplicated().to_numpy(), "study_id", "expected one row a study"
    )
    at = pd.Index(table["study_id"]).drop_duplicates().get_indexer(study)  # (N,), -1 for a study without labels
    first = ~table["study_id"].duplicated().to_numpy()
    for name, column in chexpert.COLUMNS.items():
        values = film_rows.translate(table[column], film_rows.LABEL_CELLS, file, hear)[first]
        rows[name] = np.where(at < 0, np.float32(np.nan), values[at])
    return at >= 0


def _add_parts(rows: pd.DataFrame, file: Path, hear: Hear) -> np.ndarray:
    """Add the official parts. Returns whether each film has one, (N,) bool."""
    table = film_rows.read_columns(file, ["dicom_id"], ["split"], hear)
    part = pd.Series(film_rows.translate(table["split"], PARTS, file, hear), table["dicom_id"] + ".jpg")
    rows["part"] = part[~part.index.duplicated()].reindex(rows["image"]).fillna("").to_numpy(object)
    return (rows["part"] != "").to_numpy()


def _add_people(rows: pd.DataFrame, year: np.ndarray, file: Path, hear: Hear) -> None:
    """Add sex, and age at the film: MIMIC-IV has the age in one (shifted) year."""
    table = film_rows.read_columns(file, ["subject_id"], ["gender", "anchor_age", "anchor_year"], hear)
    table = table.drop_duplicates("subject_id").set_index("subject_id").reindex(rows["patient"])
    rows["sex"] = table["gender"].astype("str").map({"M": "M", "F": "F"}).fillna("").to_numpy(object)
    anchor, then = (pd.to_numeric(table[name].astype("str"), errors="coerce") for name in ("anchor_age", "anchor_year"))
    rows["age"] = anchor.to_numpy(float) + year - then.to_numpy(float)


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films, below ``files/`` or the folder itself."""
    return film_rows.by_path([folder / "files", folder], rows["file"])


SOURCE = Source(
    name="mimic",
    title="MIMIC-CXR-JPG",
    paper="Johnson et al., MIMIC-CXR, Scientific Data 2019",
    table="mimic-cxr-2.0.0-chexpert.csv, -metadata.csv, -split.csv",
    films="files/p10/p10000032/s50414267/<dicom_id>.jpg",
    views="PA and AP; other and empty view positions are left out",
    patients="by subject_id",
    split="train, validate and test of mimic-cxr-2.0.0-split.csv; without it drawn by patient",
    words=WORDS,
    find=find,
    read=read,
    locate=locate,
    named=r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}\.\w+",
)
