"""The leak campaign: ways to bring a trained patient into the test part, each refused, or recorded as unknown.

Networks are one weight here, since no way depends on what was learnt; films are smooth noise, so that a picture is
recognised by nothing but itself; what a real one is recognised by is in ``data/test_pixel_hash``.
"""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from cxrlib import UserError, paths
from cxrlib.data import check, film_identity, records, splits, store
from cxrlib.labels import FINDINGS
from cxrlib.phantom import phantom
from cxrlib.report import report
from cxrlib.training import checkpoint, lineage, schedules
from cxrlib.workbook import pipeline

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
SIZE = 64


def picture(number, size=SIZE):
    """A film's pixels by its number: smooth noise over the whole range."""
    noise = np.random.default_rng(number).normal(size=(16, 16)).astype(np.float32)
    smooth = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def name(patient, film):
    return f"{patient:08d}_{film:03d}.png"


class Folder:
    """A data folder: films of a patient each by file name, as (patient's number, pixels)."""

    def __init__(self, where, films, dataset=""):
        self.where = where
        (where / "images").mkdir(parents=True)
        rows = [HEADER]
        for i, (file, (patient, pixels)) in enumerate(films.items()):
            how = [cv2.IMWRITE_JPEG_QUALITY, 75] if file.endswith(".jpg") else []
            coded = cv2.imencode(Path(file).suffix, pixels, how)[1]
            (where / "images" / file).write_bytes(coded)
            rows.append(f"{file},{FINDINGS[i % 14]},0,{patient},50,F,PA")
        (where / records.TABLES[0]).write_text("\n".join(rows) + "\n")
        if dataset:
            (where / records.DATASET).write_text(dataset + "\n")

    @property
    def films(self):
        return records.read(self.where)

    def part(self, *numbers, size=SIZE):
        """Batches, as far as lineage looks at them, of the films of these patients."""
        films = self.films
        pixels = store.build(films, size, progress=False)
        return SimpleNamespace(films=films[films["patient"].isin(numbers)].reset_index(drop=True), store=pixels)


def usual(first=1, last=9):
    """Two films each of patients, named as NIH names its own."""
    return {name(p, k): (p, picture(100 * p + k)) for p in range(first, last + 1) for k in (0, 1)}


@pytest.fixture
def nih(tmp_path):
    return Folder(tmp_path / "nih", usual())


def save(train, val=None, *, run="one", stage=1, parent=None, weights="none", value=0.0, lr=1e-3):
    """The only, and so best, checkpoint of a run's stage."""
    recipe = schedules.recipe("scratch", stage, lr=lr)
    line = lineage.of_stage(parent, weights, *filter(None, (train, val)))
    where = paths.Run(run).stage(stage)
    made = checkpoint.save(where, {"fc.bias": torch.full((15,), value)}, recipe, line, epoch=1, metrics={})
    paths.write_json(where / "best.json", {"best": made.stem})
    return made


def of_format_1(path):
    """The checkpoint as the version before wrote it: who was trained on in its JSON alone, and nothing guarded."""
    state, meta = checkpoint.read_tensors(path)
    numbers = np.concatenate([*lineage.seen_by(path)["trained"].patients.values()])
    old = {key: value for key, value in meta.items() if key not in ("seen", "gaps", "sha256")}
    return checkpoint.write_tensors(
        path.with_suffix(""), state, {**old, "format": 1, "patients": lineage.pack_numbers(numbers)}
    )


def ask(line, tested, **how):
    line = [line] if isinstance(line, Path) else line
    return lineage.refuse_leak(line, tested.films, tested.store, **how)


def renamed(films):
    return {f"film_{i}.png": film for i, film in enumerate(films.values())}


def renumbered(films, by=500):
    return {file: (patient + by, pixels) for file, (patient, pixels) in films.items()}


def redrawn(films, change, suffix=".png"):
    return {f"{Path(file).stem}{suffix}": (patient, change(pixels)) for file, (patient, pixels) in films.items()}


# Patients 1 to 3 were trained on, 4 chose the epoch, 9 is nobody's. Each way is a folder whose first patient is tested.
DISGUISES = {
    "the very folder": lambda films: films,
    "film renamed": renamed,
    "patient renumbered, name kept": renumbered,
    "film renamed and patient renumbered": lambda films: renamed(renumbered(films)),
    "encoded again as JPEG": lambda films: renamed_to(redrawn(renumbered(films), np.copy, ".jpg"), ".jpg"),
    "a mirror at another size": lambda films: renamed(
        redrawn(renumbered(films), lambda pixels: cv2.resize(pixels, (100, 100), interpolation=cv2.INTER_AREA))
    ),
    "a negative": lambda films: renamed(redrawn(renumbered(films), lambda pixels: 255 - pixels)),
    "another exposure's range": lambda films: renamed(
        redrawn(renumbered(films), lambda pixels: (40 + pixels * 0.6).astype(np.uint8))
    ),
}


