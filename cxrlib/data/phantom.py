"""A complete data folder of drawn chest films, in the layout of ChestX-ray14, made in seconds without a download.

The films are drawings: anatomy, co-occurrence and prevalence follow the dataset, but no patient was ever filmed and
no result on them says how well a network reads films. They let everything run, and every test know the truth.
"""

import errno
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from tqdm.auto import tqdm

from cxrlib import labels, paths, provenance
from cxrlib.data import anatomy, film, pool, signs
from cxrlib.errors import UserError

if TYPE_CHECKING:
    import pandas as pd  # which drawing processes do without: they start in half the time

DEFAULT = {"images": 900, "size": 128, "seed": 0, "least": 0.12}
"""The demo's set: enough for a ResNet-50 from random weights to learn at 64 px in about 6,000 image passes."""

BOXED = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
"""The findings that have boxes in the dataset."""

DATA_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
DATASET = "dataset.txt"
"""As ``records.DATASET``, which would bring pandas along."""
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOX_PIXELS = 1024
"""Boxes are given on the dataset's 1024-pixel films, whatever size was drawn."""

DOWNLOADED = (4_999, *[10_000] * 10, 7_121)
"""Films in the twelve folders of the download, images_001 to images_012."""

_SPACING_MM = 0.143
_ORIGINAL = round(anatomy.FILM_CM * 10 / _SPACING_MM)

_CHUNK = 64
_CHUNK_PIXELS = _CHUNK * 224 * 224
"""Films, and pixels, that a process draws in one go: half a second's work."""

_SERIAL_PIXELS = 30_000_000
"""Below this much to draw, three seconds' work, starting processes saves nothing: two broke even at 20 million."""

_FILM_PIXELS = 14_000
"""What a film costs beside its pixels, as pixels that would take as long: 2 ms."""

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


