"""What a data folder holds, as fingerprints that cost a second: what a run was made on, and whether that has changed."""

from pathlib import Path

import pandas as pd

from cxrlib import provenance
from cxrlib.data import builder, records, splits


def fingerprints(folder: Path, films: pd.DataFrame) -> dict[str, str]:
    """16 hex digits each for what is read of a data folder: its films, their table and lists, and the boxes.

    ``films``: every file's name, size and time, as a store looks at them; a film that is copied or touched counts as
    changed, and its pixels are compared where they are read. ``tables``: the bytes of the label table, of the official
    lists and of the dataset's name. ``boxes``: the bytes of the file of boxes.
    """
    found = builder.sources(films, allow_missing=True)
    tables = {"labels": records.find_table(folder), **splits.find_lists(folder), "dataset": folder / records.DATASET}
    return {
        "films": provenance.digest([found.names, [list(stamp) for stamp in found.stamps]]),
        "tables": provenance.digest({name: _bytes(path) for name, path in tables.items()}),
        "boxes": provenance.digest(_bytes(records.find_boxes(folder))),
    }


def _bytes(path: Path | None) -> list[str]:
    """Name and hash of a file, nothing where it is not there."""
    return [path.name, provenance.file_sha256(path)] if path and path.is_file() else []
