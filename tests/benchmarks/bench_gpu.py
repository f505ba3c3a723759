"""What an NVIDIA card makes of the training engine: ``make bench-gpu``, under six minutes on one H100 in all.

Films are noise in memory, so that neither a disk nor a decoder is measured; the rehearsal at the end draws its own.
Every bench takes its sizes and its device, so that its code can be tried on a CPU. Where there is no card, none runs.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn
from torchvision.models import resnet50

from cxrlib import labels, metrics, paths
from cxrlib.data.augmentation import preset
from cxrlib.data.batches import Batches
from cxrlib.evaluation import predict
from cxrlib.training import devices, fit, losses, network, schedules
from tests.benchmarks.bench_training import our_step, their_step
from tests.benchmarks.rows import Row

CARD = torch.device("cuda")
PRECISIONS = ("auto", "float16")
REHEARSED = 20_000
COMPILED = (3, 5)
"""Stages whose step is measured compiled, too: each takes up to a minute to compile."""
EXPECTED = {1: ">= 40000", 2: ">= 12000", 3: ">= 12000", 5: ">= 4500"}
"""Images/s that ``fit`` aims at on an H100, by stage of ``modern``."""


def step(size: int = 224, batch: int = 128, steps: int = 30, device: torch.device = CARD) -> list[Row]:
    """A step of each stage of ``seed`` on a batch that lies on the card: the original's, ours, compiled, in float16."""
    rows = []
    for number in range(1, 6):
        theirs = speed(their_step(number, size, batch, device=device), batch, steps, device)
        ways = {f"{precision}": {"precision": precision} for precision in PRECISIONS}
        ways |= {"compiled": {"compiled": True}} if number in COMPILED else {}
        for name, how in ways.items():
            made = our_step(number, size, batch, device=device, **how)
            rows.append(row(f"gpu: step, seed stage {number}, {name}", speed(made, batch, steps, device), theirs, batch,
                            f"{size} px, frozen layers computed each time; the original in float32"))  # fmt: skip
            del made
    modern = our_step(5, size, batch, schedule="modern", device=device)
    rows.append(row("gpu: step, modern stage 5", speed(modern, batch, steps, device), "", batch, f"{size} px"))
    return rows


def bare(size: int = 224, batch: int = 128, steps: int = 30, device: torch.device = CARD) -> list[Row]:
    """The ceiling: torchvision's ResNet-50 on three channels, half precision, channels-last, nothing else."""
    rows = []
    for compiled in (False, True):
        made = bare_step(size, batch, device, compiled=compiled)
        name = f"gpu: bare network, {'compiled' if compiled else 'eager'}"
        rows.append(row(name, speed(made, batch, steps, device), "", batch, f"{size} px, all layers, fused AdamW"))
    return rows


def bare_step(size: int, batch: int, device: torch.device, *, compiled: bool) -> Callable[[], None]:
    model = resnet50(num_classes=15).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    marks = torch.randint(2, (batch, 15), device=device).float()
    run, dtype = torch.compile(model) if compiled else model, devices.dtype(device)

    def work() -> None:
        with devices.autocast(device, dtype):
            logits = run(images)
        nn.functional.binary_cross_entropy_with_logits(logits.float(), marks).backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def training(
    films: int = 20_000, size: int = 224, batch: int = 128, device: torch.device = CARD, numbers=(1, 2, 3, 5)
) -> list[Row]:
    """``fit`` of stages of ``modern``, two epochs each, over films in memory; the second epoch counts."""
    pixels, table = noise_films(films, size)
    rows = []
    for number in numbers:
        for compiled in {1: ("no",), 5: ("no", "yes")}.get(number, ("yes",)):
            with tempfile.TemporaryDirectory() as folder:
                history = fitted(pixels, table, number, compiled, batch, device, Path(folder))
            value = history["images_per_s"].iloc[-1]
            name = f"gpu: fit, modern stage {number}{', compiled' if compiled == 'yes' else ''}"
            rows.append(row(name, value, "", len(table), f"{size} px, batch {batch}, second epoch; first epoch "
                            f"{history['seconds'].iloc[0]:.1f} s", EXPECTED[number]))  # fmt: skip
    return rows


