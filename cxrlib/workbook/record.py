"""What a run remembers of itself in ``run.json``, and what has changed since.

What made a notebook's results is one fingerprint: its source, its parameters, the code it uses, the films and what
else is read of their folder, the checkpoints that it takes from stages, and all that for every notebook before it.
"""

import ast
import glob
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cxrlib import paths, provenance
from cxrlib.errors import UserError
from cxrlib.workbook import settings
from cxrlib.workbook.settings import Scalar

APART = ("cxrlib.workbook.report",)
"""What a notebook imports and the chain does anew by itself: a change of it has no notebook executed again."""

STAGES = (1, 2, 3, 4, 5)
SUFFIX = ".safetensors"  # as in training.checkpoint, which would bring torch along

PASSING = ("report.html", "run.json", "progress.json")
"""Files of a run folder that are nobody's result, or come and go."""


def read(home: paths.Run) -> dict[str, Any]:
    """The run's record, empty for a new run. Raises UserError where the file is damaged."""
    return paths.read_json(home.run_json) if home.run_json.exists() else {}


def opened(
    before: Mapping, asked: Mapping[str, Scalar], parameters: Mapping[str, Scalar], films: Mapping
) -> dict[str, Any]:
    """The record as it stands at the start of a call.

    asked: the settings given, now and before; parameters: what they and the defaults amount to for all stages alike.
    """
    kept = {key: before[key] for key in ("device", "git", "versions", "updated", "report") if key in before}
    return {
        "run": asked["run"],
        "created": before.get("created", provenance.now()),
        "settings": dict(asked),
        "parameters": dict(parameters),
        "data": dict(films),
        **kept,
        "notebooks": dict(before.get("notebooks", {})),
    }


def check_same_films(before: Mapping, films: Mapping) -> None:
    """Refuse to mix two data sets in one run; the same films at another place, or more films at the same, are fine."""
    old = before.get("data", films)
    if old["fingerprint"] != films["fingerprint"] and old["folder"] != films["folder"]:
        raise UserError(
            f"run {before['run']!r} was made on other films: {old['films']} in {old['folder'] or 'the phantom set'}; "
            "give this one another name with --run"
        )


def code_version(book: Path) -> str:
    """Fingerprint of the code that a notebook imports, with all that this imports in turn, but for ``APART``."""
    found: set[str] = set()
    for cell in settings.cells(book):
        if cell["cell_type"] == "code":
            with suppress(SyntaxError):  # a notebook's own magic, or a slip that its execution will tell of
                found |= provenance.imports(ast.parse(settings.source(cell)))
    return provenance.code_version(*sorted(found), without=APART)


def fingerprint(book: Path, books: list[Path], shares: Mapping[str, Mapping[str, Scalar]], record: Mapping) -> str:
    """What made, or would make, a notebook's results, from the first notebook of the chain on, as all of it is now.

    shares: each notebook's parameters, by its stem. Only stages hand something on, so no other is anybody's `before`.
    """
    earlier = [other for other in books if other.stem < book.stem and settings.part(other).startswith("stage")]
    before = fingerprint(earlier[-1], books, shares, record) if earlier else ""
    share, sources = shares[book.stem], [[cell["cell_type"], settings.source(cell)] for cell in settings.cells(book)]
    films = [record["data"]["fingerprint"], _contents(record, "".join(source for _, source in sources))]
    handed_on = _handed_on(paths.Run(record["run"]), settings.part(book), share)
    return provenance.digest([sources, dict(share), code_version(book), films, before, _weights(share), handed_on])


def unchanged(home: paths.Run, record: Mapping, book: Path, made_by: str) -> bool:
    """Whether the notebook was executed with this fingerprint and its files are there as it left them."""
    entry = record["notebooks"].get(book.stem, {})
    if entry.get("state") != "done" or entry["fingerprint"] != made_by:
        return False
    there = all((home.root / file).exists() for file in (f"notebooks/{book.name}", *entry["outputs"]))
    return there and entry.get("left") == left(home, entry["outputs"])


def left(home: paths.Run, outputs: Iterable[str]) -> str:
    """Fingerprint of a notebook's files by their bytes, so that one executed by hand since shows.

    Of a stage's folder ``best.json`` alone, which is written when a stage was trained: looking at it, letting a
    calibration travel with its checkpoint, or going on from it changes other files there.
    """
    own = [file for file in sorted(outputs) if not file.startswith("stage") or file.endswith("/best.json")]
    files = [home.root / file for file in own]
    return provenance.digest([[name, provenance.file_sha256(file)] for name, file in zip(own, files, strict=True)
                              if file.is_file()])  # fmt: skip


def written(root: Path, since: float) -> set[str]:
    """Files of the run folder written since a time, relative to it, without those that come and go."""
    files = (file for file in root.rglob("*") if file.is_file() and file.stat().st_mtime >= since)
    found = {file.relative_to(root) for file in files if file.name not in PASSING and not file.name.startswith(".")}
    return {file.as_posix() for file in found if file.parts[0] != "notebooks"}


def _contents(record: Mapping, sources: str) -> dict[str, str]:
    """What the data folder held, as ``contents.fingerprints`` says; the boxes only for a notebook that reads them."""
    held = record["data"].get("contents", {})
    return {name: value for name, value in held.items() if name != "boxes" or "read_boxes" in sources}


def _handed_on(home: paths.Run, part: str, share: Mapping[str, Scalar]) -> list:
    """The checkpoints that a notebook takes from the stages before it, where it is not given one by ``ckpt``."""
    if share.get("ckpt") or part == "exploration":
        return []
    number = part.removeprefix("stage")
    stages = [int(number) - 1] if number.isdigit() else STAGES
    return [_best(home.stage(stage)) for stage in stages]


def _best(folder: Path) -> list:
    """What a stage came to: its record, and its best checkpoint's hash and size; as much as is there of it."""
    found: list = []
    with suppress(UserError, OSError, KeyError, TypeError):  # absent or damaged
        found.append(provenance.file_sha256(folder / "best.json"))
        file = folder / f"{paths.read_json(folder / 'best.json')['best']}{SUFFIX}"
        found += [paths.read_json(file.with_suffix(".json"))["sha256"], file.stat().st_size]
    return found


def _weights(share: Mapping[str, Scalar]) -> list:
    """Size and time of the weights that ``ckpt`` and ``weights`` may mean: another file of the same name is a change.

    The JSON beside a checkpoint is none of them: an evaluation lets its calibration travel there, and is not to be
    executed again for that.
    """
    named = [
        str(share[name]).removesuffix(".json").removesuffix(SUFFIX) for name in ("ckpt", "weights") if share.get(name)
    ]
    files = [
        file
        for name in named
        for file in (
            paths.resolve(name),
            paths.resolve(name + SUFFIX),
            *paths.outputs().glob(f"*/stage*/{glob.escape(Path(name).name)}{SUFFIX}"),
        )
    ]
    stats = [(file.name, file.stat()) for file in sorted(set(files)) if file.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
