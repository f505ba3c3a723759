"""External validation: a checkpoint's result on another dataset's films, beside the result of its own run.

The two sets of films have different patients, so the two AUCs are independent and their variances add. A finding is
compared if both datasets label it. What a network can be blamed for, and what a lower number merely says of other
patients, the tables keep apart: AUC (ranking), calibration as it came and fitted again, thresholds as they came and
chosen again, and the mix of views, sexes and findings.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, dataset, metrics, paths
from cxrlib.data import film_identity, records, splits
from cxrlib.evaluation import calibration, delong, intervals, predict, thresholds
from cxrlib.labels import FINDINGS
from cxrlib.training import lineage

NOT_IN_BOTH = "no AUC in both"


@dataclass(frozen=True)
class Films:
    """Films of one dataset with a network's predictions.

    labels (N, 15) of 0, 1 and NaN, probabilities (N, 15), patients (N,), as in ``predict.Predictions``.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    patients: np.ndarray

    @classmethod
    def of(cls, films: pd.DataFrame, probabilities: np.ndarray) -> "Films":
        """Films as from ``records.read``, with their probabilities (N, 15)."""
        return cls(records.label_matrix(films), probabilities, films["patient"].to_numpy())


def datasets_seen(path: Path) -> set[str]:
    """Names of the datasets that a checkpoint or an ancestor was trained or validated on."""
    return {name for seen in lineage.seen_by(path).values() for name in seen.patients}


def is_external(seen: Iterable[str], films: pd.DataFrame) -> bool:
    """Whether films are of other datasets than those that a checkpoint has seen, as from ``datasets_seen``.

    False where a dataset is not named, since it may be the same, and for a checkpoint that saw none.
    """
    here, seen = {*film_identity.patients_by_dataset(films)}, {*seen}
    return bool(seen) and records.UNNAMED not in here | seen and not here & seen


def read_home(tested: Path, run: paths.Run) -> Films | None:
    """Test films of the run that a checkpoint belongs to, from its ``predictions/test.csv``.

    None if there are none, as for an exported checkpoint. ``run`` is where the result on the other dataset will be
    written. Raises UserError if it is the same run, whose predictions would be overwritten.
    """
    home = paths.Run(tested.parent.parent.name)
    if home.root == run.root:
        raise UserError(
            f"run {run.name} holds the checkpoint's own result, which a test on another dataset would overwrite; "
            "give the test a run of its own, such as --run elsewhere"
        )
    if not (home.predictions / "test.csv").is_file():
        return None
    own = predict.read(home.predictions / "test.csv")
    return Films(own.labels, own.probabilities, own.patients)


def home_films(tested: Path) -> pd.DataFrame | None:
    """Test films of the checkpoint's run, as from ``records.read``; None if its data folder is not there any more."""
    home = paths.Run(tested.parent.parent.name)
    if not (home.predictions / "test.csv").is_file():
        return None
    images = predict.read(home.predictions / "test.csv").images
    try:
        folder = paths.read_json(home.root / "run.json")["data"]["folder"]
        films = records.read(dataset.locate(folder), allow_missing=True).set_index("image")
    except (UserError, KeyError, TypeError):
        return None
    return films.loc[images].reset_index() if {*images} <= {*films.index} else None


def divide(parts: splits.Parts) -> splits.Parts:
    """Parts of a dataset that the checkpoint saw nothing of: ``val`` to fit a calibration on again, ``test`` to test.

    A dataset with official lists is tested on its test part, any other on all films outside the validation part; then
    ``train`` is empty. No patient is in both parts. ``source`` says which films they are.
    """
    if parts.source.startswith("drawn by patient"):
        test = pd.concat([parts.train, parts.test], ignore_index=True)
        what = f"all {len(test):,} films outside the validation part, since this dataset has no official test part"
        parts = replace(parts, train=parts.train.iloc[:0], test=test)
    else:
        what = f"the {len(parts.test):,} films of the dataset's test part"
    said = f"tested on {what}; fitted again on the {len(parts.val):,} films of the validation part"
    return replace(parts, source=f"{said} ({parts.source})")


