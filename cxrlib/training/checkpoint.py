"""Checkpoints on disk: weights as safetensors, and beside them a JSON with their SHA-256; never a pickle.

A checkpoint is named as the original project named its own, ``stage5_1e-06_22``: the stage, its rate, and the
epochs so far over all stages before it. Its JSON carries the lineage (see ``lineage``): every ancestor's name, hash and
recipe, and every patient that any of them saw. All that a test is refused by is also in the header of the weights' own
file, whose SHA-256 the JSON names, so that it survives a lost JSON and shows a changed one.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from cxrlib import UserError, labels, paths, provenance
from cxrlib.training.schedules import Stage

HEADER_KEY = "cxrlib"
"""The project's key in a file's header. It is only one, because the order of several would differ between files."""


def write_tensors(
    stem: Path, tensors: dict[str, Tensor], meta: dict[str, Any], inside: dict[str, Any] | None = None
) -> Path:
    """Write ``stem.safetensors``, then ``stem.json`` with its SHA-256. Returns the path of the first.

    The JSON comes last: a pair is complete if its JSON has the hash of its tensors. ``inside`` goes into the header of
    the safetensors file, so the hash covers it.
    Raises UserError where the disk is full or not writable. An older pair of this name then stays unchanged.
    """
    path = stem.with_name(stem.name + ".safetensors")
    with paths.atomic(path, need=sum(value.numel() * value.element_size() for value in tensors.values())) as temporary:
        header = {HEADER_KEY: json.dumps(inside, sort_keys=True)} if inside else None
        save_file({name: plain_tensor(value) for name, value in tensors.items()}, temporary, header)
        sha256 = provenance.file_sha256(temporary)
    paths.write_json(json_beside(path), {**meta, "sha256": sha256}, guarded=True)
    return path


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a pair written by ``write``. Raises UserError where a file is absent, damaged, or of another pair."""
    meta = read_description(path)
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != meta["sha256"]:
            raise UserError(f"{path} is damaged or not the file its JSON describes (SHA-256 differs); train it again")
        return load_bytes(content), meta
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); train it again, or copy it once more") from None


def read_description(path: Path) -> dict[str, Any]:
    """Read the JSON beside ``path``. Raises UserError where it is absent, changed, damaged or without a hash."""
    try:
        meta = paths.read_json(json_beside(path))
    except UserError as error:
        reason = str(error).partition("; delete")[0]
        raise UserError(f"{reason}; train it again, or copy it once more") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), str):
        raise UserError(f"{json_beside(path)} does not describe {path.name}: it has no SHA-256")
    return meta


def read_header(path: Path) -> dict[str, Any]:
    """Header values that ``write`` stored in the file, empty for none. Raises UserError where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {}).get(HEADER_KEY, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or not the file its JSON describes ({error}); train it again") from None
    return values if isinstance(values, dict) else {}


def json_beside(path: Path) -> Path:
    """Path of the JSON: ``stage1_1e-05_2.json`` for ``stage1_1e-05_2.safetensors``, ``config.json`` for a ``model``."""
    return path.with_name("config.json") if path.name == paths.MODEL else path.with_suffix(".json")


def gate_beside(path: Path) -> Path:
    """Path of the gate of a checkpoint: ``gate_stage1_1e-05_2.safetensors``; ``gate.safetensors`` for a ``model``.

    The name does not start with ``stage``, so it is not taken for a checkpoint.
    """
    return path.with_name("gate.safetensors" if path.stem == "model" else f"gate_{path.name}")


def remove_tensors(path: Path) -> None:
    """Remove a pair, the JSON first, so that a JSON always has its tensors, and the gate of a checkpoint."""
    gate_beside(path).unlink(missing_ok=True)
    json_beside(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def plain_tensor(tensor: Tensor) -> Tensor:
    """Tensor as a file needs it: detached, on the CPU, contiguous in any memory format."""
    return tensor.detach().cpu().contiguous()


def tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """Hash of names, shapes and values. It does not depend on device and memory format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = plain_tensor(tensors[name])
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


