"""Tables and figures of a test that need predictions only, saved in the run's folder under the names the report reads.

``06_evaluation`` draws these figures one by one. The mean of several runs, which has no network of its own, has them
all from ``write``. A figure's function saves it with its numbers and leaves it open, so that a notebook can show it.
"""

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from cxrlib import labels, paths
from cxrlib.data import records, splits
from cxrlib.data.store import Store
from cxrlib.evaluation import calibration, subgroups, summary, thresholds
from cxrlib.plots import common, results

GRID = (3, 5)
"""Rows and columns of a figure with a panel for each of the 15 labels."""

WIDE = 11.4
"""Width of a figure of several panels, in inches."""


def roc(home: paths.Run, films: pd.DataFrame, probabilities: np.ndarray, table: pd.DataFrame, *, seed: int = 0):
    """Draw ``roc_test``: the ROC curve of each label with its band. Returns the points.

    films: N test films as from ``records.read``; probabilities (N, 15); table: ``summary.auc`` of them.
    """
    points = results.roc_points(records.label_matrix(films), probabilities, films["patient"].to_numpy(), seed=seed)
    fig, axes = plt.subplots(*GRID, figsize=(WIDE, 7.4))
    results.roc_grid(points, axes, table)
    common.save(fig, home.figures / "roc_test", points)
    return points


def precision(home: paths.Run, films: pd.DataFrame, probabilities: np.ndarray, table: pd.DataFrame, *, seed: int = 0):
    """Draw ``pr_test``: precision over recall of each label with its band. Returns the points; arguments as ``roc``."""
    points = results.pr_points(records.label_matrix(films), probabilities, films["patient"].to_numpy(), seed=seed)
    fig, axes = plt.subplots(*GRID, figsize=(WIDE, 7.4))
    results.pr_grid(points, axes, table)
    common.save(fig, home.figures / "pr_test", points)
    return points


def forest(home: paths.Run, table: pd.DataFrame) -> None:
    """Draw ``auc_test``: the AUC of each label with its interval; table as ``summary.auc``."""
    fig, ax = plt.subplots(figsize=(8, 5))
    results.forest(table, ax)
    common.save(fig, home.figures / "auc_test", table)


SHOWN = ("as it came", "calibrated")
"""Versions of the probabilities that the report shows."""


def reliability(home: paths.Run, films: pd.DataFrame, ways: Mapping[str, np.ndarray]) -> None:
    """Draw ``reliability``: observed over predicted frequency of each label, before and after calibration."""
    points = results.reliability_points(records.label_matrix(films), {name: ways[name] for name in SHOWN})
    fig, axes = plt.subplots(*GRID, figsize=(WIDE, 7.6), layout="constrained")
    results.reliability_grid(points, axes)
    common.save(fig, home.figures / "reliability", points)


def judged(home: paths.Run, table: pd.DataFrame) -> None:
    """Draw ``thresholds``: what each rule gives on the test films; table as ``Decisions.judge``."""
    fig, axes = plt.subplots(1, 3, figsize=(WIDE, 4.6))
    results.thresholds(table, axes)
    common.save(fig, home.figures / "thresholds", table)


def groups(home: paths.Run, table: pd.DataFrame) -> None:
    """Draw ``subgroups``: the mean AUC of each group of patients; table as ``subgroups.auc``."""
    fig, ax = plt.subplots(figsize=(8, 7.4))
    results.groups(table, ax)
    common.save(fig, home.figures / "subgroups", table)


