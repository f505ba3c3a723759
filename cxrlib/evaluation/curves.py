"""ROC and precision-recall curves: their points with intervals by patient, and their plots.

The points are a frame, so the CSV beside a figure holds what the figure shows.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cxrlib import labels as order
from cxrlib import theme
from cxrlib.evaluation import bands, metrics, plots

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
        band = bands.roc_band(truth, scores, patients, replicates=replicates, seed=seed, at=RATES)
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
        band = bands.pr_band(truth, scores, patients, replicates=replicates, seed=seed, at=RECALLS)
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
    ax.set_title(theme.name(finding))
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
    if points["rate"].isna().all():
        return plots.blank(ax, "undefined:\n" + _reason(positives))
    colour = theme.FINDING_COLOURS[finding]
    ax.plot([0, 1], [0, 1], color=theme.MUTED, lw=0.8, ls=":")
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
    ax.set_title(theme.name(finding))
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
    if points["recall"].isna().all():
        return plots.blank(ax, "undefined:\n" + _reason(positives))
    colour, prevalence = theme.FINDING_COLOURS[finding], positives / (positives + negatives)
    ax.axhline(prevalence, color=theme.MUTED, lw=0.8, ls=":")
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
    positives = int(np.count_nonzero(truth))
    return pd.DataFrame({"finding": finding, "positives": positives, "negatives": len(truth) - positives, **columns})


def _undefined(finding: str, truth: np.ndarray, names: tuple[str, str]) -> pd.DataFrame:
    return _points(finding, truth, {name: np.array([np.nan]) for name in (*names, "low", "high")})


def _reason(positives: int) -> str:
    return "no film with the finding" if positives == 0 else "no film without the finding"


def _with_interval(what: str, table: pd.DataFrame, finding: str, column: str) -> str:
    row = table.set_index("finding").loc[finding]
    value, low, high = row[[column, f"{column}_low", f"{column}_high"]]
    return f"{what} {value:.3f}" if np.isnan(low) else f"{what} {value:.2f} ({low:.2f}–{high:.2f})"


def _corner(ax: Axes, lines: list[str], x: float, y: float, va: str, ha: str = "right") -> None:
    ax.text(x, y, "\n".join(lines), ha=ha, va=va, fontsize=7.5, transform=ax.transAxes, linespacing=1.3)
