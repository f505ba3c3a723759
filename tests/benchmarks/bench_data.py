"""The data floor against the original's way of loading, and at the size of the whole dataset."""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.models import resnet50

from cxrlib import paths, provenance
from cxrlib.data import augmentation, batches, images, records, splits, store
from tests.benchmarks import original
from tests.benchmarks.rows import CPU, WALL, Row, in_turns, machine, one_core, rate, spread

SHARED = Path(__file__).resolve().parents[3] / "shared"
FULLRES, METADATA = SHARED / "nih-fullres", SHARED / "nih-metadata"
SIZE, BATCH = 224, 32
WHOLE = 112_120


def epochs() -> list[Row]:
    """An epoch from the store against the original's, on one core; films of the store repeated to make it last."""
    films = records.read(FULLRES)
    repeated = pd.concat([films] * 20, ignore_index=True)
    with scratch() as folder, one_core():
        built = store.build(films, SIZE, folder=folder, progress=False)

        def ours(preset: str) -> int:
            made = batches.Batches(built, repeated, batch_size=BATCH, shuffle=True, augment=augmentation.preset(preset))
            return sum(len(batch.rows) for batch in made.epoch(0))

        took = in_turns(
            5, CPU, original=lambda: original.epoch(films), plain=lambda: ours("none"), full=lambda: ours("full")
        )
    where = f"CPU seconds on one core, {SIZE} px, batch {BATCH}, original: 1024² PNG decoded in colour, no workers"
    return [
        rate(f"data: epoch, {name} augmentation", took[way], len(repeated), took["original"], len(films), target, where)
        for name, way, target in (("no", "plain", ">= 100 x"), ("full", "full", ">= 30 x"))
    ]


def two_workers() -> list[Row]:
    """An epoch from the store against the original's with two worker processes, on all cores."""
    films = records.read(FULLRES)
    repeated = pd.concat([films] * 20, ignore_index=True)
    with scratch() as folder, many_films(films, 4) as many:
        built = store.build(films, SIZE, folder=folder, progress=False)
        made = batches.Batches(built, repeated, batch_size=BATCH, shuffle=True, augment=augmentation.preset("full"))
        took = in_turns(3, original=lambda: original.epoch(many, workers=2), full=lambda: sum(1 for _ in made.epoch(0)))
    where = f"all cores, {SIZE} px, batch {BATCH}, original with 2 workers; ours without"
    return [
        rate(
            "data: epoch, full, against 2 workers", took["full"], len(repeated), took["original"], len(many), "", where
        )
    ]


def first_epoch() -> list[Row]:
    """The first epoch with the building of the store in it, on one core and on two."""
    films = records.read(FULLRES)
    rows = []
    for cores, links, target in ((1, 4, ">= 2.5 x"), (2, 24, ">= 4 x")):
        with many_films(films, links) as many, one_core() if cores == 1 else all_cores():

            def ours(many=many, cores=cores) -> None:
                with scratch() as folder:
                    built = store.build(many, SIZE, folder=folder, workers=cores, progress=False)
                    made = batches.Batches(built, many, batch_size=BATCH, shuffle=True)
                    for _ in made.epoch(0):
                        pass

            def theirs() -> None:
                with one_core():
                    original.epoch(films)

            took = in_turns(5 if cores == 1 else 3, CPU if cores == 1 else WALL, original=theirs, ours=ours)
        clock = "CPU seconds" if cores == 1 else "seconds"
        by = "kornia-rs" if images.decode_image_png_u8 else "OpenCV alone"
        where = f"{clock}, {cores} core(s) for ours, one for the original, {SIZE} px, by {by}, in the page cache"
        name = f"data: first epoch with building, {cores} core" + "s" * (cores > 1)
        rows.append(rate(name, took["ours"], len(many), took["original"], len(films), target, where))
    return rows


