"""The tables that a run leaves: AUC per finding with intervals, what a stage won, all stages in a row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cxrlib.data import records
from cxrlib.evaluation import delong, intervals, metrics
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.training import checkpoint

SURE = 0.05  # of a p value, adjusted where several are looked at


def auc(films: pd.DataFrame, probabilities: np.ndarray, *, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """AUC and average precision of each label with 95 % intervals by patient bootstrap; the last row is the mean.

    films: N rows as ``records.read`` gives them; probabilities (N, 15). Columns finding, positives, patients (with the
    finding; in the last row all), auc, auc_low, auc_high, ap, ap_low, ap_high, reason, no_interval (why there is none),
    p_chance and p_others as ``against`` gives them. A finding with one class only has NaN and says why in ``reason``;
    the mean leaves it out, and is named by how many it is of. "No Finding" is listed and never part of the mean.
    """
    known = records.label_matrix(films)
    boot = intervals.bootstrap(known, probabilities, films["patient"].to_numpy(), replicates=replicates, seed=seed)
    rows = pd.DataFrame(
        {
            "finding": LABELS,
            "positives": known.sum(0),
            "patients": boot.patients[0],
            "auc": boot.auc,
            **dict(zip(("auc_low", "auc_high"), boot.auc_interval, strict=True)),
            "ap": boot.ap,
            **dict(zip(("ap_low", "ap_high"), boot.ap_interval, strict=True)),
            "reason": [metrics.reason(known[:, k]) for k in range(len(LABELS))],
            "no_interval": boot.why(),
        }
    ).join(against(films, probabilities))
    mean = (metrics.mean_of(len(boot.told)), known[:, metrics.HEADLINE].sum(), boot.everyone, *boot.mean_auc)
    mean += (*boot.mean_ap, "", boot.why_mean(), np.nan, np.nan)
    return pd.concat([rows, pd.DataFrame([dict(zip(rows.columns, mean, strict=True))])], ignore_index=True)


def against(films: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Whether each finding is read better than by guessing, and better or less well than the others on average.

    A row per label, films and probabilities as for ``auc``. Columns p_chance (two-sided, AUC against 0.5) and p_others
    (against the mean of the other findings told), by DeLong's variance by patient on the scale of log odds, each
    adjusted (Holm) for the findings told: those with ``intervals.LEAST`` patients with and without; NaN elsewhere.
    """
    known = records.label_matrix(films)
    patients, rows = np.unique(films["patient"].to_numpy(), return_inverse=True)
    sides, _ = intervals.patients_of(known[:, metrics.HEADLINE], rows, len(patients))
    told = [k for k in range(len(FINDINGS)) if sides[:, k].min() >= intervals.LEAST]
    read = {k: delong.imperfect(known[:, k], probabilities[:, k]) for k in told}
    found = [delong.auc(known[:, k], read[k], rows, len(patients)) for k in told]
    table = pd.DataFrame(np.nan, index=range(len(LABELS)), columns=["p_chance", "p_others"])
    table.loc[told, "p_chance"] = [delong.logit(one).test()[2] for one in found]
    table.loc[told, "p_others"] = delong.against_others(found)
    return table.apply(lambda column: intervals.holm(column.to_numpy()))


def overall(
    table: pd.DataFrame, films: pd.DataFrame, probabilities: np.ndarray, *, replicates: int = 300, seed: int = 0
) -> pd.DataFrame:
    """The numbers that stand for a whole test, each with its 95 % interval: columns number, value, low, high, says.

    table: as ``auc``, where both means are read. The micro average is over the 15 outputs, as the original printed it.
    """
    known, patients = records.label_matrix(films), films["patient"].to_numpy()
    micro = intervals.micro_auc(known, probabilities, patients, replicates=replicates, seed=seed)
    mean = table[table["finding"].map(metrics.is_mean)].iloc[-1]
    of = mean["finding"].removeprefix("mean ")
    rows = [
        (f"mean AUC {of}", *mean[["auc", "auc_low", "auc_high"]], "each finding counts alike: the headline"),
        ("micro AUC of 15", *micro, "all film-label pairs at once: knowing prevalences alone scores above 0.5"),
        (f"mean AP {of}", *mean[["ap", "ap_low", "ap_high"]], "read it beside the mean prevalence"),
    ]
    return pd.DataFrame(rows, columns=["number", "value", "low", "high", "says"])


