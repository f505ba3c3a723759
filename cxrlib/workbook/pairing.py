"""Runs against each other on the same test films: what differs, and how sure that is.

The mean over the findings is compared by a bootstrap in which both runs meet the same resamples of the patients, single
findings by DeLong's paired test, which allows for several films of a patient. Runs tested on different films are not
paired: their difference would hold the films' difference as well.
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
    """A run's answers on its test films, sorted by image: patients (N,), labels and probabilities (N, 15)."""

    images: list[str]
    patients: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def read(home: paths.Run) -> tables.Found:
    """The run's ``Reading``, or why there is none."""
    from cxrlib.evaluation import predict  # brings torch along, which one run's report does without

    def reader(file) -> Reading:
        found = predict.read(file)
        order = np.argsort(np.array(found.images), kind="stable")
        images = [found.images[i] for i in order]
        return Reading(images, found.patients[order], found.labels[order], found.probabilities[order])

    return tables.read(home.predictions / "test.csv", reader)


def why_not(one: Reading, other: Reading) -> str:
    """Why two runs cannot be paired; "" where they were tested on the same films with the same truth."""
    if one.images != other.images:
        shared, sizes = len({*one.images} & {*other.images}), (len(one.images), len(other.images))
        return (
            f"They were tested on different films ({sizes[0]:,} and {sizes[1]:,}, {shared:,} of them the same), so "
            "their difference would be one of films as well; it is not computed."
        )
    if (one.labels != other.labels).any() or (one.patients != other.patients).any():
        count = int(((one.labels != other.labels).any(1) | (one.patients != other.patients)).sum())
        return f"They were tested on the same films, but {count:,} have other labels or patients; they are not paired."
    return ""


def differences(pairs: Sequence[tuple[Reading, Reading]]) -> list[pd.DataFrame]:
    """For each pair the AUC of the second less that of the first, finding by finding; last row the mean.

    Columns finding, positives, first, second, difference, low, high (95 %), p and p_holm. The p values of single
    findings are adjusted for all findings of all pairs, those of the means for the number of pairs. Undefined is NaN.
    """
    found = [_pair(*pair) for pair in pairs]
    if found:
        every = pd.concat(found, keys=range(len(found)))
        every["p_holm"] = np.nan
        mean = every["finding"].map(metrics.is_mean).astype(bool)
        for these in (mean, ~mean):
            every.loc[these, "p_holm"] = intervals.holm(every.loc[these, "p"].to_numpy())
        found = [every.loc[i].reset_index(drop=True) for i in range(len(found))]
    return found


def mean_auc(reading: Reading) -> float:
    """Mean AUC over the 14 findings that are defined."""
    return metrics.nanmean(metrics.auc_per_label(reading.labels, reading.probabilities)[metrics.HEADLINE])


def _pair(first: Reading, second: Reading) -> pd.DataFrame:
    known, patients = first.labels, first.patients
    boots = [
        intervals.bootstrap(known, reading.probabilities, patients, replicates=REPLICATES, seed=SEED, precision=False)
        for reading in (first, second)
    ]
    rows = []
    for finding in FINDINGS:
        k = column(finding)
        scores = second.probabilities[:, k], first.probabilities[:, k]
        change = intervals.delong_difference(known[:, k], *scores, patients)
        rows.append((finding, int(known[:, k].sum()), boots[0].auc[k], boots[1].auc[k], *change))
    mean = intervals.difference(boots[1], boots[0])
    rows.append(
        (
            metrics.mean_of(len(boots[0].told)),
            int(known[:, metrics.HEADLINE].sum()),
            *(boot.mean_auc.value for boot in boots),
            *mean,
        )
    )
    names = ("finding", "positives", "first", "second", "difference", "low", "high", "p")
    return pd.DataFrame(rows, columns=list(names))
