"""Figures of a run's calibration, thresholds, patient groups and comparison with published results."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cxrlib import theme
from cxrlib.evaluation import calibration, metrics, plots
from cxrlib.labels import FINDINGS

RULES = {"youden": "Youden", "f1": "best F1", "sensitivity_90": "90 % sensitivity"}
"""Titles of the rules in ``thresholds``."""


def reliability_points(labels: np.ndarray, readings: Mapping[str, np.ndarray], bins: int = 10) -> pd.DataFrame:
    """Calibration curves of the 14 findings for several probabilities, such as before and after calibration.

    labels (N, 15), readings: name → probabilities (N, 15). Columns finding, reading, ece, and those of
    ``calibration.reliability``.
    """
    parts = []
    for name, probabilities in readings.items():
        for k, finding in enumerate(FINDINGS):
            rows = calibration.reliability(labels[:, k], probabilities[:, k], bins)
            error = calibration.ece(labels[:, k], probabilities[:, k], bins)
            parts.append(pd.DataFrame({"finding": finding, "reading": name, "ece": error}, index=rows.index).join(rows))
    return pd.concat(parts, ignore_index=True)


def reliability(points: pd.DataFrame, ax: Axes) -> Axes:
    """Calibration curve of one finding: observed frequency over probability; the diagonal is perfect.

    points: one finding's rows of ``reliability_points``. Both axes end a little above the largest value, since a rare
    finding's probabilities are all small.
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
    box = {"frameon": True, "framealpha": 0.75, "edgecolor": "none", "borderpad": 0.1}
    ax.legend(loc="upper left", fontsize=6.5, handlelength=1.8, borderaxespad=0.1, **box)
    return ax


