"""The report: how long a full-size run's page and a comparison of two such runs take, and how large the pages are.

The run is simulated: predictions of 25,596 films with the official test part's numbers of positives, and every table
and figure that an evaluation leaves, made by the evaluation's own rooms; stages have the figures that training leaves.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from cxrlib import paths
from cxrlib.evaluation import calibration, predict, subgroups, summary, thresholds
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.plots import common, results
from cxrlib.report import comparison, report
from tests.benchmarks.bench_evaluation import FILMS, _films
from tests.benchmarks.rows import Row, in_turns, machine, spread

STAGE_FIGURES = ("loss", "auc", "gain")
MAPS = 984  # boxes of the dataset


def building(rounds: int = 5) -> list[Row]:
    """Building the report of a full-size run from its folder, five stages and all figures."""
    with _outputs():
        home = _run("full", seed=1)
        seconds = in_turns(rounds, build=lambda: report.build(home.name))["build"]
        size = home.report.stat().st_size / 1e6
    where = f"{FILMS} test predictions, five stages, every table and figure, imports not counted"
    return [
        Row("report: building", round(float(np.median(seconds)), 2), "s", "", "", "<= 10 s", rounds, spread(seconds),
            f"{where}; {machine()}"),
        Row("report: size", round(size, 2), "MB", "", "", "<= 5 MB", 1, "", where),
    ]  # fmt: skip


def comparing(rounds: int = 3) -> list[Row]:
    """Comparing two full-size runs: 1,000 paired resamples by patient, DeLong paired for 14 findings."""
    with _outputs():
        homes = [_run(name, seed) for name, seed in (("one", 1), ("other", 2))]
        names = [home.name for home in homes]
        seconds = in_turns(rounds, compare=lambda: comparison.build(names))["compare"]
    where = f"two runs of {FILMS} test predictions, read from CSV; {machine()}"
    return [Row("report: comparing two runs", round(float(np.median(seconds)), 2), "s", n=rounds,
                spread=spread(seconds), conditions=where)]  # fmt: skip


@contextmanager
def _outputs() -> Iterator[None]:
    """An outputs folder for the time of a bench."""
    before = os.environ.get("CXR_OUTPUTS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CXR_OUTPUTS"] = folder
        try:
            yield
        finally:
            os.environ.pop("CXR_OUTPUTS")
            if before is not None:
                os.environ["CXR_OUTPUTS"] = before


def _run(name: str, seed: int) -> paths.Run:
    """The folder of a run of the official test part's size."""
    from matplotlib import pyplot as plt

    plt.switch_backend("agg")
    home = paths.Run(name)
    known, scores, patients = _films()
    rng = np.random.default_rng(seed)
    noisy = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) + 0.3 * rng.normal(size=scores.shape))))
    noisy = np.column_stack([noisy, 1 - noisy.max(1)])
    films = _people(known, patients)
    predict.write(home.predictions / "test.csv", films, noisy)
    auc = summary.auc(films, noisy, replicates=200)
    _tables(home, films, noisy, auc)
    _figures(home, films, noisy, auc)
    _stages(home, auc)
    paths.write_json(
        home.run_json, {"run": name, "settings": {"run": name, "data": "/films"}, "parameters": {"seed": seed}}
    )
    return home


def _people(known: np.ndarray, patients: np.ndarray) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    truth = np.column_stack([known, ~known.any(1)]).astype(np.uint8)
    films = pd.DataFrame(truth, columns=list(LABELS)).assign(patient=patients)
    films["image"] = [f"{i:08d}_000.png" for i in range(len(films))]
    films["age"] = rng.uniform(5, 90, len(films))
    return films.assign(sex=rng.choice(["M", "F"], len(films)), view=rng.choice(["PA", "AP"], len(films)))


def _tables(home: paths.Run, films: pd.DataFrame, said: np.ndarray, auc: pd.DataFrame) -> None:
    truth, patients = films[list(LABELS)].to_numpy(), films["patient"].to_numpy()
    chosen = thresholds.choose(truth, said)
    measured = subgroups.measure(films, said, (said >= 0.3).astype(float), replicates=50)
    kinds = (("as it came", said), ("calibrated", said**1.1))
    scored = [calibration.scores(truth, p, patients, replicates=50).assign(probabilities=kind) for kind, p in kinds]
    parts = [("train", 75_000, 24_000), ("val", 11_524, 4_008), ("test", FILMS, 2_797)]
    beside = pd.concat([summary.published_table(), _ours(auc, home.name)], ignore_index=True)
    boxes = _boxes()
    for file, table in {
        "tables/auc_test": auc,
        "tables/overall": summary.overall(auc, films, said, replicates=50),
        "tables/stage_findings": summary.steps(["stage1", "stage2", "stage3"], films, [said**0.5, said, said[:, ::-1]]),
        "tables/data": pd.DataFrame(parts, columns=["part", "films", "patients"]).assign(seen_in_training=0),
        "tables/thresholds": thresholds.judge(chosen, truth, said, patients, replicates=50),
        "tables/calibration": pd.concat(scored),
        "tables/subgroups": subgroups.auc(measured),
        "tables/gaps": subgroups.gaps(measured),
        "tables/view_shortcut": subgroups.view_shortcut(films, said, replicates=50),
        "tables/localisation": boxes,
        "tables/localisation_control": boxes[["method", "finding", "hit", "lift"]],
        "figures/published": beside,
    }.items():
        path = home.root / f"{file}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)


