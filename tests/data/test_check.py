"""Check of a folder: each fault is reported, all faults at once, and nothing is written."""

import errno
import gzip
import json
import os
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import samples
from PIL import Image

from cxrlib import UserError
from cxrlib.data import check, film_quality, images, records, splits


@pytest.fixture
def whole(folder):
    """Folder without faults, with lists and boxes."""
    films = records.read(folder)
    tested = films["patient"] > 12
    (folder / splits.TEST_LIST).write_text("\n".join(films["image"][tested]))
    (folder / splits.TRAIN_LIST).write_text("\n".join(films["image"][~tested]))
    effusion = films["image"][films["Effusion"] == 1].iloc[0]
    (folder / records.BOXES).write_text(
        f"Image Index,Finding Label,Bbox [x,y,w,h],,,\n{effusion},Effusion,1,2,30,40,,,\n"
    )
    return folder


def first_film(folder):
    return sorted((folder / "images").iterdir())[0]


def edit(folder, old, new, name="Data_Entry_2017.csv"):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def append(folder, name, line):
    with (folder / name).open("a") as file:
        file.write("\n" + line)


def blank(folder):
    cv2.imwrite(str(first_film(folder)), np.zeros((20, 20), np.uint8))


def twin(folder, at):
    films = sorted((folder / "images").iterdir())
    shutil.copy(films[0], films[at])


def truncated(folder):
    os.truncate(first_film(folder), 100)