if TYPE_CHECKING:
    from cxrlib.training.lineage import Lineage

FORMAT = 2
READABLE = (1, FORMAT)
"""Formats that can be read. Format 1 has ``patients`` for ``seen``: training patients without dataset, in the JSON."""
LAYOUT = "resnet50, 1 channel, 15 outputs, torchvision names"
SUFFIX = ".safetensors"
NEEDED = ("format", "layout", "labels", "name", "stage", "epochs_so_far", "ancestors", "origin")
GUARDED = ("format", "name", "parent", "weights", "origin", "gaps", "ancestors", "seen")
"""Keys of the JSON that are also in the header of the weights file."""
KINDS = {
    "labels": list,
    "name": str,
    "stage": int,
    "epochs_so_far": int,
    "ancestors": list,
    "origin": str,
    "recipe": dict,
    "metrics": dict,
    "size": int,
    "seen": dict,
    "gaps": list,
    "weights": str,
    "attached": dict,
    "teachers": list,
    "soup": list,
}
"""Types of the JSON's entries, where they are there."""
MOST_BYTES = {".safetensors": 1_000_000_000, ".json": 100_000_000}
"""Largest files that are read: a checkpoint has about 94 MB and a JSON of all NIH's patients 2 MB."""
ATTACHED = "attached"
"""Key of the values added after the training. Hashes and fingerprints leave them out."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights with torchvision's names (on the CPU, float32), the JSON beside them, and the path of the file."""

    state: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def name(stage: int, lr: float, epochs_so_far: int, *, soup: bool = False) -> str:
    return f"stage{stage}_{lr:g}_{epochs_so_far}" + "_soup" * soup


def mean_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Mean of several checkpoints' weights and BatchNorm statistics, BatchNorm's counters from the last one.

    Equal values stay equal to the bit. Wortsman et al., Model soups, 2022; of the epochs of one training, Izmailov et
    al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, whose second pass for the statistics
    of BatchNorm is replaced by their mean. Raises UserError as ``load`` does.
    """
    total, state = {}, {}
    for path in paths:
        state = load(path).state
        for key, value in state.items():
            if value.is_floating_point():
                total[key] = total[key].add_(value) if key in total else value.double()
    return state | {key: (value / len(paths)).to(state[key].dtype) for key, value in total.items()}


def save(
    folder: Path,
    state: dict[str, Tensor],
    recipe: Stage,
    line: "Lineage",
    *,
    epoch: int,
    metrics: dict[str, Any],
    data: str = "",
    fingerprint: str = "",
    code: str = "",
    soup: Sequence[int] = (),
) -> Path:
    """Write the checkpoint of a stage after ``epoch`` epochs: weights first, JSON last. Returns its path.

    ``metrics`` are plain numbers, None where undefined. ``data`` is the fingerprint of the data, ``fingerprint`` that
    of the stage, ``code`` the version of the modules that trained it. ``soup``: the epochs whose mean the weights are.
    """
    so_far = line.epochs_so_far + epoch
    title = name(recipe.number, recipe.lr, so_far, soup=bool(soup))
    parent = {key: line.parent[key] for key in ("name", "sha256")} if line.parent else None
    meta = {
        "format": FORMAT,
        "layout": LAYOUT,
        "labels": list(labels.LABELS),
        "name": title,
        "stage": recipe.number,
        "recipe": asdict(recipe),
        "epoch": epoch,
        "epochs_so_far": so_far,
        **({"soup": list(soup)} if soup else {}),
        "parent": parent,
        "weights": line.weights,
        "origin": line.origin,
        "gaps": list(line.gaps),
        "teachers": list(line.teachers),
        "metrics": metrics,
        "size": max((getattr(getattr(part, "store", None), "size", 0) for part in line.parts), default=0),
        "data": data,
        "fingerprint": fingerprint,
        "code": code,
        "ancestors": list(line.ancestors),
        "seen": {role: entry.packed_patients() for role, entry in line.past.items()},
        "created": provenance.now(),
        **_machine(),
    }
    pictures = {role: entry.packed_pictures() for role, entry in line.past.items()}
    gate_beside(folder / (title + SUFFIX)).unlink(missing_ok=True)  # of other weights of this name
    return write_tensors(folder / title, state, meta, {key: meta[key] for key in GUARDED} | {"pictures": pictures})


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and check it. Raises UserError where it is cut short, unknown, or has another label order."""
    meta = read_meta(path)
    return Checkpoint(read_tensors(path)[0], meta, path)


