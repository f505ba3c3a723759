"""Records of a data folder in the NIH layout: one validated row per film, and the radiologists' boxes.

Columns: image (file name), path (absolute), patient, follow_up, age (years, NaN unknown), sex ("M", "F" or ""), view
("PA", "AP" or ""), dataset (who numbers the patients, "" where the folder does not say: see ``film_identity``), then
the 15 labels: uint8 where all are known, else float32 with NaN for unknown ones. In code, *films* are rows of this
table, *image* is a file name, *pixels* are grey values.

A data folder may be one folder deeper than it is named, and its parts may be in ``images/``: see ``places``.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, labels
from cxrlib.data import images, sources, tables
from cxrlib.data.tables import Assume, Refuse, keep_silent, refuse_row

TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv", "sample_labels.csv")
"""Names of the label table, best first. The last one is that of Kaggle's 5 % sample."""

BOXES = "BBox_List_2017.csv"
OTHER_BOXES = "BBox_List_2017_Official_NIH.csv"
"""Name of the box file in resized copies of the dataset."""

DATASET = "dataset.txt"
"""File of a data folder that holds one word: the dataset that numbers its patients, such as our-hospital."""

UNNAMED = "unnamed"
"""Dataset of patients whose dataset is unknown. No folder may use this name."""

BOX_PIXELS = 1024
"""Side of the original films in pixels. Boxes are in these pixels, also if the folder's films have another size."""

COLUMNS = ("image", "path", "patient", "follow_up", "age", "sex", "view", "dataset", *labels.LABELS)


def read(folder: str | Path, *, allow_missing: bool = False, uncertain: str = tables.UNKNOWN) -> pd.DataFrame:
    """Films of a data folder: the rows of its CSV, validated, with the path of each file.

    With ``allow_missing`` films without a file are left out, and ``films.attrs["missing"]`` lists them. ``uncertain``
    says what a label of -1 counts as, one of ``tables.UNCERTAIN``. A folder of another dataset than NIH's is read by
    ``sources``; its laterals are left out, and ``films.attrs["left_out"]`` counts them.
    Raises UserError if the folder, the CSV or a film is absent, or if a row of the CSV is wrong.
    """
    folder = Path(folder)
    if found := sources.other(folder):
        return found.read(dataset(folder), allow_missing=allow_missing, uncertain=uncertain)[list(COLUMNS)]
    films = read_csv(find_table(folder), uncertain=uncertain)
    names, files = films["image"], scan(folder)
    found, doubtful = files_of_films(names, files)
    if doubtful:
        raise UserError(f"{folder}: {len(doubtful)} films have no file of their own; first {doubtful[0]}; {ONE_FILE}")
    films["path"] = [files.get(found.get(name, ""), "") for name in names]
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


def read_csv(
    csv: str | Path,
    *,
    uncertain: str = tables.UNKNOWN,
    on_wrong: Refuse = refuse_row,
    on_assumed: Assume = keep_silent,
) -> pd.DataFrame:
    """Films of a label table (header of 2017 or 2020, gzip or not), validated, without path and dataset.

    ``uncertain`` is as for ``read``. ``on_assumed`` is told what was read in another than the dataset's form: see
    ``tables``. Raises UserError with file, line and value of the first wrong row. With another ``on_wrong`` that does
    not raise, wrong cells become 0, NaN, "" or no label.
    """
    csv, how = Path(csv), {"on_wrong": on_wrong, "on_assumed": on_assumed}
    cells = tables.read_cells(csv, **how)
    table = tables.film_columns(cells, csv, on_assumed)
    films = pd.DataFrame({"image": tables.parse_image_names(table["image"], csv, on_wrong=on_wrong)})
    films["patient"] = tables.parse_integers(table["patient"], csv, "Patient ID", **how)
    if cells.attrs["cut"]:
        _refuse_cut_patient(films.tail(1), csv, on_wrong)
    absent = [name for name in tables.OPTIONAL if name not in table]
    on_assumed("columns that the table does not have, unknown for all films", absent)
    for name in absent:
        table[name] = ""
    if "follow_up" in absent:
        films["follow_up"] = films.groupby("patient").cumcount().to_numpy(np.int64)
    else:
        films["follow_up"] = tables.parse_integers(table["follow_up"], csv, "Follow-up #", **how)
    films["age"] = tables.parse_ages(table["age"], csv, **how)
    films["sex"] = tables.parse_words(table["sex"], csv, "Patient Gender", tables.SEXES, **how)
    films["view"] = tables.parse_words(table["view"], csv, "View Position", tables.VIEWS, **how)
    matrix = None
    if "finding_labels" in table:
        matrix = tables.parse_labels(table["finding_labels"], csv, **how)
    if matrix is None or set(table.columns) & {*labels.LABELS}:
        matrix = tables.parse_finding_columns(table, csv, matrix, uncertain=uncertain, **how)
    matrix = pd.DataFrame(matrix, index=films.index, columns=list(labels.LABELS))
    return pd.concat([films, matrix], axis=1).reset_index(drop=True)


