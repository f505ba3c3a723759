"""``cxr predict``: from the paths that a user names to a table in the terminal, or to files and a page."""

import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlib import UserError, disk, paths, provenance
from cxrlib.labels import display_name

if TYPE_CHECKING:
    from cxrlib.evaluation.film_reader import Answer, Reader
    from cxrlib.evaluation.interpretation import Interpreter

USUAL = "base"
"""Run whose last checkpoint is taken if none is named."""

TOLD = 20
"""Refused films whose reasons are printed; all are in the files."""

KEEP_EVERY = 16
"""Answers that are kept at once. So many films at most are read again after a kill, and those under way."""


def run(
    named: list[str],
    *,
    run: str = "",
    ckpt: str = "",
    out: str = "",
    heat: bool = False,
    prevalence: str = "",
    rule: str = "youden",
    anyway: bool = False,
    batch_size: int = 32,
) -> int:
    """Exit code after predictions for all films that ``named`` stands for: 0, or 1 if some have no number.

    One film is printed, and files are written only with ``out`` or ``heat``. Raises UserError for a user's mistake.
    """
    from cxrlib.data import film_paths

    films = film_paths.collect(named)
    reader, interpreter = _open(run, ckpt, prevalence, rule)
    if len(films) == 1 and not out and not heat:
        return _one(films[0], reader, interpreter, anyway)
    folder = paths.resolve(out) if out else default_folder(named, reader.name)
    return _many(films, folder, reader, interpreter, heat=heat, anyway=anyway, batch_size=batch_size)


def default_folder(named: list[str], checkpoint: str) -> Path:
    """Folder of the predictions of a command: the same for the same paths and checkpoint, so that it can go on."""
    first = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in paths.resolve(named[0]).stem)
    mark = provenance.digest([str(paths.resolve(name)) for name in named])[:6]
    return paths.outputs() / paths.PREDICTIONS / f"{first[:40] or 'films'}-{checkpoint[:60]}-{mark}"


def _open(run: str, ckpt: str, prevalence: str, rule: str) -> tuple["Reader", "Interpreter"]:
    """Reader and interpreter of the checkpoint that is meant. Imports torch."""
    _import_torchvision()
    from cxrlib.evaluation import film_reader, interpretation

    stated, source = interpretation.read_prevalence(prevalence)
    interpretation.Interpreter(None, None, rule)  # a wrong rule is told before the network is loaded
    reader = film_reader.Reader.open(_checkpoint(run, ckpt))
    return reader, reader.interpreter(rule, stated, source)


def _remark(interpreter: "Interpreter") -> None:
    for sentence in interpreter.remarks():
        print(f"{sentence}.", file=sys.stderr)


def _checkpoint(run: str, ckpt: str) -> Path:
    from cxrlib.training import checkpoint, lineage

    if ckpt:
        return checkpoint.resolve(ckpt, paths.Run(run) if run else None)
    chosen = paths.Run(run or USUAL)
    if not chosen.root.is_dir():
        there = ", ".join(paths.runs()) or "none yet"
        asked = f"there is no run {run!r}" if run else "no checkpoint is named"
        raise UserError(f"{asked}; give --run NAME (the runs are: {there}) or --ckpt")
    return lineage.stage_checkpoints(chosen)[-1]


def _import_torchvision() -> None:
    """Import torchvision without torch's compiler, which one of its modules asks for a flag. Halves the start.

    ``torchvision.ops.roi_align``, which no network here uses, imports ``torch._dynamo`` for whether it may be compiled.
    It gets a stand-in that says no, and the compiler stays importable for whoever needs it.
    """
    import torch  # noqa: F401

    names = ("torch._dynamo", "torch._dynamo.utils")
    if "torchvision" in sys.modules or any(name in sys.modules for name in names):
        return
    package, utils = map(types.ModuleType, names)
    package.__path__, package.utils, utils.is_compile_supported = [], utils, lambda device: False
    sys.modules.update(zip(names, (package, utils), strict=True))
    try:
        import torchvision  # noqa: F401
    except (ImportError, AttributeError):  # another version, which needs more of the compiler
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _one(film: str, reader: "Reader", interpreter: "Interpreter", anyway: bool) -> int:
    from cxrlib.evaluation import prediction_files

    (answer,) = reader.stream([film], anyway=anyway, batch_size=1, workers=1)
    if answer.network is None:
        _complain_of([_reason(answer)])
        return 1
    _remark(interpreter)
    print("\n".join(table(prediction_files.record(answer, interpreter), reader, interpreter)))
    return 0


