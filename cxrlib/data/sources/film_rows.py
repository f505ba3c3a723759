"""Film rows of a dataset's own table: reading, patient numbers, labels and film files, the same for every dataset.

A ``Source`` describes a dataset. Its ``read`` gives *rows*, one per film: file (path below the data folder, or only a
name), image (unique name of the film), patient (the dataset's own id as text), follow_up, age, sex, view ("PA", "AP"
or ""), left_out ("" for a frontal film, else why it is no film to read, such as "lateral"), part ("train", "val",
"test" or "" where the dataset has no split), and the 15 labels: 1, 0, -1 for uncertain, NaN for unknown.

Two rules hold for all datasets. *Not labelled there is unknown*: a finding for which a dataset has no word is NaN,
never 0. *No Finding* is the dataset's own where it has a column for it; else it is 1 or 0 only where all 14 are known.
It is not 0 already because one of them is present: then the films without it would be the unknown ones, and a network
could learn that the label is 0 always.
"""

import csv
import fnmatch
import gzip
import hashlib
import io
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxrlib import UserError, labels
from cxrlib.data import images, tables
from cxrlib.data.tables import Assume, Refuse, keep_silent, refuse_row

UNCERTAIN = tables.UNCERTAIN
"""What an uncertain label (-1) counts as: U-Ignore, U-Ones and U-Zeros of Irvin et al. 2019."""

NOT_MENTIONED = 0.0
"""Label of a finding that a report does not mention: an empty cell of CheXpert and MIMIC-CXR.

Most published work reads it as negative, among it the benchmark (Hosseinzadeh Taher et al. 2021) whose ResNet-50,
pretrained on CheXpert, is the best plain one on NIH; and NIH's own labels are 0 where a report is silent.
torchxrayvision (Cohen et al. 2022) reads it as unknown instead; set NaN here to follow it.
"""

NO_VIEW = "view not given"
"""Reason to leave out a film of which nobody knows whether it is a lateral."""

FIRST_HASH = 2**51
"""Lowest number of a patient whose id is no number. Ids of digits stay below it, and float64 holds all numbers."""


NUMBER = r"0*(\d{1,12})(?:\.0+)?"
"""Id of a patient that is a number. A spreadsheet may have written 75 as 75.0 or 075."""


class Words(NamedTuple):
    """Own words of a dataset for one of the 14 findings, and where it is written that they mean it."""

    own: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Hear:
    """Handlers of wrong cells and of what was assumed, as in ``tables``."""

    on_wrong: Refuse = refuse_row
    on_assumed: Assume = keep_silent


Tables = dict[str, Path]
"""Files of a dataset by their role. The first one is the label table."""


@dataclass(frozen=True)
class Source:
    """Dataset: how its folder is recognised, read and understood. All text is for people.

    name: one word, the namespace of its patients · title, paper: what it is · table, films, views, patients, split:
    where its labels and films lie, which films are read, how patients are told apart, which split it has · words: own
    words by finding, without the findings that it does not label · find: its tables in a folder, {} if the folder is
    not of this dataset · read: rows of the tables · locate: path of each row's film, "" where it is absent, and the
    doubtful ones · named: pattern of its film files' names · number: pattern of the number in a patient's id · doubts:
    what a result on it must be read with · boxes: rows of boxes
    """

    name: str
    title: str
    paper: str
    table: str
    films: str
    views: str
    patients: str
    split: str
    words: Mapping[str, Words]
    find: Callable[[Path], Tables]
    read: Callable[[Tables, Hear], pd.DataFrame]
    locate: Callable[[Path, pd.DataFrame], tuple[list[str], list[str]]]
    named: str
    number: str = NUMBER
    doubts: tuple[str, ...] = ()
    boxes: Callable[[Tables], pd.DataFrame] | None = None

    @property
    def unlabelled(self) -> list[str]:
        """Findings that the dataset does not label, in the order of ``labels.FINDINGS``."""
        return [name for name in labels.FINDINGS if name not in self.words]


