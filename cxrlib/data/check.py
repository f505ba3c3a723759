"""Check of a data folder: finds all faults in one pass, with counts, examples and advice."""

from pathlib import Path

from cxrlib import paths
from cxrlib.data import examine
from cxrlib.data.health import Report


def folder(
    path: str | Path, *, fast: bool = False, size: int = 256, workers: int | None = None, progress: bool = True
) -> Report:
    """Report on a data folder: layout, CSV, files, films, lists, boxes, disk space.

    ``fast`` does not decode the films. ``size`` is the pixel size of the store, for the check of disk space. Nothing is
    written, and faults go into the report instead of raising.
    """
    report = Report(paths.resolve(path), fast)
    examine.everything(report, size, workers, progress)
    return report
