"""What ``check`` looks at: one function per group of faults, each adding to the report."""

import os
import shutil
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from cxrlib import labels, paths
from cxrlib.data import images, patients, pool, records, splits, tables
from cxrlib.data.health import Report
from cxrlib.errors import UserError

AGAIN = "download these again"
CHUNK = 64

Files = dict[str, list[tuple[str, int]]]
"""Film name to the (path, bytes) of every file of that name."""


def everything(report: Report, size: int, workers: int | None, progress: bool) -> None:
    films = _table(report)
    files = _layout(report) if report.folder.is_dir() else {}
    if films is not None:
        _files(report, films, files)
        _lists(report, films)
        _boxes(report, films)
        _space(report, len(files.keys() & set(films["image"])), size)
    first = {name: places[0][0] for name, places in sorted(files.items()) if places[0][1]}
    if first and not report.fast:
        of_patient = {} if films is None else dict(zip(films["image"], films["patient"], strict=True))
        _films(report, first, of_patient, workers, progress)
    elif first:
        _sample(report, first)


def _note(report: Report, group: str) -> tables.Refuse:
    """Put wrong cells into the report instead of stopping at the first."""

    def note(csv: Path, column: pd.Series, wrong: np.ndarray, header: str, advice: str) -> None:
        lines = column.index[wrong] + 2
        cells = [f"line {line} {value!r}" for line, value in zip(lines, column[wrong], strict=True)]
        report.add(group, "error", f"wrong cells of {header}", cells, advice)

    return note


def _table(report: Report) -> pd.DataFrame | None:
    """The CSV's films, wrong cells noted and replaced; None where there is no table to speak of."""

    try:
        csv = records.find_table(report.folder)
        films = records.read_csv(csv, on_wrong=_note(report, "table"))
        films["dataset"] = records.dataset(report.folder)
    except UserError as error:
        report.add("table", "error", "table that cannot be used", [error], "a run needs the CSV of the NIH download")
        return None
    report.add("table", "warning", "tables that differ", list(filter(None, [records.rivals(report.folder)])),
               "one of them counts, whatever the other says")  # fmt: skip
    report.facts |= {"table": csv.name, "films_in_table": len(films), "patients": films["patient"].nunique()}
    unknown = films["image"][films["age"].isna()].tolist()
    report.add("table", "warning", f"films without an age up to {tables.OLDEST}", unknown, "taken as unknown")
    concerned = films["image"][patients.misnamed(films)].tolist()
    report.add("table", "warning", "films named after another patient than their row's", concerned,
               "splits go by the Patient ID of the row; make sure that it is right")  # fmt: skip
    return films.drop_duplicates("image").reset_index(drop=True)


def _layout(report: Report) -> Files:
    files: Files = defaultdict(list)
    folders, holding = list(records.image_folders(report.folder)), set()
    for place in folders:
        for entry in os.scandir(place):
            if not entry.name.startswith(".") and entry.name.lower().endswith(images.SUFFIXES) and entry.is_file():
                files[entry.name].append((entry.path, entry.stat().st_size))
                holding.add(place)
    report.facts |= {"image_folders": len(holding), "files": sum(map(len, files.values()))}
    report.facts["gigabytes"] = round(sum(size for places in files.values() for _, size in places) / 1e9, 3)
    if not files:
        report.add(
            "layout", "error", "folder without films", [report.folder], "put images/ or images_001/ … beside the CSV"
        )
    parts = {place.name for place in folders if place.name.startswith("images_")}
    absent = [name for name in (f"images_{i:03d}" for i in range(1, 13)) if name not in parts]
    report.add("layout", "warning", "folders of the download absent", absent if parts else [],
               "fine where films were moved together; else complete the download")  # fmt: skip
    again = [name for name, places in files.items() if len({size for _, size in places}) > 1]
    report.add("layout", "error", "names of two files that differ", again, "keep the right one of the two")
    same = [name for name, places in files.items() if len(places) > 1 and name not in set(again)]
    report.add("layout", "warning", "films that lie in two folders", same, "the first is taken; delete the other")
    return files


def _files(report: Report, films: pd.DataFrame, files: Files) -> None:
    named = set(films["image"])
    absent = [name for name in films["image"] if name not in files]
    report.add("files", "missing", "films of the table absent", absent, "complete the download, or use --allow-missing")
    if files and len(absent) == len(films):
        report.add("files", "error", "table for other films", [report.folder], "CSV and films belong to one download")
    extra = sorted(files.keys() - named)
    report.add("files", "warning", "files that the table does not name", extra, "they are not used")
    empty = sorted(name for name, places in files.items() if name in named and not places[0][1])
    report.add("files", "missing", "empty files", empty, AGAIN)


def _lists(report: Report, films: pd.DataFrame) -> None:
    advice = "download the lists again"
    try:
        lists = splits.read_lists(report.folder)
    except UserError as error:
        report.add("lists", "error", "list that cannot be used", [error], advice)
        return
    absent = [name for name in (splits.TRAIN_LIST, splits.TEST_LIST) if name not in lists]
    report.add("lists", "warning", "official lists absent", absent,
               "without both films are split at random by patient; the result cannot stand beside published ones"
               if len(absent) == 2 else "the other list's films are taken out of all")  # fmt: skip
    for fault, concerned in splits.contradictions(films, lists) if lists else ():
        report.add("lists", "error", fault, concerned, advice)


