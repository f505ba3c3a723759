"""Gate of a checkpoint: the distance of a film's features from those of the training films, and when to refuse it.

The features are the network's own, 2048 pooled values below the head. Those of the training films are described by a
Gaussian: mean, the up to 256 directions in which they differ most, and one variance for all the other directions
(Mahalanobis distance with shrinkage; Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples,
NeurIPS 2018, use it for this purpose). Features are averages of ReLU outputs, so their spread grows with their size;
their square roots have about the same spread everywhere. On the demo's films and on nih-1k this found more foreign
pictures than the features as they are, their logarithms, or their directions, and more than the k nearest training
films (``tests/benchmarks/compare_gate.py`` repeats it).

The threshold is chosen on validation films. It refuses 1 % of films like these, by construction. How many foreign
pictures it finds depends on the network: one trained on few films has features that say little about other pictures.
What the pixels alone say comes before this, in ``data.film_quality.judge``.

A gate lies beside its checkpoint as ``gate_<name>.safetensors``, and names the checkpoint by its SHA-256.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open

from cxrlib import UserError, metrics, paths, provenance, randomness
from cxrlib.data import augmentation, film_quality, images, records
from cxrlib.data.batches import Batches
from cxrlib.evaluation import intervals
from cxrlib.training import checkpoint, devices, frozen, network

FORMAT = 1
MODES = 256
"""Most directions with a variance of their own. Fewer where there are less than four films for each."""

LEAST = 16
"""Fewest training films of a gate."""

BATCH = 32
"""Films that are read at once: always the same number, since features may differ in their last bits between sizes."""

TENSORS = {"mean": np.float32, "modes": np.float16, "variances": np.float32}
AGAIN = "run 06_evaluation with this checkpoint again"


@dataclass(frozen=True)
class Gate:
    """Gate: what features the training films have, and the distance from which a film is refused.

    ``mean`` (2048,) of the square roots of the training films' features, ``modes`` (K, 2048) unit vectors,
    ``variances`` (K,) along them, ``rest`` the variance along each other direction, ``rank`` the number of directions
    in which training films differ at all. ``threshold`` is a distance. ``made_on`` says what it was made from: films,
    size in pixels, share of validation films refused, and fingerprints.
    """

    mean: np.ndarray
    modes: np.ndarray
    variances: np.ndarray
    rest: float
    rank: int
    threshold: float
    made_on: dict[str, Any] = field(default_factory=dict)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Distance of films from the training films, (B,) float64, by features (B, 2048), 0 or more each.

        The root mean square of training films is 1. NaN or infinite if a feature is.
        """
        apart = _roots(features) - self.mean  # (B, 2048)
        with np.errstate(invalid="ignore"):
            along = apart @ self.modes.T.astype(np.float64)  # (B, K)
            beside = np.maximum(np.square(apart).sum(1) - np.square(along).sum(1), 0)
            squared = np.square(along) @ (1 / self.variances.astype(np.float64)) + beside / self.rest
        return np.sqrt(squared / self.rank)

    def refusal(self, distance: float) -> str:
        """Reason to refuse a film at this distance, with both numbers and what to do; "" for none."""
        if distance <= self.threshold:
            return ""
        share = 1 - self.made_on["refused"]
        return (
            f"the network does not know such a picture: its features are at a distance of {distance:.2f} from those of "
            f"the training films, and {share:.0%} of the validation films are within {self.threshold:.2f}; "
            "take a frontal chest film like those of the training"
        )


def features(model: network.Network, films: Batches) -> np.ndarray:
    """Features of all films below the head, (N, 2048) float32, in their order, as predictions compute them.

    The films are neither shuffled nor augmented, whatever ``films`` does. The network does not change.
    """
    in_order = Batches(films.store, films.films, batch_size=BATCH)
    values = np.empty((len(films.films), model.fc.in_features), np.float32)
    with torch.inference_mode(), devices.keep_memory(model.device):
        read = frozen.Inference(model, dtype=frozen.dtype_of(model))
        for batch in in_order.epoch(0, on=model.device):
            values[batch.rows.numpy()] = read.features(batch.images).cpu().numpy()
    return values


def features_of_pixels(model: network.Network, pixels: np.ndarray) -> np.ndarray:
    """Features (N, 2048) float32 of pixels (N, S, S) uint8 at the network's size, as ``features``."""
    found = []
    with torch.inference_mode(), devices.keep_memory(model.device):
        read = frozen.Inference(model, dtype=frozen.dtype_of(model))
        for start in range(0, len(pixels), BATCH):
            part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + BATCH]))
            none = torch.zeros(len(part), augmentation.DRAWS)
            seen = augmentation.augmented_images(part, none, augmentation.Augment())
            found.append(read.features(seen.to(model.device)).cpu().numpy())
    return np.concatenate(found)


