"""The whole chain at full size on drawn films, timed: ``python -m tests.benchmarks.rehearsal --films 20000``.

What one runs on a new machine before the real night. It draws films in the dataset's complete layout, builds the
store, runs all notebooks as ``cxr run`` does, and tells the seconds and films/s of every step, the peaks of memory, and
what lies on the disk. The network starts from random weights, which costs what any others do. Nothing that is done is
done again: stopped or killed, the same command goes on, and when all is done it prints the table again. Its rows join
``outputs/bench/results.csv``.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cxrlib import UserError, paths, provenance
from cxrlib.workbook import settings
from tests.benchmarks import memory, timetable
from tests.benchmarks.timetable import DRAWING, STORING

# What is heavy is imported where it is used: the processes that draw and decode import this file too.

RUN_BYTES = 2.5e9
"""What a run takes: per stage two checkpoints of 94 MB and the optimizer's moments, while it trains two states."""

RARE = 0.12
"""Least share of films with each finding in a small rehearsal, which else would have none to validate on."""
ENOUGH = 10_000
"""Films from which on findings are as frequent as in the dataset."""


@dataclass(frozen=True)
class Plan:
    """A rehearsal: its films, and the settings of its run. ``more`` are further settings by name, as text."""

    films: int = 20_000
    size: int = 224
    batch_size: int = 128
    schedule: str = "modern"
    weights: str = "none"
    seed: int = 0
    workers: int | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return paths.outputs() / f"rehearsal-films-{self.films}-{self.size}-{self.seed}"

    @property
    def name(self) -> str:
        """Name of the run: settings that are not the usual ones make another."""
        usual = Plan()
        names = ("batch_size", "weights", "seed")
        other = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(usual, name)}
        mark = f"-{provenance.digest({**other, **self.more})[:6]}" if other or self.more else ""
        return f"rehearsal-{self.films}-{self.size}-{self.schedule}{mark}"

    @property
    def home(self) -> paths.Run:
        return paths.Run(self.name)

    @property
    def notes(self) -> Path:
        """Folder of the diary; not the run's own, whose new files count as results of its notebooks."""
        return paths.outputs() / "bench" / self.name

    @property
    def settings(self) -> dict[str, settings.Scalar]:
        own = {name: getattr(self, name) for name in ("size", "batch_size", "schedule", "weights", "seed")}
        return {"data": str(self.data), **own, **self.more}

    def words(self) -> str:
        said = [f"{name} {value}" for name, value in self.settings.items() if name not in ("data", "size")]
        return f"{self.films:,} films of {self.size} px, {', '.join(said)}"

    def places(self) -> dict[str, list[Path]]:
        """Where films, store and run lie, or will."""
        stores = paths.outputs() / "stores"
        return {"films": [self.data], "store": sorted(stores.glob(f"{self.data.name}-*-{self.size}")),
                "run": [self.home.root]}  # fmt: skip

    def on_disk(self) -> dict[str, int]:
        return {what: sum(map(memory.on_disk, folders)) for what, folders in self.places().items()}

    def notebooks(self) -> dict[str, dict]:
        """How the run's notebooks went, as ``run.json`` has it; empty where there is none."""
        with suppress(UserError):
            return paths.read_json(self.home.run_json).get("notebooks", {})
        return {}

    def chained(self) -> bool:
        """Whether the chain has been run to its end, so that running it again takes no more room."""
        found = self.notebooks()
        return all(found.get(book.stem, {}).get("state") == "done" for book in settings.chain())

    def needs(self) -> dict[str, float]:
        """Bytes that each of them will take when it is whole."""
        from cxrlib.phantom import phantom

        return {"films": phantom.room(self.films, self.size), "store": self.films * self.size**2, "run": RUN_BYTES}


def check(plan: Plan) -> None:
    """Raise UserError for settings that the chain would refuse, before films are drawn for it."""
    settings.judge(settings.chain(), {name: value for name, value in plan.settings.items() if name != "data"})


def announce(plan: Plan) -> None:
    """Say what is going to be done and what that needs. Raises UserError where the disk has no room for it."""
    there, needs = plan.on_disk(), plan.needs()
    more = {what: max(0.0, need - there[what]) for what, need in needs.items()}
    more |= {"films": 0.0} if plan.data.exists() else {}
    more |= {"run": 0.0} if plan.chained() else {}
    free = shutil.disk_usage(paths.outputs()).free
    steps = {"films": "draw the films, in twelve folders", "store": "decode them into a store", "run": "run the chain"}
    print(f"Rehearsal: {plan.words()}; {len(_cores())} cores, {memory.whole() / 1e9:.0f} GB of memory")
    for what, step in steps.items():
        begun = f", of which {memory.words(there[what])} are there" if there[what] else ""
        print(f"  {step:<36} {memory.words(needs[what]):>8}{begun}")
    wanted, left = memory.words(sum(more.values())), memory.words(free)
    print(f"Needs {wanted} more in {paths.outputs()}, where {left} are free.")
    print("What is done is not done again: stop it when you like, the same command goes on.", flush=True)
    if sum(more.values()) > free:
        raise UserError(
            f"{paths.outputs()}: the rehearsal needs {wanted} more and the disk has {left} free; make room, "
            "take fewer films (make rehearsal FILMS=2000), or put CXR_OUTPUTS on another disk"
        )


