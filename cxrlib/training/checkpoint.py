"""Checkpoints: weights as safetensors, and beside them a JSON that says where they come from.

A checkpoint is named as the original project named its own, ``stage5_1e-06_22``: the stage, its rate, and the
epochs so far over the whole line of stages. Its JSON carries the line itself, see ``lineage``: every ancestor's name,
hash and recipe, and every patient that any of them saw. All that a test is refused by is also in the header of the
weights' own file, whose SHA-256 the JSON names, so that it survives a lost JSON and shows a changed one.
"""

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cxrlib import labels, paths, provenance
from cxrlib.errors import UserError
from cxrlib.training import tensors
from cxrlib.training.recipes import Stage

if TYPE_CHECKING:
    from cxrlib.training.lineage import Lineage

FORMAT = 2
READABLE = (1, FORMAT)
"""Format 1 kept the patients trained on, without a dataset, in its JSON alone: ``patients`` in place of ``seen``."""
LAYOUT = "resnet50, 1 channel, 15 outputs, torchvision names"
SUFFIX = ".safetensors"
NEEDED = ("format", "layout", "labels", "name", "stage", "epochs_so_far", "ancestors", "origin")
GUARDED = ("format", "name", "parent", "weights", "origin", "gaps", "ancestors", "seen")
"""What the weights' own file says as well."""
ATTACHED = "attached"
"""What was found out after the training travels under this key; no hash and no fingerprint is made of it."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights by torchvision's names (on the CPU, float32), the JSON beside them, and their file."""

    state: dict[str, Tensor]
    meta: dict[str, Any]
    path: Path


def name(stage: int, lr: float, epochs_so_far: int) -> str:
    return f"stage{stage}_{lr:g}_{epochs_so_far}"


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
) -> Path:
    """Write the checkpoint of a stage after ``epoch`` of its epochs; weights first, JSON last. Returns its path.

    ``metrics`` are plain numbers (None where undefined), ``data`` the data's fingerprint, ``fingerprint`` the
    stage's, ``code`` the version of the rooms that trained it.
    """
    so_far = line.epochs_so_far + epoch
    title = name(recipe.number, recipe.lr, so_far)
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
        "parent": parent,
        "weights": line.weights,
        "origin": line.origin,
        "gaps": list(line.gaps),
        "metrics": metrics,
        "size": max((getattr(getattr(part, "store", None), "size", 0) for part in line.parts), default=0),
        "data": data,
        "fingerprint": fingerprint,
        "code": code,
        "ancestors": list(line.ancestors),
        "seen": {role: who.packed_patients() for role, who in line.past.items()},
        "created": provenance.now(),
        **_machine(),
    }
    pictures = {role: who.packed_pictures() for role, who in line.past.items()}
    return tensors.write(folder / title, state, meta, {key: meta[key] for key in GUARDED} | {"pictures": pictures})


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and check it. Raises UserError where it is truncated, foreign, or of another label order."""
    meta = read_meta(path)
    return Checkpoint(tensors.read(path)[0], meta, path)


def read_meta(path: Path) -> dict[str, Any]:
    """The checked JSON of a checkpoint, without its weights. Raises UserError as ``load`` does."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not there")
    meta = tensors.read_meta(path)
    who = "patients" if meta.get("format") == 1 else "seen"
    lacking = [key for key in (*NEEDED, who) if key not in meta]
    if lacking:
        raise UserError(f"{tensors.json_of(path)} is no checkpoint's: it lacks {', '.join(lacking)}")
    if meta["format"] not in READABLE:
        raise UserError(f"checkpoint {path} has format {meta['format']}, this version reads {FORMAT}; train it again")
    if meta["layout"] != LAYOUT:
        raise UserError(f"checkpoint {path} is of another network ({meta['layout']}), not {LAYOUT}")
    labels.check_order(meta["labels"], f"checkpoint {path}")
    _check_unchanged(path, meta)
    return meta


def _check_unchanged(path: Path, meta: dict[str, Any]) -> None:
    inside = tensors.inside(path)
    if not inside and meta["format"] == 1:
        return  # nothing guards it
    if not inside:
        raise UserError(f"{path} is damaged or not the file its JSON describes; copy both once more, or train it again")
    changed = [key for key in GUARDED if inside.get(key) != meta.get(key)]
    if changed:
        raise UserError(
            f"{tensors.json_of(path)} was changed or damaged: its {', '.join(changed)} is not what {path.name} itself "
            "says; restore it from where it came from, or train it again"
        )


def is_described(path: Path) -> bool:
    """Whether a checkpoint's JSON lies beside a file of weights."""
    beside = tensors.json_of(path)
    meta = paths.read_json(beside) if path.suffix == SUFFIX and beside.is_file() else None
    return isinstance(meta, dict) and "ancestors" in meta


def by_hash(sha256: str) -> Path | None:
    """The checkpoint of this hash among all runs, None where there is none."""
    for described in sorted(paths.outputs().glob("*/stage*/stage*.json")):
        if sha256 in described.read_text(encoding="utf-8", errors="replace"):
            path = described.with_suffix(SUFFIX)
            if path.is_file() and tensors.read_meta(path)["sha256"] == sha256:
                return path
    return None