def write(
    folder: str | Path, images: int = 2000, size: int = 128, seed: int = 0, least: float = 0.12, *, folders: int = 0,
    workers: int | None = None, progress: bool | None = None,
) -> Path:  # fmt: skip
    """Write a set of ``images`` films of ``size`` × ``size`` pixels into a new folder and return it.

    The layout is the dataset's: Data_Entry_2017.csv, images/, train_val_list.txt, test_list.txt and, for the test
    films, BBox_List_2017.csv; dataset.txt says that its patients are nobody else's. With ``folders=12`` the films lie
    as they are downloaded, in images_001/images to images_012/images, shared out as there. Every finding is on at least
    the share ``least`` of the films; 0 keeps the dataset's own prevalence (Hernia: one film in 500). The folder appears
    only when it is complete.

    ``workers`` processes draw (default: one per core where it pays), the same bytes however many there are.
    ``progress`` shows a bar where drawing takes more than a second; None: only on a terminal.
    Raises UserError for a number out of range, for a folder that is not empty, and where it cannot be written.
    """
    _check(images=images, size=size, seed=seed, least=least, folders=folders, workers=workers)
    from cxrlib.data import cohort  # pandas and SciPy: see above

    folder = paths.resolve(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; name a new one for the phantom films")
    films = cohort.sample(images, seed, least)
    with _made_whole(folder, room(images, size)) as making:
        _fill(making, films, size=size, seed=seed, folders=folders, workers=workers, progress=progress)
    return folder


def room(images: int, size: int) -> int:
    """Bytes on the disk that a set needs, a tenth more than was measured from 32 to 1024 px."""
    return round(images * (size * size * (0.52 + 20 / size) + 2048))


def shares(images: int) -> list[int]:
    """Films in each of the twelve folders of the download, in its own proportions: 4,999, 10,000, ..., 7,121."""
    ends = np.round(np.cumsum(DOWNLOADED) * (images / sum(DOWNLOADED))).astype(int)
    return np.diff(ends, prepend=0).tolist()


def default() -> Path:
    """The demo's set under the outputs folder; made when it is not there yet, and anew by code that draws otherwise."""
    drawn_by = provenance.code_version(__name__, without=("cxrlib.errors", "cxrlib.paths", "cxrlib.data.pool"))
    folder = paths.outputs() / "phantom-{images}-{size}-{seed}-{by}".format(**DEFAULT, by=drawn_by[:8])
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


@contextmanager
def _made_whole(folder: Path, need: int) -> Iterator[Path]:
    """Give a hidden folder beside ``folder`` that takes its place at the end, and goes if anything is raised.

    Raises UserError where the disk has not the bytes that are needed, and for every OSError inside.
    """
    making = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        free = shutil.disk_usage(making).free
        if need > free:
            raise UserError(f"{folder}: the films need about {need / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB "
                            "free; make room, draw fewer or smaller ones, or choose another folder")  # fmt: skip
        yield making
        making.chmod(0o755)
        _move(making, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{folder}: the disk is full; make room, or draw fewer or smaller films") from None
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    finally:
        if making:
            shutil.rmtree(making, ignore_errors=True)


def _move(made: Path, folder: Path) -> None:
    try:
        if folder.exists():
            folder.rmdir()  # an empty one: renaming onto it fails on Windows
        made.rename(folder)
    except OSError:
        raise UserError(f"{folder} was filled while the films were drawn; name a new folder") from None


class _Case(NamedTuple):
    """A film to be drawn: its file within the set, and what it shows; its boxes are asked for if it is tested on."""

    file: str
    findings: tuple[str, ...]
    patient: int
    follow_up: int
    sex: str
    age: int
    view: str
    test: bool


def _fill(
    folder: Path, films: "pd.DataFrame", *, size: int, seed: int, folders: int, workers: int | None,
    progress: bool | None,
) -> None:  # fmt: skip
    cases = _cases(films, folders)
    for place in [f"images_{i:03d}/images" for i in range(1, folders + 1)] or ["images"]:
        (folder / place).mkdir(parents=True)
    step = max(1, min(_CHUNK, _CHUNK_PIXELS // size**2))
    jobs = {at: (str(folder), size, seed, cases[at : at + step]) for at in range(0, len(cases), step)}
    pays = len(cases) * (size**2 + _FILM_PIXELS) > _SERIAL_PIXELS
    workers = min(workers or (pool.cores() if pays else 1), len(jobs))
    boxes: dict[int, list[str]] = {}
    with tqdm(total=len(cases), unit="film", desc=f"draw {size}²", disable=None if progress is None else not progress,
              delay=1, mininterval=0.5, smoothing=0.1) as bar:  # fmt: skip
        for at, boxes[at] in pool.run(_draw_all, jobs, workers):
            bar.update(len(jobs[at][3]))
    _write_tables(folder, cases, [line for at in sorted(boxes) for line in boxes[at]], seed)


def _cases(films: "pd.DataFrame", folders: int) -> list[_Case]:
    """The films in their order, those of the first folder first."""
    places = ["images"] * len(films)
    if folders:
        places = [f"images_{i:03d}/images" for i, n in enumerate(shares(len(films)), 1) for _ in range(n)]
    cases = []
    for place, row in zip(places, films.itertuples(index=False), strict=True):
        file = f"{place}/{file_name(row.patient, row.follow_up)}"
        found = tuple(finding for finding in labels.FINDINGS if getattr(row, finding))
        cases.append(_Case(file, found, row.patient, row.follow_up, row.sex, row.age, row.view, row.test))
    return cases


def _draw_all(folder: str, size: int, seed: int, cases: list[_Case]) -> list[str]:
    """Draw films into their files and give the lines of the box file for those that are tested on."""
    boxes = []
    for case in cases:
        drawn = draw(case.findings, seed=seed, patient=case.patient, follow_up=case.follow_up, sex=case.sex,
                     age=case.age, view=case.view, size=size)  # fmt: skip
        path = Path(folder, case.file)
        path.write_bytes(cv2.imencode(".png", drawn.pixels)[1])
        if case.test:
            boxes += _box_rows(path.name, drawn.boxes)
    return boxes


def _write_tables(folder: Path, cases: list[_Case], boxes: list[str], seed: int) -> None:
    rows, lists = [DATA_HEADER], {False: [], True: []}
    for case in cases:
        image = Path(case.file).name
        text = labels.SEPARATOR.join(case.findings) or labels.NO_FINDING
        rows.append(f"{image},{text},{case.follow_up},{case.patient},{case.age},{case.sex},{case.view},"
                    f"{_ORIGINAL},{_ORIGINAL},{_SPACING_MM},{_SPACING_MM},")  # fmt: skip
        lists[case.test].append(image)
    for file, lines in {
        "Data_Entry_2017.csv": rows,
        "BBox_List_2017.csv": [BOX_HEADER, *boxes],
        "train_val_list.txt": lists[False],
        "test_list.txt": lists[True],
        DATASET: [f"phantom-{seed}"],  # a patient is drawn from (seed, number) alone
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


def _check(*, images: int, size: int, seed: int, least: float, folders: int, workers: int | None) -> None:
    whole = [("images", images, 1, 10**6), ("size", size, 32, 2048), ("seed", seed, 0, 2**32)]
    for what, value, low, high in [*whole, *([] if workers is None else [("workers", workers, 1, 1024)])]:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UserError(f"phantom {what} is {value!r}; give a whole number from {low} to {high}")
    if not isinstance(least, int | float) or not 0 <= least <= 0.5:
        raise UserError(f"phantom least is {least!r}; give a share of films from 0 to 0.5")
    if folders not in (0, len(DOWNLOADED)):
        raise UserError(f"phantom folders is {folders!r}; give 0 for one folder, 12 for those of the download")
