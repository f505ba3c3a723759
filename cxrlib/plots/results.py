"""Figures of results: learning curves, AUC per finding, ROC and PR curves, calibration, subgroups, heat maps.

The points of a curve are a frame, so that what is drawn is what is saved beside the figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cxrlib import labels as order
from cxrlib import metrics
from cxrlib.evaluation import calibration, intervals, localisation
from cxrlib.labels import FINDINGS, display_name
from cxrlib.plots import common

common.use_theme()


def forest(tables: Mapping[str, pd.DataFrame] | pd.DataFrame, ax: Axes) -> Axes:
    """AUC per finding as dots with intervals, for one or several stages or runs; the mean is the last row.

    tables: one frame as ``summary.auc``, or several by name; the first decides the order, highest on top.
    """
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    first = next(iter(tables.values())).set_index("finding")
    order = [*first.loc[list(FINDINGS)].sort_values("auc", ascending=False, na_position="last").index, first.index[-1]]
    heights = common.row_heights(order)
    for i, (name, table) in enumerate(tables.items()):
        named = table["finding"].where(
            ~table["finding"].map(metrics.is_mean), order[-1]
        )  # a mean may be over other findings
        rows, y = table.set_index(named).loc[order], heights + common.row_offset(i, len(tables))
        colour = common.RUN_COLOURS[i % len(common.RUN_COLOURS)]
        common.whiskers(ax, rows["auc"], rows["auc_low"], rows["auc_high"], y, colour, common.MARKERS[i], name)
    ax.axvline(0.5, color=common.MUTED, lw=0.8, ls=":")
    ax.text(0.5, heights[0] + 0.75, "chance", ha="center", va="bottom", fontsize=7.5, color=common.MUTED)
    for finding, height in zip(order, heights, strict=True):
        if np.isnan(first.loc[finding, "auc"]):
            ax.text(
                0.51, height, f"undefined: {first.loc[finding, 'reason']}", va="center", fontsize=7.5, style="italic"
            )
    common.name_counted_rows(ax, order, heights, first["positives"])
    ax.set(xlabel="ROC AUC, 95 % interval by patient")
    if len(tables) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)
    return ax


def gain(table: pd.DataFrame, ax: Axes) -> Axes:
    """Change in AUC per finding with its interval; frame as ``summary.gain``."""
    rows = table.set_index("finding")
    heights = common.row_heights(rows.index)
    sure = (rows["p_holm"] <= common.SURE).to_numpy()
    for these, colour, marker, name in (
        (~sure, common.MUTED, "o", "may be chance"),
        (sure, common.SPLIT_COLOURS["test"], "D", "differs, adjusted for all findings"),
    ):
        part = rows[these]
        if len(part):
            common.whiskers(ax, part["difference"], part["low"], part["high"], heights[these], colour, marker, name)
    for height in heights[rows["difference"].isna()]:
        ax.text(0, height, " undefined", va="center", fontsize=7.5, style="italic")
    ax.axvline(0, color=common.INK, lw=0.8)
    common.name_counted_rows(ax, list(rows.index), heights, rows["positives"])
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
        style = {"color": common.SPLIT_COLOURS[part], "marker": marker, "ms": 6, "label": name, "capsize": 3, "lw": 1.4}
        ax.errorbar(x + shift, value, error, **style, ls="-" if part == "test" else (0, (4, 1.5)))
    ax.set_xticks(x, [_stage_name(row) for row in table.itertuples()])
    ax.set(ylabel="mean ROC AUC of 14", xlim=(-0.5, len(table) - 0.5))
    ax.grid(axis="y")
    ax.legend(loc="lower right")
    return ax


def pairs(table: pd.DataFrame, ax: Axes) -> Axes:
    """Several numbers per finding: a row per finding (index), a mark per column, joined by a line."""
    heights = np.arange(len(table))[::-1]
    ax.hlines(heights, table.min(axis=1), table.max(axis=1), color=common.FAINT, lw=3, zorder=1)
    for i, column in enumerate(table):
        style = {"marker": common.MARKERS[i], "color": common.RUN_COLOURS[i], "ms": 6.5, "mec": "white", "mew": 0.6}
        ax.plot(table[column], heights, ls="none", label=str(column), **style)
    for height in heights[table.isna().all(axis=1)]:
        ax.text(
            0.01, height, "undefined", va="center", fontsize=7.5, style="italic", transform=ax.get_yaxis_transform()
        )
    common.name_rows(ax, [display_name(str(name)) for name in table.index], heights)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(table.columns), borderaxespad=0.2)
    return ax


def bars(values: pd.Series, ax: Axes, xlabel: str = "") -> Axes:
    """Horizontal bars of one number per name (index), with the number at the end; "none" for NaN."""
    heights = np.arange(len(values))[::-1]
    ax.barh(heights, values.fillna(0), color=common.SPLIT_COLOURS["train"], height=0.65)
    for height, value in zip(heights, values, strict=True):
        text = "none" if np.isnan(value) else f"{value:.3g}"
        ax.annotate(
            text, (0 if np.isnan(value) else value, height), (4, 0), textcoords="offset points", va="center", size=8
        )
    common.name_rows(ax, [display_name(str(name)) for name in values.index], heights)
    ax.set(xlabel=xlabel)
    ax.margins(x=0.15)
    ax.set_xlim(left=min(0, values.min(skipna=True)) if values.notna().any() else 0)
    return ax


def _stage_name(row) -> str:
    groups = row.groups.split()
    trained = "everything" if len(groups) == 6 else groups[0] if len(groups) == 1 else f"{groups[0]} to {groups[-1]}"
    return f"stage {row.stage}\n{trained}\nlr {row.lr:g}, {row.epochs} ep."


RATES = np.concatenate([np.linspace(0, 0.1, 41), np.linspace(0.11, 1, 90)])
RECALLS = np.linspace(0.01, 1, 100)


def roc_points(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, replicates: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Sensitivity along the false-positive rate with a 95 % band by patient, for each of the K labels.

    labels and probabilities (N, K) in the project's order, patients (N,). Columns finding, positives, negatives,
    rate, sensitivity, low, high; an undefined finding has one row with NaN.
    """
    parts = []
    for k, finding in enumerate(order.LABELS[: labels.shape[1]]):
        truth, scores = labels[:, k], probabilities[:, k]
        if metrics.reason(truth):
            parts.append(_undefined(finding, truth, ("rate", "sensitivity")))
            continue
        band = intervals.roc_band(truth, scores, patients, replicates=replicates, seed=seed, at=RATES)
        curve = metrics.roc_curve(truth, scores)
        drawn = np.interp(RATES, curve.x, curve.y)
        parts.append(_points(finding, truth, {"rate": RATES, "sensitivity": drawn, "low": band.low, "high": band.high}))
    return pd.concat(parts, ignore_index=True)


