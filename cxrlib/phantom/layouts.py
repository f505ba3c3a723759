"""Layouts of the phantom set: the same drawn films as another dataset would hand them out, with its tables and files.

So every reader in ``cxrlib.data.sources`` has films to go with its tables, without a download. What a dataset does not
label is left out of its tables, and what its labeler adds is added: uncertain and unmentioned labels, three readers,
laterals. The laterals are stand-ins, a frontal film made narrow: they only show that such films are left out.
"""

import csv
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm.auto import tqdm

from cxrlib import UserError, labels, paths
from cxrlib.data import parallel
from cxrlib.phantom import hospitals, phantom

UID_ROOT = "2.25."
"""Root of unique identifiers that are made from a number (DICOM PS3.5, B.2)."""

LATERALS = 4
"""Every fourth study has a lateral, where the dataset has them."""

UNCERTAIN, MENTIONED = 0.08, 0.4
"""Share of CheXpert's labels that are uncertain, and share of absent findings that a report mentions as absent."""

READERS, MISSED, IMAGINED = 17, 0.08, 0.02
"""Radiologists of VinDr-CXR, and how often one of them misses a finding or marks one that is not there."""

_CHEXPERT = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
_OWN_WORD = {"Pleural Effusion": "Effusion"}
_PADCHEST = {
    "Atelectasis": "laminar atelectasis",
    "Effusion": "pleural effusion",
    "Infiltration": "interstitial pattern",
    "Mass": "pulmonary mass",
    "Edema": "pulmonary edema",
    "Fibrosis": "pulmonary fibrosis",
    "Pleural_Thickening": "apical pleural thickening",
    "Hernia": "hiatal hernia",
}
_VINDR = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "No finding",
)
_VINDR_WORD = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Infiltration": "Infiltration",
    "Nodule": "Nodule/Mass",
    "Mass": "Nodule/Mass",
    "Effusion": "Pleural effusion",
    "Pleural_Thickening": "Pleural thickening",
    "Pneumothorax": "Pneumothorax",
    "Fibrosis": "Pulmonary fibrosis",
}
_MESH = {
    "Atelectasis": "Pulmonary Atelectasis/base/left",
    "Effusion": "Pleural Effusion/right/small",
    "Infiltration": "Infiltrate/lung/lower lobe",
    "Mass": "Mass/lung/upper lobe",
    "Nodule": "Nodule/lung/upper lobe",
    "Edema": "Pulmonary Edema",
    "Emphysema": "Pulmonary Emphysema",
    "Fibrosis": "Pulmonary Fibrosis",
    "Pleural_Thickening": "Thickening/pleura/apex",
    "Hernia": "Hernia, Hiatal",
}


class Case(NamedTuple):
    """A film of a set: its running number, what is on it and whose it is. ``part`` is "train", "val" or "test"."""

    number: int
    findings: tuple[str, ...]
    patient: int
    follow_up: int
    sex: str
    age: int
    view: str
    part: str

    @property
    def lateral(self) -> bool:
        """Whether a lateral was taken with the film, where the dataset has laterals."""
        return self.number % LATERALS == 0

    def code(self, purpose: str = "") -> str:
        """40 hex digits for the film, as anonymised datasets have for names."""
        return hashlib.sha1(f"{purpose}{self.patient}-{self.follow_up}".encode(), usedforsecurity=False).hexdigest()


Boxes = dict[str, list[phantom.Box]]
"""Boxes of a film by finding, in units of its side."""

Tables = dict[str, str]
"""Text of a set's tables by their file."""


class Layout(NamedTuple):
    """Layout of a dataset: the file of a film, of its lateral ("" for none), its bytes, and the tables of all films."""

    file: Callable[[Case], str]
    lateral: Callable[[Case], str]
    encode: Callable[[np.ndarray, Case], bytes]
    tables: Callable[[list[Case], list[Boxes], int, int], Tables]