def torchxrayvision() -> list[Row]:
    """An epoch from the store against torchxrayvision's NIH_Dataset with its own crop and resize, on one core."""
    name = "data: epoch, no augmentation, against torchxrayvision"
    try:
        import torchxrayvision as xrv
        from torchvision.transforms import Compose
    except ImportError as error:
        return [Row(name, "", "films/s", conditions=f"skipped: torchxrayvision cannot be imported ({error})")]
    films = records.read(FULLRES)
    repeated = pd.concat([films] * 20, ignore_index=True)
    change = Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(SIZE)])
    theirs = xrv.datasets.NIH_Dataset(
        str(FULLRES / "images"), csvpath=str(FULLRES / "Data_Entry_2017.csv"), views=["PA", "AP"],
        bbox_list_path=str(FULLRES / records.BOXES), transform=change, unique_patients=False)  # fmt: skip

    def load() -> None:
        for batch in torch.utils.data.DataLoader(Grey(theirs), batch_size=BATCH, shuffle=True):
            assert batch.shape[1:] == (1, SIZE, SIZE)

    with scratch() as folder, one_core():
        built = store.build(films, SIZE, folder=folder, progress=False)
        made = batches.Batches(built, repeated, batch_size=BATCH, shuffle=True)
        took = in_turns(3, CPU, theirs=load, ours=lambda: sum(1 for _ in made.epoch(0)))
    how = f"torchxrayvision {xrv.__version__} with XRayCenterCrop and XRayResizer, no workers"
    where = f"CPU seconds on one core, {SIZE} px, {how}"
    return [rate(name, took["ours"], len(repeated), took["theirs"], len(theirs), "", where)]


class Grey(torch.utils.data.Dataset):
    """torchxrayvision's films without what else is in its samples."""

    def __init__(self, films: torch.utils.data.Dataset) -> None:
        self.films = films

    def __len__(self) -> int:
        return len(self.films)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.as_tensor(self.films[row]["img"])


def table() -> list[Row]:
    """Reading, validating and splitting all 112,120 rows."""
    csv = records.find_table(METADATA)
    films = records.read_csv(csv)
    took = in_turns(5, CPU, read=lambda: records.read_csv(csv), split=lambda: splits.make(films, METADATA))
    whats = {"records": ("read", "<= 1.5 s", "gzip CSV read and validated"),
             "split": ("split", "<= 1 s", "official lists, validation by patient")}  # fmt: skip
    return [
        Row(f"data: {name} of 112,120 rows", round(statistics.median(took[way]), 3), "s", target=target, n=WHOLE,
            spread=spread(took[way]), conditions=f"CPU seconds, {what}; {machine()}")
        for name, (way, target, what) in whats.items()
    ]  # fmt: skip


def whole_dataset() -> list[Row]:
    """Opening and going through a store as large as that of the whole dataset at 256²: 7.3 GB on disk."""
    with scratch() as small, scratch() as large:
        simulate(small, 1024, 256)
        simulate(large, WHOLE, 256)
        opening = in_turns(5, CPU, open=lambda: store.load(large))["open"]
        cost: dict[str, list[float]] = {"small": [], "large": []}
        for turn in range(5):
            for name, folder in (("small", small), ("large", large)):
                cost[name].append(batch_cost(store.load(folder), turn))
        child = subprocess.run([sys.executable, "-c", MEMORY, large], capture_output=True, text=True, check=True)
        memory = json.loads(child.stdout)
    ratios = [a / b for a, b in zip(cost["large"], cost["small"], strict=True)]
    where = f"CPU seconds, simulated store of {WHOLE:,} films of 256², 7.3 GB; {machine()}"
    return [
        Row("data: opening a store of 112,120", round(statistics.median(opening), 3), "s", target="<= 1 s", n=WHOLE,
            spread=spread(opening), conditions=where),
        Row("data: private memory over an epoch of 112,120", round(memory["peak"] / 1e9, 3), "GB", target="<= 1.5 GB",
            n=WHOLE, conditions=f"RssAnon, whole process with torch ({memory['before'] / 1e9:.2f} GB before); {where}"),
        Row("data: cost of a batch, 112 k against 1 k films", round(1e3 * statistics.median(cost["large"]), 2), "ms",
            round(1e3 * statistics.median(cost["small"]), 2), round(statistics.median(ratios), 3), "<= 1.25 x",
            100, spread(ratios), f"ratio is large to small; batch {BATCH}, shuffled, pages in the page cache; {where}"),
    ]  # fmt: skip


