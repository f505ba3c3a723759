"""Check of a data folder in one pass: everything that is wrong, counted, with examples and what to do.

``error``: a run cannot use the folder so. ``missing``: films that are not there or cannot be decoded; a run stops,
or goes on without them when given ``--allow-missing``. ``warning`` and ``note``: a run goes on.

What is said of a film's pixels stands in two places: as a problem of the folder, with the number of films and the first
few, and in ``FolderReport.remarks`` for every film by its name (``cxr check --json``).
"""

import os
import shutil
import zlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cxrlib import UserError, labels, paths
from cxrlib.data import film_identity, film_quality, images, parallel, records, sources, splits, tables

LEVELS = ("error", "missing", "warning", "note")
EXAMPLES = 5


@dataclass(frozen=True)
class Problem:
    """One kind of fault, with the number of cases, the first ``EXAMPLES`` cases, and advice for the user."""

    group: str
    level: str
    what: str
    count: int
    examples: list[str]
    advice: str


@dataclass
class FolderReport:
    """Result of a check. ``facts`` describes the folder's content. ``fast`` means that no film was decoded.

    ``remarks`` has what is said of each film's pixels, or why it has none, by the film's name; films without a remark
    are absent.
    """

    folder: Path
    fast: bool
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)

    def add(self, group: str, level: str, what: str, concerned: list, advice: str) -> None:
        """Add a fault with ``concerned`` as its cases. If this is empty, nothing is added."""
        if concerned:
            examples = [str(case) for case in concerned[:EXAMPLES]]
            self.problems.append(Problem(group, level, what, len(concerned), examples, advice))

    @property
    def fit(self) -> bool:
        """Whether a run can use the folder as it is."""
        return not any(problem.level in ("error", "missing") for problem in self.problems)

    @property
    def fit_without_missing(self) -> bool:
        """Whether a run can use the folder with ``--allow-missing``."""
        return not any(problem.level == "error" for problem in self.problems)

    def require(self, *, allow_missing: bool = False) -> None:
        """Raise UserError with the worst fault unless a run can use the folder."""
        if self.fit or (allow_missing and self.fit_without_missing):
            return
        levels = ("error",) if allow_missing else ("error", "missing")
        faults = [problem for problem in self.problems if problem.level in levels]
        worst = min(faults, key=lambda problem: LEVELS.index(problem.level))
        more = f" (and {len(faults) - 1} other kinds of fault)" if len(faults) > 1 else ""
        raise UserError(f"{self.folder} is not usable: {_line(worst)}{more}. See all with: cxr check {self.folder}")

    def to_json(self) -> dict[str, Any]:
        """Report as plain data for ``--json``."""
        verdict = {"folder": "", "fit": self.fit, "fit_without_missing": self.fit_without_missing}
        return verdict | asdict(self) | {"folder": str(self.folder)}

    def __str__(self) -> str:
        facts = [f"  {name.replace('_', ' ')}: {_text(value)}" for name, value in self.facts.items()]
        lines = [str(self.folder), *facts, ""]
        for level in LEVELS:
            for problem in self.problems:
                if problem.level == level:
                    lines += [f"{level.upper()} [{problem.group}] {_line(problem)}", f"    {problem.advice}"]
        return "\n".join([*lines, self._verdict()])

    def _verdict(self) -> str:
        if self.fit:
            return "usable" + (" (films were not decoded)" if self.fast else "")
        if self.fit_without_missing:
            return "usable only with --allow-missing"
        return "not usable: correct the errors above first"


def _line(problem: Problem) -> str:
    examples = ", ".join(problem.examples) + (", …" if problem.count > len(problem.examples) else "")
    return f"{problem.what} ({problem.count:,}): {examples}"


def _text(fact: Any) -> str:
    """Text of a fact. Counts by name become "256x256 (53), 120x100 (1)"."""
    if isinstance(fact, dict):
        return ", ".join(f"{name} ({count:,})" for name, count in fact.items())
    return f"{fact:,}" if isinstance(fact, int) else str(fact)


AGAIN = "download these again"
CHUNK = 64

Files = dict[str, list[tuple[str, int]]]
"""Files by film name: (path, bytes) of each file with that name."""


