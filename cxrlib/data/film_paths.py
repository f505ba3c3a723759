"""Paths of films from what a user names: files, folders with all below them, and CSV files with a path per row."""

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from cxrlib import UserError, paths
from cxrlib.data import images, tables

TABLES = (".csv", ".tsv")
COLUMNS = ("path", "image", "file", "filename", "film", "imageindex")
"""Names of the column with the paths, without case, blanks and marks. The first that a table has counts."""

_NO_FILMS = ("DICOMDIR",)
"""Files without an ending that begin as DICOM and hold no film: the index of a disk."""


def collect(named: Iterable[str | Path]) -> list[str]:
    """Paths of the films that these names stand for, in their order, each once.

    A file is taken as it is. A folder stands for all films below it, sorted by path, by their endings
    (``images.SUFFIXES``), or by DICOM's mark where a file has no ending; links are followed, each folder is entered
    once, and hidden files are left out. A CSV stands for the paths in its column ``COLUMNS``, or in its only one;
    relative ones start from the CSV. Paths in a CSV need not exist.
    Raises UserError for a name that is not there, for a CSV that cannot be read, and where there are no films at all.
    """
    named = [str(name) for name in named]
    films: dict[str, str] = {}
    for name in named:
        path = paths.resolve(name)
        if not path.exists():
            raise UserError(f"{name} is not there; give films, folders of films, or a CSV of their paths")
        if path.is_dir():
            found = _below(Path(name).expanduser())
        elif path.suffix.lower() in TABLES:
            found = _listed(path)
        else:
            found = [str(Path(name).expanduser())]
        for film in found:
            films.setdefault(os.path.abspath(film), film)  # noqa: PTH100 (links stay: two names may be meant)
    if not films:
        endings = ", ".join(images.SUFFIXES)
        raise UserError(f"there are no films in {', '.join(named) or 'nothing'}; films end in {endings}")
    return list(films.values())


def _below(folder: Path) -> Iterator[str]:
    """Films of a folder and of all below it, sorted, links followed. Each folder is entered once, so no loop is.

    A folder that the system does not let us read is among them, so that it is reported as a film would be.
    """
    entered: set[tuple[int, int]] = set()
    locked: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=lambda error: locked.append(error.filename)):
        status = os.stat(place)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = os.path.join(place, name)  # noqa: PTH118 (a hundred thousand of them)
            if not name.startswith(".") and (name.lower().endswith(images.SUFFIXES) or _is_bare_dicom(path, name)):
                yield path
    yield from locked


def _is_bare_dicom(path: str, name: str) -> bool:
    """Whether a file without an ending has DICOM's mark, as files of a PACS do."""
    if "." in name and not name.replace(".", "").isdigit():  # 1.2.840.113… is a UID, not an ending
        return False
    if name.upper() in _NO_FILMS:
        return False
    try:
        return images.load(path, start=132)[128:] == b"DICM"
    except UserError:
        return False


def _listed(table: Path) -> list[str]:
    """Paths in the rows of a CSV, those that are relative made so that they start from the CSV."""
    text = tables.read_text(table)
    try:
        cells = csv.reader(text.splitlines(), delimiter=tables.find_separator(text, table))
        lines = [(cells.line_num, row) for row in cells if any(row)]
    except csv.Error as error:
        raise UserError(f"{table} is not a readable CSV ({error})") from None
    rows = [row for _, row in lines]
    if not rows:
        raise UserError(f"{table} is empty; it needs a path per row, in a column named path")
    keys = ["".join(filter(str.isalnum, name)).casefold() for name in rows[0]]
    column = next((keys.index(name) for name in COLUMNS if name in keys), None)
    if column is not None:
        tables.refuse_ragged(lines, len(rows[0]), table)
        rows = rows[1:]
    elif len(keys) == 1:
        column, rows = 0, rows if rows[0][0].strip().lower().endswith(images.SUFFIXES) else rows[1:]
    else:
        shown = ", ".join(repr(name[:40]) for name in rows[0][:20])
        raise UserError(f"{table} has no column path, image or file; it has {shown}")
    cells = [row[column].strip() for row in rows if len(row) > column]
    return [str(table.parent / Path(cell).expanduser()) for cell in cells if cell]
