"""What the training loop and its checkpoints cost beside the work itself."""

import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from cxrlib.data import batches, records, store
from cxrlib.training import fit, schedules, stage_folder
from tests.benchmarks.bench_data import FULLRES, scratch
from tests.benchmarks.bench_training import VALIDATION, batches_of, how, train_ours
from tests.benchmarks.rows import Row, machine

WHOLE = 77_872
"""Films of the whole dataset's training part: nine tenths of its 86,524 outside the test list."""


def loop(size: int = 224, batch: int = 32, films: int = 96, epochs: int = 3) -> list[Row]:
    """What the loop and its checkpoints cost beside the work, over a stage of everything with EMA and clipping.

    A resume state is saved between two ``epochs``, so there must be two.
    """
    table = records.read(FULLRES).head(films)
    recipe = schedules.recipe("modern", 5, epochs=epochs)
    with scratch() as folder, timers() as spent:
        built = store.build(table, size, folder=folder, progress=False)
        train = batches_of(built, table[VALIDATION:].reset_index(drop=True), batch, Timed, shuffle=True, augment="full")
        val = batches_of(built, table[:VALIDATION].reset_index(drop=True), batch, Timed)
        train.spent = val.spent = spent["work"]
        with mock.patch.dict(os.environ, CXR_SAVE_EVERY=str(stage_folder.SAVE_EVERY)):  # also after so short an epoch
            train_ours([recipe], train, val)
    work, whole = sum(spent["work"]), sum(spent["train_epoch"]) + sum(spent["validate"])
    state, kept = statistics.median(spent["save"]), statistics.median(spent["keep"])
    films_per_s = len(train.films) * epochs / sum(spent["train_epoch"])
    where = (
        f"modern stage 5 (all layers, EMA, clipping, full augmentation), {size} px, batch {batch}; {how()}; {machine()}"
    )
    rows = [
        Row("training: loop beside forward, backward, step, batch", round(100 * (whole - work) / whole, 3), "%",
            target="< 2 %", n=len(spent["take"]), conditions=f"n steps in {epochs} epochs with validation; {where}")
    ]  # fmt: skip
    saves = f"measured: {state:.2f} s a resume state, {kept:.2f} s a best checkpoint, {films_per_s:.1f} films/s"
    for name, long in (("5 minutes", 300.0), ("the whole dataset", WHOLE / films_per_s)):
        inside = (
            state / max(stage_folder.SAVE_EVERY, state / stage_folder.SAVE_SHARE)
            if long > stage_folder.SAVE_EVERY
            else 0.0
        )
        share = 100 * ((state + kept) / long + inside)
        each = f"extrapolated to an epoch of {long:.0f} s, a best checkpoint and a state at its end, within it a state "
        each += f"each {stage_folder.SAVE_EVERY:.0f} s; {saves}"
        rows.append(Row(f"training: checkpointing, share of an epoch of {name}", round(share, 3), "%", target="< 1 %",
                        n=len(spent["save"]) + len(spent["keep"]), conditions=f"{each}; {where}"))  # fmt: skip
    return rows


class Timed(batches.Batches):
    """Batches that note in ``spent`` how long each was waited for."""

    spent: list[float]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[batches.Batch]:
        run = super().epoch(epoch, start)
        while True:
            began = time.perf_counter()
            batch = next(run, None)
            self.spent.append(time.perf_counter() - began)
            if batch is None:
                return
            yield batch


@contextmanager
def timers() -> Iterator[dict[str, list[float]]]:
    """Seconds of every call of the loop's parts inside the block by name; "work" are those that train or validate."""
    spent: dict[str, list[float]] = defaultdict(list)
    inside: list[str] = []

    def timing(name: str, call: Callable, work: bool) -> Callable:
        def timed(*args, **more):
            inside.append(name)
            began = time.perf_counter()
            try:
                return call(*args, **more)
            finally:
                took = time.perf_counter() - began
                inside.pop()
                spent[name].append(took)
                if work and not {"learn", "take", "forward"} & {*inside}:
                    spent["work"].append(took)

        return timed

    parts = [(fit.Step, name, True) for name in ("learn", "take", "forward")]
    parts += [(fit._Training, name, False) for name in ("train_epoch", "validate")]
    parts += [(stage_folder.StageFolder, name, False) for name in ("save", "keep", "finish")]
    with ExitStack() as patched:
        for owner, name, work in parts:
            patched.enter_context(mock.patch.object(owner, name, timing(name, getattr(owner, name), work)))
        yield spent


BENCHES = (loop,)
