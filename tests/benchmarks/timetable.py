"""What a rehearsal took, step by step: read from its diary, from the run's ``run.json`` and the stages' histories.

The diary is a dict that outlives a rehearsal that is cut off: the ``steps`` before the notebooks, each with seconds,
films and whether a go at it was ``killed``; peaks of memory in bytes by step (``cpu``, ``gpu``); and for every notebook
its ``goes``, each with started, state, seconds (None where it was killed) and the fingerprint of what it made.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cxrlib import paths
from tests.benchmarks import memory
from tests.benchmarks.rows import Row

DRAWING, STORING = "drawing the films", "building the store"
STEPS = (DRAWING, STORING)

LOST = "the time of a killed go is lost"


@dataclass(frozen=True)
class Step:
    """A line of the table: seconds, films gone through, peaks in bytes; None where that is not known or not asked.

    ``part`` is the notebook that the step is a part of, "" for a step of its own.
    """

    name: str
    seconds: float | None = None
    films: int | None = None
    cpu: int | None = None
    gpu: int | None = None
    part: str = ""
    note: str = ""

    @property
    def rate(self) -> float | None:
        """Films per second."""
        return self.films / self.seconds if self.films and self.seconds else None


def note_goes(diary: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Take over from ``run.json`` how long its notebooks took, those that were stopped or killed included.

    What made a notebook's results is its fingerprint: where that has changed, earlier goes were for something else.
    """
    for name, entry in record.get("notebooks", {}).items():
        goes = [go for go in diary["goes"].get(name, []) if go["fingerprint"] == entry["fingerprint"]]
        go = {key: entry.get(key) for key in ("started", "state", "seconds", "fingerprint")}
        diary["goes"][name] = [*(other for other in goes if other["started"] != go["started"]), go]


def steps(diary: Mapping[str, Any], home: paths.Run) -> list[Step]:
    """All steps in their order, the training of a stage below its notebook."""
    found = []
    for name in STEPS:
        own = diary["steps"].get(name, {})
        note = LOST if own.get("killed") else ""
        found.append(Step(name, own.get("seconds"), own.get("films"), **_peaks(diary, name), note=note))
    for name, goes in sorted(diary["goes"].items()):
        known = [go["seconds"] for go in goes if go["seconds"] is not None]
        found.append(Step(name, sum(known) if known else None, **_peaks(diary, name), note=_note(goes)))
        found += _training(home, name)
    return found


def _peaks(diary: Mapping[str, Any], name: str) -> dict[str, int | None]:
    return {kind: diary[kind].get(name) for kind in ("cpu", "gpu")}


def _note(goes: list[dict]) -> str:
    words = [] if goes[-1]["state"] == "done" else [goes[-1]["state"]]
    if len(goes) > 1:
        words.append(f"in {len(goes)} goes")
    if any(go["seconds"] is None for go in goes):
        words.append(LOST)
    return ", ".join(words)


def _training(home: paths.Run, name: str) -> Iterator[Step]:
    """The passes over the training films that a stage's notebook made, without validation."""
    history = home.root / name.partition("_")[2] / "history.csv"
    if not history.is_file():
        return
    with history.open(encoding="utf-8", newline="") as file:
        epochs = [(float(row["seconds"]), float(row["images_per_s"])) for row in csv.DictReader(file)]
    if epochs:
        words = f"training, {len(epochs)} epoch{'s' * (len(epochs) > 1)}"
        seconds, films = sum(took for took, _ in epochs), sum(took * rate for took, rate in epochs)
        yield Step(words, seconds, round(films), part=name)


def total(found: list[Step]) -> Step:
    """All of it together: seconds added up, the highest peaks."""
    peaks = {kind: max((getattr(step, kind) or 0 for step in found), default=0) or None for kind in ("cpu", "gpu")}
    return Step("in all", sum(step.seconds or 0.0 for step in found if not step.part), **peaks)


HEADER = ("step", "seconds", "films", "films/s", "CPU GB", "GPU GB", "")


def text(found: list[Step], disk: Mapping[str, int]) -> str:
    """The table for people; ``disk`` has bytes by what takes them."""
    lines = [HEADER, *(_cells(step) for step in [*found, total(found)])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    said = ["  ".join(cell.rjust(width) if 0 < i < len(HEADER) - 1 else cell.ljust(width)
                      for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in lines]  # fmt: skip
    rule = "─" * max(map(len, said))
    taken = ", ".join(f"{what} {memory.words(size)}" for what, size in disk.items())
    return "\n".join([said[0], rule, *said[1:-1], rule, said[-1], f"On disk: {taken}"])


def _cells(step: Step) -> tuple[str, ...]:
    name = f"  {step.name}" if step.part else step.name
    digits = 1 if (step.rate or 0) < 100 else 0
    sizes = [_number(size and size / 1e9, 2) for size in (step.cpu, step.gpu)]
    return (name, _number(step.seconds, 1), _number(step.films, 0), _number(step.rate, digits), *sizes, step.note)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def rows(found: list[Step], disk: Mapping[str, int], what: str, films: int, conditions: str) -> list[Row]:
    """The same for ``results.csv``; ``what`` says which rehearsal, so that a small one leaves a large one's rows."""
    made = []
    for step in [*found, total(found)]:
        name = f"rehearsal: {what}: " + (f"{step.part}, training" if step.part else step.name)
        if step.seconds is not None:
            made.append(Row(name, round(step.seconds, 1), "s", n=step.films or films, conditions=conditions))
        if step.rate is not None:
            made.append(Row(f"{name}, speed", round(step.rate, 1), "films/s", n=step.films, conditions=conditions))
    everything = total(found)
    sizes = {"peak memory": everything.cpu, "peak memory of the GPU": everything.gpu}
    sizes |= {f"{name} on disk": size for name, size in disk.items()}
    made += [Row(f"rehearsal: {what}: {name}", round(size / 1e9, 3), "GB", n=films, conditions=conditions)
             for name, size in sizes.items() if size]  # fmt: skip
    return made