def drop(home: Films, there: Films) -> pd.DataFrame:
    """AUC of each finding at home and there, and the drop from one to the other, with 95 % intervals by patient.

    The drop is the home AUC minus the other, so it is positive where the network is worse there. Intervals are DeLong's
    by patient; the variances of the two independent samples add. Columns finding, then for each side (``home_`` and
    ``there_``) films (of known label), positives, auc, auc_low, auc_high, then drop, low, high, p, p_holm (adjusted for
    the single findings), reason. A finding needs ``intervals.LEAST_TESTED`` patients of each class on both sides for an
    interval. The last row is the mean over the findings that have an AUC on both sides. Raises UserError without films.
    """
    sides = {"home": home, "there": there}
    for films in sides.values():
        intervals.check(films.labels, films.probabilities, films.patients)
    rows, found = [], {name: [] for name in sides}
    numbers, total = _numbers(home.patients, there.patients)
    for k, finding in enumerate(FINDINGS):
        estimates = {name: _estimate(films, k, numbers[name], total) for name, films in sides.items()}
        row = {"finding": finding}
        for name, films in sides.items():
            counts = int(metrics.is_known(films.labels[:, k]).sum()), int(metrics.positives(films.labels[:, k]))
            row |= {f"{name}_films": counts[0], f"{name}_positives": counts[1], **_auc(name, estimates[name])}
        both = None not in estimates.values()
        row |= _drop(*estimates.values()) if both else dict.fromkeys(_GAP, np.nan)
        row["reason"] = _why(sides, k) if not both else _few(estimates)
        rows.append(row)
        for name in sides if both else ():
            found[name].append(estimates[name])
    table = pd.DataFrame(rows)
    table["p_holm"] = intervals.holm(table["p"].to_numpy())
    return pd.concat([table, pd.DataFrame([_mean(table, sides, found)])], ignore_index=True)


_GAP = ("drop", "low", "high", "p")


def _numbers(home: np.ndarray, there: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """Number of each film's patient, different for the two sides even where they are numbered alike; and how many."""
    one, other = (np.unique(patients, return_inverse=True)[1].ravel() for patients in (home, there))
    first = int(one.max()) + 1
    return {"home": one, "there": other + first}, first + int(other.max()) + 1


def _estimate(films: Films, k: int, numbers: np.ndarray, total: int) -> delong.Estimate | None:
    if metrics.reason(films.labels[:, k]):
        return None
    return delong.auc(films.labels[:, k], films.probabilities[:, k], numbers, total)


def _auc(name: str, estimate: delong.Estimate | None) -> dict[str, float]:
    low = high = np.nan
    if estimate and estimate.counts.min() >= intervals.LEAST_TESTED:
        low, high, _ = estimate.test()
    value = estimate.value if estimate else np.nan
    ends = {"auc_low": np.clip(low, 0, 1), "auc_high": np.clip(high, 0, 1)}
    return {f"{name}_auc": value, **{f"{name}_{end}": float(at) for end, at in ends.items()}}


def _drop(home: delong.Estimate, there: delong.Estimate) -> dict[str, float]:
    gap = delong.less(home, there)
    test = gap.test() if gap.counts.min() >= intervals.LEAST_TESTED else (np.nan,) * 3
    return dict(zip(_GAP, (gap.value, *test), strict=True))


def _why(sides: Mapping[str, Films], k: int) -> str:
    reasons = {name: metrics.reason(films.labels[:, k]) for name, films in sides.items()}
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason)


def _few(estimates: Mapping[str, delong.Estimate]) -> str:
    fewest = {name: int(estimate.counts.min()) for name, estimate in estimates.items()}
    few = [f"{name}: {n} patients of a class" for name, n in fewest.items() if n < intervals.LEAST_TESTED]
    return f"{', '.join(few)}; {intervals.LEAST_TESTED} are needed for an interval" if few else ""


