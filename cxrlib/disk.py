"""The disk: an error of the system as one line that says which disk, how much and what to do; room for what comes.

Every write of the package goes through ``writing`` (``paths.atomic`` does), so a full disk is told in the same words
everywhere.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxrlib import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
OCCUPIED = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)
GONE = (errno.ENOENT, getattr(errno, "ESTALE", errno.ENOENT))
KEPT = "What is finished is kept"
AGAIN = "give the same command again"


class DiskError(UserError):
    """UserError for an error of the system. ``errno`` is its number, and ``path`` the file that was not written."""

    def __init__(self, message: str, number: int = 0, path: Path = Path()) -> None:
        super().__init__(message, number, path)
        self.errno, self.path = number, path

    def __str__(self) -> str:
        return str(self.args[0])


def number(error: BaseException) -> int:
    """The system's number of an error, also of one that a library wrapped in its own words; 0 for another error."""
    if isinstance(error, OSError | DiskError) and error.errno:
        return error.errno
    if isinstance(error, OSError) and "requested and" in str(error):  # NumPy says so of a write that was cut short
        return errno.ENOSPC
    if isinstance(error, OSError) or type(error).__module__.startswith("safetensors"):
        found = re.search(r"(?:os error|code:|Errno) (\d+)", str(error))
        return int(found[1]) if found else 0
    return 0


@contextmanager
def writing(path: Path, *, need: int = 0, kept: str = KEPT, advice: str = "") -> Iterator[None]:
    """Turn each error of the system inside the block into a DiskError about ``path``.

    need: bytes that are to be written, 0 if unknown. ``kept``: a sentence on what the error leaves as it was.
    ``advice``: what else helps if the disk is full, such as "draw fewer films".
    An error that this already was is told again with what is known here.
    """
    try:
        yield
    except DiskError as error:
        raise fault(error.path, error.errno, need=need, kept=kept, advice=advice) from None
    except UserError:
        raise
    except Exception as error:
        if not (code := number(error)):
            raise
        raise fault(_file(error, path), code, need=need, kept=kept, advice=advice) from None


def fault(
    path: Path, code: int, *, need: int = 0, kept: str = KEPT, advice: str = "", verb: str = "write"
) -> DiskError:
    """DiskError for a file that the system did not let us use, with the system's number of the reason.

    verb: what was not possible: "write", "read", or "use" where it is not known which of them.
    """
    reason, help_ = _reason(path, code, need), _advice(code, advice)
    return DiskError(f"cannot {verb} {path}: {reason}; {help_}" + (f". {kept}" if kept else ""), code, path)


def require(folder: Path, need: int, what: str, advice: str = "put CXR_OUTPUTS on another disk") -> None:
    """Raise UserError if the disk of a folder, which need not exist yet, has less than ``need`` bytes free."""
    free = shutil.disk_usage(_existing(folder)).free
    if need > free:
        raise UserError(
            f"{folder}: {what} needs about {size(need)}, and the disk {mount(folder)} has {size(free)} free; "
            f"make room on it, or {advice}"
        )


def size(count: float) -> str:
    """Bytes in words: ``12 kB``, ``283 MB``, ``1.20 GB``."""
    if count < 1e6:
        return f"{max(count, 0) / 1e3:.0f} kB" if count >= 1e3 or count == 0 else f"{count:.0f} bytes"
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def mount(path: Path) -> Path:
    """Where the disk of a path is mounted. The path need not exist."""
    place = _existing(path)
    while place != place.parent and not place.is_mount():
        place = place.parent
    return place


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    place = Path(path).absolute()
    while place != place.parent and not place.exists():
        place = place.parent
    return place


def _file(error: BaseException, path: Path) -> Path:
    """The file that an error names, unless it is the temporary one of ``path``."""
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    if not isinstance(name, str) or not name:
        return path
    named = Path(name)
    return path if named.parent == path.parent and named.name.startswith(".") else named


def _reason(path: Path, code: int, need: int) -> str:
    disk = f"the disk {mount(path)}"
    if code in FULL:
        free = shutil.disk_usage(_existing(path)).free
        what = f"your quota on {disk} is used up" if code == errno.EDQUOT else f"{disk} is full"
        what += " for a file of this size, or your system has a limit (ulimit -f)" if code == errno.EFBIG else ""
        return f"{what} ({f'{size(need)} needed, ' if need else ''}{size(free)} free)"
    if code == errno.EIO:
        return f"{disk} reports an error of its own ({os.strerror(code)})"
    if code == errno.EROFS:
        return f"{disk} is read-only"
    if code in OCCUPIED:
        occupied = next((place for place in [*reversed(path.parents), path] if _in_the_way(place, path)), path)
        return f"{'it' if occupied == path else occupied} is a {'folder' if occupied.is_dir() else 'file'}"
    if code in GONE:
        return "its folder was removed meanwhile"
    return os.strerror(code)


def _in_the_way(place: Path, path: Path) -> bool:
    return os.path.lexists(place) and place.is_dir() == (place == path)


def _advice(code: int, advice: str) -> str:
    if code in FULL:
        return f"make room on it{f', or {advice}' if advice else ''}, and {AGAIN}"
    if code == errno.EIO:
        return f"look after the disk or its network, and {AGAIN}"
    if code == errno.EROFS:
        return f"mount it for writing, or set CXR_OUTPUTS to a folder on another disk, and {AGAIN}"
    if code in OCCUPIED:
        return f"move it away, and {AGAIN}"
    if code in GONE:
        return AGAIN
    if code in SHORT:
        return f"{'raise the limit with ulimit -n' if code in SHORT[:2] else 'close other programs'}, and {AGAIN}"
    if code in (errno.EACCES, errno.EPERM):
        return "choose another folder or correct its permissions"
    return AGAIN
