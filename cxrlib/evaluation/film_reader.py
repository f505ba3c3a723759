"""Film reader: probabilities of film files, decoded in threads while the network works, one answer per film in order.

A film goes the way of a store's films: decoded (``images.decode_film``), judged by its pixels and righted if it lies
wrong (``film_quality.judge``), squeezed to the checkpoint's size, normalised as in training. So its probability is that
of ``predict.predict`` on a store of the same film. In front of it stands the gate: a film that does not look like those
of the training, by its pixels or by the network's own features, gets no number but a reason.

Only decoded films of a few batches are held at once, so memory does not depend on the number of films.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch

from cxrlib import UserError, labels
from cxrlib.data import augmentation, batches, film_quality, images, parallel
from cxrlib.evaluation import gate, interpretation, localisation, predict, reference, thresholds
from cxrlib.training import checkpoint, devices, frozen, network

BATCH = 32
PICTURE = 320
"""Longest side of a picture for people, in pixels."""

MAPS = 3
"""Findings of a film that get a heat map: those of the highest rank."""

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """Answer for one film file. Nothing in it comes from a DICOM header but view, sex and age.

    ``network``: the network's own probabilities (15,), None if the film has no number; ``refusal`` then says why.
    ``righted``: what was done to the film first, such as "a negative, inverted". ``distance``: of its features from
    those of the training films, NaN without a gate. ``view``: PA, AP or "". ``sex``: M, F or "". ``age``: years or NaN.
    ``passing``: the refusal is not about the file's content (absent, no permission), so that another try may succeed.
    """

    film: str
    network: np.ndarray | None = None
    refusal: str = ""
    righted: str = ""
    notes: tuple[str, ...] = ()
    distance: float = float("nan")
    view: str = ""
    sex: str = ""
    age: float = float("nan")
    passing: bool = False


class Picture(NamedTuple):
    """Picture of a film for people: grey pixels (h, w) uint8 of at most ``PICTURE``, and heat maps by finding.

    A map is (S, S) float32 from 0 to 1, S the network's size, and covers the film as a whole.
    """

    pixels: np.ndarray
    maps: dict[str, np.ndarray]


class _Decoded(NamedTuple):
    """A film before the network: its answer so far, and its pixels (S, S) uint8, None if it is refused."""

    answer: Answer
    pixels: np.ndarray | None = None
    whole: np.ndarray | None = None


@dataclass(frozen=True)
class Reader:
    """Reader of film files with one checkpoint, and what travels with it (None where it has none).

    ``size`` and ``tta`` are those of the calibration, else the training size and "none".
    """

    path: Path
    sha256: str
    size: int
    tta: str
    model: network.Network
    decisions: thresholds.Decisions | None
    ref: reference.Reference | None
    gate: gate.Gate | None

    @classmethod
    def open(cls, path: Path, *, device: str | torch.device | None = None) -> "Reader":
        """Reader with the checkpoint at ``path`` (see ``checkpoint.resolve``), on a device as ``devices.device`` picks.

        Raises UserError for a checkpoint that is damaged, of another layout, or without its training size.
        """
        meta = checkpoint.read_meta(path)
        carried = thresholds.CALIBRATION in meta.get(checkpoint.ATTACHED, {})
        decisions = thresholds.read_decisions(path) if carried else None
        made_on = decisions.made_on if decisions else {}
        size = checkpoint.size(path, int(made_on.get("size") or 0))
        model = network.build("none")
        checkpoint.load_into(model, path)
        tta = str(made_on.get("tta") or "none")
        predict.variants(tta)  # raises for an unknown one
        model = model.to(devices.device(device)).eval()
        return cls(path, meta["sha256"], size, tta, model, decisions, reference.read(path), gate.load(path))

    @property
    def name(self) -> str:
        """Name of the checkpoint for people; of an exported folder, which calls its weights ``model``, the folder's."""
        return self.path.parent.name if self.path.stem == "model" else self.path.stem

    def interpreter(
        self, rule: str = interpretation.RULE, stated: np.ndarray | None = None, stated_by: str = ""
    ) -> interpretation.Interpreter:
        """Interpreter of this checkpoint's probabilities; see ``interpretation.Interpreter``."""
        return interpretation.Interpreter(self.decisions, self.ref, rule, stated, stated_by, self._warnings())

    def _warnings(self) -> tuple[str, ...]:
        datasets = trained_on(checkpoint.read_meta(self.path))
        if datasets and all(dataset.startswith("phantom") for dataset in datasets):
            return ("The checkpoint was trained on drawn phantom films, so its numbers say nothing about patients",)
        return ()

    def stream(
        self, films: Iterable[str | Path], *, anyway: bool = False, batch_size: int = BATCH, workers: int = 0
    ) -> Iterator[Answer]:
        """Answers of film files, one per film, in their order. No bad film ends the stream.

        ``anyway`` gives a number for films that the gate refuses too, and a note; a film that cannot be read as a
        frontal chest film by its file has none in any case. ``workers``: threads that decode, 0 for one per core.
        Raises UserError if memory is too small for one film.
        """
        if batch_size < 1 or workers < 0:
            raise UserError(f"batch_size {batch_size}, workers {workers}: give a batch size of 1 or more")
        decode = partial(_decode, size=self.size, anyway=anyway)
        with warnings.catch_warnings(), devices.keep_memory(self.model.device):  # threads change the filters unordered
            compute = _Network(self)
            previous: tuple[list[_Decoded], Callable[[], _Outputs]] | None = None
            decoded = in_threads(decode, films, workers or parallel.cores(), ahead=2 * batch_size)
            for group in _groups(decoded, batch_size):
                launched = group, compute(group)
                if previous:  # one batch late, so that a GPU computes while this process writes
                    yield from self._answers(*previous, anyway)
                previous = launched
            if previous:
                yield from self._answers(*previous, anyway)

    def picture(self, answer: Answer, *, anyway: bool = False, heat: bool = False) -> Picture | None:
        """Picture of a film, decoded again; None if it cannot be decoded any more.

        ``heat`` adds Grad-CAM maps (``localisation.maps``) of its ``MAPS`` findings of highest rank, if it has numbers.
        """
        found = _decode(answer.film, size=self.size, anyway=anyway or answer.network is None, whole=True)
        if found.whole is None:
            return None
        maps: dict[str, np.ndarray] = {}
        if heat and answer.network is not None and found.pixels is not None:
            rows = interpretation.ranked(self.interpreter().findings(answer.network))
            names = [row["finding"] for row in rows if row["finding"] != labels.NO_FINDING][:MAPS]
            film = _normalised([found.pixels], self.model.device).repeat(len(names), 1, 1, 1)
            drawn = localisation.maps(self.model, film, [labels.column(name) for name in names])
            maps = dict(zip(names, drawn, strict=True))
        return Picture(found.whole, maps)

    def _answers(self, group: list[_Decoded], outputs: Callable[[], "_Outputs"], anyway: bool) -> Iterator[Answer]:
        """Answers of a group, whose films have the network's outputs in their order."""
        rows = iter(zip(*outputs(), strict=True))
        for film in group:
            if film.pixels is None:
                yield film.answer
                continue
            probabilities, distance = next(rows)
            refusal, notes = "", film.answer.notes
            if not np.isfinite(probabilities).all():
                refusal = f"{film.answer.film} has no probability: the network's output is NaN"
            elif self.gate is not None and (unlike := self.gate.refusal(float(distance))):
                refusal, notes = ("", (*notes, unlike)) if anyway else (unlike, notes)
            answer = replace(film.answer, refusal=refusal, notes=notes, distance=float(distance))
            yield answer if refusal else replace(answer, network=probabilities)


