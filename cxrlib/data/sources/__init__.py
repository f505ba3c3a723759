"""Sources: the datasets whose own tables are read, one small module each, and ``columns.toml`` for any other CSV.

``other`` says which of them a data folder is, or None for NIH's layout, which ``records`` reads itself. ``Found`` then
reads films, boxes and the official split. To add a dataset: write a module with a ``SOURCE`` (see
``film_rows.Source``) and put it into ``MODULES``.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, labels
from cxrlib.data.sources import chexpert, film_rows, mapping, mimic, nih, openi, padchest, rsna, vindr
from cxrlib.data.sources.film_rows import Hear, Source, Tables

MODULES = (nih, chexpert, mimic, padchest, vindr, rsna, openi)
NO_IDS = "unknown"
"""First word of ``Source.patients`` where each film counts as a patient of its own."""

SOURCES: dict[str, Source] = {module.SOURCE.name: module.SOURCE for module in MODULES}
"""Datasets by name. ``mapping`` is not among them: each mapping file makes a source of its own."""


@dataclass(frozen=True)
class Found:
    """Data folder of a dataset: its source, the folder that holds the tables, and these by their role."""

    source: Source
    folder: Path
    tables: Tables

    @property
    def table(self) -> Path:
        """Path of the table that is named in messages: the first one."""
        return next(iter(self.tables.values()))

    @property
    def unit(self) -> str:
        """What a random split draws: "patient", or "film" where patients cannot be told apart."""
        return "film" if self.source.patients.startswith(NO_IDS) else "patient"

    @property
    def doubts(self) -> list[str]:
        """Sentences with which a result on this dataset must be read."""
        return list(self.source.doubts)

    def rows(self, hear: Hear | None = None) -> pd.DataFrame:
        """Rows of all films, laterals among them: see ``film_rows``. Raises UserError for the first wrong cell."""
        if hear is not None:
            return self.source.read(self.tables, hear)
        return _rows(self.source.name, tuple(self.tables.items()), _stamps(self.tables)).copy()

    def films(self, *, uncertain: str = "unknown") -> pd.DataFrame:
        """Frontal films of the tables, without path and dataset; ``attrs["left_out"]`` counts the others by reason."""
        return self.films_of(self.rows(), uncertain)

    def films_of(self, rows: pd.DataFrame, uncertain: str = "unknown") -> pd.DataFrame:
        """The frontal films among these rows, as ``films``."""
        return film_rows.finish(
            rows, film_rows.number_patients(rows["patient"], self.table, self.source.number), uncertain
        )

    def locate(self, rows: pd.DataFrame) -> tuple[list[str], list[str]]:
        """Path of each row's film as text, "" where it is absent, and the films that could be several files."""
        paths, doubtful = self.source.locate(self.folder.absolute(), rows)
        return [str(path) for path in paths], doubtful

    def read(self, dataset: str, *, allow_missing: bool, uncertain: str) -> pd.DataFrame:
        """Films as ``records.read`` gives them. Raises UserError for absent films, or if no finding is labelled."""
        rows = self.rows()
        films = self.films_of(rows, uncertain)
        if not len(films):
            raise UserError(f"{self.table} has no frontal film ({_counted(films.attrs['left_out'])})")
        if films[list(labels.FINDINGS)].isna().all(axis=None):
            raise UserError(f"{self.table}: none of the 14 findings is known for any film; {self._where_labels_are()}")
        paths, doubtful = self.locate(rows[(rows["left_out"] == "").to_numpy()])
        if doubtful:
            raise UserError(
                f"{self.folder}: {len(doubtful)} films have no file of their own; first {doubtful[0]}; give each film "
                "one file"
            )
        films.insert(1, "path", paths)
        films.insert(films.columns.get_loc("view") + 1, "dataset", dataset or self.source.name)
        left_out, absent = films.attrs["left_out"], (films["path"] == "").to_numpy()
        missing = films.loc[absent, "image"].tolist()
        if len(missing) == len(films):
            raise UserError(self.no_films(len(films)))
        if missing and not allow_missing:
            raise UserError(
                f"{self.folder}: {len(missing)} of the {len(films)} frontal films of {self.table.name} are not there, "
                f"first {missing[0]}; complete the download, or go on without them with --allow-missing"
            )
        films = films[~absent].reset_index(drop=True)
        films.attrs |= {"missing": missing, "left_out": left_out}
        return films

    def _where_labels_are(self) -> str:
        return f"the labels of {self.source.title} are in {self.source.table}"

    def no_films(self, count: int) -> str:
        """Message about a folder that has none of its films: what its films are instead, or where they should lie."""
        files = [name for _, (_, name) in zip(range(200), film_rows.film_files(self.folder, 4), strict=False)]
        for other in SOURCES.values():
            if other.name != self.source.name and files and all(re.fullmatch(other.named, name) for name in files):
                return (
                    f"{self.folder}: {self.table.name} is of {self.source.title}, and the films beside it are named as "
                    f"those of {other.title}, such as {files[0]}; take table and films from one download"
                )
        return (
            f"{self.folder} holds none of the {count} frontal films of {self.table.name}; "
            f"of {self.source.title} they lie in {self.source.films}"
        )

    def split(
        self, films: pd.DataFrame, rows: pd.DataFrame | None = None
    ) -> tuple[np.ndarray | None, np.ndarray | None, str]:
        """Whether each film is in the official test and validation part, (N,) bool each, and a description.

        None for a part that the dataset does not have or of which no film is here. ``rows`` are those of the tables, if
        they were read already. Raises UserError if a patient is in two parts.
        """
        rows = self.rows() if rows is None else rows
        part = pd.Series(rows["part"].to_numpy(object), rows["image"])
        part = part[~part.index.duplicated()].reindex(films["image"]).fillna("").to_numpy(object)
        in_test, in_val = part == "test", part == "val"
        if not in_test.any() or (in_test | in_val).all():
            return None, None, ""
        seen = {name: films["patient"][mask] for name, mask in (("test", in_test), ("rest", ~in_test))}
        shared = np.intersect1d(seen["test"], seen["rest"])
        shared = np.union1d(shared, np.intersect1d(films["patient"][in_val], films["patient"][~in_val]))
        if len(shared):
            raise UserError(
                f"{self.folder}: {len(shared)} patients are in two parts of the official split, a leak, first "
                f"{shared[0]}; take all tables from one download"
            )
        return (
            in_test,
            in_val if in_val.any() else None,
            f"official split of {self.source.title}: {self.source.split.partition(';')[0]}",
        )

    def boxes(self) -> pd.DataFrame | None:
        """Boxes as ``records.read_boxes`` gives them; None if the dataset has none that can be used."""
        return self.source.boxes(self.tables) if self.source.boxes else None


