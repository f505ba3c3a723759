"""The films from Kaggle, by its own client: resumed where it was cut off, kept in its cache and used there in place."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from cxrlib.data import records
from cxrlib.errors import UserError

NIH = "nih-chest-xrays/data"
"""The original 112,120 films of 1024², 42 GB in twelve folders."""

DEPTH = 3
"""How many folders deep the table may lie in a download."""


def dataset(handle: str = NIH, *, cache: str | Path = "") -> Path:
    """Download a dataset, or find it in the cache, and give the data folder in it: the one that holds the table.

    ``cache`` is the folder to keep it in ("": Kaggle's own, ``~/.cache/kagglehub``). Calling it again resumes a
    download that was cut off. Raises UserError where the client, the network, the credentials, the dataset or the
    disk space is wanting.
    """
    client = _client()
    try:
        with _cache(cache):
            folder = Path(client.dataset_download(handle))
    except KeyboardInterrupt:
        raise UserError("download interrupted; the same command goes on where it stopped") from None
    except Exception as error:
        raise _explained(error, handle) from error
    return find_data_folder(folder)


def find_data_folder(folder: Path) -> Path:
    """The folder at or below ``folder`` that holds the CSV of the films. Raises UserError where none does."""
    for depth in range(DEPTH + 1):
        for pattern in records.TABLES:
            found = sorted(folder.glob("*/" * depth + pattern + "*"))
            if found:
                return found[0].parent
    raise UserError(f"{folder} was downloaded and holds no {records.TABLES[0]}; give a --handle of NIH films")


def _client() -> ModuleType:
    try:
        import kagglehub
    except ImportError:
        raise UserError("downloading needs kagglehub: install it with `uv pip install kagglehub`") from None
    return kagglehub


@contextmanager
def _cache(folder: str | Path) -> Iterator[None]:
    """Point the client at a cache of the user's choice for a while."""
    before = os.environ.get("KAGGLEHUB_CACHE")
    if folder:
        os.environ["KAGGLEHUB_CACHE"] = str(Path(folder).expanduser().resolve())
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("KAGGLEHUB_CACHE", None)
        else:
            os.environ["KAGGLEHUB_CACHE"] = before


def _explained(error: Exception, handle: str) -> UserError:
    """What a failure of the client means and what to do; the client's own words where it is none of the known."""
    name = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if name in ("UnauthenticatedError", "CredentialError") or status in (401, 403):
        return UserError(
            f"Kaggle wants credentials for {handle}: make a token at kaggle.com/settings and put it in "
            "~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY"
        )
    if name == "NotFoundError" or status == 404 or "Invalid dataset handle" in str(error):
        return UserError(f"Kaggle has no dataset {handle!r}; give --handle owner/name, such as {NIH}")
    if isinstance(error, OSError) and error.errno == 28:
        return UserError(
            f"the disk filled up while downloading {handle}, which takes twice its size while it is unpacked; "
            "make room, or give another --cache"
        )
    if isinstance(error, ConnectionError) or name in ("ConnectionError", "ConnectTimeout", "ReadTimeout", "SSLError"):
        return UserError(f"no connection to Kaggle for {handle}; where there is a network, the same command goes on")
    return UserError(f"downloading {handle} failed: {str(error).strip().splitlines()[0] if str(error) else name}")
