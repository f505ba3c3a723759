"""Mapping file ``columns.toml``: any CSV of films, described in about ten lines.

    dataset = "our-hospital"        # one word: who numbers the patients
    table = "films.csv"             # the CSV, beside this file
    films = "png"                   # folder of the films; without it this folder
    path = "file"                   # from here on: the columns of the CSV
    patient = "mrn"
    view = "projection"
    sex = "gender"
    age = "years"

    [findings]
    Effusion = "pleural_effusion"   # a column, or several of which any counts
    Pneumonia = ["pneumonia", "bronchopneumonia"]

A cell of a finding is 1, 0, -1 (uncertain) or empty (unknown), or yes/no, true/false, positive/negative. ``[values]``
gives other words: ``positive``, ``negative``, ``uncertain`` and ``unknown``, each a list. Where one column names all
findings of a film, ``labels = "diagnoses"`` and ``separator = ";"`` say so, and ``[findings]`` has the words in it; a
finding that it does not name is 0, and an empty cell is unknown. ``follow_up`` (number of the visit) and ``part``
(train, val or test) are further columns, and ``[views]`` gives words for ``PA``, ``AP``, ``frontal`` and ``lateral``.
A finding that is not in ``[findings]`` is unknown.
"""

import difflib
import re
import tomllib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from cxrlib import UserError, labels
from cxrlib.data import tables as cells
from cxrlib.data.sources import film_rows
from cxrlib.data.sources.film_rows import Hear, Source, Tables, Words

FILE = "columns.toml"
TEXTS = (
    "dataset",
    "table",
    "films",
    "path",
    "patient",
    "view",
    "sex",
    "age",
    "follow_up",
    "part",
    "labels",
    "separator",
)
NEEDED = ("dataset", "table", "path")
COLUMNS = ("path", "patient", "view", "sex", "age", "follow_up", "part", "labels")
SECTIONS = {
    "findings": labels.LABELS,
    "values": ("positive", "negative", "uncertain", "unknown"),
    "views": ("PA", "AP", "frontal", "lateral"),
}

VALUES = {
    "positive": ("1", "1.0", "true", "yes", "y", "positive", "pos", "present"),
    "negative": ("0", "0.0", "false", "no", "n", "negative", "neg", "absent"),
    "uncertain": ("-1", "-1.0", "uncertain", "possible"),
    "unknown": ("", "nan", "na", "n/a", "unknown"),
}
VIEWS = {
    "PA": ("pa", "postero-anterior", "posteroanterior"),
    "AP": ("ap", "antero-posterior", "anteroposterior", "ap portable", "ap supine", "portable"),
    "frontal": ("frontal",),
    "lateral": ("lateral", "lat", "ll", "rl", "l"),
}
PARTS = {
    "": "",
    "TRAIN": "train",
    "TRAINING": "train",
    "VAL": "val",
    "VALID": "val",
    "VALIDATE": "val",
    "VALIDATION": "val",
    "TEST": "test",
}
"""Words for the parts, in capitals."""


def load(file: Path) -> dict[str, Any]:
    """Settings of a mapping file. Raises UserError for what is unknown, absent or of a wrong kind in it."""
    try:
        settings = tomllib.loads(file.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); see cxrlib/data/sources/mapping.py for an example") from None
    _check_names(file, "", settings, (*TEXTS, *SECTIONS))
    for name in TEXTS:
        if name in settings and not (isinstance(settings[name], str) and settings[name]):
            raise UserError(f'{file}: {name} is {settings[name]!r}; write it as text, such as {name} = "films"')
    for section, names in SECTIONS.items():
        if not isinstance(settings.setdefault(section, {}), dict):
            raise UserError(f"{file}: {section} is {settings[section]!r}; write a section [{section}]")
        _check_names(file, f"[{section}] ", settings[section], names)
        settings[section] = {name: _texts(file, name, value) for name, value in settings[section].items()}
    if absent := [name for name in NEEDED if name not in settings]:
        raise UserError(
            f"{file} does not say {' and '.join(absent)}; see cxrlib/data/sources/mapping.py for an example"
        )
    if not settings["findings"].keys() & {*labels.FINDINGS}:
        raise UserError(
            f'{file} maps none of the 14 findings; add a section [findings] with lines such as Effusion = "fluid"'
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,40}", settings["dataset"]) or settings["dataset"] == "unnamed":
        raise UserError(
            f"{file}: dataset is {settings['dataset']!r}; write one word of a-z and digits, such as our-hospital"
        )
    for name in ("table", "films"):
        place = PurePosixPath(settings.get(name, "."))
        if place.is_absolute() or ".." in place.parts:
            raise UserError(f"{file}: {name} is {settings[name]!r}; it must lie in the folder of this file")
    return settings


