"""Live plot of a stage's training in a notebook: one figure that is redrawn in place, and a line of text."""

import io
import os
import time
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxrlib import theme
from cxrlib.evaluation import plots
from cxrlib.training.progress import Progress

QUIET = "CXR_QUIET"
"""Environment variable; if not empty nothing is drawn, as when papermill executes a notebook."""
EVERY = 2.0
"""Seconds between two drawings, at least."""
SHARE = 0.01
"""Largest share of the time that drawing may take; slow drawing happens less often."""


class Plot:
    """Watcher for ``fit``: plots loss and validation AUC, with the epoch, images per second and time left.

    Outside a notebook, and where ``CXR_QUIET`` is set, it does nothing.
    """

    def __init__(self) -> None:
        self.handle: Any = None
        self.next = 0.0
        self.epochs = 0
        self.on = _in_notebook() and not os.environ.get(QUIET)

    def __call__(self, progress: Progress) -> None:
        fresh = progress.done or len(progress.history) > self.epochs
        if not self.on or (time.monotonic() < self.next and not fresh):
            return
        began = time.monotonic()
        self._show(draw(progress), progress.text())
        self.epochs = len(progress.history)
        self.next = time.monotonic() + max(EVERY, (time.monotonic() - began) / SHARE)

    def _show(self, fig: Figure, words: str) -> None:
        from IPython.display import Image, display

        picture = io.BytesIO()
        fig.canvas.print_png(picture)
        shown = Image(picture.getvalue(), alt=words)
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


def draw(progress: Progress) -> Figure:
    """Figure of the current state: loss curve on the left, validation AUC of the finished epochs on the right."""
    theme.use()
    fig = Figure(figsize=(9, 2.8), layout="constrained")
    FigureCanvasAgg(fig)
    loss, auc = fig.subplots(1, 2)
    _loss(progress, loss)
    _auc(progress, auc)
    fig.suptitle(progress.text(), x=0.01, ha="left", fontsize=9)
    return fig


def _loss(progress: Progress, ax: Axes) -> None:
    done = pd.DataFrame(progress.history, columns=["epoch", "val_loss"])
    if progress.curve:
        ax.plot(*zip(*progress.curve, strict=True), color=theme.SPLIT_COLOURS["train"], label="training")
    if len(done):
        val = {"color": theme.SPLIT_COLOURS["val"], "marker": "s", "ls": (0, (4, 1.5)), "clip_on": False}
        ax.plot(done["epoch"], done["val_loss"], label="validation", **val)
    ax.set(xlabel="epochs", ylabel="loss", xlim=(0, max(progress.recipe.epochs, 1)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y")
    if progress.curve or len(done):
        ax.legend()


def _auc(progress: Progress, ax: Axes) -> None:
    if not progress.history:
        plots.blank(ax, "validation AUC comes\nafter the first epoch")
        return
    done = pd.DataFrame(progress.history)
    ax.plot(done["epoch"], done["val_auc"], color=theme.INK, marker="o", ms=4, label="mean AUC", clip_on=False)
    ax.axhline(0.5, color=theme.MUTED, lw=0.8, ls=":", label="chance")
    ax.set(xlabel="epochs", ylabel="validation AUC", xlim=(0, max(progress.recipe.epochs, 1)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y")
    ax.legend(loc="lower right")


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"
