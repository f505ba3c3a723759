"""Export of a run: a folder with its checkpoint, model card and ONNX file, which others can load without this package.

The folder is a checkpoint under the Hub's names: ``model.safetensors`` and ``config.json``, beside them
``gate.safetensors``, ``model.onnx`` and the card, ``README.md``. It is written into a temporary folder, checked by
loading it, and then renamed. The patients of datasets that are not public are left out of it unless the caller asks for
them; the lineage then says that they are unknown.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cxrlib import UserError, disk, hub, paths, provenance
from cxrlib.data import augmentation, film_identity, images, records
from cxrlib.evaluation import predict
from cxrlib.report import model_card, report
from cxrlib.training import checkpoint, lineage, network

FORMAT = 1
CONFIG, CARD, ONNX, GATE = "config.json", "README.md", "model.onnx", "gate.safetensors"
FILES = (paths.MODEL, CONFIG, CARD, ONNX, GATE)
OTHERS = (".lock", ".holder.json", ".git", ".gitattributes", ".cache")
"""Further names that an earlier export may hold: of ``checkpoint.attach``, of git and of the Hub's client."""

OPSET = 17
"""Version of ONNX's operators, of 2022. onnxruntime reads it from 1.12 on."""
PARITY = 1e-4
"""Largest difference between the logits of ONNX and of torch."""
FILMS = 16
"""Films of the run on which both are compared."""

INSTALL = 'pip install "cxrlib[onnx]"'


@dataclass(frozen=True)
class Exported:
    """Result of ``export``: the folder, whether it was written or an equal one was there, and notes for the user."""

    folder: Path
    written: bool
    notes: tuple[str, ...]


def export(run: str, to: str | Path, *, ckpt: str = "", onnx: bool = True, with_patients: bool = False) -> Exported:
    """Export a run's checkpoint to a folder. ``ckpt``: its name; "" is the best one of the last finished stage.

    Without ``onnx``, or where its packages are not installed, the rest is exported. ``with_patients`` keeps the numbers
    of patients of datasets that are not public.
    Raises UserError where the run or checkpoint is absent or damaged, the target holds something else than an earlier
    export, the disk is full, the ONNX file differs from the network by more than ``PARITY``, or the run's films, on
    which this is measured, cannot be read.
    """
    home, target = report.home(run), paths.resolve(to)
    earlier = _check_target(target)
    path = checkpoint.resolve(ckpt, home) if ckpt else lineage.stage_checkpoints(home)[-1]
    need, advice = (2 + onnx) * path.stat().st_size, "give another --to"
    disk.require(target, need, "the export", advice)
    kept = "The earlier export is kept" if earlier else ""
    with disk.writing(target, need=need, kept=kept, advice=advice):
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            made.chmod(0o755)
            notes = _fill(made, home, path, onnx=onnx, with_patients=with_patients)
            if earlier and _hashes(made) == _hashes(target):
                return Exported(target, False, tuple(notes))
            _replace(made, target)
            return Exported(target, True, tuple(notes))
        finally:
            shutil.rmtree(made, ignore_errors=True)