def _mean(table: pd.DataFrame, sides: Mapping[str, Films], found: Mapping[str, list]) -> dict[str, object]:
    """The last row of ``drop``: sums of positives, means of AUCs, and the mean drop."""
    row = {"finding": metrics.mean_of(len(found["home"])), "p_holm": np.nan}
    shared = table["drop"].notna()
    for name, films in sides.items():
        positives = int(table.loc[shared, f"{name}_positives"].sum())
        row |= {f"{name}_films": len(films.labels), f"{name}_positives": positives}
    if not found["home"]:
        return row | {"reason": NOT_IN_BOTH}
    means = {name: delong.mean(estimates) for name, estimates in found.items()}
    few = [name for name, mean in means.items() if mean.counts.min() < intervals.LEAST_IN_MEAN]
    few += [name for name, films in sides.items() if len(np.unique(films.patients)) < 2 * intervals.LEAST]
    for name, mean in means.items():
        low, high = (np.nan, np.nan) if few else mean.test()[:2]
        row |= {f"{name}_auc": mean.value, f"{name}_auc_low": low, f"{name}_auc_high": high}
    gap = delong.less(*means.values())
    row |= dict(zip(_GAP, (gap.value, *((np.nan,) * 3 if few else gap.test())), strict=True))
    return row | {"reason": f"too few patients for an interval ({', '.join(dict.fromkeys(few))})" if few else ""}


def decisions_there(carried: thresholds.Decisions, fitted_on: Films) -> thresholds.Decisions:
    """Calibration and thresholds fitted again on another dataset's films, in the way that ``carried`` was made.

    Raises UserError where there are no films to fit on.
    """
    if not len(fitted_on.labels):
        raise UserError("there are no films to fit the calibration on again; give a dataset with a validation part")
    made, on = carried.calibration, (fitted_on.labels, fitted_on.probabilities)
    return thresholds.fit_decisions(*on, made.kind, gamma=made.gamma)


def calibrations(
    carried: thresholds.Decisions, again: thresholds.Decisions, there: Films, *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Calibration there, with the line that came with the checkpoint and with the one fitted again.

    Columns of ``calibration.scores``, and probabilities: "as it came" or "fitted again".
    """
    tables = []
    for name, made in (("as it came", carried), ("fitted again", again)):
        calibrated = made.calibration(there.probabilities)
        scored = calibration.scores(there.labels, calibrated, there.patients, replicates=replicates, seed=seed)
        tables.append(scored.assign(probabilities=name))
    return pd.concat(tables, ignore_index=True)


def judgements(
    carried: thresholds.Decisions, again: thresholds.Decisions, there: Films, *, seed: int = 0
) -> pd.DataFrame:
    """Results there of the thresholds that came with the checkpoint, and of those chosen again on the other part.

    Columns of ``thresholds.judge``, and thresholds: "as they came" or "chosen again".
    """
    tables = []
    for name, made in (("as they came", carried), ("chosen again", again)):
        judged = made.judge(there.labels, there.probabilities, there.patients, seed=seed)
        tables.append(judged.assign(thresholds=name))
    return pd.concat(tables, ignore_index=True)


def mix(home: pd.DataFrame, there: pd.DataFrame) -> pd.DataFrame:
    """Mix of two sets of films as from ``records.read``: columns number, home, there.

    Films, patients, shares of AP films and of women (of the films where it is known), median age, and the prevalence of
    each finding (of the films whose label is known). NaN where nothing is known.
    """
    return pd.DataFrame({"home": _mixed(home), "there": _mixed(there)}).rename_axis("number").reset_index()


def _mixed(films: pd.DataFrame) -> pd.Series:
    view, sex = films["view"], films["sex"]
    matrix = records.label_matrix(films)
    shares = metrics.mean_of_known(matrix.astype(np.float64), matrix)
    numbers = {
        "films": len(films),
        "patients": films["patient"].nunique(),
        "AP": (view[view != ""] == "AP").mean(),
        "women": (sex[sex != ""] == "F").mean(),
        "median age": films["age"].median(),
    }
    return pd.Series(numbers | dict(zip(FINDINGS, shares, strict=False)), dtype=np.float64)
