"""Evaluation: the bootstrap's speed and truth against scikit-learn, DeLong, coverage, a whole evaluation at full size.

Everything runs on films simulated with the size of the official test part: 25,596 films of 2,797 patients, with its
numbers of positives, on one core. Seconds are processor time, which other work on the machine does not add to.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxrlib import paths, provenance
from cxrlib.data import splits
from cxrlib.evaluation import ensemble, intervals, predict
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.training import checkpoint, lineage, schedules
from cxrlib.workbook import averaging
from tests.benchmarks.rows import CPU, Row, machine, one_core, spread

FILMS, PATIENTS, VALIDATION = 25_596, 2_797, 8_652
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
            "DeLong by patient": intervals.delong_interval(known, scores, who)[1:],
            "DeLong by film": intervals.delong_interval(known, scores)[1:],
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
    """The cells of ``06_evaluation`` that follow the reading of the films, at full test size, as the notebook has them.

    Five stages' readings of 25,596 test and 8,652 validation films; figures, tables and all, but for the report.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    with tempfile.TemporaryDirectory() as folder:
        given, cells = _given(Path(folder)), _cells()
        seconds = []
        for source in cells:
            seconds.append(_timed(lambda source=source: exec(source, given))[1])
            plt.close("all")
    slowest = " · ".join(f"{took:.1f} s {cells[i].splitlines()[0][:40]}" for took, i in _slowest(seconds))
    where = f"{len(cells)} cells of the notebook, {FILMS} test films, {VALIDATION} validation films, 5 stages"
    return [
        _row("evaluation: 06_evaluation from finished readings", [sum(seconds)], "s", "<= 60 s", f"{where}; {slowest}")
    ]


def mean_of_runs(members: int = 3, films: int = FILMS, val: int = VALIDATION) -> list[Row]:
    """The mean of several runs at full test size: their CSVs read and compared, the mean, its tables and figures.

    Without the leak guard's comparison of pixels, which needs the films, and without the report.
    """
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    names = [f"bench-s{k}" for k in range(members)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_OUTPUTS", folder)
        parts = {"val": _part(val, 1)[0], "test": _part(films, 0)[0]}
        _leave_members(names, {"val": _part(val, 1), "test": _part(films, 0)})
        own = splits.Parts(parts["val"].iloc[:0], parts["val"], parts["test"], "made up", 0)
        pixels = SimpleNamespace(pixels=np.zeros((1, 64, 64), np.uint8), rows=lambda films: np.zeros(len(films), int))
        home, seen = paths.Run("bench-mean"), pd.DataFrame({"patients": [0]})

        def work():
            these = [ensemble.member(name) for name in names]
            averaging._write(home, own, ensemble.read(these, parts), these, "probabilities", pixels, seen)

        _, seconds = _timed(work)
        report_seconds = _timed(lambda: ensemble.member(names[0]))[1] * members
    where = f"{members} runs, {films} test films, {val} validation films"
    return [
        _row("evaluation: mean of runs, tables and figures", [seconds], "s", "<= 60 s", where),
        _row("evaluation: mean of runs, nothing changed", [report_seconds], "s", "<= 5 s", f"{where}; files compared"),
    ]


def _leave_members(names: list[str], parts: dict[str, tuple[pd.DataFrame, np.ndarray]]) -> None:
    """Runs with predictions of these films and a record."""
    for k, name in enumerate(names):
        home, rng = paths.Run(name), np.random.default_rng(k)
        for part, (films, scores) in parts.items():
            own = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) + rng.normal(0, 0.5, scores.shape))))
            file = predict.write(home.predictions / f"{part}.csv", films, own)
            note = {"weights": f"{k}" * 64, "size": 64, predict.CSV_HASH: provenance.file_sha256(file)}
            paths.write_json(predict.cache_note(file), note, guarded=True)
        paths.write_json(home.run_json, {"run": name, "data": {"fingerprint": "f", "films": 1}, "notebooks": {}})