def examine(report: FolderReport, size: int, workers: int | None, progress: bool) -> None:
    """Run all checks on the report's folder. Parameters as in ``check.folder``."""
    try:
        found = sources.other(report.folder)
        if not found:
            records.places(report.folder)
    except UserError as error:
        report.add(
            "layout", "error", "a folder that cannot be told", [error], "check each dataset in a folder of its own"
        )
        return
    if found:
        films, files = _other(report, found)
        if films is not None:
            _space(report, len(files), size)
    else:
        films = _table(report)
        files = _layout(report) if report.folder.is_dir() else {}
    if films is not None and not found:
        files = _by_film(report, films, files)
        _files(report, films, files)
        _lists(report, films)
        _boxes(report, films)
        _space(report, len(files.keys() & set(films["image"])), size)
    paths_by_name = {name: entries[0][0] for name, entries in sorted(files.items()) if entries[0][1]}
    if paths_by_name and not report.fast:
        patient_of = {} if films is None else dict(zip(films["image"], films["patient"], strict=True))
        _films(report, paths_by_name, patient_of, workers, progress)
    elif paths_by_name:
        _sample(report, paths_by_name)


def _listener(report: FolderReport, group: str) -> tables.Assume:
    """Handler that notes in the report what was assumed."""

    def note(what: str, cases: list) -> None:
        report.add(group, "note", what, cases, "it was read so; make sure that this is right")

    return note


def _collector(report: FolderReport, group: str) -> tables.Refuse:
    """Handler that puts all wrong cells into the report, instead of an exception at the first."""

    def collect(csv: Path, column: pd.Series, wrong: np.ndarray, header: str, advice: str) -> None:
        lines = column.index[wrong] + 2
        cells = [f"line {line} {value!r}" for line, value in zip(lines, column[wrong], strict=True)]
        report.add(group, "error", f"wrong cells of {header}", cells, advice)

    return collect


def _table(report: FolderReport) -> pd.DataFrame | None:
    """Films of the CSV, with wrong cells reported and replaced. None if there is no readable table."""
    try:
        csv = records.find_table(report.folder)
        films = records.read_csv(csv, on_wrong=_collector(report, "table"), on_assumed=_listener(report, "table"))
        films["dataset"] = records.dataset(report.folder)
    except UserError as error:
        report.add("table", "error", "unusable table", [error], "a run needs the CSV of the NIH download")
        return None
    _deeper(report)
    rivals = records.rivals(report.folder)
    report.add("table", "warning", "tables that differ", [rivals] if rivals else [], "only one of them is used")
    report.facts |= {"table": csv.name, "films_in_table": len(films), "patients": films["patient"].nunique()}
    unknown = films["image"][films["age"].isna()].tolist()
    advice = "the age counts as unknown"
    report.add("table", "warning", f"films without an age up to {tables.OLDEST}", unknown, advice)
    misnamed = films["image"][film_identity.named_after_another_patient(films)].tolist()
    advice = "splits use the Patient ID of the row; make sure that it is right"
    report.add("table", "warning", "films with another patient in their name than in their row", misnamed, advice)
    return films.drop_duplicates("image").reset_index(drop=True)


def _other(report: FolderReport, found: sources.Found) -> tuple[pd.DataFrame | None, Files]:
    """Films and files of another dataset than NIH's, with what was assumed and what is wrong reported."""
    hear = sources.Hear(_collector(report, "table"), _listener(report, "table"))
    try:
        rows = found.rows(hear)
        films = found.films_of(rows)
        films["dataset"] = records.dataset(report.folder)
        paths, doubtful = found.locate(rows[(rows["left_out"] == "").to_numpy()])
        if not report.problems:
            found.split(films, rows)
    except UserError as error:
        report.add("table", "error", "unusable table", [error], "correct the table, or take it from the download again")
        return None, {}
    _describe(report, found, films)
    report.add("files", "error", "films that several files may be", doubtful, records.ONE_FILE)
    there = {name: [(path, os.path.getsize(path))] for name, path in zip(films["image"], paths, strict=True) if path}  # noqa: PTH202
    absent = [name for name in films["image"] if name not in there]
    report.add("files", "missing", "films of the table absent", absent, "complete the download, or use --allow-missing")
    if len(absent) == len(films):
        report.add(
            "files", "error", "table of other films", [found.no_films(len(films))], "put the films where they belong"
        )
    renamed = [f"{path} is {name}" for name, ((path, _),) in there.items() if Path(path).suffix != Path(name).suffix]
    report.add("files", "note", "films with another ending than in the table", renamed, "they are used")
    report.add(
        "files", "missing", "empty files", sorted(name for name, ((_, size),) in there.items() if not size), AGAIN
    )
    report.facts |= {"files": len(there), "gigabytes": round(sum(size for ((_, size),) in there.values()) / 1e9, 3)}
    return films, there


