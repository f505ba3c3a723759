"""From a network and films to probabilities, and the file of predictions that every later number is made from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from cxrlib import labels, paths
from cxrlib.data import records
from cxrlib.errors import UserError
from cxrlib.training import hardware, inference, network

PROBABILITIES = [f"prob_{label}" for label in labels.LABELS]
TRUTHS = [f"label_{label}" for label in labels.LABELS]
CROP = 7 / 8
"""Side of a ten-crop's crops as a share of the film's, as in 224 out of 256 (Krizhevsky 2012)."""

View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Predictions:
    """A file of predictions, film by film: images (N,), patients (N,), labels (N, 15), probabilities (N, 15)."""

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
    """Probability of each label on each film: (N, 15) float64 in the order of ``batches.films``, 0..1.

    The network is read as it was validated in training: BatchNorm folded, in the ``precision`` of the recipe whose
    weights it holds (or the one given here) as far as the device has it. It is given back as it was. ``tta``,
    test-time augmentation: "none", "flip" (film and mirror image) or "tencrop" (corners and centre, and their mirror
    images); views' probabilities are averaged. Views go through the network one after the other, so memory stays that
    of a plain batch; where even that is too much, on a GPU or not, batches are halved until they fit, and stay so.
    Films whose values overflow in float16 are read again in float32. Raises UserError for an unknown ``tta``, a NaN
    answer, or where there is no memory for a single film.
    """
    views = _views(tta)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    with _evaluating(model), torch.inference_mode(), hardware.keeping_memory(device):
        dtype = dtype_of(model, precision)
        found = _read(_Halving(_reader(model, dtype), views), batches, device, progress)
        if dtype == torch.float16 and np.isnan(found).any():
            found = _read(_Halving(_reader(model, torch.float32), views), batches, device, progress)
    unread = np.flatnonzero(np.isnan(found).any(1))
    if len(unread):
        name = batches.films["image"].iloc[unread[0]]
        raise UserError(
            f"no probability for {len(unread)} films, the first {name}: the network's answer is NaN or lacks it"
        )
    return found


def dtype_of(model: nn.Module, precision: str = "") -> torch.dtype:
    """What the network's convolutions compute in; a network of another kind is read as it is, in float32."""
    return inference.dtype_of(model, precision) if isinstance(model, network.Network) else torch.float32


