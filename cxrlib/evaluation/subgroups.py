"""On whom the network fails: AUC and rates by sex, age, view position, and where they meet.

A group's intervals are from resamples of all patients; a gap between two groups has DeLong's interval by patient, which
allows for patients who are in both (many have AP and PA films), and a p adjusted for all gaps looked at. What a group
cannot give is NaN with its reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxrlib.data import records
from cxrlib.errors import UserError
from cxrlib.evaluation import delong, intervals, metrics, resample
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
LEAST = intervals.LEAST_TESTED
"""Patients with and without a finding that a group must hold for the finding to be measured in it."""


class Group(NamedTuple):
    """Films that share something: ``kind`` is all, sex, age, view or two of them; ``here`` (N,) bool."""

    kind: str
    name: str
    here: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What every group gives on the films, and what AUC on R resamples of the patients that all groups share.

    numbers: "auc" and, where calls were given, "sensitivity", each with 14 estimates per group's name, None where the
    group holds too few patients. replicates: AUC (R, 14) per group's name, NaN there.
    """

    films: pd.DataFrame
    known: np.ndarray
    groups: dict[str, Group]
    numbers: dict[str, dict[str, list[delong.Estimate | None]]]
    replicates: dict[str, np.ndarray]


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
    given = {"auc": probabilities} | ({} if calls is None else {"sensitivity": calls})
    numbers = {
        number: {name: _estimates(number, group, known, read, draws) for name, group in found.items()}
        for number, read in given.items()
    }
    again = {
        name: _replicates(group, numbers["auc"][name], known, probabilities, draws) for name, group in found.items()
    }
    return Measured(films, known, found, numbers, again)


def auc(measured: Measured) -> pd.DataFrame:
    """AUC of each finding and their mean in each group, with 95 % intervals by patient.

    Columns kind, group, films, patients, finding, positives, auc, low, high, findings (how many a mean is of), reason.
    No interval of a finding below ``intervals.LEAST`` patients, nor of a mean below twice as many. A group's mean is
    over the findings that are defined *in it*, so compare groups by ``gaps``, which takes findings defined in both.
    """
    tables = [_rows(group, measured) for group in measured.groups.values()]
    return pd.concat(tables, ignore_index=True)


def gaps(measured: Measured) -> pd.DataFrame:
    """What one group has over another, per finding and on average, in every number measured; the pairs are ``GAPS``.

    Columns number, kind, group, against, finding, difference, low, high (95 % by patient), p, p_holm, positives and
    positives_against (films with the finding), films and films_against, patients and patients_against, findings (how
    many a mean is of), reason. p_holm is adjusted for all mean gaps of the table, and for all single ones, pair by pair
    and number by number.
    """
    table = pd.concat(
        [_gap(number, *pair, measured) for pair in GAPS for number in measured.numbers], ignore_index=True
    )
    for _, family in table.groupby(table["finding"].map(metrics.is_mean)):
        table.loc[family.index, "p_holm"] = intervals.holm(family["p"].to_numpy())
    return table


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
    reasons, one_view = [], "" if all(map(np.any, views)) else "films of one view only"
    for k in range(len(FINDINGS)):
        reasons.append(why(known[either, k], rows[either]) or one_view)
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
    told = np.flatnonzero(~np.isnan(values[0]))
    fewest = intervals.patients_of(known[either][:, told], rows[either], len(counts))[0].min(0)
    ends, name = _mean_ends(found[:, told], len(counts), fewest), metrics.mean_of(len(told))
    counts = [int(known[here].sum()) for here in views]
    last = pd.DataFrame([dict(zip(table.columns, (name, *counts, *mean, *ends, ""), strict=True))])
    return pd.concat([table, last], ignore_index=True)


def _estimates(number: str, group: Group, known: np.ndarray, read: np.ndarray, draws) -> list[delong.Estimate | None]:
    """AUC, or sensitivity, of the 14 in a group; None where it holds too few, or where there is no threshold."""
    counts, rows = draws
    rows, truth, read = rows[group.here], known[group.here], read[group.here]
    found: list[delong.Estimate | None] = []
    for k in range(len(FINDINGS)):
        if why(truth[:, k], rows) or np.isnan(read[:, k]).any():
            found.append(None)
        elif number == "auc":
            found.append(delong.auc(truth[:, k], read[:, k], rows, len(counts)))
        else:
            found.append(delong.share(read[:, k] * truth[:, k], truth[:, k], rows, len(counts)))
    return found


def _replicates(group: Group, estimates: list, known: np.ndarray, scores: np.ndarray, draws) -> np.ndarray:
    """AUC of the 14 in a group on each resample, (R, 14)."""
    found = np.full((draws[0].shape[1], len(FINDINGS)), np.nan)
    for k in (k for k, estimate in enumerate(estimates) if estimate):
        at = resample.steps(known[group.here, k], scores[group.here, k], draws[0], draws[1][group.here])
        found[:, k] = resample.auc(at)
    return found