def find_csv(folder: Path, names: Iterable[str], columns: Iterable[str]) -> Path | None:
    """The first file of these names (or with .gz) in a folder whose header has these columns, else None.

    A name may have ``*`` for any letters.
    """
    there = csv_names(folder)
    for name in names:
        for file in (one for pattern in (name, f"{name}.gz") for one in fnmatch.filter(there, pattern)):
            if {*columns} <= {*header_of(folder / file)}:
                return folder / file
    return None


def csv_names(folder: Path) -> tuple[str, ...]:
    """Names of the CSV files in a folder, sorted. A folder of 160,000 films is listed once, not for each dataset."""
    changed = folder.stat().st_mtime_ns if folder.is_dir() else 0
    recent = time.time_ns() - changed < 5_000_000_000  # a change within the same tick of the clock would be missed
    return _csv_names.__wrapped__(folder, changed) if recent else _csv_names(folder, changed)


@lru_cache(maxsize=64)
def _csv_names(folder: Path, _changed: int) -> tuple[str, ...]:
    try:
        return tuple(sorted(name for name in os.listdir(folder) if name.endswith((".csv", ".csv.gz"))))  # noqa: PTH208
    except OSError:
        return ()


def header_of(file: Path) -> list[str]:
    """Columns of a CSV, [] if it cannot be read. Only the first line is read."""
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8-sig") as text:
            return [name.strip() for name in next(csv.reader([text.readline(100_000)]), [])]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error):
        return []


def read_columns(
    file: Path, text: Iterable[str], repeated: Iterable[str], hear: Hear, optional: Iterable[str] = ()
) -> pd.DataFrame:
    """Columns of a large CSV as text: ``text`` as str, ``repeated`` as categories, which is faster where values repeat.

    ``optional`` columns are categories that may be absent. The index is the line number minus 2, as in ``tables``.
    Raises UserError for a file that is not readable, has no rows, or lacks a column.
    """
    content = tables.read_text(file, hear.on_assumed)
    names = [name.strip() for name in next(csv.reader([content.partition("\n")[0]]), [])]
    if not content.strip():
        raise UserError(f"{file} is empty; download it again")
    text, wanted = list(text), [*text, *repeated]
    if absent := [name for name in wanted if name not in names]:
        raise UserError(
            f"{file} has no column {', '.join(map(repr, absent))}; it has {', '.join(map(repr, names[:20]))}"
        )
    wanted += [name for name in optional if name in names]
    _check_widths(content, len(names), file, hear)
    try:
        table = pd.read_csv(
            _lines(content),
            header=None,  # the header is read as a row, so that no column is taken for one of numbers
            names=names,
            usecols=wanted,
            dtype={name: "str" if name in text else "category" for name in wanted},
            keep_default_na=False,
            na_values=[],
            index_col=False,
            on_bad_lines="skip",  # ``_check_widths`` has told of them
        )[wanted].iloc[1:]
    except (pd.errors.ParserError, ValueError) as error:
        raise UserError(f"{file} is not a readable CSV ({str(error).strip().splitlines()[-1]})") from None
    if not len(table):
        raise UserError(f"{file} has a header but no rows; download it again")
    return table.reset_index(drop=True)


def _lines(content: str) -> io.StringIO:
    return io.StringIO(content, newline="")


def _check_widths(content: str, width: int, file: Path, hear: Hear) -> None:
    """Report rows with more or fewer cells than the header. Without quotes, counting commas suffices to be sure."""
    lines = content.count("\n") + (not content.endswith("\n"))
    if '"' not in content and content.count(",") == lines * (width - 1):
        longest = max(map(str.count, content.splitlines(), [","] * lines), default=0)
        if longest == width - 1:
            return
    rows = [row for row in csv.reader(_lines(content)) if row][1:]
    cells = pd.Series([",".join(row)[:60] for row in rows])
    wrong = np.array([len(row) != width for row in rows], bool)
    hear.on_wrong(file, cells, wrong, "row", f"a row needs {width} cells, as the header has; restore the line")


