"""Learning curves of a stage: loss by batch and by epoch, validation AUC by epoch; frames as in ``fit.Result``."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cxrlib import theme
from cxrlib.evaluation import metrics, plots
from cxrlib.labels import FINDINGS

NONE = "no epochs in this stage:\nthe weights stay as they are"
PARTS = {"train": ("training", "-", "o"), "val": ("validation", (0, (4, 1.5)), "s")}
SMOOTH = 20
"""Batches in the moving mean of the losses, at most."""


def curves(batches: pd.DataFrame, epochs: pd.DataFrame, folder: Path) -> None:
    """Show both figures of a stage below a notebook's cell, and save them as ``loss`` and ``auc`` in ``folder``.

    ``batches`` and ``epochs`` as for ``losses`` and ``aucs``.
    """
    fig, axes = plt.subplots(2, 2, figsize=(10, 5.6), layout="constrained")
    losses(batches, epochs, axes)
    plots.save(fig, folder / "loss", batches)
    fig, axes = plt.subplots(3, 5, figsize=(11, 6), sharex=True, sharey=True, layout="constrained")
    aucs(epochs, axes)
    plots.save(fig, folder / "auc", epochs)
    plt.show()


def losses(batches: pd.DataFrame, epochs: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Four plots of the loss: training above, validation below; by batch on the left, by epoch on the right.

    ``batches`` has epoch, part ("train", "val"), batch, films and loss; ``epochs`` as ``fit.Result.history``.
    """
    for (left, right), (part, (name, dash, marker)) in zip(np.reshape(axes, (2, 2)), PARTS.items(), strict=True):
        if epochs.empty:
            plots.blank(left, NONE)
            plots.blank(right, NONE)
            continue
        colour = theme.SPLIT_COLOURS[part]
        _by_batch(batches[batches["part"] == part], left, colour)
        left.set(title=f"{name.capitalize()}, batch by batch", ylabel="loss")
        right.plot(epochs["epochs_so_far"], epochs[f"{part}_loss"], color=colour, ls=dash, marker=marker, ms=4)
        right.set(title=f"{name.capitalize()}, mean of each epoch", xlabel="epochs so far", ylabel="loss")
        right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        right.grid(axis="y")
    return axes


def _by_batch(batches: pd.DataFrame, ax: Axes, colour: str) -> None:
    """Losses of batches (faint), their moving mean (strong), and a dotted line where an epoch begins."""
    loss = batches["loss"].to_numpy()
    x = np.arange(1, len(loss) + 1)
    ax.plot(x, loss, color=theme.FAINT, lw=0.9, marker="." if len(loss) < 40 else None, ms=3)
    width = int(np.clip(len(loss) // 5, 1, SMOOTH))
    ax.plot(x, pd.Series(loss).rolling(width, min_periods=1, center=True).mean(), color=colour)
    for start in np.flatnonzero(np.diff(batches["epoch"])) + 1:
        ax.axvline(start + 0.5, color=theme.MUTED, lw=0.6, ls=":")
    ax.set(xlabel=f"batches (line: mean of {width})" if width > 1 else "batches")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(axis="y")


def aucs(epochs: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Validation AUC over the epochs: a panel for each of the 14 findings, and one for their mean.

    Every panel shows the mean in grey. The dotted line is chance, the ring is the best epoch. A panel without an AUC
    says so.
    """
    panels = np.ravel(axes)
    best = epochs["val_auc"].idxmax() if epochs["val_auc"].notna().any() else None
    defined = sum(epochs[f"auc_{finding}"].notna().any() for finding in FINDINGS) or len(FINDINGS)
    columns = {theme.name(finding): f"auc_{finding}" for finding in FINDINGS} | {metrics.mean_of(defined): "val_auc"}
    lowest = epochs[list(columns.values())].min(axis=None)
    for (name, column), ax in zip(columns.items(), panels, strict=True):
        ax.set_title(name, fontsize=8.5)
        if epochs[column].isna().all():
            plots.blank(ax, "no epochs" if epochs.empty else "undefined:\none class only")
            continue
        x, values = epochs["epochs_so_far"], epochs[column]
        ax.plot(x, epochs["val_auc"], color=theme.FAINT, lw=2.4)
        ax.plot(x, values, color=theme.INK if column == "val_auc" else theme.SPLIT_COLOURS["train"], marker="o", ms=3)
        if best is not None:
            ax.plot(x[best], values[best], "o", ms=8, mfc="none", mec=theme.SPLIT_COLOURS["test"], mew=1.4)
        ax.axhline(0.5, color=theme.MUTED, lw=0.8, ls=":")
        ax.set_ylim(min(0.45, lowest - 0.03), 1.01)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(axis="y")
    for ax in panels[-5:]:
        ax.set_xlabel("epochs so far")
    return axes