def _check_names(file: Path, where: str, given: dict, known: tuple[str, ...]) -> None:
    if wrong := [name for name in given if name not in known]:
        close = difflib.get_close_matches(wrong[0].lower(), [name.lower() for name in known], 1)
        near = next((f"; did you mean {name}?" for name in known if close and name.lower() == close[0]), "")
        what = "the findings are" if where.startswith("[findings]") else "it may say"
        raise UserError(f"{file}: {where}{wrong[0]!r} is unknown{near or ';'} {what} {', '.join(known)}")


def _texts(file: Path, name: str, value: Any) -> tuple[str, ...]:
    value = (value,) if isinstance(value, str | int | float) and not isinstance(value, bool) else value
    if (
        not isinstance(value, list | tuple)
        or not value
        or not all(isinstance(item, str | int | float) for item in value)
    ):
        raise UserError(f"{file}: {name} is {value!r}; write a text or a list of texts")
    return tuple(str(item) for item in value)


def find(folder: Path) -> Tables:
    """The mapping file of a folder, and the table that it names. Raises UserError if the one or the other is wrong."""
    file = folder / FILE
    if not file.is_file():
        return {}
    table = folder / load(file)["table"]
    if not table.is_file():
        raise UserError(f"{file} names the table {table.name}, which is not there")
    return {"labels": table, "mapping": file}


def source_of(tables: Tables) -> Source:
    """Source as the mapping file describes it."""
    settings = load(tables["mapping"])
    words = {name: Words(own, f"{FILE} of the folder") for name, own in settings["findings"].items()}
    words = {name: words[name] for name in labels.FINDINGS if name in words}
    doubts = []
    if "patient" not in settings:
        doubts.append(
            f"{FILE} names no column of patients: each film counts as a patient of its own, and a split may leak"
        )
    if "view" not in settings:
        doubts.append(f"{FILE} names no column of views: all films are taken as frontal")
    return replace(
        SOURCE,
        name=settings["dataset"],
        title=f"{settings['dataset']} ({FILE})",
        patients=f"by the column {settings['patient']}" if "patient" in settings else "unknown: no column is named",
        split=f"by the column {settings['part']}" if "part" in settings else "none; drawn by patient",
        words=words,
        doubts=tuple(doubts),
        locate=lambda folder, rows: locate(folder / settings.get("films", ""), rows),
    )


def read(tables: Tables, hear: Hear) -> pd.DataFrame:
    """Rows of the table that the mapping file describes. Raises UserError if a column that it names is not there."""
    file, settings = tables["labels"], load(tables["mapping"])
    table = cells.read_cells(file, on_wrong=hear.on_wrong, on_assumed=hear.on_assumed)
    _check_columns(table, file, tables["mapping"], settings)
    rows = film_rows.blank_rows(len(table))
    column = {name: table[settings[name]].str.strip() for name in COLUMNS if name in settings}
    path = column["path"].str.replace("\\", "/", regex=False).str.removeprefix("./")
    outside = path.map(lambda text: not text or text.startswith("/") or ".." in text.split("/") or ":" in text)
    advice = "expected the path of a film below the folder of films"
    hear.on_wrong(file, column["path"], outside.to_numpy(bool), settings["path"], advice)
    rows["file"] = rows["image"] = path.to_numpy(object)
    rows["patient"] = column["patient"].to_numpy(object) if "patient" in column else rows["image"]
    rows["follow_up"] = _follow_ups(column, rows["patient"], file, settings, hear)
    if "age" in column:
        rows["age"] = cells.parse_ages(column["age"], file, hear.on_wrong, hear.on_assumed)
    if "sex" in column:
        rows["sex"] = cells.parse_words(
            column["sex"], file, settings["sex"], cells.SEXES, hear.on_wrong, hear.on_assumed
        )
    if "view" in column:
        _add_views(rows, column["view"], file, settings, hear)
    if "part" in column:
        rows["part"] = film_rows.translate(column["part"], PARTS, file, hear)
    _add_labels(rows, table, file, settings, hear)
    return film_rows.check_rows(rows, file, hear)


