"""Figures of films: examples with the radiologists' boxes, heat maps, and the results of localisation."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cxrlib import theme
from cxrlib.data import images, records
from cxrlib.evaluation import localise, plots
from cxrlib.labels import FINDINGS


def one_of_each(films: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """One example film of each finding in ``films``; the column ``shown`` names the finding.

    Films with a box of the finding are preferred, then those with the fewest other findings.
    """
    boxed = set(zip(boxes["image"], boxes["finding"], strict=True))
    several = records.label_matrix(films).sum(1)
    chosen = []
    for finding in FINDINGS:
        positive = films.assign(shown=finding, several=several)[films[finding] == 1]
        if len(positive):
            unboxed = [(image, finding) not in boxed for image in positive["image"]]
            chosen.append(positive.assign(unboxed=unboxed).sort_values(["unboxed", "several"], kind="stable").head(1))
    empty = films.head(0).assign(shown="")
    return pd.concat(chosen).drop(columns=["several", "unboxed"]) if chosen else empty


def show(examples: pd.DataFrame, boxes: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Draw the films of ``one_of_each`` from their files, with the finding's boxes."""
    pictures = [images.read(path) for path in examples["path"]]
    plots.films(pictures, [theme.name(finding) for finding in examples["shown"]], axes)
    for ax, picture, row in zip(np.ravel(axes), pictures, examples.itertuples(), strict=False):
        own = boxes[(boxes["image"] == row.image) & (boxes["finding"] == row.shown)]
        outline(records.scale_boxes(own, picture.shape[1], picture.shape[0]), ax)
    return axes


def outline(boxes: pd.DataFrame, ax: Axes) -> Axes:
    """Draw boxes on axes that show their film; boxes in its pixels."""
    for box in boxes.itertuples():
        ax.add_patch(Rectangle((box.x, box.y), box.w, box.h, fill=False, ec="white", lw=2.4))
        ax.add_patch(Rectangle((box.x, box.y), box.w, box.h, fill=False, ec=theme.RUN_COLOURS[1], lw=1.2))
    return ax


def show_maps(
    pictures: np.ndarray, heat: np.ndarray, boxes: np.ndarray, captions: Sequence[str], axes: np.ndarray
) -> np.ndarray:
    """Draw films with the regions of their heat maps and the outlines of their boxes.

    pictures (T, S, S) uint8, heat (T, S, S) from 0 to 1, boxes (T, S, S) bool. The region above half of the maximum is
    tinted, the maximum (the middle of several equal ones) is a cross, the box is a white line, so it reads without
    colour. A map that is 0 everywhere has neither region nor cross.
    """
    plots.films(pictures, captions, axes)
    for ax, map_, box in zip(np.ravel(axes), heat, boxes, strict=False):
        ax.contour(box, [0.5], colors="white", linewidths=1.6)
        if map_.max() <= 0:
            continue
        region = map_ >= localise.REGION * map_.max()
        ax.imshow(np.ones_like(map_), cmap="autumn", vmin=0, vmax=1, alpha=0.45 * region)
        down, right = np.argwhere(map_ == map_.max()).mean(0)
        ax.plot(right, down, "+", color="white", ms=9, mew=3, clip_on=False)
        ax.plot(right, down, "+", color=theme.INK, ms=8, mew=1.4, clip_on=False)
    return axes


def lifts(tables: Mapping[str, pd.DataFrame], ax: Axes) -> Axes:
    """Lift (hit rate over that of a random point) per finding with intervals; frames as ``localise.table``."""
    order = list(next(iter(tables.values()))["finding"])
    heights = np.arange(len(order))[::-1].astype(float)
    for i, (name, table) in enumerate(tables.items()):
        rows, y = table.set_index("finding").reindex(order), heights + 0.14 - 0.28 * i / max(len(tables) - 1, 1)
        colour = theme.RUN_COLOURS[i]
        ax.hlines(y, rows["lift_low"], rows["lift_high"], color=colour, lw=1.5)
        ax.plot(rows["lift"], y, theme.MARKERS[i], color=colour, ms=5.5, mec="white", mew=0.6, label=name)
    counts = next(iter(tables.values())).set_index("finding")["boxes"]
    ax.axvline(1, color=theme.INK, lw=0.8)
    ax.set_yticks(heights, [f"{theme.name(name)}  (n = {counts[name]:,})" for name in order])
    ax.set(xlabel="hit rate over that of a random point (1: no better than chance)", ylim=(-0.7, len(order) - 0.3))
    drawn = pd.concat(tables.values())[["lift", "lift_high"]].max()
    ax.set_xlim(0, max(2.0, min(1.05 * drawn["lift_high"], 2 * drawn["lift"])))  # few boxes give long intervals
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(tables), borderaxespad=0.2)
    return ax


def overlaps(table: pd.DataFrame, ax: Axes, name: str = "all maps") -> Axes:
    """Share of maps with at least a given IoU or IoBB with the box, over all findings, with intervals."""
    row = table[table["finding"] == localise.ALL].iloc[0]
    for i, (kind, title) in enumerate((("iou", "IoU"), ("iobb", "IoBB"))):
        columns = [f"{kind}_{round(100 * least)}" for least in localise.OVERLAPS]
        value, low, high = (
            row[[f"{column}{end}" for column in columns]].to_numpy(float) for end in ("", "_low", "_high")
        )
        style = {"color": theme.RUN_COLOURS[i], "marker": theme.MARKERS[i], "ms": 5.5, "capsize": 3, "lw": 1.4}
        ax.errorbar(localise.OVERLAPS, value, [value - low, high - value], label=title, ls="-" if i else "--", **style)
    ax.set(xlabel="overlap of at least", ylabel="share of maps", ylim=(-0.02, 1.02), xticks=localise.OVERLAPS)
    ax.set_title(f"{name}  (n = {row['boxes']:,})")
    ax.grid(axis="y")
    ax.legend(loc="upper right")
    return ax
