"""PadChest (Hospital San Juan, Alicante): one large CSV with the labels of each report as the text of a list.

The labels are terms of a tree, in which a term includes those below it (``trees_code.txt`` of the dataset's authors,
Bustos et al. 2020). A report's labels are complete: a term that is not in the list is negative. The text of the list
is parsed by a pattern and never executed.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib.data.sources import film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

_TREE = "Bustos et al., Medical Image Analysis 2020, label tree: "
_INFILTRATES = (
    "infiltrates",
    "interstitial pattern",
    "ground glass pattern",
    "reticular interstitial pattern",
    "reticulonodular interstitial pattern",
    "miliary opacities",
    "alveolar pattern",
    "consolidation",
    "air bronchogram",
)
WORDS = {
    "Atelectasis": Words(
        (
            "atelectasis",
            "total atelectasis",
            "lobar atelectasis",
            "segmental atelectasis",
            "laminar atelectasis",
            "round atelectasis",
            "atelectasis basal",
        ),
        _TREE + "atelectasis and all below",
    ),
    "Cardiomegaly": Words(("cardiomegaly",), _TREE + "cardiomegaly"),
    "Effusion": Words(
        (
            "pleural effusion",
            "loculated pleural effusion",
            "loculated fissural effusion",
            "hydropneumothorax",
            "empyema",
            "hemothorax",
        ),
        _TREE + "pleural effusion and all below",
    ),
    "Infiltration": Words(_INFILTRATES, _TREE + "infiltrates and all below"),
    "Mass": Words(("mass", "pulmonary mass"), _TREE + "mass of the lung; not breast, mediastinum, pleura, soft tissue"),
    "Nodule": Words(("nodule", "multiple nodules"), _TREE + "nodule and all below; not pseudonodule"),
    "Pneumonia": Words(
        ("pneumonia", "atypical pneumonia", "viral pneumonia", "covid 19"),
        _TREE + "pneumonia and all below but suspicions",
    ),
    "Pneumothorax": Words(("pneumothorax", "hydropneumothorax"), _TREE + "pneumothorax and all below"),
    "Consolidation": Words(("consolidation", "air bronchogram"), _TREE + "consolidation and all below"),
    "Edema": Words(("pulmonary edema",), _TREE + "pulmonary edema"),
    "Emphysema": Words(("emphysema",), _TREE + "emphysema; not subcutaneous emphysema"),
    "Fibrosis": Words(
        ("pulmonary fibrosis", "post radiotherapy changes", "asbestosis signs"),
        _TREE + "pulmonary fibrosis and all below",
    ),
    "Pleural_Thickening": Words(
        ("pleural thickening", "apical pleural thickening", "calcified pleural thickening"),
        _TREE + "pleural thickening and all below; not plaques",
    ),
    "Hernia": Words(("hiatal hernia",), _TREE + "hiatal hernia"),
}
SAYS_NOTHING = {"exclude", "suboptimal study"}
"""Labels of a report that says nothing of the chest. A film with no other label has unknown labels."""

VIEWS = {"PA": "PA", "AP": "AP", "AP_HORIZONTAL": "AP", "L": "", "COSTAL": "", "EXCLUDE": "", "": ""}
REASONS = {"L": "lateral", "COSTAL": "costal view", "EXCLUDE": "excluded by the dataset", "": film_rows.NO_VIEW}
SEXES = {"M": "M", "F": "F", "O": "", "": "", "NONE": "", "NAN": ""}

_LIST = re.compile(r"""\[\s*(?:(?:'[^'\\]*'|"[^"\\]*")\s*(?:,\s*(?:'[^'\\]*'|"[^"\\]*")\s*)*,?\s*)?\]""")
_ITEM = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")


def find(folder: Path) -> Tables:
    """The dataset's CSV of a folder."""
    names = ("PADCHEST_chest_x_ray_images_labels*.csv", "PADCHEST*.csv", "chest_x_ray_images_labels*.csv")
    file = film_rows.find_csv(folder, names, ("ImageID", "PatientID", "Projection", "Labels"))
    return {"labels": file} if file else {}


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of the CSV."""
    file = tables["labels"]
    repeated = ["PatientID", "Projection", "Labels"]
    optional = ["StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM"]
    table = film_rows.read_columns(file, ["ImageID"], repeated, hear, optional)
    rows = film_rows.blank_rows(len(table))
    rows["file"] = rows["image"] = table["ImageID"].str.strip()
    rows["patient"] = table["PatientID"].astype("str").str.strip()
    date, birth = (_numbers(table, name) for name in ("StudyDate_DICOM", "PatientBirth"))
    rows["follow_up"] = film_rows.visits(rows["patient"], np.nan_to_num(date))
    age = date // 10_000 - birth
    rows["age"] = np.where((age >= 0) & (age <= 120), age, np.nan)
    if "PatientSex_DICOM" in table:
        rows["sex"] = film_rows.translate(table["PatientSex_DICOM"], SEXES, file, hear)
    rows["view"] = film_rows.translate(table["Projection"], VIEWS, file, hear)
    rows["left_out"] = (
        table["Projection"].astype("str").str.strip().str.upper().map(REASONS).fillna("").to_numpy(object)
    )
    for name, values in _label_columns(table["Labels"], file, hear).items():
        rows[name] = values
    return film_rows.check_rows(rows, file, hear)


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    if name not in table:
        return np.full(len(table), np.nan)
    return pd.to_numeric(table[name].astype("str"), errors="coerce").to_numpy(float)


def _label_columns(column: pd.Series, file: Path, hear: Hear) -> dict[str, np.ndarray]:
    """Labels by finding, (N,) float32 each, from cells such as ``['pneumonia', 'nodule']``."""
    codes, cells = pd.factorize(column)
    parsed = [parse_list(str(cell)) for cell in cells]
    wrong = np.array([names is None for names in parsed], bool)
    hear.on_wrong(file, column.astype("str"), wrong[codes], "Labels", "expected a list such as ['pneumonia', 'nodule']")
    values = np.full((len(cells), len(WORDS)), np.nan, np.float32)
    for i, names in enumerate(parsed):
        if names and names - SAYS_NOTHING:
            values[i] = [not names.isdisjoint(words.own) for words in WORDS.values()]
    return dict(zip(WORDS, values[codes].T, strict=True))


def parse_list(text: str) -> set[str] | None:
    """Items of the text of a list of strings, in small letters; empty for an empty cell, None for another text."""
    if text.strip().lower() in ("", "nan"):
        return set()
    if not _LIST.fullmatch(text.strip()):
        return None
    items = ((one or other).strip().lower() for one, other in _ITEM.findall(text))
    return {item for item in items if item}


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films, in the folder or in folders below it, such as ``0/`` to ``54/``."""
    return film_rows.by_name(folder, rows["file"])


SOURCE = Source(
    name="padchest",
    title="PadChest",
    paper="Bustos et al., Medical Image Analysis 2020",
    table="PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
    films="<ImageID> in the folder, or in the folders 0 to 54",
    views="Projection PA, AP and AP_horizontal; L, COSTAL and EXCLUDE are left out",
    patients="by PatientID",
    split="none; drawn by patient",
    words=WORDS,
    find=find,
    read=read,
    locate=locate,
    named=r"\d{20,}[-_][\w-]+\.\w+",
)
