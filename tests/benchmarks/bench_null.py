"""Null studies: how often each sentence of a report's first screen is wrong where there is nothing to find.

Every study simulates films of patients whose films are alike, and a reader of whom the sentence would be wrong, makes
the tables that a run leaves and asks the report's code what it says. A sentence may be wrong in 5 % of studies.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from cxrlib import metrics
from cxrlib.evaluation import intervals, localisation, subgroups, summary
from cxrlib.labels import FINDINGS, LABELS
from cxrlib.report import page, report, sections
from tests.benchmarks.rows import Row

STUDIES, PATIENTS, REPLICATES = 400, 90, 400
SHARES = np.linspace(0.25, 0.12, len(FINDINGS))
"""Of films with each finding: at ninety patients the rarest is on about twenty of them."""


def study(seed: int, *, patients: int = PATIENTS, skill: float = 1.2, ill: float = 0.0, readers: int = 1) -> tuple:
    """Films of patients, and what each reader says of them, (N, 15): all findings and all groups are read equally well.

    skill: how far a finding shifts the score, 0 for guessing; ill: how much likelier findings are on AP films, which no
    reader looks at. Patients have 1 to about 12 films; half of what decides a label and a score is the patient's.
    """
    rng = np.random.default_rng([seed, 11])
    who = np.repeat(np.arange(patients), rng.geometric(0.35, patients))
    n, k = len(who), len(FINDINGS)
    ap = rng.random(n) < 0.45
    own = np.sqrt(0.5) * (rng.normal(size=(patients, k))[who] + rng.normal(size=(n, k))) + ill * ap[:, None]
    cuts = np.quantile(np.random.default_rng(0).normal(size=100_000) + ill * (np.arange(100_000) % 20 < 9), 1 - SHARES)
    known = own > cuts
    look = skill * known + np.sqrt(0.5) * rng.normal(size=(patients, k))[who]
    said = [look + np.sqrt(0.5) * rng.normal(size=(n, k)) for _ in range(readers)]
    films = pd.DataFrame(np.column_stack([known, ~known.any(1)]).astype(np.uint8), columns=list(LABELS))
    films = films.assign(image=[f"{i:08d}_000.png" for i in range(n)], patient=who, view=np.where(ap, "AP", "PA"))
    films = films.assign(sex=rng.choice(["M", "F"], patients)[who], age=rng.uniform(15, 85, patients)[who])
    return films, *(np.column_stack([_chance(scores), _chance(-scores.max(1))]) for scores in said)


def interval(seed: int) -> bool:
    """ "95 % interval … to …": whether it leaves the true mean out."""
    films, said = study(seed)
    found = intervals.bootstrap(
        _known(films), said, films["patient"].to_numpy(), replicates=REPLICATES, precision=False
    )
    return not found.mean_auc.low <= TRUTH <= found.mean_auc.high


def better_than_others(seed: int, skill: float = 1.2) -> bool:
    """ "AUC higher (lower) than the mean of the other findings: …"."""
    return "than the mean of the other findings" in _reading(*study(seed, skill=skill))


def better_than_guessing(seed: int) -> bool:
    """A finding that is guessed, and is not among those "Not shown to be better than chance"."""
    films, said = study(seed, skill=0.0)
    said_of = _reading(films, said).split("better than chance: ")[-1].split(" Too few")[0]
    told = summary.against(films, said)["p_chance"].notna().to_numpy()
    return any(page.listed([FINDINGS[k]]) not in said_of for k in range(len(FINDINGS)) if told[k])


def groups_differ(seed: int, skill: float = 1.2) -> bool:
    """ "Mean AUC is lower in … than in …"."""
    films, said = study(seed, skill=skill)
    calls = (said >= np.quantile(said, 0.75, axis=0)).astype(float)
    table = subgroups.gaps(subgroups.measure(films, said, calls, replicates=2))
    told = sections.gaps(table)
    found = report.headline_gaps({"gaps": told, "rows": [], "shortcut": {"mean": None}})
    return "Mean AUC is" in found


def finding_differs(seed: int) -> bool:
    """A single finding listed as differing between two groups, in the report below."""
    films, said = study(seed)
    return bool(sections.gaps(subgroups.gaps(subgroups.measure(films, said, replicates=2)))["findings"])


def reads_the_view(seed: int) -> bool:
    """ "Up to … of the mean AUC may come from recognising AP and PA films": no reader uses the view position."""
    films, said = study(seed, ill=0.7)
    mean = subgroups.view_shortcut(films, said, replicates=REPLICATES).iloc[-1].to_dict()
    return bool(report._view(mean))


def points(seed: int) -> bool:
    """ "Shown to be better than a random point for …": two ways of pointing at random, 15 boxes a finding."""
    rng = np.random.default_rng([seed, 13])
    wanted = pd.DataFrame({"finding": np.repeat(FINDINGS[:8], 15), "patient": rng.integers(0, 60, 120)})
    area = np.repeat([0.2, 0.15, 0.1, 0.08, 0.05, 0.04, 0.02, 0.01], 15) * rng.uniform(0.5, 1.5, 120)
    tables = {}
    for way in ("gradcam", "hirescam"):
        scored = pd.DataFrame({"hit": (rng.random(120) < area).astype(float), "chance": area, "iou": 0.1, "iobb": 0.1})
        tables[way] = localisation.table(wanted, scored, replicates=2)
    table = pd.concat(rows.assign(method=way) for way, rows in localisation.adjusted(tables).items())
    methods = [sections._method(way, rows, None) for way, rows in table.groupby("method", sort=False)]
    return "Shown to be better than a random point for" in report.headline_pointing({"methods": methods})


def runs_differ(seed: int) -> bool:
    """ "The AUC of … is higher on these films": two equal runs on the comparison page, by their means."""
    films, *said = study(seed, readers=2)
    return intervals.difference(*_boots(films, said)).p <= page.SURE


def findings_differ(seed: int) -> bool:
    """ "Single findings with a higher AUC over patients": the same, for single findings."""
    films, *said = study(seed, readers=2)
    return bool((summary.gain(films, *said, replicates=2)["p_holm"][:-1] <= page.SURE).any())


def stage_harmed(seed: int) -> bool:
    """ "Stage … lowered the validation AUC", or helped: five stages that change nothing, tested as in the report."""
    films, *said = study(seed, readers=5)
    boots = _boots(films, said)
    steps = [intervals.difference(now, was) for was, now in pairwise(boots)]
    table = pd.DataFrame(
        {"stage": range(1, 6), "groups": "fc", "difference": [np.nan, *(step.value for step in steps)]}
    )
    for prefix in ("", "val_"):
        table[f"{prefix}difference"] = table["difference"]
        table[f"{prefix}difference_low"] = [np.nan, *(step.low for step in steps)]
        table[f"{prefix}difference_high"] = [np.nan, *(step.high for step in steps)]
        table[f"{prefix}p_holm"] = intervals.holm(np.array([np.nan, *(step.p for step in steps)]))
    return any(row["on_val"] in ("better", "worse") for row in sections.stages(table))


SENTENCES: dict[str, Callable[[int], bool]] = {
    "the interval of the mean leaves the truth out": interval,
    "read better or less well than the others, true AUC 0.80": better_than_others,
    "read better or less well than the others, true AUC 0.95": lambda seed: better_than_others(seed, 2.4),
    "read better than by guessing": better_than_guessing,
    "mean AUC lower or higher in a group, true AUC 0.80": groups_differ,
    "mean AUC lower or higher in a group, true AUC 0.95": lambda seed: groups_differ(seed, 2.4),
    "a single finding differs between groups": finding_differs,
    "its mean AUC may come from telling AP from PA": reads_the_view,
    "shown to point better than blind": points,
    "one run reads better than another": runs_differ,
    "a single finding is read better by one run than another": findings_differ,
    "a stage harmed or helped": stage_harmed,
}


def sentences(studies: int = STUDIES) -> list[Row]:
    """How often each sentence is wrong, one row each."""
    where = f"simulated studies of {PATIENTS} patients with 2.9 films each on average, {REPLICATES} resamples where any"
    found = {name: [wrong(seed) for seed in range(studies)] for name, wrong in SENTENCES.items()}
    return [
        Row(f"null: {name}", round(100 * float(np.mean(errors)), 2), "%", target="<= 5 %", n=studies,
            spread=round(100 * float(np.std(errors)) / studies**0.5, 2), conditions=f"{where}; spread: standard error")
        for name, errors in found.items()
    ]  # fmt: skip


def _reading(films: pd.DataFrame, said: np.ndarray) -> str:
    known = _known(films)
    table = pd.DataFrame({"finding": LABELS, "auc": metrics.auc_per_label(known, said)})
    table = table.join(summary.against(films, said))
    return report.headline_findings(table.sort_values("auc", ascending=False).to_dict("records"))


def _boots(films: pd.DataFrame, said: list[np.ndarray]) -> list[intervals.Bootstrap]:
    known, how = _known(films), {"replicates": REPLICATES, "precision": False}
    return [intervals.bootstrap(known, one, films["patient"].to_numpy(), **how) for one in said]


def _known(films: pd.DataFrame) -> np.ndarray:
    return films[list(LABELS)].to_numpy()


def _chance(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(2 - scores))


TRUTH = float(norm.cdf(1.2 / np.sqrt(2)))
"""AUC of the readers of ``study``, 0.802: scores with and without a finding are normal, 1.2 deviations apart."""

BENCHES: tuple[Callable[[], Any], ...] = (sentences,)
