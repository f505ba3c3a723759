"""On whom the network fails: AUC and rates by sex, age, view position, and where they meet.

All groups are measured on the same resamples of all patients, so that the gap between two groups has an interval even
where patients are in both (many have AP and PA films). What a group cannot give is NaN with its reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxrlib.data import records
from cxrlib.errors import UserError
from cxrlib.evaluation import intervals, metrics, resample
from cxrlib.labels import FINDINGS

AGES = {"under 40": (0, 40), "40 to 59": (40, 60), "60 and over": (60, np.inf)}
SEXES = {"women": "F", "men": "M"}
VIEWS = {"AP": "AP", "PA": "PA"}
GAPS = (
    ("sex", "women", "men"),
    ("age", "40 to 59", "under 40"),
    ("age", "60 and over", "under 40"),
    ("view", "AP", "PA"),
    *(("sex and view", f"women, {view}", f"men, {view}") for view in VIEWS),
    *(("sex and age", f"women, {age}", f"men, {age}") for age in AGES),
    *(("view and age", f"AP, {age}", f"PA, {age}") for age in AGES),
)
"""Kind, group, and the group it is held against; where two meet, the other one is held fixed."""

NUMBERS = ("auc", "sensitivity")
LEAST = 5
"""Films of either class that a group must hold for a finding to be measured in it."""

MEAN = "mean of 14"


class Group(NamedTuple):
    """Films that share something: ``kind`` is all, sex, age, view or two of them; ``here`` (N,) bool."""

    kind: str
    name: str
    here: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What every group gives, on the films as they are and on R resamples of the patients that all groups share.

    numbers: "auc" and, where calls were given, "sensitivity", each with (14,) and (R, 14) per group's name, NaN
    where the group holds too few films.
    """

    films: pd.DataFrame
    known: np.ndarray
    groups: dict[str, Group]
    numbers: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


def groups(films: pd.DataFrame) -> list[Group]:
    """All films, each sex, age band and view position, and where two of these meet.

    Films of unknown sex, age or view are in no group of that kind; groups without films are listed all the same.
    """
    sex = [Group("sex", name, (films["sex"] == code).to_numpy()) for name, code in SEXES.items()]
    view = [Group("view", name, (films["view"] == code).to_numpy()) for name, code in VIEWS.items()]
    age = [Group("age", name, films["age"].between(*ends, inclusive="left").to_numpy()) for name, ends in AGES.items()]
    met = [
        Group(f"{one.kind} and {other.kind}", f"{one.name}, {other.name}", one.here & other.here)
        for ones, others in ((sex, view), (sex, age), (view, age))
        for one in ones
        for other in others
    ]
    return [Group("all", "all films", np.ones(len(films), bool)), *sex, *age, *view, *met]


def measure(
    films: pd.DataFrame,
    probabilities: np.ndarray,
    calls: np.ndarray | None = None,
    *,
    replicates: int = 500,
    seed: int = 0,
) -> Measured:
    """Measure AUC, and the sensitivity of calls, of the 14 findings in every group.

    films: N rows as ``records.read``; probabilities (N, 15); calls (N, 15) as from ``decisions``: 1.0 or 0.0,
    NaN in columns without a threshold. Without calls sensitivity is left out. Raises UserError for another shape.
    """
    known = records.label_matrix(films)
    for name, given in (("probabilities", probabilities), ("calls", calls)):
        if given is not None and given.shape != known.shape:
            raise UserError(f"{name} {given.shape} are not of these films, which need {known.shape}")
    draws = resample.draw(films["patient"].to_numpy(), replicates, seed)
    found = {group.name: group for group in groups(films)}
    numbers = {"auc": {name: _group_auc(group, known, probabilities, draws) for name, group in found.items()}}
    if calls is not None:
        numbers["sensitivity"] = {name: _group_sensitivity(g, known, calls, draws) for name, g in found.items()}
    return Measured(films, known, found, numbers)


