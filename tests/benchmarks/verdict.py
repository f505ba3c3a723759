"""What runs of several schedules and seeds come to: each one's AUC, their mean and spread, and paired differences."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import t

from cxrlib import metrics
from cxrlib.evaluation import intervals, predict

REPLICATES = 1000
COLUMNS = ["what", "schedule", "against", "part", "seeds", "passes", "films", "value", "low", "high", "sd", "p",
           "p_holm", "seconds", "conditions"]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run: its predictions by part ("val", and "test" where it was read), its passes and seconds."""

    name: str
    schedule: str
    seed: int
    passes: int
    seconds: float
    readings: dict[str, predict.Predictions]

    def auc(self, part: str) -> float:
        """Mean AUC over the findings defined among the 14."""
        found = self.readings[part]
        return metrics.mean_auc(found.labels, found.probabilities)


def table(runs: list[Run], conditions: str) -> pd.DataFrame:
    """One row per run and part, per schedule, and per pair of them; all values are mean AUC over the 14 findings.

    ``what``: "run", with its interval by patient · "mean" over seeds, ``sd`` between them · "difference by seed", the
    mean of paired differences with Student's interval over seeds · "difference by patient", the same mean with a
    bootstrap of the test patients that all runs share, which says how far other films would have moved it.
    Variants are compared with their own schedule, on the parts that were read. ``p_holm`` allows for several pairs.
    ``passes``: of a run, or their mean.
    """
    rows = [_run(run, part) for run in runs for part in run.readings]
    names = list(dict.fromkeys(run.name for run in runs))
    by_name = {name: {run.seed: run for run in runs if run.name == name} for name in names}
    rows += [_mean(by_name[name], part) for name in names for part in next(iter(by_name[name].values())).readings]
    rows += [row for part in ("test", "val") for row in _pairs(by_name, part)]
    return pd.DataFrame(rows, columns=COLUMNS).assign(conditions=conditions)


def _run(run: Run, part: str) -> dict:
    found = run.readings[part]
    value, low, high = _bootstrap(run, part).mean_auc
    return {"what": "run", "schedule": run.name, "part": part, "seeds": run.seed, "passes": run.passes,
            "films": len(found.images), "value": value, "low": low, "high": high,
            "seconds": round(run.seconds, 1)}  # fmt: skip


def _mean(runs: dict[int, Run], part: str) -> dict:
    values = [run.auc(part) for run in runs.values()]
    first = next(iter(runs.values()))
    passes, seconds = (float(np.mean([getattr(run, name) for run in runs.values()])) for name in ("passes", "seconds"))
    return {"what": "mean", "schedule": first.name, "part": part, "seeds": len(values), "passes": passes,
            "films": len(first.readings[part].images), "value": np.mean(values), "sd": _sd(values),
            "seconds": round(seconds, 1)}  # fmt: skip


def _pairs(by_name: dict[str, dict[int, Run]], part: str) -> list[dict]:
    """Differences of the schedules among themselves, and of each variant from its schedule."""
    runs = {name: next(iter(found.values())) for name, found in by_name.items()}
    runs = {name: run for name, run in runs.items() if part in run.readings}
    plain = [name for name, run in runs.items() if name == run.schedule]
    pairs = list(combinations(plain, 2))
    pairs += [(name, run.schedule) for name, run in runs.items() if name not in plain and run.schedule in plain]
    rows = []
    for name, against in pairs:
        shared = sorted(by_name[name].keys() & by_name[against].keys())
        two = [[by_name[which][seed] for seed in shared] for which in (name, against)]
        if shared:
            label = {"schedule": name, "against": against, "part": part, "seeds": len(shared)}
            rows.append({**label, **_by_seed(*two, part)})
            rows += [{**label, **_by_patient(*two, part)}] if part == "test" else []
    for what in ("difference by seed", "difference by patient"):
        same = [row for row in rows if row["what"] == what]
        for row, p in zip(same, intervals.holm(np.array([row["p"] for row in same])), strict=True):
            row["p_holm"] = p
    return rows


def _by_seed(ours: list[Run], theirs: list[Run], part: str) -> dict:
    gaps = [a.auc(part) - b.auc(part) for a, b in zip(ours, theirs, strict=True)]
    value, error, free = float(np.mean(gaps)), _sd(gaps) / np.sqrt(len(gaps)), len(gaps) - 1
    half = float(t.ppf((1 + intervals.LEVEL) / 2, free)) * error if free else np.nan
    p = float(2 * t.sf(abs(value) / error, free)) if free and error else np.nan
    return {"what": "difference by seed", "films": len(ours[0].readings[part].images), "value": value,
            "low": value - half, "high": value + half, "sd": _sd(gaps), "p": p}  # fmt: skip


def _by_patient(ours: list[Run], theirs: list[Run], part: str) -> dict:
    found = intervals.difference(*(_over_seeds([_bootstrap(run, part) for run in runs]) for runs in (ours, theirs)))
    return {"what": "difference by patient", "films": len(ours[0].readings[part].images), **found._asdict()}


def _over_seeds(boots: list[intervals.Bootstrap]) -> intervals.Bootstrap:
    """Of several runs on the same films the mean run: its AUCs in each resample are the means of theirs there."""
    names = ("auc", "ap", "auc_replicates", "ap_replicates")
    means = [np.mean([getattr(boot, name) for boot in boots], axis=0) for name in names]
    return intervals.Bootstrap(*means, boots[0].patients, boots[0].everyone)


def _bootstrap(run: Run, part: str) -> intervals.Bootstrap:
    """Resamples of the run's films by patient, the same patients for every run on the same films."""
    found = run.readings[part]
    return intervals.bootstrap(found.labels, found.probabilities, found.patients, replicates=REPLICATES)


def _sd(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
