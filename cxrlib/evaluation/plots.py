"""Figures of a run: films, AUC per finding, gains, stages; and the saving of figures.

A function takes data and ``ax`` (or an array of axes) and returns it; the notebook makes the figure. Text from data,
such as file names, is not parsed as mathematics.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cxrlib import paths, theme
from cxrlib.evaluation import metrics
from cxrlib.labels import FINDINGS

theme.use()
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
    paths.write_text(stem.with_name(stem.name + ".csv"), numbers.to_csv(index=False, float_format="%.6g"))
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
        ax.set_title(_wrapped(caption), fontsize=7.5, fontweight="normal", loc="center", pad=3, parse_math=False)
    return axes


def forest(tables: Mapping[str, pd.DataFrame] | pd.DataFrame, ax: Axes) -> Axes:
    """AUC per finding as dots with intervals, for one or several stages or runs; the mean is the last row.

    tables: one frame as ``summary.auc``, or several by name; the first decides the order, highest on top.
    """
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    first = next(iter(tables.values())).set_index("finding")
    order = [*first.loc[list(FINDINGS)].sort_values("auc", ascending=False, na_position="last").index, first.index[-1]]
    heights = _heights(order)
    for i, (name, table) in enumerate(tables.items()):
        named = table["finding"].where(
            ~table["finding"].map(metrics.is_mean), order[-1]
        )  # a mean may be over other findings
        rows, y = table.set_index(named).loc[order], heights + _offset(i, len(tables))
        colour = theme.RUN_COLOURS[i % len(theme.RUN_COLOURS)]
        _whiskers(ax, rows["auc"], rows["auc_low"], rows["auc_high"], y, colour, theme.MARKERS[i], name)
    ax.axvline(0.5, color=theme.MUTED, lw=0.8, ls=":")
    ax.text(0.5, heights[0] + 0.75, "chance", ha="center", va="bottom", fontsize=7.5, color=theme.MUTED)
    for finding, height in zip(order, heights, strict=True):
        if np.isnan(first.loc[finding, "auc"]):
            ax.text(
                0.51, height, f"undefined: {first.loc[finding, 'reason']}", va="center", fontsize=7.5, style="italic"
            )
    _name_rows(ax, order, heights, first["positives"])
    ax.set(xlabel="ROC AUC, 95 % interval by patient")
    if len(tables) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)
    return ax


def gain(table: pd.DataFrame, ax: Axes) -> Axes:
    """Change in AUC per finding with its interval; frame as ``summary.gain``."""
    rows = table.set_index("finding")
    heights = _heights(rows.index)
    sure = (rows["p_holm"] <= SURE).to_numpy()
    for these, colour, marker, name in (
        (~sure, theme.MUTED, "o", "may be chance"),
        (sure, theme.SPLIT_COLOURS["test"], "D", "differs, adjusted for all findings"),
    ):
        part = rows[these]
        if len(part):
            _whiskers(ax, part["difference"], part["low"], part["high"], heights[these], colour, marker, name)
    for height in heights[rows["difference"].isna()]:
        ax.text(0, height, " undefined", va="center", fontsize=7.5, style="italic")
    ax.axvline(0, color=theme.INK, lw=0.8)
    _name_rows(ax, list(rows.index), heights, rows["positives"])
    ax.set(xlabel="change in ROC AUC, 95 % interval by patient (right: better)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return ax


def stages(table: pd.DataFrame, ax: Axes) -> Axes:
    """Mean AUC of each stage on validation and test, with intervals; frame as ``summary.stages``."""
    x = np.arange(len(table))
    for part, marker, shift in (("val", "s", -0.06), ("test", "o", 0.06)):
        value = table[f"{part}_auc"]
        error = np.stack([value - table[f"{part}_low"], table[f"{part}_high"] - value])
        name = {"val": "validation", "test": "test"}[part]
        style = {"color": theme.SPLIT_COLOURS[part], "marker": marker, "ms": 6, "label": name, "capsize": 3, "lw": 1.4}
        ax.errorbar(x + shift, value, error, **style, ls="-" if part == "test" else (0, (4, 1.5)))
    ax.set_xticks(x, [_stage_name(row) for row in table.itertuples()])
    ax.set(ylabel="mean ROC AUC of 14", xlim=(-0.5, len(table) - 0.5))
    ax.grid(axis="y")
    ax.legend(loc="lower right")
    return ax


def pairs(table: pd.DataFrame, ax: Axes) -> Axes:
    """Several numbers per finding: a row per finding (index), a mark per column, joined by a line."""
    heights = np.arange(len(table))[::-1]
    ax.hlines(heights, table.min(axis=1), table.max(axis=1), color=theme.FAINT, lw=3, zorder=1)
    for i, column in enumerate(table):
        style = {"marker": theme.MARKERS[i], "color": theme.RUN_COLOURS[i], "ms": 6.5, "mec": "white", "mew": 0.6}
        ax.plot(table[column], heights, ls="none", label=str(column), **style)
    for height in heights[table.isna().all(axis=1)]:
        ax.text(
            0.01, height, "undefined", va="center", fontsize=7.5, style="italic", transform=ax.get_yaxis_transform()
        )
    _rows(ax, [theme.name(str(name)) for name in table.index], heights)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(table.columns), borderaxespad=0.2)
    return ax


def bars(values: pd.Series, ax: Axes, xlabel: str = "") -> Axes:
    """Horizontal bars of one number per name (index), with the number at the end; "none" for NaN."""
    heights = np.arange(len(values))[::-1]
    ax.barh(heights, values.fillna(0), color=theme.SPLIT_COLOURS["train"], height=0.65)
    for height, value in zip(heights, values, strict=True):
        text = "none" if np.isnan(value) else f"{value:.3g}"
        ax.annotate(
            text, (0 if np.isnan(value) else value, height), (4, 0), textcoords="offset points", va="center", size=8
        )
    _rows(ax, [theme.name(str(name)) for name in values.index], heights)
    ax.set(xlabel=xlabel)
    ax.margins(x=0.15)
    ax.set_xlim(left=min(0, values.min(skipna=True)) if values.notna().any() else 0)
    return ax


def blank(ax: Axes, why: str) -> Axes:
    """Empty axes with the reason in the middle."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.text(
        0.5, 0.5, why, ha="center", va="center", color=theme.MUTED, style="italic", fontsize=8, transform=ax.transAxes
    )
    return ax


