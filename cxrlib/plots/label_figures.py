"""Figures of label quality: mined labels against radiologists', the network beside both, labels that jump."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from cxrlib import metrics
from cxrlib.data.radiologists import GROUPS
from cxrlib.labels import display_name
from cxrlib.plots import common

SETS = {"test": "films of the test set", "val": "films of the validation set"}
KINDS = {"read": "radiologists", "mined": "mined labels"}
COLOURS = {"read": common.SPLIT_COLOURS["train"], "mined": common.SPLIT_COLOURS["val"]}


def agreement(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """PPV and sensitivity of the mined labels, a panel each; ``table`` as from ``label_quality.agreement``."""
    names, heights = list(GROUPS), common.row_heights(list(GROUPS))
    titles = {"ppv": "PPV of the mined label", "sensitivity": "Sensitivity of the mined label"}
    for (column, title), ax in zip(titles.items(), axes, strict=True):
        sets = [part for part in SETS if part in set(table["set"])]
        for i, part in enumerate(sets):
            rows = table[table["set"] == part].set_index("finding").reindex(names)
            y, colour = heights + common.row_offset(i, len(sets)), common.SPLIT_COLOURS[part]
            name = f"{SETS[part]} ({rows['films'].max():,.0f})"
            common.whiskers(
                ax, rows[column], rows[f"{column}_low"], rows[f"{column}_high"], y, colour, common.MARKERS[i], name
            )
        common.name_rows(ax, names, heights)
        ax.set(xlim=(-0.02, 1.02), title=title, xlabel="share, 95 % interval by patient")
        if table.empty:
            common.blank(ax, "no film was read by radiologists")
    axes[1].tick_params(labelleft=False)
    if not table.empty:
        axes[0].legend(loc="upper center", bbox_to_anchor=(1.02, -0.16), ncols=2)
    return axes


def curve_points(found: pd.DataFrame, scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """ROC curves of the network against both kinds of label: columns finding, labels ("read" or "mined"), positives,
    rate, sensitivity; one row with NaN where a class is absent. ``found`` as from ``radiologists.beside``."""
    rows = []
    for name, values in scores.items():
        for kind in KINDS:
            truth = found[f"{kind}_{name}"].to_numpy()
            known = np.isfinite(truth)
            x = y = np.array([np.nan])
            if known.any() and not metrics.reason(truth[known]):
                curve = metrics.roc_curve(truth[known], values[known])
                x, y = curve.x, curve.y
            row = {"finding": name, "labels": kind, "positives": int((truth[known] == 1).sum())}
            rows.append(pd.DataFrame({**row, "rate": x, "sensitivity": y}))
    return pd.concat(rows, ignore_index=True)


def curves(points: pd.DataFrame, mined: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """ROC curves against both kinds of label, and the mined label itself as a point against the radiologists.

    ``points`` as from ``curve_points``, ``mined`` as from ``label_quality.beside_curve``. The dotted line is chance.
    """
    mined = mined.set_index("finding")
    for name, ax in zip(GROUPS, axes, strict=True):
        these = points[points["finding"] == name]
        ax.plot([0, 1], [0, 1], ":", color=common.MUTED, lw=0.8)
        for kind, dash in (("mined", (0, (4, 1.5))), ("read", "-")):
            rows = these[these["labels"] == kind]
            label = f"network, against {KINDS[kind]} ({rows['positives'].iloc[0]:,} positive)"
            ax.plot(rows["rate"], rows["sensitivity"], ls=dash, color=COLOURS[kind], label=label)
        point, look = mined.loc[name, ["rate", "mined"]], {"ms": 7, "mec": "white", "zorder": 5}
        label = "mined label, against radiologists"
        ax.plot(point["rate"], point["mined"], "D", color=common.SPLIT_COLOURS["test"], label=label, **look)
        ax.set(title=name, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="false-positive rate")
        if these["rate"].isna().all():
            common.blank(ax, "one class only, or no films")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=2.6)
    axes[0].set_ylabel("sensitivity")
    return axes


def jumps(table: pd.DataFrame, ax: Axes) -> Axes:
    """Share of gaps in a finding that was on the film before and is on the film after, beside independent films.

    ``table`` as from ``label_quality.jumps``. Findings without such films are left out.
    """
    rows = table[table["triples"] > 0].sort_values("gap", ascending=False, kind="stable")
    if rows.empty:
        return common.blank(ax, "no patient has a finding on two films\nwith another film between them")
    heights = np.arange(len(rows))[::-1].astype(float)
    common.whiskers(ax, rows["gap"], rows["low"], rows["high"], heights, common.SPLIT_COLOURS["train"], "o", "observed")
    ax.plot(rows["independent"], heights, "|", color=common.MUTED, ms=9, mew=1.6, label="if films were independent")
    names = [f"{display_name(row.finding)}  (n = {row.triples:,})" for row in rows.itertuples()]
    common.name_rows(ax, names, heights)
    ax.set(xlim=(-0.02, 1.02), xlabel="share of middle films that lack the finding, 95 % interval by patient")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2)
    return ax
