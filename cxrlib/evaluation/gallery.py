"""Films to look at: one of each finding, with its radiologist's box where there is one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cxrlib import theme
from cxrlib.data import images, records
from cxrlib.evaluation import plots
from cxrlib.labels import FINDINGS


def one_of_each(films: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """For each finding that is there, the film that shows it plainest; a column ``shown`` names the finding.

    Films with a box of the finding come first, then those with the fewest other findings.
    """
    boxed = set(zip(boxes["image"], boxes["finding"], strict=True))
    several = records.label_matrix(films).sum(1)
    chosen = []
    for finding in FINDINGS:
        there = films.assign(shown=finding, several=several)[films[finding] == 1]
        if len(there):
            unboxed = [(image, finding) not in boxed for image in there["image"]]
            chosen.append(there.assign(unboxed=unboxed).sort_values(["unboxed", "several"], kind="stable").head(1))
    empty = films.head(0).assign(shown="")
    return pd.concat(chosen).drop(columns=["several", "unboxed"]) if chosen else empty


def show(examples: pd.DataFrame, boxes: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Draw the films of ``one_of_each`` from their files, a box around the finding where there is one."""
    pictures = [images.read(path) for path in examples["path"]]
    plots.films(pictures, [theme.name(finding) for finding in examples["shown"]], axes)
    for ax, picture, row in zip(np.ravel(axes), pictures, examples.itertuples(), strict=False):
        own = boxes[(boxes["image"] == row.image) & (boxes["finding"] == row.shown)]
        outline(records.scale_boxes(own, picture.shape[1], picture.shape[0]), ax)
    return axes


def outline(boxes: pd.DataFrame, ax: Axes) -> Axes:
    """Draw boxes given in the pixels of the film that the axes show."""
    for box in boxes.itertuples():
        ax.add_patch(Rectangle((box.x, box.y), box.w, box.h, fill=False, ec="white", lw=2.4))
        ax.add_patch(Rectangle((box.x, box.y), box.w, box.h, fill=False, ec=theme.RUN_COLOURS[1], lw=1.2))
    return ax


def show_maps(
    pictures: np.ndarray, heat: np.ndarray, boxes: np.ndarray, captions: Sequence[str], axes: np.ndarray
) -> np.ndarray:
    """Draw films with what a heat map points out on them and where the boxes are.

    pictures (T, S, S) uint8, heat (T, S, S) from 0 to 1, boxes (T, S, S) bool. The region above half of the maximum is
    tinted, the maximum is a cross, the box a white line: shapes, so that it can be read without colour.
    """
    plots.films(pictures, captions, axes)
    for ax, map_, box in zip(np.ravel(axes), heat, boxes, strict=False):
        ax.imshow(np.ones_like(map_), cmap="autumn", vmin=0, vmax=1, alpha=0.45 * (map_ >= 0.5 * map_.max()))
        ax.contour(box, [0.5], colors="white", linewidths=1.6)
        down, right = np.unravel_index(np.argmax(map_), map_.shape)
        ax.plot(right, down, "+", color="white", ms=9, mew=3)
        ax.plot(right, down, "+", color=theme.INK, ms=8, mew=1.4)
    return axes
