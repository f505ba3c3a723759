"""Predictions: probabilities of films from a network, with test-time augmentation, as a CSV that is kept and checked.

Predicting the whole test part takes a GPU minutes and a CPU hours, and an evaluation is looked at again and again. So
``predict_once`` keeps the probabilities with a note of what made them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from cxrlib import UserError, labels, paths, provenance
from cxrlib.data import batches, records
from cxrlib.training import devices, frozen, network

PROBABILITIES = [f"prob_{label}" for label in labels.LABELS]
TRUTHS = [f"label_{label}" for label in labels.LABELS]
CROP = 7 / 8
"""Side of a ten-crop's crops as a share of the image's, as in 224 out of 256 (Krizhevsky 2012)."""

FILE_READERS = ("cxrlib.data.film_paths", "cxrlib.evaluation.film_reader", "cxrlib.evaluation.prediction_files")
"""Modules that ``films`` asks. They have no part in predictions from a store."""

Variant = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Predictions:
    """Predictions from a file: images (N,), patients (N,), labels (N, 15), probabilities (N, 15).

    Labels are as from ``records.label_matrix``: uint8 where all are known, else float32 with NaN for unknown ones.
    """

    images: list[str]
    patients: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray


def predict(
    model: nn.Module,
    batches,
    *,
    tta: str = "none",
    precision: str = "",
    device: str | torch.device | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Probabilities of the labels: (N, 15) float64 in the order of ``batches.films``, 0..1.

    The network runs as in validation during training: eval mode, BatchNorm folded, in ``precision`` or that of the
    weights' recipe, if the device has it. Its modes are restored. ``tta``, test-time augmentation: "none", "flip"
    (image and mirror image) or "tencrop" (corners and centre, and their mirror images); the variants' probabilities are
    averaged. Variants run one after the other, so memory is that of a plain batch. If memory runs out, batches are
    halved until they fit, and stay so. If float16 overflows, all is computed again in float32. Raises UserError for an
    unknown ``tta``, a NaN probability, or too little memory for one image.
    """
    chosen = variants(tta)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    with _evaluating(model), torch.inference_mode(), devices.keep_memory(device):
        dtype = dtype_of(model, precision)
        values = _predict(_Halving(_inference(model, dtype), chosen), batches, device, progress)
        if dtype == torch.float16 and np.isnan(values).any():
            values = _predict(_Halving(_inference(model, torch.float32), chosen), batches, device, progress)
    missing = np.flatnonzero(np.isnan(values).any(1))
    if len(missing):
        name = batches.films["image"].iloc[missing[0]]
        raise UserError(
            f"no probability for {len(missing)} films, the first {name}: the network's output is NaN or lacks it"
        )
    return values


def dtype_of(model: nn.Module, precision: str = "") -> torch.dtype:
    """Precision of the network's convolutions; float32 for a model that is not a ``Network``."""
    return frozen.dtype_of(model, precision) if isinstance(model, network.Network) else torch.float32


