"""Learning curves show their numbers for any number of epochs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cxrlib.labels import FINDINGS
from cxrlib.plots import results


def history(epochs):
    """A history of some epochs; the second is the best, Hernia is undefined."""
    rows = {"epoch": np.arange(epochs) + 1, "epochs_so_far": np.arange(epochs) + 3, "train_loss": 0.2, "val_loss": 0.3}
    aucs = {f"auc_{finding}": 0.3 + 0.01 * i for i, finding in enumerate(FINDINGS[:-1])}
    mean = np.where(np.arange(epochs) == 1, 0.7, 0.6)
    return pd.DataFrame(rows).assign(**aucs, auc_Hernia=np.nan, val_auc=mean)


def batches(epochs, each=6):
    parts = [("train", each), ("val", 2)]
    rows = [(e + 1, part, b, 8, e + b / 10) for e in range(epochs) for part, count in parts for b in range(count)]
    return pd.DataFrame(rows, columns=["epoch", "part", "batch", "films", "loss"])


def texts(ax):
    return " ".join(text.get_text() for text in ax.texts)


@pytest.mark.parametrize("epochs", [0, 1, 4])
def test_four_loss_plots(epochs):
    _, axes = plt.subplots(2, 2)
    assert results.losses(batches(epochs), history(epochs), axes) is axes
    plt.gcf().canvas.draw()
    assert all(("no epochs" in texts(ax)) == (epochs == 0) for ax in axes.flat)
    if epochs:
        single = axes[0, 0].lines[0].get_ydata()
        assert list(single) == list(batches(epochs).query("part == 'train'")["loss"])
        assert len(axes[1, 0].lines[0].get_ydata()) == 2 * epochs
        assert list(axes[1, 1].lines[0].get_ydata()) == [0.3] * epochs
    for ax in axes.flat:
        assert all(float(tick).is_integer() for tick in ax.get_xticks()), "half a batch or epoch on the axis"


@pytest.mark.parametrize("epochs", [0, 1, 4])
def test_each_finding_has_its_panel_and_the_best_epoch_a_ring(epochs):
    _, axes = plt.subplots(3, 5, sharex=True, sharey=True)
    assert results.aucs(history(epochs), axes) is axes
    plt.gcf().canvas.draw()
    panels = {ax.get_title(loc="left"): ax for ax in axes.flat}
    assert len(panels) == 15
    assert ("undefined" if epochs else "no epochs") in texts(panels["Hernia"])
    if epochs == 4:
        rings = [line for line in panels["mean of 13 of 14"].lines if line.get_markerfacecolor() == "none"]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(4, 0.7)]
        low, _ = panels["Atelectasis"].get_ylim()
        assert low < 0.3, "a finding worse than chance is cut off"