def auc(measured: Measured) -> pd.DataFrame:
    """AUC of each finding and their mean in each group, with 95 % intervals by patient.

    Columns kind, group, finding, films, patients, positives, auc, low, high, findings (how many a mean is of), reason.
    A group's mean is over the findings that are defined *in it*, so compare groups by ``gaps``, which takes findings
    defined in both.
    """
    tables = [_rows(group, measured, *measured.numbers["auc"][name]) for name, group in measured.groups.items()]
    return pd.concat(tables, ignore_index=True)


def gaps(measured: Measured) -> pd.DataFrame:
    """What one group has over another, per finding and on average, in every number measured; the pairs are ``GAPS``.

    Columns number, kind, group, against, finding, difference, low, high (95 % by patient), positives and
    positives_against (films with the finding), films and films_against, findings (how many a mean is of), reason.
    """
    tables = [_gap(number, *pair, measured) for pair in GAPS for number in measured.numbers]
    return pd.concat(tables, ignore_index=True)


def view_shortcut(
    films: pd.DataFrame, probabilities: np.ndarray, *, replicates: int = 500, seed: int = 0
) -> pd.DataFrame:
    """How much of each AUC the view position alone may give: the AUC of all pairs less that of pairs of one view.

    Patients who cannot stand are filmed AP and are iller, so "AP" predicts findings; a network may read the view
    instead of the finding. Compared within views only (all pairs of a film with and one without the finding, both AP
    or both PA) this cannot help.

    films: N rows as ``records.read``; probabilities (N, 15). Columns finding, AP and PA (films with it), auc,
    within, difference, low and high (95 % by patient), reason; last row the mean of the findings that are defined.
    """
    known = records.label_matrix(films)[:, : len(FINDINGS)]
    views = [group.here for group in groups(films) if group.kind == "view"]
    either = views[0] | views[1]
    counts, rows = resample.draw(films["patient"].to_numpy(), replicates, seed)
    once = np.ones((len(counts), 1), counts.dtype)
    values, found = np.full((2, len(FINDINGS)), np.nan), np.full((replicates, len(FINDINGS)), np.nan)
    reasons = []
    for k in range(len(FINDINGS)):
        reasons.append(why(known[either, k]) or ("" if all(map(np.any, views)) else "films of one view only"))
        if not reasons[-1]:
            read = known[:, k], probabilities[:, k], rows
            values[:, k] = [part[0] for part in _all_and_within(*read, once, either, views)]
            whole, within = _all_and_within(*read, counts, either, views)
            found[:, k] = whole - within
    table = pd.DataFrame(
        {
            "finding": FINDINGS,
            **{name: known[here].sum(0, dtype=np.int64) for name, here in zip(VIEWS, views, strict=True)},
            "auc": values[0],
            "within": values[1],
            "difference": values[0] - values[1],
        }
    )
    table["low"], table["high"] = intervals.percentiles(found)
    table["reason"] = reasons
    mean = [metrics.nanmean(table[name].to_numpy()) for name in ("auc", "within", "difference")]
    ends = [float(end[0]) for end in intervals.percentiles(metrics.nanmean(found, axis=1)[:, None])]
    counts = [int(known[here].sum()) for here in views]
    last = pd.DataFrame([dict(zip(table.columns, (MEAN, *counts, *mean, *ends, ""), strict=True))])
    return pd.concat([table, last], ignore_index=True)


def _group_auc(group: Group, known: np.ndarray, scores: np.ndarray, draws) -> tuple[np.ndarray, np.ndarray]:
    """AUC of the 14 in a group (14,), and on each resample (R, 14); NaN where the group holds too few."""
    values, found = _nothing(draws)
    for k in _measurable(group, known):
        labels, marks = known[group.here, k], scores[group.here, k]
        values[k] = metrics.roc_auc(labels, marks)
        found[:, k] = resample.auc(resample.steps(labels, marks, draws[0], draws[1][group.here]))
    return values, found


