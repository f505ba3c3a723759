"""Record of a run, ``run.json``: what made each notebook's results, and what has changed since.

What made a notebook's results is one fingerprint: its source, its parameters, the code it uses, the films and what
else is read of their folder, the checkpoints that it takes from stages, and all that for every notebook before it.
"""

import ast
import glob
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cxrlib import UserError, disk, paths, provenance
from cxrlib.workbook import settings
from cxrlib.workbook.settings import Scalar

NOT_IN_CODE = ("cxrlib.report.report",)
"""Modules whose change does not execute a notebook again: the chain writes the report again by itself."""

STAGES = (1, 2, 3, 4, 5)
SUFFIX = ".safetensors"  # as in training.checkpoint, whose import would load torch

PASSING = ("report.html", "run.json", "progress.json")
"""Files of a run folder that are not results of a notebook."""


def read(home: paths.Run) -> dict[str, Any]:
    """The run's record; empty for a new run. Raises UserError if the file is damaged or not readable."""
    try:
        content = paths.read_json(home.run_json) if home.run_json.exists() else {}
        if fault := _shape_fault(content):
            raise UserError(f"{home.run_json} is no record of a run: {fault}")
        return content
    except OSError as error:
        raise disk.fault(home.run_json, disk.number(error), kept="", verb="read") from None
    except UserError as error:
        reason = str(error).partition("; delete")[0]
        raise UserError(
            f"{reason}; delete it and give the run's settings again: finished stages are not trained again"
        ) from None


def _shape_fault(content: Any) -> str:
    """What is wrong with the shape of a record, as the end of a sentence; "" if all that is read of it is there."""
    if content == {}:
        return ""
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}"
    for name in ("settings", "data", "notebooks"):
        if not isinstance(content.get(name, {}), dict):
            return f"{name} is no object"
    for stem, entry in content.get("notebooks", {}).items():
        whole = isinstance(entry, dict) and isinstance(entry.get("parameters", {}), dict)
        whole = whole and isinstance(entry.get("outputs", []), list) and isinstance(entry.get("made", {}), dict)
        if not whole or (entry.get("state") == "done" and "fingerprint" not in entry):
            return f"the entry of {stem} has another shape"
    data = content.get("data", {})
    absent = [name for name in ("fingerprint", "folder", "films") if data and name not in data]
    return f"data has no {absent[0]}" if absent else ""


def done(record: Mapping) -> dict[str, dict[str, Scalar]]:
    """Parameters of the notebooks that are finished, by stem."""
    entries = record.get("notebooks", {}).items()
    return {stem: entry.get("parameters", {}) for stem, entry in entries if entry.get("state") == "done"}


def open_record(
    before: Mapping, asked: Mapping[str, Scalar], parameters: Mapping[str, Scalar], films: Mapping
) -> dict[str, Any]:
    """The record at the start of a call.

    asked: the user's settings, of this call and earlier ones; parameters: the values that all stages share.
    """
    names = ("device", "git", "versions", "updated", "report", "report_mark")
    earlier = {key: before[key] for key in names if key in before}
    return {
        "run": asked["run"],
        "created": before.get("created", provenance.now()),
        "settings": dict(asked),
        "parameters": dict(parameters),
        "data": dict(films),
        **earlier,
        "notebooks": dict(before.get("notebooks", {})),
    }


def check_same_films(before: Mapping, films: Mapping) -> None:
    """Raise UserError if a run would mix two data sets; the same films moved, or more films in the folder, are fine."""
    old = before.get("data", films)
    if old["fingerprint"] != films["fingerprint"] and old["folder"] != films["folder"]:
        raise UserError(
            f"run {before['run']!r} was made on other films: {old['films']} in {old['folder'] or 'the phantom set'}; "
            "give this one another name with --run"
        )


def check_trained(before: Mapping) -> None:
    """Raise UserError for the record of a mean of runs, which no notebook makes."""
    if members := [member["run"] for member in before.get("members", [])]:
        raise UserError(
            f"run {before['run']!r} is the mean of {', '.join(members)}, which cxr ensemble made; "
            "give this one another name with --run"
        )


def code_version(book: Path) -> str:
    """Fingerprint of the code that a notebook imports, directly or indirectly, except ``NOT_IN_CODE``."""
    imports: set[str] = set()
    for cell in settings.cells(book):
        if cell["cell_type"] == "code":
            with suppress(SyntaxError):  # a notebook magic, or an error that the execution will report
                imports |= provenance.imports(ast.parse(settings.source(cell)))
    return provenance.code_version(*sorted(imports), without=NOT_IN_CODE)


def fingerprint(book: Path, books: list[Path], shares: Mapping[str, Mapping[str, Scalar]], record: Mapping) -> str:
    """Fingerprint of all that a notebook's results depend on now, the stages before it included.

    shares: each notebook's parameters, by its stem. Only stages pass results on, so other notebooks before it are
    left out.
    """
    earlier = [other for other in books if other.stem < book.stem and settings.part(other).startswith("stage")]
    before = fingerprint(earlier[-1], books, shares, record) if earlier else ""
    share, sources = shares[book.stem], [[cell["cell_type"], settings.source(cell)] for cell in settings.cells(book)]
    films = [record["data"]["fingerprint"], _contents(record, "".join(source for _, source in sources))]
    parents = _parents(paths.Run(record["run"]), settings.part(book), share)
    return provenance.digest([sources, dict(share), code_version(book), films, before, _weights(share), parents])


