"""Evaluation: the bootstrap's speed and truth against scikit-learn, DeLong, coverage, a whole evaluation at full size.

Everything runs on films simulated with the size of the official test part: 25,596 films of 2,797 patients, with its
numbers of positives, on one core.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib.evaluation import calibration, curves, intervals, plots, predict, resample, scrutiny, subgroups, thresholds
from cxrlib.labels import FINDINGS, LABELS
from tests.benchmarks.rows import Row, machine, one_core, spread

FILMS, PATIENTS = 25_596, 2_797
POSITIVES = (3279, 1069, 4658, 6112, 1748, 1623, 555, 2665, 1815, 925, 1093, 435, 1143, 86)


def bootstrap(replicates: int = 1000, by_hand: int = 5, rounds: int = 3) -> list[Row]:
    """1,000 resamples of 14 AUCs and APs, against a loop over scikit-learn that is timed on a few of the same."""
    known, scores, patients = _films()
    ours, theirs = [], []
    with one_core():
        for _ in range(rounds):
            found, seconds = _timed(lambda: intervals.bootstrap(known, scores, patients, replicates=replicates))
            ours.append(seconds)
            by_sklearn, seconds = _timed(lambda: _sklearn_loop(known, scores, patients, by_hand))
            theirs.append(seconds / by_hand * replicates)
    mine = np.stack([found.auc_replicates[:by_hand], found.ap_replicates[:by_hand]])
    gap = float(np.abs(mine - by_sklearn).max())
    where = f"{replicates} resamples by patient, 14 AUCs and APs, {FILMS} films"
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return [
        _row("evaluation: bootstrap", ours, "s", "<= 5 s", f"{where}; one core"),
        Row("evaluation: bootstrap against scikit-learn", round(float(np.median(ours)), 2), "s",
            round(float(np.median(theirs)), 1), round(float(np.median(ratios)), 1), ">= 50 x", rounds, spread(ratios),
            f"{where}; baseline copies films and asks scikit-learn, {by_hand} resamples timed in turns; {machine()}"),
        Row("evaluation: bootstrap, largest distance to scikit-learn", gap, "AUC or AP", target="<= 1e-9", n=mine.size,
            conditions=f"{by_hand} of the same resamples"),
    ]  # fmt: skip


def delong(rounds: int = 5) -> list[Row]:
    """DeLong's intervals of 14 findings, by film and by patient."""
    known, scores, patients = _films()
    rows = []
    for name, who in (("by film", None), ("by patient", patients)):
        with one_core():
            work = [_timed(lambda who=who: _delong(known, scores, who))[1] for _ in range(rounds)]
        rows.append(_row(f"evaluation: DeLong {name}", work, "s", "<= 0.5 s", f"14 findings, {FILMS} films; one core"))
    return rows


def coverage(studies: int = 1000, patients: int = 300, replicates: int = 400) -> list[Row]:
    """How often 95 % intervals of AUC hold the true AUC when patients have several, similar films."""
    truth = _auc_of(*_clustered(400_000, seed=10**6)[:2])
    held: dict[str, list[bool]] = {}
    for study in range(studies):
        known, scores, who = _clustered(patients, seed=study)
        ends = {
            "bootstrap by patient": _percentiles(known, scores, who, replicates, study),
            "bootstrap by film": _percentiles(known, scores, np.arange(len(who)), replicates, study),
            "DeLong by patient": intervals.delong(known, scores, who)[1:],
            "DeLong by film": intervals.delong(known, scores)[1:],
        }
        for name, (low, high) in ends.items():
            held.setdefault(name, []).append(bool(low <= truth <= high))
    where = f"simulated studies of {patients} patients with {len(who) / patients:.1f} films each on average"
    where += f", true AUC {truth:.3f}, {replicates} resamples; spread: standard error"
    return [
        Row(f"evaluation: coverage of 95 % intervals, {name}", round(100 * float(np.mean(hits)), 1), "%",
            target="93 to 97 %" if "patient" in name else "", n=studies, spread=_error(hits), conditions=where)
        for name, hits in held.items()
    ]  # fmt: skip


def evaluation() -> list[Row]:
    """All numbers and figures of an evaluation from a finished file of predictions, at full test size."""
    known, scores, patients = _films()
    rng = np.random.default_rng(1)
    films = pd.DataFrame(np.column_stack([known, ~known.any(1)]).astype(np.uint8), columns=list(LABELS))
    films = films.assign(image=[f"{i:08d}_000.png" for i in range(FILMS)], patient=patients)
    films = films.assign(age=rng.uniform(5, 90, FILMS), sex=rng.choice(["M", "F"], FILMS))
    films = films.assign(view=rng.choice(["PA", "AP"], FILMS))
    scores = np.column_stack([scores, 1 - scores.max(1)])
    with tempfile.TemporaryDirectory() as folder:
        csv = predict.write(Path(folder) / "test.csv", films, scores)
        _, seconds = _timed(lambda: _evaluate(csv, films, Path(folder)))
    return [_row("evaluation: from predictions to figures", [seconds], "s", "<= 60 s", f"{FILMS} films, figures saved")]


