"""A data folder in the NIH layout, read into one table: a row per film, every row validated.

Columns: image (file name), path (absolute), patient, follow_up, age (years, NaN unknown), sex ("M", "F" or ""),
view ("PA", "AP" or ""), dataset (who numbers the patients, "" where the folder does not say: see ``patients``), then
the 15 labels as uint8. Messages name the line of the CSV, its header being line 1.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import labels
from cxrlib.data import images, tables
from cxrlib.errors import UserError

TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
BOXES = "BBox_List_2017.csv"
OTHER_BOXES = "BBox_List_2017_Official_NIH.csv"
"""What re-sized mirrors of the dataset call the file of boxes."""

DATASET = "dataset.txt"
"""File of a data folder with one word: the dataset that numbers its patients, such as our-hospital."""

UNNAMED = "unnamed"
"""No dataset's name: what the patients of a folder without one may be called where nothing tells whose they are."""

BOX_PIXELS = 1024
"""Boxes are in the pixels of the original 1024² films, whatever the size of the films at hand."""

_HEADERS = {
    "Image Index": "image",
    "Finding Labels": "finding_labels",
    "Follow-up #": "follow_up",
    "Patient ID": "patient",
    "Patient Age": "age",
    "Patient Gender": "sex",
    "Patient Sex": "sex",
    "View Position": "view",
}
COLUMNS = ("image", "path", "patient", "follow_up", "age", "sex", "view", "dataset", *labels.LABELS)


def read(folder: str | Path, *, allow_missing: bool = False) -> pd.DataFrame:
    """Read the films of a data folder: its CSV, validated, and where each film lies.

    With ``allow_missing`` films without a file are left out and named in ``films.attrs["missing"]``.
    Raises UserError where the folder, the CSV or a film is absent, or a row of the CSV is wrong.
    """
    folder = Path(folder)
    films = read_csv(find_table(folder))
    files = scan(folder)
    films["path"] = [files.get(name, "") for name in films["image"]]
    films["dataset"] = dataset(folder)
    absent = (films["path"] == "").to_numpy()
    missing = films.loc[absent, "image"].tolist()
    if missing and not allow_missing:
        raise UserError(
            f"{folder}: {len(missing)} of the {len(films)} films in its CSV are not under images/ or images_*/images/, "
            f"first {missing[0]}; complete the download, or go on with what is there by --allow-missing"
        )
    if len(missing) == len(films):
        raise UserError(f"{folder} holds none of the {len(films)} films of its CSV; look for an images folder")
    films = films[~absent].reset_index(drop=True)
    films.attrs["missing"] = missing
    return films[list(COLUMNS)]


def read_csv(csv: str | Path, *, on_wrong: tables.Refuse = tables.refuse) -> pd.DataFrame:
    """Read and validate ``Data_Entry_2017.csv`` (the header of 2017 or of 2020, gzip or not), without ``path``.

    Raises UserError naming file, line and value for the first row that is wrong; another ``on_wrong`` may note wrong
    rows and go on, and then gets 0, NaN, "" or no label in the wrong cells.
    """
    csv = Path(csv)
    table = _columns(tables.cells(csv), csv)
    films = pd.DataFrame({"image": tables.image_names(table["image"], csv, on_wrong=on_wrong)})
    films["patient"] = tables.integers(table["patient"], csv, "Patient ID", on_wrong)
    films["follow_up"] = tables.integers(table["follow_up"], csv, "Follow-up #", on_wrong)
    films["age"] = tables.ages(table["age"], csv, on_wrong)
    films["sex"] = tables.choice(table["sex"], csv, "Patient Gender", ("M", "F", ""), on_wrong)
    films["view"] = tables.choice(table["view"], csv, "View Position", ("PA", "AP", ""), on_wrong)
    matrix = tables.label_rows(table["finding_labels"], csv, on_wrong)
    matrix = pd.DataFrame(matrix, index=films.index, columns=list(labels.LABELS))
    return pd.concat([films, matrix], axis=1).reset_index(drop=True)


