"""The training engine against the original's loop: a step, the whole schedule, the head alone.

The films are those of ``../shared/nih-fullres``, 96 of them. Where ratios are given, both ways ran in turns in one
process, on as many cores as torch takes (``OMP_NUM_THREADS`` bounds them) and no GPU. Every bench takes its size, and
counts in ``n`` what its value is of.
"""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch

from cxrlib import metrics
from cxrlib.data import augmentation, batches, records, store
from cxrlib.training import devices, fit, frozen, losses, network, optim, schedules
from cxrlib.training.processes import ProcessGroup
from cxrlib.training.schedules import Stage
from tests.benchmarks import original_training
from tests.benchmarks.bench_data import FULLRES, scratch
from tests.benchmarks.rows import Row, in_turns, machine, rate

PROJECT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
VALIDATION = 16
"""Films that are validated on after every epoch; the others of the 96 are trained on."""


def step(size: int = 224, batch: int = 16, rounds: int = 5, precision: str = "auto") -> list[Row]:
    """A training step of each stage of ``seed`` on new films, so that nothing is remembered from one to the next.

    Both give freed memory back, though ``fit`` keeps it: in one process it would be kept for the original too.
    """
    rows, exact = [], precision == "float32"
    for number in range(1, 6):
        ours, theirs = our_step(number, size, batch, precision=precision), their_step(number, size, batch)
        took = in_turns(rounds, ours=ours, theirs=theirs)
        where = f"{size} px, batch {batch}, frozen layers computed each time; {how(precision)}"
        name = "training: step in float32" if exact else "training: step"
        target = ">= 1.5 x" if exact else ">= 2 x" if number < 5 else ""
        rows.append(rate(f"{name}, stage {number}", took["ours"], batch, took["theirs"], batch, target, where))
    return rows


def step_float32(size: int = 224, batch: int = 16, rounds: int = 5) -> list[Row]:
    """The same in float32, as on a processor without bfloat16."""
    return step(size, batch, rounds, precision="float32")