def _inference(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return frozen.Inference(model, dtype=dtype) if isinstance(model, network.Network) else model


def _predict(model: "_Halving", batches, device: torch.device, progress: bool) -> np.ndarray:
    rows, outputs = [], []
    for batch in _epoch(batches, device, progress):
        outputs.append(model(batch.images))  # stays on the device: copying would make a GPU wait at every batch
        rows.append(batch.rows)
    values = np.full((len(batches.films), len(labels.LABELS)), np.nan)
    if rows:
        values[torch.cat(rows).numpy()] = torch.cat(outputs).cpu().double().numpy()
    return values


def table(films: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Predictions as a frame: image, patient, 15 columns prob_<label>, 15 columns label_<label>; one row per film."""
    frame = pd.DataFrame({"image": films["image"].to_numpy(), "patient": films["patient"].to_numpy()})
    predicted = pd.DataFrame(probabilities, columns=PROBABILITIES)
    truths = pd.DataFrame(records.label_matrix(films), columns=TRUTHS)
    return pd.concat([frame, predicted, truths], axis=1)


def write(path: Path, films: pd.DataFrame, probabilities: np.ndarray) -> Path:
    """Write ``table`` as CSV, atomically, with nine digits, which keep all float32 values distinct.

    The cell of an unknown label is empty.
    """
    with paths.atomic(path) as temporary:
        table(films, probabilities).to_csv(temporary, index=False, float_format="%.9g")
    return path


CSV_HASH = "csv_sha256"
"""Key in a note with the hash of the file of predictions."""


def check_unchanged(csv: Path) -> None:
    """Compare a file of predictions with the hash in its note, where it has one. Raises UserError if it was changed."""
    if not csv.is_file() or not cache_note(csv).is_file():
        return
    try:
        note = paths.read_json(cache_note(csv))
    except UserError:
        raise UserError(
            f"{cache_note(csv)} was changed or damaged; run 06_evaluation again, which predicts again"
        ) from None
    expected = note.get(CSV_HASH) if isinstance(note, dict) else None
    if expected and provenance.file_sha256(csv) != expected:
        raise UserError(
            f"{csv} is not what the run predicted, it was changed or damaged since; run 06_evaluation again, which "
            "predicts again"
        )


def read(csv: str | Path, films: pd.DataFrame | None = None) -> Predictions:
    """Read and check a file of predictions; with ``films`` the file must be of exactly these, and gets their order.

    A note beside the file has its hash (see ``predict_once``), and a changed file raises UserError.

    Raises UserError if the file is absent or not a CSV, if columns are missing or in another label order, if an image
    occurs twice (or is not one of ``films``, or is missing, or has other labels or another patient there), if a
    probability is NaN or outside 0..1, if a label is not 0, 1, or empty or NaN (unknown), or if a row was cut off.
    """
    csv = Path(csv)
    check_unchanged(csv)
    frame = _frame(csv)
    _check_columns(frame, csv)
    doubled = frame["image"][frame["image"].duplicated()]
    if len(doubled):
        raise UserError(f"{csv}: {doubled.iloc[0]} occurs twice ({len(doubled)} doubled rows); predict again")
    frame = frame if films is None else _matched(frame, films, csv)
    predictions = Predictions(
        images=frame["image"].tolist(),
        patients=_numbers(frame[["patient"]], csv, whole=True)[:, 0].astype(np.int64),
        labels=_labels(frame[TRUTHS], csv),
        probabilities=_numbers(frame[PROBABILITIES], csv, high=1),
    )
    if films is not None:
        _check_truth(predictions, films, csv)
    return predictions


def variants(tta: str) -> list[Variant]:
    """Variants of test-time augmentation: functions from images (B, 1, S, S) to images, the plain or upper left first.

    Raises UserError for an unknown ``tta``.
    """
    plain = {"none": [_whole], "flip": [_whole], "tencrop": [_crop(*at) for at in _CORNERS]}
    if tta not in plain:
        raise UserError(f"tta {tta!r} is unknown; choose none, flip or tencrop")
    return plain[tta] if tta == "none" else [*plain[tta], *(_mirrored(variant) for variant in plain[tta])]


_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))


def _whole(images: torch.Tensor) -> torch.Tensor:
    return images


def _crop(down: float, right: float) -> Variant:
    def variant(images: torch.Tensor) -> torch.Tensor:
        size = images.shape[-1]
        side = max(1, round(size * CROP))
        top, left = round(down * (size - side)), round(right * (size - side))
        return images[..., top : top + side, left : left + side]

    return variant


def _mirrored(variant: Variant) -> Variant:
    return lambda images: variant(images).flip(-1)


class _Halving:
    """Mean probabilities of batches, split if memory runs out; a size that failed once is not tried again."""

    def __init__(self, model: nn.Module, variants: list[Variant]) -> None:
        self.model, self.variants, self.most = model, variants, 0  # images at once; 0: the whole batch

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Mean probability over the variants, (B, 15)."""
        while True:
            try:
                return torch.cat([self._average(part) for part in images.split(self.most or max(len(images), 1))])
            except (MemoryError, RuntimeError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                tried = min(self.most or len(images), len(images))
            self._halve(tried, images)  # not in the handler, where the traceback keeps the failed batch in memory

    def _average(self, images: torch.Tensor) -> torch.Tensor:
        total = torch.sigmoid(self.model(self.variants[0](images)).float())
        for variant in self.variants[1:]:
            total += torch.sigmoid(self.model(variant(images)).float())
        return total / len(self.variants)

    def _halve(self, tried: int, images: torch.Tensor) -> None:
        if tried <= 1:
            raise UserError(
                f"{images.device} has no memory for one film of {images.shape[-1]} px; free some, or take smaller films"
            )
        self.most = tried // 2
        if images.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for every module; afterwards each module's own mode is restored (frozen ones differ from the rest)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _epoch(batches, device: torch.device, progress: bool):
    if not progress:
        return batches.epoch(0, on=device)
    from tqdm.auto import tqdm

    return tqdm(batches.epoch(0, on=device), total=len(batches), desc="reading films", mininterval=5, unit="batch")


def _frame(csv: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(csv, dtype={"image": str})
    except FileNotFoundError:
        raise UserError(f"no predictions at {csv}; run 06_evaluation first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{csv} is not a file of predictions ({error}); delete it and predict again") from None


def _check_columns(frame: pd.DataFrame, csv: Path) -> None:
    absent = [name for name in ("image", "patient", *PROBABILITIES, *TRUTHS) if name not in frame]
    if absent:
        raise UserError(f"{csv} lacks {len(absent)} columns, the first {absent[0]!r}; it is of another kind or version")
    for prefix in ("prob_", "label_"):
        labels.check_order(
            [name.removeprefix(prefix) for name in frame if name.startswith(prefix)], f"{csv}, {prefix}…"
        )


def _matched(frame: pd.DataFrame, films: pd.DataFrame, csv: Path) -> pd.DataFrame:
    """Rows of the frame in the order of ``films``. Raises UserError if the two are not the same films."""
    present, wanted = set(frame["image"]), set(films["image"])
    for what, names in (("lacks", wanted - present), ("has foreign films,", present - wanted)):
        if names:
            raise UserError(
                f"{csv} {what} {min(names)} ({len(names)} of {len(wanted)}); it is of other films, predict again"
            )
    return frame.set_index("image").loc[films["image"]].reset_index()


def _check_truth(predictions: Predictions, films: pd.DataFrame, csv: Path) -> None:
    """Raise UserError if the labels or patients changed since the file was written."""
    other = labels.differ(predictions.labels, records.label_matrix(films)).any(1)
    other |= predictions.patients != films["patient"].to_numpy()
    if other.any():
        name = predictions.images[int(np.argmax(other))]
        raise UserError(f"{csv}: labels or patient of {name} are not those of the films ({other.sum()}); predict again")


def _labels(part: pd.DataFrame, csv: Path) -> np.ndarray:
    """Labels of the columns, (N, 15) as ``records.label_matrix``. A row that was cut off has no unknown labels."""
    unknown = part.isna().to_numpy()
    if not unknown.any():
        return _numbers(part, csv, whole=True, high=1).astype(np.uint8)
    text = csv.read_text("utf-8-sig")
    width = text.partition("\n")[0].count(",")
    short = [i for i, line in enumerate(text.splitlines(), 1) if line.count(",") < width]
    if short or not text.endswith("\n"):
        where = f"row {short[0]}" if short else "the last row"
        raise UserError(f"{csv}, {where} was cut off; predict again")
    values = _numbers(part.mask(unknown, 0), csv, whole=True, high=1).astype(np.float32)
    return np.where(unknown, np.float32(np.nan), values)


def _numbers(part: pd.DataFrame, csv: Path, *, high: float = np.inf, whole: bool = False) -> np.ndarray:
    """The columns as float64 in 0..high, integers if ``whole``. UserError names row and column of the first error."""
    values = part.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~((values >= 0) & (values <= high)) | (whole & (values != np.round(values)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        expected = f"a {'whole ' if whole else ''}number from 0{f' to {high:g}' if np.isfinite(high) else ''}"
        cell = part.iloc[row, column]
        raise UserError(
            f"{csv}, row {row + 2}, {part.columns[column]}: {cell} is not {expected} ({wrong.sum()} such cells)"
        )
    return values


def predict_once(
    model: nn.Module,
    batches: batches.Batches,
    csv: Path,
    *,
    weights: str,
    tta: str = "none",
    device: str | torch.device | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Probabilities of ``predict.predict``, from ``csv`` if an equal call wrote it: (N, 15) float64.

    weights: the hash of the checkpoint that ``model`` was loaded from. Predicts again if the checkpoint, films, labels,
    pixels, test-time augmentation or code changed, or if a file is damaged or absent. The note is beside the file, as
    ``.json``, with the hash of the file. The values are always read from the file, so a cached result equals a new one.
    """
    cache_key = {
        "weights": weights,
        "films": records.fingerprint(batches.films),
        "pixels": batches.store.pixels_of(batches.films),
        "size": batches.store.size,
        "tta": tta,
        "precision": devices.dtype_name(dtype_of(model)),
        "code": provenance.code_version(__name__, "cxrlib.data.batches", without=FILE_READERS),
    }
    if (cached := _cached(csv, batches, cache_key)) is not None:
        return cached
    probabilities = predict(model, batches, tta=tta, device=device, progress=progress)
    cache_note(csv).unlink(missing_ok=True)  # after an interruption here the file has no note and is made again
    write(csv, batches.films, probabilities)
    paths.write_json(cache_note(csv), {**cache_key, CSV_HASH: provenance.file_sha256(csv)}, guarded=True)
    return read(csv, batches.films).probabilities


def films(
    named: str | Path | Iterable[str | Path],
    checkpoint: str | Path,
    *,
    anyway: bool = False,
    heat: bool = False,
    prevalence: str | Path | Mapping[str, float] | None = None,
    rule: str = "youden",
    batch_size: int = 32,
) -> pd.DataFrame:
    """Predictions of film files, as ``cxr predict`` gives them: one row per film and label, one row for a refused film.

    ``named``: films (PNG, JPEG, DICOM), folders, CSVs of paths (``film_paths.collect``). ``checkpoint``: name, file or
    exported folder. Columns are those of ``prediction_files.COLUMNS``; None and NaN are unknown. ``anyway``: numbers
    also for films that the gate refuses. ``heat``: a column ``heat`` with Grad-CAM maps (S, S) of each film's findings
    of highest rank, None for the others. ``prevalence``: a CSV or {label: share}, for PPV and NPV. ``rule``: of
    ``thresholds.RULES``. ``attrs["remarks"]`` says what the checkpoint lacks. The frame holds all films; ``cxr
    predict`` and ``film_reader.Reader.stream`` do not.
    """
    from cxrlib.data import film_paths
    from cxrlib.evaluation import film_reader, interpretation, prediction_files
    from cxrlib.training import checkpoint as checkpoints

    paths_of_films = film_paths.collect([named] if isinstance(named, str | Path) else named)
    reader = film_reader.Reader.open(checkpoints.resolve(str(checkpoint)))
    interpreter = reader.interpreter(rule, *interpretation.read_prevalence(prevalence))
    rows = []
    for answer in reader.stream(paths_of_films, anyway=anyway, batch_size=batch_size):
        found = list(prediction_files.rows(prediction_files.record(answer, interpreter)))
        picture = reader.picture(answer, anyway=anyway, heat=True) if heat else None
        maps = picture.maps if picture else {}
        rows += [row | {"heat": maps.get(row["finding"])} if heat else row for row in found]
    frame = pd.DataFrame(rows, columns=[*prediction_files.COLUMNS, *(["heat"] if heat else [])])
    frame.attrs["remarks"] = interpreter.remarks()
    return frame


def cache_note(csv: Path) -> Path:
    """Path of the note on ``csv``."""
    return csv.with_name(csv.name.removesuffix(".csv") + ".json")


def _cached(csv: Path, batches: batches.Batches, cache_key: dict[str, Any]) -> np.ndarray | None:
    """Probabilities from ``csv`` if an equal call wrote it, else None. Says so if a file was changed or damaged."""
    if not cache_note(csv).is_file() or not csv.is_file():
        return None
    try:
        check_unchanged(csv)
        note = paths.read_json(cache_note(csv))
        if not isinstance(note, dict) or {**note, CSV_HASH: ""} != {**cache_key, CSV_HASH: ""}:
            return None
        return read(csv, batches.films).probabilities
    except UserError as error:
        print(f"Films are predicted again: {str(error).partition('; run')[0]}.")
        return None
