"""Theme of every figure, how a figure is saved, and the parts that figures share.

Colours follow Paul Tol's schemes (https://personal.sron.nl/~pault/), which colour-blind readers can tell apart; where
many lines share an axes, a dash pattern or a marker tells them apart in grey as well. A plot function takes data and
``ax`` (or an array of axes) and returns it; the notebook decides the figure. Text from data, such as file names, is
never read as mathematics.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cxrlib import labels, metrics, paths
from cxrlib.labels import display_name

_HUES = ("#332288", "#117733", "#882255", "#0077BB", "#CC3311", "#999933", "#AA4499", "#EE7733")
_DASHES = ("-", (0, (4, 1.5)))

FINDING_COLOURS: dict[str, str] = {
    **{finding: _HUES[i % len(_HUES)] for i, finding in enumerate(labels.FINDINGS)},
    labels.NO_FINDING: "#555555",
}
"""Eight hues, each used twice. Together with ``FINDING_DASHES`` each finding has a unique line."""

FINDING_DASHES: dict[str, str | tuple] = {
    **{finding: _DASHES[i // len(_HUES)] for i, finding in enumerate(labels.FINDINGS)},
    labels.NO_FINDING: (0, (1, 1)),
}

SPLIT_COLOURS: dict[str, str] = {"train": "#004488", "val": "#DDAA33", "test": "#BB5566"}
"""Tol's high-contrast scheme. In grey the three are dark, light and medium."""

STAGE_COLOURS: dict[int, str] = {1: "#E0BC3A", 2: "#9FA04C", 3: "#5E8575", 4: "#37648B", 5: "#1F2F6B"}
"""From light (stage 1) to dark (stage 5), so that the order is visible in grey."""

RUN_COLOURS: tuple[str, ...] = ("#004488", "#BB5566", "#DDAA33", "#117733", "#882255")
MARKERS: tuple[str, ...] = ("o", "s", "D", "^", "v", "P", "X")

INK, MUTED, FAINT, PAPER = "#222222", "#666666", "#D5D5D5", "#FFFFFF"
SEQUENTIAL = "cividis"
"""Colour map for amounts. It is perceptually uniform, for colour-blind readers and in grey too."""

_THEME = {
    "figure.dpi": 84,
    "figure.facecolor": PAPER,
    "savefig.dpi": 120,
    "savefig.bbox": "tight",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "cxrlib",
}


def use_theme() -> None:
    """Set the theme for all later figures. A second call changes nothing."""
    import matplotlib  # heavy, and only plots need it

    matplotlib.rcParams.update(_THEME)


SURE = 0.05  # of an adjusted p


def save(fig: Figure, stem: str | Path, numbers: pd.DataFrame) -> Path:
    """Write the figure as ``stem``.png and .svg and its numbers as ``stem``.csv, each atomically.

    The PNG has at most 128 colours, enough for grey films and charts, which keeps reports small. The same figure gives
    the same files. Returns the PNG's path.
    """
    stem = Path(stem)
    drawn, vector = io.BytesIO(), io.StringIO()
    fig.savefig(drawn, format="png")
    fig.savefig(vector, format="svg", metadata={"Date": None})
    with paths.atomic(stem.with_name(stem.name + ".png")) as temporary:
        fewer_colours(Image.open(drawn).convert("RGB")).save(temporary, format="PNG", optimize=True, dpi=(120, 120))
    paths.write_text(stem.with_name(stem.name + ".svg"), vector.getvalue())
    paths.write_csv(stem.with_name(stem.name + ".csv"), numbers, float_format="%.6g")
    return stem.with_name(stem.name + ".png")


def films(images: Sequence, captions: Sequence[str], axes: np.ndarray) -> np.ndarray:
    """Grey images (S, S) with a caption each, on a grid of axes; unused axes are blank.

    uint8 images are shown from 0 (black) to 255 (white); others, such as normalised tensors, from minimum to maximum.
    """
    places = np.ravel(axes)
    for ax in places:
        ax.axis("off")
    for ax, image, caption in zip(places, images, captions, strict=False):
        image = np.asarray(image).squeeze()
        low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())
        how = "nearest" if len(image) < 160 else "antialiased"
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation=how)
        ax.set_title(wrap_caption(caption), fontsize=7.5, fontweight="normal", loc="center", pad=3, parse_math=False)
    return axes


def blank(ax: Axes, why: str) -> Axes:
    """Empty axes with the reason in the middle."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.text(0.5, 0.5, why, ha="center", va="center", color=MUTED, style="italic", fontsize=8, transform=ax.transAxes)
    return ax


def fewer_colours(picture: Image.Image) -> Image.Image:
    """The picture in 128 colours, which takes a third of the bytes and is enough for curves and grey films."""
    return picture.quantize(128, dither=Image.Dither.NONE)


def whiskers(ax, value, low, high, y, colour, marker, name) -> None:
    ax.hlines(y, low, high, color=colour, lw=1.6)
    ax.plot(value, y, marker, color=colour, ms=5.5, mec="white", mew=0.6, label=name or None)


def row_offset(i: int, n: int) -> float:
    """Offset in height of the i-th of n series from its row, first on top."""
    return 0.0 if n == 1 else 0.28 - 0.56 * i / (n - 1)


def row_heights(names: Sequence[str]) -> np.ndarray:
    """Heights of rows, the first on top; a mean has a little distance."""
    return np.arange(len(names))[::-1] + np.where([metrics.is_mean(name) for name in names], -0.4, 0)


def name_counted_rows(ax: Axes, names: list[str], heights: np.ndarray, positives: pd.Series) -> None:
    counts = {name: int(positives[name]) for name in names if not metrics.is_mean(name)}
    name_rows(
        ax, [f"{display_name(name)}  (n = {counts[name]:,})" if name in counts else name for name in names], heights
    )
    if metrics.is_mean(names[-1]):
        ax.get_yticklabels()[-1].set_fontweight("bold")
        ax.axhline((heights[-1] + heights[-2]) / 2, color=FAINT, lw=0.8)


def name_rows(ax: Axes, names: list[str], heights: np.ndarray) -> None:
    ax.set_yticks(heights, names)
    ax.set_ylim(heights[-1] - 0.6, heights[0] + 0.7)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


def wrap_caption(caption: str, width: int = 24, lines: int = 3) -> str:
    """A caption in at most ``lines`` lines; labels joined by | break there, and a longer caption ends in …"""
    text = caption.replace("Pleural_Thickening", "Pleural Thickening").replace("|", ", ")
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
