"""Radiologists' labels of NIH films: 4,376 films that at least three radiologists read together, beside our labels.

They are of Majkowska et al., Chest Radiograph Interpretation with Deep Learning Models (Radiology 2020), and are
published by Google, who asks for a short form before the download: see ``SOURCE``. The workbook does not bundle them.
The terms are NIH's (``LICENCE``).
Set ``test`` has 1,962 films of the official test part, set ``val`` 2,414 films of the training and validation part.
The films were chosen so that findings are more frequent than in the whole dataset.

A finding of theirs is broader than one of ours: ``GROUPS`` says which of our labels belong to it. Fracture has none.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, paths, randomness
from cxrlib.data import records, splits, tables

FILES = ("google2019_nih-chest-xray-labels.csv", "google2019_nih-chest-xray-labels.csv.gz")
"""Names of a file with both sets, as torchxrayvision keeps it."""

FOLDER = "four_findings_expert_labels"
"""Google's folder of the two files. Many people make its name the beginning of the files' names."""

SET_FILES: Mapping[str, str] = {"test": "test_labels.csv", "val": "validation_labels.csv"}
"""Google's file of each set. Without the folder's name such a file counts if it has the findings' columns only: others
have a ``test_labels.csv`` of their own, and so has Google's folder of all fourteen findings."""

SOURCE = "https://cloud.google.com/healthcare-api/docs/resources/public-datasets/nih-chest#additional_labels"
"""Page on which Google offers the labels."""

LICENCE = (
    "no restrictions on use; link nihcc.app.box.com/v/ChestXray-NIHCC, cite Wang et al. (CVPR 2017) and Majkowska et "
    "al. (Radiology 2020), and name the NIH Clinical Center as the source"
)
"""Terms of use, in short, as the page of ``SOURCE`` states them."""

PUBLISHED: Mapping[str, int] = {"test": 1962, "val": 2412}
"""Films of each set by Google's page. The merged file of torchxrayvision has two more in ``val``."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Pneumothorax": ("Pneumothorax",),
    "Nodule or mass": ("Nodule", "Mass"),
    "Airspace opacity": ("Infiltration", "Consolidation", "Pneumonia", "Edema"),
}
"""Findings of the radiologists, and which of our labels belong to each, as the paper compares them."""

MADE_UP = "MADE UP"
"""Beginning of the source of labels that ``made_up`` gave."""

WORDS = {"YES": 1, "NO": 0, "1": 1, "0": 0, "TRUE": 1, "FALSE": 0}
SETS = ("test", "val")

STATED: Mapping[str, str] = {"sex": "patient gender", "view": "view position"}
"""Columns of our films by which a file of other films is known, and the file's own. NIH never changed them; ages and
follow-ups differ between the releases."""
LEAST_ALIKE = 0.9
"""Share of the films whose sex and view must be those that the file states. Of NIH's own films all are."""


def find(folder: Path) -> list[Path]:
    """Files of radiologists' labels in a data folder: one with both sets, or one per set; empty if there are none."""
    places = records.places(folder)
    if whole := [path for name in FILES for place in places if (path := place / name).is_file()]:
        return whole[:1]
    return [path for name in SET_FILES.values() for path in _of_set(places, name)[:1]]


def _of_set(places: list[Path], name: str) -> list[Path]:
    """Files of one set, best first."""
    names = [f"{FOLDER}_{name}", f"{FOLDER}/{name}", name]
    paths_of_set = [place / form for form in names for place in places]
    files = [file for path in paths_of_set for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()]
    return [file for file in files if FOLDER in f"{file.parent.name}/{file.name}" or _has_columns(file)]


def _has_columns(file: Path) -> bool:
    """Whether the header of a file has the columns of the radiologists' findings."""
    try:
        header = tables.read_text(file).partition("\n")[0].lower()
    except UserError:
        return False
    return all(name.lower() in header for name in GROUPS)


