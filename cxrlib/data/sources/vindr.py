"""VinDr-CXR (two hospitals in Hanoi): ``train.csv`` of boxes, in which three of 17 radiologists read each film.

A finding is positive if more than half of the readers of the film marked it, negative if fewer did, and unknown on a
tie. The dataset gives each reader's marks and no consensus for these films (Nguyen et al. 2022), and a vote is the
usual way to make labels of them. So what only one of three readers saw counts as absent.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import labels
from cxrlib.data.sources import film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

_PAPER = "Nguyen et al., Scientific Data 2022, table 3"
WORDS = {
    "Atelectasis": Words(("Atelectasis",), _PAPER),
    "Cardiomegaly": Words(("Cardiomegaly",), _PAPER),
    "Effusion": Words(("Pleural effusion",), _PAPER),
    "Infiltration": Words(("Infiltration",), _PAPER),
    "Pneumothorax": Words(("Pneumothorax",), _PAPER),
    "Consolidation": Words(("Consolidation",), _PAPER),
    "Fibrosis": Words(("Pulmonary fibrosis",), _PAPER),
    "Pleural_Thickening": Words(("Pleural thickening",), _PAPER),
}
"""Classes that mean one of the 14 findings. "Nodule/Mass" does not say which of the two; both stay unknown."""

COLUMNS = {name: words.own[0] for name, words in WORDS.items()} | {labels.NO_FINDING: "No finding"}
OTHERS = ("Aortic enlargement", "Calcification", "ILD", "Lung Opacity", "Nodule/Mass", "Other lesion")
CLASSES = {name.upper(): name for name in (*COLUMNS.values(), *OTHERS)}


def find(folder: Path) -> Tables:
    """The table of boxes of a folder."""
    file = film_rows.find_csv(
        folder, ("train.csv", "annotations_train.csv"), ("image_id", "class_name", "rad_id", "x_min")
    )
    return {"boxes": file} if file else {}


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of the films, in the order in which the table first names them."""
    file = tables["boxes"]
    table = film_rows.read_columns(file, ["image_id"], ["class_name", "rad_id"], hear)
    films, names = pd.factorize(table["image_id"])
    rows = film_rows.blank_rows(len(names))
    rows["file"] = rows["image"] = [f"{name}.dicom" for name in names]
    rows["patient"] = names
    rows["view"] = "PA"  # the dataset has no others (Nguyen et al. 2022)
    said = film_rows.translate(table["class_name"], CLASSES, file, hear)
    readers = pd.factorize(table["rad_id"].astype("str"))[0]
    count = readers.max() + 1
    readings = np.bincount(np.unique(films * count + readers) // count, minlength=len(names))  # readers of each film
    for name, own in COLUMNS.items():
        marked = np.unique((films * count + readers)[said == own]) // count
        rows[name] = majority(np.bincount(marked, minlength=len(names)), readings)
    return film_rows.check_rows(rows, file, hear)


def majority(votes: np.ndarray, readers: np.ndarray) -> np.ndarray:
    """Label of films by their readers' votes, (N,) float32: 1 if more than half saw it, NaN for a tie, else 0."""
    return np.where(2 * votes == readers, np.nan, 2 * votes > readers).astype(np.float32)


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films, DICOM or PNG, in the folder or in ``train/``."""
    return film_rows.by_name(folder, rows["file"])


SOURCE = Source(
    name="vindr",
    title="VinDr-CXR",
    paper="Nguyen et al., VinDr-CXR, Scientific Data 2022",
    table="train.csv (a row for each box of each reader)",
    films="train/<image_id>.dicom, or PNG or JPEG of that name",
    views="all are PA",
    patients="unknown: the dataset has no patient ids",
    split="drawn by film",
    words=WORDS,
    find=find,
    read=read,
    locate=locate,
    named=r"[0-9a-f]{32}\.\w+",
    doubts=("VinDr-CXR has no patient ids: each film counts as a patient of its own, and a split may leak",),
)