def find_table(folder: Path) -> Path:
    """Path of the CSV of a data folder. Raises UserError where the folder or the CSV is absent."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the one that holds {TABLES[0]} and images/")
    for name in TABLES:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise UserError(f"{folder} holds no {TABLES[0]}; it comes with the NIH download and belongs beside images/")


def rivals(folder: Path) -> str:
    """In words that a data folder holds several tables of labels that differ, and which one counts; "" where not."""
    found = [path for name in TABLES for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    others = [path.name for path in found[1:] if _content(path) != _content(found[0])]
    if not others:
        return ""
    return f"{found[0].name} counts, and {' and '.join(others)} beside it says otherwise; remove what is not meant"


def _content(csv: Path) -> str:
    with suppress(UserError):
        return fingerprint(read_csv(csv).sort_values("image"))
    return ""


def find_boxes(folder: Path) -> Path | None:
    """The file of boxes of a data folder, None where there is none."""
    found = (folder / name for name in (BOXES, f"{BOXES}.gz", OTHER_BOXES))
    return next((path for path in found if path.is_file()), None)


def dataset(folder: Path) -> str:
    """The dataset that a data folder says it is, "" where it says nothing. Raises UserError for no such word."""
    file = folder / DATASET
    if not file.is_file():
        return ""
    try:
        word = file.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); write one word into it, or remove it") from None
    if word == UNNAMED or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", word):
        raise UserError(f"{file} says {word[:60]!r}; give one word of small letters and digits, such as our-hospital")
    return word


def find_images(folder: str | Path) -> dict[str, Path]:
    """Where each film lies: ``images/``, ``images_001/images/`` … ``images_012/images/``, or a mix of both.

    Raises UserError where two files of one name differ in size; equal ones count once.
    """
    return {name: Path(path) for name, path in scan(Path(folder)).items()}


def label_matrix(films: pd.DataFrame) -> np.ndarray:
    """The labels of the films as (N, 15) uint8, in the order of ``labels.LABELS``.

    Raises UserError naming the film of the first label that is neither 0 nor 1: an unknown one is not an absent one.
    """
    values = films[list(labels.LABELS)].to_numpy()
    wrong = ~((values == 0) | (values == 1))
    if wrong.any():
        row, k = np.argwhere(wrong)[0]
        name = films["image"].iloc[row] if "image" in films else f"row {films.index[row]}"
        raise UserError(
            f"{name}: {labels.LABELS[k]} is {values[row, k]}, neither 0 nor 1 ({wrong.any(1).sum()} films with such "
            "labels); leave the films with unknown labels out"
        )
    return values.astype(np.uint8)


def film_size(films: pd.DataFrame, sample: int = 20) -> str:
    """Pixels of the films as they lie on the disk, such as "1024x1024": the usual size by the headers of a sample.

    "" where none of the sample can be read.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    for path in films["path"].iloc[:: max(len(films) // sample, 1)]:
        with suppress(UserError):
            sizes[images.size(path)] += 1
    return "{}x{}".format(*sizes.most_common(1)[0][0]) if sizes else ""


def fingerprint(films: pd.DataFrame) -> str:
    """16 hex digits for the films, their patients, data and labels, in this order; where they lie does not count."""
    sha = hashlib.sha256()
    for column in ("image", "sex", "view"):
        sha.update("\n".join(films[column]).encode() + b"\0")
    for column in ("patient", "follow_up"):
        sha.update(films[column].to_numpy("<i8").tobytes())
    sha.update(films["age"].to_numpy("<f8").round(4).tobytes())
    sha.update(label_matrix(films).tobytes())
    if "dataset" in films and films["dataset"].any():  # undeclared, a fingerprint is what it was before
        sha.update("\n".join(films["dataset"]).encode() + b"\0")
    return sha.hexdigest()[:16]


def read_boxes(folder: str | Path, *, on_wrong: tables.Refuse = tables.refuse) -> pd.DataFrame:
    """The radiologists' boxes: image, finding, x, y, w, h in pixels of the original 1024² film.

    An empty table where the folder has no box file. Raises UserError naming the line of a wrong row.
    """
    file, names = find_boxes(Path(folder)), ["image", "finding", "x", "y", "w", "h"]
    if file is None:
        return pd.DataFrame({name: pd.Series(dtype="str" if name in names[:2] else "float64") for name in names})
    raw = tables.cells(file, rows=False)  # a list without boxes is a list
    if raw.shape[1] < len(names):
        raise UserError(f"{file}: needs Image Index, Finding Label and four columns of the box in its header")
    boxes = raw.iloc[:, : len(names)].set_axis(names, axis=1)
    boxes["image"] = tables.image_names(boxes["image"], file, unique=False, on_wrong=on_wrong)
    boxes["finding"] = tables.box_findings(boxes["finding"], file, on_wrong)
    for name in names[2:]:
        boxes[name] = tables.coordinates(boxes[name], file, name, on_wrong)
    return boxes.reset_index(drop=True)


def scale_boxes(boxes: pd.DataFrame, width: float, height: float) -> pd.DataFrame:
    """The boxes in the pixels of films of ``width`` x ``height``, such as a re-sized mirror or a store."""
    across, down = width / BOX_PIXELS, height / BOX_PIXELS
    return boxes.assign(x=boxes.x * across, y=boxes.y * down, w=boxes.w * across, h=boxes.h * down)


def image_folders(folder: Path) -> Iterator[Path]:
    """The folders that may hold films: ``images*`` of the data folder, and ``images*`` inside those."""
    for outer in sorted(folder.glob("images*")):
        if outer.is_dir():
            yield outer
            yield from (inner for inner in sorted(outer.glob("images*")) if inner.is_dir())


def scan(folder: Path) -> dict[str, str]:
    """``find_images`` as plain text, which takes a fifth of the time for 112,120 films."""
    found: dict[str, str] = {}
    for place in image_folders(folder):
        for entry in os.scandir(place.absolute()):
            name = entry.name
            if name.startswith(".") or not name.lower().endswith(images.SUFFIXES) or not entry.is_file():
                continue
            first = found.setdefault(name, entry.path)
            if first is not entry.path and Path(first).stat().st_size != entry.stat().st_size:
                raise UserError(f"{first} and {entry.path} have one name and differ; keep the right one")
    return found


def _columns(table: pd.DataFrame, csv: Path) -> pd.DataFrame:
    table = table.rename(columns=lambda name: _HEADERS.get(name.strip(), name))
    absent = [header for header, name in _HEADERS.items() if name not in table and header != "Patient Sex"]
    if absent:
        raise UserError(f"{csv} has no column {', '.join(map(repr, absent))}; its header must be that of {TABLES[0]}")
    repeated = any(f"{header}.1" in table for header in _HEADERS)  # as pandas renames them
    table = table[list(dict.fromkeys(_HEADERS.values()))]
    if repeated or table.columns.has_duplicates:
        raise UserError(f"{csv} names a column twice; its header must be that of {TABLES[0]}")
    return table