def read(*files: Path) -> pd.DataFrame:
    """Radiologists' labels: columns image, set ("test" or "val"), the findings of ``GROUPS``, 1, 0 or NaN, and the sex
    and view that the file states ("" where it states none).

    Raises UserError with file, line and value where a file is not readable, lacks a column, has a word that is neither
    yes nor no, or names an image twice, and where two files name the same image.
    """
    table = pd.concat([_read(Path(file)) for file in files], ignore_index=True)
    double = table["image"].duplicated()
    if double.any():
        names = " and ".join(str(file) for file in files)
        raise UserError(f"{names}: both have {table['image'][double].iloc[0]}; keep one of the files")
    return table


def _read(file: Path) -> pd.DataFrame:
    cells = tables.read_cells(file)
    names = {name.strip().lower(): name for name in cells.columns}
    image = next((names[name] for name in ("image index", "image id", "image") if name in names), None)
    missing = [name for name in GROUPS if name.lower() not in names]
    if image is None or missing:
        lacking = "Image Index" if image is None else missing[0]
        raise UserError(
            f"{file} lacks the column {lacking}: it is not the file of radiologists' labels; get it from {SOURCE}"
        )
    table = pd.DataFrame({"image": cells[image].str.strip().to_numpy()})
    table["set"] = _sets(cells, names, file)
    for name in GROUPS:
        words = cells[names[name.lower()]].str.strip().str.upper()
        values = words.map(WORDS)
        wrong = (values.isna() & (words != "")).to_numpy()
        if wrong.any():
            line = cells.index[int(np.argmax(wrong))] + 2
            raise UserError(f"{file}, line {line}, {name}: {words[wrong].iloc[0]!r} is neither YES nor NO; restore it")
        table[name] = values.to_numpy(np.float64)
    for name, header in STATED.items():
        stated = cells[names[header]].str.strip().str.upper().to_numpy() if header in names else ""
        table[f"stated_{name}"] = stated
    double = table["image"].duplicated()
    if double.any():
        raise UserError(f"{file}: {table['image'][double].iloc[0]} occurs twice; remove one of its rows")
    return table


def _sets(cells: pd.DataFrame, names: dict[str, str], file: Path) -> np.ndarray:
    """Set of each row: of its own column, or of the file's name."""
    column = names.get("set id")
    if column is None:
        return np.full(len(cells), "val" if "val" in file.name.lower() else "test")
    words = cells[column].str.strip().str.lower().replace({"validation": "val"})
    if not words.isin(SETS).all():
        raise UserError(f"{file}, Set Id: {words[~words.isin(SETS)].iloc[0]!r} is neither test nor val; restore it")
    return words.to_numpy()


def labels_for(folder: Path, file: str, parts: splits.Parts, *, drawn: bool) -> pd.DataFrame:
    """Radiologists' labels for a data folder, shaped as from ``read``; ``attrs["source"]`` says where they come from,
    how many of the films are here, and whether the file is shorter than the published one.

    ``file``: the file of both sets, or a folder that holds Google's files; "" looks beside the data. Without a file the
    table is empty, or made up where the films are ``drawn``. Raises UserError as ``read`` does, where ``file`` is not
    there, and where the file is of other films that have the same names.
    """
    files = _named(paths.resolve(file)) if file else find(folder)
    if files:
        table = read(*files)
        films = pd.concat([parts.train, parts.val, parts.test], ignore_index=True)
        _refuse_other_films(films, table, files)
        source = _source(films, table, files)
    elif drawn:
        table = pd.concat([made_up(parts.test, "test"), made_up(parts.val, "val", seed=1)], ignore_index=True)
        source = f"{MADE_UP}: no radiologist read these drawn films; the numbers only show what the notebook does"
    else:
        table = pd.DataFrame(columns=["image", "set", *GROUPS]).astype(dict.fromkeys(GROUPS, np.float64))
        source = f"no radiologists' labels beside the data; get {FILES[0]} ({SOURCE}), or set expert_labels"
    table.attrs["source"] = source
    return table