class Rehearsal:
    """A rehearsal under way; ``diary`` is kept on the disk as it goes."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.file = plan, plan.notes / "diary.json"
        self.diary = {"steps": {}, "goes": {}, "cpu": {}, "gpu": {}}
        with suppress(UserError):
            self.diary |= paths.read_json(self.file)
        self.doing = ""
        self.peaks = memory.Peaks(self.step, ended=self.keep)
        self._one = threading.RLock()
        self.keep()  # of a chain that was killed

    def run(self) -> None:
        """Draw, store and run the chain, as far as that is not done."""
        try:
            with self.peaks:
                self._draw()
                self._store()
                self._chain()
        finally:
            self.keep()

    def step(self) -> str:
        """What is being done: drawing, storing, or the notebook that ``run.json`` says is running; "" between them."""
        if self.doing:
            return self.doing
        running = [name for name, entry in self.plan.notebooks().items() if entry.get("state") == "running"]
        return running[-1] if running else ""

    def keep(self) -> None:
        """Write the diary, with the peaks of memory and with what ``run.json`` says by now."""
        with self._one:
            for kind, peaks in (("cpu", self.peaks.cpu), ("gpu", self.peaks.gpu)):
                kept = self.diary[kind]
                kept |= {step: max(peak, kept.get(step, 0)) for step, peak in list(peaks.items())}
            timetable.note_goes(self.diary, {"notebooks": self.plan.notebooks()})
            paths.write_json(self.file, self.diary)

    def _draw(self) -> None:
        from cxrlib.phantom import phantom

        plan = self.plan
        for half in plan.data.parent.glob(f".{plan.data.name}.*"):  # of one that was killed: we alone are here
            shutil.rmtree(half, ignore_errors=True)
        if not plan.data.exists():
            with self._timed(DRAWING, goes_on=False):
                least = 0.0 if plan.films >= ENOUGH else RARE
                phantom.write(plan.data, plan.films, plan.size, plan.seed, least, folders=12, workers=plan.workers,
                              progress=True)  # fmt: skip

    def _store(self) -> None:
        from cxrlib.data import records, store

        films = records.read(self.plan.data)
        if not (store.default_folder(films, self.plan.size) / store.MANIFEST).exists():
            with self._timed(STORING, goes_on=True):
                store.build(films, self.plan.size, workers=self.plan.workers)

    def _chain(self) -> None:
        from cxrlib.workbook import pipeline

        pipeline.run(self.plan.name, self.plan.settings)

    @contextmanager
    def _timed(self, step: str, *, goes_on: bool) -> Iterator[None]:
        """Time a step into the diary. One that ``goes_on`` where it was cut off adds to what it took before."""
        before = self.diary["steps"].get(step, {}) if goes_on else {}
        entry = {"seconds": 0.0, "films": None, "killed": False} | before
        entry["killed"] |= entry.get("open", False)
        self._enter(step, {**entry, "open": True})
        began, self.doing = time.monotonic(), step
        try:
            yield
            entry["films"] = self.plan.films
        finally:
            self.doing = ""
            took = entry["seconds"] + time.monotonic() - began
            self._enter(step, {**entry, "seconds": round(took, 2), "open": False})

    def _enter(self, step: str, entry: dict) -> None:
        with self._one:
            self.diary["steps"][step] = entry
            paths.write_json(self.file, self.diary)


def rehearse(plan: Plan) -> None:
    """Do all of a plan and print its table, also where it was stopped or failed. Raises UserError as the chain does."""
    try:
        paths.outputs().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {paths.outputs()}: {error.strerror}; put CXR_OUTPUTS elsewhere") from None
    check(plan)
    announce(plan)
    with paths.lock_folder(plan.notes):
        under_way = Rehearsal(plan)
        done = False
        try:
            under_way.run()
            done = True
        finally:
            found, disk = timetable.steps(under_way.diary, plan.home), plan.on_disk()
            print(f"\n{plan.words()}{'' if done else ', as far as it came'}\n{timetable.text(found, disk)}", flush=True)
    print(_merge(plan, found, disk))


def _merge(plan: Plan, found: list[timetable.Step], disk: Mapping[str, int]) -> Path:
    from tests.benchmarks import rows

    device = paths.read_json(plan.home.run_json).get("device", "")
    conditions = f"{plan.words()}; {device}; {len(_cores())} cores; {rows.machine()}"
    what = plan.name.removeprefix("rehearsal-")
    return rows.merge(timetable.rows(found, disk, what, plan.films, conditions))


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def read(words: list[str]) -> Plan:
    """The plan that the command line asks for."""
    usual = Plan()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.rehearsal", description=__doc__)
    parser.add_argument("--films", type=int, default=usual.films, help="films to draw; 112120 are all of the dataset")
    parser.add_argument("--size", type=int, default=usual.size, help="their side in pixels")
    parser.add_argument("--batch_size", type=int, default=usual.batch_size, help="films per training step")
    parser.add_argument("--schedule", default=usual.schedule, help="modern, seed, control or scratch")
    parser.add_argument("--weights", default=usual.weights, help="none, a torchvision name, or a file")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--workers", type=int, help="processes that draw and decode; default: one per core")
    parser.add_argument("-p", dest="more", metavar="NAME=VALUE", action="append", default=[],
                        help="any parameter of a notebook, as cxr run takes it: epochs=1, processes=8")  # fmt: skip
    given = vars(parser.parse_args(words))
    return Plan(**{**given, "more": settings.parse(given["more"])})


def main(words: list[str] | None = None) -> int:
    try:
        rehearse(read(sys.argv[1:] if words is None else words))
    except UserError as error:
        print(f"rehearsal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
