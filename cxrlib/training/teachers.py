"""Teachers: networks whose probabilities become part of the labels that another one is trained towards.

The target of a training film is (1 - w) · label + w · mean probability of the teachers on the film as it is, without
variation (Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015; with one teacher of the same
recipe: Furlanello et al., Born-Again Neural Networks, ICML 2018). A label that is unknown stays unknown.

The probabilities are the network's own, before calibration. A calibration is fitted on validation films, whose labels
would then take part in the training.

A teacher's past counts as that of the network that it teaches: one that was trained on a validation patient, or saw a
test patient in any way, is refused, and the checkpoint that is trained keeps every patient that its teachers saw.
Teachers may have chosen their epoch on the validation films, as the stage itself does.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cxrlib import UserError, paths, provenance
from cxrlib.data import augmentation, batches, records, store
from cxrlib.data.batches import SoftLabels
from cxrlib.dataset import Dataset
from cxrlib.training import checkpoint, devices, frozen, lineage, network

BATCH = 128
"""Films read at a time."""
PROBABILITIES = "probabilities"


def soft_labels(teacher: str, films: Dataset, share: float, *, home: paths.Run | None = None) -> SoftLabels | None:
    """Soft labels of the training part, or None without a teacher or with a ``share`` of 0.

    ``teacher``: runs, of which the last checkpoint counts, or checkpoints, with commas between them; ``share``: w, from
    0 to 1; ``home``: the run that is trained. What a teacher says is kept in ``outputs/teachers``.
    Raises UserError for a teacher that is absent, named twice, of the run itself, of another network or label order, or
    that saw films to be validated or tested on.
    """
    if not teacher or share == 0:
        return None
    found = find(teacher, home)
    refuse_leaks(found, films)
    mean = np.mean([probabilities(path, films) for path in found], axis=0)
    return SoftLabels(blend(records.label_matrix(films.parts.train), mean, share), tuple(found))


def blend(labels: np.ndarray, probabilities: np.ndarray, share: float) -> np.ndarray:
    """(1 - share) · labels + share · probabilities, all (N, 15); float32 from 0 to 1, NaN where a label is unknown."""
    return ((1 - share) * labels.astype(np.float64) + share * probabilities).astype(np.float32)


def find(teacher: str, home: paths.Run | None = None) -> list[Path]:
    """Checkpoints of the teachers, in order. Raises UserError as ``soft_labels`` does."""
    words = [word.strip() for word in teacher.split(",")]
    if "" in words:
        raise UserError(f"teacher is {teacher!r}; give runs or checkpoints with commas between them: base,other")
    found = [paths.last_checkpoint(word) or checkpoint.resolve(word) for word in words]
    hashes = [checkpoint.read_meta(path)["sha256"] for path in found]
    for number, (word, path) in enumerate(zip(words, found, strict=True)):
        if hashes[number] in hashes[:number]:
            raise UserError(f"teacher {word} is named twice, or is the same checkpoint as another; name each one once")
        if home is not None and path.resolve().is_relative_to(home.root.resolve()):
            raise UserError(f"teacher {word} is of the run {home.name} itself; train under another name with --run")
    return found


def refuse_leaks(found: Sequence[Path], films: Dataset) -> None:
    """Raise UserError for a teacher that saw a test patient, or was trained on a validation patient.

    A validation picture that another patient's training film shows too is no reason: the stage has the same films.
    """
    advice = "take a teacher of the same split, or of other patients"
    if not films.parts.test.empty:
        rows = lineage.refuse_leak(found, films.parts.test, films.store, allow=True)
        for row in rows[rows["patients"] > 0].to_dict("records"):
            raise UserError(
                f"teacher {row['checkpoint']} or an ancestor saw {row['patients']} of the patients to be tested on: "
                f"{row['first']}; {advice}"
            )
    for path in found:
        if patients := lineage.patients_trained_on(path, films.parts.val):
            raise UserError(
                f"teacher {path.stem} or an ancestor was trained on {len(patients)} of the patients to be validated "
                f"on, such as {patients[0]}; {advice}"
            )


def probabilities(path: Path, films: Dataset) -> np.ndarray:
    """What a teacher says to the training films, (N, 15) float32 from 0 to 1, read from the disk where it is kept.

    The films are read at the teacher's own size, for which a store is built if there is none.
    """
    train, pixels = films.parts.train, films.store
    if (size := checkpoint.size(path)) != pixels.size:
        pixels = store.build(films.films, size, progress=False)
    meta, device = checkpoint.read_meta(path), devices.device()
    dtype = devices.inference_dtype(device, meta["recipe"].get("precision", "auto"))
    key = {
        "weights": meta["sha256"],
        "films": train["image"].tolist(),
        "pixels": pixels.pixels_of(train),
        "size": size,
        "precision": devices.dtype_name(dtype),
        "code": provenance.code_version(__name__, batches),
    }
    digest = provenance.digest(key)
    stem = paths.outputs() / "teachers" / f"{path.stem}-{digest[:12]}"
    if (kept := _kept(stem, digest)) is not None:
        return kept
    model = network.build("none")
    checkpoint.load_into(model, path)
    how = augmentation.preset(meta["recipe"].get("augment", "none")).unvaried
    values = _read(
        frozen.Inference(model.to(device), dtype=dtype), batches.Batches(pixels, train, batch_size=BATCH, augment=how)
    )
    checkpoint.write_tensors(stem, {PROBABILITIES: values}, {"key": digest, "teacher": path.stem})
    return values.numpy()


@torch.no_grad()
def _read(reader: frozen.Inference, films: batches.Batches) -> Tensor:
    """Probabilities (N, 15) float32 on the CPU."""
    device = next(reader.parameters()).device
    return torch.cat([reader(batch.images).sigmoid().cpu() for batch in films.epoch(0, on=device)])


def _kept(stem: Path, digest: str) -> np.ndarray | None:
    """Probabilities on the disk; None where they are absent, damaged or of another key."""
    try:
        values, meta = checkpoint.read_tensors(stem.with_name(stem.name + checkpoint.SUFFIX))
    except UserError:
        return None
    return values[PROBABILITIES].numpy() if meta.get("key") == digest else None
