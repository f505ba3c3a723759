"""Page of predictions: films with their findings by rank and heat maps, and the refused films, as one HTML file.

The page is for reading offline, so it holds its pictures: of ``MOST`` films at most. All text that comes from files is
escaped. Heat maps are laid over the film, and a slider sets how strong they are.
"""

import base64
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxrlib import labels, paths
from cxrlib.evaluation import film_reader, interpretation, prediction_files, reference, thresholds
from cxrlib.report import page

MOST = 200
"""Films in a page: with heat maps some 8 MB."""

MOST_REFUSED = 500
FIRST = 5
"""Findings of a film that are shown at once; the others open by a click."""

MAP_SIDE = 96
"""Side of a heat map in pixels. Grad-CAM's own have at most a sixth of it."""

HEAT = (0, 140, 255)
"""Colour of a heat map, blue, green, red: orange, which colour-blind readers tell from grey films."""


@dataclass(frozen=True)
class Shown:
    """A film for the page: its record (``prediction_files.record``) and its picture, None if there is none."""

    record: dict[str, Any]
    picture: film_reader.Picture | None = None


def build(
    path: Path,
    films: Iterable[Shown],
    reader: film_reader.Reader,
    interpreter: interpretation.Interpreter,
    counts: dict[str, int],
) -> Path:
    """Write the page of ``films``, of which ``counts`` (``prediction_files.write``) says how many there are in all.

    Films beyond ``MOST`` are not asked for. The page says how many it leaves out.
    """
    shown, refused = _parted(films)
    ref = interpreter.ref
    text = page.render(
        "predictions.html.j2",
        films=shown,
        refused=refused,
        counts=counts,
        left_out={"read": counts["read"] - len(shown), "refused": counts["refused"] - len(refused)},
        heat=any(film["maps"] for film in shown),
        checkpoint={"name": reader.name, "sha256": reader.sha256, "size": reader.size},
        gate=reader.gate is not None,
        calibrated=reader.decisions is not None,
        rule=interpreter.rule,
        rule_in_words=thresholds.RULES.get(interpreter.rule, interpreter.rule),
        prevalence=interpreter.sources,
        reference=None if ref is None else _in_numbers(ref, interpreter.rule),
        remarks=interpreter.remarks(),
        csv=prediction_files.CSV,
        first=FIRST,
    )
    return paths.write_text(path, text.encode("utf-8", "replace").decode("utf-8"))


def _parted(films: Iterable[Shown]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Films with numbers and refused ones, as the template takes them; of each not more than the page holds."""
    shown, refused = [], []
    for film in films:
        if film.record["findings"] and len(shown) < MOST:
            shown.append(_film(film))
        elif not film.record["findings"] and len(refused) < MOST_REFUSED:
            refused.append(film.record | _name(film) | {"why": _why(film.record), "picture": _address(film)})
    return shown, refused


def _film(film: Shown) -> dict[str, Any]:
    rows = [
        row | {"words": interpretation.in_words(row["percentile"])}
        for row in interpretation.ranked(film.record["findings"])
    ]
    maps = {} if film.picture is None else film.picture.maps
    overlays = [{"finding": name, "address": data_url(_overlay(heat), ".png")} for name, heat in maps.items()]
    positive = [row["finding"] for row in rows if row["decision"] == "positive" and row["finding"] != labels.NO_FINDING]
    seen = {"findings": rows, "positive": positive, "maps": overlays, "picture": _address(film)}
    return film.record | _name(film) | seen


def _name(film: Shown) -> dict[str, str]:
    """A film's path in two parts: ``folder``, with the slash at its end, and ``name``."""
    folder, slash, name = film.record["film"].rpartition(os.sep)
    return {"folder": folder + slash, "name": name}


def _why(record: dict[str, Any]) -> str:
    """Reason of a refusal as a sentence, without the film's name in front, which stands above it."""
    reason = record["refused"].removeprefix(record["film"]).strip(" :")
    return f"{reason[:1].upper()}{reason[1:]}."


def _address(film: Shown) -> str:
    """Address of a film's picture, a JPEG; "" without a picture."""
    return "" if film.picture is None else data_url(film.picture.pixels, ".jpg")


def _overlay(heat: np.ndarray) -> np.ndarray:
    """A heat map (S, S) from 0 to 1 as a picture of one colour that is the less transparent the higher the map is."""
    small = cv2.resize(heat.astype(np.float32), (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_LINEAR)
    picture = np.empty((MAP_SIDE, MAP_SIDE, 4), np.uint8)
    picture[..., :3] = HEAT
    picture[..., 3] = np.rint(255 * np.clip(small, 0, 1))
    return picture


def data_url(pixels: np.ndarray, ending: str) -> str:
    """Data URL of a picture, ".jpg" for grey (h, w) or ".png" for BGRA (h, w, 4), uint8."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 82] if ending == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 9]
    coded = cv2.imencode(ending, pixels, quality)[1].tobytes()
    kind = {".jpg": "jpeg", ".png": "png"}[ending]
    return f"data:image/{kind};base64,{base64.b64encode(coded).decode()}"


def _in_numbers(ref: reference.Reference, rule: str) -> dict[str, Any]:
    """Numbers on the reference: validation films, where the rates come from, and how many films with a finding."""
    here = ref.rates[(ref.rates["rule"] == rule) & (ref.rates["finding"] != labels.NO_FINDING)]
    return {
        "films": int(ref.known.max()),
        "judged_on": ref.judged_on,
        "fewest": int(here["positives"].min()) if len(here) else 0,
        "most": int(here["positives"].max()) if len(here) else 0,
    }


def pictured(
    answers: Iterable[film_reader.Answer],
    reader: film_reader.Reader,
    interpreter: interpretation.Interpreter,
    *,
    anyway: bool = False,
    heat: bool = False,
) -> Iterator[Shown]:
    """Answers that ``build`` shows, with pictures of the films with numbers and of the first refused ones.

    The films are decoded again here, so that no picture is kept while the others are read.
    """
    read = refused = 0
    for answer in answers:
        has_numbers = answer.network is not None
        read, refused = read + has_numbers, refused + (not has_numbers)
        if read > MOST and refused > MOST_REFUSED:
            return
        if read <= MOST if has_numbers else refused <= MOST_REFUSED:
            wanted = has_numbers or refused <= MOST // 4
            picture = reader.picture(answer, anyway=anyway, heat=heat) if wanted else None
            yield Shown(prediction_files.record(answer, interpreter), picture)
