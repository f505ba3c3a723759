"""Tensors on disk: safetensors files, written atomically, with a JSON that holds their SHA-256. Never a pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from cxrlib import paths, provenance
from cxrlib.errors import UserError

INSIDE = "cxrlib"
"""The project's key in a file's header. It is only one, because the order of several would differ between files."""


def write(stem: Path, tensors: dict[str, Tensor], meta: dict[str, Any], inside: dict[str, Any] | None = None) -> Path:
    """Write ``stem.safetensors``, then ``stem.json`` with its SHA-256. Returns the path of the first.

    The JSON comes last: a pair is complete if its JSON has the hash of its tensors. ``inside`` goes into the header of
    the safetensors file, so the hash covers it.
    Raises UserError where the disk is full or not writable. An older pair of this name then stays unchanged.
    """
    path = stem.with_name(stem.name + ".safetensors")
    try:
        with paths.atomic(path) as temporary:
            header = {INSIDE: json.dumps(inside, sort_keys=True)} if inside else None
            save_file({name: plain(value) for name, value in tensors.items()}, temporary, header)
            sha256 = provenance.file_sha256(temporary)
        paths.write_json(json_of(path), {**meta, "sha256": sha256})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({error}); make room on the disk and run the same again") from None
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a pair written by ``write``. Raises UserError where a file is absent, damaged, or of another pair."""
    meta = read_meta(path)
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != meta["sha256"]:
            raise UserError(f"{path} is damaged or not the file its JSON describes (SHA-256 differs); train it again")
        return load(content), meta
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); train it again, or copy it once more") from None


def read_meta(path: Path) -> dict[str, Any]:
    """Read the JSON beside ``path``. Raises UserError where it is absent, damaged or without a hash."""
    meta = paths.read_json(json_of(path))
    if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), str):
        raise UserError(f"{json_of(path)} does not describe {path.name}: it has no SHA-256")
    return meta


def inside(path: Path) -> dict[str, Any]:
    """Header values that ``write`` stored in the file, empty for none. Raises UserError where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {}).get(INSIDE, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or not the file its JSON describes ({error}); train it again") from None
    return values if isinstance(values, dict) else {}


def json_of(path: Path) -> Path:
    """Path of the JSON: ``stage1_1e-05_2.json`` for ``stage1_1e-05_2.safetensors``."""
    return path.with_suffix(".json")


def remove(path: Path) -> None:
    """Remove a pair, the JSON first, so that a JSON always has its tensors."""
    json_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def plain(tensor: Tensor) -> Tensor:
    """Tensor as a file needs it: detached, on the CPU, contiguous in any memory format."""
    return tensor.detach().cpu().contiguous()


def sha256(tensors: dict[str, Tensor]) -> str:
    """Hash of names, shapes and values. It does not depend on device and memory format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = plain(tensors[name])
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
