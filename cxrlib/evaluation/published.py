"""Published results on the official test part, and whether a run can be compared with them.

Only means over the 14 findings on the same 25,596 films are comparable. Results on random splits (CheXNet and others,
0.84 and above) are not listed, because that test is easier; nor are results that may not be on the official part
(Li 2018, 0.755). A checkpoint chosen on the test part gives too good a number: see ``chosen_on``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxrlib.data import splits
from cxrlib.labels import FINDINGS


@dataclass(frozen=True)
class Result:
    """A published result: mean AUC of 14, and where stated its standard deviation over runs and the AUC per finding.

    ``network`` is "" if the method is not a single standard network; ``chosen_on`` is the part that the checkpoint was
    chosen on, or "not stated".
    """

    method: str
    network: str
    mean: float
    source: str
    spread: float = np.nan
    findings: tuple[float, ...] = (np.nan,) * len(FINDINGS)
    chosen_on: str = "not stated"


def _aucs(numbers: str) -> tuple[float, ...]:
    return tuple(map(float, numbers.split()))


RESULTS = (
    Result("original of this workbook", "ResNet-50, five stages", 0.732, "its README: 0.73241"),
    Result(
        "Wang 2017",
        "ResNet-50",
        0.745,
        "Wang et al., ChestX-ray8, CVPR 2017; 14 findings in arXiv:1705.02315",
        findings=_aucs(".700 .810 .759 .661 .693 .669 .658 .799 .703 .805 .833 .786 .684 .872"),
    ),
    Result(
        "Yao 2018",
        "",
        0.761,
        "Yao et al., arXiv:1803.07703",
        findings=_aucs(".733 .856 .806 .673 .718 .777 .684 .805 .711 .806 .842 .743 .724 .775"),
    ),
    Result(
        "Tang 2018",
        "",
        0.803,
        "Tang et al., MLMI 2018",
        findings=_aucs(".756 .887 .819 .689 .814 .755 .729 .850 .728 .848 .906 .818 .765 .875"),
    ),
    Result(
        "Guendel 2018",
        "DenseNet-121",
        0.807,
        "Guendel et al., arXiv:1803.04565",
        findings=_aucs(".767 .883 .828 .709 .821 .758 .731 .846 .745 .835 .895 .818 .761 .896"),
    ),
    Result(
        "Guan 2018 (CRAL)",
        "ResNet-50",
        0.814,
        "Guan & Huang, category-wise residual attention learning, 2018",
        findings=_aucs(".779 .879 .824 .694 .831 .766 .726 .858 .758 .850 .909 .832 .778 .906"),
        chosen_on="validation",
    ),
    Result("plain ResNet-50 (CRAL's ablation)", "ResNet-50", 0.803, "Guan & Huang, 2018", chosen_on="validation"),
    Result(
        "ImageNet, plateau, ten-crop",
        "ResNet-50",
        0.817,
        "Ma / Liang lab, 2021–22",
        spread=0.0015,
        chosen_on="validation loss",
    ),
    Result(
        "ImageNet, then CheXpert",
        "ResNet-50",
        0.8225,
        "Ma / Liang lab, 2021–22",
        spread=0.0018,
        chosen_on="validation loss",
    ),
    Result("ImageNet", "DenseNet-121", 0.822, "compared with by Xiao et al., WACV 2023", chosen_on="test"),
    Result("X-ray MAE", "ViT-B", 0.830, "Xiao et al., WACV 2023, arXiv:2210.12843", chosen_on="test"),
    Result(
        "224² re-sized films, positive weights",
        "ResNet-18",
        0.789,
        "a public notebook, 2026",
        findings=_aucs(".750 .867 .811 .696 .778 .715 .681 .834 .724 .833 .882 .804 .757 .919"),
        chosen_on="validation",
    ),
)


def table() -> pd.DataFrame:
    """The published results: method, network, mean, spread, a column per finding (NaN: none), chosen_on, source."""
    rows = [
        {"method": result.method, "network": result.network, "mean": result.mean, "spread": result.spread}
        | dict(zip(FINDINGS, result.findings, strict=True))
        | {"chosen_on": result.chosen_on, "source": result.source}
        for result in RESULTS
    ]
    return pd.DataFrame(rows)


def why_not(images: Iterable[str]) -> str:
    """Reason why a test on these images cannot be compared; "" if they are the full official test part."""
    names = set(images)
    if splits.is_official_test(names):
        return ""
    return (
        f"This run was tested on {len(names):,} films. Published results are on the official test part, all "
        f"{splits.OFFICIAL_FILMS:,} films of it; on other films the same network has another AUC, so they are not "
        "compared."
    )


def beside(auc: pd.DataFrame, images: Iterable[str], run: str) -> tuple[pd.DataFrame, str]:
    """Published results with this run as the first row and "", or an empty table and the reason.

    auc: the run's table as ``summary.auc``; images: the names of its test films. The run's row also has mean_low and
    mean_high, its 95 % interval by patient.
    """
    why = why_not(images)
    if why:
        return table().head(0), why
    rows = auc.set_index("finding")
    mean = rows.iloc[-1]
    ours = {"method": run, "network": "this run", "mean": mean["auc"], "source": "this run", "spread": np.nan}
    ours |= {"chosen_on": "validation"}
    ours |= {"mean_low": mean["auc_low"], "mean_high": mean["auc_high"]}
    ours |= {finding: rows.loc[finding, "auc"] for finding in FINDINGS}
    return pd.concat([pd.DataFrame([ours]), table()], ignore_index=True)[
        [*table().columns, "mean_low", "mean_high"]
    ], ""