def translate(
    column: pd.Series, meaning: Mapping[str, float | str], file: Path, hear: Hear, header: str = ""
) -> np.ndarray:
    """Meaning of each cell of a column, (N,): float32, or object for words. A cell that means nothing here is wrong.

    ``meaning`` has the words in capitals. Wrong cells become NaN or "".
    """
    codes, values = tables.distinct_values(column)
    words = values.str.upper()
    known = words.isin(list(meaning)).to_numpy(bool)
    shown = " or ".join(dict.fromkeys(repr(word) if word else "nothing" for word in meaning))
    hear.on_wrong(file, column, ~known[codes], header or str(column.name), f"expected {shown}")
    is_text = any(isinstance(value, str) for value in meaning.values())
    read = [meaning[word] if ok else ("" if is_text else np.nan) for word, ok in zip(words, known, strict=True)]
    return np.array(read, object if is_text else np.float32)[codes]


LABEL_CELLS = {"1.0": 1.0, "1": 1.0, "0.0": 0.0, "0": 0.0, "-1.0": -1.0, "-1": -1.0, "": NOT_MENTIONED}
"""Cells of CheXpert's and MIMIC-CXR's label columns."""


def blank_rows(count: int) -> pd.DataFrame:
    """Rows of ``count`` films of which nothing is known yet."""
    rows = pd.DataFrame({"file": "", "image": "", "patient": ""}, index=range(count))
    rows["follow_up"], rows["age"] = np.zeros(count, np.int64), np.full(count, np.nan)
    rows = rows.assign(sex="", view="", left_out="", part="")
    unknown = pd.DataFrame(np.full((count, len(labels.LABELS)), np.nan, np.float32), columns=list(labels.LABELS))
    return pd.concat([rows, unknown], axis=1)


def visits(patient: pd.Series, when: np.ndarray) -> np.ndarray:
    """Number of each film's visit among its patient's visits, from 0, (N,) int64. ``when`` (N,) orders the visits."""
    order = pd.DataFrame({"patient": pd.factorize(patient)[0], "when": when})
    return order.groupby("patient")["when"].rank("dense").fillna(1).to_numpy().astype(np.int64) - 1


def number_patients(ids: pd.Series, file: Path, number: str = NUMBER) -> np.ndarray:
    """Number of each film's patient, (N,) int64, from the dataset's own ids. The same id has the same number in any
    table.

    An id that ``number`` matches is the number in it. Another id is hashed (51 bits of SHA-256, from ``FIRST_HASH``),
    so the two kinds cannot meet. Raises UserError if two ids come out as one number.
    """
    codes, values = pd.factorize(ids)
    pattern = re.compile(number)
    numbers = np.fromiter(
        (int(match[1]) if (match := pattern.fullmatch(text)) else _hashed(text) for text in values),
        np.int64,
        len(values),
    )
    unique, first = np.unique(numbers, return_index=True)
    if len(unique) < len(numbers):
        again = np.setdiff1d(np.arange(len(numbers)), first)[0]
        same = values[int(np.flatnonzero(numbers == numbers[again])[0])]
        raise UserError(
            f"{file}: the patients {same!r} and {values[again]!r} both become number {numbers[again]}; "
            "are they one patient? Write their ids in one way"
        )
    return numbers[codes]


def _hashed(text: str) -> int:
    return FIRST_HASH + int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % FIRST_HASH


def finish(rows: pd.DataFrame, numbers: np.ndarray, uncertain: str) -> pd.DataFrame:
    """Films of rows that are frontal, without path and dataset: the columns of ``records``, labels as these say there.

    ``attrs["left_out"]`` counts the other rows by reason. Raises UserError for another word of ``uncertain``.
    """
    if uncertain not in UNCERTAIN:
        raise UserError(f"uncertain {uncertain!r} is unknown; choose {', '.join(UNCERTAIN)}")
    frontal = (rows["left_out"] == "").to_numpy()
    films = rows.loc[frontal, ["image", "follow_up", "age", "sex", "view"]].reset_index(drop=True)
    films.insert(1, "patient", numbers[frontal])
    matrix = rows.loc[frontal, list(labels.LABELS)].to_numpy(np.float32, copy=True)  # (N, 15)
    matrix[matrix == -1] = UNCERTAIN[uncertain]
    if np.isnan(rows[labels.NO_FINDING]).all():
        matrix[:, -1] = labels.no_finding(matrix[:, :-1])
    if not np.isnan(matrix).any():
        matrix = matrix.astype(np.uint8)
    films = pd.concat([films, pd.DataFrame(matrix, columns=list(labels.LABELS))], axis=1)
    films.attrs["left_out"] = {str(why): int(n) for why, n in rows.loc[~frontal, "left_out"].value_counts().items()}
    return films


