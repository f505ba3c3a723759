"""Fingerprints of a data folder's content. They show whether the data have changed since a run. They take a second."""

from pathlib import Path

import pandas as pd

from cxrlib import provenance
from cxrlib.data import builder, records, splits


def fingerprints(folder: Path, films: pd.DataFrame) -> dict[str, str]:
    """Fingerprints of a data folder, 16 hex digits each: ``films``, ``tables`` and ``boxes``.

    ``films`` covers each film file's name, size and time, as a store does. A copied or touched file counts as changed;
    its pixels are compared when they are read. ``tables`` covers the bytes of the label table, of the official lists
    and of ``dataset.txt``. ``boxes`` covers the bytes of the box file.
    """
    sources = builder.sources(films, allow_missing=True)
    tables = {"labels": records.find_table(folder), **splits.find_lists(folder), "dataset": folder / records.DATASET}
    return {
        "films": provenance.digest([sources.names, [list(stamp) for stamp in sources.stamps]]),
        "tables": provenance.digest({name: _bytes(path) for name, path in tables.items()}),
        "boxes": provenance.digest(_bytes(records.find_boxes(folder))),
    }


def _bytes(path: Path | None) -> list[str]:
    """Name and hash of a file. Empty if the file is absent."""
    return [path.name, provenance.file_sha256(path)] if path and path.is_file() else []
