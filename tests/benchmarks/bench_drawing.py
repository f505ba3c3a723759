"""Drawing phantom films on all cores against drawing them in one process."""

import tempfile
from itertools import count
from pathlib import Path

from cxrlib.data import parallel
from cxrlib.phantom import phantom
from tests.benchmarks.rows import Row, in_turns, rate

SIZE = 224
FILMS = {"few": 300, "many": 1000}
"""Few enough for the start of processes to weigh, and so many that it hardly does."""


def drawing() -> list[Row]:
    """Whole sets, the start of the processes included."""
    rows, cores = [], parallel.cores()
    with tempfile.TemporaryDirectory() as place:
        numbers = count()

        def draw(films: int, workers: int) -> None:
            phantom.write(Path(place, str(next(numbers))), films, SIZE, workers=workers, progress=False)

        for films in FILMS.values():
            took = in_turns(3, one=lambda n=films: draw(n, 1), all=lambda n=films: draw(n, cores))
            name = f"data: drawing {films:,} phantom films"
            where = f"{SIZE} px, {cores} processes against one, their start and the writing included"
            rows.append(rate(name, took["all"], films, took["one"], films, "", where))
    return rows


BENCHES = (drawing,)
