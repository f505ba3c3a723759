"""Paths of data, notebooks and outputs; files written whole or not at all; the lock of a folder."""

import difflib
import glob
import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cxrlib import UserError, disk, provenance

if TYPE_CHECKING:  # pandas is slow to import, and the command line does not need it here
    import pandas as pd

AGAIN = "again"
"""Marker file in a stage's folder. It requests that the stage is trained again although nothing has changed."""

NAME = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}"
"""Names that a run can have. A leading hyphen would be read as a flag; the letters are those that every disk keeps."""

LOCK = ".lock"
"""File in a folder that a process uses, see ``lock_folder``."""

PREDICTIONS = "predictions"
"""Folder in the outputs folder for predictions of films that a user names."""

TAKEN = rf"stores|bench|teachers|readings|{PREDICTIONS}|(phantom|rehearsal-films|compare)-.*"
"""Reserved names in the outputs folder: film stores, benchmarks, teachers' probabilities, readings of test films,
predictions, phantom sets, rehearsal films, comparison pages."""

CHECKPOINT = ".safetensors"
"""Ending of a checkpoint's weights."""

MODEL = "model.safetensors"
"""Weights in an exported folder, under the Hub's name. Their JSON is ``config.json``."""

HUB = "hf:"
"""Start of the name of a checkpoint on the Hub."""

PACKAGE = Path(__file__).resolve().parent


def project() -> Path:
    """Top folder of the workbook: ``$CXR_PROJECT`` if set, else the package's checkout, else the current folder."""
    if "CXR_PROJECT" in os.environ:
        return Path(os.environ["CXR_PROJECT"]).resolve()
    return PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()


def notebooks() -> Path:
    return project() / "notebooks"


def outputs() -> Path:
    """Folder for the results of all runs: ``$CXR_OUTPUTS`` if set, else ``outputs/`` in the project."""
    return Path(os.environ.get("CXR_OUTPUTS", project() / "outputs")).resolve()


def resolve(path: str | Path) -> Path:
    """Absolute form of a user's path. A relative path starts from the current folder, as everywhere in a shell.

    In a notebook the current folder is the kernel's: in JupyterLab the notebook's own, under papermill the user's.
    Raises UserError for a path that no disk can have.
    """
    try:
        absolute = Path(path).expanduser().resolve()
        absolute.exists()  # raises where the name is too long
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"path {str(path)[:60]!r} cannot be used: {reason}") from None
    return absolute


def run_name_fault(name: str) -> str:
    """What is wrong with a run's name, as the end of a sentence; "" if it can be used."""
    if not re.fullmatch(NAME, name):
        return "cannot name a run; use 1 to 100 of the letters a to z, digits, - and _, and no - at the start"
    if re.fullmatch(TAKEN, name, re.IGNORECASE):
        return f"is a reserved name in {outputs()}; choose another with --run"
    return ""


def runs() -> list[str]:
    """Names of all runs in the outputs folder, sorted."""
    return sorted(file.parent.name for file in outputs().glob("*/run.json") if not run_name_fault(file.parent.name))


@dataclass(frozen=True)
class Run:
    """Folder of one run and the paths in it. The README's table lists the same names."""

    name: str

    def __post_init__(self) -> None:
        if fault := run_name_fault(self.name):
            shown = self.name if len(self.name) <= 120 else f"{self.name[:40]}…"
            raise UserError(f"run {shown!r} {fault}")

    @property
    def root(self) -> Path:
        return outputs() / self.name

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def stage(self, number: int) -> Path:
        return self.root / f"stage{number}"


def of_seed(name: str, seed: int) -> str:
    """Name of the run with this seed in the series ``name``: ``base-s0``."""
    return f"{name}-s{seed}"


def series_of(name: str) -> tuple[str, int] | None:
    """Series and seed of a run by its name, ("base", 0) for ``base-s0``; None for any other name."""
    match = re.fullmatch(r"(.+)-s(0|[1-9]\d*)", name)
    return (match[1], int(match[2])) if match else None


def averaged(run: Run) -> list[str]:
    """Names of the runs that a run is the mean of, which ``cxr ensemble`` made; empty for any other run.

    A record that is absent or damaged names none.
    """
    with suppress(UserError, AttributeError, KeyError, TypeError):
        return [str(member["run"]) for member in read_json(run.run_json).get("members", [])]
    return []


