"""Where things lie, and how a file is written so that it is never seen half-written."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrlib.errors import UserError

AGAIN = "again"
"""File in a stage's folder by which somebody asks for the stage to be trained again, though nothing has changed."""

TAKEN = r"stores|bench|(phantom|rehearsal-films|compare)-.*"
"""What else lies in the outputs folder: films decoded, measurements, sets that are drawn, pages that compare runs."""

PACKAGE = Path(__file__).resolve().parent


def project() -> Path:
    """The workbook's top folder: ``$CXR_PROJECT`` if set, else the checkout that holds the package, else here."""
    if "CXR_PROJECT" in os.environ:
        return Path(os.environ["CXR_PROJECT"]).resolve()
    return PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()


def notebooks() -> Path:
    return project() / "notebooks"


def outputs() -> Path:
    """Where every run's results go: ``$CXR_OUTPUTS`` if set, else ``outputs/`` of the project."""
    return Path(os.environ.get("CXR_OUTPUTS", project() / "outputs")).resolve()


def resolve(path: str | Path) -> Path:
    """Make a path given by a user absolute: as it stands if it is there, else relative to the project.

    So ``data`` means the same from the project folder, from ``notebooks/`` and under papermill.
    """
    given = Path(path).expanduser()
    if given.is_absolute() or given.exists():
        return given.resolve()
    return (project() / given).resolve()


@dataclass(frozen=True)
class Run:
    """The folder of one run and the names inside it, as the README's table gives them."""

    name: str

    def __post_init__(self) -> None:
        if not self.name or self.name in {".", ".."} or any(c in self.name for c in '/\\:*?"<>|\0'):
            raise UserError(f"run {self.name!r} cannot be a folder name; use letters, digits, - and _")
        if re.fullmatch(TAKEN, self.name, re.IGNORECASE):
            raise UserError(f"run {self.name!r} is the name of something else in {outputs()}; choose another by --run")

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
    """Give a temporary path beside ``path``; at the end sync it to disk and rename it into place.

    If the block raises, ``path`` stays as it was and the temporary file goes.
    Raises UserError where the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder or mend its rights") from None
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
    """Write JSON that a person can read; NaN and infinities are refused (ValueError), since JSON has none."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError naming the file where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to have it made again") from None


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