def gaps(home: paths.Run, table: pd.DataFrame) -> None:
    """Draw ``gaps``: mean differences between groups; table as ``subgroups.gaps``."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDE, 4.8), layout="constrained")
    results.gaps(table, axes)
    common.save(fig, home.figures / "gaps", table[table["finding"].str.startswith("mean of")])


def gaps_by_finding(home: paths.Run, table: pd.DataFrame) -> None:
    """Draw ``gaps_by_finding``: differences of single findings between the plain groups; table as for ``gaps``."""
    plain = table[table["kind"].isin(["sex", "age", "view"])]
    fig, axes = plt.subplots(1, 4, figsize=(WIDE, 4.2))
    results.gaps_by_finding(plain, axes)
    common.save(fig, home.figures / "gaps_by_finding", plain)


def shortcut(home: paths.Run, table: pd.DataFrame) -> None:
    """Draw ``view_shortcut``: how much AUC may come from the view position; table as ``subgroups.view_shortcut``."""
    fig, ax = plt.subplots(figsize=(8, 4.6))
    results.shortcut(table, ax)
    common.save(fig, home.figures / "view_shortcut", table)


def published(home: paths.Run, table: pd.DataFrame, images: pd.Series) -> None:
    """Draw ``published``: the run among published results, or why it cannot be compared with them.

    table: ``summary.auc``; images: names of the test films.
    """
    beside, why = summary.beside_published(table, images, home.name)
    fig, ax = plt.subplots(figsize=(8, 6.4 if not why else 1.4))
    results.published(beside, ax, why)
    common.save(fig, home.figures / "published", beside)


def extremes(home: paths.Run, films: pd.DataFrame, probabilities: np.ndarray, pixels: Store) -> None:
    """Draw ``films_best`` and ``films_worst``: the films of highest and of lowest standing; both stay open."""
    for name, rows in zip(("films_best", "films_worst"), summary.extremes(films, probabilities), strict=True):
        captions = [f"{row.standing:.2f}: {labels.decode(row[list(labels.LABELS)])}" for _, row in rows.iterrows()]
        fig, axes = plt.subplots(1, 6, figsize=(WIDE, 2.7))
        common.films(pixels.pixels[pixels.rows(rows)], captions, axes)
        common.save(fig, home.figures / name, rows[["image", "patient", "standing"]])


STEPS = ("AUC", "curves", "calibration", "thresholds", "patient groups")
"""Steps of ``write``, in order."""


def write(
    home: paths.Run,
    parts: splits.Parts,
    on_val: np.ndarray,
    on_test: np.ndarray,
    *,
    pixels: Store,
    gamma: float = 0.0,
    seed: int = 0,
    watch: Callable[[str], None] = lambda step: None,
    **made_on: int | str,
) -> thresholds.Decisions:
    """Write all tables and figures of a test from its predictions, as ``06_evaluation`` does.

    on_val (M, 15) and on_test (N, 15): probabilities of the films of ``parts.val`` and ``parts.test``; pixels: their
    store. gamma: of the focal loss behind them, 0 for another loss. Calibration and thresholds are chosen on validation
    and returned; made_on as for ``thresholds.fit_decisions``. ``watch`` is called with the name of each of ``STEPS``.
    """
    steps = iter(STEPS)
    watch(next(steps))
    films, known = parts.test, records.label_matrix(parts.test)
    patients = films["patient"].to_numpy()
    table = summary.auc(films, on_test, seed=seed)
    _write(home, "auc_test", table)
    _write(home, "overall", summary.overall(table, films, on_test, seed=seed))
    watch(next(steps))
    _closed(roc, home, films, on_test, table, seed=seed)
    _closed(forest, home, table)
    _closed(precision, home, films, on_test, table, seed=seed)
    watch(next(steps))
    answers = records.label_matrix(parts.val)
    made = thresholds.fit_decisions(answers, on_val, "platt", gamma=gamma, **made_on)
    ways = dict(zip(SHOWN, (on_test, made.calibration(on_test)), strict=True))
    scored = {name: calibration.scores(known, read, patients, seed=seed) for name, read in ways.items()}
    _write(home, "calibration", pd.concat([rows.assign(probabilities=name) for name, rows in scored.items()]))
    _closed(reliability, home, films, ways)
    watch(next(steps))
    results_of_rules = made.judge(known, on_test, patients, seed=seed)
    _write(home, "thresholds", results_of_rules)
    _closed(judged, home, results_of_rules)
    watch(next(steps))
    _write_groups(home, films, on_test, made, seed)
    _closed(published, home, table, films["image"])
    _closed(extremes, home, films, on_test, pixels)
    return made


def _write_groups(
    home: paths.Run, films: pd.DataFrame, probabilities: np.ndarray, made: thresholds.Decisions, seed: int
) -> None:
    """Tables and figures by sex, age and view position."""
    measured = subgroups.measure(films, probabilities, made.calls(probabilities, "youden"), seed=seed)
    by_group, between = subgroups.auc(measured), subgroups.gaps(measured)
    by_view = subgroups.view_shortcut(films, probabilities, seed=seed)
    for name, table in (("subgroups", by_group), ("gaps", between), ("view_shortcut", by_view)):
        _write(home, name, table)
    _closed(groups, home, by_group)
    _closed(gaps, home, between)
    _closed(gaps_by_finding, home, between)
    _closed(shortcut, home, by_view)


def _write(home: paths.Run, name: str, table: pd.DataFrame) -> None:
    paths.write_csv(home.tables / f"{name}.csv", table)


def _closed(draw, *values, **options) -> None:
    """Draw a figure and close it: nobody looks at it here."""
    open_before = {*plt.get_fignums()}
    draw(*values, **options)
    for number in {*plt.get_fignums()} - open_before:
        plt.close(number)