def _boxes(report: Report, films: pd.DataFrame) -> None:
    try:
        boxes = records.read_boxes(report.folder, on_wrong=_note(report, "boxes"))
    except UserError as error:
        report.add("boxes", "error", "box file that cannot be used", [error], "download it again, or remove it")
        return
    report.facts["boxes"] = len(boxes)
    far = records.BOX_PIXELS + 1
    outside = (boxes.x < 0) | (boxes.y < 0) | (boxes.x + boxes.w > far) | (boxes.y + boxes.h > far)
    report.add("boxes", "warning", f"boxes outside {records.BOX_PIXELS}²", boxes.image[outside].tolist(),
               "boxes are in pixels of the original films, whatever the size of yours")  # fmt: skip
    unknown = boxes.image[~boxes.image.isin(films["image"])].tolist()
    report.add("boxes", "warning", "boxes on films that the table does not name", unknown, "they are not used")
    marked = films.set_index("image").reindex(boxes["image"])[list(labels.FINDINGS)].to_numpy()  # (boxes, 14)
    columns = [labels.FINDINGS.index(name) if name in labels.FINDINGS else 0 for name in boxes["finding"]]
    denied = marked[np.arange(len(boxes)), columns] == 0
    report.add("boxes", "note", "boxes of a finding that their film's labels deny", boxes.image[denied].tolist(),
               "labels were mined from reports, boxes drawn by radiologists")  # fmt: skip


def _space(report: Report, films: int, size: int) -> None:
    place = paths.outputs()
    while not place.exists():
        place = place.parent
    need, free = films * size * size, shutil.disk_usage(place).free
    report.facts |= {"store_gigabytes": round(need / 1e9, 3), "free_gigabytes": round(free / 1e9, 1)}
    advice = f"{need / 1e9:.1f} GB are needed for {size}² pixels; make room, or put CXR_OUTPUTS elsewhere"
    report.add("space", "warning", "disk without room for the store", [place] if need > free else [], advice)


def _films(
    report: Report, files: dict[str, str], of_patient: dict[str, int], workers: int | None, progress: bool
) -> None:
    """Decode every film, in processes, and compare them with one another; ``of_patient`` says whose each film is."""
    names = list(files)
    jobs = {at: ([files[name] for name in names[at : at + CHUNK]],) for at in range(0, len(names), CHUNK)}
    found: dict[int, list[tuple]] = {}
    with tqdm(total=len(names), unit="film", desc="check", disable=not progress, mininterval=0.5) as bar:
        for at, result in pool.run(look, jobs, min(workers or pool.cores(), len(jobs) // 4)):
            found[at] = result
            bar.update(len(result))
    seen = dict(zip(names, (one for at in sorted(found) for one in found[at]), strict=True))
    broken = [f"{name} {_short(reason, files[name])}" for name, (reason, *_) in seen.items() if reason]
    report.add("films", "missing", "films that cannot be decoded", broken, f"{AGAIN}, or use --allow-missing")
    _compare(report, {name: one[1:] for name, one in seen.items() if not one[0]}, of_patient)


def _short(reason: str, file: str) -> str:
    """A decoder's reason without the file's path before it and the advice after it, which are said once for all."""
    return reason.removeprefix(file).strip().split("; ")[0]


def _compare(report: Report, seen: dict[str, tuple], of_patient: dict[str, int]) -> None:
    sizes = Counter(size for _, size, _, _ in seen.values())
    modes = Counter(mode for mode, _, _, _ in seen.values())
    report.facts["film_sizes"] = {f"{width}x{height}": count for (width, height), count in sizes.most_common(5)}
    report.facts["film_modes"] = dict(modes.most_common())
    usual = sizes.most_common(1)[0][0] if sizes else (0, 0)
    odd = [f"{name} {size[0]}x{size[1]}" for name, (_, size, _, _) in seen.items() if size != usual]
    report.add("films", "warning", "films of another size than {}x{}".format(*usual), odd,
               "they are brought to one size all the same")  # fmt: skip
    colour = [name for name, (mode, _, _, _) in seen.items() if mode not in ("L", "I;16", "1")]
    report.add("films", "note", "films in colour or with alpha", colour, "they are read as grey")
    flat = [name for name, (_, _, _, single) in seen.items() if single]
    report.add("films", "warning", "films of one single grey", flat, "nothing can be seen on them; look at them")
    twins: dict[tuple, list[str]] = defaultdict(list)
    for name, (_, size, pixels, _) in seen.items():
        twins[size, pixels].append(name)
    groups = [group for group in twins.values() if len(group) > 1]
    strangers = [" = ".join(group) for group in groups if len({of_patient.get(name, name) for name in group}) > 1]
    report.add("films", "warning", "groups of films with identical pixels under two patients", strangers,
               "one of the names is wrong, and a split may leak; keep one film of each group")  # fmt: skip
    doubles = [" = ".join(group) for group in groups if len({of_patient.get(name, name) for name in group}) == 1]
    report.add(
        "films", "note", "groups of films of one patient with identical pixels", doubles, "each counts as a film"
    )


def look(files: list[str]) -> list[tuple[str, str, tuple[int, int], int, bool]]:
    """Of each file: why it cannot be decoded or "", mode, (width, height), checksum of its pixels, all one grey."""
    found = []
    for file in files:
        try:
            data = images.load(file)
            mode, size = images.header(data, file)
            pixels = images.decode(data, file)
        except UserError as error:
            found.append((str(error), "", (0, 0), 0, False))
            continue
        checksum = zlib.crc32(pixels) << 32 | zlib.adler32(pixels)
        found.append(("", mode, size, checksum, bool(pixels.min() == pixels.max())))
    return found


def _sample(report: Report, files: dict[str, str]) -> None:
    """The size of a few films, by their headers."""
    sizes: Counter = Counter()
    for file in list(files.values())[:: max(len(files) // 20, 1)]:
        try:
            sizes["{}x{}".format(*images.size(file))] += 1
        except UserError as error:
            report.add("films", "missing", "film that cannot be read", [error], f"{AGAIN}; check without --fast")
    report.facts["film_sizes_of_a_sample"] = dict(sizes)