def write(
    folder: str | Path,
    images: int = 2000,
    size: int = 128,
    seed: int = 0,
    least: float = 0.12,
    *,
    layout: str = "nih",
    hospital: str = "A",
    folders: int = 0,
    workers: int | None = None,
    progress: bool | None = None,
) -> Path:
    """Write a phantom set as ``phantom.write`` does, in the layout of a dataset and with the films of a hospital.

    The same arguments give the same set. ``dataset.txt`` names the people: phantom-SEED, for hospital B phantom-b-SEED,
    because the same people are drawn in any layout. Their numbers are those of the layout: datasets without patient
    ids (vindr, rsna) have none.
    Raises UserError as ``phantom.write``, and for an unknown layout or hospital.
    """
    hospitals.check(hospital)
    if layout not in LAYOUTS:
        raise UserError(f"phantom layout is {layout!r}; give one of {', '.join(LAYOUTS)}")
    how = {"images": images, "size": size, "seed": seed, "least": least}
    if layout == "nih" and hospital == "A":
        return phantom.write(folder, **how, folders=folders, workers=workers, progress=progress)
    if folders:
        raise UserError("phantom folders is for the layout nih of hospital A; leave it out")
    phantom._check(**how, folders=folders, workers=workers)  # private: a rename would change the drawing code's version
    folder = paths.resolve(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; name a new one for the phantom films")
    cases = _cases(hospitals.sample_cohort(hospital, images, seed, least))
    with phantom._atomic_folder(folder, 3 * phantom.room(images, size)) as temporary:
        boxes = _draw_all(temporary, cases, layout, hospital, size, seed, workers, progress)
        tables = LAYOUTS[layout].tables(cases, boxes, size, seed)
        name = f"phantom-{seed}" if hospital == "A" else f"phantom-{hospital.lower()}-{seed}"
        for file, text in (tables | {phantom.DATASET: f"{name}\n"}).items():
            path = temporary / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="")
    return folder


def _cases(films) -> list[Case]:
    """Cases of a cohort. Every tenth patient who is not for testing is for validation, in datasets that say so."""
    cases = []
    for number, row in enumerate(films.itertuples(index=False)):
        findings = tuple(finding for finding in labels.FINDINGS if getattr(row, finding))
        part = "test" if row.test else "val" if row.patient % 10 == 0 else "train"
        cases.append(Case(number, findings, row.patient, row.follow_up, row.sex, row.age, row.view, part))
    return cases


