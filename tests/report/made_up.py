"""A finished run's folder with made-up numbers for all that a report shows."""

import numpy as np
import pandas as pd
from PIL import Image

from cxrlib import paths
from cxrlib.evaluation import predict, summary
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.metrics import MEAN

ALL = "all findings"


def run(name: str = "a-b", *, seed: int = 0, films: int = 120, noise: float = 1.0) -> paths.Run:
    """Write the folder. Its predictions and AUC table agree; ``noise``, drawn from ``seed``, lowers its AUC."""
    home = paths.Run(name)
    _predictions(home, seed, films, noise)
    for file, table in {**_tables(), **_groups(), **_places()}.items():
        _write(home.root / file, table)
    for stem in ("films_best", "my <b>own figure"):
        picture(home.figures / f"{stem}.png")
    _stages(home)
    paths.write_text(home.notebooks / "01_stage1.ipynb", "{}")
    paths.write_text(home.notebooks / "02_stage2.failed.ipynb", "{}")
    paths.write_json(home.run_json, record(name))
    return home


def record(name: str) -> dict:
    return {
        "run": name,
        "updated": "2026-01-02T03:04:05+00:00",
        "parameters": {"size": 64, "batch_size": 32, "weights": "none", "schedule": "scratch", "seed": 0},
        "settings": {"run": name, "data": "/films/of <i>mine</i>"},
        "data": {
            "folder": "/films",
            "films": 2000,
            "patients": 870,
            "source": "what lies there now",
            "fingerprint": "f",
        },
        "device": "cpu, 2 threads",
        "versions": {"torch": "2.0"},
        "notebooks": {
            "01_stage1": {"state": "done", "seconds": 61.0},
            "02_stage2": {"state": "failed", "seconds": 1.0},
        },
    }


