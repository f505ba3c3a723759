"""The tables that a run leaves: AUC per finding with intervals, what a stage won, all stages in a row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cxrlib.data import records
from cxrlib.evaluation import intervals, metrics
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.training import checkpoint

MEAN = "mean of 14"


def auc(films: pd.DataFrame, probabilities: np.ndarray, *, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """AUC and average precision of each label with 95 % intervals by patient bootstrap; the last row is the mean of 14.

    films: N rows as ``records.read`` gives them; probabilities (N, 15). Columns finding, positives, auc, auc_low,
    auc_high, ap, ap_low, ap_high, reason. A finding with one class only has NaN and says why in ``reason``; the
    mean leaves it out. "No Finding" is listed and never part of the mean.
    """
    known = records.label_matrix(films)
    boot = intervals.bootstrap(known, probabilities, films["patient"].to_numpy(), replicates=replicates, seed=seed)
    rows = pd.DataFrame(
        {
            "finding": LABELS,
            "positives": known.sum(0),
            "auc": boot.auc,
            **dict(zip(("auc_low", "auc_high"), boot.auc_interval, strict=True)),
            "ap": boot.ap,
            **dict(zip(("ap_low", "ap_high"), boot.ap_interval, strict=True)),
            "reason": [metrics.reason(known[:, k]) for k in range(len(LABELS))],
        }
    )
    mean = dict(zip(rows.columns, (MEAN, known[:, :14].sum(), *boot.mean_auc, *boot.mean_ap, ""), strict=True))
    return pd.concat([rows, pd.DataFrame([mean])], ignore_index=True)


def overall(
    table: pd.DataFrame, films: pd.DataFrame, probabilities: np.ndarray, *, replicates: int = 300, seed: int = 0
) -> pd.DataFrame:
    """The numbers that stand for a whole test, each with its 95 % interval: columns number, value, low, high, says.

    table: as ``auc``, where both means are read. The micro average is over the 15 outputs, as the original printed it.
    """
    known, patients = records.label_matrix(films), films["patient"].to_numpy()
    micro = intervals.micro_auc(known, probabilities, patients, replicates=replicates, seed=seed)
    mean = table.set_index("finding").loc[MEAN]
    rows = [
        ("mean AUC of 14", *mean[["auc", "auc_low", "auc_high"]], "each finding counts alike: the headline"),
        ("micro AUC of 15", *micro, "all film-label pairs at once: knowing prevalences alone scores above 0.5"),
        ("mean AP of 14", *mean[["ap", "ap_low", "ap_high"]], "read it beside the mean prevalence"),
    ]
    return pd.DataFrame(rows, columns=["number", "value", "low", "high", "says"])


def gain(
    films: pd.DataFrame, before: np.ndarray, after: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """What changed from one reading of the films to another: AUC before and after, difference, 95 % interval.

    before, after (N, 15) probabilities of the same films. The interval is from a bootstrap by patient in which both
    readings are resampled together. Last row: the mean of 14, with p against "no difference".
    """
    known, patients = records.label_matrix(films), films["patient"].to_numpy()
    was, now = (
        intervals.bootstrap(known, reading, patients, replicates=replicates, seed=seed, precision=False)
        for reading in (before, after)
    )
    low, high = intervals.percentiles((now.auc_replicates - was.auc_replicates)[:, : len(FINDINGS)])
    rows = pd.DataFrame(
        {
            "finding": FINDINGS,
            "positives": known[:, : len(FINDINGS)].sum(0),
            "before": was.auc[: len(FINDINGS)],
            "after": now.auc[: len(FINDINGS)],
            "difference": (now.auc - was.auc)[: len(FINDINGS)],
            "low": low,
            "high": high,
        }
    )
    mean = intervals.difference(now, was)
    last = (MEAN, rows["positives"].sum(), was.mean_auc.value, now.mean_auc.value, mean.value, mean.low, mean.high)
    return pd.concat([rows, pd.DataFrame([dict(zip(rows.columns, last, strict=True))])], ignore_index=True)


def stages(
    line: Sequence[Path],
    val: tuple[pd.DataFrame, Sequence[np.ndarray]],
    test: tuple[pd.DataFrame, Sequence[np.ndarray]],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per stage: its recipe, mean AUC of 14 on validation and test, and the test difference to the one before.

    line: the stages' best checkpoints in order; val and test: the films and, per checkpoint, probabilities (N, 15).
    The p values of the differences are Holm-adjusted for the number of stages compared.
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
        step = (
            intervals.difference(boots["test"][k], boots["test"][k - 1]) if k else intervals.Difference(*[np.nan] * 4)
        )
        rows.append(
            row | {"difference": step.value, "difference_low": step.low, "difference_high": step.high, "p": step.p}
        )
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    table.loc[table.index[1:], "p_holm"] = intervals.holm(table["p"].to_numpy()[1:])
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
            "reason": metrics.reason(known[:, k]),
        }


def _boots(
    films: pd.DataFrame, readings: Sequence[np.ndarray], replicates: int, seed: int
) -> list[intervals.Bootstrap]:
    known, patients = records.label_matrix(films), films["patient"].to_numpy()
    more = {"replicates": replicates, "seed": seed, "precision": False}
    return [intervals.bootstrap(known, reading, patients, **more) for reading in readings]
