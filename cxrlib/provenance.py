"""What made a result: versions, code, data, machine, in forms that can be compared."""

import ast
import hashlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock, Timeout

from cxrlib import __version__, paths
from cxrlib.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "opencv-python", "papermill")


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(value: Any) -> str:
    """Fingerprint of plain data (numbers, strings, lists, dicts): 16 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_version(*rooms: ModuleType | str, without: Collection[str] = ()) -> str:
    """Fingerprint of what the given modules of ``cxrlib`` mean, with all of it that they import, directly or not.

    Comments, docstrings and formatting are no part of it; anything else is, in any module on the way. Modules named in
    ``without`` are passed over, with what only they import.
    """
    names = [room if isinstance(room, str) else room.__name__ for room in rooms]
    return digest([[name, _read_module(_file(name)).meaning] for name in closure(*names, without=without)])


def closure(*names: str, without: Collection[str] = ()) -> list[str]:
    """Names of the modules of ``cxrlib`` that the given ones import, directly or not, themselves included, sorted.

    As they stand in the source, in functions too; what is imported for types only, or only by a program's start
    (``__name__ == "__main__"``), does not count. Importing a module runs the packages it lies in; ``cxrlib`` itself,
    which holds nothing but its version, is left out.
    """
    found, ahead = set(), list(names)
    while ahead:
        name = ahead.pop()
        if name in found or name in without or _file(name) is None:
            continue
        found.add(name)
        ahead += [name.rpartition(".")[0], *_read_module(_file(name)).imports]
    return sorted(found - {paths.PACKAGE.name})


def imports(tree: ast.AST, package: str = "") -> set[str]:
    """What a syntax tree imports, by full name: ``from cxrlib import paths`` gives ``cxrlib`` and ``cxrlib.paths``.

    ``package`` is the one that relative imports are seen from.
    """
    found = set()
    for node in _that_run(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


class _Module(NamedTuple):
    meaning: str
    imports: frozenset[str]


def _read_module(file: Path) -> _Module:
    status = file.stat()
    return _parsed(file, status.st_size, status.st_mtime_ns)


@cache
def _parsed(file: Path, size: int, mtime_ns: int) -> _Module:
    """A module's meaning and imports, once for each state of its file."""
    tree = ast.parse(file.read_bytes())
    inside = file.relative_to(paths.PACKAGE.parent)
    return _Module(digest(_meaning(tree)), frozenset(imports(tree, ".".join(inside.parent.parts))))


def _file(name: str) -> Path | None:
    """The source of a module of ``cxrlib``; None for another's, and for a name that is no module."""
    head, *rest = name.split(".")
    if head != paths.PACKAGE.name:
        return None
    stem = paths.PACKAGE.joinpath(*rest)
    return next((file for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if file.is_file()), None)


def _meaning(value: Any) -> Any:
    """A syntax tree as plain data, without docstrings and without what is empty, which differs between Pythons."""
    if isinstance(value, ast.AST):
        fields = {name: _meaning(item) for name, item in ast.iter_fields(value) if item not in (None, [])}
        return [type(value).__name__, fields]
    if isinstance(value, list):
        return [_meaning(item) for item in value if not _says_only(item)]
    return value if isinstance(value, str | bool | int | None) else [type(value).__name__, repr(value)]


def _says_only(node: Any) -> bool:
    """Whether a statement is a string alone: a docstring, or a word about the constant above it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _that_run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a tree, without blocks for type checkers and for a program's start."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        children = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    yield node
    for child in children:
        yield from _that_run(child)


def versions() -> dict[str, str]:
    """Versions of Python, the operating system, this package and those that compute; absent ones are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "cxrlib": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table() -> "pd.DataFrame":
    """Versions, code and device as a table of one column, for a notebook's first page."""
    import pandas as pd

    revision, _, changes = git_revision().partition("+")
    code = f"{revision[:12]}{' and changes' if changes else ''}" if revision else "no checkout"
    return pd.Series({**versions(), "code": code, "device": device()}, name="").to_frame()


def git_revision() -> str:
    """Commit of the workbook's checkout, with ``+changes`` when files differ from it; "" outside a checkout."""
    git = ["git", "-C", str(paths.project())]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return revision.strip() + ("+changes" if changes.strip() else "")


def device() -> str:
    """The device a run would use, in words: the CUDA device's name, ``mps``, or the processor and its threads.

    ``CXR_DEVICE`` counts, as in ``training.hardware``.
    """
    import torch  # heavy, and only some callers need it

    wanted = os.environ.get("CXR_DEVICE", "")
    if torch.cuda.is_available() and wanted[:4] in ("", "cuda"):
        return torch.cuda.get_device_name(wanted or None)
    if torch.backends.mps.is_available() and wanted in ("", "mps"):
        return "mps"
    return f"cpu, {torch.get_num_threads()} threads ({platform.machine()})"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process; the lock goes with the process, however it ends.

    Raises UserError naming the holder where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / ".holder.json"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder} is in use by {_describe(holder)}; wait for it, or use another --run") from None
    try:
        paths.write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