def _ours(auc: pd.DataFrame, name: str) -> pd.DataFrame:
    rows = auc.set_index("finding")
    mean = rows.loc["mean of 14"]
    row = {"method": name, "network": "this run", "mean": mean["auc"], "source": "this run"}
    row |= {"mean_low": mean["auc_low"], "mean_high": mean["auc_high"]} | {
        name: rows.loc[name, "auc"] for name in FINDINGS
    }
    return pd.DataFrame([row])


def _boxes() -> pd.DataFrame:
    rows = pd.DataFrame({"finding": [*FINDINGS[:8], "all findings"], "boxes": MAPS // 8, "hit": 0.3, "hit_low": 0.2})
    rows = rows.assign(hit_high=0.4, chance=0.1, iou=0.2, lift=3.0, lift_low=2.0, lift_high=4.0)
    return pd.concat([rows.assign(method=method) for method in ("gradcam", "occlusion")])


def _figures(home: paths.Run, films: pd.DataFrame, said: np.ndarray, auc: pd.DataFrame) -> None:
    """The figures of an evaluation with their numbers, and of exploration and films as many again."""
    from matplotlib import pyplot as plt

    truth, patients = films[list(LABELS)].to_numpy(), films["patient"].to_numpy()
    reliable = results.reliability_points(truth, {"as it came": said, "calibrated": said**1.1})
    for stem, points, draw in (
        (
            "roc_test",
            results.roc_points(truth, said, patients, replicates=50),
            lambda p, axes: results.roc_grid(p, axes, auc),
        ),
        (
            "pr_test",
            results.pr_points(truth, said, patients, replicates=50),
            lambda p, axes: results.pr_grid(p, axes, auc),
        ),
        ("reliability", reliable, results.reliability_grid),
    ):
        fig, axes = plt.subplots(3, 5, figsize=(11.4, 7.4))
        draw(points, axes)
        common.save(fig, home.figures / stem, points)
        plt.close(fig)
    films_at_once = np.random.default_rng(0).integers(0, 256, (6, 224, 224), dtype=np.uint8)
    for stem, rows in (("films_best", 1), ("films_worst", 1), ("hits_and_misses", 2), ("second_opinion", 2)):
        fig, axes = plt.subplots(rows, 6, figsize=(11.4, 2.4 * rows))
        for row in np.atleast_2d(axes):
            common.films(films_at_once, ["film"] * 6, row)
        common.save(fig, home.figures / stem, films.head(6)[["image"]])
        plt.close(fig)
    for stem in (
        "prevalence",
        "co_occurrence",
        "films_per_patient",
        "age_sex_view",
        "view_by_finding",
        "gaps_by_finding",
    ):
        fig, ax = plt.subplots(figsize=(8, 5))
        results.forest(auc, ax)
        common.save(fig, home.figures / stem, auc)
        plt.close(fig)


def _stages(home: paths.Run, auc: pd.DataFrame) -> None:
    from matplotlib import pyplot as plt

    rows = []
    for k in range(1, 6):
        name = f"stage{k}_0.0001_{3 * k}"
        for stem in STAGE_FIGURES:
            fig, axes = plt.subplots(1, 2, figsize=(11, 5))
            for ax in axes:
                results.forest(auc, ax)
            common.save(fig, home.stage(k) / stem, auc)
            plt.close(fig)
        paths.write_json(home.stage(k) / f"{name}.json", {"name": name, "weights": "imagenet", "sha256": "0" * 64})
        paths.write_json(home.stage(k) / "best.json", {"best": name})
        rows.append((k, name, "layer4 fc", 1e-4, 3, "bce", 0.81, 0.8, 0.82, 0.8, 0.79, 0.81, 0.01, 0.005, 0.015, 0.01))
    names = ["stage", "checkpoint", "groups", "lr", "epochs", "loss", "val_auc", "val_low", "val_high", "test_auc",
             "test_low", "test_high", "difference", "difference_low", "difference_high", "p_holm"]  # fmt: skip
    pd.DataFrame(rows, columns=names).to_csv(home.tables / "stages.csv", index=False)


BENCHES = (building, comparing)