MEMORY = """
import json, sys
from pathlib import Path
import pandas as pd
from cxrlib import labels
from cxrlib.data import batches
from cxrlib.data import store


def private():
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

before = private()
built = store.load(sys.argv[1])
films = pd.DataFrame({"image": built.names, **{name: 0 for name in labels.LABELS}})
made = batches.Batches(built, films, batch_size=128, shuffle=True)
peak = max(private() for _ in made.epoch(0))
print(json.dumps({"before": before, "peak": peak}))
"""


def simulate(folder: Path, films: int, size: int) -> None:
    """A store of noise with a manifest like any other's. Written by the builder's own code for both files."""
    from cxrlib.data import images

    folder.mkdir(exist_ok=True)
    names = [f"{i:08d}_000.png" for i in range(films)]
    images.allocate_pixel_file(folder / "pixels-0.npy", (films, size, size))
    pixels = np.load(folder / "pixels-0.npy", mmap_mode="r+")
    noise = np.random.default_rng(0).integers(0, 256, (1024, size, size), dtype=np.uint8)
    for at in range(0, films, len(noise)):
        pixels[at : at + len(noise)] = noise[: films - at]
    pixels.flush()
    columns = {name: [0] * films for name in ("bytes", "mtime_ns", "source_crc", "width", "height")}
    sums = [zlib.crc32(film) for film in noise]
    columns["pixel_crc"] = (sums * (films // len(sums) + 1))[:films]
    mark = provenance.digest([store.FORMAT, size, names, columns["pixel_crc"]])
    manifest = {"format": store.FORMAT, "size": size, "pixels": "pixels-0.npy", "fingerprint": mark, "missing": {}}
    (folder / store.MANIFEST).write_text(json.dumps(manifest | {"films": {"name": names, **columns}}))


def batch_cost(built: store.Store, epoch: int, count: int = 100) -> float:
    """CPU seconds for a batch, over ``count`` of an epoch, its beginning left out."""
    from cxrlib import labels

    repeats = -(-BATCH * (count + 20) // len(built.names))
    films = pd.DataFrame({"image": built.names * repeats}).assign(**dict.fromkeys(labels.LABELS, 0))
    run = batches.Batches(built, films, batch_size=BATCH, shuffle=True).epoch(epoch)
    for _ in range(10):
        next(run)
    started = CPU()
    for _ in range(count):
        next(run)
    took = (CPU() - started) / count
    run.close()
    return took


def waiting() -> list[Row]:
    """The share of ResNet-50's training time that is spent waiting for the next batch, with full augmentation."""
    films = records.read(FULLRES)
    repeated = pd.concat([films] * 3, ignore_index=True)
    model = resnet50(num_classes=15).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    waited, worked = 0.0, 0.0
    with scratch() as folder:
        built = store.build(films, SIZE, folder=folder, progress=False)
        made = batches.Batches(built, repeated, batch_size=BATCH, shuffle=True, augment=augmentation.preset("full"))
        run = made.epoch(0)
        next(run)
        for _ in range(6):
            started = time.perf_counter()
            batch = next(run)
            arrived = time.perf_counter()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(batch.images.expand(-1, 3, -1, -1)), batch.labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            waited, worked = waited + arrived - started, worked + time.perf_counter() - arrived
        run.close()
    share = 100 * waited / (waited + worked)
    return [Row("data: share of training spent waiting for data", round(share, 4), "%", target="< 1 %", n=6,
                conditions=f"ResNet-50, {SIZE} px, batch {BATCH}, CPU, full augmentation, "
                           f"{worked / 6:.1f} s a step; {machine()}")]  # fmt: skip


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk of the outputs that goes afterwards."""
    (paths.outputs() / "bench").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=paths.outputs() / "bench", prefix="scratch-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def many_films(films: pd.DataFrame, times: int) -> Iterator[pd.DataFrame]:
    """The films ``times`` over under different names, each to be decoded by itself."""
    with scratch() as folder:
        copies = []
        for i in range(times):
            copy = films.assign(image=[f"{i}_{name}" for name in films["image"]])
            copy["path"] = [str(folder / name) for name in copy["image"]]
            for link, path in zip(copy["path"], films["path"], strict=True):
                Path(link).symlink_to(path)
            copies.append(copy)
        yield pd.concat(copies, ignore_index=True)


@contextmanager
def all_cores() -> Iterator[None]:
    yield


BENCHES = (table, epochs, first_epoch, two_workers, torchxrayvision, waiting, whole_dataset)
