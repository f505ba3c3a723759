"""Draw what was measured against what was aimed at: ``python -m tests.benchmarks.figure``.

Reads ``outputs/bench/results.csv`` and writes ``notebooks/figures/bench.png`` for the README: one point per measured
figure that has a target to be above or below, by how many times it is on the right side of it.
"""

import argparse
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from cxrlib import UserError, paths
from cxrlib.plots import common
from tests.benchmarks import rows

GROUPS = ("data", "training", "evaluation")
REACH = 1000.0
"""Margins beyond are drawn at the edge, with an arrow: a rounding error of 1e-16 would flatten everything else."""

_TARGET = re.compile(r"(?P<sign>[<>])=? (?P<limit>[\d.e+-]+)(?: (?P<unit>\S+))?")


def margins(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``results.csv`` that have a one-sided target and a figure.

    Columns group, label, said (the figure as read, with its target), margin (how many times better than the target; 1
    just meets it), low, high (the middle half of the repeats). The ratio counts where the target is in "x", else the
    value. Raises UserError for a target that is neither empty, one-sided nor a range such as "93 to 97 %".
    """
    found = []
    for row in results.itertuples():
        target = _TARGET.fullmatch(row.target)
        if not target:
            if row.target and " to " not in row.target:
                raise UserError(f"{row.name}: target {row.target!r} cannot be read; write it as '>= 2 x' or '<= 5 s'")
            continue
        text = row.ratio if target["unit"] == "x" else row.value
        group, _, label = row.name.partition(": ")
        if text == "" or group not in GROUPS:
            continue
        figure, limit, above = float(text), float(target["limit"]), target["sign"] == ">"
        margin = figure / limit if above else limit / max(figure, limit / REACH**2)
        half = float(row.spread or 0) / 2
        least = "at least" if above else "at most"
        said = f"{figure:.3g} {target['unit'] or ''}".rstrip() + f"  ({least} {target['limit']})"
        found.append((group, label, said, margin, margin * max(1 - half, 0.05), margin * (1 + half)))
    return pd.DataFrame(found, columns=["group", "label", "said", "margin", "low", "high"])


def draw(numbers: pd.DataFrame, group: str, ax: Axes) -> Axes:
    """One group of ``margins`` as points, missed targets hollow and left of the line."""
    shown = numbers[numbers["group"] == group].reset_index(drop=True)
    colour = common.RUN_COLOURS[GROUPS.index(group)] if group != "evaluation" else common.RUN_COLOURS[3]
    for y, row in shown.iterrows():
        x, beyond = min(row["margin"], REACH), row["margin"] > REACH
        if not beyond:
            ax.hlines(y, row["low"], min(row["high"], REACH), color=colour, lw=2, alpha=0.45)
        fill = colour if row["margin"] >= 1 else common.PAPER
        ax.plot(x, y, ">" if beyond else "o", ms=6, color=colour, mfc=fill, mew=1.4, clip_on=False)
        ax.annotate(row["said"], (1.02, y), xycoords=("axes fraction", "data"), va="center", size=7.5,
                    annotation_clip=False)  # fmt: skip
    ax.axvline(1, color=common.INK, lw=1)
    ax.set_yticks(range(len(shown)), shown["label"])
    ax.set(xscale="log", ylim=(len(shown) - 0.4, -0.6))
    ax.set_title(f"{group.capitalize()}", fontsize=9)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    return ax


def figure(numbers: pd.DataFrame) -> Figure:
    """All groups that have a row, one above the other, on one axis of margins."""
    common.use_theme()
    groups = [group for group in GROUPS if (numbers["group"] == group).any()]
    if not groups:
        raise UserError("no measured figure has a target yet; run `make bench` first")
    counts = [(numbers["group"] == group).sum() for group in groups]
    fig = Figure(figsize=(10, 0.8 + 0.24 * sum(counts) + 0.4 * len(groups)), layout="constrained")
    axes = np.ravel(fig.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=[n + 0.4 for n in counts]))
    for group, ax in zip(groups, axes, strict=True):
        draw(numbers, group, ax)
    axes[0].set_xlim(min(0.5, 0.8 * numbers["low"].min()), REACH)
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes[-1].xaxis.set_minor_locator(NullLocator())
    axes[-1].set_xlabel("times better than the target (1: just met; hollow: missed; bar: middle half of the repeats)")
    return fig


def main() -> None:
    argparse.ArgumentParser(prog="python -m tests.benchmarks.figure", description=__doc__).parse_args()
    matplotlib.use("agg")
    source = rows.results()
    if not source.exists():
        raise SystemExit(f"{source} is not there; run `make bench` first")
    try:
        print(write(source, paths.notebooks() / "figures" / "bench.png"))
    except UserError as error:
        raise SystemExit(str(error)) from None


def write(source: Path, target: Path) -> Path:
    """Draw the results in ``source`` as the PNG ``target``."""
    fig = figure(margins(pd.read_csv(source, dtype=str, keep_default_na=False)))
    with paths.atomic(target) as temporary:
        fig.savefig(temporary, format="png", dpi=120)
    return target


if __name__ == "__main__":
    main()
