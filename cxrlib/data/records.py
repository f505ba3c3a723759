"""Table of a data folder in the NIH layout: one validated row per film.

*films* is this table everywhere in ``cxrlib``, *image* is a film's file name, and *pixels* are its grey values.
Columns: image, path (absolute), patient, follow_up, age (years, NaN unknown), sex ("M", "F" or ""), view ("PA", "AP" or
""), dataset (the dataset that numbers the patients, or "": see ``patients``), then the 15 labels as uint8. Messages
give the line of the CSV; its header is line 1.
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
"""Name of the box file in resized copies of the dataset."""

DATASET = "dataset.txt"
"""File of a data folder that holds one word: the dataset that numbers its patients, such as our-hospital."""

UNNAMED = "unnamed"
"""Dataset of patients whose dataset is unknown. No folder may use this name."""

BOX_PIXELS = 1024
"""Side of the original films in pixels. Boxes are in these pixels, also if the folder's films have another size."""

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
    """Films of a data folder: the rows of its CSV, validated, with the path of each file.

    With ``allow_missing`` films without a file are left out, and ``films.attrs["missing"]`` lists them.
    Raises UserError if the folder, the CSV or a film is absent, or if a row of the CSV is wrong.
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
            f"first {missing[0]}; complete the download, or go on without them with --allow-missing"
        )
    if len(missing) == len(films):
        raise UserError(f"{folder} holds none of the {len(films)} films of its CSV; look for an images folder")
    films = films[~absent].reset_index(drop=True)
    films.attrs["missing"] = missing
    return films[list(COLUMNS)]


def read_csv(csv: str | Path, *, on_wrong: tables.Refuse = tables.refuse) -> pd.DataFrame:
    """Films of ``Data_Entry_2017.csv`` (header of 2017 or 2020, gzip or not), validated, without path and dataset.

    Raises UserError with file, line and value of the first wrong row. With another ``on_wrong`` that does not raise,
    wrong cells become 0, NaN, "" or no label.
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
    """Path of a data folder's CSV. Raises UserError if the folder or the CSV is absent."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds {TABLES[0]} and images/")
    for name in TABLES:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise UserError(f"{folder} holds no {TABLES[0]}; take it from the NIH download and put it beside images/")


def rivals(folder: Path) -> str:
    """Warning about several label tables in a data folder that differ: which one is used. "" if there is none."""
    files = [path for name in TABLES for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    others = [path.name for path in files[1:] if _content(path) != _content(files[0])]
    if not others:
        return ""
    return f"{files[0].name} is used, and {' and '.join(others)} beside it differs; remove the wrong file"


def _content(csv: Path) -> str:
    with suppress(UserError):
        return fingerprint(read_csv(csv).sort_values("image"))
    return ""


def find_boxes(folder: Path) -> Path | None:
    """Path of a data folder's box file, or None."""
    candidates = (folder / name for name in (BOXES, f"{BOXES}.gz", OTHER_BOXES))
    return next((path for path in candidates if path.is_file()), None)


def dataset(folder: Path) -> str:
    """Name of the dataset in ``dataset.txt``, "" without this file. Raises UserError if the name is not valid."""
    file = folder / DATASET
    if not file.is_file():
        return ""
    try:
        word = file.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); write one word into it, or remove it") from None
    if word == UNNAMED or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", word):
        raise UserError(f"{file} holds {word[:60]!r}; write one word of a-z and digits, such as our-hospital")
    return word


def find_images(folder: str | Path) -> dict[str, Path]:
    """Path of each film by its file name. Looks in ``images/`` and ``images_001/images/`` … ``images_012/images/``.

    Two files with the same name and size count once. Raises UserError if their sizes differ.
    """
    return {name: Path(path) for name, path in scan(Path(folder)).items()}


def label_matrix(films: pd.DataFrame) -> np.ndarray:
    """Label matrix of the films, (N, 15) uint8 of 0 and 1, in the order of ``labels.LABELS``.

    Raises UserError with the film's name for the first label that is neither 0 nor 1. Unknown does not mean absent.
    """
    values = films[list(labels.LABELS)].to_numpy()
    wrong = ~((values == 0) | (values == 1))
    if wrong.any():
        row, k = np.argwhere(wrong)[0]
        name = films["image"].iloc[row] if "image" in films else f"row {films.index[row]}"
        raise UserError(
            f"{name}: {labels.LABELS[k]} is {values[row, k]}, neither 0 nor 1 ({wrong.any(1).sum()} films with such "
            "labels); leave out the films with unknown labels"
        )
    return values.astype(np.uint8)