def upload(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload an exported folder to the Hub as ``owner/name``; see ``hub.upload``. Returns its address."""
    checkpoint.load(folder / paths.MODEL)
    return hub.upload(folder, name, public=public)


def _check_target(target: Path) -> bool:
    """Whether an earlier export lies there. Raises UserError where something else does."""
    if not os.path.lexists(target):
        return False
    if not target.is_dir() or target.is_symlink():
        raise UserError(f"{target} is not a folder; give --to a new or empty one")
    names = {file.name for file in target.iterdir()}
    if not names:
        return False
    try:
        config = paths.read_json(target / CONFIG)
    except UserError:
        config = None
    if not isinstance(config, dict) or "export" not in config:
        raise UserError(f"{target} is not empty and holds no earlier export; give --to a new or empty folder")
    foreign = sorted(names - {*FILES, *OTHERS})
    if foreign:
        raise UserError(f"{target} holds more than an export, such as {foreign[0]}; move it away, or take another --to")
    return True


def _fill(folder: Path, home: paths.Run, path: Path, *, onnx: bool, with_patients: bool) -> list[str]:
    """Write all files into an empty folder and check them. Returns notes for the user."""
    loaded = checkpoint.load(path)
    if loaded.meta["format"] != checkpoint.FORMAT:
        raise UserError(
            f"{path.stem} was made by an older version, whose lineage lacks films; train it again to export"
        )
    model = network.Network()
    checkpoint.load_into(model, path)
    meta, header, notes = _for_others(loaded.meta, checkpoint.read_header(path), with_patients)
    meta["export"] = _description(meta)
    weights = _write_weights(folder, path, loaded.state, header)
    paths.write_json(folder / CONFIG, {**meta, "sha256": weights}, guarded=True)
    has_gate = _copy_gate(path, folder / GATE, weights)
    parity = None
    if onnx and not _has_onnx():
        notes.append(f"No {ONNX}: onnx or onnxruntime is not installed; run: {INSTALL}")
    elif onnx:
        parity = _write_onnx(model.eval(), folder / ONNX, _films(home, meta["size"]))
        notes.append(
            f"{ONNX}: logits differ from torch's by at most {parity['difference']:.1g} on {parity['films']} films"
        )
    text = model_card.text(
        home, {**meta, "sha256": weights}, parity=parity, gate=has_gate, source=loaded.meta["sha256"]
    )
    paths.write_text(folder / CARD, text)
    _check(folder, loaded.state)
    return notes


def _for_others(
    meta: dict[str, Any], header: dict[str, Any], with_patients: bool
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """JSON and header without what must not leave the house, consistent with each other, and notes on it."""
    meta = dict(meta)
    pictures = header["pictures"]
    if Path(meta["weights"]).name != meta["weights"]:
        meta["weights"] = Path(meta["weights"]).name  # a path says how somebody's disk is arranged
    private = sorted({name for seen in meta["seen"].values() for name in seen if not is_public(name)})
    notes = []
    if private and not with_patients:
        meta["seen"] = {
            role: {name: text for name, text in seen.items() if name not in private}
            for role, seen in meta["seen"].items()
        }
        pictures = {role: lineage.Seen().packed_pictures() for role in pictures}
        gap = f"the patients of {' and '.join(map(_shown, private))} and the images of {meta['name']}"
        meta["gaps"] = [*meta["gaps"], f"{gap}, left out of its export"]
        notes.append(f"Left out: {gap}; --with-patients keeps them")
    inside = {key: meta[key] for key in checkpoint.GUARDED} | {"pictures": pictures}
    return meta, inside, notes


def is_public(dataset: str) -> bool:
    """Whether a dataset's patient numbers are public: those of NIH, and of drawn films."""
    return dataset == film_identity.NIH or dataset.startswith("phantom-")


def _shown(dataset: str) -> str:
    return "a dataset without a name" if dataset == film_identity.UNNAMED else dataset


def _description(meta: dict[str, Any]) -> dict[str, Any]:
    """What a stranger needs to use the weights, in plain values."""
    size = meta["size"]
    if not size:
        raise UserError(f"checkpoint {meta['name']} does not record its training size; train it again to export it")
    return {
        "format": FORMAT,
        "architecture": "ResNet-50 of torchvision, first layer with 1 input channel, 15 outputs",
        "input": {
            "shape": ["N", 1, size, size],
            "dtype": "float32",
            "size": size,
            "mean": augmentation.GREY_MEAN,
            "std": augmentation.GREY_STD,
            "scale": 255,
            "normalisation": "(grey / scale - mean) / std, grey values from 0 (black) to 255",
            "resize": "each side to size by itself: area averaging, or linear where a side is smaller than size",
        },
        "output": {
            "shape": ["N", 15],
            "dtype": "float32",
            "meaning": "logits in the order of labels; a sigmoid of each gives the network's probability, which "
            "attached.calibration corrects",
        },
    }


def _write_weights(folder: Path, path: Path, state: dict[str, torch.Tensor], header: dict[str, Any]) -> str:
    """Copy the weights, or write them with a new header where it changed. Returns the file's SHA-256."""
    file = folder / paths.MODEL
    if header == checkpoint.read_header(path):
        shutil.copyfile(path, file)
    else:
        save_file(state, file, {checkpoint.HEADER_KEY: json.dumps(header, sort_keys=True)})
    with file.open("rb+") as written:
        os.fsync(written.fileno())
    return provenance.file_sha256(file)


def _copy_gate(path: Path, to: Path, sha256: str) -> bool:
    """Copy the gate beside a checkpoint, with the SHA-256 of the exported weights. Returns whether there is one."""
    source = checkpoint.gate_beside(path)
    if not source.is_file():
        return False
    try:
        with safe_open(source, "np") as file:
            header = paths.check_guard(source, json.loads((file.metadata() or {})[checkpoint.HEADER_KEY]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["checkpoint"] != provenance.file_sha256(path):
            raise UserError(f"gate {source} is of other weights than {path.name}; run 06_evaluation again")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise UserError(f"gate {source} is damaged; run 06_evaluation again") from None
    header |= {"checkpoint": sha256}
    text = json.dumps({**header, paths.GUARD: paths.content_hash(header)}, sort_keys=True)
    to.write_bytes(safetensors.numpy.save(tensors, {checkpoint.HEADER_KEY: text}))
    return True


def _has_onnx() -> bool:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError:
        return False
    return True


def _write_onnx(model: torch.nn.Module, file: Path, films: np.ndarray) -> dict[str, Any]:
    """Write a network in eval mode as ONNX, for any number of films, and compare both on films (N, 1, S, S) float32.

    Input ``images`` (N, 1, S, S), output ``logits`` (N, 15). The sigmoid is left out, since a calibration works on
    logits. Torch's older exporter is used: it needs no further package, and torch has it from before 2.6 on.
    Returns ``difference``, the largest of the logits, and ``films``. Raises UserError, and leaves no file, where it is
    above ``PARITY`` or not finite.
    """
    import warnings

    import onnxruntime

    example = torch.from_numpy(films[:1]).repeat(2, 1, 1, 1)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # that a newer exporter exists
        torch.onnx.export(
            model,
            (example,),
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "films"}, "logits": {0: "films"}},
        )
        ours = model(torch.from_numpy(films)).numpy()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    theirs = np.concatenate(
        [session.run(["logits"], {"images": part})[0] for part in (films[:1], films[1:]) if len(part)]
    )  # two numbers of films
    difference = float(np.abs(theirs - ours).max())
    if not difference <= PARITY:
        file.unlink()
        raise UserError(
            f"{ONNX} is not kept: its logits differ from torch's by {difference:.2g} on {len(films)} films, and at "
            f"most {PARITY:g} is allowed; export with --no-onnx, or take another version of onnxruntime"
        )
    return {"difference": difference, "films": len(films)}


def _films(home: paths.Run, size: int) -> np.ndarray:
    """Some of the films that the run predicted, as the network reads them, (N, 1, S, S) float32."""
    import pandas as pd

    names = next((file for part in ("test", "val") if (file := home.predictions / f"{part}.csv").is_file()), None)
    advice = "they are needed to check the ONNX file; export with --no-onnx"
    if names is None:
        raise UserError(f"run {home.name} has no predictions, whose films check the ONNX file; run 06_evaluation first")
    try:
        predict.check_unchanged(names)
        wanted = pd.read_csv(names, usecols=["image"], dtype=str)["image"]
        films = records.read(_data(home), allow_missing=True)
    except (OSError, ValueError) as error:
        raise UserError(f"the films of run {home.name} cannot be read ({error}); {advice}") from None
    except UserError as error:
        raise UserError(f"the films of run {home.name} cannot be read: {error}; {advice}") from None
    films = films[films["image"].isin(wanted)]
    films = films.iloc[:: max(1, len(films) // FILMS)].head(FILMS)
    if films.empty:
        raise UserError(f"none of the films of {names} is in the data folder; {advice}")
    pixels = np.stack([images.shrink(images.read(file), size) for file in films["path"]])
    none = torch.zeros(len(pixels), augmentation.DRAWS)
    return augmentation.augmented_images(torch.from_numpy(pixels), none, augmentation.Augment()).numpy()


def _data(home: paths.Run) -> Path:
    record = paths.read_json(home.run_json)
    folder = report.part(record, "data").get("folder") or report.part(record, "settings").get("data")
    if folder:
        return Path(str(folder))
    from cxrlib.phantom import phantom  # needs SciPy

    return phantom.default()


def _check(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Load what was written, and compare it with what was meant."""
    read = checkpoint.load(folder / paths.MODEL)
    same = read.state.keys() == state.keys() and all(
        torch.equal(value, read.state[name]) and value.dtype == read.state[name].dtype for name, value in state.items()
    )
    if not same:
        raise UserError(f"the weights written to {folder} are not those of the checkpoint; look at the disk")
    lineage.seen_by(folder / paths.MODEL)


def _hashes(folder: Path) -> dict[str, str]:
    return {name: provenance.file_sha256(folder / name) for name in _present(folder, FILES)}


def _present(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if (folder / name).is_file()]


def _replace(made: Path, target: Path) -> None:
    """Put the new folder in place of the old one. If that fails, the old one is put back."""
    old = None
    if target.exists():
        for name in (".git", ".gitattributes"):  # of a clone from the Hub
            if (target / name).exists():
                (shutil.copytree if (target / name).is_dir() else shutil.copyfile)(target / name, made / name)
        old = made.with_suffix(".old")
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if old:
            old.rename(target)
        raise
    if old:
        shutil.rmtree(old, ignore_errors=True)
