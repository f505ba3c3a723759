"""Figures of a dataset: its findings, patients and example films, and how good its labels are.

Films are frames as ``records.read`` gives them. Each figure's numbers come from a function of their own, so that what
is drawn can be saved beside it.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cxrlib import metrics
from cxrlib.data import images, records
from cxrlib.data.radiologists import GROUPS
from cxrlib.labels import FINDINGS, LABELS, display_name
from cxrlib.plots import common

FOLLOW_UPS = (1, 2, 3, 4, 5, 10, 20, 50, 100, np.inf)
"""Lower ends of the classes of films per patient; the last is the end of the last class."""

LABEL_SETS = {"test": "films of the test set", "val": "films of the validation set"}
LABEL_KINDS = {"read": "radiologists", "mined": "mined labels"}
LABEL_COLOURS = {"read": common.SPLIT_COLOURS["train"], "mined": common.SPLIT_COLOURS["val"]}


def prevalences(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Prevalence of each label, part by part: columns label, part, films (with the label), share (0..1).

    The share is of the films whose label is known, NaN without any.
    """
    rows = []
    for name, films in parts.items():
        labels = records.label_matrix(films)
        counts, known = metrics.positives(labels), metrics.is_known(labels).sum(0)
        shares = np.divide(counts, known, out=np.full(len(LABELS), np.nan), where=known > 0)
        rows.append(pd.DataFrame({"label": LABELS, "part": name, "films": counts, "share": shares}))
    return pd.concat(rows, ignore_index=True)


