"""Prediction files of many films: answers kept as they come, and the CSV and JSON that are written from them.

``answers.jsonl`` in the folder is the state: a line per answered film, with the size and time of its file, below a line
that says what made them. It is only appended to, so a killed call loses at most the films that were under way. When it
is opened again for the same settings, finished films are found in it; after a change of the checkpoint, of a setting or
of the code it starts anew, and a changed film is read again. Interpretation (rule, prevalence, calibration) comes
after it, so changing that needs no network.

``predictions.json``, schema "cxrlib.predictions/1", one object:

- ``schema``, ``made`` (UTC), ``program`` (name and version).
- ``checkpoint``: ``name``, ``sha256``, ``size`` (pixels), ``tta``, ``calibrated``, ``reference`` and ``gate``
  (true or false).
- ``rule``, and ``prevalence``: where it comes from, in words ("" for nowhere).
- ``reference``: null, or ``films`` (validation films), ``judged_on`` ("test" or "validation": where sensitivity and
  specificity, and so PPV and NPV, come from).
- ``remarks``: sentences on the checkpoint and on what it lacks.
- ``films``: a list in the order given, each with ``film`` (path as given), ``refused`` (reason, or null), ``righted``
  (what was done to the film, or null), ``notes``, ``view`` (PA, AP or null), ``sex`` (M, F or null), ``age`` (years or
  null), ``distance`` (of the gate, or null), ``findings``: empty if refused, else 15 objects with the keys of
  ``interpretation.COLUMNS``. All shares are from 0 to 1, percentiles from 0 to 100.
- ``counts``: ``films``, ``read``, ``refused``.

``predictions.csv`` has the same, a row per film and label, and one row for a refused film. Empty cells are unknown.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cxrlib import UserError, __version__, disk, paths, provenance
from cxrlib.evaluation import film_reader, interpretation

SCHEMA = "cxrlib.predictions/1"
FORMAT = 1
STATE, CSV, JSON, PAGE = "answers.jsonl", "predictions.csv", "predictions.json", "predictions.html"
COLUMNS = ("film", "refused", "righted", "notes", "view", "sex", "age", "distance", *interpretation.COLUMNS)
FILM_BYTES = 25_000
"""Largest disk space of a film's answer in all files together: 8.2 kB, and 16 kB for each of the 200 films on the page
(measured on 636 films, 2026-11-27)."""


def settings(reader: film_reader.Reader, *, anyway: bool) -> dict[str, Any]:
    """Settings that the answers depend on: checkpoint, gate, precision and code. Others make another state."""
    from cxrlib.evaluation import predict
    from cxrlib.training import devices

    return {
        "weights": reader.sha256,
        "size": reader.size,
        "tta": reader.tta,
        "anyway": anyway,
        "gate": None if reader.gate is None else float(reader.gate.threshold),
        "precision": devices.dtype_name(predict.dtype_of(reader.model)),
        "code": provenance.code_version(film_reader),
    }


@dataclass
class State:
    """Answers kept in a folder. ``films``: paths as given; ``again``: why older answers were thrown away, "" if not."""

    folder: Path
    made_by: dict[str, Any]
    films: list[str]
    again: str = ""
    _places: dict[str, int] = field(default_factory=dict)  # of each film's line in the file
    _stamps: dict[str, list[int] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError if the folder cannot be written, or holds another program's file of this name."""
        self._stamps = {film: _stamp(film) for film in self.films}
        self._given = {_key(film): film for film in self.films}
        head = json.dumps({"format": FORMAT, "made_by": self.made_by}, sort_keys=True).encode() + b"\n"
        with self._writing(), self.path.open("a+b") as file:
            file.seek(0)
            if (first := file.readline()) != head:
                self._check_own(first)
                self.again = "the checkpoint, a setting or the program has changed" if first else ""
                file.truncate(0)
                file.write(head)
            end = self._read(file)
            file.truncate(end)  # what a killed call left of a line

    @property
    def path(self) -> Path:
        return self.folder / STATE

    def pending(self) -> list[str]:
        """Films without an answer, or whose file has changed since, in their order."""
        return [film for film in self.films if film not in self._places]

    def add(self, answers: Iterable[film_reader.Answer]) -> None:
        """Keep answers. Raises UserError if the disk is full; those kept before stay."""
        places = {}
        with self._writing(), self.path.open("ab") as file:
            for answer in answers:
                places[answer.film] = file.tell()
                file.write(json.dumps(_packed(answer, self._stamps[answer.film])).encode() + b"\n")
        self._places |= places

    def answers(self) -> Iterator[film_reader.Answer]:
        """Answers of all films that have one, in the films' order, read from the file one by one."""
        with self.path.open("rb") as file:
            for film in self.films:
                if film in self._places:
                    file.seek(self._places[film])
                    yield _unpacked(json.loads(file.readline()), film)

    def _read(self, file) -> int:
        """Note the places of valid lines. Returns where the last whole line ends."""
        file.seek(0)
        end = len(file.readline())
        for line in file:
            try:
                kept = json.loads(line) if line.endswith(b"\n") else None
                film = self._given.get(kept["key"])
                if film is not None and not kept["passing"] and kept["stamp"] == self._stamps[film]:
                    _unpacked(kept, film)
                    self._places[film] = end
                elif film is not None:
                    self._places.pop(film, None)
            except (ValueError, TypeError, KeyError):
                break
            end += len(line)
        return end

    def _check_own(self, first: bytes) -> None:
        """Raise UserError if a whole first line is not that of a state, so that nobody's file is overwritten."""
        try:
            own = not first.endswith(b"\n") or "made_by" in json.loads(first)
        except (ValueError, TypeError):
            own = False
        if not own:
            raise UserError(f"{self.path} was not written by cxr predict; give another --out")

    def _writing(self) -> AbstractContextManager[None]:
        kept = f"Films read so far and kept: {len(self._places):,}" if self._places else ""
        return disk.writing(self.path, need=len(self.films) * FILM_BYTES, kept=kept, advice="give another --out")