def _cells() -> list[str]:
    """The code cells between "The result" and the report."""
    book = json.loads((paths.notebooks() / "06_evaluation.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in book]
    first = next(i for i, text in enumerate(sources) if text.startswith("## The result"))
    last = next(i for i, text in enumerate(sources) if text.startswith("made = report.build"))
    return [sources[i] for i in range(first, last) if book[i]["cell_type"] == "code"]


def _given(folder: Path) -> dict[str, Any]:
    """What the notebook has when the films are read: imports, parts, readings, a line of checkpoints, films."""
    import torch

    rng = np.random.default_rng(1)
    test, val = _part(FILMS, 0), _part(VALIDATION, 1)
    line, parent = [], None
    for number in range(1, 6):
        recipe = schedules.recipe("scratch", number)
        past = lineage.of_stage(parent, "none", SimpleNamespace(films=val[0]))
        parent = checkpoint.save(folder, {"fc.bias": torch.zeros(15)}, recipe, past, epoch=1, metrics={"val_auc": 0.8})
        line.append(parent)
    said = {"val": [], "test": []}
    for name, (_, scores) in (("val", val), ("test", test)):
        for stage in range(5):
            noise = rng.normal(0, 1 - 0.15 * stage, scores.shape)
            said[name].append(1 / (1 + np.exp(-(np.log(scores / (1 - scores)) + noise))))
    pixels = SimpleNamespace(pixels=np.zeros((1, 64, 64), np.uint8), rows=lambda films: np.zeros(len(films), int))
    own = {"run": "bench", "folder": _Folder(folder), "seed": 0, "size": 64, "tta": "none", "pixels": pixels}
    own |= {"parts": SimpleNamespace(val=val[0], test=test[0]), "said": said, "line": line, "tested": line[-1]}
    own |= {"meta": checkpoint.read_meta(line[-1]), "on_val": said["val"][-1], "on_test": said["test"][-1]}
    book = json.loads((paths.notebooks() / "06_evaluation.ipynb").read_text())["cells"]
    imports = next("".join(cell["source"]) for cell in book if "import matplotlib" in "".join(cell["source"]))
    before = {}
    exec("\n".join(row for row in imports.splitlines() if "import" in row), before)
    for name in ("figures", "tables"):
        (folder / name).mkdir()
    return before | own


class _Folder(SimpleNamespace):
    """A run's folder as the notebook knows it."""

    def __init__(self, root: Path) -> None:
        super().__init__(name="bench", root=root, figures=root / "figures", tables=root / "tables")


def _part(films: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Films with labels, sex, age and view, and probabilities of 15 labels; patients of their own."""
    known, scores, patients = _films(films, seed)
    rng = np.random.default_rng(seed + 10)
    frame = pd.DataFrame(np.column_stack([known, ~known.any(1)]).astype(np.uint8), columns=list(LABELS))
    frame = frame.assign(image=[f"{i:08d}_{seed:03d}.png" for i in range(films)], patient=patients + seed * PATIENTS)
    frame = frame.assign(age=rng.uniform(5, 90, films), sex=rng.choice(["M", "F"], films))
    frame = frame.assign(view=rng.choice(["PA", "AP"], films))
    return frame, np.column_stack([scores, np.clip(1 - scores.max(1), 1e-6, 1)])


def _slowest(seconds: list[float]) -> list[tuple[float, int]]:
    return sorted(((took, i) for i, took in enumerate(seconds)), reverse=True)[:3]


def _films(films: int = FILMS, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N, 14), probabilities (N, 14), patients (N,) of the official test part's size; patients' films alike.

    Of fewer films a part of the same prevalence.
    """
    rng = np.random.default_rng(seed)
    patients = np.concatenate([np.arange(PATIENTS), rng.integers(0, PATIENTS, films - PATIENTS)])
    own = rng.normal(size=(PATIENTS, len(FINDINGS)))[patients] + rng.normal(size=(films, len(FINDINGS)))
    known = np.zeros((films, len(FINDINGS)), np.uint8)
    for k, positives in enumerate(np.ceil(np.array(POSITIVES) * films / FILMS).astype(int)):
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

    counts, rows = intervals.draw_resamples(patients, replicates, 0)
    found = np.empty((2, replicates, known.shape[1]))
    for r in range(replicates):
        films = np.repeat(np.arange(len(rows)), counts[rows, r])
        for k in range(known.shape[1]):
            found[0, r, k] = roc_auc_score(known[films, k], scores[films, k])
            found[1, r, k] = average_precision_score(known[films, k], scores[films, k])
    return found


def _delong(known: np.ndarray, scores: np.ndarray, patients: np.ndarray | None) -> list[intervals.Interval]:
    return [intervals.delong_interval(known[:, k], scores[:, k], patients) for k in range(known.shape[1])]


def _percentiles(known, scores, who, replicates: int, seed: int) -> tuple[float, float]:
    counts, rows = intervals.draw_resamples(who, replicates, seed)
    low, high = intervals.percentiles(
        intervals.resampled_auc(intervals.running_weights(known, scores, counts, rows))[:, None]
    )
    return float(low[0]), float(high[0])


def _auc_of(known: np.ndarray, scores: np.ndarray) -> float:
    return intervals.delong_interval(known, scores).value


def _error(hits: list[bool]) -> float:
    """Standard error of a share of hits, in percent."""
    share = np.mean(hits)
    return round(100 * float(np.sqrt(share * (1 - share) / len(hits))), 2)


def _timed(work: Callable[[], object]) -> tuple[object, float]:
    start = CPU()
    result = work()
    return result, CPU() - start


def _row(name: str, seconds: list[float], unit: str, target: str, conditions: str) -> Row:
    value = round(float(np.median(seconds)), 3)
    return Row(
        name, value, unit, "", "", target, len(seconds), spread(seconds), f"{conditions}; processor time; {machine()}"
    )


BENCHES = (bootstrap, delong, coverage, evaluation, mean_of_runs)
