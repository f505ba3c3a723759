"""A notebook's cells run in this process: no kernel is needed, and a test can replace what is slow."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from cxrlib.workbook import settings


def execute(book: Path, until: str = "", **given: Any) -> dict[str, Any]:
    """Run a notebook's code cells one after the other with these parameters; return the names that it leaves.

    With ``until``, the first cell whose code has this text is the last.
    """
    names = {"__name__": "__main__"}
    for number, cell in enumerate(settings.cells(book), 1):
        if cell["cell_type"] == "code":
            exec(compile(settings.source(cell), f"{book.stem}, cell {number}", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names.update({name: value for name, value in given.items() if name in names})
            if until and until in settings.source(cell):
                break
    plt.close("all")
    return names