def other(folder: Path) -> Found | None:
    """Dataset of a data folder, or of the only folder in it that is one; None for NIH's layout or an unknown folder.

    A mapping file decides, whatever else is there. Raises UserError if the tables are of two datasets.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    found = _recognise(folder)
    if not found:
        below = [result for place in _folders(folder) if (result := _recognise(place))]
        if len(below) == 1:
            found = below[0]
        elif any(result.source.name != nih.SOURCE.name for result in below):
            names = ", ".join(result.folder.name for result in below[:5])
            raise UserError(f"{folder} holds {len(below)} data folders ({names}); give one of them")
    return None if not found or found.source.name == nih.SOURCE.name else found


def above(folder: Path, most: int = 5) -> Path:
    """The data folder of another dataset than NIH's that holds this folder of films; the folder itself if there is
    none."""
    for place in [folder, *folder.parents[:most]]:
        found = _recognise(place)
        if found:
            return folder if found.source.name == nih.SOURCE.name else place
    return folder


def _folders(folder: Path, most: int = 50) -> list[Path]:
    """Folders in a folder that may be data folders, sorted."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name for entry in entries if not entry.name.startswith((".", "images")) and entry.is_dir()
            )
    except OSError:
        return []
    return [folder / name for name in names[:most]]


def _recognise(folder: Path) -> Found | None:
    try:
        if tables := mapping.find(folder):
            return Found(mapping.source_of(tables), folder, tables)
        found = [Found(source, folder, tables) for source in SOURCES.values() if (tables := source.find(folder))]
    except PermissionError:
        return None
    if len(found) > 1:
        names = " and ".join(f"{one.source.title} ({one.table.name})" for one in found)
        raise UserError(f"{folder} holds tables of two datasets: {names}; keep each dataset in a folder of its own")
    return found[0] if found else None


def name_of(folder: Path) -> str:
    """Name of a data folder's dataset for its patients; "" for NIH's layout, where each film's name tells it."""
    found = other(folder)
    return found.source.name if found else ""


def tables_of(folder: Path) -> Tables:
    """Tables of a data folder's dataset by their role; none for NIH's layout."""
    found = other(folder)
    return dict(found.tables) if found else {}


def doubts(folder: Path) -> list[str]:
    """Sentences with which a result on this folder must be read; none for NIH's layout."""
    found = other(folder)
    return found.doubts if found else []


def _stamps(tables: Tables) -> tuple[tuple[int, int], ...]:
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in tables.values()))


@lru_cache(maxsize=2)
def _rows(name: str, tables: tuple[tuple[str, Path], ...], _stamps: tuple) -> pd.DataFrame:
    """Rows of tables in their present state, kept because films and split both need them."""
    read: Callable = SOURCES[name].read if name in SOURCES else mapping.read
    return read(dict(tables), Hear())


def _counted(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "it is empty"


def coverage() -> pd.DataFrame:
    """Table of which dataset labels which finding: its own words, (14, datasets) text, "" where it does not."""
    table = {
        source.title: [", ".join(source.words[name].own) if name in source.words else "" for name in labels.FINDINGS]
        for source in SOURCES.values()
    }
    return pd.DataFrame(table, index=list(labels.FINDINGS))


def coverage_markdown() -> str:
    """``coverage`` as a Markdown table for the README. Of several words the first is shown, with the number of
    others."""
    rows = [["Finding", *(source.title for source in SOURCES.values())]]
    for name in labels.FINDINGS:
        words = [source.words[name].own if name in source.words else () for source in SOURCES.values()]
        cells = [f"{own[0]} + {len(own) - 1}" if len(own) > 1 else "".join(own) or "–" for own in words]
        rows.append([labels.display_name(name), *cells])
    rows.insert(1, ["---"] * len(rows[0]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
