"""Paired comparison of runs on the same test films: differences in AUC with intervals and p values.

The mean over the findings is compared by a bootstrap that gives both runs the same resamples of the patients. Single
findings are compared by DeLong's paired test, which allows for several films of a patient. Runs tested on different
films are not paired, because the difference between the films would count as well.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from cxrlib import paths
from cxrlib.evaluation import intervals, metrics
from cxrlib.labels import FINDINGS, column
from cxrlib.workbook import tables

REPLICATES, SEED = 1000, 0


class Reading(NamedTuple):
    """Predictions of a run on its test films, sorted by image: patients (N,), labels and probabilities (N, 15)."""

    images: list[str]
    patients: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def read(home: paths.Run) -> tables.Found:
    """The run's predictions as a ``Reading``, or why there are none."""
    from cxrlib.evaluation import predict  # imports torch, which the report of one run does not need

    def reader(file) -> Reading:
        rows = predict.read(file)
        order = np.argsort(np.array(rows.images), kind="stable")
        images = [rows.images[i] for i in order]
        return Reading(images, rows.patients[order], rows.labels[order], rows.probabilities[order])

    return tables.read(home.predictions / "test.csv", reader)


def why_not(one: Reading, other: Reading) -> str:
    """Reason why two runs cannot be paired; "" if they were tested on the same films with the same labels."""
    if one.images != other.images:
        shared, sizes = len({*one.images} & {*other.images}), (len(one.images), len(other.images))
        return (
            f"They were tested on different films ({sizes[0]:,} and {sizes[1]:,}, {shared:,} of them the same). "
            "No difference is computed, because it would partly come from the films."
        )
    if (one.labels != other.labels).any() or (one.patients != other.patients).any():
        count = int(((one.labels != other.labels).any(1) | (one.patients != other.patients)).sum())
        return f"They were tested on the same films, but {count:,} have other labels or patients; they are not paired."
    return ""


def differences(pairs: Sequence[tuple[Reading, Reading]]) -> list[pd.DataFrame]:
    """Differences in AUC, second minus first, of each pair: a row per finding, then the mean.

    Columns finding, positives, first, second, difference, low, high (95 %), p and p_holm. The p values of single
    findings are adjusted for all findings of all pairs, those of the means for the number of pairs. Undefined is NaN.
    """
    tables = [_pair(*pair) for pair in pairs]
    if tables:
        every = pd.concat(tables, keys=range(len(tables)))
        every["p_holm"] = np.nan
        mean = every["finding"].map(metrics.is_mean).astype(bool)
        for these in (mean, ~mean):
            every.loc[these, "p_holm"] = intervals.holm(every.loc[these, "p"].to_numpy())
        tables = [every.loc[i].reset_index(drop=True) for i in range(len(tables))]
    return tables


def mean_auc(reading: Reading) -> float:
    """Mean AUC over those of the 14 findings for which it is defined."""
    return metrics.nanmean(metrics.auc_per_label(reading.labels, reading.probabilities)[metrics.HEADLINE])


def _pair(first: Reading, second: Reading) -> pd.DataFrame:
    labels, patients = first.labels, first.patients
    how = {"replicates": REPLICATES, "seed": SEED, "precision": False}
    boots = [intervals.bootstrap(labels, run.probabilities, patients, **how) for run in (first, second)]
    rows = []
    for finding in FINDINGS:
        k = column(finding)
        scores = second.probabilities[:, k], first.probabilities[:, k]
        change = intervals.delong_difference(labels[:, k], *scores, patients)
        rows.append((finding, int(labels[:, k].sum()), boots[0].auc[k], boots[1].auc[k], *change))
    name, positives = metrics.mean_of(len(boots[0].told)), int(labels[:, metrics.HEADLINE].sum())
    means = (boot.mean_auc.value for boot in boots)
    rows.append((name, positives, *means, *intervals.difference(boots[1], boots[0])))
    names = ("finding", "positives", "first", "second", "difference", "low", "high", "p")
    return pd.DataFrame(rows, columns=list(names))