def one_byte_changed(folder):
    film = first_film(folder)
    data = bytearray(film.read_bytes())
    data[len(data) // 2] ^= 1
    film.write_bytes(data)


def bitmap(folder):
    film = first_film(folder)
    film.write_bytes(cv2.imencode(".bmp", np.zeros((20, 20), np.uint8))[1].tobytes())


def instead_of_film(folder, make):
    film = first_film(folder)
    film.unlink()
    make(film)


def colour(folder):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    cv2.imwrite(str(first_film(folder)), pixels)


def sixteen_bits(folder, said=b""):
    values = np.random.default_rng(0).integers(0, 4096, (20, 20), dtype=np.uint16)
    png = cv2.imencode(".png", values)[1].tobytes()
    at = png.index(b"IDAT") - 4
    chunk = struct.pack(">I", len(said)) + b"sBIT" + said + struct.pack(">I", zlib.crc32(b"sBIT" + said))
    first_film(folder).write_bytes(png[:at] + (chunk if said else b"") + png[at:])


def with_orientation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    film = Image.open(first_film(folder))
    film.save(first_film(folder), exif=exif)


def transparent(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    cv2.imwrite(str(first_film(folder)), pixels)


def grey_between(low, high):
    def write(folder):
        cv2.imwrite(str(first_film(folder)), np.random.default_rng(0).integers(low, high, (20, 20), dtype=np.uint8))

    return write


def chest(folder, change):
    """The template of an average chest film, changed."""
    template = film_quality.TEMPLATE
    film = (128 + 0.5 * np.kron(change(template), np.ones((3, 3))) + np.arange(24)).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(first_film(folder)), film)


def two_of_one_name(folder, same):
    target = folder / "images_001" / "images" / first_film(folder).name
    target.parent.mkdir(parents=True)
    shutil.copy(first_film(folder), target) if same else samples.write_film(target, 5, side=30)


BOX = "00000001_001.png,Effusion,{},2,30,40,,,"

FAULTS = {
    "no table": (lambda f: (f / "Data_Entry_2017.csv").unlink(), "table", "error"),
    "empty table": (lambda f: (f / "Data_Entry_2017.csv").write_bytes(b""), "table", "error"),
    "header only": (lambda f: (f / "Data_Entry_2017.csv").write_text(samples.HEADER), "table", "error"),
    "column absent": (lambda f: edit(f, "Patient ID", "Patient"), "table", "error"),
    "broken gzip": (lambda f: (f / "Data_Entry_2017.csv").rename(f / "Data_Entry_2017.csv.gz"), "table", "error"),
    "label unknown": (lambda f: edit(f, "Hernia", "Gout"), "table", "error"),
    "label beside No Finding": (lambda f: edit(f, "Mass|Nodule", "Mass|No Finding"), "table", "error"),
    "name climbs": (lambda f: edit(f, "\n00000001_000", "\n../00000001_000"), "table", "error"),
    "name twice": (lambda f: append(f, "Data_Entry_2017.csv", samples.row(1, 0)), "table", "error"),
    "patient unreadable": (lambda f: edit(f, ",1,50", ",x,50"), "table", "error"),
    "age a word": (lambda f: edit(f, ",50,", ",old,"), "table", "error"),
    "sex unknown": (lambda f: edit(f, ",F,PA", ",Z,PA"), "table", "error"),
    "view lateral": (lambda f: edit(f, ",PA,", ",LL,"), "table", "error"),
    "age impossible": (lambda f: edit(f, ",50,", ",412,"), "table", "warning"),
    "name of another patient": (lambda f: edit(f, ",1,50", ",2,50"), "table", "warning"),
    "no images": (lambda f: shutil.rmtree(f / "images"), "layout", "error"),
    "part of the folders": (lambda f: (f / "images").rename(f / "images_003"), "layout", "warning"),
    "one name, two films": (lambda f: two_of_one_name(f, same=False), "layout", "error"),
    "one film in two folders": (lambda f: two_of_one_name(f, same=True), "layout", "warning"),
    "film absent": (lambda f: first_film(f).unlink(), "files", "missing"),
    "film empty": (lambda f: first_film(f).write_bytes(b""), "files", "missing"),
    "film not named": (lambda f: samples.write_film(f / "images" / "99999999_000.png", 99), "files", "warning"),
    "film truncated": (truncated, "films", "missing"),
    "film with a byte changed": (one_byte_changed, "films", "missing"),
    "film a bitmap": (bitmap, "films", "missing"),
    "film a folder": (lambda f: instead_of_film(f, lambda film: film.mkdir()), "files", "missing"),
    "film a link to nowhere": (lambda f: instead_of_film(f, lambda film: film.symlink_to("/no")), "files", "missing"),
    "film a web page": (lambda f: first_film(f).write_text("<html>"), "films", "missing"),
    "film of another size": (lambda f: samples.write_film(first_film(f), 50, side=30), "films", "warning"),
    "film in colour": (colour, "films", "note"),
    "film of 16 bits": (sixteen_bits, "films", "warning"),
    "film of 16 bits that says its depth": (lambda f: sixteen_bits(f, b"\x0c"), "films", "note"),
    "film with an EXIF orientation": (with_orientation, "films", "warning"),
    "film with transparent parts": (transparent, "films", "warning"),
    "film nearly black": (grey_between(0, 20), "films", "warning"),
    "film nearly white": (grey_between(235, 256), "films", "warning"),
    "film of few grey levels": (grey_between(100, 140), "films", "warning"),
    "film inverted": (lambda f: chest(f, np.negative), "films", "warning"),
    "film turned": (lambda f: chest(f, np.rot90), "films", "warning"),
    "film inverted and turned": (lambda f: chest(f, lambda t: -np.rot90(t)), "films", "warning"),
    "picture of no chest": (lambda f: samples.write_film(first_film(f), 0, side=128), "films", "warning"),
    "film not square": (
        lambda f: cv2.imwrite(str(first_film(f)), np.eye(20, 30, dtype=np.uint8) * 99),
        "films",
        "note",
    ),
    "film blank": (blank, "films", "warning"),
    "films identical": (lambda f: twin(f, 1), "films", "note"),
    "films identical under two patients": (lambda f: twin(f, 30), "films", "warning"),
    "list absent": (lambda f: (f / splits.TEST_LIST).unlink(), "lists", "warning"),
    "list empty": (lambda f: (f / splits.TEST_LIST).write_text(""), "lists", "error"),
    "list of more films": (lambda f: append(f, splits.TEST_LIST, "77777777_000.png"), "lists", "note"),
    "list with a line cut off": (
        lambda f: edit(f, "00000001_000.png", "00000001_0", splits.TRAIN_LIST),
        "lists",
        "error",
    ),
    "lists overlap": (lambda f: append(f, splits.TEST_LIST, "00000001_000.png"), "lists", "error"),
    "film in no list": (lambda f: edit(f, "00000001_000.png\n", "", splits.TRAIN_LIST), "lists", "error"),
    "list names a film twice": (lambda f: append(f, splits.TRAIN_LIST, "00000001_000.png"), "lists", "error"),
    "box outside": (lambda f: append(f, records.BOXES, BOX.format(1020)), "boxes", "warning"),
    "box left of the film": (lambda f: append(f, records.BOXES, BOX.format(-5)), "boxes", "warning"),
    "box not a number": (lambda f: append(f, records.BOXES, BOX.format("wide")), "boxes", "error"),
    "box on an unknown film": (lambda f: append(f, records.BOXES, "9_9.png,Mass,1,2,3,4,,,"), "boxes", "warning"),
    "box of an unknown finding": (lambda f: append(f, records.BOXES, "9_9.png,Gout,1,2,3,4,,,"), "boxes", "error"),
    "box that labels deny": (lambda f: append(f, records.BOXES, "00000001_000.png,Mass,1,2,3,4,,,"), "boxes", "note"),
    "box file empty": (lambda f: (f / records.BOXES).write_text(""), "boxes", "error"),
}


def snapshot(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_whole_folder_is_fit(whole):
    report = check.folder(whole, progress=False)
    assert report.problems == []
    assert report.fit
    assert report.facts["film_sizes"] == {"20x20": 40}
    assert report.facts["patients"] == 16
    report.require()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name, whole):
    spoil, group, level = FAULTS[name]
    spoil(whole)
    before = snapshot(whole)
    report = check.folder(whole, progress=False)
    assert (group, level) in {(problem.group, problem.level) for problem in report.problems}, str(report)
    assert report.fit == (level in ("warning", "note"))
    assert json.loads(json.dumps(report.to_json()))["fit"] == report.fit
    assert snapshot(whole) == before


SAID = {
    "film of 16 bits": "16-bit films whose bit depth is a guess: 12 bits (up to 40",
    "film of 16 bits that says its depth": "16-bit films that say how many bits they use: 12 bits (up to 40",
    "film with an EXIF orientation": "films with an EXIF orientation: 6",
    "film with transparent parts": "films with transparent parts",
    "film nearly black": "films with unusual grey levels: nearly black (mean 9 of 255)",
    "film nearly white": "films with unusual grey levels: nearly white (mean 24",
    "film of few grey levels": "films with unusual grey levels: 40 grey levels",
    "film inverted": "films that look like negatives",
    "film turned": "films that look turned: to the left",
    "film not square": "films that are not square: 30x20",
    "film in colour": "films in colour or with alpha",
    "film inverted and turned": "films that look like negatives: to the left",
    "picture of no chest": "pictures that do not look like frontal chest films: it is noise",
    "film blank": "films with only one grey level",
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_of_a_film_stands_under_its_name_and_in_a_group(name, whole):
    FAULTS[name][0](whole)
    report = check.folder(whole, progress=False)
    film = first_film(whole).name
    assert list(report.remarks) == [film]
    (remark,) = [remark for remark in report.remarks[film] if remark.startswith(SAID[name])]
    what = remark.split(": ")[0]
    (problem,) = [problem for problem in report.problems if problem.what == what]
    assert (problem.count, problem.examples[0].split()[0]) == (1, film)
    assert report.to_json()["remarks"] == report.remarks
    assert f"{what} (1): {film}" in str(report)


def test_a_group_is_counted_whole_and_each_of_its_films_has_its_remark(whole):
    for file in (whole / "images").iterdir():
        pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(file), pixels.astype(np.uint16) * 16)
    report = check.folder(whole, progress=False)
    assert report.fit
    assert report.facts["bits_used"] == {"12 of 16": 40}
    assert "bits used: 12 of 16 (40)" in str(report)
    assert len(report.remarks) == 40
    assert not any("grey levels" in remark for remarks in report.remarks.values() for remark in remarks)


def test_a_depth_that_is_certain_is_no_guess(whole):
    """Values of which some need all 16 bits; but the dark film among them could be one of 12."""
    for file in (whole / "images").iterdir():
        cv2.imwrite(str(file), cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 257)
    assert check.folder(whole, progress=False).problems == []
    pixels = cv2.imread(str(first_film(whole)), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(first_film(whole)), pixels >> 4)
    report = check.folder(whole, progress=False)
    assert report.facts["bits_used"] == {"16 of 16": 40}
    guessed = [name for name, remarks in report.remarks.items() if "guess" in str(remarks)]
    assert guessed == [first_film(whole).name]
    assert any("nearly black" in remark for remark in report.remarks[first_film(whole).name])


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_film_that_may_not_be_read_is_not_called_damaged(number, whole, monkeypatch):
    path, opened = str(first_film(whole)), os.open

    def guarded(name, *rest, **more):
        if str(name) == path:
            raise OSError(number, os.strerror(number))
        return opened(name, *rest, **more)

    monkeypatch.setattr(os, "open", guarded)
    (problem,) = check.folder(whole, progress=False).problems
    assert (problem.level, problem.what) == ("missing", "films that the system does not let us read")
    assert problem.examples == [f"{first_film(whole).name} cannot be read: {os.strerror(number)}"]
    assert "download" not in problem.advice


def test_a_shortage_of_the_system_ends_the_check_with_its_cause(whole, monkeypatch):
    def failing(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(UserError, match=r"Too many open files; raise the limit with ulimit -n"):
        check.folder(whole, progress=False)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_among_the_films_are_neither_read_nor_waited_for(kind, whole):
    film = first_film(whole)
    film.unlink()
    os.mkfifo(film) if kind == "pipe" else film.symlink_to("/dev/zero")
    (problem,) = check.folder(whole, progress=False).problems
    assert (problem.what, problem.examples) == ("films of the table absent", [film.name])


@pytest.mark.real
@pytest.mark.parametrize(
    ("case", "what", "count"),
    [
        ("twelve_bits_in_sixteen", "16-bit films whose bit depth is a guess", 9),
        ("exif_turned", "films with an EXIF orientation", 9),
        ("inverted", "films that look like negatives", 4),
    ],
)
def test_films_as_people_have_them_are_read_rightly_and_it_is_said(case, what, count, cases):
    report = check.folder(cases / case, progress=False)
    assert report.fit
    assert [(problem.what, problem.count) for problem in report.problems if problem.group == "films"] == [(what, count)]


def test_all_faults_at_once(whole):
    for name in ("label unknown", "age a word", "film not named", "film truncated", "lists overlap", "box outside"):
        FAULTS[name][0](whole)
    report = check.folder(whole, progress=False)
    groups = {problem.group for problem in report.problems}
    assert groups == {"table", "files", "films", "lists", "boxes"}
    text = str(report)
    assert "line 5 'Gout'" in text
    assert text.endswith("not usable: correct the errors above first")


def test_the_report_is_for_people(whole):
    samples.write_film(first_film(whole), 50, side=30)
    truncated_film = sorted((whole / "images").iterdir())[1]
    os.truncate(truncated_film, 100)
    two_of_one_name(whole, same=True)
    text = str(check.folder(whole, progress=False))
    assert "film sizes: 20x20 (38), 30x30 (1)" in text
    assert "image folders: 2" in text  # images_001 has no films itself
    assert f"films of another size than 20x20 (1): {first_film(whole).name} 30x30" in text
    assert f"films that cannot be decoded (1): {truncated_film.name} is damaged (truncated)\n" in text
    assert max(len(line) for line in text.splitlines()) < 200


def test_missing_films_are_fit_only_when_allowed(whole):
    truncated(whole)
    report = check.folder(whole, progress=False)
    assert not report.fit
    assert report.fit_without_missing
    report.require(allow_missing=True)
    with pytest.raises(
        UserError, match=r"films that cannot be decoded \(1\): 0\S+png is damaged \(truncated\)\. See .*cxr check"
    ):
        report.require()
    FAULTS["label unknown"][0](whole)
    with pytest.raises(UserError, match="Finding Labels"):
        check.folder(whole, progress=False).require(allow_missing=True)


def test_fast_decodes_nothing(whole, monkeypatch):
    truncated(whole)
    for name in ("decode", "decode_film"):
        monkeypatch.setattr(images, name, None)
    report = check.folder(whole, fast=True, progress=False)
    assert report.fit
    assert "not decoded" in str(report)


def test_fast_sees_empty_and_absent_files(whole):
    first_film(whole).write_bytes(b"")
    sorted((whole / "images").iterdir())[1].unlink()
    counts = {problem.what: problem.count for problem in check.folder(whole, fast=True, progress=False).problems}
    assert counts == {"films of the table absent": 1, "empty files": 1}


def test_examples_are_few_and_the_count_is_whole(whole):
    shutil.rmtree(whole / "images")
    samples.write_film(whole / "images" / "00000001_000.png", 0)
    problem = next(p for p in check.folder(whole, progress=False).problems if p.group == "files")
    assert problem.count == 39
    assert len(problem.examples) == check.EXAMPLES


def test_a_folder_that_is_not_there_and_a_file(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path / "file"):
        report = check.folder(path, progress=False)
        assert not report.fit
        assert "not a folder" in str(report)


def test_a_gzipped_table_is_as_good(whole):
    csv = whole / "Data_Entry_2017.csv"
    (whole / "Data_Entry_2017.csv.gz").write_bytes(gzip.compress(csv.read_bytes()))
    csv.unlink()
    assert check.folder(whole, progress=False).fit


def test_processes_find_the_same(whole, monkeypatch):
    truncated(whole)
    one = check.folder(whole, progress=False, workers=1).to_json()
    monkeypatch.setattr(check, "CHUNK", 4)
    assert check.folder(whole, progress=False, workers=2).to_json() == one


@pytest.mark.real
def test_original_films_are_fit(nih_fullres):
    report = check.folder(nih_fullres, progress=False)
    assert report.fit
    assert report.facts["film_modes"] == {"L": 90, "RGBA": 6}
    assert report.facts["film_sizes"] == {"1024x1024": 96}