def read_meta(path: Path) -> dict[str, Any]:
    """The checked JSON of a checkpoint, without its weights. Raises UserError as ``load`` does."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not there")
    for file in (path, json_beside(path)):
        if file.is_file() and file.stat().st_size > MOST_BYTES[file.suffix]:
            raise UserError(
                f"{file} has {file.stat().st_size:,} bytes, more than a checkpoint can have; it is not read"
            )
    meta = read_description(path)
    patients = "patients" if meta.get("format") == 1 else "seen"
    missing = [key for key in (*NEEDED, patients) if key not in meta]
    if missing:
        raise UserError(f"{json_beside(path)} does not describe a checkpoint: it lacks {', '.join(missing)}")
    wrong = [key for key, kind in KINDS.items() if key in meta and type(meta[key]) is not kind]
    if wrong:
        raise UserError(f"{json_beside(path)} does not describe a checkpoint: its {wrong[0]} is of a wrong type")
    if meta["format"] not in READABLE:
        raise UserError(f"checkpoint {path} has format {meta['format']}, this version reads {FORMAT}; train it again")
    if meta["layout"] != LAYOUT:
        raise UserError(f"checkpoint {path} is of another network ({meta['layout']}), not {LAYOUT}")
    labels.check_order(meta["labels"], f"checkpoint {path}")
    _check_unchanged(path, meta)
    return meta


def _check_unchanged(path: Path, meta: dict[str, Any]) -> None:
    header = read_header(path)
    if not header and meta["format"] == 1:
        return  # format 1 has nothing to compare with
    if not header:
        raise UserError(f"{path} is damaged or not the file its JSON describes; copy both once more, or train it again")
    changed = [key for key in GUARDED if header.get(key) != meta.get(key)]
    if changed:
        raise UserError(
            f"{json_beside(path)} was changed or damaged: its {', '.join(changed)} is not what {path.name} itself "
            "says; restore the original file, or train it again"
        )


def has_description(path: Path) -> bool:
    """Whether the JSON of a checkpoint lies beside a weights file."""
    json_path = json_beside(path)
    meta = paths.read_json(json_path) if path.suffix == SUFFIX and json_path.is_file() else None
    return isinstance(meta, dict) and "ancestors" in meta


def by_hash(sha256: str) -> Path | None:
    """The checkpoint with this hash in any run, None where there is none."""
    for json_path in sorted(paths.outputs().glob("*/stage*/stage*.json")):
        if sha256 in json_path.read_text(encoding="utf-8", errors="replace"):
            path = json_path.with_suffix(SUFFIX)
            with suppress(UserError):  # damaged
                if path.is_file() and read_description(path)["sha256"] == sha256:
                    return path
    return None


def size(path: Path, asked: int = 0) -> int:
    """Image side in pixels for a checkpoint's predictions: ``asked``, or the training size where that is 0.

    Raises UserError where ``asked`` is 0 and an older version made the checkpoint, without its size.
    """
    side = asked or read_meta(path).get("size", 0)
    if not side:
        raise UserError(f"checkpoint {path.stem} does not record its training size; give it by size=")
    return side


def another_size(path: Path, read_at: int) -> str:
    """A sentence that the image size is not the training size; "" where both are equal or one is unknown."""
    trained = read_meta(path).get("size", 0)
    if trained in (0, read_at):
        return ""
    return f"{path.stem} was trained on films of {trained} pixels and is read at {read_at}"


def attach(path: Path, name: str, values: Any) -> Path:
    """Store values, such as a calibration, in the checkpoint's JSON under ``name``. Returns the path of the JSON.

    The weights, their hash and the training's own entries do not change, so no stage is trained again. Equal values
    are not written twice. Training the stage again removes the values.
    Raises UserError where the checkpoint is absent, where a training holds the lock of its folder, or where JSON
    cannot hold ``values``.
    """
    try:
        values = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot be stored in {path.stem}: {error}; give plain, finite values") from None
    if read_meta(path).get(ATTACHED, {}).get(name, ...) != values:
        with paths.lock_folder(path.parent):
            meta = read_meta(path)  # again, since now no other process can write it
            more = {ATTACHED: {**meta.get(ATTACHED, {}), name: values}}
            paths.write_json(json_beside(path), {**meta, **more}, guarded=True)
    return json_beside(path)


def attached(path: Path, name: str) -> Any:
    """Values that ``attach`` stored. Raises UserError, which says how to make them, where there are none."""
    values = read_meta(path).get(ATTACHED, {})
    if name not in values:
        raise UserError(f"checkpoint {path.stem} carries no {name}; run 06_evaluation with ckpt={path.stem}")
    return values[name]


@dataclass(frozen=True)
class LoadReport:
    """Result of ``load_into``: network keys without a weight, weights without a network key, and the checkpoint."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    checkpoint: Checkpoint