def _draw_all(
    folder: Path,
    cases: list[Case],
    layout: str,
    hospital: str,
    size: int,
    seed: int,
    workers: int | None,
    progress: bool | None,
) -> list[Boxes]:
    """Draw the films into their files. Returns each film's boxes."""
    step = max(1, min(64, 64 * 224 * 224 // size**2))
    jobs = {k: (str(folder), layout, hospital, size, seed, cases[k : k + step]) for k in range(0, len(cases), step)}
    many = len(cases) * (size**2 + 14_000) > 30_000_000  # as in ``phantom``: below, starting processes saves no time
    workers = min(workers or (parallel.cores() if many else 1), len(jobs))
    look = {"unit": "film", "desc": f"draw {size}²", "delay": 1, "mininterval": 0.5, "smoothing": 0.1}
    boxes: dict[int, list[Boxes]] = {}
    with tqdm(total=len(cases), disable=None if progress is None else not progress, **look) as bar:
        for start, boxes[start] in parallel.run_in_processes(draw_files, jobs, workers):
            bar.update(len(jobs[start][-1]))
    return [of_film for start in sorted(boxes) for of_film in boxes[start]]


def draw_files(folder: str, layout: str, hospital: str, size: int, seed: int, cases: list[Case]) -> list[Boxes]:
    """Draw films into their files, and stand-ins for laterals beside them. Returns each film's boxes."""
    chosen, boxes = LAYOUTS[layout], []
    for case in cases:
        who = {"seed": seed, "patient": case.patient, "follow_up": case.follow_up, "view": case.view}
        film = phantom.draw(case.findings, sex=case.sex, age=case.age, size=size, **who)
        pixels = hospitals.develop(hospital, film.pixels, **who)
        pictures = {chosen.file(case): pixels}
        if case.lateral and (lateral := chosen.lateral(case)):
            pictures[lateral] = _side(pixels)
        for file, picture in pictures.items():
            path = Path(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(chosen.encode(picture, case))
        boxes.append(film.boxes)
    return boxes


def _side(pixels: np.ndarray) -> np.ndarray:
    """Stand-in for a lateral: the film at 60 % of its width, between black."""
    size = len(pixels)
    narrow = cv2.resize(pixels, (size * 6 // 10, size), interpolation=cv2.INTER_AREA)
    film = np.zeros_like(pixels)
    film[:, size // 5 : size // 5 + narrow.shape[1]] = narrow
    return film


def png(pixels: np.ndarray) -> bytes:
    """PNG of 8 bits."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def png_16_bits(pixels: np.ndarray) -> bytes:
    """PNG of 16 bits that uses the whole range."""
    return cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()


def jpeg(pixels: np.ndarray) -> bytes:
    """JPEG of quality 95."""
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def dicom(
    pixels: np.ndarray, *, name: str, sex: str, age: int, view: str, bits: int = 8, inverted: bool = False
) -> bytes:
    """DICOM of a chest film, uncompressed. ``name`` makes the unique identifier, ``inverted`` a MONOCHROME1 film.

    ``bits`` is 8, or 12 in 16. ``view`` "" leaves the view position out.
    """
    from pydicom import Dataset, FileMetaDataset, uid

    values = pixels if bits == 8 else pixels.astype(np.uint16) << (bits - 8)
    values = 2**bits - 1 - values if inverted else values
    film = Dataset()
    film.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = UID_ROOT + str(int.from_bytes(hashlib.sha256(name.encode()).digest()[:14], "big"))
    film.Modality, film.BodyPartExamined, film.ViewPosition = "DX", "CHEST", view
    film.PatientID, film.PatientSex, film.PatientAge = name, sex, f"{age:03d}Y"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    film.Rows, film.Columns = values.shape
    film.BitsAllocated = 8 if bits == 8 else 16
    film.BitsStored, film.HighBit, film.PixelRepresentation = bits, bits - 1, 0
    film.PixelData = values.astype("u1" if bits == 8 else "<u2").tobytes()
    film["PixelData"].VR = "OB" if bits == 8 else "OW"
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file = io.BytesIO()
    film.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _csv(header: str, rows: Iterator[list] | list[list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header.split(","), *rows])
    return text.getvalue()


def _none(case: Case) -> str:
    return ""


def _rng(seed: int, case: Case) -> np.random.Generator:
    return np.random.default_rng([seed, case.patient, case.follow_up, 3])


def _by_labeler(case: Case, seed: int) -> list[str]:
    """Cells of CheXpert's 14 columns as its labeler writes them: 1.0, 0.0, -1.0 or nothing."""
    rng = _rng(seed, case)
    positive = [_OWN_WORD.get(name, name) in case.findings for name in _CHEXPERT]
    positive[3] = bool({"Infiltration", "Consolidation", "Pneumonia", "Edema", "Atelectasis"} & {*case.findings})
    positive[4] = bool({"Mass", "Nodule"} & {*case.findings})
    positive[11] = bool({"Pleural_Thickening", "Fibrosis"} & {*case.findings})
    if not case.findings:
        return ["1.0", *[""] * 13]
    cells = [""]
    for on in positive[1:]:
        uncertain, mentioned = rng.random() < UNCERTAIN, rng.random() < MENTIONED
        cells.append("-1.0" if uncertain and mentioned else "1.0" if on else "0.0" if mentioned else "")
    return cells


def _by_radiologist(case: Case) -> list[str]:
    """Cells of CheXpert's 14 columns in valid.csv: all 0.0 or 1.0."""
    on = [_OWN_WORD.get(name, name) in case.findings for name in _CHEXPERT]
    return [f"{float(value):.1f}" for value in [not case.findings, *on[1:]]]


def _chexpert_file(case: Case, view: str = "view1_frontal") -> str:
    part = "valid" if case.part == "test" else "train"
    return f"{part}/patient{case.patient:05d}/study{case.follow_up + 1}/{view}.jpg"


def _chexpert_tables(cases: list[Case], boxes: list[Boxes], size: int, seed: int) -> Tables:
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *_CHEXPERT])
    rows: dict[bool, list] = {False: [], True: []}
    for case in cases:
        cells = _by_radiologist(case) if case.part == "test" else _by_labeler(case, seed)
        sex = {"M": "Male", "F": "Female"}[case.sex]
        for view in ("view1_frontal", *(["view2_lateral"] if case.lateral else [])):
            side = ["Frontal", case.view] if view == "view1_frontal" else ["Lateral", ""]
            path = f"CheXpert-v1.0-small/{_chexpert_file(case, view)}"
            rows[case.part == "test"].append([path, sex, case.age, *side, *cells])
    return {"train.csv": _csv(header, rows[False]), "valid.csv": _csv(header, rows[True])}


def _mimic_ids(case: Case, view: str = "") -> tuple[str, int, int]:
    """Film, patient and study."""
    code = case.code(f"mimic{view}")
    return "-".join(code[k : k + 8] for k in range(0, 40, 8)), 10_000_000 + case.patient, 50_000_000 + case.number


def _mimic_file(case: Case, view: str = "") -> str:
    film, patient, study = _mimic_ids(case, view)
    return f"files/p{str(patient)[:2]}/p{patient}/s{study}/{film}.jpg"


def _mimic_tables(cases: list[Case], boxes: list[Boxes], size: int, seed: int) -> Tables:
    order = sorted(name for name in _CHEXPERT)
    films, studies, parts = [], [], []
    for case in cases:
        cells = dict(zip(_CHEXPERT, _by_labeler(case, seed), strict=True))
        _, patient, study = _mimic_ids(case)
        studies.append([patient, study, *(cells[name] for name in order)])
        date = f"{2150 + case.follow_up}0615"
        for view in ("", *(["lateral"] if case.lateral else [])):
            film = _mimic_ids(case, view)[0]
            films.append([film, patient, study, case.view if not view else "LATERAL", size, size, date, "093000.0"])
            parts.append([film, study, patient, "validate" if case.part == "val" else case.part])
    return {
        "mimic-cxr-2.0.0-chexpert.csv": _csv(",".join(["subject_id", "study_id", *order]), studies),
        "mimic-cxr-2.0.0-metadata.csv": _csv(
            "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime", films
        ),
        "mimic-cxr-2.0.0-split.csv": _csv("dicom_id,study_id,subject_id,split", parts),
    }


def _digits(code: str, count: int) -> str:
    return str(int(code, 16))[:count].rjust(count, "7")


def _padchest_file(case: Case, view: str = "") -> str:
    return f"{case.number % 3}/{_digits(case.code('padchest'), 38)}_{case.code('padchest' + view)[:6]}.png"


def _padchest_tables(cases: list[Case], boxes: list[Boxes], size: int, seed: int) -> Tables:
    rows = []
    for case in cases:
        names = [_PADCHEST.get(name, name.lower()) for name in case.findings] or ["normal"]
        who = hashlib.sha1(f"padchest{case.patient}".encode(), usedforsecurity=False).hexdigest()
        year = 2009 + case.follow_up
        for view in ("", *(["L"] if case.lateral else [])):
            folder, _, name = _padchest_file(case, view).partition("/")
            projection = view or {"PA": "PA", "AP": "AP_horizontal"}[case.view]
            start = [name, folder, f"{year}0101", case.number, _digits(who, 36), f"{year - case.age}.0", case.sex]
            rows.append([*start, projection, str(names)])
    header = "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Labels"
    return {"PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv": _csv(header, rows)}


def _vindr_file(case: Case) -> str:
    return f"train/{case.code('vindr')[:32]}.dicom"


def _vindr_encode(pixels: np.ndarray, case: Case) -> bytes:
    how = {"name": case.code("vindr")[:32], "sex": case.sex, "age": case.age, "view": "PA"}
    return dicom(pixels, **how, bits=12, inverted=case.number % 2 == 1)


def _vindr_tables(cases: list[Case], boxes: list[Boxes], size: int, seed: int) -> Tables:
    rows = []
    for case, of_film in zip(cases, boxes, strict=True):
        rng = _rng(seed, case)
        for reader in sorted(rng.choice(READERS, 3, replace=False) + 1):
            marks = {}
            for name, word in _VINDR_WORD.items():
                chance = rng.random()
                if name in case.findings and chance > MISSED:
                    marks |= {(word, k): box for k, box in enumerate(of_film[name])}
                elif name not in case.findings and chance < IMAGINED:
                    marks[word, 0] = (0.3, 0.3, 0.2, 0.2)
            for (word, _), (x, y, w, h) in marks.items():
                edges = [f"{size * edge:.1f}" for edge in (x, y, x + w, y + h)]
                rows.append([case.code("vindr")[:32], word, _VINDR.index(word), f"R{reader}", *edges])
            if not marks:
                rows.append([case.code("vindr")[:32], "No finding", 14, f"R{reader}", "", "", "", ""])
    return {"train.csv": _csv("image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max", rows)}


def _rsna_id(case: Case) -> str:
    code = case.code("rsna")
    return "-".join([code[:8], code[8:12], code[12:16], code[16:20], code[20:32]])


def _rsna_file(case: Case) -> str:
    return f"stage_2_train_images/{_rsna_id(case)}.dcm"


def _rsna_encode(pixels: np.ndarray, case: Case) -> bytes:
    return dicom(pixels, name=_rsna_id(case), sex=case.sex, age=case.age, view=case.view)


def _rsna_tables(cases: list[Case], boxes: list[Boxes], size: int, seed: int) -> Tables:
    rows, classes = [], []
    for case, of_film in zip(cases, boxes, strict=True):
        name, found = _rsna_id(case), of_film.get("Pneumonia", [])
        for box in found:
            rows.append([name, *(f"{phantom.BOX_PIXELS * edge:.1f}" for edge in box), 1])
        if not found:
            rows.append([name, "", "", "", "", 0])
        kind = "Lung Opacity" if found else "No Lung Opacity / Not Normal" if case.findings else "Normal"
        classes += [[name, kind]] * max(1, len(found))
    return {
        "stage_2_train_labels.csv": _csv("patientId,x,y,width,height,Target", rows),
        "stage_2_detailed_class_info.csv": _csv("patientId,class", classes),
    }


def _openi_id(case: Case, view: str = "1001") -> str:
    return f"CXR{case.number + 1}_IM-{case.number % 10_000:04d}-{view}"


def _openi_tables(cases: list[Case], boxes: list[Boxes], size: int, seed: int) -> Tables:
    rows, tables = [], {}
    for case in cases:
        terms = [_MESH.get(name, name) for name in case.findings] or ["normal"]
        views = ["1001", *(["2001"] if case.lateral else [])]
        images = "".join(f'<parentImage id="{_openi_id(case, view)}"/>' for view in views)
        majors = "".join(f"<major>{term}</major>" for term in terms)
        report = f"<eCitation><MeSH>{majors}</MeSH>{images}</eCitation>\n"
        tables[f"ecgen-radiology/{case.number + 1}.xml"] = report
        year = 2011 + case.follow_up
        for view in views:
            position, rows_run = (case.view, "['L', 'F']") if view == "1001" else ("LL", "['A', 'F']")
            dates = [f"{year - case.age}0101", f"{year}0601"]
            rows.append([_openi_id(case, view), case.patient, position, rows_run, *dates])
    header = "imageid,Patient ID,View Position,Patient Orientation,Patient's Birth Date,Study Date"
    return tables | {"nlmcxr_dicom_metadata.csv": _csv(header, rows)}


def _nih_tables(cases: list[Case], boxes: list[Boxes], size: int, seed: int) -> Tables:
    rows, box_lines, lists = [], [phantom.BOX_HEADER], {False: [], True: []}
    for case, of_film in zip(cases, boxes, strict=True):
        name = phantom.file_name(case.patient, case.follow_up)
        text = labels.SEPARATOR.join(case.findings) or labels.NO_FINDING
        start = [name, text, case.follow_up, case.patient, case.age, case.sex, case.view]
        rows.append(",".join(map(str, [*start, size, size, 0.143, 0.143, ""])))
        lists[case.part == "test"].append(name)
        for finding in phantom.BOXED if case.part == "test" else ():
            word = "Infiltrate" if finding == "Infiltration" else finding
            for box in of_film.get(finding, []):
                box_lines.append(",".join([name, word, *(f"{phantom.BOX_PIXELS * edge:.4f}" for edge in box)]))
    files = {
        "Data_Entry_2017.csv": [phantom.DATA_HEADER, *rows],
        "BBox_List_2017.csv": box_lines,
        "train_val_list.txt": lists[False],
        "test_list.txt": lists[True],
    }
    return {file: "".join(f"{line}\n" for line in lines) for file, lines in files.items()}


LAYOUTS: dict[str, Layout] = {
    "nih": Layout(
        lambda case: f"images/{phantom.file_name(case.patient, case.follow_up)}",
        _none,
        lambda pixels, case: png(pixels),
        _nih_tables,
    ),
    "chexpert": Layout(
        _chexpert_file,
        lambda case: _chexpert_file(case, "view2_lateral"),
        lambda pixels, case: jpeg(pixels),
        _chexpert_tables,
    ),
    "mimic": Layout(
        _mimic_file,
        lambda case: _mimic_file(case, "lateral"),
        lambda pixels, case: jpeg(pixels),
        _mimic_tables,
    ),
    "padchest": Layout(
        _padchest_file,
        lambda case: _padchest_file(case, "L"),
        lambda pixels, case: png_16_bits(pixels),
        _padchest_tables,
    ),
    "vindr": Layout(_vindr_file, _none, _vindr_encode, _vindr_tables),
    "rsna": Layout(_rsna_file, _none, _rsna_encode, _rsna_tables),
    "openi": Layout(
        lambda case: f"NLMCXR_png/{_openi_id(case)}.png",
        lambda case: f"NLMCXR_png/{_openi_id(case, '2001')}.png",
        lambda pixels, case: png(pixels),
        _openi_tables,
    ),
}
"""Layouts by the name of their dataset, the same as in ``cxrlib.data.sources``."""
