"""Figures of a dataset: how frequent findings are, which come together, and who the patients are.

Films are frames as ``records.read`` gives them. Each figure's numbers come from a function of their own, so that what
is drawn can be saved beside it.
"""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cxrlib import theme
from cxrlib.data import records
from cxrlib.evaluation import plots
from cxrlib.labels import FINDINGS, LABELS

FOLLOW_UPS = (1, 2, 3, 4, 5, 10, 20, 50, 100, np.inf)
"""Lower ends of the classes of films per patient; the last closes the list."""


def prevalences(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Films with each label, part by part: columns label, part, films, share (0..1)."""
    rows = []
    for name, films in parts.items():
        counts = records.label_matrix(films).sum(0)
        shares = counts / len(films) if len(films) else np.full(len(LABELS), np.nan)
        rows.append(pd.DataFrame({"label": LABELS, "part": name, "films": counts, "share": shares}))
    return pd.concat(rows, ignore_index=True)


def prevalence(numbers: pd.DataFrame, ax: Axes) -> Axes:
    """Share of films with each label as bars, a bar per part; the count stands at its end. Frame as ``prevalences``."""
    parts = list(numbers["part"].unique())
    wide = numbers.pivot(index="label", columns="part", values="share").loc[list(LABELS)]
    order = wide[parts[0]].sort_values(ascending=False).index
    height = 0.8 / len(parts)
    for i, part in enumerate(parts):
        rows = numbers[numbers["part"] == part].set_index("label").loc[order]
        y = -np.arange(len(order)) - (i - (len(parts) - 1) / 2) * height
        colour = theme.SPLIT_COLOURS.get(part, theme.RUN_COLOURS[i])
        ax.barh(y, 100 * rows["share"].fillna(0), height * 0.92, color=colour, label=part)
        for at, row in zip(y, rows.itertuples(), strict=True):
            end = (100 * np.nan_to_num(row.share), at)
            ax.annotate(f"{row.films:,}", end, (3, 0), textcoords="offset points", va="center", size=6.5)
    ax.set_yticks(-np.arange(len(order)), [theme.name(label) for label in order])
    ax.set(xlabel="share of films, % (number of films at the bar's end)", ylim=(-len(order) + 0.4, 0.6))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.margins(x=0.08)
    if len(parts) > 1:
        ax.legend(loc="lower right")
    return ax


def co_occurrences(films: pd.DataFrame) -> pd.DataFrame:
    """Of the films with the row's finding, the share (0..1) that also has the column's; NaN without such films."""
    known = records.label_matrix(films)[:, : len(FINDINGS)].astype(np.int64)
    together, alone = known.T @ known, known.sum(0)[:, None]
    shares = np.divide(together, alone, out=np.full(together.shape, np.nan), where=alone > 0)
    return pd.DataFrame(shares, index=list(FINDINGS), columns=list(FINDINGS))


def co_occurrence(numbers: pd.DataFrame, ax: Axes) -> Axes:
    """Heat map of ``co_occurrences`` in percent, read along rows; the diagonal, 100 by definition, is left out."""
    percent = 100 * numbers
    hidden = np.eye(len(percent), dtype=bool)
    top = np.nanmax(np.where(hidden, np.nan, percent), initial=1)
    bar = {"label": "% of the row's films", "shrink": 0.7}
    look = {
        "cmap": theme.SEQUENTIAL,
        "vmin": 0,
        "vmax": top,
        "linewidths": 0.5,
        "annot_kws": {"size": 7},
        "cbar_kws": bar,
    }
    sns.heatmap(percent, mask=hidden | percent.isna(), annot=True, fmt=".0f", ax=ax, square=True, **look)
    names = [theme.name(finding) for finding in numbers]
    middles = np.arange(len(names)) + 0.5
    ax.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(middles, names, rotation=0)
    ax.set(xlabel="… also has", ylabel="of the films with …")
    ax.tick_params(length=0)
    return ax


def age(films: pd.DataFrame, ax: Axes) -> Axes:
    """Ages of the patients at each film, men and women as two lines; unknown ages are counted in the legend."""
    bins = np.arange(0, 101, 5)
    for sex, colour, dash in (("M", theme.RUN_COLOURS[0], "-"), ("F", theme.RUN_COLOURS[1], (0, (4, 1.5)))):
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
    for sex, colour in (("M", theme.RUN_COLOURS[0]), ("F", theme.RUN_COLOURS[1]), ("", theme.FAINT)):
        counts = np.array([((films["view"] == view) & (films["sex"] == sex)).sum() for view in views])
        if counts.any():
            name = {"M": "men", "F": "women", "": "unknown"}[sex]
            drawn = ax.bar(range(len(views)), counts, 0.6, bottom=below, color=colour, label=name)
            dark = sex != ""
            ax.bar_label(drawn, [f"{n:,}" if n else "" for n in counts], label_type="center", size=8,
                         color=theme.PAPER if dark else theme.INK)  # fmt: skip
        below += counts
    ax.set_xticks(range(len(views)), [view or "unknown" for view in views])
    ax.set(xlabel="view position", ylabel="films")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.legend(loc="upper right")
    ax.margins(y=0.12)
    return ax


def follow_ups(films: pd.DataFrame) -> pd.DataFrame:
    """How many patients have how many films: columns films ("1", "5–9", …), patients, share of all films."""
    per_patient = films["patient"].value_counts().to_numpy()
    rows = []
    for low, end in pairwise(FOLLOW_UPS):
        these = per_patient[(per_patient >= low) & (per_patient < end)]
        name = f"{low}" if end - low == 1 else f"{low}+" if np.isinf(end) else f"{low}–{end - 1}"
        rows.append({"films": name, "patients": len(these), "share_of_films": these.sum() / max(len(films), 1)})
    return pd.DataFrame(rows)


def films_per_patient(numbers: pd.DataFrame, ax: Axes) -> Axes:
    """Patients by their number of films, and the share of all films that is theirs; frame as ``follow_ups``."""
    x = np.arange(len(numbers))
    drawn = ax.bar(x, numbers["patients"], 0.7, color=theme.SPLIT_COLOURS["train"])
    labels = [f"{row.patients:,}\n{row.share_of_films:.0%}" if row.patients else "" for row in numbers.itertuples()]
    ax.bar_label(drawn, labels, size=7, padding=2)
    ax.set_xticks(x, numbers["films"], size=7)
    ax.set(xlabel="films of a patient", ylabel="patients (below: their share of all films)")
    ax.margins(y=0.2)
    return ax


def grey_levels(pixels: np.ndarray, ax: Axes) -> Axes:
    """Distribution of grey values of stored films (N, S, S) uint8: the median film, and the middle 80 % of films."""
    if len(pixels) == 0:
        return plots.blank(ax, "no films")
    counts = np.stack([np.bincount(np.ravel(film) // 8, minlength=32) / film.size for film in pixels])
    low, middle, high = np.quantile(counts, [0.1, 0.5, 0.9], axis=0)
    edges = np.arange(33) * 8
    ax.stairs(100 * high, edges, baseline=100 * low, fill=True, color=theme.SPLIT_COLOURS["train"], alpha=0.25,
              label="middle 80 % of films")  # fmt: skip
    ax.stairs(
        100 * middle, edges, color=theme.SPLIT_COLOURS["train"], lw=1.8, label=f"median, n = {len(pixels):,} films"
    )
    ax.set(xlabel="grey value (0 black, 255 white)", ylabel="% of a film's pixels", xlim=(0, 256), ylim=(0, None))
    ax.legend()
    return ax
