"""Reading of predicted films: their order, counts at any threshold, follow-ups, films that look alike, doubtful films.

What the reading room shows, without its widgets. Everything that is asked at each film is prepared once, as arrays:
25,000 films are sorted and counted in milliseconds. An unknown label (NaN) is neither positive nor negative.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from cxrlib import UserError, dataset, labels, paths, provenance
from cxrlib.data import batches, records, store
from cxrlib.evaluation import localisation, predict, thresholds
from cxrlib.training import checkpoint, devices, frozen, network, parameters

ORDERS = ("probability", "error", "doubt")
"""Orders of films: the highest probability first, the largest distance of label and probability first, the nearest to
the threshold first."""
KINDS = ("all", "positive", "negative", "missed", "false alarm", "doubtful")
"""Kinds of films to show; "missed" and "false alarm" depend on the threshold."""
FEATURES = 2048
KEPT_MAPS = 512
"""Heat maps kept in memory; a map of 224 pixels has 200 kB."""
MARK_COLUMNS = ("image", "reason", "part", "finding", "marked")


@dataclass(frozen=True)
class Counts:
    """Films by label and call at a threshold: a film is called positive if its probability is at least that."""

    found: int
    missed: int
    false_alarms: int
    clear: int

    def share(self, name: str) -> float:
        """Sensitivity, specificity, ppv or npv, 0..1; NaN where no film counts."""
        part, rest = {
            "sensitivity": (self.found, self.missed),
            "specificity": (self.clear, self.false_alarms),
            "ppv": (self.found, self.false_alarms),
            "npv": (self.clear, self.missed),
        }[name]
        return part / (part + rest) if part + rest else float("nan")

    def films(self, name: str) -> int:
        """Number of films that a share is of."""
        return {
            "sensitivity": self.found + self.missed,
            "specificity": self.clear + self.false_alarms,
            "ppv": self.found + self.false_alarms,
            "npv": self.clear + self.missed,
        }[name]


@dataclass
class Reading:
    """Predicted films of one part of a run.

    ``films``: N rows as from ``records.read`` · ``truth`` (N, 15): 1, 0 or NaN · ``raw`` (N, 15): the network's own
    probabilities · ``probabilities`` (N, 15): calibrated, or ``raw`` without a calibration · ``decisions``: None where
    the checkpoint has none · ``path``: the checkpoint, None where it is gone · ``why``: sentences on what is missing.
    """

    run: paths.Run
    part: str
    films: pd.DataFrame
    pixels: store.Store
    boxes: pd.DataFrame
    truth: np.ndarray
    raw: np.ndarray
    probabilities: np.ndarray
    decisions: thresholds.Decisions | None = None
    path: Path | None = None
    weights: str = ""
    why: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.images = self.films["image"].tolist()
        self._rows = self.pixels.rows(self.films)
        patients = self.films["patient"].to_numpy()
        self._by_patient = np.lexsort((self.films["follow_up"].to_numpy(), patients))
        self._patients = patients[self._by_patient]
        self._own_patient = patients
        boxed = self.boxes[self.boxes["image"].isin(self.films["image"])]
        self._boxes: dict[str, list[tuple[str, float, float, float, float]]] = {}
        for row in boxed.itertuples():
            self._boxes.setdefault(row.image, []).append((row.finding, row.x, row.y, row.w, row.h))
        self._maps: dict[tuple[int, int], np.ndarray] = {}
        self._features: np.ndarray | None = None
        self._has_file: bool | None = None

    def __len__(self) -> int:
        return len(self.films)

    def pixels_of(self, i: int) -> np.ndarray:
        """Grey values of film ``i``, (S, S) uint8."""
        return self.pixels.pixels[self._rows[i]]

    def boxes_of(self, i: int) -> list[tuple[str, float, float, float, float]]:
        """Boxes of film ``i``: finding, x, y, w, h in pixels of the original 1024² film."""
        return self._boxes.get(self.images[i], [])

    def follow_ups(self, i: int) -> np.ndarray:
        """Films of the same patient in their order, film ``i`` among them: positions in ``films``."""
        patient = self._own_patient[i]
        low, high = np.searchsorted(self._patients, [patient, patient + 1])
        return self._by_patient[low:high]

    def cuts(self, rule: str) -> np.ndarray:
        """Thresholds of a rule on ``probabilities``, (15,); NaN where there is none."""
        if self.decisions is None:
            return np.full(len(labels.LABELS), np.nan)
        return self.decisions.cuts(rule)

    def counts(self, column: int, threshold: float) -> Counts:
        """Films whose label is known, by label and call."""
        truth, called = self.truth[:, column], self.probabilities[:, column] >= threshold
        found, negative = truth == 1, truth == 0
        return Counts(
            int(np.count_nonzero(found & called)),
            int(np.count_nonzero(found & ~called)),
            int(np.count_nonzero(negative & called)),
            int(np.count_nonzero(negative & ~called)),
        )

    def order(
        self,
        column: int,
        by: str = "probability",
        kind: str = "all",
        *,
        threshold: float = 0.5,
        marked: Iterable[str] = (),
    ) -> np.ndarray:
        """Positions of the films of a kind, sorted for one label; equal values stay in the order of ``films``.

        ``by`` one of ``ORDERS``, ``kind`` one of ``KINDS``; ``marked``: the doubtful films. By error, films whose label
        is unknown come last. Raises UserError for another word.
        """
        truth, value = self.truth[:, column], self.probabilities[:, column]
        distance = {
            "probability": lambda: -value,
            "error": lambda: -np.abs(truth - value),
            "doubt": lambda: np.abs(value - threshold),
        }
        kinds: Mapping[str, Callable[[], np.ndarray]] = {
            "all": lambda: np.ones(len(value), bool),
            "positive": lambda: truth == 1,
            "negative": lambda: truth == 0,
            "missed": lambda: (truth == 1) & (value < threshold),
            "false alarm": lambda: (truth == 0) & (value >= threshold),
            "doubtful": lambda: self.films["image"].isin(list(marked)).to_numpy(),
        }
        if by not in distance or kind not in kinds:
            raise UserError(f"order {by!r} of {kind!r} films is unknown; orders are {ORDERS}, kinds are {KINDS}")
        chosen = np.flatnonzero(kinds[kind]())
        return chosen[np.argsort(distance[by]()[chosen], kind="stable")]

    def table(self, rows: np.ndarray, column: int) -> pd.DataFrame:
        """Films as a table: image, patient, label (1, 0 or NaN), probability, raw (the network's own), row."""
        frame = self.films.iloc[rows][["image", "patient"]].reset_index(drop=True)
        frame["label"], frame["probability"] = self.truth[rows, column], self.probabilities[rows, column]
        return frame.assign(raw=self.raw[rows, column], row=rows)

    def rules(self, column: int) -> pd.DataFrame:
        """Results of each rule's threshold on these films, a row per rule: threshold, sensitivity, specificity, ppv,
        npv, missed and false_alarms (films). NaN where a rule has no threshold."""
        rows = {}
        for rule in thresholds.RULES:
            cut = self.cuts(rule)[column]
            counts = self.counts(column, cut)
            shares = {name: counts.share(name) for name in ("sensitivity", "specificity", "ppv", "npv")}
            row = {"threshold": cut, **shares, "missed": counts.missed, "false_alarms": counts.false_alarms}
            rows[rule] = row if np.isfinite(cut) else dict.fromkeys(row, np.nan)
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("rule")

    @cached_property
    def model(self) -> nn.Module:
        """The checkpoint's network on the device. Raises UserError if it is gone."""
        if self.path is None:
            raise UserError(self.why[0] if self.why else "the checkpoint is not there")
        model = network.build("none").to(devices.device())
        checkpoint.load_into(model, self.path)
        return model.eval()

    def heat(self, i: int, column: int) -> np.ndarray:
        """Heat map of one label on film ``i`` by Grad-CAM, (S, S), 0..1; computed once. UserError without a network."""
        if (i, column) not in self._maps:
            wanted = pd.DataFrame({"row": [i], "finding": [labels.LABELS[column]]})
            made = localisation.show(self.model, self.pixels, self.films, wanted)[0]
            if len(self._maps) >= KEPT_MAPS:
                del self._maps[next(iter(self._maps))]
            self._maps[i, column] = made.astype(np.float16)
        return self._maps[i, column].astype(np.float32)

    @property
    def has_features(self) -> bool:
        """Whether the films' features are in memory or in an up-to-date file."""
        if self._has_file is None:
            self._has_file = self._kept_features() is not None
        return self._has_file or self._features is not None

    def prepare_features(self, progress: Callable[[int, int], None] = lambda done, all_films: None) -> None:
        """Read or compute the films' features. ``progress(done, all)`` is called after each batch.

        They are kept as float16 (N, 2048) in ``features/`` of the run's folder, with a note of what made them.
        Raises UserError without a network.
        """
        if self._features is not None:
            return
        values = self._kept_features()
        if values is None:
            values = _features(self.model, batches.Batches(self.pixels, self.films, batch_size=32), progress)
            self._keep_features(values)
        values = values.astype(np.float32)
        values -= values.mean(0)  # all features are 0 or more, so without this all films look alike
        values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
        self._features = values

    def alike(self, i: int, n: int = 6) -> tuple[np.ndarray, np.ndarray]:
        """The films of other patients most like film ``i``: positions and similarities (-1..1), the most alike first.

        Similarity is the cosine of the network's features below its head, less their mean over all films.
        """
        self.prepare_features()
        likeness = self._features @ self._features[i]
        likeness[self.follow_ups(i)] = -np.inf
        n = min(n, int(np.isfinite(likeness).sum()))
        best = np.argpartition(-likeness, n - 1)[:n] if n else np.empty(0, np.int64)
        best = best[np.argsort(-likeness[best], kind="stable")]
        return best, likeness[best]

    def _note(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "films": provenance.digest(self.images),
            "pixels": self.pixels.pixels_of(self.films),
            "size": self.pixels.size,
            "code": provenance.code_version(frozen, batches),
        }

    def _feature_file(self) -> Path:
        return self.run.root / "features" / f"{self.part}.npy"

    def _kept_features(self) -> np.ndarray | None:
        file = self._feature_file()
        try:
            if paths.read_json(file.with_suffix(".json")) != self._note() | {"sha256": provenance.file_sha256(file)}:
                return None
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except (UserError, OSError, ValueError, EOFError):
            return None
        return values if values.shape == (len(self), FEATURES) and values.dtype == np.float16 else None

    def _keep_features(self, values: np.ndarray) -> None:
        file = self._feature_file()
        file.with_suffix(".json").unlink(missing_ok=True)  # after an interruption here the file has no note
        with paths.atomic(file) as temporary, temporary.open("wb") as out:
            np.save(out, values, allow_pickle=False)
        note = self._note() | {"sha256": provenance.file_sha256(file)}
        paths.write_json(file.with_suffix(".json"), note, guarded=True)


def open_part(
    run: paths.Run,
    part: str,
    *,
    data: str = "",
    size: int = 0,
    ckpt: str = "",
    **how: Any,
) -> Reading:
    """Open the predictions of a run's part ("val" or "test") with the films that they are of.

    ``ckpt`` "" means the checkpoint that made the predictions, and ``size`` 0 the size that they were made at; ``how``
    is what else ``dataset.open`` got in the run, such as seed, allow_missing and exclude. A checkpoint that is gone, or
    that has no calibration and thresholds yet, is no error: ``Reading.why`` says so.
    Raises UserError if there are no predictions, or if they are of other films or of another checkpoint than ``ckpt``.
    """
    if part not in parameters.PARTS:
        raise UserError(f"part is {part!r}; it must be val or test")
    if not run.root.is_dir():
        known = ", ".join(paths.runs()) or "none yet"
        raise UserError(f"there is no run {run.name!r}; the runs are: {known}")
    paths.check_has_network(run)
    csv_file = run.predictions / f"{part}.csv"
    if not csv_file.is_file():
        raise UserError(f"run {run.name} has no predictions of its {part} part yet; run 06_evaluation first")
    if not predict.cache_note(csv_file).is_file():
        raise UserError(f"{csv_file} has no note of the checkpoint that made it; run 06_evaluation to the end")
    note = paths.read_json(predict.cache_note(csv_file))
    weights = str(note.get("weights", "")) if isinstance(note, dict) else ""
    path = checkpoint.resolve(ckpt, run) if ckpt else checkpoint.by_hash(weights) if weights else None
    if ckpt and checkpoint.read_meta(path)["sha256"] != weights:
        raise UserError(f"{csv_file} is not of {path.stem}; run 06_evaluation with ckpt={ckpt} first")
    size = size or int(note.get("size", 0))
    opened = dataset.open(data, size, **how, progress=False)
    films = getattr(opened.parts, part)
    said = predict.read(csv_file, films)
    decisions, why = None, []
    if path is None:
        why = [f"the checkpoint that made {csv_file.name} is gone: no heat maps, no calibration and no thresholds"]
    else:
        try:
            decisions = thresholds.read_decisions(path)
        except UserError as error:
            why = [f"probabilities are not calibrated: {error}"]
    return Reading(
        run=run,
        part=part,
        films=films,
        pixels=opened.store,
        boxes=records.read_boxes(opened.folder),
        truth=np.asarray(said.labels, np.float64),
        raw=said.probabilities,
        probabilities=decisions.calibration(said.probabilities) if decisions else said.probabilities,
        decisions=decisions,
        path=path,
        weights=weights,
        why=(*why,),
    )


def _features(
    model: nn.Module, these: batches.Batches, progress: Callable[[int, int], None] = lambda done, all_films: None
) -> np.ndarray:
    """Features below the head of each film, (N, 2048) float16, in the films' order."""
    inference = frozen.Inference(model, dtype=predict.dtype_of(model))
    values = np.empty((len(these.films), FEATURES), np.float16)
    done = 0
    with torch.inference_mode():
        for batch in these.epoch(0, on=next(model.parameters()).device):
            found = inference.features(batch.images)
            values[batch.rows.numpy()] = found.cpu().numpy()
            done += len(batch.rows)
            progress(done, len(these.films))
    return values


def marks_file(run: paths.Run) -> Path:
    """CSV of the doubtful films of a run, which ``cxr run --exclude`` reads."""
    return run.root / "doubtful.csv"


def read_marks(run: paths.Run) -> dict[str, dict[str, str]]:
    """Doubtful films by name, each with the other columns of its row. Raises UserError if the file is damaged."""
    file = marks_file(run)
    try:
        text = file.read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); save it as UTF-8") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "image" not in (rows.fieldnames or []):
        raise UserError(f"{file} has no column image; restore it, or remove the file")
    marks = {}
    for row in rows:
        if None in row or None in row.values():
            cells = len(rows.fieldnames)
            raise UserError(f"{file}, line {rows.line_num}: a row needs {cells} cells, as the header has; restore it")
        if row["image"]:
            marks[row["image"]] = {name: row.get(name) or "" for name in MARK_COLUMNS[1:]}
    return marks


def mark(run: paths.Run, image: str, reason: str, *, part: str = "", finding: str = "") -> dict[str, dict[str, str]]:
    """Mark a film as doubtful, or change the reason, and return all marks. The file is read again before."""
    marks = read_marks(run)
    row = {"reason": " ".join(reason.split()), "part": part, "finding": finding, "marked": provenance.now()}
    return _write_marks(run, {**marks, image: row})


def unmark(run: paths.Run, image: str) -> dict[str, dict[str, str]]:
    """Take a film's mark back, and return all marks. Without any mark the file is removed, as it excludes nothing."""
    marks = read_marks(run)
    marks.pop(image, None)
    return _write_marks(run, marks)


def _write_marks(run: paths.Run, marks: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    if not marks:
        marks_file(run).unlink(missing_ok=True)
        return {}
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, MARK_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"image": image, **row} for image, row in marks.items())
    paths.write_text(marks_file(run), text.getvalue())
    return marks
