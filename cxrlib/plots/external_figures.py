"""Figure of external validation: the AUC of each finding at home and in another dataset."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cxrlib.labels import display_name
from cxrlib.plots import common

SIDES = {"home": ("at home", 0.16, "o"), "there": ("in the other dataset", -0.16, "s")}
"""Name, shift of the height and marker of each side."""


def drop(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC of each finding and of their mean on both sides, with 95 % intervals; frame as ``external.drop``."""
    heights = np.arange(len(table))[::-1].astype(float)
    for i, (side, (name, shift, marker)) in enumerate(SIDES.items()):
        auc, low, high = (table[f"{side}_{column}"] for column in ("auc", "auc_low", "auc_high"))
        ax.hlines(heights + shift, low, high, color=common.RUN_COLOURS[i], lw=1.4)
        style = {"color": common.RUN_COLOURS[i], "ms": 5, "mec": "white", "mew": 0.5, "label": name}
        ax.plot(auc, heights + shift, marker, **style)
    for height, row in zip(heights, table.to_dict("records"), strict=True):
        if np.isnan(row["drop"]):
            look = {"va": "center", "size": 7, "style": "italic", "transform": ax.get_yaxis_transform()}
            ax.text(0.01, height - 0.36, row["reason"], **look)
    names = [f"{display_name(row.finding)} ({row.home_films:,} and {row.there_films:,})" for row in table.itertuples()]
    ax.axvline(0.5, color=common.MUTED, lw=0.8, ls=":")
    ax.set_yticks(heights, names)
    ax.set(xlabel="ROC AUC, 95 % interval by patient (films of known label in brackets)", ylim=(-0.7, heights[0] + 0.7))
    ax.grid(axis="x")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return ax
