"""What a run remembers of itself in ``run.json``, and what has changed since.

What made a notebook's results is one fingerprint: its source, its parameters, the code it uses, the films, and the
fingerprint of the notebook before it.
"""

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrlib import paths, provenance
from cxrlib.errors import UserError
from cxrlib.workbook import settings
from cxrlib.workbook.settings import Scalar

FLOORS = ("*.py", "data/*.py", "training/*.py", "evaluation/*.py", "workbook/widgets.py")
"""The code that notebooks use: a change of it has them executed again. The chain itself is not among it."""

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


def code_version() -> str:
    """Fingerprint of the code that notebooks use."""
    files = sorted(file for pattern in FLOORS for file in paths.PACKAGE.glob(pattern))
    return provenance.digest([[str(file.relative_to(paths.PACKAGE)), provenance.file_sha256(file)] for file in files])


def fingerprint(book: Path, books: list[Path], share: Mapping[str, Scalar], record: Mapping, code: str) -> str:
    """What made, or would make, a notebook's results. Exploration hands nothing on, so it is nobody's `before`."""
    earlier = [other.stem for other in books if other.stem < book.stem and not other.stem.startswith("00")]
    before = record["notebooks"].get(earlier[-1], {}).get("fingerprint", "") if earlier else ""
    sources = [[cell["cell_type"], settings.source(cell)] for cell in settings.cells(book)]
    return provenance.digest([sources, dict(share), code, record["data"]["fingerprint"], before, _weights(share)])


def unchanged(home: paths.Run, record: Mapping, book: Path, made_by: str) -> bool:
    """Whether the notebook was executed with this fingerprint and its files are still there."""
    entry = record["notebooks"].get(book.stem, {})
    if entry.get("state") != "done" or entry["fingerprint"] != made_by:
        return False
    return all((home.root / file).exists() for file in (f"notebooks/{book.name}", *entry["outputs"]))


def written(root: Path, since: float) -> set[str]:
    """Files of the run folder written since a time, relative to it, without those that come and go."""
    files = (file for file in root.rglob("*") if file.is_file() and file.stat().st_mtime >= since)
    found = {file.relative_to(root) for file in files if file.name not in PASSING and not file.name.startswith(".")}
    return {file.as_posix() for file in found if file.parts[0] != "notebooks"}


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