def size(path: Path, asked: int = 0) -> int:
    """Side in pixels of the films that a checkpoint is read at: ``asked``, or for 0 the one that it was trained at.

    Raises UserError where neither is known, as of a checkpoint that an older version made.
    """
    found = asked or read_meta(path).get("size", 0)
    if not found:
        raise UserError(f"checkpoint {path.stem} does not say at which size it was trained; give it by size=")
    return found


def another_size(path: Path, read_at: int) -> str:
    """In words that a checkpoint is not read at the size it was trained at, "" where it is or where nobody knows."""
    trained = read_meta(path).get("size", 0)
    if trained in (0, read_at):
        return ""
    return f"{path.stem} was trained on films of {trained} pixels and is read at {read_at}"


def attach(path: Path, name: str, values: Any) -> Path:
    """Let ``values``, such as a calibration, travel in the checkpoint's JSON under ``name``; returns the JSON's path.

    The weights, their hash and what the training wrote stay as they are, so no stage is trained again for it; where the
    same values are there already, nothing is written. Training the stage anew drops them.
    Raises UserError where the checkpoint is absent, where a training holds its folder, or where ``values`` are nothing
    that JSON can hold.
    """
    try:
        values = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} cannot travel with {path.stem}: {error}; give plain, finite values") from None
    if read_meta(path).get(ATTACHED, {}).get(name, ...) != values:
        with provenance.only_one(path.parent):
            meta = read_meta(path)  # as it is now that nobody else writes it
            paths.write_json(tensors.json_of(path), {**meta, ATTACHED: {**meta.get(ATTACHED, {}), name: values}})
    return tensors.json_of(path)


def attached(path: Path, name: str) -> Any:
    """What ``attach`` was given. Raises UserError, saying how to come by it, where the checkpoint carries none."""
    carried = read_meta(path).get(ATTACHED, {})
    if name not in carried:
        raise UserError(f"checkpoint {path.stem} carries no {name}; run 06_evaluation with ckpt={path.stem}")
    return carried[name]


@dataclass(frozen=True)
class Report:
    """What ``load_into`` did: keys of the network without a weight, weights without a place, and the checkpoint."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    checkpoint: Checkpoint


def load_into(model: nn.Module, path: Path, *, strict: bool = True) -> Report:
    """Load a checkpoint's weights into the network; both lists of the report are empty when all is well.

    Raises UserError, leaving the network as it was, where shapes differ or, when ``strict``, keys do.
    """
    checkpoint = load(path)
    own = model.state_dict()
    missing = tuple(key for key in own if key not in checkpoint.state)
    unexpected = tuple(key for key in checkpoint.state if key not in own)
    shapes = [key for key in own if key in checkpoint.state and own[key].shape != checkpoint.state[key].shape]
    if shapes or (strict and (missing or unexpected)):
        raise UserError(
            f"checkpoint {path} does not fit this network: {len(missing)} weights missing, {len(unexpected)} "
            f"unexpected, {len(shapes)} of another shape, such as {[*shapes, *missing, *unexpected][0]}"
        )
    model.load_state_dict(checkpoint.state, strict=False)
    model.precision = checkpoint.meta["recipe"].get("precision", "auto")
    return Report(missing, unexpected, checkpoint)


def best(folder: Path) -> Path:
    """The best checkpoint of a finished stage. Raises UserError where the stage has none yet."""
    record = folder / "best.json"
    if not record.is_file():
        raise UserError(f"{folder} holds no finished stage; run its notebook to the end, or name a checkpoint by ckpt=")
    path = folder / (paths.read_json(record)["best"] + SUFFIX)
    if not path.is_file():
        raise UserError(f"{record} names {path.name}, which is not there; run the stage again")
    return path


def resolve(ckpt: str, run: paths.Run | None = None) -> Path:
    """Find a checkpoint by path or by name, with or without its ending: in the run's stages, then in all runs'.

    Raises UserError listing the candidates where there is none or more than one.
    """
    if not ckpt:
        raise UserError("ckpt is empty; give a checkpoint's name such as stage5_1e-06_22, or a path")
    title = ckpt.removesuffix(SUFFIX).removesuffix(".json")
    given = paths.resolve(title + SUFFIX)
    if given.is_file():
        return given
    for root, pattern in _places(run):
        found = sorted(root.glob(f"{pattern}/{Path(title).name}{SUFFIX}")) if Path(title).name == title else []
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"checkpoint {ckpt!r} is in several runs; give a path: {', '.join(map(str, found))}")
    there = sorted({path.stem for root, pattern in _places(run) for path in root.glob(f"{pattern}/stage*{SUFFIX}")})
    raise UserError(
        f"there is no checkpoint {ckpt!r}; there are: {', '.join(there) or 'none yet, train a stage first'}"
    )


@cache
def _machine() -> dict[str, Any]:
    """Once per process: the code at work is the one that was imported, and asking git takes a while."""
    return {"git": provenance.git_revision(), "versions": provenance.versions()}


def _places(run: paths.Run | None) -> list[tuple[Path, str]]:
    """Where a name is looked for, in this order: (folder, pattern of stage folders in it)."""
    own = [(run.root, "stage*")] if run is not None else []
    return [*own, (paths.outputs(), "*/stage*")]
