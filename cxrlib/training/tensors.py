"""Tensors on disk: safetensors written atomically with a JSON beside them that knows their SHA-256; never a pickle."""

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
"""The one key of our own in a file's header; with several, their order would differ from file to file."""


def write(stem: Path, tensors: dict[str, Tensor], meta: dict[str, Any], inside: dict[str, Any] | None = None) -> Path:
    """Write ``stem.safetensors``, then ``stem.json`` with its SHA-256; return the path of the former.

    The JSON comes last: a pair is whole when its JSON names the hash of its tensors. ``inside`` goes into the header of
    the tensors' own file, and so under that hash.
    Raises UserError where the disk is full or forbids it; an earlier pair of that name is then as it was.
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
    """Read a pair written by ``write``. Raises UserError where a part is absent, damaged, or not the other's."""
    meta = read_meta(path)
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != meta["sha256"]:
            raise UserError(f"{path} is damaged or not the file its JSON describes (SHA-256 differs); train it again")
        return load(content), meta
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); train it again or copy it once more") from None


def read_meta(path: Path) -> dict[str, Any]:
    """The JSON beside ``path``. Raises UserError where it is absent, damaged or without a hash."""
    meta = paths.read_json(json_of(path))
    if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), str):
        raise UserError(f"{json_of(path)} does not describe {path.name}: it names no SHA-256")
    return meta


def inside(path: Path) -> dict[str, Any]:
    """What ``write`` was given for the file's header, empty for none. Raises UserError where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            found = json.loads((file.metadata() or {}).get(INSIDE, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or not the file its JSON describes ({error}); train it again") from None
    return found if isinstance(found, dict) else {}


def json_of(path: Path) -> Path:
    """``stage1_1e-05_2.json`` of ``stage1_1e-05_2.safetensors``."""
    return path.with_suffix(".json")


def remove(path: Path) -> None:
    """Remove a pair, its JSON first, so that no JSON ever stands without its tensors."""
    json_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def plain(tensor: Tensor) -> Tensor:
    """The tensor as a file holds it: detached, on the CPU, contiguous whatever the memory format was."""
    return tensor.detach().cpu().contiguous()


def sha256(tensors: dict[str, Tensor]) -> str:
    """Hash of names, shapes and values, whatever device and memory format they are in."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = plain(tensors[name])
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.numpy().tobytes())
    return total.hexdigest()