def fit(model: network.Network, train: Batches, val: Batches, *, refused: float = 0.01, films: int = 4000) -> Gate:
    """Gate of a network from its training and validation films, of each at most ``films``, chosen at random once.

    ``refused`` is the share of validation films beyond the threshold. The result is the same each time. Raises
    UserError for fewer than ``LEAST`` training films, and where a feature is not finite.
    """
    if not 0 < refused < 1 or films < LEAST:
        raise UserError(f"refused {refused}, films {films}: give a share between 0 and 1, and {LEAST} films or more")
    train, val = _some(train, films), _some(val, films)
    if len(train.films) < LEAST:
        raise UserError(f"a gate needs {LEAST} training films or more, and there are {len(train.films)}")
    seen, unseen = features(model, train), features(model, val)
    if not (np.isfinite(seen).all() and np.isfinite(unseen).all()):
        raise UserError("the network's features are not finite for some films; train it again")
    made_on = {"films": len(seen), "validation": len(unseen), "most": films, "refused": refused}
    made_on |= {"size": train.store.size, **_sources(model, train, val)}
    open_gate = Gate(**_describe(seen), threshold=np.inf, made_on=made_on)
    return replace(open_gate, threshold=float(np.quantile(open_gate.distance(unseen), 1 - refused)))


def fit_once(path: Path, model: network.Network, train: Batches, val: Batches, *, refused: float = 0.01) -> Gate:
    """Gate of ``fit``, from the file beside the checkpoint at ``path`` if an equal call wrote it; else made and saved.

    ``model`` has the checkpoint's weights. It is made again if the checkpoint, films, pixels or code changed, or if the
    file is damaged.
    """
    try:
        found = load(path)
    except UserError:
        found = None
    if found and found.made_on["refused"] == refused:
        films = found.made_on["most"]
        if {**found.made_on, **_sources(model, _some(train, films), _some(val, films))} == found.made_on:
            return found
    made = fit(model, train, val, refused=refused)
    save(path, made)
    return made


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda films: films,
    "inverted": lambda films: 255 - films,
    "turned to the left": lambda films: np.rot90(films, 1, (1, 2)),
    "mirrored": lambda films: films[:, :, ::-1],
    "their middle": lambda films: np.stack([_middle(film) for film in films]),
}
"""Changes of films (N, S, S) uint8 that ``trial`` makes."""