def check_has_network(run: Run) -> None:
    """Raise UserError for the mean of several runs, which has no network of its own."""
    if members := averaged(run):
        raise UserError(
            f"run {run.name} is the mean of the predictions of {', '.join(members)} and has no network of its own; "
            "name one of these"
        )


def last_checkpoint(name: str) -> Path | None:
    """Best checkpoint of the last finished stage of the run with this name, None where there is none."""
    if run_name_fault(name) or not (outputs() / name).is_dir():
        return None
    run = Run(name)
    for record in (run.stage(number) / "best.json" for number in (5, 4, 3, 2, 1)):
        best = read_best(record) if record.is_file() else None
        if best and (path := record.with_name(f"{best}{CHECKPOINT}")).is_file():
            return path
    return None


def find_checkpoint(ckpt: str, run: Run | None = None) -> Path:
    """Find a checkpoint by path or by name, with or without ending: first in the run's stages, then in all runs.

    An exported folder gives its weights, and ``hf:owner/name[@revision]`` those of a model on the Hub.
    Raises UserError that lists the candidates where there is none or more than one.
    """
    if not ckpt:
        raise UserError("ckpt is empty; give a checkpoint's name such as stage5_1e-06_22, or a path")
    if ckpt.startswith(HUB):
        from cxrlib import hub

        return _weights_in(hub.download(ckpt), ckpt)
    if is_model_folder(ckpt):
        return resolve(ckpt) / MODEL
    title = ckpt.removesuffix(CHECKPOINT).removesuffix(".json")
    path = resolve(title + CHECKPOINT)
    if path.is_file():
        return path
    if Path(title).name == "config" and (path.parent / MODEL).is_file():
        return path.parent / MODEL
    places = [(run.root, "stage*")] if run is not None else []
    places += [(outputs(), "*/stage*")]
    for root, pattern in places:
        named = glob.escape(title) + CHECKPOINT
        matches = sorted(root.glob(f"{pattern}/{named}")) if title and Path(title).name == title else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UserError(f"checkpoint {ckpt!r} is in several runs; give a path: {', '.join(map(str, matches))}")
    names = sorted({path.stem for root, pattern in places for path in root.glob(f"{pattern}/stage*{CHECKPOINT}")})
    similar = difflib.get_close_matches(title, names, 1)
    there = (", ".join(names) or "none yet, train a stage first") + (f"; did you mean {similar[0]}?" if similar else "")
    raise UserError(f"there is no checkpoint {ckpt!r}; there are: {there}")


def is_model_folder(path: str) -> bool:
    """Whether a path is a folder with weights under the Hub's name, as ``cxr export`` writes it."""
    return bool(path) and (resolve(path) / MODEL).is_file()


def _weights_in(folder: Path, ckpt: str) -> Path:
    if not (folder / MODEL).is_file():
        raise UserError(f"{ckpt} has no {MODEL}, so it is no checkpoint that cxr export wrote")
    return folder / MODEL


@contextmanager
def atomic(path: Path, *, need: int = 0) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``. At the end, sync the file to disk and rename it to ``path``.

    need: bytes that will be written, for the message of a full disk; 0 if unknown.
    If the block raises, ``path`` is unchanged and the temporary file is deleted.
    Raises UserError (``disk.DiskError``) if the file cannot be written: a full disk, a folder without permission.
    """
    with disk.writing(path, need=need):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}."[:200], suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _sync(path.parent)
        finally:
            with suppress(OSError):  # the disk may have become read-only in between
                temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, atomically. Raises UserError if the disk is full or the folder not writable."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically. Raises UserError if the disk is full or the folder not writable."""
    with atomic(path, need=len(content)) as temporary:
        temporary.write_bytes(content)
    return path


def write_csv(path: Path, table: "pd.DataFrame", *, index: bool = False, float_format: str | None = None) -> Path:
    """Write a table as CSV, atomically; without its index unless ``index``. Raises UserError as ``write_text``."""
    return write_text(path, table.to_csv(index=index, float_format=float_format))