def record(answer: film_reader.Answer, interpreter: interpretation.Interpreter) -> dict[str, Any]:
    """A film's entry in ``films`` of the JSON (see the top of this file)."""
    return {
        "film": answer.film,
        "refused": answer.refusal or None,
        "righted": answer.righted or None,
        "notes": list(answer.notes),
        "view": answer.view or None,
        "sex": answer.sex or None,
        "age": _number(answer.age),
        "distance": _number(answer.distance),
        "findings": [] if answer.network is None else interpreter.findings(answer.network),
    }


def rows(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a film's ``record`` in the CSV: one per label, or one for a refused film. Keys are ``COLUMNS``."""
    film = {name: value for name, value in entry.items() if name != "findings"} | {"notes": "; ".join(entry["notes"])}
    for finding in entry["findings"] or [dict.fromkeys(interpretation.COLUMNS)]:
        yield {**film, **finding}


def write(
    folder: Path,
    answers: Iterable[film_reader.Answer],
    reader: film_reader.Reader,
    interpreter: interpretation.Interpreter,
) -> dict[str, int]:
    """Write ``predictions.csv`` and ``predictions.json``, film by film, each atomically. Returns ``counts``.

    Raises UserError if the disk is full; older files then stay as they were.
    """
    counts = {"films": 0, "read": 0, "refused": 0}
    with (
        disk.writing(folder / CSV, kept="No film is read twice", advice="give another --out"),
        paths.atomic(folder / CSV) as table_path,
        paths.atomic(folder / JSON) as tree_path,
        _text(table_path) as table,
        _text(tree_path) as tree,
    ):
        _write(answers, reader, interpreter, counts, table, tree)
    return counts


def _write(answers, reader, interpreter, counts: dict[str, int], table: TextIO, tree: TextIO) -> None:
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    top = json.dumps(_top(reader, interpreter), indent=2, ensure_ascii=False, allow_nan=False)
    tree.write(top.removesuffix("\n}") + ',\n  "films": [')
    for answer in answers:
        entry = record(answer, interpreter)
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows(entry))
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False)
        tree.write(f"{',' if counts['films'] else ''}\n    {text}")
        counts["films"] += 1
        counts["read" if answer.network is not None else "refused"] += 1
    tree.write(f'\n  ],\n  "counts": {json.dumps(counts)}\n}}\n')


def _text(path: Path) -> TextIO:
    """A file for text. A name whose bytes are no UTF-8 is written with escapes, which are valid in JSON too."""
    return path.open("w", newline="", encoding="utf-8", errors="backslashreplace")


def _top(reader: film_reader.Reader, interpreter: interpretation.Interpreter) -> dict[str, Any]:
    """All of the JSON but films and counts."""
    ref = interpreter.ref
    return {
        "schema": SCHEMA,
        "made": provenance.now(),
        "program": f"cxrlib {__version__}",
        "checkpoint": {
            "name": reader.name,
            "sha256": reader.sha256,
            "size": reader.size,
            "tta": reader.tta,
            "calibrated": reader.decisions is not None,
            "reference": ref is not None,
            "gate": reader.gate is not None,
        },
        "rule": interpreter.rule,
        "prevalence": interpreter.sources,
        "reference": ref and {"films": int(ref.known.max()), "judged_on": ref.judged_on},
        "remarks": interpreter.remarks(),
    }


def _key(film: str) -> str:
    return os.path.abspath(film)  # noqa: PTH100 (links stay as they are)


def _stamp(film: str) -> list[int] | None:
    """Size and time of a film's file, None if it cannot be told."""
    try:
        status = os.stat(film)  # noqa: PTH116 (ten times as fast as Path.stat)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _packed(answer: film_reader.Answer, stamp: list[int] | None) -> dict[str, Any]:
    """A line of the state. Probabilities keep all their bits."""
    return {
        "key": _key(answer.film),
        "stamp": stamp,
        "network": None if answer.network is None else answer.network.tolist(),
        "refusal": answer.refusal,
        "righted": answer.righted,
        "notes": list(answer.notes),
        "distance": _number(answer.distance),
        "view": answer.view,
        "sex": answer.sex,
        "age": _number(answer.age),
        "passing": answer.passing,
    }


def _unpacked(line: dict[str, Any], film: str) -> film_reader.Answer:
    network = None if line["network"] is None else np.array(line["network"], np.float64)
    numbers = {name: math.nan if line[name] is None else float(line[name]) for name in ("distance", "age")}
    words = {name: str(line[name]) for name in ("refusal", "righted", "view", "sex")}
    return film_reader.Answer(film, network, notes=tuple(line["notes"]), passing=line["passing"], **words, **numbers)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _cell(value: Any) -> Any:
    """A cell of the CSV: nine digits keep all float32 values distinct."""
    return f"{value:.9g}" if isinstance(value, float) else "" if value is None else value
