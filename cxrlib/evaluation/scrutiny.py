"""Figures that question a run: are its probabilities true, on whom does it fail, where does it stand."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cxrlib import theme
from cxrlib.evaluation import calibration, plots
from cxrlib.labels import FINDINGS

MEAN = plots.MEAN


def reliability_points(labels: np.ndarray, readings: Mapping[str, np.ndarray], bins: int = 10) -> pd.DataFrame:
    """``calibration.reliability`` of the 14 findings and of several readings, such as before and after calibration.

    labels (N, 15), readings: name → probabilities (N, 15). Columns finding, reading, ece, and those of reliability.
    """
    parts = []
    for name, probabilities in readings.items():
        for k, finding in enumerate(FINDINGS):
            rows = calibration.reliability(labels[:, k], probabilities[:, k], bins)
            error = calibration.ece(labels[:, k], probabilities[:, k], bins)
            parts.append(pd.DataFrame({"finding": finding, "reading": name, "ece": error}, index=rows.index).join(rows))
    return pd.concat(parts, ignore_index=True)


def reliability(points: pd.DataFrame, ax: Axes) -> Axes:
    """One finding: observed frequency over probability, on the diagonal where a probability is true.

    points: one finding's rows of ``reliability_points``. Both axes end a little above the largest value of any
    reading, since a rare finding's probabilities are all small.
    """
    top = 1.3 * min(1.0, np.nanmax(points[["probability", "observed"]].to_numpy(), initial=0.01))
    ax.plot([0, 1], [0, 1], color=theme.MUTED, lw=0.8, ls=":")
    for i, (name, rows) in enumerate(points.groupby("reading", sort=False)):
        colour, dash = (theme.MUTED, (0, (3, 1.5))) if i == 0 and points["reading"].nunique() > 1 else (theme.INK, "-")
        error = rows["observed"] - rows["observed_low"], rows["observed_high"] - rows["observed"]
        style = {"color": colour, "lw": 1.3, "marker": theme.MARKERS[i], "ms": 3.5, "elinewidth": 0.8, "alpha": 0.9}
        label = f"{name}, ECE {rows['ece'].iloc[0]:.3f}"
        ax.errorbar(rows["probability"], rows["observed"], np.stack(error), ls=dash, label=label, **style)
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal", title=theme.name(points["finding"].iloc[0]))
    ax.locator_params(nbins=4)
    ax.legend(loc="upper left", fontsize=6.5, handlelength=1.8, borderaxespad=0.1)
    return ax


def reliability_grid(points: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Reliability of the 14 findings as small multiples, each with axes of its own extent."""
    shown = np.atleast_2d(axes)
    for ax, finding in zip(shown.flat, FINDINGS, strict=False):
        reliability(points[points["finding"] == finding], ax)
    for ax in shown.flat[len(FINDINGS) :]:
        ax.axis("off")
    for ax in shown[-1]:
        ax.set_xlabel("probability")
    for ax in shown[:, 0]:
        ax.set_ylabel("share with the finding")
    return axes


def groups(table: pd.DataFrame, ax: Axes) -> Axes:
    """Mean AUC of 14 in each group with its interval and number of films; frame as ``subgroups.auc``."""
    rows = table[table["finding"] == MEAN].reset_index(drop=True)
    steps = rows["kind"].ne(rows["kind"].shift()).cumsum() - 1  # a gap above each kind
    heights = -(rows.index + 0.6 * steps).to_numpy(float)
    ax.axvline(rows.loc[0, "auc"], color=theme.FAINT, lw=1.2)
    ax.hlines(heights, rows["low"], rows["high"], color=theme.SPLIT_COLOURS["test"], lw=1.6)
    ax.plot(rows["auc"], heights, "o", color=theme.SPLIT_COLOURS["test"], ms=5.5, mec="white", mew=0.6)
    for height, row in zip(heights, rows.itertuples(), strict=True):
        if np.isnan(row.auc):
            ax.text(0.02, height, f"undefined: {row.reason}", va="center", size=7.5, style="italic",
                    transform=ax.get_yaxis_transform())  # fmt: skip
        elif row.findings < len(FINDINGS):
            ax.annotate(f"mean of {row.findings}", (np.nanmax([row.auc, row.high]), height), (5, 0), size=7,
                        textcoords="offset points", va="center", color=theme.MUTED)  # fmt: skip
    ax.set_yticks(heights, [f"{row.group}  ({row.films:,} films)" for row in rows.itertuples()])
    ax.set(xlabel="mean ROC AUC of 14, 95 % interval by patient", ylim=(heights[-1] - 0.7, heights[0] + 0.7))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.12)
    ax.grid(axis="x")
    return ax