def reliability_grid(points: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Calibration curves of the 14 findings as small multiples, each with its own axis limits."""
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
    rows = table[table["finding"].map(metrics.is_mean)].reset_index(drop=True)
    steps = rows["kind"].ne(rows["kind"].shift()).cumsum() - 1  # a gap above each kind
    heights = -(rows.index + 0.6 * steps).to_numpy(float)
    ax.axvline(rows.loc[0, "auc"], color=theme.FAINT, lw=1.2)
    ax.hlines(heights, rows["low"], rows["high"], color=theme.SPLIT_COLOURS["test"], lw=1.6)
    ax.plot(rows["auc"], heights, "o", color=theme.SPLIT_COLOURS["test"], ms=5.5, mec="white", mew=0.6)
    for height, row in zip(heights, rows.itertuples(), strict=True):
        if np.isnan(row.auc):
            look = {"va": "center", "size": 7.5, "style": "italic", "transform": ax.get_yaxis_transform()}
            ax.text(0.02, height, f"undefined: {row.reason}", **look)
    _mark_fewer(ax, rows, heights, rows[["auc", "high"]].max(axis=1))
    ax.set_yticks(heights, [f"{row.group}  ({row.films:,} films)" for row in rows.itertuples()])
    ax.set(xlabel="mean ROC AUC of 14, 95 % interval by patient", ylim=(heights[-1] - 0.7, heights[0] + 0.7))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.12)
    ax.grid(axis="x")
    return ax


def thresholds(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Sensitivity and specificity of each rule's thresholds, with intervals, one axes per rule of ``RULES``.

    Frame as ``thresholds.judge``; "No Finding" is left out.
    """
    for i, (ax, rule) in enumerate(zip(np.ravel(axes), RULES, strict=True)):
        rows = table[(table["rule"] == rule) & table["finding"].isin(FINDINGS)]
        heights = np.arange(len(rows))[::-1]
        for name, shift, colour, marker in (
            ("sensitivity", 0.16, theme.RUN_COLOURS[0], "o"),
            ("specificity", -0.16, theme.RUN_COLOURS[1], "s"),
        ):
            ax.hlines(heights + shift, rows[f"{name}_low"], rows[f"{name}_high"], color=colour, lw=1.3)
            ax.plot(rows[name], heights + shift, marker, color=colour, ms=4.5, mec="white", mew=0.5, label=name)
        if rule == "sensitivity_90":
            ax.axvline(0.9, color=theme.MUTED, lw=0.8, ls=":")
        ax.set(title=RULES[rule], xlim=(-0.02, 1.02))
        _mark_undefined(ax, heights[rows["sensitivity"].isna()], 0.02)
        _rows(ax, rows["finding"], heights, labelled=i == 0)
    np.ravel(axes)[0].legend(loc="upper left", bbox_to_anchor=(0, -0.06), ncols=2)
    return axes


def gaps(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Mean gaps between groups, one axes per number; frame as ``subgroups.gaps``."""
    means = table[table["finding"].map(metrics.is_mean)]
    for i, (ax, (number, rows)) in enumerate(zip(np.ravel(axes), means.groupby("number", sort=False), strict=True)):
        steps = (rows["kind"] != rows["kind"].shift()).cumsum() - 1  # a gap above each kind
        heights = -(np.arange(len(rows)) + 0.6 * steps.to_numpy())
        _gap_marks(ax, rows, heights)
        names = [f"{row.group} − {row.against}  ({row.films:,}, {row.films_against:,})" for row in rows.itertuples()]
        _rows(ax, names, heights, labelled=i == 0)
        _mark_fewer(ax, rows, heights, rows["high"])
        ax.margins(x=0.15)
        ax.set(xlabel=f"difference in mean {'AUC' if number == 'auc' else number}")
    return axes


def gaps_by_finding(table: pd.DataFrame, axes: np.ndarray, number: str = "auc") -> np.ndarray:
    """Gaps between groups in each finding, one axes per pair; frame as ``subgroups.gaps``."""
    pairs = list(table[table["number"] == number].groupby(["group", "against"], sort=False))
    for i, (ax, ((group, against), rows)) in enumerate(zip(np.ravel(axes), pairs, strict=True)):
        mean = rows["finding"].map(metrics.is_mean)
        heights = np.arange(len(rows))[::-1] + np.where(mean, -0.4, 0)
        _gap_marks(ax, rows, heights)
        _rows(
            ax, rows["finding"].where(~mean, "mean"), heights, labelled=i == 0
        )  # the axes' means may be over different findings
        what = "AUC" if number == "auc" else number
        ax.set(xlabel=f"difference in {what}")
        ax.set_title(f"{group} − {against}", fontsize=8.5)
    return axes


def shortcut(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC over all pairs of films beside AUC within view positions; frame as ``subgroups.view_shortcut``."""
    wide = table.set_index("finding")[["auc", "within"]]
    plots.pairs(wide.rename(columns={"auc": "all films", "within": "compared within AP and within PA"}), ax)
    ax.set(xlabel="ROC AUC")
    return ax


def published(table: pd.DataFrame, ax: Axes, why: str = "") -> Axes:
    """Mean AUC of published results, official test part, beside this run; frame and ``why`` as ``published.beside``.

    If the run cannot be compared, the axes show the reason.
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
        mark = ", chosen on the test part" if row["chosen_on"] == "test" else ""
        end = (np.nanmax([row["mean"], row["mean_high"]]), at)
        ax.annotate(f"{row['mean']:.3f}{mark}", end, (6, 0), size=7.5, textcoords="offset points", va="center")
    ax.set(xlabel="mean ROC AUC of 14, official test part (25,596 films)")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.12)
    ax.grid(axis="x")
    return ax


def _gap_marks(ax: Axes, rows: pd.DataFrame, heights: np.ndarray) -> None:
    """Differences with their intervals; a diamond where p, adjusted for all gaps, is at most 0.05."""
    shown = (rows["p_holm"] <= plots.SURE).to_numpy()
    for these, colour, marker in ((~shown, theme.MUTED, "o"), (shown, theme.SPLIT_COLOURS["test"], "D")):
        part = rows[these]
        ax.hlines(heights[these], part["low"], part["high"], color=colour, lw=1.5)
        ax.plot(part["difference"], heights[these], marker, color=colour, ms=5, mec="white", mew=0.6)
    ax.axvline(0, color=theme.INK, lw=0.8)
    _mark_undefined(ax, heights[rows["difference"].isna()], 0.02)


def _mark_fewer(ax: Axes, rows: pd.DataFrame, heights: np.ndarray, ends: pd.Series) -> None:
    """Write the number of findings beside each mean of fewer than 14."""
    look = {"size": 7, "textcoords": "offset points", "va": "center", "color": theme.MUTED}
    for n, height, end in zip(rows["findings"], heights, ends, strict=True):
        if 0 < n < len(FINDINGS) and not np.isnan(end):
            ax.annotate(f"mean of {n}", (end, height), (5, 0), **look)


def _mark_undefined(ax: Axes, heights: np.ndarray, x: float) -> None:
    for height in heights:
        ax.text(x, height, "undefined", va="center", size=7, style="italic", transform=ax.get_yaxis_transform())


def _rows(ax: Axes, names: Iterable[str], heights: np.ndarray, *, labelled: bool) -> None:
    ax.set_yticks(heights, [theme.name(name) for name in names] if labelled else [])
    ax.set_ylim(heights[-1] - 0.7, heights[0] + 0.7)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