def renamed_to(films, suffix):
    return {f"film_{i}{suffix}": film for i, film in enumerate(films.values())}


@pytest.mark.parametrize("way", DISGUISES)
@pytest.mark.parametrize("patient", [1, 4])
def test_a_film_seen_is_refused_in_every_disguise(nih, tmp_path, way, patient):
    made = save(nih.part(1, 2, 3), nih.part(4))
    own = {file: film for file, film in usual().items() if film[0] == patient}
    other = Folder(tmp_path / "other", DISGUISES[way](own))
    films = other.films
    with pytest.raises(UserError, match=r"saw 1 of the 1 patients to be tested.*film .* is ") as refused:
        ask(made, other.part(*films["patient"]))
    assert made.stem in str(refused.value)
    assert ("was trained on" if patient == 1 else "chose its epoch") in str(refused.value)
    marked = ask(made, other.part(*films["patient"]), allow=True)
    assert marked["patients"].tolist() == [1]
    clean = Folder(tmp_path / "clean", DISGUISES[way]({file: film for file, film in usual().items() if film[0] == 9}))
    assert ask(made, clean.part(*clean.films["patient"]))["patients"].tolist() == [0]


def test_the_pair_is_named(nih, tmp_path):
    made = save(nih.part(1))
    other = Folder(tmp_path / "other", {"x.png": (700, picture(101))})
    with pytest.raises(UserError, match=r"film x\.png is the image 00000001_001\.png, which was trained on"):
        ask(made, other.part(700))
    with pytest.raises(UserError, match=r"film 00000001_000\.png is of patient nih:1, who was trained on"):
        ask(made, nih.part(1, 9))


def test_a_film_of_a_trained_patient_that_was_not_trained_on_itself_is_refused(nih, tmp_path):
    train = nih.part(1)
    train.films = train.films.head(1)
    later = Folder(tmp_path / "later", {name(1, 7): (1, picture(7)), "unnamed.png": (1, picture(8))})
    for film in later.films["image"]:
        tested = later.part(1)
        tested.films = tested.films[tested.films["image"] == film]
        with pytest.raises(UserError, match="of patient"):
            ask(save(train), tested)


def test_every_stage_of_the_line_is_asked_not_only_the_last(nih):
    first = save(nih.part(1, 2, 9), stage=1)
    last = save(nih.part(1, 2), stage=2)  # no child of the first
    with pytest.raises(UserError, match=r"stage 2 \(.*not trained from stage 1 as it is now .*--run one --stage 2"):
        lineage.stage_checkpoints(paths.Run("one"))
    assert ask(last, nih.part(9))["patients"].tolist() == [0]
    with pytest.raises(UserError, match=f"checkpoint {first.stem} or an ancestor saw 1 of the 1"):
        ask([first, last], nih.part(9))


def test_a_chain_across_runs_is_followed_where_the_ancestors_files_are_gone(nih):
    one = save(nih.part(1), nih.part(4), run="one")
    two = save(nih.part(2), run="two", stage=2, parent=one)
    three = save(nih.part(3), run="three", stage=3, parent=two)
    for gone in ("one", "two"):
        shutil.rmtree(paths.Run(gone).root)
    for patient in (1, 2, 3, 4):
        with pytest.raises(UserError, match=f"nih:{patient}"):
            ask(three, nih.part(patient))


def test_our_own_checkpoint_as_starting_weights_brings_its_past(nih, tmp_path):
    source = save(nih.part(1), nih.part(4), run="source")
    taken = {
        "where it lies": source,
        "copied with its JSON": tmp_path / source.name,
        "alone": tmp_path / "mine.safetensors",
    }
    shutil.copy(source, tmp_path)
    shutil.copy(source.with_suffix(".json"), tmp_path)
    shutil.copy(source, taken["alone"])
    for k, weights in enumerate(taken.values()):
        made = save(nih.part(2), run=f"child{k}", weights=str(weights))
        assert "2 patients" in checkpoint.read_meta(made)["origin"]
        for patient in (1, 4):
            with pytest.raises(UserError, match=f"nih:{patient}"):
                ask(made, nih.part(patient))
        assert ask(made, nih.part(9))["unknown"].tolist() == [""]


