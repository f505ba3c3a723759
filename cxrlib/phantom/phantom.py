"""Phantom data set: a complete folder of drawn chest films in the layout of ChestX-ray14, without a download.

The films are drawings: anatomy, co-occurrence and prevalence follow the dataset, but no patient was ever filmed, and
no result on them says how well a network reads real films. They let everything run, and a test knows the truth.
"""

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

from cxrlib import UserError, disk, labels, paths, provenance
from cxrlib.data import parallel as process_pool
from cxrlib.phantom import chest as drawing
from cxrlib.phantom import signs

if TYPE_CHECKING:
    import pandas as pd  # not imported in drawing processes: they start in half the time

DEFAULT = {"images": 900, "size": 128, "seed": 0, "least": 0.12}
"""Set of the demo: enough for a ResNet-50 with random weights to learn at 64 px in about 6,000 image passes."""

BOXED = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
"""Findings that have boxes in the dataset."""

DATA_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
DATASET = "dataset.txt"
"""Same as ``records.DATASET``; that module imports pandas."""
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOX_PIXELS = 1024
"""Side of the dataset's films in pixels. Boxes are in these pixels for any size of the drawn films."""

DOWNLOADED = (4_999, *[10_000] * 10, 7_121)
"""Films in the twelve folders of the download, images_001 to images_012."""

_SPACING_MM = 0.143
_ORIGINAL = round(drawing.FILM_CM * 10 / _SPACING_MM)

_CHUNK = 64
_CHUNK_PIXELS = _CHUNK * 224 * 224
"""Most films, and most pixels, in one job of a drawing process: half a second of work."""

_SERIAL_PIXELS = 30_000_000
"""Pixels (three seconds of work) below which starting processes saves no time. Two broke even at 20 million."""

_FILM_PIXELS = 14_000
"""Fixed cost of a film, 2 ms, as the number of pixels that take the same time."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Film:
    """A drawn film: pixels (S, S) uint8, boxes (x, y, w, h) per finding in units of the film's side, and anatomy."""

    pixels: np.ndarray
    boxes: dict[str, list[Box]]
    body: drawing.Anatomy


def draw(
    findings: Iterable[str],
    *,
    seed: int = 0,
    patient: int = 1,
    follow_up: int = 0,
    sex: str = "M",
    age: float = 50.0,
    view: str = "PA",
    size: int = 128,
) -> Film:
    """Draw one film. It depends only on the arguments, so films can be drawn in any order.

    Body and lesions depend on (seed, patient), so they are alike on a patient's films. Pose, breath, exposure and noise
    depend on (seed, patient, follow_up).
    """
    pose = np.random.default_rng([seed, patient, follow_up])
    body = drawing.sample_anatomy(np.random.default_rng([seed, patient]), pose, sex=sex, age=age, view=view)
    names = sorted(findings, key=labels.column)
    for name in names:
        if name in signs.RESHAPE:
            body = signs.RESHAPE[name](body, _lesion(seed, patient, name))
    canvas = drawing.Canvas(size, turn=1.2 * pose.normal(), zoom=pose.uniform(0.98, 1.1))
    chest = drawing.Chest.of(body, canvas)
    boxes = {name: [_box(cover) for cover in signs.DRAW[name](chest, _lesion(seed, patient, name))] for name in names}
    return Film(drawing.draw_film(chest, pose, view=view), boxes, body)


def write(
    folder: str | Path,
    images: int = 2000,
    size: int = 128,
    seed: int = 0,
    least: float = 0.12,
    *,
    folders: int = 0,
    workers: int | None = None,
    progress: bool | None = None,
) -> Path:
    """Write a set of ``images`` films of ``size`` × ``size`` pixels into a new folder and return it.

    The layout is the dataset's: Data_Entry_2017.csv, images/, train_val_list.txt, test_list.txt, and
    BBox_List_2017.csv for the test films. dataset.txt gives the patients a dataset name of their own. With
    ``folders=12`` the films are in images_001/images to images_012/images, in the download's proportions. Each finding
    is on at least the share ``least`` of the films; 0 keeps the dataset's prevalence (Hernia: one film in 500). The
    folder appears only when it is complete.

    ``workers`` is the number of processes (default: one per core if there is enough to draw). It does not change the
    result. ``progress`` shows a bar if drawing takes more than a second; None: only on a terminal.
    Raises UserError for a number out of range, for a folder that is not empty, and if the folder cannot be written.
    """
    _check(images=images, size=size, seed=seed, least=least, folders=folders, workers=workers)
    from cxrlib.phantom import cohort  # imports pandas and SciPy, which drawing processes do not need

    folder = paths.resolve(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; name a new one for the phantom films")
    films = cohort.sample_cohort(images, seed, least)
    with _atomic_folder(folder, room(images, size)) as temporary:
        _fill(temporary, films, size=size, seed=seed, folders=folders, workers=workers, progress=progress)
    return folder


def room(images: int, size: int) -> int:
    """Disk space of a set in bytes: a tenth more than measured for 32 to 1024 px."""
    return round(images * (size * size * (0.52 + 20 / size) + 2048))


def shares(images: int) -> list[int]:
    """Number of films in each of twelve folders, in the download's proportions: 4,999, 10,000, ..., 7,121."""
    ends = np.round(np.cumsum(DOWNLOADED) * (images / sum(DOWNLOADED))).astype(int)
    return np.diff(ends, prepend=0).tolist()


def default() -> Path:
    """Folder of the demo's set in the outputs folder. It is made if it is absent or if the drawing code has changed."""
    code = provenance.code_version(__name__, without=("cxrlib", "cxrlib.paths", "cxrlib.disk", "cxrlib.data.parallel"))
    folder = paths.outputs() / "phantom-{images}-{size}-{seed}-{code}".format(**DEFAULT, code=code[:8])
    return folder if _complete(folder) else _write_once(folder)


def file_name(patient: int, follow_up: int) -> str:
    return f"{patient:08d}_{follow_up:03d}.png"


def _complete(folder: Path) -> bool:
    return (folder / "Data_Entry_2017.csv").exists()


def _write_once(folder: Path) -> Path:
    """Write the demo's set. If another process was faster, use its set, which is identical."""
    try:
        return write(folder, **DEFAULT)
    except UserError:
        if _complete(folder):
            return folder
        raise


@contextmanager
def _atomic_folder(folder: Path, need: int) -> Iterator[Path]:
    """Yield a hidden folder beside ``folder``. It is renamed to ``folder`` at the end, or deleted after an exception.

    Raises UserError if the disk has less than ``need`` bytes free, and for each OSError inside the block.
    """
    advice = "draw fewer or smaller films"
    disk.require(folder, need, "the set of films", f"{advice}, or choose another folder")
    with disk.writing(folder, need=need, kept="", advice=advice):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            yield temporary
            temporary.chmod(0o755)
            _move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, folder: Path) -> None:
    try:
        if folder.exists():
            folder.rmdir()  # it is empty; on Windows a rename needs an absent target
        source.rename(folder)
    except OSError as error:
        if error.errno not in disk.OCCUPIED:
            raise
        raise UserError(f"{folder} was filled while the films were drawn; name a new folder") from None


