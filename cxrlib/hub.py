"""Hub of models, huggingface.co: a checkpoint's folder downloaded from it, and an exported folder uploaded to it."""

import re
from pathlib import Path
from typing import Any

from cxrlib import UserError

PREFIX = "hf:"
"""Start of a checkpoint's name on the Hub: ``hf:owner/name`` or ``hf:owner/name@revision``."""

NAME = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
PATTERNS = ("*.json", "*.safetensors", "*.csv")
"""Files that are downloaded. None of them can hold code."""


def download(name: str) -> Path:
    """Folder of a model from the Hub, or from its cache on this machine. ``name`` is ``hf:owner/name[@revision]``.

    Raises UserError for a name of another form, without huggingface_hub, and where the model cannot be downloaded.
    """
    place, _, revision = name.removeprefix(PREFIX).partition("@")
    check(place)
    library = _library()
    try:
        return Path(library.snapshot_download(place, revision=revision or None, allow_patterns=list(PATTERNS)))
    except Exception as error:  # of several libraries: no network, no such model, no such revision, no access
        raise UserError(
            f"{name} could not be downloaded ({_first_line(error)}); check the name and the network, log in with "
            "`hf auth login` if the model is private, or give --ckpt the path of a downloaded folder"
        ) from None


def upload(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload a folder as the model ``owner/name``, which is made if it does not exist. Returns its address.

    A new model is private unless ``public``. An existing model keeps its visibility.
    Raises UserError for a name of another form, where one is not logged in, and where the upload fails.
    """
    check(name)
    library = _library()
    if not library.get_token():  # asked here, so that nothing waits for a network in vain
        raise UserError(f"you are not logged in to the Hub; run `hf auth login` and then the same again with {folder}")
    try:
        api = library.HfApi()
        api.create_repo(name, repo_type="model", private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="model", folder_path=str(folder), ignore_patterns=[".*"])
    except Exception as error:
        raise UserError(f"{folder} is written, but could not be uploaded to {name}: {_first_line(error)}") from None
    return f"https://huggingface.co/{name}"


def check(name: str) -> None:
    """Raise UserError if a name does not have the form ``owner/name``."""
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name[:80]!r} is no model on the Hub; give owner/name, as in {PREFIX}owner/name for --ckpt")


def _library() -> Any:
    try:
        import huggingface_hub  # slow, and few calls need it
    except ImportError:
        raise UserError("huggingface_hub is not installed; run: pip install huggingface_hub") from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
