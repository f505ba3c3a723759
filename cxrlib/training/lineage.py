"""The line of a checkpoint: which one a stage starts from, what it came from, and which patients were seen on the way.

A checkpoint's JSON carries the line itself: every ancestor's name, hash and recipe, and every patient that any of them
was trained on, so that a test on a patient seen can be refused even where the ancestors' files are gone.
"""

import base64
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torchvision.models import ResNet50_Weights

from cxrlib import paths
from cxrlib.errors import UserError
from cxrlib.training import checkpoint

STAGES = (1, 2, 3, 4, 5)
UNKNOWN = "unknown"
LIST = ".films.txt"
"""Ending, after the weights' own file name, of the list of films that they were trained on: one image name a line."""


@dataclass(frozen=True)
class Lineage:
    """Where a stage starts: what its checkpoints say of their past.

    ``weights`` are the initial weights' name at the head of the line · ``epochs_so_far`` before the stage ·
    ``ancestors`` from the oldest to the parent · ``patients`` trained on, by the ancestors and by the stage ·
    ``origin`` what the initial weights had seen, "unknown" where nobody says.
    """

    weights: str
    epochs_so_far: int
    ancestors: tuple[dict[str, Any], ...]
    patients: np.ndarray
    origin: str = "nothing"

    def packed_patients(self) -> str:
        return pack(self.patients)

    @property
    def parent(self) -> dict[str, Any] | None:
        return self.ancestors[-1] if self.ancestors else None


def of(parent: Path | None, weights: str, films: pd.DataFrame) -> Lineage:
    """The line of a stage that starts from ``parent`` (or from the initial ``weights``) and trains on ``films``.

    Raises UserError where the parent's JSON is absent, damaged or of another format.
    """
    own = np.unique(films["patient"].to_numpy(np.int64))
    if parent is None:
        began, before = origin(weights)
        return Lineage(weights, 0, (), np.union1d(before, own), began)
    meta = checkpoint.read_meta(parent)
    seen = np.union1d(patients(meta), own)
    return Lineage(meta["weights"], meta["epochs_so_far"], (*meta["ancestors"], _ancestor(meta)), seen, meta["origin"])


def parent(run: paths.Run, stage: int, ckpt: str = "") -> Path | None:
    """The checkpoint that a stage starts from: ``ckpt`` if given, else the best of the run's stage before.

    None for stage 1 without ``ckpt``: it starts from the initial weights.
    Raises UserError where the checkpoint, or the stage before, is not there.
    """
    if ckpt:
        return checkpoint.resolve(ckpt, run)
    return checkpoint.best(run.stage(stage - 1)) if stage > 1 else None


def line(run: paths.Run) -> list[Path]:
    """The best checkpoint of every finished stage of a run, in the order of the stages.

    Raises UserError where no stage is finished.
    """
    found = [checkpoint.best(run.stage(k)) for k in STAGES if (run.stage(k) / "best.json").is_file()]
    if not found:
        raise UserError(f"{run.root} has no finished stage; run 01_stage1 first, or name a checkpoint by ckpt=")
    return found


def family(path: Path) -> pd.DataFrame:
    """A checkpoint's ancestors and itself, oldest first: one row each, with rate, epochs and validation AUC."""
    rows = pd.DataFrame(ancestors(path))
    rows["sha256"] = rows["sha256"].str[:12]
    return rows[["name", "schedule", "stage", "lr", "epochs", "epochs_so_far", "val_auc", "data", "sha256"]]


def card(path: Path) -> pd.DataFrame:
    """What a checkpoint says of itself, as a table of one column."""
    meta = checkpoint.read_meta(path)
    shown = {
        "checkpoint": meta["name"],
        "parent": (meta["parent"] or {"name": f"weights {meta['weights']}"})["name"],
        "trained groups": " ".join(meta["recipe"]["groups"]),
        "epochs so far": meta["epochs_so_far"],
        "mean validation AUC": meta["metrics"].get("val_auc"),
        "patients seen, with all ancestors": len(patients(meta)),
        "initial weights had seen": meta["origin"],
        "sha256": meta["sha256"][:16],
    }
    return pd.Series(shown, name="", dtype=object).to_frame()


def origin(weights: str) -> tuple[str, np.ndarray]:
    """What the starting weights were trained on, in words, and the patients among it: sorted int64.

    "none" and torchvision's names have seen no chest films. For a file, a list beside it (``w.pth.films.txt``: image
    names such as 00000013_005.png, or patient numbers) is read; without one the answer is ``UNKNOWN``.
    Raises UserError naming the line of a list that is neither.
    """
    nobody = np.empty(0, np.int64)
    if weights == "none":
        return "nothing", nobody
    if weights in ResNet50_Weights.__members__:
        return "ImageNet, no chest films", nobody
    file = Path(f"{paths.resolve(weights)}{LIST}")
    if not file.is_file():
        return UNKNOWN, nobody
    seen = set()
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        patient = line.strip().split("_")[0]
        if patient and not patient.isdigit():
            raise UserError(f"{file}, line {number}: {line!r} is neither an image name nor a patient's number")
        seen |= {int(patient)} if patient else set()
    return f"{len(seen)} patients listed in {file.name}", np.array(sorted(seen), np.int64)


def ancestors(path: Path) -> list[dict[str, Any]]:
    """The line from the first stage to this checkpoint itself: name, sha256, stage, schedule, lr, epochs, data."""
    meta = checkpoint.read_meta(path)
    return [*meta["ancestors"], _ancestor(meta)]


def patients(meta: dict[str, Any]) -> np.ndarray:
    """The patients that a checkpoint or any of its ancestors was trained on: sorted int64, none twice."""
    try:
        return unpack(meta["patients"])
    except (ValueError, zlib.error) as error:
        raise UserError(f"checkpoint {meta['name']} has a damaged list of patients ({error}); train it again") from None


def refuse_leak(meta: dict[str, Any], films: pd.DataFrame, *, allow: bool = False) -> int:
    """Raise UserError if the checkpoint or an ancestor was trained on a patient of ``films``; ``allow`` lets it pass.

    Returns how many patients of ``films`` were trained on.
    """
    tested = np.unique(films["patient"].to_numpy(np.int64))
    seen = int(np.isin(tested, patients(meta)).sum())
    if seen and not allow:
        raise UserError(
            f"checkpoint {meta['name']} or an ancestor was trained on {seen} of the {len(tested)} patients to be "
            "tested, so a result on them means nothing; take films of other patients, or allow the leak knowingly"
        )
    return seen


def pack(numbers: np.ndarray) -> str:
    """Distinct whole numbers as compressed text: sorted, differences, zlib, base64. 25,000 patients take 12 kB."""
    steps = np.diff(np.unique(numbers).astype("<i8"), prepend=0).astype("<i8")
    return base64.b64encode(zlib.compress(steps.tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The numbers that ``pack`` was given, sorted. Raises ValueError or zlib.error where the text is damaged."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i8").cumsum().astype(np.int64)


def _ancestor(meta: dict[str, Any]) -> dict[str, Any]:
    recipe = meta["recipe"]
    return {
        "name": meta["name"],
        "sha256": meta["sha256"],
        "stage": meta["stage"],
        "schedule": recipe["schedule"],
        "lr": recipe["lr"],
        "epochs": meta["epoch"],
        "epochs_so_far": meta["epochs_so_far"],
        "data": meta["data"],
        "val_auc": meta["metrics"].get("val_auc"),
    }
