"""Summary tables of a run: AUC per finding with intervals, what each stage changed, and published results beside it.

Only published means over the 14 findings on the same 25,596 films compare. Random splits (CheXNet and its copies, 0.84
and above) are another, easier test and are not listed; nor is a result that cannot be shown to be on the official part
(Li 2018, 0.755). A checkpoint chosen on the test part looks too good: ``chosen_on`` says what each was chosen by.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cxrlib import metrics
from cxrlib.data import records, splits
from cxrlib.evaluation import delong, intervals
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.training import checkpoint


@dataclass(frozen=True)
class PublishedResult:
    """A published result: mean AUC of 14, and where stated its standard deviation over runs and the AUC per finding.

    ``network`` is "" if the method is not a single standard network; ``chosen_on`` is the part that the checkpoint was
    chosen on, or "not stated"; ``low`` and ``high`` are its 95 % interval where one is stated.
    """

    method: str
    network: str
    mean: float
    source: str
    spread: float = np.nan
    findings: tuple[float, ...] = (np.nan,) * len(FINDINGS)
    chosen_on: str = "not stated"
    low: float = np.nan
    high: float = np.nan


def _aucs(numbers: str) -> tuple[float, ...]:
    return tuple(map(float, numbers.split()))


PUBLISHED = (
    PublishedResult("original of this workbook", "ResNet-50, five stages", 0.732, "its README: 0.73241"),
    PublishedResult(
        "Wang 2017",
        "ResNet-50",
        0.745,
        "Wang et al., ChestX-ray8, CVPR 2017; 14 findings in arXiv:1705.02315",
        findings=_aucs(".700 .810 .759 .661 .693 .669 .658 .799 .703 .805 .833 .786 .684 .872"),
    ),
    PublishedResult(
        "Yao 2018",
        "",
        0.761,
        "Yao et al., arXiv:1803.07703",
        findings=_aucs(".733 .856 .806 .673 .718 .777 .684 .805 .711 .806 .842 .743 .724 .775"),
    ),
    PublishedResult(
        "Tang 2018",
        "",
        0.803,
        "Tang et al., MLMI 2018",
        findings=_aucs(".756 .887 .819 .689 .814 .755 .729 .850 .728 .848 .906 .818 .765 .875"),
    ),
    PublishedResult(
        "Guendel 2018",
        "DenseNet-121",
        0.807,
        "Guendel et al., arXiv:1803.04565",
        findings=_aucs(".767 .883 .828 .709 .821 .758 .731 .846 .745 .835 .895 .818 .761 .896"),
    ),
    PublishedResult(
        "Guan 2018 (CRAL)",
        "ResNet-50",
        0.814,
        "Guan & Huang, category-wise residual attention learning, 2018",
        findings=_aucs(".779 .879 .824 .694 .831 .766 .726 .858 .758 .850 .909 .832 .778 .906"),
        chosen_on="validation",
    ),
    PublishedResult(
        "plain ResNet-50 (CRAL's ablation)", "ResNet-50", 0.803, "Guan & Huang, 2018", chosen_on="validation"
    ),
    PublishedResult(
        "ImageNet, plateau, ten-crop",
        "ResNet-50",
        0.817,
        "Ma / Liang lab, 2021–22",
        spread=0.0015,
        chosen_on="validation loss",
    ),
    PublishedResult(
        "ImageNet, then CheXpert",
        "ResNet-50",
        0.8225,
        "Ma / Liang lab, 2021–22",
        spread=0.0018,
        chosen_on="validation loss",
    ),
    PublishedResult(
        "random weights, plateau, ten-crop",
        "ResNet-50",
        0.8031,
        "Ma / Liang lab, 2021–22",
        spread=0.0010,
        chosen_on="validation",
    ),
    PublishedResult(
        "SwAV weights, plateau, ten-crop", "ResNet-50", 0.819, "Ma / Liang lab", chosen_on="validation loss"
    ),
    PublishedResult(
        "NIH films alone, 384 px",
        "ConvNeXt-Tiny",
        0.8263,
        "XrVit, 2026: one seed, by its authors",
        chosen_on="validation",
        low=0.820,
        high=0.832,
    ),
    PublishedResult(
        "384 px, taught by itself and RAD-DINO",
        "ConvNeXt-Tiny",
        0.8339,
        "XrVit, 2026: one seed, by its authors",
        chosen_on="validation",
        low=0.828,
        high=0.839,
    ),
    PublishedResult(
        "RAD-DINO, 518 px, last 8 blocks",
        "ViT-B",
        0.8364,
        "XrVit, 2026: one seed, by its authors",
        chosen_on="validation",
        low=0.830,
        high=0.842,
    ),
    PublishedResult(
        "ConvNeXt-Tiny and RAD-DINO, averaged",
        "",
        0.8428,
        "XrVit, 2026: one seed, by its authors",
        findings=_aucs(".804 .904 .848 .717 .860 .817 .742 .905 .772 .866 .948 .851 .817 .949"),
        chosen_on="validation",
        low=0.837,
        high=0.848,
    ),
    PublishedResult("EVA-X", "ViT-B", 0.835, "EVA-X, 2024", chosen_on="test"),
    PublishedResult("ImageNet, run again by others", "DenseNet-121", 0.809, "not traced further"),
    PublishedResult("ImageNet", "DenseNet-121", 0.822, "compared with by Xiao et al., WACV 2023", chosen_on="test"),
    PublishedResult("X-ray MAE", "ViT-B", 0.830, "Xiao et al., WACV 2023, arXiv:2210.12843", chosen_on="test"),
    PublishedResult(
        "224² re-sized films, positive weights",
        "ResNet-18",
        0.789,
        "a public notebook, 2026",
        findings=_aucs(".750 .867 .811 .696 .778 .715 .681 .834 .724 .833 .882 .804 .757 .919"),
        chosen_on="validation",
    ),
)


def published_table() -> pd.DataFrame:
    """The published results: method, network, mean, spread, a column per finding (NaN: none), chosen_on, source,
    mean_low and mean_high (95 % interval, NaN where none is stated)."""
    rows = [
        {"method": result.method, "network": result.network, "mean": result.mean, "spread": result.spread}
        | dict(zip(FINDINGS, result.findings, strict=True))
        | {"chosen_on": result.chosen_on, "source": result.source}
        | {"mean_low": result.low, "mean_high": result.high}
        for result in PUBLISHED
    ]
    return pd.DataFrame(rows)


def why_not_beside_published(images: Iterable[str]) -> str:
    """Reason why a test on these images cannot be compared; "" if they are the full official test part."""
    names = set(images)
    if splits.is_official_test(names):
        return ""
    return (
        f"This run was tested on {len(names):,} films. Published results are on the official test part, all "
        f"{splits.OFFICIAL_FILMS:,} films of it; on other films the same network has another AUC, so they are not "
        "compared."
    )


def beside_published(auc: pd.DataFrame, images: Iterable[str], run: str) -> tuple[pd.DataFrame, str]:
    """Published results with this run as the first row and "", or an empty table and the reason.

    auc: the run's table as ``summary.auc``; images: the names of its test films. The run's row also has mean_low and
    mean_high, its 95 % interval by patient.
    """
    why = why_not_beside_published(images)
    if why:
        return published_table().head(0), why
    rows = auc.set_index("finding")
    mean = rows.iloc[-1]
    ours = {"method": run, "network": "this run", "mean": mean["auc"], "source": "this run", "spread": np.nan}
    ours |= {"chosen_on": "validation"}
    ours |= {"mean_low": mean["auc_low"], "mean_high": mean["auc_high"]}
    ours |= {finding: rows.loc[finding, "auc"] for finding in FINDINGS}
    return pd.concat([pd.DataFrame([ours]), published_table()], ignore_index=True)[[*published_table().columns]], ""


SURE = 0.05  # largest p, adjusted if there are several, at which a difference counts as shown


def auc(films: pd.DataFrame, probabilities: np.ndarray, *, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """AUC and average precision of each label with 95 % intervals by patient bootstrap; the last row is the mean.

    films: N rows as from ``records.read``; probabilities (N, 15). Columns finding, positives, films (whose label is
    known; in the last row all), patients (with the finding; in the last row all), auc, auc_low, auc_high, ap, ap_low,
    ap_high, reason, no_interval (the reason for none), p_chance and p_others as from ``against``. A finding with one
    class only is NaN, with a ``reason``, and not part of the mean, whose name gives the number of its findings. "No
    Finding" is listed but never part of the mean.
    """
    labels = records.label_matrix(films)
    boot = intervals.bootstrap(labels, probabilities, films["patient"].to_numpy(), replicates=replicates, seed=seed)
    rows = pd.DataFrame(
        {
            "finding": LABELS,
            "positives": metrics.positives(labels),
            "films": metrics.is_known(labels).sum(0),
            "patients": boot.patients[0],
            "auc": boot.auc,
            **dict(zip(("auc_low", "auc_high"), boot.auc_interval, strict=True)),
            "ap": boot.ap,
            **dict(zip(("ap_low", "ap_high"), boot.ap_interval, strict=True)),
            "reason": [metrics.reason(labels[:, k]) for k in range(len(LABELS))],
            "no_interval": boot.why(),
        }
    ).join(against(films, probabilities))
    positives = rows["positives"][metrics.HEADLINE].sum()
    mean = (metrics.mean_of(len(boot.told)), positives, len(labels), boot.everyone, *boot.mean_auc)
    mean += (*boot.mean_ap, "", boot.why_mean(), np.nan, np.nan)
    return pd.concat([rows, pd.DataFrame([dict(zip(rows.columns, mean, strict=True))])], ignore_index=True)


def against(films: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Tests of each finding's AUC against chance, and against the mean of the other findings.

    A row per label; films and probabilities as for ``auc``. Columns p_chance (two-sided, AUC against 0.5) and p_others
    (against the mean of the other tested findings), by DeLong's variance by patient on the scale of log odds, each
    adjusted (Holm) for the tested findings: those with ``intervals.LEAST`` patients with and without; NaN elsewhere.
    """
    labels = records.label_matrix(films)
    patients, rows = np.unique(films["patient"].to_numpy(), return_inverse=True)
    sides, _ = intervals.patients_of(labels[:, metrics.HEADLINE], rows, len(patients))
    tested = [k for k in range(len(FINDINGS)) if sides[:, k].min() >= intervals.LEAST]
    scores = {k: delong.imperfect(labels[:, k], probabilities[:, k]) for k in tested}
    estimates = [delong.auc(labels[:, k], scores[k], rows, len(patients)) for k in tested]
    table = pd.DataFrame(np.nan, index=range(len(LABELS)), columns=["p_chance", "p_others"])
    table.loc[tested, "p_chance"] = [delong.logit(one).test()[2] for one in estimates]
    table.loc[tested, "p_others"] = delong.against_others(estimates)
    return table.apply(lambda column: intervals.holm(column.to_numpy()))


