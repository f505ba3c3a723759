"""A measured figure as a row of ``outputs/bench/results.csv``, and how ours and the baseline are timed in turns."""

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cxrlib import paths

# torch and cv2 are imported where they are used: processes that a bench starts import this file too.


@dataclass(frozen=True)
class Row:
    """``ratio`` is how many times better than ``baseline``; ``spread`` the quartile distance as a share of the median.

    ``target`` is in words such as ">= 100 x" or "<= 1.5 s"; "" stands for no figure. ``n`` counts what one value is of.
    """

    name: str
    value: float | str
    unit: str
    baseline: float | str = ""
    ratio: float | str = ""
    target: str = ""
    n: int | str = ""
    spread: float | str = ""
    conditions: str = ""


WALL, CPU = time.perf_counter, time.process_time
"""Clocks: time passed, and processor time of this process with all its threads, which other work does not add to."""


def in_turns(rounds: int, clock: Callable[[], float] = WALL, **ways: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds that each way takes, timed in turns, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # once for the caches
    for _ in range(rounds):
        for name, way in ways.items():
            started = clock()
            way()
            seconds[name].append(clock() - started)
    return seconds


def rate(name: str, ours: list[float], per: int, baseline: list[float], baseline_per: int, target: str, conditions: str,
         unit: str = "films/s") -> Row:  # fmt: skip
    """A row that compares two speeds: ``per`` films in each of ``ours`` seconds, against the baseline's."""
    ratios = [per / a / (baseline_per / b) for a, b in zip(ours, baseline, strict=True)]
    value, base = per / statistics.median(ours), baseline_per / statistics.median(baseline)
    return Row(name, round(value, 1), unit, round(base, 1), round(statistics.median(ratios), 2), target, per,
               spread(ratios), f"{conditions}; {len(ours)} alternating runs; {machine()}")  # fmt: skip


def spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return round((high - low) / middle, 3)


def machine() -> str:
    import torch

    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{torch.backends.cpu.get_cpu_capability()} {platform.machine()}, torch {torch.__version__}{load}"


@contextmanager
def one_core() -> Iterator[None]:
    """One processor core and one thread for everything inside."""
    import cv2
    import torch

    cores, threads, cv_threads = os.sched_getaffinity(0), torch.get_num_threads(), cv2.getNumThreads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)


def results() -> Path:
    return paths.outputs() / "bench" / "results.csv"


def merge(rows: list[Row]) -> Path:
    """Write rows into the results, each in the place of an earlier one of its name."""
    path, names = results(), [field.name for field in fields(Row)]
    table = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            table = {row["name"]: row for row in csv.DictReader(file)}
    table |= {row.name: asdict(row) for row in rows}
    with paths.atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(table.values())
    return path
