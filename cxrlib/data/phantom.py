"""A complete data folder of drawn chest films, in the layout of ChestX-ray14, made in seconds without a download.

The films are drawings: anatomy, co-occurrence and prevalence follow the dataset, but no patient was ever filmed and
no result on them says how well a network reads films. They let everything run, and every test know the truth.
"""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cxrlib import labels, paths
from cxrlib.data import anatomy, cohort, film, records, signs
from cxrlib.errors import UserError

DEFAULT = {"images": 900, "size": 128, "seed": 0, "least": 0.12}
"""The demo's set: enough for a ResNet-50 from random weights to learn at 64 px in about 6,000 image passes."""

BOXED = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
"""The findings that have boxes in the dataset."""

DATA_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOX_PIXELS = 1024
"""Boxes are given on the dataset's 1024-pixel films, whatever size was drawn."""

_SPACING_MM = 0.143
_ORIGINAL = round(anatomy.FILM_CM * 10 / _SPACING_MM)

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Film:
    """A drawn film: grey values (S, S) uint8, boxes (x, y, w, h) per finding with 1 the film's edge, the anatomy."""

    pixels: np.ndarray
    boxes: dict[str, list[Box]]
    body: anatomy.Anatomy


def draw(
    findings: Iterable[str], *, seed: int = 0, patient: int = 1, follow_up: int = 0, sex: str = "M", age: float = 50.0,
    view: str = "PA", size: int = 128,
) -> Film:  # fmt: skip
    """Draw one film. It depends on its arguments alone, so films can be drawn in any order.

    Build and lesions come from (seed, patient) and so recur on a patient's films; pose, breath, exposure and noise
    from (seed, patient, follow_up).
    """
    pose = np.random.default_rng([seed, patient, follow_up])
    body = anatomy.sample(np.random.default_rng([seed, patient]), pose, sex=sex, age=age, view=view)
    found = sorted(findings, key=labels.column)
    for name in found:
        if name in signs.RESHAPE:
            body = signs.RESHAPE[name](body, _lesion(seed, patient, name))
    canvas = anatomy.Canvas(size, turn=1.2 * pose.normal(), zoom=pose.uniform(0.98, 1.1))
    chest = anatomy.Chest.of(body, canvas)
    covers = {name: signs.DRAW[name](chest, _lesion(seed, patient, name)) for name in found}
    boxes = {name: [_box(cover) for cover in drawn] for name, drawn in covers.items()}
    return Film(film.develop(chest, pose, view=view), boxes, body)


def write(folder: str | Path, images: int = 2000, size: int = 128, seed: int = 0, least: float = 0.12) -> Path:
    """Write a set of ``images`` films of ``size`` × ``size`` pixels into a new folder and return it.

    The layout is the dataset's: Data_Entry_2017.csv, images/, train_val_list.txt, test_list.txt and, for the test
    films, BBox_List_2017.csv; dataset.txt says that its patients are nobody else's. Every finding is on at least the share ``least`` of the films; 0 keeps the dataset's
    own prevalence (Hernia: one film in 500). The folder appears only when it is complete.
    Raises UserError for a number out of range and for a folder that is not empty.
    """
    _check(images=images, size=size, seed=seed, least=least)
    folder = paths.resolve(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; name a new one for the phantom films")
    films = cohort.sample(images, seed, least)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    try:
        _fill(making, films, size=size, seed=seed)
        making.chmod(0o755)
        _move(making, folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def default() -> Path:
    """The demo's set under the outputs folder; made when it is not there yet."""
    folder = paths.outputs() / "phantom-{images}-{size}-{seed}".format(**DEFAULT)
    return folder if _complete(folder) else _write_once(folder)


def file_name(patient: int, follow_up: int) -> str:
    return f"{patient:08d}_{follow_up:03d}.png"


def _complete(folder: Path) -> bool:
    return (folder / "Data_Entry_2017.csv").exists()


def _write_once(folder: Path) -> Path:
    """Write the demo's set; where another process was faster, take that one's, which is the same."""
    try:
        return write(folder, **DEFAULT)
    except UserError:
        if _complete(folder):
            return folder
        raise


def _move(made: Path, folder: Path) -> None:
    try:
        if folder.exists():
            folder.rmdir()  # an empty one: renaming onto it fails on Windows
        made.rename(folder)
    except OSError:
        raise UserError(f"{folder} was filled while the films were drawn; name a new folder") from None


def _fill(folder: Path, films: pd.DataFrame, *, size: int, seed: int) -> None:
    (folder / "images").mkdir()
    rows, boxes, lists = [DATA_HEADER], [BOX_HEADER], {False: [], True: []}
    for case in films.itertuples(index=False):
        found = [finding for finding in labels.FINDINGS if getattr(case, finding)]
        drawn = draw(found, seed=seed, patient=case.patient, follow_up=case.follow_up, sex=case.sex, age=case.age,
                     view=case.view, size=size)  # fmt: skip
        image = file_name(case.patient, case.follow_up)
        (folder / "images" / image).write_bytes(cv2.imencode(".png", drawn.pixels)[1])
        text = labels.SEPARATOR.join(found) or labels.NO_FINDING
        rows.append(f"{image},{text},{case.follow_up},{case.patient},{case.age},{case.sex},{case.view},"
                    f"{_ORIGINAL},{_ORIGINAL},{_SPACING_MM},{_SPACING_MM},")  # fmt: skip
        lists[case.test].append(image)
        if case.test:
            boxes += _box_rows(image, drawn.boxes)
    for file, lines in {
        "Data_Entry_2017.csv": rows,
        "BBox_List_2017.csv": boxes,
        "train_val_list.txt": lists[False],
        "test_list.txt": lists[True],
        records.DATASET: [f"phantom-{seed}"],  # a patient is drawn from (seed, number) alone
    }.items():
        (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")


def _box_rows(image: str, boxes: dict[str, list[Box]]) -> list[str]:
    spelling = {finding: finding for finding in BOXED} | {"Infiltration": "Infiltrate"}
    return [
        ",".join([image, spelling[finding], *(f"{BOX_PIXELS * edge:.4f}" for edge in box)])
        for finding in BOXED
        for box in boxes.get(finding, [])
    ]


def _box(cover: np.ndarray) -> Box:
    """Smallest box around what is at least 0.4 of a cover's highest value; x, y, w, h with 1 the film's edge."""
    inside = cover >= max(0.4 * float(cover.max()), 1e-6)
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    if not len(columns):
        raise ValueError("a sign was drawn outside the lungs")  # a mistake in signs, not of the user
    x, y = columns[0], rows[0]
    return tuple(float(edge) / len(cover) for edge in (x, y, columns[-1] + 1 - x, rows[-1] + 1 - y))


def _lesion(seed: int, patient: int, finding: str) -> np.random.Generator:
    return np.random.default_rng([seed, patient, 1, labels.column(finding)])


def _check(*, images: int, size: int, seed: int, least: float) -> None:
    for what, value, low, high in (("images", images, 1, 10**6), ("size", size, 32, 2048), ("seed", seed, 0, 2**32)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UserError(f"phantom {what} is {value!r}; give a whole number from {low} to {high}")
    if not isinstance(least, int | float) or not 0 <= least <= 0.5:
        raise UserError(f"phantom least is {least!r}; give a share of films from 0 to 0.5")