def people(films: int) -> pd.DataFrame:
    """Films of patients with three each; a third of them have each finding, and some have none."""
    rng = np.random.default_rng(7)
    truth = rng.random((films, 14)) < rng.random(films)[:, None] * 0.6
    frame = pd.DataFrame(np.column_stack([truth, ~truth.any(1)]).astype(np.uint8), columns=list(LABELS))
    return frame.assign(image=[f"{i:08d}_000.png" for i in range(films)], patient=np.arange(films) // 3)


def picture(file) -> None:
    """A PNG of one grey film."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(file)


def strip(file, rows: int = 1, films: int = 3) -> None:
    """A PNG of rows of grey films on paper, as the figures of films are."""
    paper = np.full((60 * rows, 60 * films), 255, np.uint8)
    for row in range(rows):
        for film in range(films):
            paper[60 * row + 8 : 60 * row + 52, 60 * film + 8 : 60 * film + 52] = 90
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paper).save(file)


def _write(file, table: pd.DataFrame) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(file, index=False)


def _predictions(home: paths.Run, seed: int, films: int, noise: float) -> None:
    known, rng = people(films), np.random.default_rng(seed)
    signs = known[list(LABELS)].to_numpy() * np.linspace(4, 0.5, 15)  # the first findings are the easy ones
    scores = 1 / (1 + np.exp(2 - signs - noise * rng.normal(size=signs.shape)))
    predict.write(home.predictions / "test.csv", known, scores)
    _write(home.tables / "auc_test.csv", summary.auc(known, scores, replicates=100))


def _tables() -> dict[str, pd.DataFrame]:
    parts = pd.DataFrame({"part": ["train", "val", "test"], "films": [1100, 300, 120], "patients": [500, 120, 40]})
    stages = pd.DataFrame({"stage": [1, 2], "checkpoint": ["stage1_0.001_3", "stage2_0.0001_6"]})
    stages = stages.assign(groups=["fc", "layer4 fc"], lr=1e-3, epochs=3, loss="focal", val_auc=0.8, val_low=0.7)
    stages = stages.assign(val_high=0.9, test_auc=0.75, test_low=0.7, test_high=0.8, difference=[None, 0.03])
    stages = stages.assign(difference_low=[None, 0.01], difference_high=[None, 0.05], p_holm=[None, 0.02])
    stages = stages.assign(val_difference=[None, -0.02], val_difference_low=[None, -0.05], val_p_holm=[None, 0.2])
    stages = stages.assign(val_difference_high=[None, 0.01])
    curve = {"positives": 20, "negatives": 100}
    roc = [pd.DataFrame({"finding": name, "rate": [0, 1], "sensitivity": [0, 1], **curve}) for name in FINDINGS]
    pr = [pd.DataFrame({"finding": name, "recall": [0.1, 1], "precision": [1, 0.2], **curve}) for name in FINDINGS]
    reliability = [
        pd.DataFrame({"finding": name, "reading": kind, "probability": [0.1, 0.5], "observed": [0.2, 0.6]})
        for name in FINDINGS
        for kind in ("as it came", "calibrated")
    ]
    scores = pd.DataFrame({"finding": FINDINGS, "prevalence": 0.1, "brier_prevalence": 0.09})
    before = scores.assign(probability=0.31, brier=0.12, ece=0.21, probabilities="as it came")
    after = scores.assign(probability=0.11, brier=0.08, ece=0.02, probabilities="calibrated")
    chosen = [
        {
            "finding": name,
            "rule": rule,
            "threshold": 0.3,
            "sensitivity": 0.8,
            "specificity": 0.7,
            "ppv": 0.4,
            "npv": 0.9,
        }
        for rule in ("youden", "f1", "sensitivity_90")
        for name in LABELS
    ]
    steps = pd.DataFrame({"comparison": ["step", "step", "whole"], "finding": ["Mass", "Nodule", "Mass"]})
    steps = steps.assign(stage="stage2_0.0001_6", against="stage1_0.001_3", positives=20, difference=[0.06, 0.01, 0.06])
    steps = steps.assign(low=[0.02, -0.03, 0.02], high=[0.1, 0.05, 0.1], p_holm=[0.03, 0.8, 0.03])
    whole = pd.DataFrame(
        {"number": ["mean AUC of 14", "micro AUC of 15"], "value": [0.7, 0.81], "low": 0.6, "high": 0.9}
    )
    return {
        "tables/stage_findings.csv": steps,
        "tables/overall.csv": whole.assign(says="all pairs at once"),
        "tables/data.csv": parts.assign(seen_in_training=[None, None, 0], split="official list"),
        "tables/stages.csv": stages,
        "tables/calibration.csv": pd.concat([before, after]),
        "tables/thresholds.csv": pd.DataFrame(chosen).assign(reason=""),
        "figures/roc_test.csv": pd.concat(roc),
        "figures/pr_test.csv": pd.concat(pr),
        "figures/reliability.csv": pd.concat(reliability),
        **labels(),
        "figures/published.csv": pd.DataFrame(columns=["method", "network", "mean", "spread", *FINDINGS, "source"]),
    }


def _groups() -> dict[str, pd.DataFrame]:
    groups = [("all", "all films"), ("sex", "women"), ("sex", "men"), ("sex and view", "women, AP")]
    rows = [
        {
            "kind": kind,
            "group": group,
            "finding": MEAN,
            "films": 60,
            "patients": 20,
            "auc": 0.8,
            "low": 0.7,
            "high": 0.9,
            "findings": 14,
            "reason": "",
        }
        for kind, group in groups
    ]
    gaps = pd.DataFrame(
        {
            "number": ["auc", "auc", "sensitivity", "auc", "auc"],
            "kind": ["sex", "view", "sex", "sex and view", "sex"],
            "group": ["women", "AP", "women", "women, AP", "women"],
            "against": ["men", "PA", "men", "men, AP", "men"],
            "finding": [MEAN, MEAN, MEAN, MEAN, "Mass"],
            "difference": [-0.05, 0.01, -0.1, -0.2, -0.3],
            "low": [-0.08, -0.02, -0.2, -0.3, -0.4],
            "high": [-0.02, 0.04, 0.1, -0.1, -0.2],
            "p_holm": [0.01, 0.9, 0.3, 0.04, 0.03],
        }
    )
    view = pd.DataFrame({"finding": [*FINDINGS, MEAN], "auc": 0.8, "within": 0.78, "difference": 0.02})
    return {
        "tables/subgroups.csv": pd.DataFrame(rows),
        "tables/gaps.csv": gaps,
        "tables/view_shortcut.csv": view.assign(low=0.01, high=0.03, reason=""),
    }


def _places() -> dict[str, pd.DataFrame]:
    rows = pd.DataFrame({"finding": ["Mass", "Nodule", ALL], "boxes": [30, 40, 70], "hit": [0.5, 0.1, 0.27]})
    rows = rows.assign(
        hit_low=0.05, hit_high=0.6, chance=0.1, lift=[5, 1, 2.7], lift_low=[3, 0.5, 1.5], lift_high=[7, 2, 4]
    ).assign(p_holm=[0.01, 0.9, None])
    ways = [rows.assign(method=method, iou=0.2) for method in ("gradcam", "occlusion")]
    control = rows[["finding"]].assign(method="gradcam", hit=0.11, lift=1.1)
    return {"tables/localisation.csv": pd.concat(ways), "tables/localisation_control.csv": control}


def _stages(home: paths.Run) -> None:
    for k, name in enumerate(("stage1_0.001_3", "stage2_0.0001_6"), 1):
        parent = {"name": "stage1_0.001_3", "sha256": "ab"} if k == 2 else None
        meta = {"name": name, "parent": parent, "weights": "none", "epochs_so_far": 3 * k, "sha256": "0f" * 32}
        paths.write_json(home.stage(k) / f"{name}.json", meta)
        paths.write_json(home.stage(k) / "best.json", {"best": name})
        picture(home.stage(k) / "loss.png")


def labels() -> dict[str, pd.DataFrame]:
    """Tables of 09_labels, in which the network finds more than the mined label."""
    ends = {"low": 0.1, "high": 0.3}
    shares = {"ppv": 0.485, "ppv_low": 0.411, "ppv_high": 0.564, "sensitivity": 0.497}
    aucs = {"auc_read": 0.9, "auc_read_low": 0.8, "auc_read_high": 0.95, "auc_mined": 0.8, "auc_mined_low": 0.7}
    first = {"finding": "Pneumothorax", "films": 1962}
    return {
        "tables/labels_agreement.csv": pd.DataFrame([{"set": "test", **first, **shares}]),
        "tables/labels_auc.csv": pd.DataFrame(
            [{**first, **aucs, "auc_mined_high": 0.9, "difference": 0.1, **ends, "p_holm": 0.01}]
        ),
        "tables/labels_curve.csv": pd.DataFrame(
            [
                {
                    "finding": "Pneumothorax",
                    "mined": 0.5,
                    "network": 0.7,
                    "difference": 0.2,
                    **ends,
                    "source": "labels of <b>x</b>",
                }
            ]
        ),
    }
