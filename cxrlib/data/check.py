"""The whole health of a data folder in one pass: everything that is wrong, counted, with examples and what to do."""

from pathlib import Path

from cxrlib import paths
from cxrlib.data import examine
from cxrlib.data.health import Report


def folder(path: str | Path, *, fast: bool = False, size: int = 256, workers: int | None = None,
           progress: bool = True) -> Report:  # fmt: skip
    """Look a data folder through: layout, CSV, files, films, lists, boxes, disk space.

    ``fast`` leaves the decoding out. ``size`` is that of the store whose space is looked for. Writes nothing, and
    raises nothing for what it finds: everything goes into the report.
    """
    report = Report(paths.resolve(path), fast)
    examine.everything(report, size, workers, progress)
    return report