class _Outputs(NamedTuple):
    probabilities: np.ndarray  # (B, 15) float64
    distances: np.ndarray  # (B,), NaN without a gate


class _Network:
    """The network of a reader with folded BatchNorms: a group of films to a call that waits for their outputs."""

    def __init__(self, reader: Reader) -> None:
        self.model, self.gate = reader.model, reader.gate
        self.variants = predict.variants(reader.tta)
        self.dtype = predict.dtype_of(self.model)
        self.inference = frozen.Inference(self.model, dtype=self.dtype)
        self.most = 0  # films at once; 0: a whole batch

    @torch.inference_mode()
    def __call__(self, group: list[_Decoded]) -> Callable[[], _Outputs]:
        pixels = [film.pixels for film in group if film.pixels is not None]
        if not pixels:
            return lambda: _Outputs(np.empty((0, len(labels.LABELS))), np.empty(0))
        images = _normalised(pixels, self.model.device)
        outputs = self._halving(images)
        if self.dtype == torch.float16 and not bool(outputs[0].isfinite().all()):  # float16 overflows
            self.dtype, self.inference = torch.float32, frozen.Inference(self.model)
            outputs = self._halving(images)
        values, features = map(batches.OnItsWayToCpu, outputs)
        return lambda: self._arrived(values, features)

    def _arrived(self, values: batches.OnItsWayToCpu, features: batches.OnItsWayToCpu) -> _Outputs:
        probabilities = values.values().double().numpy()
        if self.gate is None:
            return _Outputs(probabilities, np.full(len(probabilities), np.nan))
        return _Outputs(probabilities, np.asarray(self.gate.distance(features.values().numpy()), np.float64))

    def _halving(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (B, 15) and features (B, 2048). Batches are halved until they fit, and stay so."""
        while True:
            try:
                parts = [self._outputs(part) for part in images.split(self.most or len(images))]
                return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
            except (MemoryError, RuntimeError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                tried = min(self.most or len(images), len(images))
            if tried <= 1:
                raise UserError(f"{images.device} has no memory for one film of {images.shape[-1]} px; free some")
            self.most = tried // 2
            if images.device.type == "cuda":
                torch.cuda.empty_cache()

    def _outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, whole = 0.0, None
        for variant in self.variants:
            seen = variant(images)
            features = self.inference.features(seen)  # (B, 2048)
            total = total + torch.sigmoid(self.inference.head(features).float())
            whole = features if whole is None and seen.shape == images.shape else whole
        if whole is None:  # ten crops, none of which is the whole film
            whole = self.inference.features(images) if self.gate is not None else features
        return total / len(self.variants), whole


def trained_on(meta: dict[str, Any]) -> list[str]:
    """Datasets whose patients a checkpoint or an ancestor was trained on, by the JSON of the checkpoint."""
    trained = meta.get("seen", {}).get("trained", {})
    return [str(dataset) for dataset in trained] if isinstance(trained, dict) else []


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int, ahead: int) -> Iterator[Result]:
    """``map(work, jobs)`` by several threads, in order. At most ``ahead`` jobs are done or under way at once.

    The decoders release Python's lock. An exception of ``work`` is raised at its place in the order.
    """
    jobs = iter(jobs)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="films", initializer=_one_thread)
    try:
        futures = deque(pool.submit(work, job) for job in islice(jobs, max(ahead, workers)))
        while futures:
            result = futures.popleft().result()
            futures.extend(pool.submit(work, job) for job in islice(jobs, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    cv2.setNumThreads(1)  # of the whole process; its threads are the films


def _groups(decoded: Iterable[_Decoded], batch_size: int) -> Iterator[list[_Decoded]]:
    """Groups with ``batch_size`` films for the network each, and the refused ones between them, in order."""
    group: list[_Decoded] = []
    fit = 0
    for film in decoded:
        group.append(film)
        fit += film.pixels is not None
        if fit == batch_size or len(group) >= 4 * batch_size:
            yield group
            group, fit = [], 0
    if group:
        yield group


def _normalised(pixels: list[np.ndarray], to: torch.device) -> torch.Tensor:
    """Input of the network, (B, 1, S, S) float32, from pixels (S, S) uint8, as ``batches.Batches`` makes it."""
    stacked, draws = torch.from_numpy(np.stack(pixels)), torch.zeros(len(pixels), augmentation.DRAWS)
    if to.type == "cuda":
        stacked, draws = batches.to_device(stacked, to), draws.to(to)
    return augmentation.augmented_images(stacked, draws, augmentation.Augment()).to(to)  # some devices lack operations


def _decode(film: str | Path, *, size: int, anyway: bool = False, whole: bool = False) -> _Decoded:
    """A film decoded, judged by its pixels and brought to size, or the reason why not. ``whole`` keeps a picture."""
    name = str(film)
    try:
        return _judged(name, size, anyway, whole)
    except UserError as error:
        passing = isinstance(error, images.UnreadableError) or not Path(name).exists()
        return _Decoded(Answer(name, refusal=str(error), passing=passing))
    except MemoryError:
        return _Decoded(
            Answer(name, refusal=f"{name} needs more memory than there is; close other programs", passing=True)
        )
    except Exception as error:  # of a decoder: one film must not end a list of thousands
        return _Decoded(Answer(name, refusal=f"{name} cannot be read ({type(error).__name__})"))


def _judged(name: str, size: int, anyway: bool, whole: bool) -> _Decoded:
    data = images.load(name)
    film = images.decode_film(data, name)
    said: dict[str, Any] = {}
    if film.mode == "DICOM":
        from cxrlib.data import dicom

        header = dicom.header(data, name)
        said = {"view": header.view, "sex": header.sex, "age": header.age}
    judged = film_quality.judge(film)
    answer = Answer(name, righted=judged.righted, notes=judged.notes, **said)
    picture = _small(judged.pixels) if whole else None
    if judged.refusal and not anyway:
        return _Decoded(replace(answer, refusal=judged.refusal), None, picture)
    if judged.refusal:
        answer = replace(answer, notes=(*answer.notes, judged.refusal))
    return _Decoded(answer, images.shrink(judged.pixels, size), picture)


def _small(pixels: np.ndarray) -> np.ndarray:
    """Film of at most ``PICTURE`` pixels on its longest side, in its own shape."""
    ratio = min(1.0, PICTURE / max(pixels.shape))
    height, width = (max(1, round(side * ratio)) for side in pixels.shape)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA) if ratio < 1 else pixels