def _group_sensitivity(group: Group, known: np.ndarray, calls: np.ndarray, draws) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity of the 14 in a group; shapes as ``_group_auc``."""
    values, found = _nothing(draws)
    these = [k for k in _measurable(group, known) if not np.isnan(calls[0, k])]
    truth = known[group.here][:, these].astype(float)
    hit = calls[group.here][:, these] * truth
    if these:
        values[these] = hit.sum(0) / truth.sum(0)
        found[:, these] = resample.ratio(hit, truth, draws[0], draws[1][group.here])
    return values, found


def _gap(number: str, kind: str, one: str, other: str, measured: Measured) -> pd.DataFrame:
    ours, theirs = (measured.numbers[number][name] for name in (one, other))
    here, there = (measured.groups[name].here for name in (one, other))
    difference, found = ours[0] - theirs[0], ours[1] - theirs[1]
    both, ends = ~np.isnan(difference), intervals.percentiles(found)
    counts = [measured.known[which][:, : len(FINDINGS)].sum(0, dtype=np.int64) for which in (here, there)]
    table = pd.DataFrame({"finding": FINDINGS, "difference": difference, "low": ends[0], "high": ends[1]})
    table["positives"], table["positives_against"], table["findings"] = *counts, 1
    table["reason"] = np.where(both, "", f"fewer than {LEAST} films of a class in a group, or no threshold")
    ends = intervals.percentiles(metrics.nanmean(found[:, both], axis=1)[:, None])
    last = (MEAN, metrics.nanmean(difference), ends[0][0], ends[1][0], *(count[both].sum() for count in counts))
    last += (int(both.sum()), "" if both.any() else "no finding is defined in both")
    table = pd.concat([table, pd.DataFrame([dict(zip(table.columns, last, strict=True))])], ignore_index=True)
    table.insert(6, "films", int(here.sum()))
    table.insert(7, "films_against", int(there.sum()))
    return pd.DataFrame({"number": number, "kind": kind, "group": one, "against": other}, index=table.index).join(table)


def _rows(group: Group, measured: Measured, values: np.ndarray, found: np.ndarray) -> pd.DataFrame:
    known = measured.known[group.here][:, : len(FINDINGS)]
    low, high = intervals.percentiles(found)
    table = pd.DataFrame({"finding": FINDINGS, "positives": known.sum(0, dtype=np.int64), "auc": values})
    table["low"], table["high"], table["findings"] = low, high, 1
    table["reason"] = [why(known[:, k]) for k in range(len(FINDINGS))]
    ends = intervals.percentiles(metrics.nanmean(found, axis=1)[:, None])
    defined = int((~np.isnan(values)).sum())
    reason = "" if defined else "no finding is defined here" if len(known) else "no films"
    last = (MEAN, int(known.sum()), metrics.nanmean(values), float(ends[0][0]), float(ends[1][0]), defined, reason)
    table = pd.concat([table, pd.DataFrame([dict(zip(table.columns, last, strict=True))])], ignore_index=True)
    counts = {"films": int(group.here.sum()), "patients": measured.films.loc[group.here, "patient"].nunique()}
    return pd.DataFrame({"kind": group.kind, "group": group.name, **counts}, index=table.index).join(table)


def _all_and_within(labels, scores, rows, counts, either, views) -> Iterator[np.ndarray]:
    """AUC over all pairs, and over pairs of one view, on each resample: (R,) each."""
    whole = resample.steps(labels[either], scores[either], counts, rows[either])
    yield resample.auc(whole)
    parts = [resample.steps(labels[here], scores[here], counts, rows[here]) for here in views]
    pairs = np.stack([at.positives * at.negatives.astype(np.float64) for at in parts])
    won = np.nansum(np.stack([resample.auc(at) for at in parts]) * pairs, axis=0)
    yield np.divide(won, pairs.sum(0), out=np.full(len(won), np.nan), where=pairs.sum(0) > 0)


def _nothing(draws) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(FINDINGS), np.nan), np.full((draws[0].shape[1], len(FINDINGS)), np.nan)


def _measurable(group: Group, known: np.ndarray) -> list[int]:
    return [k for k in range(len(FINDINGS)) if not why(known[group.here, k])]


def why(labels: np.ndarray) -> str:
    """Why a finding is not measured on these films; "" where it is."""
    positives = int(np.count_nonzero(labels))
    fewest = min(positives, len(labels) - positives)
    return metrics.reason(labels) or ("" if fewest >= LEAST else f"only {fewest} films of a class, {LEAST} are needed")