def prevalence(numbers: pd.DataFrame, ax: Axes) -> Axes:
    """Bars of the share of films with each label, one per part, with the count at the end. Frame as ``prevalences``."""
    parts = list(numbers["part"].unique())
    wide = numbers.pivot(index="label", columns="part", values="share").loc[list(LABELS)]
    order = wide[parts[0]].sort_values(ascending=False).index
    height = 0.8 / len(parts)
    for i, part in enumerate(parts):
        rows = numbers[numbers["part"] == part].set_index("label").loc[order]
        y = -np.arange(len(order)) - (i - (len(parts) - 1) / 2) * height
        colour = common.SPLIT_COLOURS.get(part, common.RUN_COLOURS[i])
        ax.barh(y, 100 * rows["share"].fillna(0), height * 0.92, color=colour, label=part)
        for at, row in zip(y, rows.itertuples(), strict=True):
            end = (100 * np.nan_to_num(row.share), at)
            ax.annotate(f"{row.films:,}", end, (3, 0), textcoords="offset points", va="center", size=6.5)
    ax.set_yticks(-np.arange(len(order)), [display_name(label) for label in order])
    ax.set(xlabel="share of films, % (number of films at the bar's end)", ylim=(-len(order) + 0.4, 0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.margins(x=0.08)
    if len(parts) > 1:
        ax.legend(loc="lower right")
    return ax


def co_occurrences(films: pd.DataFrame) -> pd.DataFrame:
    """Share (0..1) of the films with the row's finding that also have the column's; NaN without such films.

    Films whose label of the column's finding is unknown do not count.
    """
    labels = records.label_matrix(films)[:, : len(FINDINGS)]
    present, known = (labels == 1).astype(np.int64), metrics.is_known(labels).astype(np.int64)
    both, one = present.T @ present, present.T @ known
    shares = np.divide(both, one, out=np.full(both.shape, np.nan), where=one > 0)
    return pd.DataFrame(shares, index=list(FINDINGS), columns=list(FINDINGS))


def co_occurrence(numbers: pd.DataFrame, ax: Axes) -> Axes:
    """Heat map of ``co_occurrences`` in percent, to read along rows; the diagonal (100) is left out."""
    percent = 100 * numbers
    hidden = np.eye(len(percent), dtype=bool)
    top = np.nanmax(np.where(hidden, np.nan, percent), initial=1)
    bar = {"label": "% of the row's films", "shrink": 0.7}
    look = {
        "cmap": common.SEQUENTIAL,
        "vmin": 0,
        "vmax": top,
        "linewidths": 0.5,
        "annot_kws": {"size": 7},
        "cbar_kws": bar,
    }
    sns.heatmap(percent, mask=hidden | percent.isna(), annot=True, fmt=".0f", ax=ax, square=True, **look)
    names = [display_name(finding) for finding in numbers]
    middles = np.arange(len(names)) + 0.5
    ax.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(middles, names, rotation=0)
    ax.set(xlabel="… also has", ylabel="of the films with …")
    ax.tick_params(length=0)
    return ax


def age(films: pd.DataFrame, ax: Axes) -> Axes:
    """Histogram of the patients' age at each film, men and women as two lines; the legend counts unknown ages."""
    bins = np.arange(0, 101, 5)
    for sex, colour, dash in (("M", common.RUN_COLOURS[0], "-"), ("F", common.RUN_COLOURS[1], (0, (4, 1.5)))):
        ages = films.loc[films["sex"] == sex, "age"]
        name = f"{'men' if sex == 'M' else 'women'}, n = {len(ages):,}"
        ax.stairs(np.histogram(ages.dropna(), bins)[0], bins, color=colour, ls=dash, lw=1.8, label=name)
    unknown = int(films["age"].isna().sum())
    if unknown:
        ax.plot([], [], " ", label=f"age unknown, n = {unknown:,}")
    ax.set(xlabel="age at the film, years", ylabel="films", xlim=(0, 100), ylim=(0, None))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend()
    return ax


def view_and_sex(films: pd.DataFrame, ax: Axes) -> Axes:
    """Films by view position, men and women stacked. AP films are mostly of patients too ill to stand."""
    views = [view for view in ("PA", "AP", "") if (films["view"] == view).any()]
    below = np.zeros(len(views))
    for sex, colour in (("M", common.RUN_COLOURS[0]), ("F", common.RUN_COLOURS[1]), ("", common.FAINT)):
        counts = np.array([((films["view"] == view) & (films["sex"] == sex)).sum() for view in views])
        if counts.any():
            name = {"M": "men", "F": "women", "": "unknown"}[sex]
            drawn = ax.bar(range(len(views)), counts, 0.6, bottom=below, color=colour, label=name)
            ink = common.PAPER if sex else common.INK
            ax.bar_label(drawn, [f"{n:,}" if n else "" for n in counts], label_type="center", size=8, color=ink)
        below += counts
    ax.set_xticks(range(len(views)), [view or "unknown" for view in views])
    ax.set(xlabel="view position", ylabel="films")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend(loc="upper right")
    ax.margins(y=0.12)
    return ax


def patients_by_finding(films: pd.DataFrame) -> pd.DataFrame:
    """Age, sex and view position by label: columns label ("all films" first), films, age_low, age, age_high, women, ap.

    ``age`` is the median age at the film in years, ``age_low`` and ``age_high`` are the quartiles; ``women`` and ``ap``
    are shares (0..1) of the films with known sex or view position. NaN without such films.
    """
    rows = []
    for name, these in {"all films": films, **{name: films[films[name] == 1] for name in LABELS}}.items():
        low, middle, high = these["age"].quantile([0.25, 0.5, 0.75])
        women = (these.loc[these["sex"] != "", "sex"] == "F").mean()
        ap = (these.loc[these["view"] != "", "view"] == "AP").mean()
        rows.append((name, len(these), low, middle, high, women, ap))
    return pd.DataFrame(rows, columns=["label", "films", "age_low", "age", "age_high", "women", "ap"])


def by_finding(numbers: pd.DataFrame, column: str, ax: Axes) -> Axes:
    """Dots of one column of ``patients_by_finding``, one per label in the frame's order; the line is all films.

    ``column`` is age (the bar is the middle half of the films), women or ap (both in percent).
    """
    shown = numbers[numbers["label"] != "all films"].reset_index(drop=True)
    factor = 1 if column == "age" else 100
    y = np.arange(len(shown))
    if column == "age":
        ax.hlines(y, shown["age_low"], shown["age_high"], color=common.FAINT, lw=4)
    ax.plot(factor * shown[column], y, "o", ms=5, color=common.RUN_COLOURS[0])
    everyone = factor * numbers.loc[numbers["label"] == "all films", column].iloc[0]
    ax.axvline(everyone, color=common.MUTED, lw=1, ls=(0, (4, 2)), zorder=0)
    look = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "size": 7, "color": common.MUTED}
    ax.annotate(f"all films: {everyone:.0f}", (everyone, 1), (3, 2), **look)
    ax.set_yticks(y, [f"{display_name(row.label)} ({row.films:,})" for row in shown.itertuples()])
    words = {"age": "age, years (bar: middle half)", "women": "films of women, %", "ap": "AP films, %"}
    ax.set(xlabel=words[column], ylim=(len(shown) - 0.5, -0.5))
    if column != "age":
        ax.set_xlim(0, 100)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y")
    return ax


def gaps(films: pd.DataFrame) -> pd.DataFrame:
    """Gaps in a patient's labels: films without a finding that the films before and after have.

    Columns finding, chances (runs of three films of a patient whose first and third have it), gaps (those whose second
    lacks it), share. For a finding that cannot heal and return, such as Hernia or Fibrosis, a gap is a wrong label: the
    report did not repeat it, or the text rules missed it.
    """
    ordered = films.sort_values(["patient", "follow_up"])
    labels = records.label_matrix(ordered)[:, : len(FINDINGS)]
    present, patient = labels == 1, ordered["patient"].to_numpy()
    around = present[:-2] & present[2:] & (patient[:-2] == patient[2:])[:, None] & metrics.is_known(labels[1:-1])
    chances, missing = around.sum(0), (around & ~present[1:-1]).sum(0)
    share = np.divide(missing, chances, out=np.full(len(FINDINGS), np.nan), where=chances > 0)
    return pd.DataFrame({"finding": FINDINGS, "chances": chances, "gaps": missing, "share": share})


def follow_ups(films: pd.DataFrame) -> pd.DataFrame:
    """Patients by their number of films: columns films ("1", "5–9", …), patients, share_of_films (0..1)."""
    per_patient = films["patient"].value_counts().to_numpy()
    rows = []
    for low, end in pairwise(FOLLOW_UPS):
        these = per_patient[(per_patient >= low) & (per_patient < end)]
        name = f"{low}" if end - low == 1 else f"{low}+" if np.isinf(end) else f"{low}–{end - 1}"
        rows.append({"films": name, "patients": len(these), "share_of_films": these.sum() / max(len(films), 1)})
    return pd.DataFrame(rows)


def films_per_patient(numbers: pd.DataFrame, ax: Axes) -> Axes:
    """Bars of patients by their number of films, with their share of all films; frame as ``follow_ups``."""
    x = np.arange(len(numbers))
    drawn = ax.bar(x, numbers["patients"], 0.7, color=common.SPLIT_COLOURS["train"])
    labels = [f"{row.patients:,}\n{row.share_of_films:.0%}" if row.patients else "" for row in numbers.itertuples()]
    ax.bar_label(drawn, labels, size=7, padding=2)
    ax.set_xticks(x, numbers["films"], size=7)
    ax.set(xlabel="films of a patient", ylabel="patients (below: their share of all films)")
    ax.margins(y=0.2)
    return ax


def grey_levels(pixels: np.ndarray, ax: Axes) -> Axes:
    """Distribution of grey values of stored images (N, S, S) uint8: the median, and the middle 80 % of films."""
    if len(pixels) == 0:
        return common.blank(ax, "no films")
    counts = np.stack([np.bincount(np.ravel(film) // 8, minlength=32) / film.size for film in pixels])
    low, middle, high = np.quantile(counts, [0.1, 0.5, 0.9], axis=0)
    edges = np.arange(33) * 8
    colour, name = common.SPLIT_COLOURS["train"], f"median, n = {len(pixels):,} films"
    band = {"baseline": 100 * low, "fill": True, "alpha": 0.25, "label": "middle 80 % of films"}
    ax.stairs(100 * high, edges, color=colour, **band)
    ax.stairs(100 * middle, edges, color=colour, lw=1.8, label=name)
    ax.set(xlabel="grey value (0 black, 255 white)", ylabel="% of a film's pixels", xlim=(0, 256), ylim=(0, None))
    ax.legend()
    return ax


def one_of_each(films: pd.DataFrame, boxes: pd.DataFrame) -> pd.DataFrame:
    """One example film of each finding in ``films``; the column ``shown`` names the finding.

    Films with a box of the finding are preferred, then those with the fewest other findings.
    """
    boxed = set(zip(boxes["image"], boxes["finding"], strict=True))
    several = (records.label_matrix(films) == 1).sum(1)
    chosen = []
    for finding in FINDINGS:
        positive = films.assign(shown=finding, several=several)[films[finding] == 1]
        if len(positive):
            unboxed = [(image, finding) not in boxed for image in positive["image"]]
            chosen.append(positive.assign(unboxed=unboxed).sort_values(["unboxed", "several"], kind="stable").head(1))
    empty = films.head(0).assign(shown="")
    return pd.concat(chosen).drop(columns=["several", "unboxed"]) if chosen else empty


def show_examples(examples: pd.DataFrame, boxes: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """Draw the films of ``one_of_each`` from their files, with the finding's boxes."""
    pictures = [images.read(path) for path in examples["path"]]
    common.films(pictures, [display_name(finding) for finding in examples["shown"]], axes)
    for ax, picture, row in zip(np.ravel(axes), pictures, examples.itertuples(), strict=False):
        own = boxes[(boxes["image"] == row.image) & (boxes["finding"] == row.shown)]
        outline_boxes(records.scale_boxes(own, picture.shape[1], picture.shape[0]), ax)
    return axes


def outline_boxes(boxes: pd.DataFrame, ax: Axes) -> Axes:
    """Draw boxes on axes that show their film; boxes in its pixels."""
    for box in boxes.itertuples():
        ax.add_patch(Rectangle((box.x, box.y), box.w, box.h, fill=False, ec="white", lw=2.4))
        ax.add_patch(Rectangle((box.x, box.y), box.w, box.h, fill=False, ec=common.RUN_COLOURS[1], lw=1.2))
    return ax


def label_agreement(table: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """PPV and sensitivity of the mined labels, a panel each; ``table`` as from ``label_quality.agreement``."""
    names, heights = list(GROUPS), common.row_heights(list(GROUPS))
    titles = {"ppv": "PPV of the mined label", "sensitivity": "Sensitivity of the mined label"}
    for (column, title), ax in zip(titles.items(), axes, strict=True):
        sets = [part for part in LABEL_SETS if part in set(table["set"])]
        for i, part in enumerate(sets):
            rows = table[table["set"] == part].set_index("finding").reindex(names)
            y, colour = heights + common.row_offset(i, len(sets)), common.SPLIT_COLOURS[part]
            name = f"{LABEL_SETS[part]} ({rows['films'].max():,.0f})"
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


def label_curve_points(found: pd.DataFrame, scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """ROC curves of the network against both kinds of label: columns finding, labels ("read" or "mined"), positives,
    rate, sensitivity; one row with NaN where a class is absent. ``found`` as from ``radiologists.beside``."""
    rows = []
    for name, values in scores.items():
        for kind in LABEL_KINDS:
            truth = found[f"{kind}_{name}"].to_numpy()
            known = np.isfinite(truth)
            x = y = np.array([np.nan])
            if known.any() and not metrics.reason(truth[known]):
                curve = metrics.roc_curve(truth[known], values[known])
                x, y = curve.x, curve.y
            row = {"finding": name, "labels": kind, "positives": int((truth[known] == 1).sum())}
            rows.append(pd.DataFrame({**row, "rate": x, "sensitivity": y}))
    return pd.concat(rows, ignore_index=True)


def label_curves(points: pd.DataFrame, mined: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
    """ROC curves against both kinds of label, and the mined label itself as a point against the radiologists.

    ``points`` as from ``curve_points``, ``mined`` as from ``label_quality.beside_curve``. The dotted line is chance.
    """
    mined = mined.set_index("finding")
    for name, ax in zip(GROUPS, axes, strict=True):
        these = points[points["finding"] == name]
        ax.plot([0, 1], [0, 1], ":", color=common.MUTED, lw=0.8)
        for kind, dash in (("mined", (0, (4, 1.5))), ("read", "-")):
            rows = these[these["labels"] == kind]
            label = f"network, against {LABEL_KINDS[kind]} ({rows['positives'].iloc[0]:,} positive)"
            ax.plot(rows["rate"], rows["sensitivity"], ls=dash, color=LABEL_COLOURS[kind], label=label)
        point, look = mined.loc[name, ["rate", "mined"]], {"ms": 7, "mec": "white", "zorder": 5}
        label = "mined label, against radiologists"
        ax.plot(point["rate"], point["mined"], "D", color=common.SPLIT_COLOURS["test"], label=label, **look)
        ax.set(title=name, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="false-positive rate")
        if these["rate"].isna().all():
            common.blank(ax, "one class only, or no films")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), handlelength=2.6)
    axes[0].set_ylabel("sensitivity")
    return axes


def label_jumps(table: pd.DataFrame, ax: Axes) -> Axes:
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