def load_into(model: nn.Module, path: Path, *, strict: bool = True) -> LoadReport:
    """Load a checkpoint's weights into the network. Both lists of the report are empty if all keys fit.

    Raises UserError where shapes differ or, if ``strict``, keys differ. The network is then unchanged.
    """
    checkpoint = load(path)
    state = model.state_dict()
    missing = tuple(key for key in state if key not in checkpoint.state)
    unexpected = tuple(key for key in checkpoint.state if key not in state)
    shapes = [key for key in state if key in checkpoint.state and state[key].shape != checkpoint.state[key].shape]
    if shapes or (strict and (missing or unexpected)):
        raise UserError(
            f"checkpoint {path} does not fit this network: {len(missing)} weights missing, {len(unexpected)} "
            f"unexpected, {len(shapes)} of another shape, such as {[*shapes, *missing, *unexpected][0]}"
        )
    model.load_state_dict(checkpoint.state, strict=False)
    model.precision = checkpoint.meta["recipe"].get("precision", "auto")
    return LoadReport(missing, unexpected, checkpoint)


def best(folder: Path) -> Path:
    """The best checkpoint of a finished stage. Raises UserError where the stage has none yet."""
    record = folder / "best.json"
    if not record.is_file():
        raise UserError(f"{folder} holds no finished stage; run its notebook to the end, or name a checkpoint by ckpt=")
    path = folder / (paths.read_best(record) + SUFFIX)
    if not path.is_file():
        raise UserError(f"{record} names {path.name}, which is not there; run the stage again")
    return path


def resolve(ckpt: str, run: paths.Run | None = None) -> Path:
    """Find a checkpoint by path or by name, with or without ending: first in the run's stages, then in all runs.

    Also by an exported folder, or by ``hf:owner/name[@revision]`` on the Hub.
    Raises UserError that lists the candidates where there is none or more than one.
    """
    return paths.find_checkpoint(ckpt, run)


@cache
def _machine() -> dict[str, Any]:
    """Git revision and versions, read once per process: git is slow, and the imported code does not change."""
    return {"git": provenance.git_revision(), "versions": provenance.versions()}