def _describe(report: FolderReport, found: sources.Found, films: pd.DataFrame) -> None:
    """Report on another dataset: which one it is, what was left out, which findings it labels."""
    source, left_out = found.source, films.attrs["left_out"]
    matrix = films[list(labels.LABELS)]
    unlabelled = [name for name in labels.FINDINGS if matrix[name].isna().all()]
    report.facts |= {
        "dataset": f"{source.title} ({source.paper})",
        "table": found.table.name,
        "films_in_table": len(films) + sum(left_out.values()),
        "frontal_films": len(films),
        "left_out": left_out or "none",
        "patients": films["patient"].nunique(),
        "patients_are_told_apart": source.patients,
        "split": source.split,
        "findings_not_labelled": ", ".join(unlabelled) or "none",
        "films_with": {name: int(count) for name, count in (matrix == 1).sum().items() if matrix[name].notna().any()},
    }
    report.add("table", "warning", "doubts about the dataset", found.doubts, "say so beside every result")
    advice = "they are unknown here, not absent: no result is given for them"
    report.add("table", "warning", "findings that are not labelled here", unlabelled, advice)
    one_sided = [name for name in labels.LABELS if matrix[name].notna().any() and matrix[name].nunique() == 1]
    advice = "an AUC needs films with and films without the finding; it is undefined for these"
    report.add("table", "warning", "findings that all films have, or none", one_sided, advice)
    if len(unlabelled) == len(labels.FINDINGS):
        advice = f"the labels of {source.title} are in {source.table}"
        report.add("table", "error", "no finding is known for any film", [found.table.name], advice)


def _deeper(report: FolderReport) -> None:
    """Note the parts of a data folder that do not lie in it directly."""
    found = [records.find_table(report.folder), records.find_boxes(report.folder), records.find_dataset(report.folder)]
    found += [*splits.find_lists(report.folder).values(), next(records.image_folders(report.folder), None)]
    cases = [path.relative_to(report.folder).as_posix() for path in found if path and path.parent != report.folder]
    report.add("layout", "note", "parts in a folder below", cases, "they are used as if they were in the folder itself")


def _layout(report: FolderReport) -> Files:
    """Film files in the folder's image folders, with the faults of the layout reported."""
    files: Files = defaultdict(list)
    folders, used = list(records.image_folders(report.folder)), set()
    for folder in folders:
        for entry in os.scandir(folder):
            if not entry.name.startswith(".") and entry.name.lower().endswith(images.SUFFIXES) and entry.is_file():
                files[entry.name].append((entry.path, entry.stat().st_size))
                used.add(folder)
    report.facts |= {"image_folders": len(used), "files": sum(map(len, files.values()))}
    report.facts["gigabytes"] = round(sum(size for entries in files.values() for _, size in entries) / 1e9, 3)
    if not files:
        advice = "put images/ or images_001/ … beside the CSV"
        report.add("layout", "error", "folder without films", [report.folder], advice)
    parts = {folder.name for folder in folders if folder.name.startswith("images_")}
    absent = [name for name in (f"images_{i:03d}" for i in range(1, 13)) if name not in parts]
    advice = "fine if you moved the films into fewer folders; else complete the download"
    report.add("layout", "warning", "folders of the download absent", absent if parts else [], advice)
    differing = [name for name, entries in files.items() if len({size for _, size in entries}) > 1]
    report.add("layout", "error", "two different files with the same name", differing, "keep the right one of the two")
    same = [name for name, entries in files.items() if len(entries) > 1 and name not in set(differing)]
    report.add("layout", "warning", "films in two folders", same, "the first is used; delete the other")
    return files


def _by_film(report: FolderReport, films: pd.DataFrame, files: Files) -> Files:
    """Files by the names of their films in the table, where these have another ending."""
    found, doubtful = records.files_of_films(films["image"], files)
    report.add("files", "error", "films that several files may be", doubtful, records.ONE_FILE)
    renamed = {file: name for name, file in found.items() if file != name}
    cases = [f"{file} is {name}" for file, name in renamed.items()]
    report.add("files", "note", "films with another ending than in the table", cases, "they are used")
    return {renamed.get(file, file): entries for file, entries in files.items()}


