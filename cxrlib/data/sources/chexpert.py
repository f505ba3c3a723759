"""CheXpert (Stanford), small and full: ``train.csv`` and ``valid.csv``, labels mined from reports.

The labeler marks a finding as positive (1), negative (0), uncertain (-1), or not mentioned (empty): see
``film_rows.UNCERTAIN`` and ``film_rows.NOT_MENTIONED``. ``valid.csv`` was labelled by three radiologists and has 0 and
1 only.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import labels
from cxrlib.data import tables as cells
from cxrlib.data.sources import film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

_PAPER = "Irvin et al., AAAI 2019, table 1"
WORDS = {
    "Atelectasis": Words(("Atelectasis",), _PAPER),
    "Cardiomegaly": Words(("Cardiomegaly",), _PAPER),
    "Effusion": Words(("Pleural Effusion",), _PAPER),
    "Pneumonia": Words(("Pneumonia",), _PAPER),
    "Pneumothorax": Words(("Pneumothorax",), _PAPER),
    "Consolidation": Words(("Consolidation",), _PAPER),
    "Edema": Words(("Edema",), _PAPER),
}
"""Columns that mean one of the 14 findings. "Lung Lesion" is mass or nodule, "Pleural Other" is thickening among
others, "Lung Opacity" holds infiltration among others: none of them says which, so these findings stay unknown."""

COLUMNS = {name: words.own[0] for name, words in WORDS.items()} | {labels.NO_FINDING: "No Finding"}
SEXES = {"MALE": "M", "FEMALE": "F", "UNKNOWN": "", "": ""}
SIDES = {"FRONTAL": "", "LATERAL": "lateral"}
VIEWS = {"AP": "AP", "PA": "PA", "LL": "", "RL": "", "": ""}
"""View positions. 17 films are called frontal and have LL or RL; their column Frontal/Lateral decides, as it does in
the paper."""

_PATH = re.compile(r"(?:.*/)?(\w+/(patient\d{1,12})/study(\d{1,6})/[\w-]+\.(?:jpe?g|png|dcm|dicom))", re.IGNORECASE)
"""Path of a film: the film's name, from train or valid on, with the patient and the number of the study."""


def find(folder: Path) -> Tables:
    """``train.csv`` and ``valid.csv`` of a CheXpert folder."""
    wanted = ("Path", "Frontal/Lateral", "AP/PA", "Pleural Effusion")
    files = {name: film_rows.find_csv(folder, [f"{name}.csv"], wanted) for name in ("train", "valid")}
    return {name: file for name, file in files.items() if file}


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of ``train.csv`` and, as part "test", of ``valid.csv``."""
    parts = [_read_part(file, "test" if role == "valid" else "train", hear) for role, file in tables.items()]
    return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)


def _read_part(file: Path, part: str, hear: Hear) -> pd.DataFrame:
    repeated = ["Sex", "Age", "Frontal/Lateral", "AP/PA", *COLUMNS.values()]
    table = film_rows.read_columns(file, ["Path"], repeated, hear)
    rows = film_rows.blank_rows(len(table))
    matches = list(map(_PATH.fullmatch, table["Path"].tolist()))
    wrong = np.array([match is None for match in matches], bool)
    advice = "expected a path such as CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
    hear.on_wrong(file, table["Path"], wrong, "Path", advice)
    names = [match.groups() if match else ("", "", "0") for match in matches]
    rows["file"] = rows["image"] = [name for name, _, _ in names]
    rows["patient"] = [patient for _, patient, _ in names]
    rows["follow_up"] = [int(study) for _, _, study in names]
    rows["age"] = cells.parse_ages(table["Age"], file, hear.on_wrong, hear.on_assumed)
    rows["sex"] = film_rows.translate(table["Sex"], SEXES, file, hear)
    rows["view"] = film_rows.translate(table["AP/PA"], VIEWS, file, hear)
    rows["left_out"] = film_rows.translate(table["Frontal/Lateral"], SIDES, file, hear)
    rows["part"] = part
    for name, column in COLUMNS.items():
        rows[name] = film_rows.translate(table[column], film_rows.LABEL_CELLS, file, hear)
    return film_rows.check_rows(rows, file, hear)


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films, below ``train/`` and ``valid/`` of the folder."""
    return film_rows.by_path([folder], rows["file"])


SOURCE = Source(
    name="chexpert",
    title="CheXpert",
    paper="Irvin et al., CheXpert, AAAI 2019",
    table="train.csv, valid.csv",
    films="train/patient00001/study1/view1_frontal.jpg",
    views="rows that say Frontal; the laterals are left out",
    patients="by patient00001 in the path",
    split="valid.csv, labelled by radiologists, is the test part; without it drawn by patient",
    words=WORDS,
    find=find,
    read=read,
    locate=locate,
    number=r"patient0*(\d{1,12})",
    named=r"view\d+_(?:frontal|lateral)\.\w+",
)