def gaps(table: pd.DataFrame, axes: np.ndarray, number: str = "auc") -> np.ndarray:
    """What each group has over another, per finding, an axes per pair; frame as ``subgroups.gaps``."""
    chosen = table[table["number"] == number]
    pairs = list(chosen.groupby(["group", "against"], sort=False))
    for i, (ax, ((group, against), rows)) in enumerate(zip(np.ravel(axes), pairs, strict=True)):
        heights = np.arange(len(rows))[::-1] + np.where(rows["finding"] == MEAN, -0.4, 0)
        sure = ((rows["low"] > 0) | (rows["high"] < 0)).to_numpy()
        for these, colour, marker in ((~sure, theme.MUTED, "o"), (sure, theme.SPLIT_COLOURS["test"], "D")):
            part = rows[these]
            ax.hlines(heights[these], part["low"], part["high"], color=colour, lw=1.5)
            ax.plot(part["difference"], heights[these], marker, color=colour, ms=5, mec="white", mew=0.6)
        for height in heights[rows["difference"].isna()]:
            ax.text(0, height, " undefined", va="center", size=7, style="italic")
        ax.axvline(0, color=theme.INK, lw=0.8)
        ax.set_yticks(heights)
        if i == 0:
            ax.set_yticklabels([theme.name(finding) for finding in rows["finding"]])
        what = "AUC" if number == "auc" else number
        ax.set(xlabel=f"difference in {what}\n(diamond: interval leaves 0 out)", title=f"{group} − {against}")
        ax.tick_params(axis="y", labelleft=i == 0)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
    return axes


def shortcut(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC over all pairs of films beside AUC within views; frame as ``subgroups.view_shortcut``."""
    wide = table.set_index("finding")[["auc", "within"]]
    plots.pairs(wide.rename(columns={"auc": "all films", "within": "compared within AP and within PA"}), ax)
    ax.set(xlabel="ROC AUC")
    return ax


def published(table: pd.DataFrame, ax: Axes, why: str = "") -> Axes:
    """Mean AUC of published results, official test part, beside this run; frame and ``why`` as ``published.beside``.

    Where the run cannot be compared the axes say why instead.
    """
    if why or table.empty:
        half = len(why) // 2
        cut = why.find(" ", half) if half else 0
        return plots.blank(ax, why[:cut] + "\n" + why[cut + 1 :])
    rows = table.sort_values("mean", kind="stable").reset_index(drop=True)
    ours = (rows["network"] == "this run").to_numpy()
    ax.plot(rows["mean"][~ours], rows.index[~ours], "o", color=theme.MUTED, ms=5)
    ax.hlines(
        rows.index[ours], rows["mean_low"][ours], rows["mean_high"][ours], color=theme.SPLIT_COLOURS["test"], lw=2
    )
    ax.plot(rows["mean"][ours], rows.index[ours], "D", color=theme.SPLIT_COLOURS["test"], ms=7, mec="white")
    ax.set_yticks(rows.index, [" · ".join(filter(None, (row.method, row.network))) for row in rows.itertuples()])
    for tick, mine in zip(ax.get_yticklabels(), ours, strict=True):
        tick.set_fontweight("bold" if mine else "normal")
    for at, row in rows.iterrows():
        ax.annotate(f"{row['mean']:.3f}", (np.nanmax([row["mean"], row["mean_high"]]), at), (6, 0), size=7.5,
                    textcoords="offset points", va="center")  # fmt: skip
    ax.set(xlabel="mean ROC AUC of 14, official test part (25,596 films)")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.12)
    ax.grid(axis="x")
    return ax