def check_rows(rows: pd.DataFrame, file: Path, hear: Hear) -> pd.DataFrame:
    """The rows, after their film names and patients were found to be there, and each film to have one row."""
    hear.on_wrong(file, rows["image"], rows["image"].duplicated().to_numpy(), "film", "a film must have one row only")
    hear.on_wrong(file, rows["patient"], (rows["patient"] == "").to_numpy(), "patient", "expected the patient's id")
    return rows


def check_same_films(file: Path, known: np.ndarray, table: Path) -> None:
    """Raise UserError if a second table has a row for none of the films of the first; ``known`` (N,) bool says for
    which."""
    if not known.any():
        raise UserError(f"{file} is about none of the films in {table.name}; take both from one download")


def by_path(folders: Iterable[Path], files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Path of each file below the first of the folders that has it, with another ending if need be; "" if absent.

    Also names the films that could be several files.
    """
    folders, result, doubtful = [str(folder) for folder in folders], [], []
    there: dict[str, bool] = {}
    for file in files:
        path = next((path for base in folders if os.path.isfile(path := f"{base}/{file}")), "")  # noqa: PTH113 (fast)
        if not path:
            candidates = [path for base in folders for path in _other_endings(f"{base}/{file}", there)]
            path = candidates[0] if len(candidates) == 1 else ""
            if len(candidates) > 1:
                doubtful.append(f"{file} ({' or '.join(map(os.path.basename, candidates))})")
        result.append(path)
    return result, doubtful


def _is_there(folder: str, known: dict[str, bool]) -> bool:
    """Whether a folder exists. ``known`` keeps the answers; below an absent folder nothing is asked."""
    if folder not in known:
        above = os.path.dirname(folder)  # noqa: PTH120 (fast)
        known[folder] = (above == folder or _is_there(above, known)) and os.path.isdir(folder)  # noqa: PTH112 (fast)
    return known[folder]


def _other_endings(path: str, there: dict[str, bool]) -> list[str]:
    """Files with the path's name and another ending. ``there`` is as in ``_is_there``."""
    if not _is_there(os.path.dirname(path), there):  # noqa: PTH120 (fast)
        return []
    base = path[: -len(ending)] if (ending := _ending(path)) else path
    found = {base + other for other in images.SUFFIXES if os.path.isfile(base + other)}  # noqa: PTH113 (fast)
    return sorted(found)


def _ending(path: str) -> str:
    return next((ending for ending in images.SUFFIXES if path.lower().endswith(ending)), "")


def by_name(folder: Path, names: Iterable[str], depth: int = 3) -> tuple[list[str], list[str]]:
    """Path of each film in a folder or up to ``depth`` folders below it, found by its name; "" if absent.

    A file with another ending is the film's if it is the only one. Also names the films that could be several files.
    """
    exact, stems = defaultdict(list), defaultdict(list)
    for path, name in film_files(folder, depth):
        exact[name].append(path)
        stems[name[: -len(_ending(name))]].append(path)
    result, doubtful = [], []
    for name in names:
        ending = _ending(name)
        paths = exact.get(name) or stems.get(name[: -len(ending)] if ending else name, [])
        if len(paths) > 1 and len({os.path.getsize(path) for path in paths}) > 1:  # noqa: PTH202 (fast)
            doubtful.append(f"{name} ({' or '.join(os.path.relpath(path, folder) for path in paths)})")
        result.append(paths[0] if paths else "")
    return result, doubtful


def film_files(folder: Path, depth: int) -> Iterable[tuple[str, str]]:
    """Path and name of each film file in a folder and up to ``depth`` folders below it, sorted by folder."""
    folders = [(str(folder), 0)]
    while folders:
        place, level = folders.pop()
        below = []
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:  # a folder that may not be read: its films are missing
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(images.SUFFIXES):
                if entry.is_file():
                    yield entry.path, entry.name
            elif level < depth and entry.is_dir():
                below.append((entry.path, level + 1))
        folders += reversed(below)