def film_size(films: pd.DataFrame, sample: int = 20) -> str:
    """Most frequent size in a sample of the film files, such as "1024x1024". "" if no file is readable."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in films["path"].iloc[:: max(len(films) // sample, 1)]:
        with suppress(UserError):
            sizes[images.size(path)] += 1
    return "{}x{}".format(*sizes.most_common(1)[0][0]) if sizes else ""


def fingerprint(films: pd.DataFrame) -> str:
    """Fingerprint of the films in their order, 16 hex digits: names, patients, data, labels. Paths do not count."""
    sha = hashlib.sha256()
    for column in ("image", "sex", "view"):
        sha.update("\n".join(films[column]).encode() + b"\0")
    for column in ("patient", "follow_up"):
        sha.update(films[column].to_numpy("<i8").tobytes())
    sha.update(films["age"].to_numpy("<f8").round(4).tobytes())
    sha.update(label_matrix(films).tobytes())
    if "dataset" in films and films["dataset"].any():  # without a name the fingerprint is the same as in older versions
        sha.update("\n".join(films["dataset"]).encode() + b"\0")
    return sha.hexdigest()[:16]


def read_boxes(folder: str | Path, *, on_wrong: tables.Refuse = tables.refuse) -> pd.DataFrame:
    """Boxes drawn by radiologists: image, finding, x, y, w, h in pixels of the original 1024² film.

    The table is empty if the folder has no box file. Raises UserError with the line of a wrong row.
    """
    file, names = find_boxes(Path(folder)), ["image", "finding", "x", "y", "w", "h"]
    if file is None:
        return pd.DataFrame({name: pd.Series(dtype="str" if name in names[:2] else "float64") for name in names})
    raw = tables.cells(file, rows=False)  # a file without boxes is valid
    if raw.shape[1] < len(names):
        raise UserError(f"{file}: the header needs Image Index, Finding Label and the four columns of the box")
    boxes = raw.iloc[:, : len(names)].set_axis(names, axis=1)
    boxes["image"] = tables.image_names(boxes["image"], file, unique=False, on_wrong=on_wrong)
    boxes["finding"] = tables.box_findings(boxes["finding"], file, on_wrong)
    for name in names[2:]:
        boxes[name] = tables.coordinates(boxes[name], file, name, on_wrong)
    return boxes.reset_index(drop=True)


def scale_boxes(boxes: pd.DataFrame, width: float, height: float) -> pd.DataFrame:
    """Boxes in the pixels of films of ``width`` x ``height``, such as a resized copy or a store."""
    across, down = width / BOX_PIXELS, height / BOX_PIXELS
    return boxes.assign(x=boxes.x * across, y=boxes.y * down, w=boxes.w * across, h=boxes.h * down)


def image_folders(folder: Path) -> Iterator[Path]:
    """Folders that may hold films: ``images*`` in the data folder, and ``images*`` in these."""
    for outer in sorted(folder.glob("images*")):
        if outer.is_dir():
            yield outer
            yield from (inner for inner in sorted(outer.glob("images*")) if inner.is_dir())


def scan(folder: Path) -> dict[str, str]:
    """Path of each film as text, otherwise as ``find_images``: five times as fast for 112,120 films."""
    files: dict[str, str] = {}
    for subfolder in image_folders(folder):
        for entry in os.scandir(subfolder.absolute()):
            name = entry.name
            if name.startswith(".") or not name.lower().endswith(images.SUFFIXES) or not entry.is_file():
                continue
            first = files.setdefault(name, entry.path)
            if first is not entry.path and Path(first).stat().st_size != entry.stat().st_size:
                raise UserError(f"{first} and {entry.path} have the same name and differ; keep the right one")
    return files


def _columns(table: pd.DataFrame, csv: Path) -> pd.DataFrame:
    table = table.rename(columns=lambda name: _HEADERS.get(name.strip(), name))
    absent = [header for header, name in _HEADERS.items() if name not in table and header != "Patient Sex"]
    if absent:
        raise UserError(f"{csv} has no column {', '.join(map(repr, absent))}; its header must be that of {TABLES[0]}")
    repeated = any(f"{header}.1" in table for header in _HEADERS)  # pandas adds .1 to a repeated name
    table = table[list(dict.fromkeys(_HEADERS.values()))]
    if repeated or table.columns.has_duplicates:
        raise UserError(f"{csv} has a column twice; its header must be that of {TABLES[0]}")
    return table
