"""OpenI (Indiana University): reports in XML with terms by a human coder, and a CSV of the films' DICOM headers.

Labels are the ``major`` MeSH terms of a report (``ecgen-radiology/*.xml``), which a coder chose: ``Pleural
Effusion/left/small`` has a heading and qualifiers. A coded report is complete: a heading that it does not have is
negative. Views come from ``nlmcxr_dicom_metadata.csv``. Kaggle's copy has both in ``indiana_reports.csv`` and
``indiana_projections.csv``. Without reports the labels are unknown.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from cxrlib import UserError
from cxrlib.data.sources import film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

_PAPER = "Demner-Fushman et al., JAMIA 2016, coding of findings"
WORDS = {
    "Atelectasis": Words(("Pulmonary Atelectasis",), _PAPER),
    "Cardiomegaly": Words(("Cardiomegaly",), _PAPER + "; borderline is uncertain"),
    "Effusion": Words(("Pleural Effusion",), _PAPER),
    "Infiltration": Words(("Infiltrate",), _PAPER),
    "Mass": Words(("Mass",), _PAPER + "; of the lung or of no named place"),
    "Nodule": Words(("Nodule",), _PAPER),
    "Pneumonia": Words(("Pneumonia",), _PAPER),
    "Pneumothorax": Words(("Pneumothorax", "Hydropneumothorax"), _PAPER),
    "Consolidation": Words(("Consolidation",), _PAPER),
    "Edema": Words(("Pulmonary Edema",), _PAPER),
    "Emphysema": Words(("Pulmonary Emphysema", "Emphysema"), _PAPER),
    "Fibrosis": Words(("Pulmonary Fibrosis",), _PAPER),
    "Pleural_Thickening": Words(("Thickening/pleura",), _PAPER),
    "Hernia": Words(("Hernia, Hiatal",), _PAPER),
}
UNCODED = "no indexing"
"""Term of a report that was not coded: its labels are unknown."""

UNCERTAIN_QUALIFIER = "borderline"
LARGEST_REPORT = 1_000_000
"""Bytes of an XML file above which it is no report of this dataset (the longest has 20,000)."""

REPORTS = ("ecgen-radiology", "NLMCXR_reports", "NLMCXR_reports/ecgen-radiology", "reports")
POSITIONS = {"PA": "PA", "AP": "AP"}
FRONTAL_ROWS = ("['L', 'F']", "['R', 'F']")
"""Patient Orientation of a film whose rows run from side to side (DICOM PS3.3, C.7.6.1.1.1); in a lateral they run
from front to back."""


def find(folder: Path) -> Tables:
    """Header values and the folder of reports, or Kaggle's two CSVs."""
    found = {
        "headers": film_rows.find_csv(
            folder, ["nlmcxr_dicom_metadata.csv"], ("imageid", "Patient ID", "View Position")
        ),
        "projections": film_rows.find_csv(folder, ["indiana_projections.csv"], ("uid", "filename", "projection")),
        "reports": film_rows.find_csv(folder, ["indiana_reports.csv"], ("uid", "MeSH")),
    }
    found = {role: file for role, file in found.items() if file}
    if "headers" in found and (place := next((folder / name for name in REPORTS if _has_reports(folder / name)), None)):
        found["xml"] = place
    return found if found.keys() & {"headers", "projections"} else {}