def overall(
    table: pd.DataFrame, films: pd.DataFrame, probabilities: np.ndarray, *, replicates: int = 300, seed: int = 0
) -> pd.DataFrame:
    """Overall numbers of a test, each with its 95 % interval: columns number, value, low, high, says.

    table: as ``auc``, which has both means. The micro average is over the 15 outputs, as the original printed it.
    """
    labels, patients = records.label_matrix(films), films["patient"].to_numpy()
    micro = intervals.micro_auc(labels, probabilities, patients, replicates=replicates, seed=seed)
    mean = table[table["finding"].map(metrics.is_mean)].iloc[-1]
    of = mean["finding"].removeprefix("mean ")
    rows = [
        (f"mean AUC {of}", *mean[["auc", "auc_low", "auc_high"]], "every finding has the same weight: the headline"),
        ("micro AUC of 15", *micro, "all film-label pairs at once: prevalences alone give more than 0.5"),
        (f"mean AP {of}", *mean[["ap", "ap_low", "ap_high"]], "compare it with the mean prevalence"),
    ]
    return pd.DataFrame(rows, columns=["number", "value", "low", "high", "says"])


def gain(
    films: pd.DataFrame, before: np.ndarray, after: np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Change in AUC between two predictions of the same films: AUC before and after, difference, interval, p, p_holm.

    before, after (N, 15) probabilities. Single findings by DeLong's paired test by patient, p_holm adjusted for all of
    them; the last row, the mean, by a bootstrap by patient in which both are resampled together.
    """
    first, second = _boots(films, (before, after), replicates, seed)
    names = {"auc_against": "before", "auc": "after"}
    rows = pd.DataFrame(_differences(films, after, before)).rename(columns=names)
    rows = rows[["finding", "positives", "before", "after", "difference", "low", "high", "p"]]
    rows["p_holm"] = intervals.holm(rows["p"].to_numpy(np.float64))
    mean = intervals.difference(second, first)
    ends = (rows["positives"].sum(), first.mean_auc.value, second.mean_auc.value)
    last = (metrics.mean_of(len(first.told)), *ends, *mean, mean.p)
    return pd.concat([rows, pd.DataFrame([dict(zip(rows.columns, last, strict=True))])], ignore_index=True)


def outcome(changed: pd.DataFrame) -> str:
    """Sentences on a stage's effect on validation: its mean AUC before and after; frame as ``gain``."""
    mean = changed.iloc[-1]
    if pd.isna(mean["difference"]):
        return "No finding has an AUC before and after the stage."
    interval = "too few patients for an interval"
    if not pd.isna(mean["low"]):
        interval = f"95 % {mean['low']:+.3f} to {mean['high']:+.3f}, p = {mean['p']:.3f}"
    text = f"{mean['finding']} {mean['before']:.3f} → {mean['after']:.3f}: {mean['difference']:+.3f} ({interval}). "
    shown = bool(mean["p"] <= SURE)
    if mean["difference"] >= 0:
        return text + ("The stage helped." if shown else "The stage has not been shown to help.")
    lower = "The stage lowered the mean" if shown else "The stage lowered the mean, which may be chance"
    return f"{text}{lower}. The next stage starts from it all the same: its best epoch is chosen among its own epochs."


def stages(
    line: Sequence[Path],
    val: tuple[pd.DataFrame, Sequence[np.ndarray]],
    test: tuple[pd.DataFrame, Sequence[np.ndarray]],
    *,
    replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Stages of a run, one row each: recipe, mean AUC on validation and test, difference to the stage before on both.

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
        for name, (value, low, high) in ((name, own[k].mean_auc) for name, own in boots.items()):
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
    """Change in each finding's AUC from stage to stage, and from the first stage to the last.

    names of the stages and their probabilities (N, 15) of the same films, in order. Differences are paired, with 95 %
    intervals and p by DeLong by patient; ``p_holm`` is adjusted for all steps and findings (last against first: for the
    findings). Columns comparison ("step" or "whole"), stage, against, finding, positives, auc, auc_against, difference,
    low, high, p, p_holm, reason; no row for a single stage.
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
    """Mean AUC, and mean sensitivity and specificity at 0.5, over the 14 findings; undefined ones are left out.

    known (N, 15) of 0, 1 and NaN, probabilities (N, 15).
    """
    shown = metrics.is_known(known[:, metrics.HEADLINE])
    at = [metrics.at_threshold(known[:, k], probabilities[:, k], 0.5) for k in range(len(FINDINGS))]
    return {
        "mean AUC": metrics.mean_auc(known, probabilities),
        "sensitivity at 0.5": metrics.nanmean(np.array([one.sensitivity for one in at])),
        "specificity at 0.5": metrics.nanmean(np.array([one.specificity for one in at])),
        "mean probability": float(_where(shown, probabilities[:, metrics.HEADLINE]).mean()),
        "prevalence": float(_where(shown, known[:, metrics.HEADLINE]).mean()),
    }


def _where(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of known labels; the array as it is if all are known."""
    return values if known.all() else values[known]


def rank(films: pd.DataFrame, probabilities: np.ndarray) -> np.ndarray:
    """Rank of each film by its own findings: (N,), 1 best, 0 worst, NaN for films without a finding.

    For each of the film's findings, the share of films known to be without it that score lower (ties count half); then
    their mean. The mean over a finding's films is its AUC, so the films with the lowest rank reduce it most.
    """
    labels = records.label_matrix(films)[:, : len(FINDINGS)]
    shares = np.full(labels.shape, np.nan)
    for k in range(len(FINDINGS)):
        if not metrics.reason(labels[:, k]):
            known, scores, films_of = metrics.of_known(labels[:, k], probabilities[:, k], np.arange(len(labels)))
            positive = known == 1
            among_all, among_own = rankdata(scores), rankdata(scores[positive])
            shares[films_of[positive], k] = (among_all[positive] - among_own) / np.count_nonzero(~positive)
    return metrics.nanmean(shares, axis=1)


def extremes(films: pd.DataFrame, probabilities: np.ndarray, *, n: int = 6) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The ``n`` films of highest and of lowest rank, with a column ``standing``."""
    ranked = films.assign(standing=rank(films, probabilities)).dropna(subset=["standing"])
    ranked = ranked.sort_values("standing", ascending=False, kind="stable")
    return ranked.head(n), ranked.tail(n)[::-1]


def _differences(films: pd.DataFrame, ours: np.ndarray, theirs: np.ndarray) -> Iterator[dict[str, Any]]:
    """Rows of findings: both AUCs and their DeLong difference, by patient."""
    labels, patients = records.label_matrix(films), films["patient"].to_numpy()
    for k, finding in enumerate(FINDINGS):
        difference = intervals.delong_difference(labels[:, k], ours[:, k], theirs[:, k], patients)
        yield {
            "finding": finding,
            "positives": int(metrics.positives(labels[:, k])),
            "auc": metrics.roc_auc(labels[:, k], ours[:, k]),
            "auc_against": metrics.roc_auc(labels[:, k], theirs[:, k]),
            **dict(zip(("difference", "low", "high", "p"), difference, strict=True)),
            "reason": metrics.reason(labels[:, k]) or _untested(difference),
        }


def _untested(difference: intervals.Difference) -> str:
    """Reason why a difference has no p; "" if it has one."""
    few = f"fewer than {intervals.LEAST_TESTED} patients with or without it, or a perfect AUC"
    return "" if difference.p == difference.p else few


def _boots(
    films: pd.DataFrame, predictions: Sequence[np.ndarray], replicates: int, seed: int
) -> list[intervals.Bootstrap]:
    labels, patients = records.label_matrix(films), films["patient"].to_numpy()
    more = {"replicates": replicates, "seed": seed, "precision": False}
    return [intervals.bootstrap(labels, one, patients, **more) for one in predictions]
