"""Radiologists' labels of NIH films: 4,376 films that at least three radiologists read together, beside our labels.

They are of Majkowska et al., Chest Radiograph Interpretation with Deep Learning Models (Radiology 2020), and are
published by Google, who asks for a short form before the download: see ``SOURCE``. The workbook does not bundle them.
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

FILES = (
    "google2019_nih-chest-xray-labels.csv",
    "google2019_nih-chest-xray-labels.csv.gz",
    "four_findings_expert_labels_test_labels.csv",
    "test_labels.csv",
    "validation_labels.csv",
)
"""Names of the file beside the data: both sets in one, as torchxrayvision keeps it, or Google's own, one per set."""

SOURCE = "https://cloud.google.com/healthcare-api/docs/resources/public-datasets/nih-chest#additional_labels"
"""Page on which Google offers the labels."""

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


def find(folder: Path) -> list[Path]:
    """Files of radiologists' labels in a data folder: one with both sets, or one per set; empty if there are none."""
    found = [path for name in FILES for place in records.places(folder) if (path := place / name).is_file()]
    whole = [path for path in found if path.name.startswith("google2019")]
    return whole[:1] or list(dict.fromkeys(found))


def read(*files: Path) -> pd.DataFrame:
    """Radiologists' labels: columns image, set ("test" or "val"), then the findings of ``GROUPS``, 1, 0 or NaN.

    Raises UserError with file, line and value where a file is not readable, lacks a column, has a word that is neither
    yes nor no, or names an image twice.
    """
    return pd.concat([_read(Path(file)) for file in files], ignore_index=True)


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
    """Radiologists' labels for a data folder, shaped as from ``read``; ``attrs["source"]`` says where they come from.

    ``file``: the file of both sets; "" looks beside the data. Without a file the table is empty, or made up where the
    films are ``drawn``. Raises UserError as ``read`` does, and where ``file`` is not there.
    """
    files = [paths.resolve(file)] if file else find(folder)
    if file and not files[0].is_file():
        raise UserError(f"expert_labels {files[0]} is not there; give the file of radiologists' labels from {SOURCE}")
    if files:
        table, source = read(*files), f"radiologists' labels from {', '.join(path.name for path in files)}"
    elif drawn:
        table = pd.concat([made_up(parts.test, "test"), made_up(parts.val, "val", seed=1)], ignore_index=True)
        source = f"{MADE_UP}: no radiologist read these drawn films; the numbers only show what the notebook does"
    else:
        table = pd.DataFrame(columns=["image", "set", *GROUPS]).astype(dict.fromkeys(GROUPS, np.float64))
        source = f"no radiologists' labels beside the data; get {FILES[0]} ({SOURCE}), or set expert_labels"
    table.attrs["source"] = source
    return table


def beside(films: pd.DataFrame, read_labels: pd.DataFrame) -> pd.DataFrame:
    """Films that radiologists labelled, in the order of ``films``: its columns, and ``set``, ``read_<finding>`` of the
    radiologists, ``mined_<finding>`` of our labels (1 if the film has any label of the group, NaN if unknown).

    A film is found by its name without the ending, so that a JPEG is found too. May be empty.
    """
    read_labels = read_labels.assign(stem=read_labels["image"].map(records.stem))
    found = films.assign(stem=films["image"].map(records.stem)).merge(
        read_labels.drop(columns="image").rename(columns={name: f"read_{name}" for name in GROUPS}), on="stem"
    )
    for name, members in GROUPS.items():
        labels = found[list(members)].to_numpy(np.float64)
        known = np.isfinite(labels).all(1) | (labels == 1).any(1)
        found[f"mined_{name}"] = np.where(known, (labels == 1).any(1), np.nan)
    return found.drop(columns="stem")


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