def _has_reports(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*.xml"), None) is not None


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of the films in the table of views, with the labels of their reports."""
    kaggle = "projections" in tables
    file = tables["projections" if kaggle else "headers"]
    rows, report = _read_projections(file, hear) if kaggle else _read_headers(file, hear)
    terms = _read_terms(tables, hear)
    if terms:
        film_rows.check_same_films(tables.get("reports") or tables["xml"], np.isin(report, list(terms)), file)
    for name, words in WORDS.items():
        values = {key: label(found, words.own) for key, found in terms.items()}
        rows[name] = np.fromiter((values.get(key, np.nan) for key in report), np.float32, len(rows))
    return film_rows.check_rows(rows, file, hear)


def _read_headers(file: Path, hear: Hear) -> tuple[pd.DataFrame, list[str]]:
    repeated = ["Patient ID", "View Position", "Patient Orientation"]
    table = film_rows.read_columns(file, ["imageid"], repeated, hear, ["Patient's Birth Date", "Study Date"])
    rows = film_rows.blank_rows(len(table))
    rows["file"] = rows["image"] = table["imageid"].str.strip() + ".png"
    rows["patient"] = table["Patient ID"].astype("str").str.strip()
    position, orientation = (table[name].astype("str").str.strip() for name in repeated[1:])
    rows["view"] = position.map(POSITIONS).fillna("").to_numpy(object)
    side = np.where(orientation == "", film_rows.NO_VIEW, "lateral")
    side = np.where(orientation.isin(FRONTAL_ROWS), "", side)  # used only where the view position is empty
    rows["left_out"] = np.where(rows["view"] != "", "", np.where(position == "", side, "lateral"))
    days = [
        pd.to_datetime(table.get(name, pd.Series("", table.index)).astype("str"), format="%Y%m%d", errors="coerce")
        for name in ("Study Date", "Patient's Birth Date")
    ]
    years = ((days[0] - days[1]).dt.days / 365.25).to_numpy(float)
    rows["age"] = np.where((years >= 0) & (years <= 120), np.floor(years), np.nan)
    rows["follow_up"] = film_rows.visits(rows["patient"], days[0].to_numpy("datetime64[D]").astype(np.int64))
    report = table["imageid"].str.extract(r"^CXR(\d+)_", expand=False).fillna("")
    hear.on_wrong(
        file, table["imageid"], (report == "").to_numpy(), "imageid", "expected a name such as CXR1_IM-0001-3001"
    )
    return rows, report.tolist()


def _read_projections(file: Path, hear: Hear) -> tuple[pd.DataFrame, list[str]]:
    table = film_rows.read_columns(file, ["uid", "filename"], ["projection"], hear)
    rows = film_rows.blank_rows(len(table))
    rows["file"] = rows["image"] = table["filename"].str.strip()
    rows["patient"] = table["uid"].str.strip()
    sides = {"FRONTAL": "", "LATERAL": "lateral"}
    rows["left_out"] = film_rows.translate(table["projection"], sides, file, hear)
    return rows, rows["patient"].tolist()


def _read_terms(tables: Tables, hear: Hear) -> dict[str, list[str]]:
    """Major terms of each report, in small letters, by the report's number. Reports that are not coded are left out."""
    terms: dict[str, list[str]] = {}
    if "reports" in tables:
        table = film_rows.read_columns(tables["reports"], ["uid", "MeSH"], [], hear)
        terms = {uid.strip(): cell.split(";") for uid, cell in zip(table["uid"], table["MeSH"], strict=True)}
    elif "xml" in tables:
        terms = {file.stem: _terms_of(file) for file in sorted(tables["xml"].glob("*.xml"))}
    terms = {key: [term.strip().lower() for term in found if term.strip()] for key, found in terms.items()}
    return {key: found for key, found in terms.items() if found and UNCODED not in found}


def _terms_of(file: Path) -> list[str]:
    """Major MeSH terms of an XML report. Raises UserError if it cannot be read."""
    try:
        if file.stat().st_size > LARGEST_REPORT:
            raise UserError(f"{file} is larger than a report can be; remove it")
        root = ElementTree.fromstring(file.read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{file} is not a readable report ({error}); download it again") from None
    return [term.text or "" for term in root.iter("major")]


def label(terms: list[str], own: tuple[str, ...]) -> float:
    """Label of a report for these headings: 1, 0, or -1 if all its terms with them are borderline."""
    found = [term for term in terms if any(_is_under(term, heading.lower()) for heading in own)]
    if found and all(UNCERTAIN_QUALIFIER in term.split("/") for term in found):
        return -1.0
    return float(bool(found))


def _is_under(term: str, heading: str) -> bool:
    """Whether a term has a heading. A mass must be of the lung, or have no place."""
    if not re.match(rf"{re.escape(heading)}(?:/|$)", term):
        return False
    elsewhere = ("mediastinum", "breast", "pleura", "soft tissue", "abdomen", "paratracheal")
    return heading != "mass" or not any(place in term.split("/") for place in elsewhere)


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films, in ``NLMCXR_png/`` or another folder below."""
    return film_rows.by_name(folder, rows["file"])


SOURCE = Source(
    name="openi",
    title="OpenI (Indiana University)",
    paper="Demner-Fushman et al., JAMIA 2016",
    table="nlmcxr_dicom_metadata.csv and ecgen-radiology/*.xml, or indiana_projections.csv and indiana_reports.csv",
    films="NLMCXR_png/CXR1_IM-0001-3001.png",
    views="View Position PA and AP, or rows from side to side; laterals and films without a view are left out",
    patients="by Patient ID, which numbers reports",
    split="none; drawn by patient",
    words=WORDS,
    find=find,
    read=read,
    locate=locate,
    named=r"CXR\d+_IM-\d{4}-\d{4}\w*\.\w+",
    doubts=("OpenI numbers reports, not people: two reports of one person count as two patients",),
)