def trial(gate: Gate, model: network.Network, test: Batches, *, films: int = 400, changed: int = 100) -> pd.DataFrame:
    """What the gate says of test films as they are and changed: a row for each of ``CHANGES``.

    At most ``films`` films as they are, chosen at random once, and every so many of them changed, at most ``changed``.
    Columns: ``kind``; ``films``; ``righted`` and ``pixels``, the shares that ``film_quality.judge`` puts right and
    refuses; ``features``, the share beyond the threshold if the pixel part is not asked, with its Wilson interval
    ``features_low`` and ``features_high``; ``auc``, the ROC AUC of the distance against the films as they are. The
    pixels are those of the store.
    """
    chosen = _some(test, films)
    plain = np.asarray(chosen.store.pixels[chosen.store.rows(chosen.films)])  # (N, S, S)
    usual, rows = None, []
    for kind, change in CHANGES.items():
        pixels = np.ascontiguousarray(change(plain if usual is None else plain[:: -(-len(plain) // changed)]))
        judged = [film_quality.judge(images.Film(one, "L")) for one in pixels]
        away = gate.distance(features_of_pixels(model, pixels))
        usual = away if usual is None else usual
        share = intervals.proportion(int(np.count_nonzero(~(away <= gate.threshold))), len(away))
        scores = pd.Series(np.concatenate([usual, away])).rank(pct=True).to_numpy()
        row = (np.mean([bool(one.righted) for one in judged]), np.mean([bool(one.refusal) for one in judged]))
        rows.append(
            (kind, len(away), *row, *share, metrics.roc_auc(np.repeat([0, 1], [len(usual), len(away)]), scores))
        )
    names = ["kind", "films", "righted", "pixels", "features", "features_low", "features_high", "auc"]
    return pd.DataFrame(rows, columns=names)


def _middle(film: np.ndarray) -> np.ndarray:
    side = len(film)
    return images.shrink(film[side // 4 : side - side // 4, side // 4 : side - side // 4], side)


def save(path: Path, gate: Gate) -> Path:
    """Write a gate beside its checkpoint at ``path``. Returns the path of its file.

    Raises UserError where the checkpoint is absent, or the disk is full or not writable.
    """
    tensors = {name: np.ascontiguousarray(getattr(gate, name), kind) for name, kind in TENSORS.items()}
    header = {
        "format": FORMAT,
        "checkpoint": _checkpoint_sha256(path),
        "rest": gate.rest,
        "rank": gate.rank,
        "threshold": gate.threshold,
        "made_on": gate.made_on,
        "tensors": _tensors_sha256(tensors),
    }
    file = checkpoint.gate_beside(path)
    guarded = {**header, paths.GUARD: paths.content_hash(header)}
    text = json.dumps(guarded, sort_keys=True, allow_nan=False)
    return paths.write_bytes(file, safetensors.numpy.save(tensors, {checkpoint.HEADER_KEY: text}))


def load(path: Path) -> Gate | None:
    """Gate beside the checkpoint at ``path``; None where there is none.

    Raises UserError where it is damaged, of another version, or of other weights than those of the checkpoint.
    """
    file = checkpoint.gate_beside(path)
    if not file.is_file():
        return None
    try:
        with safe_open(file, "np") as opened:
            header = paths.check_guard(file, json.loads((opened.metadata() or {})[checkpoint.HEADER_KEY]))
            tensors = {name: opened.get_tensor(name) for name in TENSORS}
        kind, owner, known = header["format"], header["checkpoint"], header["tensors"]
        gate = Gate(**tensors, **{name: header[name] for name in ("rest", "rank", "threshold", "made_on")})
    except (UserError, OSError, SafetensorError, ValueError, KeyError, TypeError):
        raise UserError(f"gate {file} is damaged or no gate; {AGAIN}") from None
    if kind != FORMAT:
        raise UserError(f"gate {file} has format {kind}, and this version reads {FORMAT}; {AGAIN}")
    if known != _tensors_sha256(tensors) or not _is_whole(gate):
        raise UserError(f"gate {file} is damaged (its values have changed); {AGAIN}")
    if owner != _checkpoint_sha256(path):
        raise UserError(f"gate {file} is of other weights than {path.name}; {AGAIN}")
    return gate


def _roots(features: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.asarray(features, np.float64), 0))  # NaN stays NaN


def _describe(features: np.ndarray) -> dict[str, Any]:
    """Gaussian of the roots of features (N, 2048), rounded as a file keeps it."""
    roots = _roots(features)
    mean = roots.mean(0).astype(np.float32)
    _, scales, directions = np.linalg.svd(roots - mean, full_matrices=False)
    variances = np.square(scales) / (len(roots) - 1)
    rank = min(len(roots) - 1, roots.shape[1])
    count = max(1, min(MODES, len(roots) // 4, rank - 1))
    modes = directions[:count] * np.sign(directions[:count].sum(1, keepdims=True) + 1e-300)
    floor = max(variances[0] * 1e-9, 1e-12)  # of a network whose features hardly differ
    return {
        "mean": mean,
        "modes": modes.astype(np.float16),
        "variances": np.maximum(variances[:count], floor).astype(np.float32),
        "rest": float(max(variances[count:rank].sum() / (rank - count), floor)),
        "rank": rank,
    }


def _some(part: Batches, films: int) -> Batches:
    """At most so many films of a part, in order, chosen at random by their number alone."""
    rows = np.sort(randomness.permutation(len(part.films), seed=0)[:films])
    chosen = part.films.iloc[rows].reset_index(drop=True)
    return Batches(part.store, chosen, batch_size=BATCH)


def _sources(model: network.Network, train: Batches, val: Batches) -> dict[str, str]:
    """Fingerprints of what a gate is made from, apart from the weights."""
    parts = [[records.fingerprint(part.films), part.store.pixels_of(part.films)] for part in (train, val)]
    return {
        "data": provenance.digest([*parts, train.store.size]),
        "precision": devices.dtype_name(frozen.dtype_of(model)),
        "code": provenance.code_version(__name__),
    }


def _is_whole(gate: Gate) -> bool:
    """Whether shapes fit each other, numbers are finite and positive, and ``made_on`` has what is needed."""
    if not isinstance(gate.made_on, dict):
        return False
    count, width = gate.modes.shape if gate.modes.ndim == 2 else (0, 0)
    shapes = gate.mean.shape == (width,) and gate.variances.shape == (count,) and count > 0
    numbers = [gate.rest, gate.rank, gate.threshold, *(gate.made_on.get(key, 0) for key in ("most", "refused", "size"))]
    finite = all(isinstance(n, int | float) and np.isfinite(n) and n > 0 for n in numbers)
    return shapes and finite and all(np.isfinite(getattr(gate, name)).all() for name in TENSORS)


def _checkpoint_sha256(path: Path) -> str:
    try:
        return provenance.file_sha256(path)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read ({error.strerror})") from None


def _tensors_sha256(tensors: dict[str, np.ndarray]) -> str:
    return checkpoint.tensors_sha256({name: torch.from_numpy(value) for name, value in tensors.items()})