def _many(
    films: list[str],
    folder: Path,
    reader: "Reader",
    interpreter: "Interpreter",
    *,
    heat: bool,
    anyway: bool,
    batch_size: int,
) -> int:
    from cxrlib.evaluation import prediction_files
    from cxrlib.report import film_page

    with paths.lock_folder(folder):
        state = prediction_files.State(folder, prediction_files.settings(reader, anyway=anyway), films)
        _remark(interpreter)
        if state.again:
            print(f"{folder} starts anew: {state.again}", file=sys.stderr)
        pending = state.pending()
        need = len(pending) * prediction_files.FILM_BYTES
        disk.require(folder, need, f"the answers for {len(pending):,} films", "give another --out")
        if len(pending) < len(films):
            print(f"{len(films) - len(pending):,} of {len(films):,} films were read before", file=sys.stderr)
        answers = reader.stream(pending, anyway=anyway, batch_size=batch_size)
        with closing(answers), _progress(answers, len(films), len(films) - len(pending), "reading films") as bar:
            while part := list(islice(bar, KEEP_EVERY)):
                state.add(part)
        counts = prediction_files.write(folder, state.answers(), reader, interpreter)
        shown = film_page.pictured(state.answers(), reader, interpreter, anyway=anyway, heat=heat)
        total = min(counts["read"], film_page.MOST) + min(counts["refused"], film_page.MOST_REFUSED)
        with closing(shown), _progress(shown, total, 0, "drawing the page") as bar:
            page = film_page.build(folder / prediction_files.PAGE, bar, reader, interpreter, counts)
    refusals = [_reason(answer) for answer in state.answers() if answer.network is None]
    _complain_of(refusals)
    for what, path in (("Table", prediction_files.CSV), ("JSON", prediction_files.JSON), ("Page", page.name)):
        print(f"{what}: {_from_here(folder / path)}")
    print(f"{counts['read']:,} of {counts['films']:,} films have numbers, {counts['refused']:,} were refused")
    return 1 if refusals else 0


def _reason(answer: "Answer") -> str:
    """Reason of a refusal, with the film's name."""
    return answer.refusal if answer.refusal.startswith(answer.film) else f"{answer.film}: {answer.refusal}"


def _complain_of(refusals: list[str]) -> None:
    """Print the reasons of refused films, a line each."""
    for reason in refusals[:TOLD]:
        print(f"refused: {' '.join(reason.split())}", file=sys.stderr)
    if len(refusals) > TOLD:
        print(f"refused: {len(refusals) - TOLD:,} more, see the column refused of predictions.csv", file=sys.stderr)


@contextmanager
def _progress(items: Iterable, total: int, done: int, what: str) -> Iterator[Iterator]:
    """Items with a progress bar on stderr, which is complete when the block ends, so that a message stands below it."""
    from tqdm.auto import tqdm

    encoding = (getattr(sys.stderr, "encoding", None) or "ascii").lower()
    plain = "utf" not in encoding
    how = {"desc": what, "total": total, "initial": done, "unit": "film", "mininterval": 0.5}
    with tqdm(items, **how, ascii=plain, ncols=79) as bar:
        yield iter(bar)


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def table(record: dict[str, Any], reader: "Reader", interpreter: "Interpreter") -> list[str]:
    """Lines of a film's findings by rank, in at most 80 columns of ASCII but for the film's name."""
    from cxrlib.evaluation import interpretation

    lines = [record["film"], *_facts(record), ""]
    head = ("", "proba-", "network", "", "above", "base", "such calls")
    lines += [_row(head), _row(("", "bility", "itself", "decision", "others", "rate", "are right")), "-" * 76]
    for row in interpretation.ranked(record["findings"]):
        right = row["ppv"] if row["decision"] == "positive" else row["npv"]
        cells = (_percent(row["probability"], 1), f"{row['network']:.3f}", _decision(row["decision"]))
        cells += (_percent(row["percentile"], 0, 1), _percent(row["base_rate"], 1), _percent(right, 1))
        lines.append(_row((display_name(row["finding"]), *cells)))
    return [*lines, "", *_legend(reader, interpreter)]


def _facts(record: dict[str, Any]) -> Iterator[str]:
    sex = {"M": "male", "F": "female"}.get(record["sex"] or "")
    age = "" if record["age"] is None else f"{record['age']:.0f} years"
    if said := [word for word in (record["view"], sex, age) if word]:
        yield f"{', '.join(said)} (by the file's header)"
    if record["righted"]:
        yield f"righted: {record['righted']}"
    for note in record["notes"]:
        yield f"doubtful: {note}"


def _legend(reader: "Reader", interpreter: "Interpreter") -> Iterator[str]:
    yield f"Checkpoint {reader.name}, films of {reader.size} pixels."
    if reader.decisions:
        yield "Probability: calibrated on validation films. Network itself: before that."
        yield f"Decision: threshold of the rule {interpreter.rule}, chosen on validation films."
    if ref := interpreter.ref:
        yield f"Above others: share of the validation films ({ref.known.max():,} in all) without"
        yield "the finding that got a lower probability."
        yield "Such calls are right: PPV of a positive, NPV of a negative one, from rates on"
        yield f"{ref.judged_on} films, at the prevalence: {interpreter.sources}."
    if reader.gate is None:
        yield "No gate travels with this checkpoint: a film unlike those of its training"
        yield "is not noticed by its features."
    yield "Research software, not a medical device."


def _row(cells: tuple[str, ...]) -> str:
    widths = (-19, 7, 8, 10, 8, 8, 12)
    return "".join(f"{cell:{'<' if w < 0 else '>'}{abs(w)}}" for cell, w in zip(cells, widths, strict=True)).rstrip()


def _decision(decision: str | None) -> str:
    return {"positive": "POSITIVE", "negative": "negative"}.get(decision or "", "-")


def _percent(value: float | None, digits: int, scale: int = 100) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f} %"