def test_an_older_checkpoint_as_starting_weights_is_known_by_its_hash(nih, tmp_path):
    source = of_format_1(save(nih.part(1), run="source"))
    shutil.copy(source, tmp_path / "mine.safetensors")
    made = save(nih.part(2), weights=str(tmp_path / "mine.safetensors"))
    with pytest.raises(UserError, match="nih:1"):
        ask(made, nih.part(1))
    assert "what the starting weights mine.safetensors had seen" in ask(made, nih.part(9))["unknown"][0]


def test_what_was_unknown_in_training_and_is_found_since_is_asked(nih, tmp_path):
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"somebody's")
    made = save(nih.part(2), weights=str(weights))
    assert ask(made, nih.part(1))["unknown"].tolist() == ["what the starting weights w.pth had seen"]
    Path(f"{weights}{lineage.LIST}").write_text("00000001_000.png\n")
    with pytest.raises(UserError, match="nih:1"):
        ask(made, nih.part(1))


def test_a_checkpoint_stripped_of_its_past_is_unknown_on_the_reports_first_screen(nih, tmp_path):
    stripped = tmp_path / "w.safetensors"
    save_file(checkpoint.read_tensors(save(nih.part(1), run="source"))[0], stripped)
    made = save(nih.part(2), weights=str(stripped))
    child = save(nih.part(3), stage=2, parent=made)
    table = ask([made, child], nih.part(1))
    assert table["patients"].tolist() == [0, 0]
    home = paths.Run("one")
    home.tables.mkdir(parents=True)
    table.to_csv(home.tables / "lineage.csv", index=False)
    page = report.build("one").read_text()
    assert "what the starting weights w.safetensors had seen" in page[: page.index("<main>")]


def test_an_edited_json_is_refused(nih):
    made = save(nih.part(1), nih.part(4))
    described = made.with_suffix(".json")
    meta = paths.read_json(described)  # without the guard
    empty = {role: {} for role in lineage.ROLES}
    forged = {
        "seen": empty,
        "origin": "nothing at all",
        "weights": "IMAGENET1K_V2",
        "ancestors": [{"name": "x"}],
        "gaps": ["x"],
        "format": 1,
    }
    for key, value in forged.items():
        described.write_text(json.dumps({**meta, key: value, "patients": ""}))
        with pytest.raises(UserError, match=f"was changed or damaged: its {key} is not"):
            ask(made, nih.part(1))
    described.write_text(json.dumps({key: value for key, value in meta.items() if key != "seen"}))
    with pytest.raises(UserError, match="it lacks seen"):
        ask(made, nih.part(1))
    described.write_text(json.dumps({**meta, "attached": {"calibration": 1}}))  # what travels may change
    with pytest.raises(UserError, match="nih:1"):
        ask(made, nih.part(1))


def test_a_lost_json_is_told_and_an_edited_file_is_damaged(nih):
    made = save(nih.part(1))
    text = made.with_suffix(".json").read_bytes()
    made.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"\.json is not there"):
        ask(made, nih.part(1))
    made.with_suffix(".json").write_bytes(text)
    content = made.read_bytes()
    made.write_bytes(content.replace(b"validated", b"valid4ted"))
    with pytest.raises(UserError, match=r"damaged|changed"):
        ask(made, nih.part(1))
    save_file({"fc.bias": torch.zeros(15)}, made)  # its header taken out
    with pytest.raises(UserError, match="not the file its JSON describes"):
        ask(made, nih.part(1))


def test_an_older_checkpoint_still_loads_and_counts_for_any_dataset(nih, tmp_path):
    old = of_format_1(save(nih.part(1), nih.part(4)))
    with pytest.raises(UserError, match="nih:1"):
        ask(old, nih.part(1))
    other = Folder(tmp_path / "other", {"x.png": (1, picture(5))}, dataset="our-hospital")
    with pytest.raises(UserError, match="our-hospital:1"):
        ask(old, other.part(1))
    child = save(nih.part(2), stage=2, parent=old)
    for path in (old, child):
        assert "validation patients" in ask(path, nih.part(9))["unknown"][0]
    with pytest.raises(UserError, match="nih:1"):
        ask(child, nih.part(1))