def _files(report: FolderReport, films: pd.DataFrame, files: Files) -> None:
    names = set(films["image"])
    absent = [name for name in films["image"] if name not in files]
    report.add("files", "missing", "films of the table absent", absent, "complete the download, or use --allow-missing")
    if files and len(absent) == len(films):
        advice = "take CSV and films from the same download"
        report.add("files", "error", "table of other films", [report.folder], advice)
    report.add("files", "warning", "films not in the table", sorted(files.keys() - names), "they are not used")
    empty = sorted(name for name, entries in files.items() if name in names and not entries[0][1])
    report.add("files", "missing", "empty files", empty, AGAIN)


def _lists(report: FolderReport, films: pd.DataFrame) -> None:
    try:
        lists = splits.read_lists(report.folder, _listener(report, "lists"))
    except UserError as error:
        report.add("lists", "error", "unusable list", [error], splits.RIGHT_LISTS)
        return
    absent = [name for name in (splits.TRAIN_LIST, splits.TEST_LIST) if name not in lists]
    one = "the absent list then has all films that are not in the other list"
    both = "the films are then split at random by patient; do not compare the result with published results"
    report.add("lists", "warning", "official lists absent", absent, both if len(absent) == 2 else one)
    for fault, cases in splits.contradictions(films, lists) if lists else ():
        report.add("lists", "error", fault, cases, splits.RIGHT_LISTS)
    for name, others in splits.unlisted(films, lists).items():
        advice = "they are not used: the table is a part of the dataset"
        report.add("lists", "note", f"films of {name} that are not in the table", others, advice)


def _boxes(report: FolderReport, films: pd.DataFrame) -> None:
    try:
        boxes = records.read_boxes(
            report.folder, on_wrong=_collector(report, "boxes"), on_assumed=_listener(report, "boxes")
        )
    except UserError as error:
        report.add("boxes", "error", "unusable box file", [error], "download it again, or remove it")
        return
    report.facts["boxes"] = len(boxes)
    limit = records.BOX_PIXELS + 1
    outside = (boxes.x < 0) | (boxes.y < 0) | (boxes.x + boxes.w > limit) | (boxes.y + boxes.h > limit)
    advice = "boxes are in pixels of the original films, also if your films have another size"
    report.add("boxes", "warning", f"boxes outside {records.BOX_PIXELS}²", boxes.image[outside].tolist(), advice)
    unknown = boxes.image[~boxes.image.isin(films["image"])].tolist()
    report.add("boxes", "warning", "boxes on films that are not in the table", unknown, "they are not used")
    values = films.set_index("image").reindex(boxes["image"])[list(labels.FINDINGS)].to_numpy()  # (boxes, 14)
    columns = [labels.FINDINGS.index(name) if name in labels.FINDINGS else 0 for name in boxes["finding"]]
    unlabelled = boxes.image[values[np.arange(len(boxes)), columns] == 0].tolist()
    advice = "labels come from the text of reports, boxes from radiologists"
    report.add("boxes", "note", "boxes of a finding that is not in the film's labels", unlabelled, advice)


def _space(report: FolderReport, films: int, size: int) -> None:
    folder = paths.outputs()
    while not folder.exists():
        folder = folder.parent
    need, free = films * size * size, shutil.disk_usage(folder).free
    report.facts |= {"store_gigabytes": round(need / 1e9, 3), "free_gigabytes": round(free / 1e9, 1)}
    advice = f"{need / 1e9:.1f} GB are needed for {size}² pixels; make room, or put CXR_OUTPUTS elsewhere"
    report.add("space", "warning", "too little disk space for the store", [folder] if need > free else [], advice)


