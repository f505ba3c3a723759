"""Checks before a run trains: its weights and checkpoints, and a forecast of its time."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from cxrlib import paths
from cxrlib.workbook import kernel_client, record, settings
from cxrlib.workbook.settings import Scalar

USUAL = ("none", settings.REAL["weights"], settings.SEED["weights"])
"""Starting weights that are not checked, which saves the import of PyTorch."""


def judge(home: paths.Run, books: Iterable[Path], shares: Mapping[str, Mapping[str, Scalar]], before: Mapping) -> None:
    """Check the weights and checkpoints in these notebooks' parameters, except of notebooks already done with them.

    before: the run's record. Raises UserError for weights that are absent, unreadable, not finite or not of a
    ResNet-50, and for a checkpoint that is absent, damaged or without an image size for the test.
    """
    for book in books:
        done, share = before.get("notebooks", {}).get(book.stem, {}), shares[book.stem]
        if done.get("state") == "done" and done.get("parameters") == dict(share):
            continue
        if share.get("ckpt"):
            from cxrlib.training import checkpoint  # PyTorch takes seconds to load

            checkpoint.load(_checkpoint(home, book, share)[0])
        elif settings.part(book) == "stage1" and share.get("weights", "none") not in USUAL:
            from cxrlib.training import network

            network.judge(str(share["weights"]))


def told(home: paths.Run, books: Iterable[Path], shares: Mapping[str, Mapping[str, Scalar]]) -> list[str]:
    """Sentences for the start of a run: the tested checkpoint, and a test at another image size than in training."""
    books = list(books)
    if any(settings.part(book).startswith("stage") for book in books):
        return []  # the checkpoint to test does not exist yet
    words = []
    for book in books:
        share = shares[book.stem]
        if share.get("ckpt"):
            path, size = _checkpoint(home, book, share)
            words.append(f"{path.stem} is tested on films of {size} pixels")
            words.append(_another_size(path.with_suffix(".json"), size))
        elif "ckpt" in settings.parameters(book) and (last := _last(home)):
            words.append(_another_size(last, int(share.get("size", 0))))
    return list(dict.fromkeys(filter(None, words)))


def forecast(
    books: list[Path],
    shares: Mapping[str, Mapping[str, Scalar]],
    films: Mapping,
    kernels: kernel_client.Kernels,
) -> list[str]:
    """Lines on the device, speed and duration of these notebooks' training; empty where they cannot be measured.

    films: as from ``pipeline.data``. ``training.forecast`` measures in a separate process.
    """
    names, stages, shared = ("schedule", "lr", "epochs", "loss", "also"), [], {}
    for book in (book for book in books if settings.part(book).startswith("stage")):
        own = {**settings.parameters(book), **shares[book.stem]}
        if not {*names, "size", "batch_size"} <= own.keys():
            return []
        shared = {name: own[name] for name in ("size", "batch_size")}
        stages.append({"number": int(settings.part(book).removeprefix("stage")), **{name: own[name] for name in names}})
    request = json.dumps({"stages": stages, "films": films["parts"], "notebooks": len(books), **shared})
    text, code = kernels.output(f"from cxrlib.training import forecast; forecast.tell({request!r})")
    return [] if code else text.strip().splitlines()


def _last(home: paths.Run) -> Path | None:
    """JSON of the best checkpoint of the last finished stage; None if no stage is finished."""
    done = [home.stage(stage) for stage in record.STAGES if (home.stage(stage) / "best.json").is_file()]
    best = paths.read_json(done[-1] / "best.json").get("best", "") if done else ""
    return done[-1] / f"{best}.json" if best and (done[-1] / f"{best}.json").is_file() else None


def _another_size(described: Path, read_at: int) -> str:
    trained = paths.read_json(described).get("size", 0)
    if 0 in (trained, read_at) or trained == read_at:
        return ""
    return f"{described.stem} was trained on films of {trained} pixels and is read at {read_at}"


def _checkpoint(home: paths.Run, book: Path, share: Mapping[str, Scalar]) -> tuple[Path, int]:
    """The checkpoint in a notebook's parameters, and the image size of its test; 0 for a stage's notebook."""
    from cxrlib.training import checkpoint

    path = checkpoint.resolve(str(share["ckpt"]), home)
    return path, 0 if settings.part(book).startswith("stage") else checkpoint.size(path, int(share.get("size", 0)))
