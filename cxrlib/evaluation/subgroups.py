"""Patient groups: AUC and sensitivity by sex, age, view position, and by two of these at once.

Intervals of a group are from resamples of all patients. A gap between two groups has DeLong's interval by patient,
which allows for patients in both groups (many have AP and PA films), and a p adjusted for all gaps. Undefined values
are NaN and have a reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxrlib import UserError, metrics
from cxrlib.data import records
from cxrlib.evaluation import delong, intervals
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
"""Kind, group, and the group that it is compared with; of two traits, one differs and the other is the same."""

NUMBERS = ("auc", "sensitivity")
LEAST = intervals.LEAST_TESTED
"""Patients with and without a finding that a group needs for the finding to be measured in it."""


class Group(NamedTuple):
    """Films with a trait in common: ``kind`` is all, sex, age, view or two of them; ``here`` (N,) bool."""

    kind: str
    name: str
    here: np.ndarray


@dataclass(frozen=True)
class Measured:
    """Estimates of every group on the films, and its AUC on R resamples of the patients, the same for all groups.

    numbers: "auc" and, with calls, "sensitivity"; each has 14 estimates per group's name, None if the group has too few
    patients. replicates: AUC (R, 14) per group's name, NaN there.
    """

    films: pd.DataFrame
    known: np.ndarray
    groups: dict[str, Group]
    numbers: dict[str, dict[str, list[delong.Estimate | None]]]
    replicates: dict[str, np.ndarray]


def groups(films: pd.DataFrame) -> list[Group]:
    """Groups of films: all, each sex, age band and view position, and pairs of these.

    Films of unknown sex, age or view are in no group of that kind; groups without films are listed too.
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
    """Measure AUC, and the sensitivity of calls, of the 14 findings in every group, on its films of known label.

    films: N rows as ``records.read``; probabilities (N, 15); calls (N, 15) as from ``thresholds.Decisions``: 1.0 or
    0.0, NaN in columns without a threshold. Without calls sensitivity is left out. Raises UserError for another shape.
    """
    labels = records.label_matrix(films)
    for name, values in (("probabilities", probabilities), ("calls", calls)):
        if values is not None and values.shape != labels.shape:
            raise UserError(f"{name} {values.shape} are not of these films, which need {labels.shape}")
    draws = intervals.draw_resamples(films["patient"].to_numpy(), replicates, seed)
    by_name = {group.name: group for group in groups(films)}
    inputs = {"auc": probabilities} | ({} if calls is None else {"sensitivity": calls})
    numbers = {
        number: {name: _estimates(number, group, labels, values, draws) for name, group in by_name.items()}
        for number, values in inputs.items()
    }
    aucs = numbers["auc"]
    again = {name: _replicates(group, aucs[name], labels, probabilities, draws) for name, group in by_name.items()}
    return Measured(films, labels, by_name, numbers, again)


def auc(measured: Measured) -> pd.DataFrame:
    """AUC of each finding and their mean in each group, with 95 % intervals by patient.

    Columns kind, group, films, patients, finding, positives, auc, low, high, findings (number in a mean), reason. A
    finding needs ``intervals.LEAST`` patients for an interval, a mean twice as many. A group's mean is over the
    findings that are defined *in it*; to compare groups use ``gaps``, which takes findings defined in both.
    """
    tables = [_rows(group, measured) for group in measured.groups.values()]
    return pd.concat(tables, ignore_index=True)


