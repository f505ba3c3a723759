"""Pipeline: the notebooks executed in order as one run, and what can be known before; the only caller of papermill.

Each notebook is executed into ``outputs/<run>/notebooks/``. A notebook that is unchanged (see ``run_record``) and whose
files are there is not executed again: the same call twice does nothing the second time, and a call after a failure
goes on there.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlib import UserError, disk, paths, provenance
from cxrlib.workbook import run_record, settings
from cxrlib.workbook.settings import Scalar

if TYPE_CHECKING:  # imported in the functions, since they are slow and a wrong setting should be reported at once
    from rich.console import Console

    from cxrlib.workbook import console as console_lines
    from cxrlib.workbook import kernels as kernel_rooms

FEATURES = "CXR_SHARED_FEATURES"
"""Environment variable that ``training.frozen`` reads; its import would load torch."""

USUAL = ("none", settings.REAL["weights"])
"""Starting weights that are not checked, which saves the import of PyTorch."""


def judge_weights(
    home: paths.Run, books: Iterable[Path], shares: Mapping[str, Mapping[str, Scalar]], before: Mapping
) -> None:
    """Check the weights and checkpoints in these notebooks' parameters, except of notebooks already done with them.

    before: the run's record. Raises UserError for weights that are absent, unreadable, not finite or not of a
    ResNet-50, and for a checkpoint that is absent, damaged or without an image size for the test.
    """
    for book in books:
        done, share = before.get("notebooks", {}).get(book.stem, {}), shares[book.stem]
        if done.get("state") == "done" and done.get("parameters") == dict(share):
            continue
        if share.get("ckpt"):
            from cxrlib.training import checkpoint  # PyTorch takes seconds to load

            checkpoint.load(_checkpoint(home, book, share)[0])
        elif settings.part(book) == "stage1" and share.get("weights", "none") not in USUAL:
            from cxrlib.training import network

            network.judge(str(share["weights"]))


def first_lines(home: paths.Run, books: Iterable[Path], shares: Mapping[str, Mapping[str, Scalar]]) -> list[str]:
    """Sentences for the start of a run: the tested checkpoint, and a test at another image size than in training."""
    books = list(books)
    if any(settings.part(book).startswith("stage") for book in books):
        return []  # the checkpoint to test does not exist yet
    words = []
    for book in books:
        share = shares[book.stem]
        if share.get("ckpt"):
            path, size = _checkpoint(home, book, share)
            words.append(f"{path.stem} is tested on films of {size} pixels")
            from cxrlib.training import checkpoint  # already loaded by the line before

            words.append(checkpoint.another_size(path, size))
        elif "ckpt" in settings.parameters(book) and (last := _last(home)):
            words.append(_another_size(last, int(share.get("size", 0))))
    return list(dict.fromkeys(filter(None, words)))


def remembered_lines(earlier: Mapping[str, Scalar], defaults: Mapping[str, Scalar]) -> list[str]:
    """A sentence on settings of earlier calls that still hold, and how to take one back; none if all are defaults."""
    kept = {name: value for name, value in earlier.items() if value != defaults.get(name, "")}
    if not kept:
        return []
    words = ", ".join(f"{name} {value}" for name, value in kept.items())
    return [f"Remembered from earlier calls: {words}. Take one back with -p {next(reversed(kept))}="]


def forecast_lines(
    books: list[Path],
    shares: Mapping[str, Mapping[str, Scalar]],
    films: Mapping,
    kernels: "kernel_rooms.KernelSource",
) -> list[str]:
    """Lines on the device, speed and duration of these notebooks' training; empty where they cannot be measured.

    films: as from ``pipeline.data``. ``training.forecast`` measures in a separate process.
    """
    names, stages, shared = ("schedule", "lr", "epochs", "loss", "override"), [], {}
    for book in (book for book in books if settings.part(book).startswith("stage")):
        own = {**settings.parameters(book), **shares[book.stem]}
        if not {*names, "size", "batch_size"} <= own.keys():
            return []
        shared = {name: own[name] for name in ("size", "batch_size")}
        stages.append({"number": int(settings.part(book).removeprefix("stage")), **{name: own[name] for name in names}})
    request = json.dumps({"stages": stages, "films": films["parts"], "notebooks": len(books), **shared})
    text, code = kernels.output(f"from cxrlib.training import forecast; forecast.print_forecast({request!r})")
    return [*enlarged(films, shared.get("size", 0)), *([] if code else text.strip().splitlines())]


def enlarged(films: Mapping, size: int) -> list[str]:
    """A sentence that the films are smaller than the size asked for, so that they are enlarged; else none."""
    sides = [int(side) for side in str(films.get("film_size", "")).split("x") if side.isdigit()]
    if not sides or min(sides) >= size:
        return []
    return [f"The films have {films['film_size']} pixels and are enlarged to {size}, which adds no detail."]


def _last(home: paths.Run) -> Path | None:
    """JSON of the best checkpoint of the last finished stage; None if no stage is finished."""
    done = [home.stage(stage) for stage in run_record.STAGES if (home.stage(stage) / "best.json").is_file()]
    best = paths.read_best(done[-1] / "best.json") if done else ""
    return done[-1] / f"{best}.json" if best and (done[-1] / f"{best}.json").is_file() else None


def _another_size(described: Path, read_at: int) -> str:
    content = paths.read_json(described)
    trained = content.get("size", 0) if isinstance(content, dict) else 0
    if 0 in (trained, read_at) or trained == read_at:
        return ""
    return f"{described.stem} was trained on films of {trained} pixels and is read at {read_at}"


def _checkpoint(home: paths.Run, book: Path, share: Mapping[str, Scalar]) -> tuple[Path, int]:
    """The checkpoint in a notebook's parameters, and the image size of its test; 0 for a stage's notebook."""
    from cxrlib.training import checkpoint

    path = checkpoint.resolve(str(share["ckpt"]), home)
    return path, 0 if settings.part(book).startswith("stage") else checkpoint.size(path, int(share.get("size", 0)))


def run(
    name: str,
    given: Mapping[str, Scalar] | None = None,
    *,
    stages: Iterable[int] = range(1, 6),
    exploration: bool = True,
    evaluation: bool = True,
    again: bool = False,
    once: Mapping[str, Scalar] | None = None,
    base: Mapping[str, Scalar] = settings.REAL,
    folder: Path | None = None,
    console: "Console | None" = None,
) -> Path:
    """Execute the notebooks of a run that are not up to date, and return the path of its report.

    ``given``: settings as ``settings.share`` takes them. A run keeps the settings of earlier calls; ``given`` overrides
    them, and an empty value takes one back. They are kept once they were judged right and the first notebook has begun.
    ``once``: settings for this call only. ``base``: defaults of a new run with the user's films. ``stages``,
    ``exploration`` and ``evaluation`` choose the notebooks. ``again``: execute unchanged ones too, and train again.

    Raises UserError for settings that no notebook has and for wrong values, for films that cannot be read, for a run
    that is in use or was made on other films, and for a notebook that fails; the message names the cell.
    """
    home = paths.Run(name)
    before = run_record.read(home)
    run_record.check_trained(before)
    given, remembered, books = dict(given or {}), settings.remembered(before), settings.chain(folder)
    chosen = [book for book in books if _chosen(book, set(stages), exploration, evaluation)]
    settings.check_names(books, given.keys() - remembered.keys())
    wanted, defaults = settings.merge(name, before, given, base)
    earlier = {name: value for name, value in remembered.items() if name not in given}
    all_settings = {**wanted, **settings.located(once or {})}
    shares = settings.judge(books, all_settings, kept=earlier, done=run_record.done(before), chosen=chosen)
    judge_weights(home, chosen, shares, before)
    parameters = settings.common(books, wanted)
    types = {"size": int, "allow_missing": bool, "exclude": str, "uncertain": str}
    values = {**wanted, **parameters}
    how = {name: kind(values[name]) for name, kind in types.items() if name in values}
    from rich.console import Console

    from cxrlib.report import report
    from cxrlib.workbook import kernels as kernel_rooms

    console = console or Console()
    with kernel_rooms.KernelSource() as kernels:
        if not before:  # a new run always executes something
            kernels.begin()
        films = data(str(wanted.get("data", "")), console, known=bool(before), **how)
        run_record.check_same_films(before, films)
        _print([f"Run {name}: " + ", ".join(_words(parameters, wanted))], console)
        _print(remembered_lines(earlier, defaults), console)
        _print([f"{words}." for words in first_lines(home, chosen, shares)], console)
        _print_doubts(films.get("doubts", []), console)
        with _lock(home), _board(home, chosen, console) as board:
            current = run_record.open_record(before, wanted, parameters, films) | {"defaults": defaults}
            executed, forecast = 0, False
            _require_room(home, chosen, films, **how)
            for book in chosen:
                made_by = run_record.fingerprint(book, books, shares, current)
                if not again and run_record.unchanged(home, current, book, made_by):
                    board.finish(book.stem, "unchanged")
                    continue
                if reason := run_record.why_again(home, current, book, made_by):
                    _print([f"{reason}."], console)
                if settings.part(book).startswith("stage"):
                    if not forecast:
                        forecast = True
                        _print(forecast_lines(books[books.index(book) :], shares, films, kernels), console)
                    if again:
                        paths.write_text(home.root / settings.part(book) / paths.AGAIN, "")
                _execute(book, home, shares[book.stem], current, made_by, board, kernels)
                executed += 1
            if executed:  # the films are decoded now, which can show more doubts
                doubts = data(films["folder"], known=True, **how).get("doubts", [])
                _print_doubts([doubt for doubt in doubts if doubt not in films.get("doubts", [])], console)
                current["data"]["doubts"] = doubts
            whole = paths.result_mark(home.report)[:1] == current.get("report_mark", [])[:1]
            if home.report.exists() and not whole and "report_mark" in current:
                _print(["report.html is written again: it is not what the run wrote."], console)
            if executed or not whole or current.get("report") != report.code_version():
                current["report"] = report.code_version()
                paths.write_json(home.run_json, current, guarded=True)
                current["report_mark"] = paths.result_mark(report.build(name))
                paths.write_json(home.run_json, current, guarded=True)
            elif current["settings"] != before.get("settings"):  # of notebooks that this call did not choose
                paths.write_json(home.run_json, current, guarded=True)
    return home.report


def run_series(
    name: str,
    seeds: Iterable[int],
    given: Mapping[str, Scalar] | None = None,
    *,
    console: "Console | None" = None,
    **how: Any,
) -> list[Path]:
    """``run`` for each seed, one after the other: runs ``name-s0``, ``name-s1`` and so on; returns their reports.

    Each run keeps its settings and its seed. Runs that are finished do nothing, so a series that was stopped goes on
    with the same call. All share the decoded films, the split, and features of frozen layers. Raises as ``run``; a name
    that cannot be used is told before the first run begins.
    """
    from rich.console import Console

    console, seeds = console or Console(), list(seeds)
    names = [paths.Run(paths.of_seed(name, seed)).name for seed in seeds]
    reports = []
    with _shared_features(name):
        for i, (own, seed) in enumerate(zip(names, seeds, strict=True), 1):
            _print([f"Seed {seed}, {i} of {len(seeds)}:"], console)
            reports.append(run(own, {**(given or {}), "seed": seed}, console=console, **how))
    return reports


@contextmanager
def _shared_features(series: str) -> Iterator[None]:
    """Let the trainings inside share features of frozen layers, in a folder that is removed when the series is done.

    A series that is stopped leaves it for the call that goes on.
    """
    folder, before = paths.outputs() / "stores" / f"features-{series}", os.environ.get(FEATURES)
    os.environ[FEATURES] = str(folder)
    try:
        yield
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.environ.pop(FEATURES)
        os.environ |= {} if before is None else {FEATURES: before}


def data(
    folder: str,
    console: "Console | None" = None,
    *,
    known: bool = False,
    allow_missing: bool = False,
    exclude: str = "",
    uncertain: str = "unknown",
    size: int = 0,
) -> dict[str, Any]:
    """Summary of a data folder for ``run.json``: numbers of films and patients, parts, fingerprints, doubts.

    "" means the phantom set, which is drawn if it does not exist yet. A folder that is new to the run (``known`` False)
    is checked first, without decoding its films. With ``allow_missing`` absent films are left out and listed.
    ``exclude`` is a CSV of films to leave out; the summary is that of the others.
    Raises UserError for a folder that is absent or cannot be used for a run.
    """
    # Imported here because pandas is slow: a wrong setting should be reported at once.
    from cxrlib.data import check, exclusion, film_identity, records, sources, splits, store

    if console and not folder:
        console.print("Films: the phantom set, drawn once", highlight=False)
    place = Path(folder) if folder else _phantoms()
    records.find_table(place)  # raises for a wrong folder, before the check lists the faults of a right one
    if not known:
        check.folder(place, fast=True, progress=False).require(allow_missing=allow_missing or bool(exclude))
    everyone = exclusion.read_films(place, exclude, allow_missing=allow_missing, uncertain=uncertain)
    excluded = exclusion.find(everyone, exclude)
    films = excluded.without(everyone)
    absent = films.attrs.get("missing", [])
    parts = excluded.without_in_parts(splits.make(everyone, place))
    doubts = [records.rivals(place), *sources.doubts(place), excluded.doubt()]
    doubts += film_identity.doubts(films, parts, _decoded(films, size, allow_missing))
    return {
        "folder": folder,
        "films": len(films),
        "patients": int(films["patient"].nunique()),
        "parts": {name: len(getattr(parts, name)) for name in ("train", "val", "test")},
        "fingerprint": records.fingerprint(films),
        "contents": store.folder_fingerprints(place, films),
        "film_size": records.film_size(films),
        "doubts": [*filter(None, doubts)],
        **({"left_out": {"films": len(absent), "first": absent[:20]}} if absent else {}),
        **({"excluded": excluded.as_dict()} if exclude else {}),
    }


def _decoded(films: Any, size: int, allow_missing: bool) -> Any:
    """The store of these films; None if it is not built yet. What is damaged in it is decoded again."""
    from cxrlib.data import store

    folder = store.default_folder(films, size)
    if not (folder / store.MANIFEST).is_file():
        return None
    try:
        return store.load(folder)
    except store.DamagedStoreError:
        return store.build(films, size, folder=folder, allow_missing=allow_missing)


def _require_room(home: paths.Run, chosen: list[Path], films: Mapping, *, size: int = 0, **_: Any) -> None:
    """Ask for the room of the stages to train, and of the store unless there is one of this size, which asks itself."""
    from cxrlib.workbook import tidying

    stored = any((paths.outputs() / "stores").glob(f"*-{size}/manifest.json"))
    tidying.require_room(home, chosen, films, size, stored=stored)


def _print_doubts(doubts: Iterable[str], console: "Console") -> None:
    _print([f"In doubt: {doubt}." for doubt in doubts], console, style="yellow")


def _print(lines: Iterable[str], console: "Console", style: str | None = None) -> None:
    for line in lines:
        console.print(line, style=style, soft_wrap=True, highlight=False, markup=False)


def _phantoms() -> Path:
    from cxrlib.phantom import phantom  # imports SciPy, which a run on real films does not need

    return phantom.default()


@contextmanager
def _lock(home: paths.Run) -> Iterator[None]:
    """Lock the run's folder. A new run that was stopped before its first notebook began leaves no folder."""
    new = not home.root.exists()
    held = False
    try:
        with paths.lock_folder(home.root):
            held = True
            yield
    finally:
        if new and held and not home.run_json.exists():
            with suppress(OSError):  # something else lies there
                (home.root / ".lock").unlink()
                home.root.rmdir()


