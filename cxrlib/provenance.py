"""Provenance of a result: versions, code, data and machine, in forms that can be compared."""

import ast
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from cxrlib import __version__, paths

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "opencv-python", "papermill")


def now() -> str:
    """UTC time in seconds as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest(value: Any) -> str:
    """Fingerprint of plain data (numbers, strings, lists, dicts): 16 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_version(*modules: ModuleType | str, without: Collection[str] = ()) -> str:
    """Fingerprint of modules of ``cxrlib`` and of all modules of ``cxrlib`` that they import, directly or indirectly.

    Comments, docstrings and formatting do not count; everything else does. Modules in ``without`` are skipped, and so
    are modules that only they import.
    """
    names = [module if isinstance(module, str) else module.__name__ for module in modules]
    return digest([[name, _read_module(_file(name)).digest] for name in closure(*names, without=without)])


def closure(*names: str, without: Collection[str] = ()) -> list[str]:
    """Modules of ``cxrlib`` that these modules import, directly or indirectly, and themselves. Returns sorted names.

    Imports inside functions count. Imports for type checkers, and in ``if __name__ == "__main__"`` blocks, do not.
    The packages that contain a module count too, except ``cxrlib`` itself, which holds only its version.
    """
    modules, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name in modules or name in without or _file(name) is None:
            continue
        modules.add(name)
        queue += [name.rpartition(".")[0], *_read_module(_file(name)).imports]
    return sorted(modules - {paths.PACKAGE.name})


def imports(tree: ast.AST, package: str = "") -> set[str]:
    """Imports of a syntax tree, by full name: ``from cxrlib import paths`` gives ``cxrlib`` and ``cxrlib.paths``.

    Relative imports are relative to ``package``.
    """
    names = set()
    for node in _executed_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


class _Module(NamedTuple):
    digest: str
    imports: frozenset[str]


def _read_module(file: Path) -> _Module:
    status = file.stat()
    return _parse(file, status.st_size, status.st_mtime_ns)


@cache
def _parse(file: Path, size: int, mtime_ns: int) -> _Module:
    """Digest and imports of a module. ``size`` and ``mtime_ns`` are there for the cache only."""
    tree = ast.parse(file.read_bytes())
    package = file.relative_to(paths.PACKAGE.parent).parent
    return _Module(digest(_plain_tree(tree)), frozenset(imports(tree, ".".join(package.parts))))


def _file(name: str) -> Path | None:
    """Source file of a module of ``cxrlib``. None if the name is not a module of ``cxrlib``."""
    head, *rest = name.split(".")
    if head != paths.PACKAGE.name:
        return None
    stem = paths.PACKAGE.joinpath(*rest)
    return next((file for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if file.is_file()), None)


def _plain_tree(value: Any) -> Any:
    """Syntax tree as plain data, without docstrings. Empty fields are left out: they differ between Python versions."""
    if isinstance(value, ast.AST):
        fields = {name: _plain_tree(item) for name, item in ast.iter_fields(value) if item not in (None, [])}
        return [type(value).__name__, fields]
    if isinstance(value, list):
        return [_plain_tree(item) for item in value if not _is_docstring(item)]
    return value if isinstance(value, str | bool | int | None) else [type(value).__name__, repr(value)]


def _is_docstring(node: Any) -> bool:
    """Whether a statement is only a string: a docstring, or the description of a constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a syntax tree, without blocks for type checkers and without ``if __name__ == "__main__"`` blocks."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        children = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    yield node
    for child in children:
        yield from _executed_nodes(child)


def versions() -> dict[str, str]:
    """Versions of Python, the operating system, this package and the installed ones of ``PACKAGES``."""
    installed = {"python": platform.python_version(), "platform": platform.platform(), "cxrlib": __version__}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def table() -> "pd.DataFrame":
    """Versions, code and device as a table of one column, for the start of a notebook."""
    import pandas as pd

    revision, _, changes = git_revision().partition("+")
    code = f"{revision[:12]}{' and changes' if changes else ''}" if revision else "no checkout"
    return pd.Series({**versions(), "code": code, "device": device()}, name="").to_frame()


def git_revision() -> str:
    """Git commit of the workbook's checkout, with ``+changes`` if files differ from it. "" outside a checkout."""
    git = ["git", "-C", str(paths.project())]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return revision.strip() + ("+changes" if changes.strip() else "")


def device() -> str:
    """Device that a run would use: the CUDA device's name, ``mps``, or the CPU with its number of threads.

    ``CXR_DEVICE`` has priority, as in ``training.devices``.
    """
    import torch  # heavy, and only some callers need it

    wanted = os.environ.get("CXR_DEVICE", "")
    if torch.cuda.is_available() and wanted[:4] in ("", "cuda"):
        return torch.cuda.get_device_name(wanted or None)
    if torch.backends.mps.is_available() and wanted in ("", "mps"):
        return "mps"
    return f"cpu, {torch.get_num_threads()} threads ({platform.machine()})"