def fewer_colours(picture: Image.Image, colours: int = 128) -> Image.Image:
    """The picture in so many colours. 128 take a third of the bytes and are enough for curves and grey films."""
    return picture.quantize(colours, dither=Image.Dither.NONE)


def _stage_name(row) -> str:
    groups = row.groups.split()
    trained = "everything" if len(groups) == 6 else groups[0] if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"
    return f"stage {row.stage}\n{trained}\nlr {row.lr:g}, {row.epochs} ep."


def _whiskers(ax, value, low, high, y, colour, marker, name) -> None:
    ax.hlines(y, low, high, color=colour, lw=1.6)
    ax.plot(value, y, marker, color=colour, ms=5.5, mec="white", mew=0.6, label=name or None)


def _offset(i: int, n: int) -> float:
    """Offset in height of the i-th of n series from its row, first on top."""
    return 0.0 if n == 1 else 0.28 - 0.56 * i / (n - 1)


def _heights(names: Sequence[str]) -> np.ndarray:
    """Heights of rows, the first on top; a mean has a little distance."""
    return np.arange(len(names))[::-1] + np.where([metrics.is_mean(name) for name in names], -0.4, 0)


def _name_rows(ax: Axes, names: list[str], heights: np.ndarray, positives: pd.Series) -> None:
    counts = {name: int(positives[name]) for name in names if not metrics.is_mean(name)}
    _rows(ax, [f"{theme.name(name)}  (n = {counts[name]:,})" if name in counts else name for name in names], heights)
    if metrics.is_mean(names[-1]):
        ax.get_yticklabels()[-1].set_fontweight("bold")
        ax.axhline((heights[-1] + heights[-2]) / 2, color=theme.FAINT, lw=0.8)


def _rows(ax: Axes, names: list[str], heights: np.ndarray) -> None:
    ax.set_yticks(heights, names)
    ax.set_ylim(heights[-1] - 0.6, heights[0] + 0.7)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


def _wrapped(caption: str, width: int = 24, lines: int = 3) -> str:
    """A caption in at most ``lines`` lines; labels joined by | break there, and a longer caption ends in …"""
    text = caption.replace("Pleural_Thickening", "Pleural Thickening").replace("|", ", ")
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