def unchanged(home: paths.Run, record: Mapping, book: Path, made_by: str) -> bool:
    """True if the notebook was executed with this fingerprint and its files are what it made."""
    return _is_done(record, book, made_by) and not changed_outputs(home, record, book)


def why_again(home: paths.Run, record: Mapping, book: Path, made_by: str) -> str:
    """A sentence that a notebook is executed again because its files are not what it made; "" for another reason."""
    changed = changed_outputs(home, record, book) if _is_done(record, book, made_by) else []
    if not changed or "made" not in record["notebooks"][book.stem]:
        return ""
    more = f" and {len(changed) - 1} more are" if len(changed) > 1 else " is"
    return f"{book.stem} is executed again: {changed[0]}{more} not what it made"


def _is_done(record: Mapping, book: Path, made_by: str) -> bool:
    entry = record["notebooks"].get(book.stem, {})
    return entry.get("state") == "done" and entry["fingerprint"] == made_by


def changed_outputs(home: paths.Run, record: Mapping, book: Path) -> list[str]:
    """Files of an executed notebook that are absent, or not what it made: by another hand, a later execution, a fault.

    An entry of an older version has no hashes, and all its files count.
    """
    entry = record["notebooks"].get(book.stem, {})
    absent = [name for name in entry.get("outputs", []) if not (home.root / name).exists()]
    if "made" not in entry:
        return [*entry.get("outputs", []), f"notebooks/{book.name}"]
    return sorted({*absent, *paths.changed_results(home.root, entry["made"])})


def marks(home: paths.Run, book: Path, outputs: Iterable[str]) -> dict[str, paths.Mark]:
    """Marks of a notebook's own files and of the executed notebook.

    Files in a stage's folder are the stage's own, except the gate, which the evaluation makes.
    """
    names = [f"notebooks/{book.name}", *(name for name in outputs if _is_own(settings.part(book), name))]
    found = {name: paths.result_mark(home.root / name) for name in names}
    return {name: mark for name, mark in found.items() if mark}


def _is_own(part: str, name: str) -> bool:
    folder, _, file = name.rpartition("/")
    top = folder.partition("/")[0]
    if file.startswith("gate_") and not part.startswith("stage"):
        return True
    return top == part or not re.fullmatch(r"stage\d", top)


def hand_over(record: Mapping, stem: str, written: Iterable[str]) -> None:
    """Take files that a notebook has just written from the notebooks that wrote them before."""
    names = set(written)
    for other, entry in record["notebooks"].items():
        own = f"stage{other[1]}/" if other[3:].startswith("stage") else None
        for name in names & entry.get("made", {}).keys() if other != stem else ():
            if not (own and name.startswith(own)):
                del entry["made"][name]


def files_written_since(root: Path, since: float) -> set[str]:
    """Files of the run folder written since a time, as paths relative to it; ``PASSING`` and notebooks are left out."""
    files = (file for file in root.rglob("*") if file.is_file() and file.stat().st_mtime >= since)
    names = {file.relative_to(root) for file in files if file.name not in PASSING and not file.name.startswith(".")}
    return {name.as_posix() for name in names if name.parts[0] != "notebooks"}


def _contents(record: Mapping, sources: str) -> dict[str, str]:
    """Fingerprints of the data folder's files; that of the boxes only for a notebook that reads them."""
    contents = record["data"].get("contents", {})
    return {name: value for name, value in contents.items() if name != "boxes" or "read_boxes" in sources}


def _parents(home: paths.Run, part: str, share: Mapping[str, Scalar]) -> list:
    """Checkpoints that a notebook takes from the stages before it; none if ``ckpt`` names one."""
    if share.get("ckpt") or part == "exploration":
        return []
    number = part.removeprefix("stage")
    stages = [int(number) - 1] if number.isdigit() else STAGES
    return [_best(home.stage(stage)) for stage in stages]


def _best(folder: Path) -> list:
    """Hashes of a stage's ``best.json`` and best checkpoint, and its size; shorter if files are absent."""
    values: list = []
    with suppress(UserError, OSError, KeyError, TypeError):  # absent or damaged
        values.append(provenance.file_sha256(folder / "best.json"))
        file = folder / f"{paths.read_best(folder / 'best.json')}{SUFFIX}"
        values += [paths.read_json(file.with_suffix(".json"))["sha256"], file.stat().st_size]
    return values


def _weights(share: Mapping[str, Scalar]) -> list:
    """Size and time of the files that ``ckpt``, ``weights`` and ``teacher`` may mean.

    So another file of the same name counts. The JSON beside a checkpoint is left out: an evaluation stores its
    calibration there, which must not execute it again.
    """
    words = [str(share[name]) for name in ("ckpt", "weights") if share.get(name)]
    words += filter(None, str(share.get("teacher", "")).split(","))
    named = [word.removesuffix(".json").removesuffix(SUFFIX) for word in words]
    files = [
        file
        for name in named
        for file in (
            paths.resolve(name),
            paths.resolve(name + SUFFIX),
            paths.resolve(name) / paths.MODEL,
            *paths.outputs().glob(f"*/stage*/{glob.escape(Path(name).name)}{SUFFIX}"),
        )
    ]
    stats = [(file.name, file.stat()) for file in sorted(set(files)) if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
