"""What made a result: versions, code, data, machine, in forms that can be compared."""

import hashlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

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


def code_version(*rooms: ModuleType) -> str:
    """Fingerprint of the source of the given modules: it changes when a line of them does."""
    return digest([hashlib.sha256(Path(room.__file__).read_bytes()).hexdigest() for room in rooms])


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