def _gap(number: str, kind: str, one: str, other: str, measured: Measured) -> pd.DataFrame:
    ours, theirs = (measured.numbers[number][name] for name in (one, other))
    sides = [measured.groups[name].here for name in (one, other)]
    found = {k: delong.less(ours[k], theirs[k]) for k in range(len(FINDINGS)) if ours[k] and theirs[k]}
    counts = [measured.known[here][:, : len(FINDINGS)].sum(0, dtype=np.int64) for here in sides]
    patients = [measured.films.loc[here, "patient"].nunique() for here in sides]
    few = f"fewer than {LEAST} patients with or without it in a group, or no threshold"
    rows = [
        (finding, *_tested(found.get(k), single=True), counts[0][k], counts[1][k], 1, "" if k in found else few)
        for k, finding in enumerate(FINDINGS)
    ]
    both, enough = list(found), min(patients) >= intervals.LEAST
    mean = _tested(delong.mean(list(found.values())) if found else None)
    mean = mean if enough else (mean[0], np.nan, np.nan, np.nan)
    reason = "no finding is defined in both" if not both else "" if enough else f"{min(patients)} patients in a group"
    rows.append((metrics.mean_of(len(both)), *mean, *(count[both].sum() for count in counts), len(both), reason))
    columns = ["finding", "difference", "low", "high", "p", "positives", "positives_against", "findings", "reason"]
    table = pd.DataFrame(rows, columns=columns)
    for at, (name, here, who) in enumerate(zip(("", "_against"), sides, patients, strict=True)):
        table.insert(7 + 2 * at, f"films{name}", int(here.sum()))
        table.insert(8 + 2 * at, f"patients{name}", who)
    table.insert(5, "p_holm", np.nan)
    return pd.DataFrame({"number": number, "kind": kind, "group": one, "against": other}, index=table.index).join(table)


def _tested(gap: delong.Estimate | None, *, single: bool = False) -> tuple[float, float, float, float]:
    """Difference, low, high and p; NaN where there is none.

    Of single findings so many are looked at that only p far out in the tail count, where errors from few patients are
    largest: they have the freedom of the smallest of the four groups of patients compared.
    """
    if gap is None:
        return (np.nan,) * 4
    return gap.value, *gap.test(float(gap.counts.min() - 1) if single else None)


def _rows(group: Group, measured: Measured) -> pd.DataFrame:
    known, who = measured.known[group.here][:, : len(FINDINGS)], measured.films.loc[group.here, "patient"].to_numpy()
    estimates, found = measured.numbers["auc"][group.name], measured.replicates[group.name]
    values = np.array([estimate.value if estimate else np.nan for estimate in estimates])
    patients, fewest = (
        len(np.unique(who)),
        np.array([estimate.counts.min() if estimate else 0 for estimate in estimates]),
    )
    low, high = intervals.percentiles(np.where(fewest < intervals.LEAST, np.nan, found), fewest)
    table = pd.DataFrame({"finding": FINDINGS, "positives": known.sum(0, dtype=np.int64), "auc": values})
    table["low"], table["high"], table["findings"] = low, high, 1
    table["reason"] = [why(known[:, k], who) for k in range(len(FINDINGS))]
    told = np.flatnonzero(~np.isnan(values))
    ends = _mean_ends(found[:, told], patients, fewest[told])
    reason = "" if len(told) else "no finding is defined here" if len(known) else "no films"
    last = (metrics.mean_of(len(told)), int(known.sum()), metrics.nanmean(values), *ends, len(told), reason)
    table = pd.concat([table, pd.DataFrame([dict(zip(table.columns, last, strict=True))])], ignore_index=True)
    counts = {"films": int(group.here.sum()), "patients": patients}
    return pd.DataFrame({"kind": group.kind, "group": group.name, **counts}, index=table.index).join(table)


def _mean_ends(replicates: np.ndarray, patients: int, fewest: np.ndarray) -> tuple[float, float]:
    """Interval of the mean over the columns (R, K), in every resample over all of them; NaN for too few patients.

    fewest (K,): on how many patients each column rests.
    """
    if not replicates.shape[1] or patients < 2 * intervals.LEAST:
        return np.nan, np.nan
    low, high = intervals.percentiles(replicates.mean(1)[:, None], fewest.mean())
    return float(low[0]), float(high[0])


def _all_and_within(labels, scores, rows, counts, either, views) -> Iterator[np.ndarray]:
    """AUC over all pairs, and over pairs of one view, on each resample: (R,) each."""
    whole = resample.steps(labels[either], scores[either], counts, rows[either])
    yield resample.auc(whole)
    parts = [resample.steps(labels[here], scores[here], counts, rows[here]) for here in views]
    pairs = np.stack([at.positives * at.negatives.astype(np.float64) for at in parts])
    won = np.nansum(np.stack([resample.auc(at) for at in parts]) * pairs, axis=0)
    yield np.divide(won, pairs.sum(0), out=np.full(len(won), np.nan), where=pairs.sum(0) > 0)


def why(labels: np.ndarray, patients: np.ndarray) -> str:
    """Why a finding is not measured on these films, labels and patients (N,); "" where it is."""
    fewest = min(len(np.unique(patients[labels == side])) for side in (0, 1))
    few = f"only {fewest} patients of a class, {LEAST} are needed"
    return metrics.reason(labels) or ("" if fewest >= LEAST else few)