def test_lists_that_come_later_and_another_seed_change_the_test_part_and_are_refused(tmp_path):
    folder = Folder(tmp_path / "d", {name(p, 0): (p, picture(p)) for p in range(1, 41)})
    films = folder.films
    pixels = store.build(films, SIZE, progress=False)
    drawn = splits.make(films, folder.where, seed=0)
    made = save(*(SimpleNamespace(films=part, store=pixels) for part in (drawn.train, drawn.val)))
    assert lineage.refuse_leak([made], drawn.test, pixels)["patients"].tolist() == [0]
    with pytest.raises(UserError, match="patients to be tested"):
        lineage.refuse_leak([made], splits.make(films, folder.where, seed=1).test, pixels)
    (folder.where / splits.TEST_LIST).write_text("\n".join(drawn.train["image"].head(8)) + "\n")
    listed = splits.make(films, folder.where, seed=0)
    with pytest.raises(UserError, match="saw 8 of the 8 patients"):
        lineage.refuse_leak([made], listed.test, pixels)


def test_a_split_over_row_numbers_is_told_first_and_refused_last(tmp_path):
    films = {name(1 + row // 4, row % 4): (row + 1, picture(row)) for row in range(36)}  # row number for patient
    folder = Folder(tmp_path / "d", films)
    parts = splits.make(folder.films, folder.where)
    told = pipeline.data(str(folder.where))["doubts"]
    both = len(
        set(film_identity.patients_in_names(parts.test))
        & {*film_identity.patients_in_names(parts.train), *film_identity.patients_in_names(parts.val)}
    )
    assert both > 0
    assert len(told) == 1
    assert "35 films have another patient in their name than in their row, first 00000001_001.png" in told[0]
    assert f"by their names {both} patients are in training and in test" in told[0]
    pixels = store.build(folder.films, SIZE, progress=False)
    made = save(*(SimpleNamespace(films=part, store=pixels) for part in (parts.train, parts.val)))
    with pytest.raises(UserError, match="of patient nih:"):
        lineage.refuse_leak([made], parts.test, pixels)
    (folder.where / records.DATASET).write_text("our-hospital")  # whose names mean nothing
    assert pipeline.data(str(folder.where))["doubts"] == []


def test_one_picture_under_two_patients_is_told_as_soon_as_films_are_decoded_and_refused(tmp_path):
    blank = np.full((SIZE, SIZE), 7, np.uint8)
    films = usual(last=6) | {name(7, 0): (7, picture(100)), name(8, 0): (8, blank), name(9, 0): (9, blank)}
    folder = Folder(tmp_path / "d", films)
    assert pipeline.data(str(folder.where), size=SIZE)["doubts"] == []
    made = save(folder.part(1, 2, 8))
    told = pipeline.data(str(folder.where), size=SIZE)["doubts"]
    assert told == [
        "1 images appear under two patients, first 00000001_000.png = 00000007_000.png; keep one film of each"
    ]
    with pytest.raises(UserError, match=r"00000007_000\.png is the image 00000001_000\.png"):
        ask(made, folder.part(7))
    assert ask(made, folder.part(9))["patients"].tolist() == [0]  # blank films are nobody's picture


def test_check_tells_one_picture_under_two_patients_by_the_table_not_by_names(tmp_path):
    films = {"film_1.png": (1, picture(1)), "film_2.png": (2, picture(1))}
    films |= {"a.png": (3, picture(3)), "b.png": (3, picture(3))}
    found = check.folder(Folder(tmp_path / "d", films).where, progress=False)
    told = {one.what: one.examples for one in found.problems}
    assert told["groups of films with identical pixels under two patients"] == ["film_1.png = film_2.png"]
    assert told["groups of films of one patient with identical pixels"] == ["a.png = b.png"]


def test_a_folder_that_names_its_dataset_after_training_is_known_by_its_pictures(nih):
    made = save(nih.part(1))
    (nih.where / records.DATASET).write_text("our-hospital")
    with pytest.raises(UserError, match=r"is the image 00000001_000\.png"):
        ask(made, nih.part(1))


def test_123_of_one_hospital_is_not_123_of_another(nih, tmp_path):
    made = save(nih.part(1, 2, 3), nih.part(4))
    other = Folder(tmp_path / "other", {name(p, 0): (p, picture(900 + p)) for p in (1, 4)}, dataset="our-hospital")
    assert ask(made, other.part(1, 4))["patients"].tolist() == [0]
    drawn = phantom.write(tmp_path / "phantom", images=12, size=64)
    assert set(film_identity.patients_by_dataset(records.read(drawn))) == {"phantom-0"}
    undeclared = Folder(tmp_path / "undeclared", {"x.png": (1, picture(901))})  # may be anybody's 1
    with pytest.raises(UserError, match="unnamed:1"):
        ask(made, undeclared.part(1))


@pytest.mark.parametrize("word", ["", "Our Hospital", "unnamed", "a:b", "-x"])
def test_a_dataset_that_is_no_word_is_refused(nih, word):
    (nih.where / records.DATASET).write_text(word)
    with pytest.raises(UserError, match=r"dataset\.txt holds"):
        records.read(nih.where)


# The notebooks that read test films.


def run_cells(book, given, wanted):
    cells = json.loads((paths.notebooks() / f"{book}.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    imports = next(source for source in sources if "import matplotlib" in source)
    exec("\n".join(row for row in imports.splitlines() if "import" in row), given)
    for source in sources:
        if any(word in source for word in wanted):
            exec(source, given)
    return given


@pytest.mark.parametrize("allow", [False, True])
def test_the_evaluation_asks_every_stage_and_a_leak_that_is_allowed_marks_the_report(nih, allow):
    parts = splits.make(nih.films, nih.where)
    pixels = store.build(nih.films, SIZE, progress=False)
    first = save(SimpleNamespace(films=parts.test, store=pixels), stage=1)
    save(SimpleNamespace(films=parts.train, store=pixels), stage=2, parent=first)
    home = paths.Run("one")
    given = {
        "folder": home,
        "ckpt": "",
        "data": str(nih.where),
        "size": SIZE,
        "exclude": "",
        "uncertain": "unknown",
        "allow_missing": False,
        "seed": 0,
    }
    given |= {"allow_leak": allow, "run": "one"}
    wanted = ("lineage.stage_checkpoints(folder)", "lineage.refuse_leak", "splits.summary(parts)")
    if not allow:
        with pytest.raises(UserError, match="to be tested"):
            run_cells("06_evaluation", given, wanted)
        return
    run_cells("06_evaluation", given, wanted)
    count = parts.test["patient"].nunique()
    assert pd.read_csv(home.tables / "lineage.csv")["patients"].tolist() == [count, count]
    page = report.build("one").read_text()
    assert f"seen {count} of the test patients" in page[: page.index("<main>")]


def test_the_boxes_are_asked_for_too(nih, monkeypatch):
    parts = splits.make(nih.films, nih.where)
    pixels = store.build(nih.films, SIZE, progress=False)
    save(SimpleNamespace(films=parts.test, store=pixels))
    monkeypatch.setattr(checkpoint, "load_into", lambda model, path: None)
    given = {
        "folder": paths.Run("one"),
        "ckpt": "",
        "data": str(nih.where),
        "size": SIZE,
        "exclude": "",
        "uncertain": "unknown",
        "allow_missing": False,
    }
    with pytest.raises(UserError, match="to be tested"):
        run_cells("07_localisation", {**given, "allow_leak": False, "seed": 0}, ("lineage.refuse_leak",))


def test_on_the_official_part_a_like_image_is_told_and_a_patient_is_refused(nih, monkeypatch):
    """Its lists may hold one image under two patients: the benchmark's own, known only after a night of training."""
    pixels = store.build(nih.films, SIZE, progress=False)
    patients = nih.films["patient"].unique()
    trained = nih.films[nih.films["patient"] == patients[0]].head(1)
    other = nih.films[nih.films["patient"] == patients[1]].head(1)
    path = save(SimpleNamespace(films=trained, store=pixels), stage=1)
    monkeypatch.setattr(
        lineage.TestedFilms, "by_picture", lambda self, known: {0: "twin.png"} if len(known.names) else {}
    )
    with pytest.raises(UserError, match=r"twin\.png"):
        lineage.refuse_leak([path], other, pixels)
    monkeypatch.setattr(splits, "OFFICIAL_NAMES", hashlib.sha256(other["image"].iloc[0].encode()).hexdigest())
    (row,) = lineage.refuse_leak([path], other, pixels).itertuples()
    assert (row.patients, row.films, row.first) == (0, 1, "")
    assert "twin.png" in row.unknown
    monkeypatch.setattr(splits, "OFFICIAL_NAMES", hashlib.sha256(trained["image"].iloc[0].encode()).hexdigest())
    with pytest.raises(UserError, match="is of patient"):
        lineage.refuse_leak([path], trained, pixels)