def _reader(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return inference.Inference(model, dtype=dtype) if isinstance(model, network.Network) else model


def _read(reader: "_Halving", batches, device: torch.device, progress: bool) -> np.ndarray:
    rows, answers = [], []
    for batch in _shown(batches, device, progress):
        answers.append(reader(batch.images))  # stays on the device: a card would wait at every batch
        rows.append(batch.rows)
    found = np.full((len(batches.films), len(labels.LABELS)), np.nan)
    if rows:
        found[torch.cat(rows).numpy()] = torch.cat(answers).cpu().double().numpy()
    return found


def table(films: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Predictions as a frame: image, patient, 15 columns prob_<label>, 15 columns label_<label>; one row per film."""
    frame = pd.DataFrame({"image": films["image"].to_numpy(), "patient": films["patient"].to_numpy()})
    chances = pd.DataFrame(probabilities, columns=PROBABILITIES)
    truths = pd.DataFrame(records.label_matrix(films), columns=TRUTHS)
    return pd.concat([frame, chances, truths], axis=1)


def write(path: Path, films: pd.DataFrame, probabilities: np.ndarray) -> Path:
    """Write ``table`` as CSV, whole or not at all; nine digits, which tell all float32 answers apart."""
    with paths.atomic(path) as temporary:
        table(films, probabilities).to_csv(temporary, index=False, float_format="%.9g")
    return path


def read(csv: str | Path, films: pd.DataFrame | None = None) -> Predictions:
    """Read and check a file of predictions; given ``films``, they must be exactly its films, and come in that order.

    Raises UserError where the file is absent or no CSV, columns are missing or in another label order, an image is
    doubled (or missing, or foreign to ``films``, or has other labels or another patient there), a probability is NaN or
    outside 0..1, or a label is not 0 or 1.
    """
    csv = Path(csv)
    frame = _frame(csv)
    _check_columns(frame, csv)
    doubled = frame["image"][frame["image"].duplicated()]
    if len(doubled):
        raise UserError(f"{csv}: {doubled.iloc[0]} is there twice ({len(doubled)} doubled rows); predict again")
    frame = frame if films is None else _matched(frame, films, csv)
    found = Predictions(
        images=frame["image"].tolist(),
        patients=_numbers(frame[["patient"]], csv, whole=True)[:, 0].astype(np.int64),
        labels=_numbers(frame[TRUTHS], csv, whole=True, high=1).astype(np.uint8),
        probabilities=_numbers(frame[PROBABILITIES], csv, high=1),
    )
    if films is not None:
        _check_truth(found, films, csv)
    return found


def _views(tta: str) -> list[View]:
    plain = {"none": [_whole], "flip": [_whole], "tencrop": [_crop(*at) for at in _CORNERS]}
    if tta not in plain:
        raise UserError(f"tta {tta!r} is unknown; choose none, flip or tencrop")
    return plain[tta] if tta == "none" else [*plain[tta], *(_mirrored(view) for view in plain[tta])]


_CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))


def _whole(images: torch.Tensor) -> torch.Tensor:
    return images


def _crop(down: float, right: float) -> View:
    def view(images: torch.Tensor) -> torch.Tensor:
        size = images.shape[-1]
        side = max(1, round(size * CROP))
        top, left = round(down * (size - side)), round(right * (size - side))
        return images[..., top : top + side, left : left + side]

    return view


def _mirrored(view: View) -> View:
    return lambda images: view(images).flip(-1)


class _Halving:
    """Reads batches as large as memory allows: a size that was too much once is not tried again."""

    def __init__(self, model: nn.Module, views: list[View]) -> None:
        self.model, self.views, self.most = model, views, 0  # films at once, 0: as they come

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Mean probability over the views, (B, 15)."""
        while True:
            try:
                return torch.cat([self._average(part) for part in images.split(self.most or max(len(images), 1))])
            except (MemoryError, RuntimeError) as error:
                if not hardware.no_memory(error):
                    raise
                tried = min(self.most or len(images), len(images))
            self._halve(tried, images)  # outside the handler, whose traceback holds the failed batch

    def _average(self, images: torch.Tensor) -> torch.Tensor:
        total = torch.sigmoid(self.model(self.views[0](images)).float())
        for view in self.views[1:]:
            total += torch.sigmoid(self.model(view(images)).float())
        return total / len(self.views)

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
    """Eval mode for every module, and afterwards each module's own mode again (frozen ones differ from the rest)."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _shown(batches, device: torch.device, progress: bool):
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
    """The frame's rows in the order of ``films``; raises where the two are not the same films."""
    known, wanted = set(frame["image"]), set(films["image"])
    for what, names in (("lacks", wanted - known), ("has foreign films,", known - wanted)):
        if names:
            raise UserError(
                f"{csv} {what} {min(names)} ({len(names)} of {len(wanted)}); it is of other films, predict again"
            )
    return frame.set_index("image").loc[films["image"]].reset_index()


def _check_truth(found: Predictions, films: pd.DataFrame, csv: Path) -> None:
    """Refuse a file whose labels or patients are not, film by film, those of ``films``: they were changed since."""
    other = (found.labels != films[list(labels.LABELS)].to_numpy()).any(1)
    other |= found.patients != films["patient"].to_numpy()
    if other.any():
        name = found.images[int(np.argmax(other))]
        raise UserError(f"{csv}: labels or patient of {name} are not those of the films ({other.sum()}); predict again")


def _numbers(part: pd.DataFrame, csv: Path, *, high: float = np.inf, whole: bool = False) -> np.ndarray:
    """The columns as float64 in 0..high, whole if asked; raises naming column and row of the first that is not."""
    values = part.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    wrong = ~((values >= 0) & (values <= high)) | (whole & (values != np.round(values)))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        wanted = f"a {'whole ' if whole else ''}number from 0{f' to {high:g}' if np.isfinite(high) else ''}"
        cell = part.iloc[row, column]
        raise UserError(
            f"{csv}, row {row + 2}, {part.columns[column]}: {cell} is not {wanted} ({wrong.sum()} such cells)"
        )
    return values
