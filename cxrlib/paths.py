"""Paths of data, notebooks and outputs; files written whole or not at all; the lock of a folder."""

import json
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cxrlib import UserError, provenance

AGAIN = "again"
"""Marker file in a stage's folder. It requests that the stage is trained again although nothing has changed."""

TAKEN = r"stores|bench|(phantom|rehearsal-films|compare)-.*"
"""Reserved names in the outputs folder: film stores, benchmarks, phantom sets, rehearsal films, comparison pages."""

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
    """Absolute form of a user's path. A relative path that does not exist here is taken relative to the project.

    So ``data`` has the same meaning in the project folder, in ``notebooks/`` and under papermill.
    """
    path = Path(path).expanduser()
    if path.is_absolute() or path.exists():
        return path.resolve()
    return (project() / path).resolve()


@dataclass(frozen=True)
class Run:
    """Folder of one run and the paths in it. The README's table lists the same names."""

    name: str

    def __post_init__(self) -> None:
        if not self.name or self.name in {".", ".."} or any(c in self.name for c in '/\\:*?"<>|\0'):
            raise UserError(f"run {self.name!r} cannot be a folder name; use letters, digits, - and _")
        if re.fullmatch(TAKEN, self.name, re.IGNORECASE):
            raise UserError(f"run {self.name!r} is a reserved name in {outputs()}; choose another with --run")

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


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``. At the end, sync the file to disk and rename it to ``path``.

    If the block raises, ``path`` is unchanged and the temporary file is deleted.
    Raises UserError if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another folder or correct its permissions"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON. Raises ValueError for NaN and infinity, which JSON does not have."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError with the file's name if it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it so that it is made again") from None


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is in use by {_lock_holder(holder)}; wait for it, or use another --run") from None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; set CXR_OUTPUTS to a folder that you own") from None
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