def read_best(record: Path) -> str:
    """Name of the best checkpoint from a stage's ``best.json``. Raises UserError if the file is not of that shape."""
    content = read_json(record)
    best = content.get("best") if isinstance(content, dict) else None
    if not isinstance(best, str) or not best:
        raise UserError(f"{record} names no best checkpoint; delete it, and run the stage again")
    return best


GUARD = "content_sha256"
"""Key of a guarded JSON object with the hash of all its other content."""


def write_json(path: Path, value: Any, *, guarded: bool = False, indent: int | None = 2) -> Path:
    """Write JSON. ``guarded`` adds a hash of the content to an object, which ``read_json`` checks.

    ``indent`` None writes one line. Raises ValueError for NaN and infinity, which JSON does not have.
    """
    separators = (",", ":") if indent is None else None
    value = {**value, GUARD: content_hash(value)} if guarded else value
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def text_of(file: Path) -> str:
    """Text of a file, "" if it is absent or no text."""
    with suppress(FileNotFoundError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8")
    return ""


def read_json(path: Path, *, check: bool = True) -> Any:
    """Read a JSON file. Raises UserError with the file's name if it is absent, damaged, or changed though guarded.

    The guard is no part of the result. A file without a guard is read as it is. With ``check`` False the guard stays in
    the result, for ``check_guard``.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it so that it is made again") from None
    return check_guard(path, value) if check else value


def check_guard(path: Path, value: Any) -> Any:
    """Content of a JSON file without its guard. Raises UserError if the guard is of other content."""
    if not isinstance(value, dict) or GUARD not in value:
        return value
    content = {name: item for name, item in value.items() if name != GUARD}
    if content_hash(content) != value[GUARD]:
        raise UserError(f"{path} was changed or damaged after it was written; delete it so that it is made again")
    return content


def content_hash(value: Any) -> str:
    """SHA-256 of plain data as JSON, 64 hex digits. Spaces and the order of keys do not count."""
    plain = json.loads(json.dumps(value, allow_nan=False))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


LARGE = 4_000_000
"""Bytes from which a result is hashed again only if its size, time or inode changed. Weights are checked when read."""

Mark = list[str | int]
"""Mark of a result: SHA-256, bytes, mtime_ns, inode. A list, as JSON gives it back; empty for no file."""


def result_mark(file: Path) -> Mark:
    """Mark of a run's file as it is now."""
    try:
        return [_result_hash(file), *_stamp(file)] if file.is_file() else []
    except OSError as error:
        return [f"unreadable: {error.strerror}", 0, 0, 0]


def changed_results(root: Path, marks: Mapping[str, Mark]) -> list[str]:
    """Names of the results in a run folder that are absent or not what was made. ``marks`` is by path in the folder."""
    return [name for name, mark in marks.items() if not _is_as_marked(root / name, mark)]


def _is_as_marked(file: Path, mark: Mark) -> bool:
    with suppress(OSError):
        if file.stat().st_size >= LARGE and _stamp(file) == mark[1:]:
            return True
    return result_mark(file)[:1] == mark[:1]


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _result_hash(file: Path) -> str:
    """SHA-256. That of a checkpoint's JSON leaves out what an evaluation attached to it."""
    if not (file.suffix == ".json" and file.name.startswith("stage")):
        return provenance.file_sha256(file)
    try:
        content = read_json(file)
    except UserError:
        return "damaged"
    kept = {name: value for name, value in content.items() if name != "attached"} if isinstance(content, dict) else []
    return content_hash(kept)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder to sync it
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock ``folder`` for this process. The lock ends with the process, also if the process is killed.

    Raises UserError with the other process's id if another process has the lock, and if the folder cannot be written.
    """
    holder = folder / ".holder.json"
    with disk.writing(folder / LOCK, kept=""):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{folder} is in use by {_lock_holder(holder)}; wait for it, or use another --run"
            ) from None
    try:
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": provenance.now()})
        yield
    finally:
        with suppress(OSError):  # the disk may have become read-only in between
            holder.unlink(missing_ok=True)
        lock.release()


def _lock_holder(holder: Path) -> str:
    try:
        entry = json.loads(holder.read_text())
        return f"process {entry['pid']} on {entry['host']} since {entry['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