def pr_points(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, replicates: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Precision along the recall with a 95 % band by patient; arguments and undefined findings as ``roc_points``.

    Columns finding, positives, negatives, recall, precision, low, high.
    """
    parts = []
    for k, finding in enumerate(order.LABELS[: labels.shape[1]]):
        truth, scores = labels[:, k], probabilities[:, k]
        if metrics.reason(truth):
            parts.append(_undefined(finding, truth, ("recall", "precision")))
            continue
        band = intervals.pr_band(truth, scores, patients, replicates=replicates, seed=seed, at=RECALLS)
        curve = metrics.pr_curve(truth, scores)
        drawn = curve.y[np.searchsorted(curve.x, RECALLS - 1e-12)]
        parts.append(
            _points(finding, truth, {"recall": RECALLS, "precision": drawn, "low": band.low, "high": band.high})
        )
    return pd.concat(parts, ignore_index=True)


def roc(points: pd.DataFrame, ax: Axes, table: pd.DataFrame | None = None) -> Axes:
    """ROC curve of one finding with its band and the chance line; the corner has AUC with interval, and n.

    points: one finding's rows of ``roc_points``; table: ``summary.auc``, where the AUC is read.
    """
    finding, positives, negatives = points.iloc[0][["finding", "positives", "negatives"]]
    ax.set_title(display_name(finding))
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
    if points["rate"].isna().all():
        return common.blank(ax, "undefined:\n" + _reason(positives, negatives))
    colour = common.FINDING_COLOURS[finding]
    ax.plot([0, 1], [0, 1], color=common.MUTED, lw=0.8, ls=":")
    ax.fill_between(points["rate"], points["low"], points["high"], color=colour, alpha=0.22, lw=0)
    ax.plot(np.append(0, points["rate"]), np.append(0, points["sensitivity"]), color=colour)
    lines = [] if table is None else [_with_interval("AUC", table, finding, "auc")]
    _corner(ax, [*lines, f"n = {positives:,} of {positives + negatives:,}"], 0.97, 0.05, "bottom")
    return ax


def pr(points: pd.DataFrame, ax: Axes, table: pd.DataFrame | None = None) -> Axes:
    """Precision-recall curve of one finding with its band; the dotted line is the prevalence (chance).

    points: one finding's rows of ``pr_points``; table: ``summary.auc``, where the average precision is read.
    """
    finding, positives, negatives = points.iloc[0][["finding", "positives", "negatives"]]
    ax.set_title(display_name(finding))
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
    if points["recall"].isna().all():
        return common.blank(ax, "undefined:\n" + _reason(positives, negatives))
    colour, prevalence = common.FINDING_COLOURS[finding], positives / (positives + negatives)
    ax.axhline(prevalence, color=common.MUTED, lw=0.8, ls=":")
    ax.fill_between(points["recall"], points["low"], points["high"], color=colour, alpha=0.22, lw=0)
    ax.plot(points["recall"], points["precision"], color=colour)
    lines = [] if table is None else [_with_interval("AP", table, finding, "ap")]
    lines += [f"prevalence {prevalence:.3f}", f"n = {positives:,}"]
    if points.loc[points["recall"] > 0.3, "precision"].mean() > 0.5:  # the curve fills the upper right
        _corner(ax, lines, 0.03, min(prevalence + 0.06, 0.6), "bottom", "left")
    else:
        _corner(ax, lines, 0.97, 0.95, "top")
    return ax


def roc_grid(points: pd.DataFrame, axes: np.ndarray, table: pd.DataFrame | None = None) -> np.ndarray:
    """ROC curves as small multiples, one finding per axes; 3 × 5 axes of about 2.2 inches fit 14."""
    return _grid(roc, points, axes, table, "1 − specificity", "sensitivity")


def pr_grid(points: pd.DataFrame, axes: np.ndarray, table: pd.DataFrame | None = None) -> np.ndarray:
    """Precision-recall curves as small multiples, one finding per axes."""
    return _grid(pr, points, axes, table, "recall (sensitivity)", "precision (PPV)")


def _grid(draw, points: pd.DataFrame, axes: np.ndarray, table: pd.DataFrame | None, x: str, y: str) -> np.ndarray:
    shown = np.atleast_2d(axes)
    findings = [finding for finding in points["finding"].unique() if finding != order.NO_FINDING]
    for ax, finding in zip(shown.flat, findings, strict=False):
        draw(points[points["finding"] == finding], ax, table)
    for ax in shown.flat[len(findings) :]:
        ax.axis("off")
    for column in range(shown.shape[1]):
        used = [row for row in range(shown.shape[0]) if row * shown.shape[1] + column < len(findings)]
        if used:
            shown[used[-1], column].set_xlabel(
                x if shown[used[-1], column].axison and shown[used[-1], column].lines else ""
            )
    for ax in shown[:, 0]:
        ax.set_ylabel(y)
    return axes


def _points(finding: str, truth: np.ndarray, columns: dict[str, np.ndarray]) -> pd.DataFrame:
    positives, negatives = np.count_nonzero(truth == 1), np.count_nonzero(truth == 0)
    return pd.DataFrame({"finding": finding, "positives": positives, "negatives": negatives, **columns})


def _undefined(finding: str, truth: np.ndarray, names: tuple[str, str]) -> pd.DataFrame:
    return _points(finding, truth, {name: np.array([np.nan]) for name in (*names, "low", "high")})


def _reason(positives: int, negatives: int) -> str:
    if positives + negatives == 0:
        return "no film with a known label"
    return "no film with the finding" if positives == 0 else "no film without the finding"


def _with_interval(what: str, table: pd.DataFrame, finding: str, column: str) -> str:
    row = table.set_index("finding").loc[finding]
    value, low, high = row[[column, f"{column}_low", f"{column}_high"]]
    return f"{what} {value:.3f}" if np.isnan(low) else f"{what} {value:.2f} ({low:.2f}–{high:.2f})"


def _corner(ax: Axes, lines: list[str], x: float, y: float, va: str, ha: str = "right") -> None:
    ax.text(x, y, "\n".join(lines), ha=ha, va=va, fontsize=7.5, transform=ax.transAxes, linespacing=1.3)


RULE_TITLES = {"youden": "Youden", "f1": "best F1", "sensitivity_90": "90 % sensitivity"}
"""Titles of the rules in ``thresholds``."""


def reliability_points(labels: np.ndarray, readings: Mapping[str, np.ndarray], bins: int = 10) -> pd.DataFrame:
    """Calibration curves of the 14 findings for several probabilities, such as before and after calibration.

    labels (N, 15), readings: name → probabilities (N, 15). Columns finding, reading, ece, and those of
    ``calibration.reliability``. A finding whose label is known of no film has no rows.
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
    if points.empty:
        return common.blank(ax, "undefined:\nno film with a known label")
    top = 1.3 * min(1.0, np.nanmax(points[["probability", "observed"]].to_numpy(), initial=0.01))
    ax.plot([0, 1], [0, 1], color=common.MUTED, lw=0.8, ls=":")
    for i, (name, rows) in enumerate(points.groupby("reading", sort=False)):
        colour, dash = (
            (common.MUTED, (0, (3, 1.5))) if i == 0 and points["reading"].nunique() > 1 else (common.INK, "-")
        )
        error = rows["observed"] - rows["observed_low"], rows["observed_high"] - rows["observed"]
        style = {"color": colour, "lw": 1.3, "marker": common.MARKERS[i], "ms": 3.5, "elinewidth": 0.8, "alpha": 0.9}
        label = f"{name}, ECE {rows['ece'].iloc[0]:.3f}"
        ax.errorbar(rows["probability"], rows["observed"], np.stack(error), ls=dash, label=label, **style)
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal", title=display_name(points["finding"].iloc[0]))
    ax.locator_params(nbins=4)
    box = {"frameon": True, "framealpha": 0.75, "edgecolor": "none", "borderpad": 0.1}
    ax.legend(loc="upper left", fontsize=6.5, handlelength=1.8, borderaxespad=0.1, **box)
    return ax


def reliability_grid(points: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Calibration curves of the 14 findings as small multiples, each with its own axis limits."""
    shown = np.atleast_2d(axes)
    for ax, finding in zip(shown.flat, FINDINGS, strict=False):
        reliability(points[points["finding"] == finding], ax).set_title(display_name(finding))
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
    ax.axvline(rows.loc[0, "auc"], color=common.FAINT, lw=1.2)
    ax.hlines(heights, rows["low"], rows["high"], color=common.SPLIT_COLOURS["test"], lw=1.6)
    ax.plot(rows["auc"], heights, "o", color=common.SPLIT_COLOURS["test"], ms=5.5, mec="white", mew=0.6)
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
    """Sensitivity and specificity of each rule's thresholds, with intervals, one axes per rule of ``RULE_TITLES``.

    Frame as ``thresholds.judge``; "No Finding" is left out.
    """
    for i, (ax, rule) in enumerate(zip(np.ravel(axes), RULE_TITLES, strict=True)):
        rows = table[(table["rule"] == rule) & table["finding"].isin(FINDINGS)]
        heights = np.arange(len(rows))[::-1]
        for name, shift, colour, marker in (
            ("sensitivity", 0.16, common.RUN_COLOURS[0], "o"),
            ("specificity", -0.16, common.RUN_COLOURS[1], "s"),
        ):
            ax.hlines(heights + shift, rows[f"{name}_low"], rows[f"{name}_high"], color=colour, lw=1.3)
            ax.plot(rows[name], heights + shift, marker, color=colour, ms=4.5, mec="white", mew=0.5, label=name)
        if rule == "sensitivity_90":
            ax.axvline(0.9, color=common.MUTED, lw=0.8, ls=":")
        ax.set(title=RULE_TITLES[rule], xlim=(-0.02, 1.02))
        _mark_undefined(ax, heights[rows["sensitivity"].isna()], 0.02)
        _group_rows(ax, rows["finding"], heights, labelled=i == 0)
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
        _group_rows(ax, names, heights, labelled=i == 0)
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
        _group_rows(
            ax, rows["finding"].where(~mean, "mean"), heights, labelled=i == 0
        )  # the axes' means may be over different findings
        what = "AUC" if number == "auc" else number
        ax.set(xlabel=f"difference in {what}")
        ax.set_title(f"{group} − {against}", fontsize=8.5)
    return axes


def shortcut(table: pd.DataFrame, ax: Axes) -> Axes:
    """AUC over all pairs of films beside AUC within view positions; frame as ``subgroups.view_shortcut``."""
    wide = table.set_index("finding")[["auc", "within"]]
    pairs(wide.rename(columns={"auc": "all films", "within": "compared within AP and within PA"}), ax)
    ax.set(xlabel="ROC AUC")
    return ax


SIDES = {"home": ("at home", 0.16, "o"), "there": ("in the other dataset", -0.16, "s")}
"""Name, shift of the height and marker of each side."""


def external_drop(table: pd.DataFrame, ax: Axes) -> Axes:
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


def published(table: pd.DataFrame, ax: Axes, why: str = "") -> Axes:
    """Mean AUC of published results, official test part, beside this run; frame and ``why`` of
    ``summary.beside_published``.

    If the run cannot be compared, the axes show the reason.
    """
    if why or table.empty:
        half = len(why) // 2
        cut = why.find(" ", half) if half else 0
        return common.blank(ax, why[:cut] + "\n" + why[cut + 1 :])
    rows = table.sort_values("mean", kind="stable").reset_index(drop=True)
    ours = (rows["network"] == "this run").to_numpy()
    for these, colour, width in ((~ours, common.MUTED, 1.2), (ours, common.SPLIT_COLOURS["test"], 2)):
        ax.hlines(rows.index[these], rows["mean_low"][these], rows["mean_high"][these], color=colour, lw=width)
    ax.plot(rows["mean"][~ours], rows.index[~ours], "o", color=common.MUTED, ms=5)
    ax.plot(rows["mean"][ours], rows.index[ours], "D", color=common.SPLIT_COLOURS["test"], ms=7, mec="white")
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
    shown = (rows["p_holm"] <= common.SURE).to_numpy()
    for these, colour, marker in ((~shown, common.MUTED, "o"), (shown, common.SPLIT_COLOURS["test"], "D")):
        part = rows[these]
        ax.hlines(heights[these], part["low"], part["high"], color=colour, lw=1.5)
        ax.plot(part["difference"], heights[these], marker, color=colour, ms=5, mec="white", mew=0.6)
    ax.axvline(0, color=common.INK, lw=0.8)
    _mark_undefined(ax, heights[rows["difference"].isna()], 0.02)


def _mark_fewer(ax: Axes, rows: pd.DataFrame, heights: np.ndarray, ends: pd.Series) -> None:
    """Write the number of findings beside each mean of fewer than 14."""
    look = {"size": 7, "textcoords": "offset points", "va": "center", "color": common.MUTED}
    for n, height, end in zip(rows["findings"], heights, ends, strict=True):
        if 0 < n < len(FINDINGS) and not np.isnan(end):
            ax.annotate(f"mean of {n}", (end, height), (5, 0), **look)


def _mark_undefined(ax: Axes, heights: np.ndarray, x: float) -> None:
    for height in heights:
        ax.text(x, height, "undefined", va="center", size=7, style="italic", transform=ax.get_yaxis_transform())


def _group_rows(ax: Axes, names: Iterable[str], heights: np.ndarray, *, labelled: bool) -> None:
    ax.set_yticks(heights, [display_name(name) for name in names] if labelled else [])
    ax.set_ylim(heights[-1] - 0.7, heights[0] + 0.7)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")


def show_maps(
    pictures: np.ndarray, heat: np.ndarray, boxes: np.ndarray, captions: Sequence[str], axes: np.ndarray
) -> np.ndarray:
    """Draw films with the regions of their heat maps and the outlines of their boxes.

    pictures (T, S, S) uint8, heat (T, S, S) from 0 to 1, boxes (T, S, S) bool. The region above half of the maximum is
    tinted, the maximum (the middle of several equal ones) is a cross, the box is a white line, so it reads without
    colour. A map that is 0 everywhere has neither region nor cross.
    """
    common.films(pictures, captions, axes)
    for ax, map_, box in zip(np.ravel(axes), heat, boxes, strict=False):
        if box.any():
            ax.contour(box, [0.5], colors="white", linewidths=1.6)
        if map_.max() <= 0:
            continue
        region = map_ >= localisation.REGION * map_.max()
        ax.imshow(np.ones_like(map_), cmap="autumn", vmin=0, vmax=1, alpha=0.45 * region)
        down, right = np.argwhere(map_ == map_.max()).mean(0)
        ax.plot(right, down, "+", color="white", ms=9, mew=3, clip_on=False)
        ax.plot(right, down, "+", color=common.INK, ms=8, mew=1.4, clip_on=False)
    return axes


def lifts(tables: Mapping[str, pd.DataFrame], ax: Axes) -> Axes:
    """Lift (hit rate over that of a random point) per finding with intervals; frames as ``localisation.table``."""
    order = list(next(iter(tables.values()))["finding"])
    heights = np.arange(len(order))[::-1].astype(float)
    for i, (name, table) in enumerate(tables.items()):
        rows, y = table.set_index("finding").reindex(order), heights + 0.14 - 0.28 * i / max(len(tables) - 1, 1)
        colour = common.RUN_COLOURS[i]
        ax.hlines(y, rows["lift_low"], rows["lift_high"], color=colour, lw=1.5)
        ax.plot(rows["lift"], y, common.MARKERS[i], color=colour, ms=5.5, mec="white", mew=0.6, label=name)
    counts = next(iter(tables.values())).set_index("finding")["boxes"]
    ax.axvline(1, color=common.INK, lw=0.8)
    ax.set_yticks(heights, [f"{display_name(name)}  (n = {counts[name]:,})" for name in order])
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
    row = table[table["finding"] == localisation.ALL].iloc[0]
    for i, (kind, title) in enumerate((("iou", "IoU"), ("iobb", "IoBB"))):
        columns = [f"{kind}_{round(100 * least)}" for least in localisation.OVERLAPS]
        value, low, high = (
            row[[f"{column}{end}" for column in columns]].to_numpy(float) for end in ("", "_low", "_high")
        )
        style = {"color": common.RUN_COLOURS[i], "marker": common.MARKERS[i], "ms": 5.5, "capsize": 3, "lw": 1.4}
        ax.errorbar(
            localisation.OVERLAPS, value, [value - low, high - value], label=title, ls="-" if i else "--", **style
        )
    ax.set(xlabel="overlap of at least", ylabel="share of maps", ylim=(-0.02, 1.02), xticks=localisation.OVERLAPS)
    ax.set_title(f"{name}  (n = {row['boxes']:,})")
    ax.grid(axis="y")
    ax.legend(loc="upper right")
    return ax


NO_EPOCHS = "no epochs in this stage:\nthe weights stay as they are"
PARTS = {"train": ("training", "-", "o"), "val": ("validation", (0, (4, 1.5)), "s")}
SMOOTH = 20
"""Batches in the moving mean of the losses, at most."""


def curves(batches: pd.DataFrame, epochs: pd.DataFrame, folder: Path) -> None:
    """Show both figures of a stage below a notebook's cell, and save them as ``loss`` and ``auc`` in ``folder``.

    ``batches`` and ``epochs`` as for ``losses`` and ``aucs``.
    """
    fig, axes = plt.subplots(2, 2, figsize=(10, 5.6), layout="constrained")
    losses(batches, epochs, axes)
    common.save(fig, folder / "loss", batches)
    fig, axes = plt.subplots(3, 5, figsize=(11, 6), sharex=True, sharey=True, layout="constrained")
    aucs(epochs, axes)
    common.save(fig, folder / "auc", epochs)
    plt.show()


def losses(batches: pd.DataFrame, epochs: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Four plots of the loss: training above, validation below; by batch on the left, by epoch on the right.

    ``batches`` has epoch, part ("train", "val"), batch, films and loss; ``epochs`` as ``fit.Result.history``.
    """
    for (left, right), (part, (name, dash, marker)) in zip(np.reshape(axes, (2, 2)), PARTS.items(), strict=True):
        if epochs.empty:
            common.blank(left, NO_EPOCHS)
            common.blank(right, NO_EPOCHS)
            continue
        colour = common.SPLIT_COLOURS[part]
        _by_batch(batches[batches["part"] == part], left, colour)
        left.set(title=f"{name.capitalize()}, batch by batch", ylabel="loss")
        right.plot(epochs["epochs_so_far"], epochs[f"{part}_loss"], color=colour, ls=dash, marker=marker, ms=4)
        right.set(title=f"{name.capitalize()}, mean of each epoch", xlabel="epochs so far", ylabel="loss")
        right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        right.grid(axis="y")
    return axes


def _by_batch(batches: pd.DataFrame, ax: Axes, colour: str) -> None:
    """Losses of batches (faint), their moving mean (strong), and a dotted line where an epoch begins."""
    loss = batches["loss"].to_numpy()
    x = np.arange(1, len(loss) + 1)
    ax.plot(x, loss, color=common.FAINT, lw=0.9, marker="." if len(loss) < 40 else None, ms=3)
    width = int(np.clip(len(loss) // 5, 1, SMOOTH))
    ax.plot(x, pd.Series(loss).rolling(width, min_periods=1, center=True).mean(), color=colour)
    for start in np.flatnonzero(np.diff(batches["epoch"])) + 1:
        ax.axvline(start + 0.5, color=common.MUTED, lw=0.6, ls=":")
    ax.set(xlabel=f"batches (line: mean of {width})" if width > 1 else "batches")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(axis="y")


def aucs(epochs: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Validation AUC over the epochs: a panel for each of the 14 findings, and one for their mean.

    Every panel shows the mean in grey. The dotted line is chance, the ring is the best epoch. A panel without an AUC
    says so.
    """
    panels = np.ravel(axes)
    best = epochs["val_auc"].idxmax() if epochs["val_auc"].notna().any() else None
    defined = sum(epochs[f"auc_{finding}"].notna().any() for finding in FINDINGS) or len(FINDINGS)
    columns = {display_name(finding): f"auc_{finding}" for finding in FINDINGS} | {metrics.mean_of(defined): "val_auc"}
    lowest = epochs[list(columns.values())].min(axis=None)
    for (name, column), ax in zip(columns.items(), panels, strict=True):
        ax.set_title(name, fontsize=8.5)
        if epochs[column].isna().all():
            common.blank(ax, "no epochs" if epochs.empty else "undefined:\none class only")
            continue
        x, values = epochs["epochs_so_far"], epochs[column]
        ax.plot(x, epochs["val_auc"], color=common.FAINT, lw=2.4)
        ax.plot(x, values, color=common.INK if column == "val_auc" else common.SPLIT_COLOURS["train"], marker="o", ms=3)
        if best is not None:
            ax.plot(x[best], values[best], "o", ms=8, mfc="none", mec=common.SPLIT_COLOURS["test"], mew=1.4)
        ax.axhline(0.5, color=common.MUTED, lw=0.8, ls=":")
        ax.set_ylim(min(0.45, lowest - 0.03), 1.01)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.grid(axis="y")
    for ax in panels[-5:]:
        ax.set_xlabel("epochs so far")
    return axes