def _refuse_cut_patient(last: pd.DataFrame, csv: Path, on_wrong: Refuse) -> None:
    """Refuse the last row of a file without a last line end if its patient is the start of the one in the film's name.

    Such as patient 5 of film 00000051_001.png: the line was cut off in the middle of a cell.
    """
    own = last["patient"].astype(str)
    named = re.match(r"(\d{8})_\d{3}\.", last["image"].iloc[0])
    cut = own.map(lambda number: bool(named) and number != (whole := named[1].lstrip("0")) and whole.startswith(number))
    advice = "the film's name has another patient: the line was cut off; restore it"
    on_wrong(csv, own, cut.to_numpy(bool), "Patient ID", advice)


def places(folder: Path) -> list[Path]:
    """Folders that may hold the parts of a data folder, best first: itself, a folder in it, and ``images/`` in these.

    A folder in it is looked at only if the data folder lacks its table or its films. Raises UserError if there are
    several such folders and the data folder has neither.
    """
    result, parts = [folder], _has_table(folder) + _has_images(folder)
    if folder.is_dir() and parts < 2:
        inner = [path for path in sorted(folder.glob("*")) if path.is_dir() and os.access(path, os.R_OK | os.X_OK)]
        inner = [path for path in inner if not path.name.startswith((".", "images", "__MACOSX"))]
        below = [path for path in inner if _has_table(path) or _has_images(path)]
        if len(below) == 1:
            result += below
        elif below and not parts:
            names = ", ".join(path.name for path in below[:5])
            raise UserError(f"{folder} holds {len(below)} data folders ({names}); give one of them")
    return result + [place / "images" for place in result]


def find(folder: Path, names: Iterable[str]) -> Path | None:
    """Path of a part of a data folder: the first file in ``places`` with one of these names, else None."""
    return next((path for place in places(folder) for name in names if (path := place / name).is_file()), None)


def find_table(folder: Path) -> Path:
    """Path of a data folder's CSV. Raises UserError if the folder or the CSV is absent."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds {TABLES[0]} and images/")
    if found := sources.other(folder):
        return found.table
    if table := find(folder, _table_files()):
        return table
    raise UserError(f"{folder} holds no {TABLES[0]}; {_nearest_table(folder)}")


def _nearest_table(folder: Path) -> str:
    """Advice for a folder without a label table, from the CSVs that lie in it or beside it."""
    if any((folder.parent / name).is_file() for name in _table_files()):
        return f"give {folder.parent}, which holds the table"
    for csv in sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")]):
        try:
            tables.film_columns(tables.read_cells(csv, on_wrong=lambda *_: None), csv)
        except UserError as error:
            if "has no column" in str(error):
                return f"{error}. Take the table from the NIH download, or describe yours in {sources.mapping.FILE}"
        else:
            return f"{csv.name} has the columns of a label table: name it {TABLES[0]} if it is one"
    return "take it from the NIH download and put it beside images/"


def _table_files() -> list[str]:
    return [file for name in TABLES for file in (name, f"{name}.gz")]


def _has_table(folder: Path) -> bool:
    return any((place / name).is_file() for place in (folder, folder / "images") for name in _table_files())


def _has_images(folder: Path) -> bool:
    return any(path.is_dir() for path in folder.glob("images*"))


def rivals(folder: Path) -> str:
    """Warning about several label tables in a data folder that differ: which one is used. "" if there is none."""
    if sources.other(folder):
        return ""
    files = [path for place in places(folder) for name in _table_files() if (path := place / name).is_file()]
    first, *others = (path.relative_to(folder).as_posix() for path in files)
    others = [name for name, path in zip(others, files[1:], strict=True) if _content(path) != _content(files[0])]
    if not others:
        return ""
    return f"{first} is used, and {' and '.join(others)} beside it differs; remove the wrong file"


def _content(csv: Path) -> str:
    with suppress(UserError):
        return fingerprint(read_csv(csv).sort_values("image"))
    return ""


def find_boxes(folder: Path) -> Path | None:
    """Path of a data folder's box file, or None."""
    if found := sources.other(folder):
        return found.table if found.source.boxes else None
    return find(folder, (BOXES, f"{BOXES}.gz", OTHER_BOXES))


def find_dataset(folder: Path) -> Path | None:
    """Path of a data folder's ``dataset.txt``, or None."""
    if found := sources.other(folder):
        return file if (file := found.folder / DATASET).is_file() else None
    return find(folder, (DATASET,))


def dataset(folder: Path) -> str:
    """Name of the dataset in ``dataset.txt``; without this file that of a known dataset's own table, else "".

    Raises UserError if the name is not valid.
    """
    file = find_dataset(folder)
    if file is None:
        return sources.name_of(folder)
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
    """Label matrix of the films, (N, 15), in the order of ``labels.LABELS``.

    It is uint8 of 0 and 1 where all labels are known, else float32 with NaN for unknown ones.
    Raises UserError with the film's name for the first label that is none of these.
    """
    values = films[list(labels.LABELS)].to_numpy()
    unknown = pd.isna(values)
    wrong = ~((values == 0) | (values == 1) | unknown)
    if wrong.any():
        row, k = np.argwhere(wrong)[0]
        name = films["image"].iloc[row] if "image" in films else f"row {films.index[row]}"
        raise UserError(
            f"{name}: {labels.LABELS[k]} is {values[row, k]}, neither 0 nor 1 ({wrong.any(1).sum()} films with such "
            "labels); a label that is not known is NaN"
        )
    return values.astype(np.float32 if unknown.any() else np.uint8)