def fitted(
    pixels: SimpleNamespace,
    table: pd.DataFrame,
    number: int,
    compiled: str,
    batch: int,
    device: torch.device,
    folder: Path,
) -> pd.DataFrame:
    recipe = schedules.recipe("modern", number, epochs=2, compile=compiled)
    cut = len(table) // 20
    val, train = (table[part].reset_index(drop=True) for part in (slice(cut), slice(cut, None)))
    varied = preset(recipe.augment)
    return fit.fit(
        network.build("none"),
        Batches(pixels, train, batch_size=batch, shuffle=True, augment=varied),
        Batches(pixels, val, batch_size=2 * batch),
        losses.make(recipe.loss),
        recipe,
        folder=folder,
        score=metrics.auc_per_label,
        device=device,
        progress=False,
    ).history


def reading(films: int = 20_000, size: int = 224, batch: int = 256, device: torch.device = CARD) -> list[Row]:
    """``predict`` over films in memory, without and with ten crops."""
    pixels, table = noise_films(films, size)
    model = network.build("none").to(device)
    rows = []
    for tta in ("none", "tencrop"):
        few = table.head(len(table) if tta == "none" else max(len(table) // 10, batch))
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            predict.predict(model, Batches(pixels, few, batch_size=batch), tta=tta)
            seconds.append(time.perf_counter() - began)
        name = "gpu: predict" + (f", {tta}" if tta != "none" else "")
        target = ">= 15000" if tta == "none" else ""
        rows.append(
            row(name, len(few) / min(seconds), "", len(few), f"{size} px, batch {batch}, faster of two", target)
        )
    return rows


def rehearsal(films: int = REHEARSED) -> list[Row]:
    """The whole chain of ``modern`` on drawn films; its own rows tell each step's time (``rehearsal: …``)."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmarks.rehearsal", "--films", str(films)]
    subprocess.run(command, cwd=paths.PACKAGE.parent, check=True)
    where = "drawing, store and chain of modern, 16 passes, 224 px, batch 128"
    return [Row("gpu: rehearsal", round(time.perf_counter() - began), "s", n=films, conditions=f"{where}; {card()}")]


def noise_films(films: int, size: int) -> tuple[SimpleNamespace, pd.DataFrame]:
    """A store in memory and its table of films: random pixels, one random finding in ten."""
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (films, size, size), dtype=np.uint8)
    marks = (random.random((films, 15)) < 0.1).astype(np.uint8)
    marks[:, -1] = ~marks[:, :-1].any(1)
    table = pd.DataFrame(marks, columns=list(labels.LABELS))
    names = {"image": [f"{i:08d}_000.png" for i in range(films)], "path": "", "patient": np.arange(films)}
    table = table.assign(**names, follow_up=0, age=50.0, sex="F", view="PA")

    def gather(rows: np.ndarray, out: np.ndarray) -> None:
        np.take(values, rows, axis=0, out=out, mode="clip")

    rows = pd.Index(table["image"])
    store = SimpleNamespace(size=size, gather=gather, pixels=values, names=list(rows), fingerprint="noise")
    store.pixels_of = lambda part: "noise"
    store.rows = lambda part: rows.get_indexer(part["image"]).astype(np.int64)
    return store, table


def speed(work: Callable[[], None], batch: int, steps: int, device: torch.device) -> float:
    """Images/s of a step: a third of the steps to warm up, the others timed together, the card waited for."""
    for _ in range(max(steps // 3, 1)):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        work()
    wait(device)
    return batch * steps / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(name: str, value: float, baseline: float | str, n: int, conditions: str, target: str = "") -> Row:
    ratio = round(value / baseline, 2) if baseline != "" else ""
    base = round(baseline, 1) if baseline != "" else ""
    return Row(name, round(value, 1), "images/s", base, ratio, target, n, "", f"{conditions}; {card()}")


def card() -> str:
    """The card, its precision and the versions that count."""
    found = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no card"
    return f"{found}, {devices.dtype_name(devices.dtype(devices.device()))}, torch {torch.__version__}"


BENCHES = (step, bare, training, reading, rehearsal) if torch.cuda.is_available() else ()