def _check_columns(table: pd.DataFrame, file: Path, mapping: Path, settings: dict[str, Any]) -> None:
    named = [(name, settings[name]) for name in COLUMNS if name in settings]
    if "labels" not in settings:
        named += [(name, column) for name, columns in settings["findings"].items() for column in columns]
    for name, column in named:
        if list(table.columns).count(column) != 1:
            there = "twice" if column in table.columns else "not"
            shown = ", ".join(repr(header[:40]) for header in table.columns if header)
            raise UserError(
                f"{mapping}: {name} is the column {column!r}, which is {there} in {file.name}; it has {shown}"
            )


def _follow_ups(column: dict, patient: pd.Series, file: Path, settings: dict, hear: Hear) -> np.ndarray:
    if "follow_up" in column:
        return cells.parse_integers(column["follow_up"], file, settings["follow_up"], hear.on_wrong, hear.on_assumed)
    return patient.groupby(patient.to_numpy()).cumcount().to_numpy(np.int64)


def _add_views(rows: pd.DataFrame, column: pd.Series, file: Path, settings: dict, hear: Hear) -> None:
    """Add view and left_out. An empty cell may be a lateral, so it is left out unless the mapping has a word for it."""
    words = {"": film_rows.NO_VIEW}
    for source in (VIEWS, settings["views"]):
        words |= {word.strip().upper(): kind for kind, given in source.items() for word in given}
    kind = film_rows.translate(column, words, file, hear, settings["view"])
    rows["view"] = np.where(np.isin(kind, ("PA", "AP")), kind, "")
    rows["left_out"] = np.where(np.isin(kind, ("PA", "AP", "frontal", "")), "", kind)


def _add_labels(rows: pd.DataFrame, table: pd.DataFrame, file: Path, settings: dict, hear: Hear) -> None:
    if "labels" in settings:
        _add_named(rows, table[settings["labels"]], settings)
        return
    number = {"positive": 1.0, "negative": 0.0, "uncertain": -1.0, "unknown": np.nan}
    meaning = {word.strip().upper(): number[kind] for kind, words in VALUES.items() for word in words}
    meaning |= {word.strip().upper(): number[kind] for kind, words in settings["values"].items() for word in words}
    for name, columns in settings["findings"].items():
        values = np.stack(
            [film_rows.translate(table[column], meaning, file, hear) for column in columns]
        )  # (columns, N)
        rows[name] = any_of(values)


def any_of(values: np.ndarray) -> np.ndarray:
    """Label of films from several columns (K, N) of which any counts: 1, else -1, else NaN, and 0 if all are 0."""
    result = np.zeros(values.shape[1], np.float32)
    result[np.isnan(values).any(0)] = np.nan
    result[(values == -1).any(0)] = -1
    result[(values == 1).any(0)] = 1
    return result


def _add_named(rows: pd.DataFrame, column: pd.Series, settings: dict) -> None:
    """Add labels of a column that names a film's findings. An empty cell is unknown."""
    codes, values = cells.distinct_values(column)
    separator = settings.get("separator", labels.SEPARATOR)
    named = [{word.strip().casefold() for word in cell.split(separator) if word.strip()} for cell in values]
    for name, own in settings["findings"].items():
        wanted = {word.strip().casefold() for word in own}
        read = [float(not wanted.isdisjoint(words)) if words else np.nan for words in named]
        rows[name] = np.array(read, np.float32)[codes]


def locate(folder: Path, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Paths of the films: as the table says, or for bare names anywhere up to three folders below."""
    if rows["file"].str.contains("/", regex=False).any() or not folder.is_dir():
        return film_rows.by_path([folder], rows["file"])
    return film_rows.by_name(folder, rows["file"])


SOURCE = Source(
    name="mapping",
    title="any CSV with columns.toml",
    paper="the mapping file of the folder",
    table="the CSV that columns.toml names",
    films="as its column of paths says, below the folder that columns.toml names",
    views="its column of views; laterals and empty cells are left out",
    patients="its column of patients",
    split="its column of parts; without it drawn by patient",
    words={},
    find=find,
    read=read,
    locate=locate,
    named=r"",
)