def _named(place: Path) -> list[Path]:
    """Files that the setting ``expert_labels`` names."""
    files = find(place) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        what = "holds no radiologists' labels" if place.is_dir() else "is not there"
        raise UserError(
            f"expert_labels {place} {what}; give {FILES[0]}, or the folder of Google's files, from {SOURCE}"
        )
    return files


def _refuse_other_films(films: pd.DataFrame, table: pd.DataFrame, files: list[Path]) -> None:
    """Raise UserError where films have the names of NIH's and are others: their sexes and views are not the file's."""
    found, alike = beside(films, table), []
    for name in STATED:
        ours = found[name].fillna("").astype(str).str.upper()
        both = (ours != "") & (found[f"stated_{name}"] != "")
        alike += (ours == found[f"stated_{name}"])[both].tolist()
    if alike and np.mean(alike) < LEAST_ALIKE:
        raise UserError(
            f"{', '.join(map(str, files))}: {len(found)} films here have names that it has too, but sex and view are "
            f"the same for {np.mean(alike):.0%} only: it is of other films; take it away, or give NIH's own films"
        )


def _source(films: pd.DataFrame, table: pd.DataFrame, files: list[Path]) -> str:
    """Sentence on where the labels come from, how many of their films are here, and what is missing of them."""
    counts = table["set"].value_counts()
    short = [name for name, published in PUBLISHED.items() if counts.get(name, 0) < published]
    lacking = "".join(
        f"; set {name} has {counts.get(name, 0):,} of {PUBLISHED[name]:,} published films" for name in short
    )
    here = len(beside(films, table))
    names = ", ".join(path.name for path in files)
    return f"radiologists' labels from {names}: {here:,} of its {len(table):,} films are in this data folder{lacking}"


def beside(films: pd.DataFrame, read_labels: pd.DataFrame) -> pd.DataFrame:
    """Films that radiologists labelled, in the order of ``films``: its columns, and ``set``, ``read_<finding>`` of the
    radiologists, ``mined_<finding>`` of our labels as in ``with_mined``, and the sex and view that the file states.

    A film is found by its name without the ending, so that a JPEG is found too. May be empty.
    """
    read_labels = read_labels.assign(stem=read_labels["image"].map(records.stem))
    found = films.assign(stem=films["image"].map(records.stem)).merge(
        read_labels.drop(columns="image").rename(columns={name: f"read_{name}" for name in GROUPS}), on="stem"
    )
    return with_mined(found.drop(columns="stem"))


def with_mined(films: pd.DataFrame) -> pd.DataFrame:
    """Films with ``mined_<finding>``: 1 if a film has any of our labels of the group, 0 if none, NaN if unknown."""
    films = films.copy()
    for name, members in GROUPS.items():
        labels = films[list(members)].to_numpy(np.float64)
        known = np.isfinite(labels).all(1) | (labels == 1).any(1)
        films[f"mined_{name}"] = np.where(known, (labels == 1).any(1), np.nan)
    return films


def made_up(films: pd.DataFrame, part: str, *, seed: int = 0) -> pd.DataFrame:
    """Made-up second reading of films that no radiologist read, to show on drawn films what the notebook does.

    One in five of a group's films loses its finding, one in thirty of the others gains it. ``part`` is the set.
    Shaped as from ``read``. The numbers mean nothing.
    """
    table = pd.DataFrame({"image": films["image"].to_numpy(), "set": part})
    for purpose, (name, members) in enumerate(GROUPS.items()):
        has = (films[list(members)].to_numpy(np.float64) == 1).any(1)
        draw = randomness.below(randomness.raw(len(films), seed, purpose=purpose), 30)
        table[name] = np.where(has, draw >= 6, draw == 0).astype(np.float64)
    return table
