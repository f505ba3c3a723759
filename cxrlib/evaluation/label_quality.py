"""Label quality: the mined labels against radiologists', the network against both, and labels that jump to and fro.

All intervals are by patient. Films whose label is unknown are left out of the number in question.
"""

import numpy as np
import pandas as pd

from cxrlib import labels as order
from cxrlib import metrics
from cxrlib.data.radiologists import GROUPS
from cxrlib.evaluation import delong, intervals, thresholds

LEAST = 10
"""Films of each class that a threshold needs, and patients of each class that an interval needs."""

AGREEMENT = ("ppv", "sensitivity", "specificity", "agree", "kappa")
JUMPS = (
    *("finding", "patients", "triples", "gap", "low", "high"),
    *("independent", "changes", "changes_independent"),
)
FEWEST = 3
"""Films of a patient from which on a label can jump to and fro."""


def agreement(found: pd.DataFrame, *, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mined labels against the radiologists', per set and finding: films as from ``radiologists.beside``.

    Columns set, finding, films, patients, positives (the radiologists'), mined (positives of the mined label), then
    each with _low and _high: ppv and sensitivity (of the mined label, the radiologists taken as the truth),
    specificity, agree (share of films with equal labels), kappa (Cohen 1960: 1 is perfect, 0 is chance).
    """
    rows = []
    for part, group in found.groupby("set", sort=True):
        for name in GROUPS:
            read, mined = group[f"read_{name}"].to_numpy(), group[f"mined_{name}"].to_numpy()
            known = np.isfinite(read) & np.isfinite(mined)
            read, mined, patients = read[known] == 1, mined[known] == 1, group["patient"].to_numpy()[known]
            row = {"set": part, "finding": name, "films": len(read), "patients": len(np.unique(patients))}
            row |= {"positives": int(read.sum()), "mined": int(mined.sum())}
            rows.append(row | _agreement(read, mined, patients, replicates, seed))
    ends = [f"{name}{end}" for name in AGREEMENT for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["set", "finding", "films", "patients", "positives", "mined", *ends])


def _agreement(read: np.ndarray, mined: np.ndarray, patients: np.ndarray, replicates: int, seed: int) -> dict:
    shares = {
        "ppv": (read & mined, mined),
        "sensitivity": (read & mined, read),
        "specificity": (~read & ~mined, ~read),
        "agree": (read == mined, np.ones_like(read)),
    }
    parts, wholes = (np.stack([pair[i] for pair in shares.values()], 1).astype(np.float64) for i in (0, 1))
    ends = (
        intervals.ratio(parts, wholes, patients, replicates=replicates, seed=seed)
        if len(read)
        else np.full((3, 4), np.nan)
    )
    row = {}
    for name, value, low, high in zip(shares, *ends, strict=True):
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    cells = np.stack([read & mined, read, mined], 1).astype(np.float64)
    value, low, high = _kappa(cells, patients, replicates, seed)
    return row | {"kappa": value, "kappa_low": low, "kappa_high": high}


def _kappa(cells: np.ndarray, patients: np.ndarray, replicates: int, seed: int) -> tuple[float, float, float]:
    """Cohen's kappa with its interval; cells (N, 3): both positive, radiologists positive, mined positive."""
    if not len(cells):
        return np.nan, np.nan, np.nan
    whole = np.ones_like(cells)
    drawn = intervals.resampled_ratio(cells, whole, *intervals.draw_resamples(patients, replicates, seed))

    def kappa(both, one, other):
        observed, chance = 1 - one - other + 2 * both, one * other + (1 - one) * (1 - other)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)

    count = len(np.unique(patients))
    low, high = intervals.percentiles(kappa(*drawn.T), count) if count >= LEAST else (np.nan, np.nan)
    return float(kappa(*cells.mean(0))), float(low), float(high)


def group_scores(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Probability of each of the radiologists' findings from (N, 15) calibrated probabilities: {finding: (N,)}.

    That of a group is 1 - Π (1 - p) over its labels: the probability of any of them if they were independent. They
    are not, so it is too high; its ranking is what is used.
    """
    return {
        name: 1 - np.prod(1 - probabilities[:, [order.column(label) for label in members]], 1)
        for name, members in GROUPS.items()
    }


def against_both(found: pd.DataFrame, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """AUC of the network on the same films against the mined and against the radiologists' labels, and the difference.

    ``found`` as from ``radiologists.beside``, ``scores`` {finding: (N,)} of its rows. Columns finding, films,
    positives_read, positives_mined, auc_read, auc_mined each with _low and _high, difference (radiologists minus
    mined) with low, high and p, p_holm, reason. DeLong by patient: the same films are in both numbers, but in other
    classes, so each patient's contributions to both are subtracted (``delong.less``), which a bootstrap would only
    approximate.
    """
    rows = []
    for name, values in scores.items():
        read, mined = found[f"read_{name}"].to_numpy(), found[f"mined_{name}"].to_numpy()
        known = np.isfinite(read) & np.isfinite(mined)
        ids = np.unique(found["patient"].to_numpy()[known], return_inverse=True)[1].ravel()
        rows.append({"finding": name, **_both(read[known], mined[known], values[known], ids)})
    table = pd.DataFrame(rows)
    table["p_holm"] = intervals.holm(table["p"].to_numpy(np.float64))
    return table


def _both(read: np.ndarray, mined: np.ndarray, scores: np.ndarray, ids: np.ndarray) -> dict:
    count = int(ids.max()) + 1 if len(ids) else 0
    row = {"films": len(read), "positives_read": int((read == 1).sum()), "positives_mined": int((mined == 1).sum())}
    estimates, reasons = {}, []
    for name, truth in (("read", read), ("mined", mined)):
        fewest = min((len(np.unique(ids[truth == value])) for value in (0, 1)), default=0)
        why = metrics.reason(truth) if len(truth) else "no films"
        if not why:
            estimates[name] = delong.auc(truth, scores, ids, count)
            interval = estimates[name].test()[:2] if fewest >= LEAST else (np.nan, np.nan)
        value = estimates[name].value if not why else np.nan
        low, high = np.clip(interval, 0, 1) if not why else (np.nan, np.nan)
        row |= {f"auc_{name}": value, f"auc_{name}_low": low, f"auc_{name}_high": high}
        if why or fewest < LEAST:
            label = "radiologists" if name == "read" else "mined labels"
            reasons.append(f"{label}: {why or f'{fewest} patients of a class, {LEAST} are needed'}")
    gap = delong.less(estimates["read"], estimates["mined"]) if len(estimates) == 2 else None
    low, high, p = gap.test() if gap and not reasons else (np.nan, np.nan, np.nan)
    value = gap.value if gap else np.nan
    return row | {"difference": value, "low": low, "high": high, "p": p, "reason": "; ".join(reasons)}


def choose_thresholds(
    found: pd.DataFrame, validation: pd.DataFrame, scores: dict[str, np.ndarray], whole: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Youden's threshold per finding from validation films: columns finding, threshold, basis, films.

    ``found``: the validation films that radiologists read, with their ``scores``; ``validation``: all films of the
    part, as from ``radiologists.with_mined``, with their scores ``whole``. From the radiologists' labels where these
    give ``LEAST`` films of each class, else from the mined labels of the whole part; NaN where neither does. ``basis``
    says which. The films that radiologists read are enriched; Youden's rule does not depend on how frequent a finding
    is.
    """
    rows = []
    for name in scores:
        row = {"finding": name, "threshold": np.nan, "basis": "too few films", "films": len(validation)}
        for truth, values, basis in (
            (found[f"read_{name}"].to_numpy(), scores[name], "radiologists"),
            (validation[f"mined_{name}"].to_numpy(), whole[name], "mined labels"),
        ):
            known = np.isfinite(truth)
            if min((truth[known] == 1).sum(), (truth[known] == 0).sum()) >= LEAST:
                chosen = thresholds.choose(truth[known][:, None], values[known][:, None])
                cut = chosen.set_index("rule")["threshold"]["youden"]
                row |= {"threshold": cut, "basis": basis, "films": int(known.sum())}
                break
        rows.append(row)
    return pd.DataFrame(rows)


def sides(
    found: pd.DataFrame, scores: dict[str, np.ndarray], cuts: pd.DataFrame, *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """With whom the network sides where mined label and radiologists differ, per finding.

    ``cuts`` as from ``choose_thresholds``. Columns finding, kind ("mined yes, radiologists no", "mined no, radiologists
    yes", "all"), films, share (of these films on which the network's call is the radiologists') with low and high.
    """
    rows = []
    for name, values in scores.items():
        read, mined = found[f"read_{name}"].to_numpy(), found[f"mined_{name}"].to_numpy()
        cut = cuts.set_index("finding")["threshold"][name]
        right = (values >= cut) == (read == 1)
        known = np.isfinite(read) & np.isfinite(mined)
        kinds = {
            "mined yes, radiologists no": known & (mined == 1) & (read == 0),
            "mined no, radiologists yes": known & (mined == 0) & (read == 1),
            "all": known & (mined != read),
        }
        wholes = np.stack(list(kinds.values()), 1).astype(np.float64)
        if len(found):
            parts, patients = wholes * right[:, None], found["patient"].to_numpy()
            ends = intervals.ratio(parts, wholes, patients, replicates=replicates, seed=seed)
        if not len(found) or np.isnan(cut):
            ends = np.full((3, 3), np.nan)
        for kind, films, value, low, high in zip(kinds, wholes.sum(0).astype(int), *ends, strict=True):
            rows.append({"finding": name, "kind": kind, "films": films, "share": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def differing(found: pd.DataFrame, scores: dict[str, np.ndarray], cuts: pd.DataFrame) -> pd.DataFrame:
    """Films on which mined label and radiologists differ, a row per film and finding, to look at.

    Columns image, patient, finding, mined, radiologists, probability (of the network), threshold, network (with whom it
    sides, "mined label" or "radiologists"; "" without a threshold).
    """
    columns = ["image", "patient", "finding", "mined", "radiologists", "probability", "threshold", "network"]
    rows = [pd.DataFrame(columns=columns)]
    for name, values in scores.items():
        read, mined = found[f"read_{name}"].to_numpy(), found[f"mined_{name}"].to_numpy()
        cut = cuts.set_index("finding")["threshold"][name]
        these = np.isfinite(read) & np.isfinite(mined) & (read != mined)
        if not these.any():
            continue
        side = np.where((values >= cut) == (read == 1), "radiologists", "mined label")
        table = found.loc[these, ["image", "patient"]].assign(finding=name, mined=mined[these].astype(int))
        table = table.assign(radiologists=read[these].astype(int), probability=values[these], threshold=cut)
        rows.append(table.assign(network=side[these] if np.isfinite(cut) else ""))
    return pd.concat(rows[1:] or rows, ignore_index=True)


CURVE = (
    *("rate", "mined", "network", "difference", "low", "high"),
    *("ppv_mined", "ppv_network", "ppv_difference", "ppv_low", "ppv_high"),
)


def beside_curve(
    found: pd.DataFrame, scores: dict[str, np.ndarray], *, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """The mined label as a point beside the network's ROC curve, both against the radiologists, per finding.

    Columns finding, rate (false-positive rate of the mined label), mined (its sensitivity), network (sensitivity of the
    network at the same false-positive rate), difference (network minus mined) with low and high; then at the mined
    label's own sensitivity ppv_mined, ppv_network and ppv_difference with ppv_low and ppv_high. On every resample of
    the patients the point, the curve and the differences are computed again. NaN, with the reason, where a class has
    fewer than ``LEAST`` patients. A PPV is that of these films, which are enriched.
    """
    rows = []
    for name, values in scores.items():
        read, mined = found[f"read_{name}"].to_numpy(), found[f"mined_{name}"].to_numpy()
        known = np.isfinite(read) & np.isfinite(mined)
        read, mined, these = read[known] == 1, mined[known] == 1, values[known]
        patients = found["patient"].to_numpy()[known]
        fewest = min((len(np.unique(patients[read == value])) for value in (True, False)), default=0)
        row = {"finding": name, "films": len(read), "patients": len(np.unique(patients)), "positives": int(read.sum())}
        if fewest < LEAST:
            reason = f"{fewest} patients of a class, {LEAST} are needed"
            rows.append({**row, **dict.fromkeys(CURVE, np.nan), "reason": reason})
            continue
        counts, ids = intervals.draw_resamples(patients, replicates, seed)
        weights = np.vstack([np.ones(len(read)), counts[ids].T])  # the first row is the films themselves
        rate, ours, network, ppv, ppv_network = _at_mined_point(read, mined, these, weights)
        gaps = np.stack([network - ours, ppv_network - ppv], 1)
        low, high = intervals.percentiles(gaps[1:], len(np.unique(patients)))
        numbers = (rate[0], ours[0], network[0], gaps[0, 0], low[0], high[0])
        numbers += (ppv[0], ppv_network[0], gaps[0, 1], low[1], high[1])
        rows.append(row | dict(zip(CURVE, map(float, numbers), strict=True)) | {"reason": ""})
    return pd.DataFrame(rows)


def _at_mined_point(read, mined, scores, weights) -> tuple[np.ndarray, ...]:
    """False-positive rate and sensitivity of the mined label, the network's sensitivity at that rate, the mined label's
    PPV, and the network's PPV at its sensitivity, (R,) each.

    weights (R, N): how often each film is in a resample. The network's ROC curve is joined by straight lines. The PPV
    is NaN where the mined label finds nothing.
    """
    positive, negative = weights * read, weights * ~read
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (negative * mined).sum(1) / negative.sum(1)
        sensitivity = (positive * mined).sum(1) / positive.sum(1)
        ranked = np.argsort(-scores, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(scores[ranked])), len(scores) - 1)  # ties are taken together
        false = np.cumsum(negative[:, ranked], 1)[:, ends] / negative.sum(1)[:, None]
        true = np.cumsum(positive[:, ranked], 1)[:, ends] / positive.sum(1)[:, None]
        false, true = (np.pad(column, ((0, 0), (1, 0))) for column in (false, true))
        network = np.array([np.interp(x, f, t) for x, f, t in zip(rate, false, true, strict=True)])
        just_below = sensitivity * (1 - 1e-9)  # of equal sensitivities the one with fewest false alarms
        alarms = np.array([np.interp(y, t, f) for y, f, t in zip(just_below, false, true, strict=True)])
        found = np.where(sensitivity > 0, sensitivity, np.nan) * positive.sum(1)
        ppv, ppv_network = (found / (found + x * negative.sum(1)) for x in (rate, alarms))
    return rate, sensitivity, network, ppv, ppv_network


def jumps(films: pd.DataFrame, *, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Labels that jump to and fro between a patient's films, per finding, in the order of follow-ups.

    Of three films of a patient in a row, the first and the last with the finding: the share in which the middle one
    lacks it. Columns finding, patients (with three films or more), triples, gap with low and high, independent (the
    same share if films had nothing to do with each other: one minus the finding's share), changes (share of two films
    in a row with different labels), changes_independent (2 p (1 - p)).
    """
    films = films.sort_values(["dataset", "patient", "follow_up"], kind="stable")
    ids = films.groupby(["dataset", "patient"], sort=False).ngroup().to_numpy()
    known = films[list(order.FINDINGS)].to_numpy(np.float64)  # (N, 14)
    often = np.bincount(ids)[ids] >= FEWEST
    ids, known = ids[often], known[often]
    if not len(ids):
        return pd.DataFrame(columns=JUMPS)
    same = ids[:-1] == ids[1:]
    three = same[:-1] & same[1:]
    a, b, c = known[:-2], known[1:-1], known[2:]
    wholes = (three[:, None] & (a == 1) & (c == 1) & np.isfinite(b)).astype(np.float64)
    parts = wholes * (b == 0)
    gap, low, high = intervals.ratio(parts, wholes, ids[:-2], replicates=replicates, seed=seed)
    pairs = same[:, None] & np.isfinite(known[:-1]) & np.isfinite(known[1:])
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = ((known[:-1] != known[1:]) & pairs).sum(0) / pairs.sum(0)
        share = np.nansum(known, 0) / np.isfinite(known).sum(0)
    return pd.DataFrame(
        {
            "finding": order.FINDINGS,
            "patients": len(np.unique(ids)),
            "triples": wholes.sum(0).astype(int),
            "gap": gap,
            "low": low,
            "high": high,
            "independent": 1 - share,
            "changes": changes,
            "changes_independent": 2 * share * (1 - share),
        }
    )


def sentence(curve: pd.DataFrame) -> str:
    """In words, whether the network reads better than the labels that it learnt from, for each finding."""
    words: list[str] = []
    for row in curve.itertuples():
        if np.isnan(row.difference):
            words.append(f"{row.finding}: undefined ({row.reason})")
            continue
        verdict = "no difference shown" if row.low <= 0 <= row.high else "better" if row.low > 0 else "worse"
        words.append(
            f"{row.finding}: finds {row.network:.0%} where the mined label finds {row.mined:.0%}, at equal false "
            f"alarms; {verdict} ({row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]). At the mined label's "
            f"sensitivity its PPV is {row.ppv_network:.2f}, the label's {row.ppv_mined:.2f}"
        )
    return "\n".join(words)
