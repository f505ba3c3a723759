"""Downloads: the films from Kaggle by its client, which resumes and keeps them, and the radiologists' labels."""

import http.client
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from cxrlib import UserError, paths
from cxrlib.data import radiologists, records

NIH = "nih-chest-xrays/data"
"""Kaggle handle of the original 112,120 films of 1024², 42 GB in twelve folders."""

_BUCKET = "https://storage.googleapis.com/gcs-public-data--healthcare-nih-chest-xray-labels/four_findings_expert_labels"
EXPERT_LABELS = {name: f"{_BUCKET}/{name}" for name in radiologists.SET_FILES.values()}
"""Google's files of radiologists' labels, one for each set, and their addresses."""

DEPTH = 3
"""Deepest level of subfolders in a download that is searched for the table."""


def dataset(handle: str = NIH, *, cache: str | Path = "") -> Path:
    """Download a dataset unless it is in the cache. Returns its data folder, which holds the table.

    ``cache`` is the folder to keep it in; "" means Kaggle's own, ``~/.cache/kagglehub``. A second call resumes an
    interrupted download. Raises UserError if the client, the network, the credentials, the dataset or disk space is
    missing.
    """
    client = _client()
    try:
        with _cache(cache):
            folder = Path(client.dataset_download(handle))
    except KeyboardInterrupt:
        raise UserError("download interrupted; the same command resumes it") from None
    except Exception as error:
        raise _user_error(error, handle) from error
    return find_data_folder(folder)


def expert_labels(folder: Path, *, timeout: float = 30) -> list[Path]:
    """Download the radiologists' labels (``radiologists``) from Google into a data folder; returns their files.

    A file that is there already is kept; an answer that is not the file, such as a page to sign in, is not. Raises
    UserError that names the page and the files to put there by hand where there is no network, or where Google asks for
    its form first, and where the folder is absent or cannot be written.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the data folder, beside whose films the labels belong")
    files = []
    for name, url in EXPERT_LABELS.items():
        path = folder / name
        if not path.is_file():
            content = _fetch(url, path, timeout)
            with paths.atomic(path) as temporary:
                temporary.write_bytes(content)
                _refuse_answer(temporary, path)
        files.append(path)
    radiologists.read(*files)
    return files


def _fetch(url: str, path: Path, timeout: float) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:  # HTTPError among them
        raise UserError(
            f"the radiologists' labels could not be downloaded ({error}); Google asks for a short form at "
            f"{radiologists.SOURCE}: put its files {' and '.join(EXPERT_LABELS)} into {path.parent}"
        ) from None


def _refuse_answer(received: Path, path: Path) -> None:
    """Raise UserError if what was received for ``path`` is not a file of radiologists' labels."""
    try:
        radiologists.read(received)
    except UserError:
        raise UserError(
            f"the answer for {path.name} is not the file of labels; Google asks for a short form at "
            f"{radiologists.SOURCE}: put its files {' and '.join(EXPERT_LABELS)} into {path.parent}"
        ) from None


def find_data_folder(folder: Path) -> Path:
    """Folder that holds the CSV of the films: ``folder`` or a subfolder. Raises UserError if there is none."""
    for depth in range(DEPTH + 1):
        for pattern in records.TABLES:
            tables = sorted(folder.glob("*/" * depth + pattern + "*"))
            if tables:
                return tables[0].parent
    raise UserError(f"{folder} was downloaded but holds no {records.TABLES[0]}; give a --handle of NIH films")


def _client() -> ModuleType:
    try:
        import kagglehub
    except ImportError:
        raise UserError("the download needs kagglehub: install it with `uv pip install kagglehub`") from None
    return kagglehub


@contextmanager
def _cache(folder: str | Path) -> Iterator[None]:
    """Make the client use this cache folder inside the block."""
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


def _user_error(error: Exception, handle: str) -> UserError:
    """UserError for a failure of the client, with advice. An unknown failure keeps the client's message."""
    name = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if name in ("UnauthenticatedError", "CredentialError") or status in (401, 403):
        return UserError(
            f"Kaggle needs credentials for {handle}: make a token at kaggle.com/settings and put it in "
            "~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY"
        )
    if name == "NotFoundError" or status == 404 or "Invalid dataset handle" in str(error):
        return UserError(f"Kaggle has no dataset {handle!r}; give --handle owner/name, such as {NIH}")
    if isinstance(error, OSError) and error.errno == 28:
        return UserError(
            f"the disk is full: {handle} needs twice its size while it is unpacked; make room, or give another --cache"
        )
    if isinstance(error, ConnectionError) or name in ("ConnectionError", "ConnectTimeout", "ReadTimeout", "SSLError"):
        return UserError(f"no connection to Kaggle for {handle}; when you have one, the same command resumes")
    return UserError(f"the download of {handle} failed: {str(error).strip().splitlines()[0] if str(error) else name}")