def gain(
    films: pd.DataFrame, before: np.ndarray, after: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """What changed from one reading of the films to another: AUC before and after, difference, interval, p, p_holm.

    before, after (N, 15) probabilities of the same films. Single findings by DeLong's paired test by patient, p_holm
    adjusted for all of them; the last row, the mean, by a bootstrap by patient in which both are resampled together.
    """
    was, now = _boots(films, (before, after), replicates, seed)
    names = {"auc_against": "before", "auc": "after"}
    rows = pd.DataFrame(_differences(films, after, before)).rename(columns=names)
    rows = rows[["finding", "positives", "before", "after", "difference", "low", "high", "p"]]
    rows["p_holm"] = intervals.holm(rows["p"].to_numpy(np.float64))
    mean = intervals.difference(now, was)
    ends = (rows["positives"].sum(), was.mean_auc.value, now.mean_auc.value)
    last = (metrics.mean_of(len(was.told)), *ends, *mean, mean.p)
    return pd.concat([rows, pd.DataFrame([dict(zip(rows.columns, last, strict=True))])], ignore_index=True)


def outcome(changed: pd.DataFrame) -> str:
    """What a stage came to on validation, in a sentence: its mean against what it was given; frame as ``gain``."""
    mean = changed.iloc[-1]
    if pd.isna(mean["difference"]):
        return "No finding has an AUC before and after the stage."
    interval = "too few patients for an interval"
    if not pd.isna(mean["low"]):
        interval = f"95 % {mean['low']:+.3f} to {mean['high']:+.3f}, p = {mean['p']:.3f}"
    said = f"{mean['finding']} {mean['before']:.3f} → {mean['after']:.3f}: {mean['difference']:+.3f} ({interval}). "
    shown = bool(mean["p"] <= SURE)
    if mean["difference"] >= 0:
        return said + ("The stage helped." if shown else "The stage has not been shown to help.")
    harmed = "The stage harmed the reading" if shown else "The stage lowered the mean, which may be chance"
    return f"{said}{harmed}; its best epoch is handed on all the same, being chosen among the stage's own epochs."


def stages(
    line: Sequence[Path],
    val: tuple[pd.DataFrame, Sequence[np.ndarray]],
    test: tuple[pd.DataFrame, Sequence[np.ndarray]],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per stage: its recipe, mean AUC on validation and test, and the difference to the one before on both.

    line: the stages' best checkpoints in order; val and test: the films and, per checkpoint, probabilities (N, 15).
    Columns of a difference on test: difference, difference_low, difference_high, p, p_holm; on validation the same
    after ``val_``. The p values of each part are Holm-adjusted for the number of stages compared.
    """
    boots = {name: _boots(*part, replicates, seed) for name, part in (("val", val), ("test", test))}
    rows = []
    for k, path in enumerate(line):
        meta = checkpoint.read_meta(path)
        recipe = meta["recipe"]
        row = {
            "stage": meta["stage"],
            "checkpoint": meta["name"],
            "groups": " ".join(recipe["groups"]),
            "lr": recipe["lr"],
            "epochs": recipe["epochs"],
            "loss": recipe["loss"],
        }
        for name, (value, low, high) in ((name, found[k].mean_auc) for name, found in boots.items()):
            row |= {f"{name}_auc": value, f"{name}_low": low, f"{name}_high": high}
        for name, prefix in (("test", ""), ("val", "val_")):
            step = intervals.difference(boots[name][k], boots[name][k - 1]) if k else [np.nan] * 4
            columns = ("difference", "difference_low", "difference_high", "p")
            row |= {f"{prefix}{column}": value for column, value in zip(columns, step, strict=True)}
        rows.append(row)
    table = pd.DataFrame(rows)
    for prefix in ("", "val_"):
        table[f"{prefix}p_holm"] = intervals.holm(table[f"{prefix}p"].to_numpy(np.float64))
    return table


def steps(names: Sequence[str], films: pd.DataFrame, readings: Sequence[np.ndarray]) -> pd.DataFrame:
    """What each stage changed in each finding: its AUC less that of the stage before, and the last less the first.

    names of the stages and their probabilities (N, 15) of the same films, in order. Differences are paired, with 95 %
    intervals and p by DeLong, films of a patient taken together; ``p_holm`` is adjusted for all steps and findings
    (last against first: for the findings). Columns comparison ("step" or "whole"), stage, against, finding, positives,
    auc, auc_against, difference, low, high, p, p_holm, reason; no row where there is one stage only.
    """
    pairs = [("step", k, k - 1) for k in range(1, len(readings))]
    pairs += [("whole", len(readings) - 1, 0)] if len(readings) > 2 else []
    rows = [
        {"comparison": comparison, "stage": names[k], "against": names[before], **row}
        for comparison, k, before in pairs
        for row in _differences(films, readings[k], readings[before])
    ]
    columns = ["comparison", "stage", "against", "finding", "positives", "auc", "auc_against"]
    columns += ["difference", "low", "high", "p", "p_holm", "reason"]
    table = pd.DataFrame(rows, columns=columns)
    for _, family in table.groupby("comparison"):
        table.loc[family.index, "p_holm"] = intervals.holm(family["p"].to_numpy(np.float64))
    return table


def at_half(known: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Means over the 14 findings of what AUC sees and of what a threshold of 0.5 sees; undefined ones left out.

    known (N, 15) of 0 and 1, probabilities (N, 15).
    """
    at = [metrics.at_threshold(known[:, k], probabilities[:, k], 0.5) for k in range(len(FINDINGS))]
    return {
        "mean AUC": metrics.mean_auc(known, probabilities),
        "sensitivity at 0.5": metrics.nanmean(np.array([one.sensitivity for one in at])),
        "specificity at 0.5": metrics.nanmean(np.array([one.specificity for one in at])),
        "mean probability": float(probabilities[:, : len(FINDINGS)].mean()),
        "prevalence": float(known[:, : len(FINDINGS)].mean()),
    }


def standing(films: pd.DataFrame, probabilities: np.ndarray) -> np.ndarray:
    """How high the reader ranks each film for the findings it has: (N,), 1 best, 0 worst, NaN for films without one.

    For each finding, the share of films without it that score lower (ties half), averaged over the film's findings.
    The mean over a finding's films is its AUC, so the films at the bottom are those that cost it.
    """
    known = records.label_matrix(films)[:, : len(FINDINGS)].astype(bool)
    shares = np.full(known.shape, np.nan)
    for k in range(len(FINDINGS)):
        positive = known[:, k]
        if positive.any() and not positive.all():
            among_all, among_own = rankdata(probabilities[:, k]), rankdata(probabilities[positive, k])
            shares[positive, k] = (among_all[positive] - among_own) / np.count_nonzero(~positive)
    return metrics.nanmean(shares, axis=1)


def extremes(films: pd.DataFrame, probabilities: np.ndarray, *, n: int = 6) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ``n`` films with a finding that the reader stands highest and lowest, with a column ``standing``."""
    ranked = films.assign(standing=standing(films, probabilities)).dropna(subset=["standing"])
    ranked = ranked.sort_values("standing", ascending=False, kind="stable")
    return ranked.head(n), ranked.tail(n)[::-1]


def _differences(films: pd.DataFrame, ours: np.ndarray, theirs: np.ndarray) -> Iterator[dict[str, Any]]:
    """A row per finding: both AUCs and their DeLong difference, by patient."""
    known, patients = records.label_matrix(films), films["patient"].to_numpy()
    for k, finding in enumerate(FINDINGS):
        found = intervals.delong_difference(known[:, k], ours[:, k], theirs[:, k], patients)
        yield {
            "finding": finding,
            "positives": int(known[:, k].sum()),
            "auc": metrics.roc_auc(known[:, k], ours[:, k]),
            "auc_against": metrics.roc_auc(known[:, k], theirs[:, k]),
            **dict(zip(("difference", "low", "high", "p"), found, strict=True)),
            "reason": metrics.reason(known[:, k]) or _untested(found),
        }


def _untested(found: intervals.Difference) -> str:
    """Why a difference has no p, in words; "" where it has one."""
    few = f"fewer than {intervals.LEAST_TESTED} patients with or without it, or a perfect AUC"
    return "" if found.p == found.p else few


def _boots(
    films: pd.DataFrame, readings: Sequence[np.ndarray], replicates: int, seed: int
) -> list[intervals.Bootstrap]:
    known, patients = records.label_matrix(films), films["patient"].to_numpy()
    more = {"replicates": replicates, "seed": seed, "precision": False}
    return [intervals.bootstrap(known, reading, patients, **more) for reading in readings]