def gaps(measured: Measured) -> pd.DataFrame:
    """Differences between the pairs of groups in ``GAPS``, per finding and on average, for every number measured.

    Columns number, kind, group, against, finding, difference, low, high (95 % by patient), p, p_holm, positives and
    positives_against (films with the finding), films and films_against, patients and patients_against, findings (number
    in a mean), reason. p_holm is adjusted for all mean gaps of the table, and separately for all gaps of single
    findings.
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
    """AUC that may come from the view position: the AUC of all pairs of films minus that of pairs of one view.

    Patients who cannot stand are imaged AP and are more ill, so "AP" predicts findings, and a network may use the view
    position instead of the finding. It cannot do so within a view, over pairs of a film with and one without the
    finding that are both AP or both PA.

    films: N rows as ``records.read``; probabilities (N, 15). Columns finding, AP and PA (films with it), auc,
    within, difference, low and high (95 % by patient), reason; last row the mean of the findings that are defined.
    """
    labels = records.label_matrix(films)[:, : len(FINDINGS)]
    views = [group.here for group in groups(films) if group.kind == "view"]
    either = views[0] | views[1]
    counts, rows = intervals.draw_resamples(films["patient"].to_numpy(), replicates, seed)
    once = np.ones((len(counts), 1), counts.dtype)
    values, gains = np.full((2, len(FINDINGS)), np.nan), np.full((replicates, len(FINDINGS)), np.nan)
    reasons, one_view = [], "" if all(map(np.any, views)) else "films of one view only"
    for k in range(len(FINDINGS)):
        reasons.append(why(labels[either, k], rows[either]) or one_view)
        if not reasons[-1]:
            columns = labels[:, k], probabilities[:, k], rows
            values[:, k] = [part[0] for part in _all_and_within(*columns, once, either, views)]
            whole, within = _all_and_within(*columns, counts, either, views)
            gains[:, k] = whole - within
    table = pd.DataFrame(
        {
            "finding": FINDINGS,
            **{name: metrics.positives(labels[here]) for name, here in zip(VIEWS, views, strict=True)},
            "auc": values[0],
            "within": values[1],
            "difference": values[0] - values[1],
        }
    )
    table["low"], table["high"] = intervals.percentiles(gains)
    table["reason"] = reasons
    mean = [metrics.nanmean(table[name].to_numpy()) for name in ("auc", "within", "difference")]
    defined = np.flatnonzero(~np.isnan(values[0]))
    fewest = intervals.patients_of(labels[either][:, defined], rows[either], len(counts))[0].min(0)
    ends, name = _mean_ends(gains[:, defined], len(counts), fewest), metrics.mean_of(len(defined))
    counts = [int(metrics.positives(labels[here]).sum()) for here in views]
    last = pd.DataFrame([dict(zip(table.columns, (name, *counts, *mean, *ends, ""), strict=True))])
    return pd.concat([table, last], ignore_index=True)


def _estimates(
    number: str, group: Group, labels: np.ndarray, values: np.ndarray, draws
) -> list[delong.Estimate | None]:
    """AUC or sensitivity of the 14 findings in a group; None with too few patients or without a threshold."""
    counts, rows = draws
    rows, truth, values = rows[group.here], labels[group.here], values[group.here]
    estimates: list[delong.Estimate | None] = []
    for k in range(len(FINDINGS)):
        if why(truth[:, k], rows) or np.isnan(values[:, k]).any():
            estimates.append(None)
        elif number == "auc":
            estimates.append(delong.auc(truth[:, k], values[:, k], rows, len(counts)))
        else:
            positive = truth[:, k] == 1
            estimates.append(delong.share(values[:, k] * positive, positive, rows, len(counts)))
    return estimates


def _replicates(group: Group, estimates: list, labels: np.ndarray, scores: np.ndarray, draws) -> np.ndarray:
    """AUC of the 14 findings in a group on each resample, (R, 14)."""
    aucs = np.full((draws[0].shape[1], len(FINDINGS)), np.nan)
    for k in (k for k, estimate in enumerate(estimates) if estimate):
        at = intervals.running_weights(labels[group.here, k], scores[group.here, k], draws[0], draws[1][group.here])
        aucs[:, k] = intervals.resampled_auc(at)
    return aucs


def _gap(number: str, kind: str, one: str, other: str, measured: Measured) -> pd.DataFrame:
    ours, theirs = (measured.numbers[number][name] for name in (one, other))
    sides = [measured.groups[name].here for name in (one, other)]
    differences = {k: delong.less(ours[k], theirs[k]) for k in range(len(FINDINGS)) if ours[k] and theirs[k]}
    counts = [metrics.positives(measured.known[here][:, : len(FINDINGS)]) for here in sides]
    patients = [measured.films.loc[here, "patient"].nunique() for here in sides]
    few = f"fewer than {LEAST} patients with or without it in a group, or no threshold"
    rows = [
        (
            finding,
            *_tested(differences.get(k), single=True),
            counts[0][k],
            counts[1][k],
            1,
            "" if k in differences else few,
        )
        for k, finding in enumerate(FINDINGS)
    ]
    both, enough = list(differences), min(patients) >= intervals.LEAST
    mean = _tested(delong.mean(list(differences.values())) if differences else None)
    mean = mean if enough else (mean[0], np.nan, np.nan, np.nan)
    reason = "no finding is defined in both" if not both else "" if enough else f"{min(patients)} patients in a group"
    rows.append((metrics.mean_of(len(both)), *mean, *(count[both].sum() for count in counts), len(both), reason))
    columns = ["finding", "difference", "low", "high", "p", "positives", "positives_against", "findings", "reason"]
    table = pd.DataFrame(rows, columns=columns)
    for at, (name, here, count) in enumerate(zip(("", "_against"), sides, patients, strict=True)):
        table.insert(7 + 2 * at, f"films{name}", int(here.sum()))
        table.insert(8 + 2 * at, f"patients{name}", count)
    table.insert(5, "p_holm", np.nan)
    return pd.DataFrame({"number": number, "kind": kind, "group": one, "against": other}, index=table.index).join(table)


def _tested(gap: delong.Estimate | None, *, single: bool = False) -> tuple[float, float, float, float]:
    """Difference, low, high and p; NaN where undefined.

    There are so many single findings that only very small p values count after adjusting, where the error from few
    patients is largest. So their degrees of freedom are those of the smallest of the four groups of patients compared.
    """
    if gap is None:
        return (np.nan,) * 4
    return gap.value, *gap.test(float(gap.counts.min() - 1) if single else None)


def _rows(group: Group, measured: Measured) -> pd.DataFrame:
    labels = measured.known[group.here][:, : len(FINDINGS)]
    film_patients = measured.films.loc[group.here, "patient"].to_numpy()
    estimates, replicates = measured.numbers["auc"][group.name], measured.replicates[group.name]
    values = np.array([estimate.value if estimate else np.nan for estimate in estimates])
    patients = len(np.unique(film_patients))
    fewest = np.array([estimate.counts.min() if estimate else 0 for estimate in estimates])
    low, high = intervals.percentiles(np.where(fewest < intervals.LEAST, np.nan, replicates), fewest)
    table = pd.DataFrame({"finding": FINDINGS, "positives": metrics.positives(labels), "auc": values})
    table["low"], table["high"], table["findings"] = low, high, 1
    table["reason"] = [why(labels[:, k], film_patients) for k in range(len(FINDINGS))]
    defined = np.flatnonzero(~np.isnan(values))
    ends = _mean_ends(replicates[:, defined], patients, fewest[defined])
    reason = "" if len(defined) else "no finding is defined here" if len(labels) else "no films"
    last = (
        metrics.mean_of(len(defined)),
        table["positives"].sum(),
        metrics.nanmean(values),
        *ends,
        len(defined),
        reason,
    )
    table = pd.concat([table, pd.DataFrame([dict(zip(table.columns, last, strict=True))])], ignore_index=True)
    counts = {"films": int(group.here.sum()), "patients": patients}
    return pd.DataFrame({"kind": group.kind, "group": group.name, **counts}, index=table.index).join(table)


def _mean_ends(replicates: np.ndarray, patients: int, fewest: np.ndarray) -> tuple[float, float]:
    """Interval of the mean over the columns (R, K), over all of them in every resample; NaN for too few patients.

    fewest (K,): patients of each column in the smaller class.
    """
    if not replicates.shape[1] or patients < 2 * intervals.LEAST:
        return np.nan, np.nan
    low, high = intervals.percentiles(replicates.mean(1)[:, None], fewest.mean())
    return float(low[0]), float(high[0])


def _all_and_within(labels, scores, rows, counts, either, views) -> Iterator[np.ndarray]:
    """AUC over all pairs, and over pairs of one view, on each resample: (R,) each."""
    whole = intervals.running_weights(labels[either], scores[either], counts, rows[either])
    yield intervals.resampled_auc(whole)
    parts = [intervals.running_weights(labels[here], scores[here], counts, rows[here]) for here in views]
    pairs = np.stack([at.positives * at.negatives.astype(np.float64) for at in parts])
    wins = np.nansum(np.stack([intervals.resampled_auc(at) for at in parts]) * pairs, axis=0)
    yield np.divide(wins, pairs.sum(0), out=np.full(len(wins), np.nan), where=pairs.sum(0) > 0)


def why(labels: np.ndarray, patients: np.ndarray) -> str:
    """Reason why a finding is not measured on these films, labels and patients (N,); "" if it is."""
    fewest = min(len(np.unique(patients[labels == side])) for side in (0, 1))
    few = f"only {fewest} patients of a class, {LEAST} are needed"
    return metrics.reason(labels) or ("" if fewest >= LEAST else few)