def _films(
    report: FolderReport, files: dict[str, str], patient_of: dict[str, int], workers: int | None, progress: bool
) -> None:
    """Decode all films in processes, and compare them with each other."""
    names = list(files)
    jobs = {start: ([files[name] for name in names[start : start + CHUNK]],) for start in range(0, len(names), CHUNK)}
    chunks: dict[int, list[tuple]] = {}
    with tqdm(total=len(names), unit="film", desc="check", disable=not progress, mininterval=0.5) as bar:
        for start, chunk in parallel.run_in_processes(
            examine_images, jobs, min(workers or parallel.cores(), len(jobs) // 4)
        ):
            chunks[start] = chunk
            bar.update(len(chunk))
    results = dict(zip(names, (film for start in sorted(chunks) for film in chunks[start]), strict=True))
    broken, locked = (
        [f"{name} {_short(film.reason, files[name])}" for name, film in results.items() if film.fault == fault]
        for fault in ("damaged", "unreadable")
    )
    report.add("films", "missing", "films that cannot be decoded", broken, f"{AGAIN}, or use --allow-missing")
    advice = "they need not be damaged; correct the cause and check again, or use --allow-missing"
    report.add("films", "missing", "films that the system does not let us read", locked, advice)
    for name, film in results.items():
        if film.reason:
            report.remarks[name] = [f"cannot be decoded: {_short(film.reason, files[name])}"]
    decoded = {name: film for name, film in results.items() if not film.reason}
    _compare(report, decoded, patient_of)
    _remark(report, decoded)


def _short(reason: str, file: str) -> str:
    """Reason of a decoding error, without the path before it and the advice after it."""
    return reason.removeprefix(file).strip().split("; ")[0]


def _compare(report: FolderReport, films: dict[str, "FilmFacts"], patient_of: dict[str, int]) -> None:
    """Report films of unusual size and identical films."""
    sizes = Counter(film.size for film in films.values())
    modes = Counter(film.mode for film in films.values())
    report.facts["film_sizes"] = {f"{width}x{height}": count for (width, height), count in sizes.most_common(5)}
    report.facts["film_modes"] = dict(modes.most_common())
    depths = Counter(f"{film.bits} of 16" for film in films.values() if film.bits)
    if depths:
        report.facts["bits_used"] = dict(depths.most_common())
    usual = sizes.most_common(1)[0][0] if sizes else (0, 0)
    unusual = [f"{name} {film.size[0]}x{film.size[1]}" for name, film in films.items() if film.size != usual]
    what = "films of another size than {}x{}".format(*usual)
    report.add("films", "warning", what, unusual, "all films are resized to the store's size")
    names: dict[tuple, list[str]] = defaultdict(list)
    for name, film in films.items():
        names[film.size, film.checksum].append(name)
    groups = [group for group in names.values() if len(group) > 1]
    two_patients = [" = ".join(group) for group in groups if len({patient_of.get(name, name) for name in group}) > 1]
    advice = "one of the names is wrong, and a split may leak; keep one film of each group"
    what = "groups of films with identical pixels under two patients"
    report.add("films", "warning", what, two_patients, advice)
    one_patient = [" = ".join(group) for group in groups if len({patient_of.get(name, name) for name in group}) == 1]
    what = "groups of films of one patient with identical pixels"
    report.add("films", "note", what, one_patient, "each counts as a film")


REMARKS = {
    "flat": ("warning", "films with only one grey level", "they show nothing; look at them"),
    "grey": (
        "warning",
        "films with unusual grey levels",
        "look at them; they may have been saved with the wrong depth",
    ),
    "negative": (
        "warning",
        "films that look like negatives",
        "air is bright and bone dark in them; invert these files, or leave them out of the table",
    ),
    "turned": ("warning", "films that look turned", "look at them, and turn these files upright"),
    "no film": (
        "warning",
        "pictures that do not look like frontal chest films",
        "look at them, and leave out of the table what is none",
    ),
    "transparent": ("warning", "films with transparent parts", "these parts are read as black"),
    "depth": (
        "warning",
        "16-bit films whose bit depth is a guess",
        "the largest values of the film and of its folder decide; an sBIT chunk in the file would say it",
    ),
    "sBIT": ("note", "16-bit films that say how many bits they use", "they are read so"),
    "orientation": ("warning", "films with an EXIF orientation", "they are turned upright as it says"),
    "colour": ("note", "films in colour or with alpha", "they are read as grey"),
    "shape": (
        "note",
        "films that are not square",
        "they are squeezed: each side is brought to the store's size by itself, and boxes with it",
    ),
}
"""Level, name and advice of each kind of remark on a film's pixels, in the order of the report."""


def _remark(report: FolderReport, films: dict[str, "FilmFacts"]) -> None:
    """Report the remarks on the films, in groups and by film."""
    for kind, (level, what, advice) in REMARKS.items():
        found = {name: film.remarks[kind] for name, film in films.items() if kind in film.remarks}
        report.add("films", level, what, [f"{name} {detail}".strip() for name, detail in found.items()], advice)
        for name, detail in found.items():
            report.remarks.setdefault(name, []).append(f"{what}: {detail}" if detail else what)


class FilmFacts(NamedTuple):
    """Facts of one film. If it cannot be decoded, ``reason`` says why, and ``fault`` is "damaged" or "unreadable".

    ``size`` is (width, height) of the upright film, ``checksum`` of its pixels. ``remarks`` has a detail by kind.
    ``bits`` is the depth that a 16-bit film uses, and 0 for other films.
    """

    reason: str
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    checksum: int = 0
    remarks: dict[str, str] = {}  # noqa: RUF012 (never changed)
    bits: int = 0
    fault: str = ""


def examine_images(files: list[str]) -> list[FilmFacts]:
    """Facts of films from their files, decoded. Raises UserError if the system is short of something."""
    facts = []
    for file in files:
        try:
            film = images.decode_film(images.load(file), file)
        except images.SystemShortageError:
            raise
        except UserError as error:
            fault = "unreadable" if isinstance(error, images.UnreadableError) else "damaged"
            facts.append(FilmFacts(str(error), fault=fault))
            continue
        checksum = zlib.crc32(film.pixels) << 32 | zlib.adler32(film.pixels)
        facts.append(
            FilmFacts(
                "", film.mode, film.pixels.shape[::-1], checksum, remarks_on(film), film.bits if film.basis else 0
            )
        )
    return facts


def remarks_on(film: images.Film) -> dict[str, str]:
    """Remarks on a film's pixels: kinds of ``REMARKS``, each with a detail or ""."""
    height, width = film.pixels.shape
    remarks = {}
    if film.pixels.min() == film.pixels.max():
        remarks["flat"] = ""
    else:
        lies, remarks["no film"] = _lies_or_no_film(film)
        remarks["grey"] = film_quality.unusual_grey(film.pixels)
        remarks["turned"] = "" if lies.startswith("negative") else lies
        remarks = {kind: detail for kind, detail in remarks.items() if detail}
        if lies.startswith("negative"):
            remarks["negative"] = lies.removeprefix("negative").removeprefix(", ")
    if film.transparent:
        remarks["transparent"] = ""
    if film.basis and (film.basis == "sBIT" or film.largest < 1 << images.DEPTHS[-2]):  # else only 16 bits can hold it
        remarks["sBIT" if film.basis == "sBIT" else "depth"] = f"{film.bits} bits (up to {film.largest})"
    if film.orientation != 1:
        remarks["orientation"] = str(film.orientation)
    if film.mode not in ("L", "I;16", "1", "DICOM"):
        remarks["colour"] = ""
    if height != width:
        remarks["shape"] = f"{width}x{height}"
    return remarks


def _lies_or_no_film(film: images.Film) -> tuple[str, str]:
    """How a film lies, and why it is no chest film, without the advice, which is for a single film; "" for neither.

    A film that is too small to be judged is taken for one.
    """
    if min(film.pixels.shape) < film_quality.SMALLEST:
        return film_quality.position(film.pixels), ""
    judged = film_quality.judge(film)
    return judged.lies, judged.refusal.split("; ")[0]


def _sample(report: FolderReport, files: dict[str, str]) -> None:
    """Report the sizes of about 20 films from their headers."""
    sizes: Counter = Counter()
    for file in list(files.values())[:: max(len(files) // 20, 1)]:
        try:
            sizes["{}x{}".format(*images.size(file))] += 1
        except UserError as error:
            report.add("films", "missing", "film that cannot be read", [error], f"{AGAIN}; check without --fast")
    report.facts["film_sizes_of_a_sample"] = dict(sizes)


def folder(
    path: str | Path, *, fast: bool = False, size: int = 256, workers: int | None = None, progress: bool = True
) -> FolderReport:
    """Report on a data folder: layout, CSV, files, films, lists, boxes, disk space.

    ``fast`` does not decode the films. ``size`` is the pixel size of the store, for the check of disk space. Nothing is
    written, and faults go into the report instead of raising.
    """
    report = FolderReport(paths.resolve(path), fast)
    examine(report, size, workers, progress)
    return report
