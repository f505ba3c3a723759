"""Records of a data folder in the NIH layout: one validated row per film, and the radiologists' boxes.

Columns: image (file name), path (absolute), patient, follow_up, age (years, NaN unknown), sex ("M", "F" or ""),
view ("PA", "AP" or ""), dataset (who numbers the patients, "" where the folder does not say: see ``film_identity``),
then the 15 labels as uint8. In code, *films* are rows of this table, *image* is a file name, *pixels* are grey values.

Every check looks at whole columns; where values repeat, at the distinct ones only. Messages name the file, the line
(the header is line 1) and the value of the first wrong row, and count the others.
"""

import gzip
import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, labels
from cxrlib.data import images

OLDEST = 120
"""Highest valid age in years. Higher ages are typing errors (the file of 2017 has 412) and count as unknown."""

FILE_NAME = r"[^\W_][\w .()+-]*\.(?:png|jpe?g)"
_AGE = r"(?P<number>\d{1,4})(?:\.0+)?(?P<unit>[YMD]?)"
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}


def read_cells(csv: Path, *, rows: bool = True) -> pd.DataFrame:
    """Cells of a CSV as text. The index is the line number minus 2. Blank lines are dropped.

    Raises UserError if the CSV is not readable or, with ``rows``, has no rows.
    """
    try:
        table = pd.read_csv(
            csv,
            dtype=str,
            keep_default_na=False,
            na_values=[],
            index_col=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            usecols=lambda name: True,
        )
    except pd.errors.EmptyDataError:
        raise UserError(f"{csv} is empty; download it again") from None
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{csv} is not a readable CSV ({str(error).strip().splitlines()[-1]})") from None
    except (OSError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{csv} cannot be read ({error}); download it again") from None
    table = table.fillna("")
    table = table[(table.iloc[:, 0] != "") | (table.iloc[:, 1:] != "").any(axis=1)]
    if rows and table.empty:
        raise UserError(f"{csv} has a header but no rows; download it again")
    return table


Refuse = Callable[[Path, pd.Series, np.ndarray, str, str], None]
"""Handler of wrong cells: (file, column, wrong rows (N,) bool, header of the column, advice for the user)."""


def refuse_row(csv: Path, column: pd.Series, wrong: np.ndarray, header: str, advice: str) -> None:
    """Raise UserError for the first row where ``wrong`` is True, if there is one."""
    if wrong.any():
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise UserError(f"{csv}, {first_line(column, wrong)}{more}: {header} {column[wrong].iloc[0]!r}; {advice}")


def first_line(column: pd.Series, wrong: np.ndarray) -> str:
    """Line of the first wrong row, such as "line 17". The header is line 1."""
    return f"line {column.index[int(np.argmax(wrong))] + 2}"


def distinct_values(column: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Codes (N,) of the rows and the distinct values, stripped. There are far fewer values than rows to validate."""
    codes, values = pd.factorize(column)
    return codes, pd.Series(values, dtype="str").str.strip()


def parse_image_names(column: pd.Series, csv: Path, unique: bool = True, on_wrong: Refuse = refuse_row) -> pd.Series:
    valid = column.str.fullmatch(FILE_NAME, case=False).to_numpy(bool)
    on_wrong(csv, column, ~valid, "Image Index", "expected a plain file name such as 00000001_000.png")
    if unique:
        duplicates = column.duplicated().to_numpy()
        on_wrong(csv, column, duplicates, "Image Index", "a film must have one row only; delete the others")
    return column


def parse_integers(column: pd.Series, csv: Path, header: str, on_wrong: Refuse = refuse_row) -> np.ndarray:
    codes, values = distinct_values(column)
    valid = values.str.fullmatch(r"[0-9]{1,12}").to_numpy(bool)
    on_wrong(csv, column, ~valid[codes], header, "expected a whole number of 0 or more")
    return values.where(valid, "0").astype("int64").to_numpy()[codes]


def parse_ages(column: pd.Series, csv: Path, on_wrong: Refuse = refuse_row) -> np.ndarray:
    """Ages in years, float64. The file of 2017 also has 058Y, 013M or 009D. Empty and above ``OLDEST`` become NaN."""
    codes, values = distinct_values(column)
    parts = values.str.upper().str.extract(f"^(?:{_AGE})$")
    number = pd.to_numeric(parts["number"], errors="coerce").to_numpy(float)
    wrong = np.isnan(number) & (values != "").to_numpy()
    on_wrong(csv, column, wrong[codes], "Patient Age", "expected years such as 58 or 058Y")
    years = number * parts["unit"].map(_YEARS).to_numpy(float)
    return np.where(years > OLDEST, np.nan, years)[codes]


def parse_choice(
    column: pd.Series, csv: Path, header: str, allowed: tuple[str, ...], on_wrong: Refuse = refuse_row
) -> np.ndarray:
    codes, values = distinct_values(column)
    values = values.str.upper()
    advice = "expected " + " or ".join(value or "nothing" for value in allowed)
    on_wrong(csv, column, ~values.isin(allowed).to_numpy()[codes], header, advice)
    return values.to_numpy(object)[codes]


def parse_labels(column: pd.Series, csv: Path, on_wrong: Refuse = refuse_row) -> np.ndarray:
    """Label matrix of a column, (N, 15) uint8. Each distinct cell (836 in the dataset) is encoded once."""
    codes, values = pd.factorize(column)
    encoded = np.zeros((len(values), len(labels.LABELS)), np.uint8)
    advice: dict[int, str] = {}
    for i, text in enumerate(values):
        try:
            encoded[i] = labels.encode(text)
        except UserError as error:
            advice[i] = str(error)
    wrong = np.isin(codes, list(advice))
    on_wrong(csv, column, wrong, "Finding Labels", next(iter(advice.values()), ""))
    return encoded[codes]


def parse_box_findings(column: pd.Series, csv: Path, on_wrong: Refuse = refuse_row) -> np.ndarray:
    codes, values = distinct_values(column)
    names = values.map(lambda name: labels.ALIASES.get(name, name))
    on_wrong(
        csv, column, ~names.isin(labels.FINDINGS).to_numpy()[codes], "Finding Label", "expected one of the 14 findings"
    )
    return names.to_numpy(object)[codes]


def parse_coordinates(column: pd.Series, csv: Path, name: str, on_wrong: Refuse = refuse_row) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(float)
    on_wrong(csv, column, ~np.isfinite(numbers), f"box {name}", "expected a number of pixels")
    if name in "wh":
        on_wrong(csv, column, numbers <= 0, f"box {name}", "expected more than 0")
    return numbers


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


def read_csv(csv: str | Path, *, on_wrong: Refuse = refuse_row) -> pd.DataFrame:
    """Films of ``Data_Entry_2017.csv`` (header of 2017 or 2020, gzip or not), validated, without path and dataset.

    Raises UserError with file, line and value of the first wrong row. With another ``on_wrong`` that does not raise,
    wrong cells become 0, NaN, "" or no label.
    """
    csv = Path(csv)
    table = _columns(read_cells(csv), csv)
    films = pd.DataFrame({"image": parse_image_names(table["image"], csv, on_wrong=on_wrong)})
    films["patient"] = parse_integers(table["patient"], csv, "Patient ID", on_wrong)
    films["follow_up"] = parse_integers(table["follow_up"], csv, "Follow-up #", on_wrong)
    films["age"] = parse_ages(table["age"], csv, on_wrong)
    films["sex"] = parse_choice(table["sex"], csv, "Patient Gender", ("M", "F", ""), on_wrong)
    films["view"] = parse_choice(table["view"], csv, "View Position", ("PA", "AP", ""), on_wrong)
    matrix = parse_labels(table["finding_labels"], csv, on_wrong)
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


def read_boxes(folder: str | Path, *, on_wrong: Refuse = refuse_row) -> pd.DataFrame:
    """Boxes drawn by radiologists: image, finding, x, y, w, h in pixels of the original 1024² film.

    The table is empty if the folder has no box file. Raises UserError with the line of a wrong row.
    """
    file, names = find_boxes(Path(folder)), ["image", "finding", "x", "y", "w", "h"]
    if file is None:
        return pd.DataFrame({name: pd.Series(dtype="str" if name in names[:2] else "float64") for name in names})
    raw = read_cells(file, rows=False)  # a file without boxes is valid
    if raw.shape[1] < len(names):
        raise UserError(f"{file}: the header needs Image Index, Finding Label and the four columns of the box")
    boxes = raw.iloc[:, : len(names)].set_axis(names, axis=1)
    boxes["image"] = parse_image_names(boxes["image"], file, unique=False, on_wrong=on_wrong)
    boxes["finding"] = parse_box_findings(boxes["finding"], file, on_wrong)
    for name in names[2:]:
        boxes[name] = parse_coordinates(boxes[name], file, name, on_wrong)
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
