"""From stage to stage: which checkpoint a stage starts from, which ones a run has, and what each is made of."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from cxrlib import paths
from cxrlib.errors import UserError
from cxrlib.training import checkpoint, network

STAGES = (1, 2, 3, 4, 5)


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
    rows = pd.DataFrame(checkpoint.ancestors(path))
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
        "patients seen, with all ancestors": len(checkpoint.patients(meta)),
        "initial weights had seen": meta["origin"],
        "sha256": meta["sha256"][:16],
    }
    return pd.Series(shown, name="", dtype=object).to_frame()


def travelled(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> pd.DataFrame:
    """How far each layer group went from one state dict to another, as a share of where it was.

    Index group; ``weights``: ‖after − before‖ / ‖before‖ over all that is learnt by gradients; ``statistics``: the
    same over BatchNorm's running means and variances, NaN for a group without. 0 means bit-equal.
    """
    rows = []
    for group in network.GROUPS:
        names = [name for name in before if network.group_of(name) == group and before[name].is_floating_point()]
        moving = [name for name in names if "running_" in name]
        learnt = [name for name in names if "running_" not in name]
        rows.append({"weights": _distance(before, after, learnt), "statistics": _distance(before, after, moving)})
    return pd.DataFrame(rows, index=pd.Index(network.GROUPS, name="group"))


def _distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: list[str]) -> float:
    if not names:
        return float("nan")
    was = torch.cat([before[name].flatten().double() for name in names])
    now = torch.cat([after[name].flatten().double() for name in names])
    return float((now - was).norm() / was.norm())