def _words(parameters: Mapping[str, Scalar], wanted: Mapping[str, Scalar]) -> list[str]:
    """Settings of a run as text: those that all stages share, then those of one notebook."""
    shown = {name: value for name, value in {**parameters, **wanted}.items() if name != "run" and value != ""}
    return [f"{name} {value}" for name, value in shown.items()]


def _chosen(book: Path, stages: set[int], exploration: bool, evaluation: bool) -> bool:
    part = settings.part(book)
    if part.startswith("stage"):
        return part.removeprefix("stage") in {str(stage) for stage in stages}
    return exploration if book.stem.startswith("00") else evaluation


def _board(home: paths.Run, books: Iterable[Path], console: "Console") -> "console_lines.ConsoleBoard":
    from cxrlib.workbook import console as console_lines

    watched = ((book.stem, home.root / settings.part(book) / "progress.json") for book in books)
    return console_lines.ConsoleBoard([console_lines.Line(name, file) for name, file in watched], console)


def _execute(
    book: Path,
    home: paths.Run,
    share: Mapping,
    current: dict[str, Any],
    made_by: str,
    board: "console_lines.ConsoleBoard",
    kernels: "kernel_rooms.KernelSource",
) -> None:
    """Execute one notebook and record its state in run.json; the last good execution stays until this one succeeds."""
    name, began = book.stem, time.time()
    earlier = current["notebooks"].get(name, {})
    outputs = earlier.get("outputs", [])
    entry = {"state": "running", "started": provenance.now(), "parameters": dict(share), "fingerprint": made_by}
    current["notebooks"][name] = {**entry, "outputs": outputs}
    current |= {"device": kernels.device, "git": provenance.git_revision(), "versions": provenance.versions()}
    paths.write_json(home.run_json, current, guarded=True)
    with disk.writing(home.notebooks):
        home.notebooks.mkdir(parents=True, exist_ok=True)
    running, failed = (home.notebooks / f"{name}.{word}.ipynb" for word in ("running", "failed"))
    board.start(name, len(settings.cells(book)))
    try:
        _train_together(book, share)
        _papermill(book, running, share, lambda index: board.cell(name, index), kernels)
        with disk.writing(home.notebooks / book.name):
            running.replace(home.notebooks / book.name)
            failed.unlink(missing_ok=True)
        entry["state"] = "done"
    except BaseException as error:
        entry["state"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        board.finish(name, entry["state"])
        with suppress(OSError, UserError):  # where the disk is full, the notebook's own message is the one to read
            if running.exists():
                running.replace(failed)
            _note_end(book, home, current, earlier, entry, began)
        if isinstance(error, UserError) and failed.exists() and failed.stat().st_mtime >= began:
            raise UserError(f"{error}\nThe partly executed notebook: {failed}") from None
        raise
    board.finish(name, entry["state"])
    _note_end(book, home, current, earlier, entry, began)


def _note_end(
    book: Path, home: paths.Run, current: dict[str, Any], earlier: Mapping, entry: dict[str, Any], began: float
) -> None:
    """Write the end of a notebook into run.json: its state, its files and their hashes.

    earlier: the notebook's entry before this execution, which ``began`` at a time in seconds.
    """
    name, outputs = book.stem, earlier.get("outputs", [])
    written = run_record.files_written_since(home.root, began)
    stale = {*paths.changed_results(home.root, earlier.get("made", {}))} - written
    kept = {file for file in outputs if (home.root / file).exists()} - stale
    entry["outputs"] = sorted(kept | written)
    entry["made"] = run_record.marks(home, book, entry["outputs"])
    current["notebooks"][name] = {**entry, "seconds": round(time.time() - began, 1)}
    run_record.hand_over(current, name, written)
    current["updated"] = provenance.now()
    paths.write_json(home.run_json, current, guarded=True)


def _train_together(book: Path, share: Mapping[str, Scalar]) -> None:
    """Train a stage by several processes where ``processes`` asks for them; its notebook then finds it finished.

    Raises UserError with the job's own complaint.
    """
    parameters = dict(share)
    processes, stage = parameters.pop("processes", 1), settings.part(book).removeprefix("stage")
    if processes != 1 and stage.isdigit():
        from cxrlib.training import job  # PyTorch takes seconds to load, and most runs train in their notebooks

        job.launch(processes, stage=int(stage), shown=False, **parameters)


def _papermill(
    book: Path,
    output: Path,
    share: Mapping[str, Scalar],
    watch: Callable[[int], None],
    kernels: "kernel_rooms.KernelSource",
) -> None:
    """Execute one notebook in its own folder with this Python; ``watch`` is called with each cell's index.

    Raises UserError with the file, the cell and the error.
    """
    import papermill  # takes seconds, and is not needed if nothing is to be executed
    from nbclient.exceptions import DeadKernelError

    from cxrlib.workbook import kernels as kernel_rooms

    for logger in ("papermill", "asyncio"):  # their messages on a stopped kernel do not help the user
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    last = [0]

    def on_cell_start(cell_index: int, **_: Any) -> None:
        last[0] = cell_index
        watch(cell_index)

    try:
        papermill.execute_notebook(
            _literal(book),
            _literal(output),
            dict(share),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            resources={"metadata": {"path": str(book.parent)}},  # the kernel's folder; cwd= would move this process too
            kernel_manager_class=kernel_rooms.kernel_manager(kernels.server),
            on_cell_start=on_cell_start,
        )
    except papermill.PapermillExecutionError as error:
        where = f"{book.name}, cell {_position(book, error.cell_index, share)} (In [{error.exec_count}])"
        raise UserError(f"{where}: {_what_failed(error.ename, error.evalue)}") from None
    except OSError as error:  # of papermill itself, which saves the notebook after each cell
        raise disk.fault(output, disk.number(error)) if disk.number(error) else error from None
    except DeadKernelError:
        raise UserError(
            f"{book.name}, cell {_position(book, last[0], share)}: the kernel died, most often because memory ran "
            "out; try a smaller batch_size or size"
        ) from None


def _what_failed(kind: str, words: str) -> str:
    """Message of an error in a notebook, from the name of its class and its text. Our own errors need no name."""
    if kind in ("UserError", "DiskError", "DamagedStoreError", "SystemShortageError"):
        return words.strip()
    found = re.match(r"\[Errno (\d+)\] [^:]*(?:: '([^']+)')?", words)
    if found:  # of a cell that reads or writes a file by itself
        return str(disk.fault(Path(found[2] or paths.outputs()), int(found[1]), verb="use"))
    return f"{kind}: {words}".strip()


def _position(book: Path, index: int, share: Mapping) -> int:
    """Number of a cell, from 1, in the source notebook; the executed one has one more, the injected parameters."""
    tags = [cell.get("metadata", {}).get("tags", []) for cell in settings.cells(book)]
    injected = next((i for i, tag in enumerate(tags) if "parameters" in tag), -1) + 1 if share else len(tags)
    return index + 1 - (index >= injected)


def _literal(path: Path) -> str:
    """A path for papermill, with doubled braces, because papermill replaces ``{names}``."""
    return str(path).replace("{", "{{").replace("}", "}}")