def our_step(
    number: int, size: int, batch: int, *, schedule: str = "seed", device: torch.device = CPU, precision: str = "auto",
    compiled: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """A step of a stage by the engine's own parts, on a batch of noise, its moving average taken along."""
    recipe, dtype = schedules.recipe(schedule, number), devices.dtype(device, precision)
    model = network.train_only(network.build("none"), recipe.groups).train()
    model.to(device, memory_format=torch.channels_last)
    optimizer, process_group, films = optim.make(model, recipe), ProcessGroup(device), batch if compiled else 0
    loss = losses.make(recipe.loss, gamma=recipe.gamma)
    how = {"known_of": lambda rows: 15 * len(rows), "dtype": dtype, "compiled": films}
    one = fit.Step(model, loss, recipe, optimizer, process_group, **how)
    never_again = SimpleNamespace(variant=lambda epoch: None)  # as films that each epoch varies anew
    seen = frozen.FrozenFeatures(model, never_again, process_group, dtype=dtype, compiled=films)
    average = optim.Average(model, recipe.ema) if recipe.ema else None
    images, marks = (values.to(device) for values in _noise(size, batch, 1))
    noise = batches.Batch(images, marks, torch.arange(batch))

    def work() -> None:
        one.learn(noise, seen.of, 15 * batch, last=True)
        one.take(recipe.lr)
        if average:
            average.update(1000)

    return work


def their_step(number: int, size: int, batch: int, *, device: torch.device = CPU) -> Callable[[], None]:
    """The same step as the original made it."""
    trained, lr, _ = original_training.STAGES[number - 1]
    model = original_training.build().train().to(device)
    optimizer = original_training.begin(model, trained, lr)
    images, labels = (values.to(device) for values in _noise(size, batch, 3))
    return lambda: original_training.step(model, optimizer, images, labels)


def memory(size: int = 224, batch: int = 16) -> list[Row]:
    """Peak memory of three steps of a stage, ours and the original's, each in a process of its own."""
    rows = []
    for number in range(1, 6):
        peaks = {way: _peak_in_child(way, number, size, batch) for way in ("our_step", "their_step")}
        ours, theirs = peaks["our_step"], peaks["their_step"]
        where = f"growth of a process's peak resident memory over three steps, {size} px, batch {batch}; network, "
        where += f"optimizer and libraries' work space in it, imports not; {how()}; {machine()}"
        rows.append(Row(f"training: peak memory of a step, stage {number}", round(ours, 3), "GB", round(theirs, 3),
                        round(theirs / ours, 2), ">= 1 x", 1, "", where))  # fmt: skip
    return rows


def _peak_in_child(way: str, number: int, size: int, batch: int) -> float:
    keeping = way == "our_step"
    return _told(f"bench.tell_growth(lambda: bench.{way}({number}, {size}, {batch}), keeping={keeping})")


def _told(call: str) -> Any:
    """What a call prints as JSON in a process of its own."""
    code = f"from tests.benchmarks import bench_training as bench; {call}"
    told = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def tell_growth(make: Callable[[], Callable[[], None]], *, keeping: bool) -> None:
    """Print by how many GB this process's peak of resident memory grows over three calls of what is made.

    ``keeping`` freed memory from call to call, as ``fit`` does. Linux's VmHWM begins anew with each program;
    getrusage's peak is inherited from whoever started it.
    """

    def peak() -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024

    with devices.keep_memory(CPU) if keeping else nullcontext():
        before, work = peak(), make()
        for _ in range(3):
            work()
    print((peak() - before) / 1e9)


def schedule(size: int = 224, batch: int = 32, films: int = 96, rounds: int = 2) -> list[Row]:
    """The five stages of ``seed``, 11 passes, with validation and checkpoints: ours from a store, the original's too,
    and the original's from 1024² files, against which the building of our store counts as well.

    Each in a process of its own, since ours changes how its process takes memory.
    """
    took = defaultdict(list)
    for _ in range(rounds):
        for way in ("ours", "from store", "from files"):
            training, building = _told(f"bench.tell_seconds({way!r}, {size}, {batch}, {films})")
            took[way].append(training)
            took[f"{way}, with building"].append(training + building)
    trained = films - VALIDATION
    passes = trained * sum(epochs for *_, epochs in original_training.STAGES)
    where = f"{trained} films, validation on {VALIDATION} after each epoch, checkpoints, {size} px, batch {batch}"
    where += "; each run in a process of its own"
    return [
        rate("training: seed schedule, both on the store", took["ours"], passes, took["from store"], passes, ">= 2 x",
             f"{where}; {how()}"),
        rate("training: seed schedule, against the original's loading", took["ours, with building"], passes,
             took["from files"], passes, ">= 3 x", f"{where}, building of the store counted as ours; {how()}"),
    ]  # fmt: skip


def tell_seconds(way: str, size: int, batch: int, films: int) -> None:
    """Print how many seconds a way of training the five stages takes, and those of building its store before."""
    table = records.read(FULLRES).head(films)
    train, val = table[VALIDATION:].reset_index(drop=True), table[:VALIDATION].reset_index(drop=True)
    with scratch() as folder:
        if way == "from files":
            building, work, recipes = 0.0, train_original, original_training.STAGES
            parts = [original_training.from_files(part, size, batch, shuffle=part is train) for part in (train, val)]
        else:
            built, building = _timed(store.build, table, size, folder=folder, progress=False)
            work, recipes = train_ours, schedules.SCHEDULES["seed"]
            parts = [batches_of(built, part, batch, shuffle=part is train) for part in (train, val)]
        if way == "from store":
            work, recipes = train_original, original_training.STAGES
            parts = [original_training.from_store(part) for part in parts]
        print(json.dumps([_timed(work, recipes, *parts)[1], building]))


def head(size: int = 224, batch: int = 32, epochs: int = 10, repeats: int = 2, rounds: int = 2) -> list[Row]:
    """The stage that trains the head alone, against recomputing what is frozen: the original's way and our own."""
    table = records.read(FULLRES)
    val = table[:VALIDATION].reset_index(drop=True)
    train = pd.concat([table[VALIDATION:]] * repeats, ignore_index=True)
    recipe = schedules.recipe("seed", 4, epochs=epochs)
    original = [(*original_training.STAGES[3][:2], epochs)]
    with scratch() as folder:
        built = store.build(table, size, folder=folder, progress=False)
        parts = [batches_of(built, part, batch, shuffle=part is train) for part in (train, val)]
        anew = [batches_of(built, part, batch, shuffle=part is train, kind=Anew) for part in (train, val)]
        loaders = [original_training.from_store(part) for part in parts]
        ways = {
            "ours": lambda: train_ours([recipe], *parts),
            "original": lambda: train_original(original, *loaders),
            "recomputed": lambda: train_ours([recipe], *anew),
        }
        took = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                took[name].append(_timed(way)[1])
    passes = len(train) * epochs
    where = f"{epochs} epochs of {len(train)} films, validation on {len(val)} after each, checkpoints, {size} px, "
    where += f"batch {batch}; {how()}"
    return [
        rate(f"training: head alone, against {name}", took["ours"], passes, took[way], passes, target, where)
        for way, name, target in (("original", "the original", ">= 8 x"), ("recomputed", "recomputing in fit", ""))
    ]


class Anew(batches.Batches):
    """Batches that do not say that their films are always the same, so that nothing of them is remembered."""

    def view(self, epoch: int) -> None:
        return None


def how(precision: str = "auto") -> str:
    """The precision that ours takes here, and the threads of both."""
    return f"ours in {devices.dtype_name(devices.dtype(CPU, precision))}, {torch.get_num_threads()} threads"


def train_ours(recipes: list[Stage] | tuple[Stage, ...], train: batches.Batches, val: batches.Batches) -> None:
    """Train stages in a new folder, each from the best weights of the one before."""
    model, parent = network.build("none"), None
    with scratch() as folder:
        for recipe in recipes:
            loss = losses.make(recipe.loss, gamma=recipe.gamma)
            parent = fit.fit(model, train, val, loss, recipe, folder=folder / f"stage{recipe.number}", parent=parent,
                             score=metrics.auc_per_label, device=CPU, progress=False).best  # fmt: skip


def train_original(table: Sequence, train: original_training.Loader, val: original_training.Loader) -> None:
    model = original_training.build()
    with scratch() as folder:
        for trained, lr, epochs in table:
            original_training.stage(model, trained, lr, epochs, train, val, folder)


def batches_of(
    built: store.Store, films: pd.DataFrame, batch: int, kind: type[batches.Batches] = batches.Batches, *,
    shuffle: bool = False, augment: str = "none",
) -> batches.Batches:  # fmt: skip
    return kind(built, films, batch_size=batch, shuffle=shuffle, augment=augmentation.preset(augment))


def _noise(size: int, batch: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, size, size, generator=random)
    return images, (torch.rand(batch, 15, generator=random) < 0.1).float()


def _timed(work: Callable, *args: Any, **more: Any) -> tuple[Any, float]:
    """What ``work`` gives, and the seconds that it took."""
    began = time.perf_counter()
    found = work(*args, **more)
    return found, time.perf_counter() - began


BENCHES = (step, step_float32, memory, schedule, head)