UNKNOWN_CODE = 255
"""Code of an unknown label in ``label_codes``."""


def label_codes(films: pd.DataFrame) -> np.ndarray:
    """``label_matrix`` in one byte per label, (N, 15) uint8: 0, 1, or ``UNKNOWN_CODE``."""
    matrix = label_matrix(films)
    if matrix.dtype == np.uint8:
        return matrix
    return np.nan_to_num(matrix, nan=UNKNOWN_CODE).astype(np.uint8)


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
    sha.update(label_codes(films).tobytes())
    if "dataset" in films and films["dataset"].any():  # without a name the fingerprint is the same as in older versions
        sha.update("\n".join(films["dataset"]).encode() + b"\0")
    return sha.hexdigest()[:16]


def read_boxes(folder: str | Path, *, on_wrong: Refuse = refuse_row, on_assumed: Assume = keep_silent) -> pd.DataFrame:
    """Boxes drawn by radiologists: image, finding, x, y, w, h in pixels of the original 1024² film.

    The table is empty if the folder has no box file. Raises UserError with the line of a wrong row.
    """
    if (found := sources.other(Path(folder))) and (boxes := found.boxes()) is not None:
        return boxes
    file, names = find_boxes(Path(folder)), ["image", "finding", "x", "y", "w", "h"]
    if file is None:
        return pd.DataFrame({name: pd.Series(dtype="str" if name in names[:2] else "float64") for name in names})
    raw = tables.read_cells(file, rows=False, on_wrong=on_wrong, on_assumed=on_assumed)  # a file without boxes is valid
    if raw.shape[1] < len(names):
        raise UserError(f"{file}: the header needs Image Index, Finding Label and the four columns of the box")
    boxes = raw.iloc[:, : len(names)].set_axis(names, axis=1)
    boxes["image"] = tables.parse_image_names(boxes["image"], file, unique=False, on_wrong=on_wrong)
    boxes["finding"] = tables.parse_box_findings(boxes["finding"], file, on_wrong)
    for name in names[2:]:
        boxes[name] = tables.parse_coordinates(boxes[name], file, name, on_wrong, on_assumed)
    return boxes.reset_index(drop=True)


def scale_boxes(boxes: pd.DataFrame, width: float, height: float) -> pd.DataFrame:
    """Boxes in the pixels of films of ``width`` x ``height``, such as a resized copy or a store."""
    across, down = width / BOX_PIXELS, height / BOX_PIXELS
    return boxes.assign(x=boxes.x * across, y=boxes.y * down, w=boxes.w * across, h=boxes.h * down)


def image_folders(folder: Path) -> Iterator[Path]:
    """Folders that may hold films: ``images*`` in a data folder, ``images*`` in these, and once more in ``images/``.

    They are those of the first of ``places`` that has any. For another dataset it is the folder of its tables.
    """
    if found := sources.other(folder):
        yield found.folder
        return
    for place in places(folder):
        if _has_images(place):
            for outer in filter(Path.is_dir, sorted(place.glob("images*"))):
                yield outer
                for inner in filter(Path.is_dir, sorted(outer.glob("images*"))):
                    yield inner
                    if outer.name == "images":  # the download's twelve folders, put into images/
                        yield from filter(Path.is_dir, sorted(inner.glob("images*")))
            return


ONE_FILE = "give each film one file, and one row"
"""Advice for films that could be several files, or files that could be several films."""


def files_of_films(names: Iterable[str], files: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """File name of each film that has a file, and the films for which it is ambiguous.

    A file of the film's own name counts first. Otherwise it is the file with another ending, such as .jpg for .png: it
    must be the only one, and of this film only.
    """
    names, files = list(names), set(files)
    found = {name: name for name in names if name in files}
    if len(found) == len(names):
        return found, []
    others, films = defaultdict(list), defaultdict(list)
    for name in sorted(files - found.keys()):
        others[stem(name)].append(name)
    for name in names:
        films[stem(name)].append(name)
    doubtful = []
    for name in names:
        candidates = others.get(stem(name), []) if name not in found else []
        if len(candidates) == 1 and len(films[stem(name)]) == 1:
            found[name] = candidates[0]
        elif candidates:
            doubtful.append(f"{name} ({' or '.join(candidates)})")
    return found, doubtful


def stem(name: str) -> str:
    """Name of a film without its ending."""
    return name.rpartition(".")[0]


def scan(folder: Path) -> dict[str, str]:
    """Path of each film as text, otherwise as ``find_images``: five times as fast for 112,120 films."""
    if found := sources.other(folder):
        rows = found.rows()
        return {name: path for name, path in zip(rows["image"], found.locate(rows)[0], strict=True) if path}
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