class _Case(NamedTuple):
    """A film to draw: its file in the set and its content. Test films get boxes."""

    file: str
    findings: tuple[str, ...]
    patient: int
    follow_up: int
    sex: str
    age: int
    view: str
    test: bool


def _fill(
    folder: Path,
    films: "pd.DataFrame",
    *,
    size: int,
    seed: int,
    folders: int,
    workers: int | None,
    progress: bool | None,
) -> None:
    """Draw the films into the folder, and write its tables and lists."""
    cases = _cases(films, folders)
    for subfolder in [f"images_{i:03d}/images" for i in range(1, folders + 1)] or ["images"]:
        (folder / subfolder).mkdir(parents=True)
    step = max(1, min(_CHUNK, _CHUNK_PIXELS // size**2))
    jobs = {start: (str(folder), size, seed, cases[start : start + step]) for start in range(0, len(cases), step)}
    parallel = len(cases) * (size**2 + _FILM_PIXELS) > _SERIAL_PIXELS
    workers = min(workers or (process_pool.cores() if parallel else 1), len(jobs))
    boxes: dict[int, list[str]] = {}
    look = {"unit": "film", "desc": f"draw {size}²", "delay": 1, "mininterval": 0.5, "smoothing": 0.1}
    with tqdm(total=len(cases), disable=None if progress is None else not progress, **look) as bar:
        for start, boxes[start] in process_pool.run_in_processes(_draw_all, jobs, workers):
            bar.update(len(jobs[start][3]))
    _write_tables(folder, cases, [line for start in sorted(boxes) for line in boxes[start]], seed)


def _cases(films: "pd.DataFrame", folders: int) -> list[_Case]:
    """Films to draw, in their order. The first folder has the first films."""
    subfolders = ["images"] * len(films)
    if folders:
        subfolders = [f"images_{i:03d}/images" for i, n in enumerate(shares(len(films)), 1) for _ in range(n)]
    cases = []
    for subfolder, row in zip(subfolders, films.itertuples(index=False), strict=True):
        file = f"{subfolder}/{file_name(row.patient, row.follow_up)}"
        findings = tuple(finding for finding in labels.FINDINGS if getattr(row, finding))
        cases.append(_Case(file, findings, row.patient, row.follow_up, row.sex, row.age, row.view, row.test))
    return cases


def _draw_all(folder: str, size: int, seed: int, cases: list[_Case]) -> list[str]:
    """Draw films into their files. Returns the lines of the box file for the test films."""
    boxes = []
    for case in cases:
        settings = case._asdict()
        path, test = Path(folder, settings.pop("file")), settings.pop("test")
        drawing = draw(**settings, seed=seed, size=size)
        path.write_bytes(cv2.imencode(".png", drawing.pixels)[1])
        if test:
            boxes += _box_rows(path.name, drawing.boxes)
    return boxes


def _write_tables(folder: Path, cases: list[_Case], boxes: list[str], seed: int) -> None:
    rows, lists = [DATA_HEADER], {False: [], True: []}
    for case in cases:
        image = Path(case.file).name
        text = labels.SEPARATOR.join(case.findings) or labels.NO_FINDING
        columns = [image, text, case.follow_up, case.patient, case.age, case.sex, case.view]
        rows.append(",".join(map(str, [*columns, _ORIGINAL, _ORIGINAL, _SPACING_MM, _SPACING_MM, ""])))
        lists[case.test].append(image)
    for file, lines in {
        "Data_Entry_2017.csv": rows,
        "BBox_List_2017.csv": [BOX_HEADER, *boxes],
        "train_val_list.txt": lists[False],
        "test_list.txt": lists[True],
        DATASET: [f"phantom-{seed}"],  # a patient depends only on (seed, number)
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
    """Smallest box around the pixels above 0.4 of a cover's maximum: x, y, w, h in units of the film's side."""
    inside = cover >= max(0.4 * float(cover.max()), 1e-6)
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    if not len(columns):
        raise ValueError("a sign was drawn outside the lungs")  # an error in signs, not of the user
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