def _evaluate(csv: Path, films: pd.DataFrame, folder: Path) -> None:
    from matplotlib import pyplot as plt

    from cxrlib.evaluation import summary

    plt.switch_backend("agg")
    read = predict.read(csv, films)
    known, said, who = read.labels, read.probabilities, read.patients
    table = summary.auc(films, said)
    for name, points, draw in (
        ("roc", curves.roc_points(known, said, who), curves.roc_grid),
        ("pr", curves.pr_points(known, said, who), curves.pr_grid),
    ):
        fig, axes = plt.subplots(3, 5, figsize=(11, 7.2))
        draw(points, axes, table)
        plots.save(fig, folder / name, points)
    chosen = thresholds.choose(known, said)
    thresholds.judge(chosen, known, said, who)
    fitted = calibration.fit(known, said)(said)
    calibration.scores(known, fitted, who)
    points = scrutiny.reliability_points(known, {"as trained": said, "Platt": fitted})
    fig, axes = plt.subplots(3, 5, figsize=(12, 7.4))
    scrutiny.reliability_grid(points, axes)
    plots.save(fig, folder / "reliability", points)
    groups = subgroups.auc(films, said)
    subgroups.gaps(films, said, thresholds.vector(thresholds.as_dict(chosen), "youden"))
    subgroups.view_shortcut(films, said)
    fig, ax = plt.subplots(figsize=(7.5, 6))
    scrutiny.groups(groups, ax)
    plots.save(fig, folder / "groups", groups)
    plt.close("all")


def _films() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N, 14), probabilities (N, 14), patients (N,) of the official test part's size; patients' films alike."""
    rng = np.random.default_rng(0)
    patients = np.concatenate([np.arange(PATIENTS), rng.integers(0, PATIENTS, FILMS - PATIENTS)])
    own = rng.normal(size=(PATIENTS, len(FINDINGS)))[patients] + rng.normal(size=(FILMS, len(FINDINGS)))
    known = np.zeros((FILMS, len(FINDINGS)), np.uint8)
    for k, positives in enumerate(POSITIVES):
        known[np.argpartition(-own[:, k], positives)[:positives], k] = 1
    scores = 0.6 * own + rng.normal(size=own.shape)
    return known, 1 / (1 + np.exp(3 - scores)), patients


def _clustered(patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One finding on films of patients: 1 to about 20 films each, sickness and reading shared within a patient."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(patients), rng.geometric(0.3, patients))
    sickness, look = rng.normal(size=(2, patients))
    known = (0.8 * sickness[who] + 0.6 * rng.normal(size=len(who)) > 0.9).astype(np.uint8)
    return known, 1.2 * known + 0.7 * look[who] + 0.7 * rng.normal(size=len(who)), who


def _sklearn_loop(known: np.ndarray, scores: np.ndarray, patients: np.ndarray, replicates: int) -> np.ndarray:
    """AUC and AP of the same resamples as ours by copying films and asking scikit-learn: (2, replicates, 14)."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    counts, rows = resample.draw(patients, replicates, 0)
    found = np.empty((2, replicates, known.shape[1]))
    for r in range(replicates):
        films = np.repeat(np.arange(len(rows)), counts[rows, r])
        for k in range(known.shape[1]):
            found[0, r, k] = roc_auc_score(known[films, k], scores[films, k])
            found[1, r, k] = average_precision_score(known[films, k], scores[films, k])
    return found


def _delong(known: np.ndarray, scores: np.ndarray, patients: np.ndarray | None) -> list[intervals.Interval]:
    return [intervals.delong(known[:, k], scores[:, k], patients) for k in range(known.shape[1])]


def _percentiles(known, scores, who, replicates: int, seed: int) -> tuple[float, float]:
    counts, rows = resample.draw(who, replicates, seed)
    low, high = intervals.percentiles(resample.auc(resample.steps(known, scores, counts, rows))[:, None])
    return float(low[0]), float(high[0])


def _auc_of(known: np.ndarray, scores: np.ndarray) -> float:
    return intervals.delong(known, scores).value


def _error(hits: list[bool]) -> float:
    """Standard error of a share of hits, in percent."""
    share = np.mean(hits)
    return round(100 * float(np.sqrt(share * (1 - share) / len(hits))), 2)


def _timed(work: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _row(name: str, seconds: list[float], unit: str, target: str, conditions: str) -> Row:
    value = round(float(np.median(seconds)), 3)
    return Row(name, value, unit, "", "", target, len(seconds), spread(seconds), f"{conditions}; {machine()}")


BENCHES = (bootstrap, delong, coverage, evaluation)
