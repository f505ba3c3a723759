"""``cxr tidy``: disk space of a finished run that nothing needs any more, and what a run needs on the disk."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cxrlib import UserError, disk, paths
from cxrlib.workbook import run_record

WEIGHTS = 94_400_000
"""Bytes of a ResNet-50 with one input channel and 15 outputs in float32."""


@dataclass(frozen=True)
class Freed:
    """What can be removed, as words for the user, its files and their bytes."""

    what: str
    files: tuple[Path, ...]
    bytes: int


def _freed(what: str, files: Iterable[Path]) -> Freed:
    there = tuple(sorted({file for file in files if file.is_file()}))
    return Freed(what, there, sum(file.stat().st_size for file in there))


def tidy(name: str, *, dry_run: bool = False) -> list[Freed]:
    """Remove the optimizer's moments of a run's finished stages, and what kills left. Returns what it was.

    ``dry_run`` removes nothing. Checkpoints, predictions, tables and figures stay, and no step is done again for it.
    Raises UserError for an absent run, and while the run or one of its stages is in use.
    """
    home = paths.Run(name)
    if not home.run_json.is_file():
        raise UserError(f"there is no run {name!r}; the runs are: {', '.join(paths.runs()) or 'none yet'}")
    stages = [folder for folder in map(home.stage, run_record.STAGES) if folder.is_dir()]
    with ExitStack() as locks:
        for folder in (home.root, *stages):
            locks.enter_context(paths.lock_folder(folder))
        found = [*_moments(stages), *_leftovers(home)]
        if not dry_run:
            _remove(home, found)
    return found


def _moments(stages: Iterable[Path]) -> list[Freed]:
    """Moments of finished stages. A stage that is not finished keeps its states, to go on from."""
    from cxrlib.training import checkpoint, stage_folder  # PyTorch takes seconds to load

    found = []
    for folder in stages:
        file = folder / stage_folder.MOMENTS
        if (folder / "best.json").is_file() and file.is_file():
            found.append(_freed(f"moments of {folder.name}", (file, checkpoint.json_beside(file))))
    return found


def _leftovers(home: paths.Run) -> list[Freed]:
    """Temporary files of killed processes, a notebook that was being executed, states of a finished stage."""
    names = {".*.tmp": "temporary files", ".tmp*": "temporary files", "*.running.ipynb": "an unfinished notebook"}
    found: dict[str, list[Path]] = {}
    for pattern, what in names.items():
        found.setdefault(what, []).extend(home.root.rglob(pattern))
    for folder in map(home.stage, run_record.STAGES):
        if (folder / "best.json").is_file():
            found.setdefault("states of finished stages", []).extend((folder / "state").glob("*-*.*"))
    return [part for part in (_freed(what, files) for what, files in found.items()) if part.files]


def _remove(home: paths.Run, found: Iterable[Freed]) -> None:
    """Remove files, first from the record of the run, so that no notebook is executed again since they are gone."""
    from cxrlib.training import stage_folder

    names = {file.relative_to(home.root).as_posix() for part in found for file in part.files}
    record = run_record.read(home)
    for entry in record.get("notebooks", {}).values():
        entry["outputs"] = [name for name in entry.get("outputs", []) if name not in names]
        if "made" in entry:
            entry["made"] = {name: mark for name, mark in entry["made"].items() if name not in names}
    paths.write_json(home.run_json, record, guarded=True)
    for part in found:
        for file in part.files:
            if file.name == stage_folder.MOMENTS:
                stage_folder.remove_moments(file.parent)
            file.unlink(missing_ok=True)


def room(films: int, size: int, stages: int, *, stored: bool = False) -> int:
    """Disk space in bytes that a run needs at most from here on: the store, and the stages that are to be trained.

    A byte per pixel of a film, unless it is ``stored``. A stage keeps its best checkpoint and its last, and two moments
    per weight; the one that trains has three resume states more, of the weights and two moments each.
    """
    store = 0 if stored else films * size * size * 51 // 50 + 10_000_000
    return store + (4 * stages + 9 * bool(stages)) * WEIGHTS


def require_room(home: paths.Run, books: Iterable[Path], films: Mapping, size: int, *, stored: bool) -> None:
    """Raise UserError with figures if the disk has less room than the notebooks ``books`` of a run can need.

    Nothing is asked for where no stage is left to train.
    """
    names = [book.stem for book in books if book.stem[3:].startswith("stage")]
    left = [name for name in names if not (home.root / name[3:] / "best.json").is_file()]
    if not left:
        return
    count = int(films.get("films", 0))
    what = f"this run ({count:,} films of {size} pixels, {len(left)} stages to train)"
    advice = "put CXR_OUTPUTS on another disk, or free some of a finished run by cxr tidy RUN"
    disk.require(home.root, room(count, size, len(left), stored=stored), what, advice)
