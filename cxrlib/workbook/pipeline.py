"""Run the notebooks in order, as one run; the only caller of papermill.

Each notebook is executed into ``outputs/<run>/notebooks/``. One that is unchanged (see ``record``) and whose files are
there is not executed again: the same call twice does nothing the second time, and a call after a failure goes on there.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from cxrlib import paths, provenance
from cxrlib.errors import UserError
from cxrlib.workbook import kernel_client, preflight, progress, record, report, settings
from cxrlib.workbook.settings import Scalar


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
    console: Console | None = None,
) -> Path:
    """Bring a run up to date with its settings and give the path of its report.

    ``given`` are settings as ``settings.share`` takes them. A run remembers its settings: those given now are laid over
    those of its last call; ``once`` holds for this call alone; ``base`` lies under a new run's where films are given.
    ``stages``, ``exploration`` and ``evaluation`` choose among the notebooks; ``again`` executes unchanged ones too,
    and trains their stages anew.

    Raises UserError for settings that no notebook has, for films that cannot be read, for a run that is in use or was
    made on other films, and for a notebook that fails, naming the cell.
    """
    console = console or Console()
    home = paths.Run(name)
    before = record.read(home)
    asked = _asked(name, before, given or {}, base)
    books = settings.chain(folder)
    shares = settings.share(books, {**asked, **settings.located(once or {})})
    chosen = [book for book in books if _chosen(book, set(stages), exploration, evaluation)]
    preflight.judge(home, chosen, shares, before)
    parameters = settings.common(books, asked)
    wanted = {"seed": int, "size": int, "allow_missing": bool}
    told = {**asked, **parameters}
    how = {name: kind(told[name]) for name, kind in wanted.items() if name in told}
    with kernel_client.Kernels() as kernels:
        if not before:  # something will be executed
            kernels.begin()
        films = data(str(asked.get("data", "")), console, known=bool(before), **how)
        record.check_same_films(before, films)
        _say([f"Run {name}: " + ", ".join(_words(parameters, asked))], console)
        _say([f"{words}." for words in preflight.told(home, chosen, shares)], console)
        _doubt(films.get("doubts", []), console)
        with provenance.only_one(home.root), _board(home, chosen, console) as board:
            kept = record.opened(before, asked, parameters, films)
            ran, foretold = 0, False
            for book in chosen:
                made_by = record.fingerprint(book, books, shares, kept)
                if not again and record.unchanged(home, kept, book, made_by):
                    board.finish(book.stem, "unchanged")
                    continue
                if settings.part(book).startswith("stage"):
                    if not foretold:
                        foretold = True
                        _say(preflight.forecast(books[books.index(book) :], shares, films, kernels), console)
                    if again:
                        paths.write_text(home.root / settings.part(book) / paths.AGAIN, "")
                _execute(book, home, shares[book.stem], kept, made_by, board, kernels)
                ran += 1
            if ran:  # the films are decoded now
                now = data(films["folder"], known=True, **how).get("doubts", [])
                _doubt([doubt for doubt in now if doubt not in films.get("doubts", [])], console)
                kept["data"]["doubts"] = now
            if ran or not home.report.exists() or kept.get("report") != report.code_version():
                kept["report"] = report.code_version()
                paths.write_json(home.run_json, kept)
                report.build(name)
    return home.report


def data(
    folder: str,
    console: Console | None = None,
    *,
    known: bool = False,
    allow_missing: bool = False,
    seed: int = 0,
    size: int = 0,
) -> dict[str, Any]:
    """Read the films' records and say what they are: folder, numbers of films and patients, fingerprints, doubts.

    "" means the phantom set, which is drawn now if it is not there yet. A folder that no earlier call of the run has
    ``known`` is checked first, without decoding its films. With ``allow_missing`` absent films are left out, and named.
    Raises UserError for a folder that is absent or not fit for a run.
    """
    from cxrlib.data import (  # pandas takes a while; a wrong setting should be told at once
        check,
        contents,
        patients,
        records,
        splits,
    )

    if console and not folder:
        console.print("Films: the phantom set, drawn once", highlight=False)
    found = Path(folder) if folder else _phantoms()
    records.find_table(found)  # a wrong folder is told as such, and not as a folder with faults
    if not known:
        check.folder(found, fast=True, progress=False).require(allow_missing=allow_missing)
    films = records.read(found, allow_missing=allow_missing)
    absent = films.attrs.get("missing", [])
    parts = splits.make(films, found, seed=seed)
    return {
        "folder": folder,
        "films": len(films),
        "patients": int(films["patient"].nunique()),
        "parts": {name: len(getattr(parts, name)) for name in ("train", "val", "test")},
        "fingerprint": records.fingerprint(films),
        "contents": contents.fingerprints(found, films),
        "film_size": records.film_size(films),
        "doubts": [*filter(None, [records.rivals(found)]), *patients.doubts(films, parts, _decoded(films, size))],
        **({"left_out": {"films": len(absent), "first": absent[:20]}} if absent else {}),
    }


def _decoded(films: Any, size: int) -> Any:
    """The store of these films, None where it is not built yet."""
    from cxrlib.data import builder, store

    folder = store.default_folder(films, size)
    return store.load(folder) if (folder / builder.MANIFEST).is_file() else None


def _doubt(doubts: Iterable[str], console: Console) -> None:
    _say([f"In doubt: {doubt}." for doubt in doubts], console, style="yellow")


def _say(lines: Iterable[str], console: Console, style: str | None = None) -> None:
    for line in lines:
        console.print(line, style=style, soft_wrap=True, highlight=False, markup=False)


def _phantoms() -> Path:
    from cxrlib.data import phantom  # SciPy, which a run on real films does without

    return phantom.default()


def _asked(name: str, before: Mapping, given: Mapping[str, Scalar], base: Mapping[str, Scalar]) -> dict[str, Scalar]:
    given = settings.located(given)
    if "settings" in before:
        return {**before["settings"], **given, "run": name}
    return {**(base if given.get("data") else {}), **given, "run": name}


def _words(parameters: Mapping[str, Scalar], asked: Mapping[str, Scalar]) -> list[str]:
    """The settings of a run as a reader wants them: those that all stages share, then those of one notebook."""
    shown = {name: value for name, value in {**parameters, **asked}.items() if name != "run" and value != ""}
    return [f"{name} {value}" for name, value in shown.items()]


def _chosen(book: Path, stages: set[int], exploration: bool, evaluation: bool) -> bool:
    part = settings.part(book)
    if part.startswith("stage"):
        return part.removeprefix("stage") in {str(stage) for stage in stages}
    return exploration if book.stem.startswith("00") else evaluation


def _board(home: paths.Run, books: Iterable[Path], console: Console) -> progress.Board:
    watched = ((book.stem, home.root / settings.part(book) / "progress.json") for book in books)
    return progress.Board([progress.Line(name, file) for name, file in watched], console)


def _execute(
    book: Path,
    home: paths.Run,
    share: Mapping,
    kept: dict[str, Any],
    made_by: str,
    board: progress.Board,
    kernels: kernel_client.Kernels,
) -> None:
    """Execute one notebook and note in run.json how it went; the last good execution stays until this one succeeds."""
    name, began = book.stem, time.time()
    outputs = kept["notebooks"].get(name, {}).get("outputs", [])
    entry = {"state": "running", "started": provenance.now(), "parameters": dict(share), "fingerprint": made_by}
    kept["notebooks"][name] = {**entry, "outputs": outputs}
    kept |= {"device": kernels.device, "git": provenance.git_revision(), "versions": provenance.versions()}
    paths.write_json(home.run_json, kept)
    home.notebooks.mkdir(parents=True, exist_ok=True)
    running, failed = (home.notebooks / f"{name}.{word}.ipynb" for word in ("running", "failed"))
    board.start(name, len(settings.cells(book)))
    try:
        _train_together(book, share)
        _papermill(book, running, share, lambda index: board.cell(name, index), kernels)
        running.replace(home.notebooks / book.name)
        failed.unlink(missing_ok=True)
        entry["state"] = "done"
    except BaseException as error:
        entry["state"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if running.exists():
            running.replace(failed)
            if isinstance(error, UserError):
                raise UserError(f"{error}\nAs far as it came: {failed}") from None
        raise
    finally:
        board.finish(name, entry["state"])
        still = {file for file in outputs if (home.root / file).exists()}
        entry["outputs"] = sorted(still | record.written(home.root, began))
        entry["left"] = record.left(home, entry["outputs"])
        kept["notebooks"][name] = {**entry, "seconds": round(time.time() - began, 1)}
        kept["updated"] = provenance.now()
        paths.write_json(home.run_json, kept)


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
    kernels: kernel_client.Kernels,
) -> None:
    """Execute one notebook in its own folder, by the Python that runs this, calling ``watch`` with each cell's index.

    Raises UserError naming cell and file with the error itself.
    """
    import papermill  # takes seconds, and is not needed where nothing is to be done
    from nbclient.exceptions import DeadKernelError

    from cxrlib.workbook import kernel

    for talker in ("papermill", "asyncio"):  # what they say of a kernel that was stopped helps nobody
        logging.getLogger(talker).setLevel(logging.CRITICAL)
    at = [0]

    def seen(cell_index: int, **_: Any) -> None:
        at[0] = cell_index
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
            kernel_manager_class=kernel.of(kernels.server),
            on_cell_start=seen,
        )
    except papermill.PapermillExecutionError as error:
        where = f"{book.name}, cell {_position(book, error.cell_index, share)} (In [{error.exec_count}])"
        what = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        raise UserError(f"{where}: {what.strip()}") from None
    except DeadKernelError:
        raise UserError(
            f"{book.name}, cell {_position(book, at[0], share)}: the kernel died, most often for want of memory; "
            "try a smaller batch_size or size"
        ) from None


def _position(book: Path, index: int, share: Mapping) -> int:
    """Number, from 1, in the notebook as it is written, of a cell in the executed one, which has one cell more."""
    tags = [cell.get("metadata", {}).get("tags", []) for cell in settings.cells(book)]
    injected = next((i for i, tag in enumerate(tags) if "parameters" in tag), -1) + 1 if share else len(tags)
    return index + 1 - (index >= injected)


def _literal(path: Path) -> str:
    """A path as papermill takes it: it fills in ``{names}``, so braces are doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")
