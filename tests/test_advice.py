"""Advice in messages: each kind is followed here, word for word, and the command then works.

A walk of the code lists all messages that say what to do with a file, a step or a command. Each must be of a kind in
``FOLLOWED``, or in ``EXCEPTIONS`` with the reason. So a message with a new advice fails until a test follows it.
"""

import ast
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from training import tiny

from cxrlib import UserError, disk, paths
from cxrlib.data import exclusion, records, splits, store
from cxrlib.evaluation import reading
from cxrlib.training import checkpoint
from cxrlib.workbook import run_record
from data import samples

ROOT = Path(__file__).resolve().parents[1]

ADVICE = re.compile(
    r"\b(delete|remove|move it|put|restore|again|wait for it|make room|copy|run|correct its permissions)\b"
)

FOLLOWED = {
    "test_a_file_of_films_is_downloaded_again": r"(download|export( or download)?) it again",
    "test_a_film_that_is_no_file_is_removed": r"(in its header, more than \{\}|more than \{\} pixels in its header"
    r"|not a file|more than a film can have|larger than a report can be); remove it$",
    "test_permissions_are_corrected": r"correct its permissions|look at the disk or the network, and run again"
    r"|The file is not damaged",
    "test_a_film_is_restored_or_left_out": r"restore the film, or use --allow-missing",
    "test_a_row_is_restored": r"restore (it|the line)|complete or remove it|remove (one of its rows|the wrong one)",
    "test_an_empty_list_is_removed": r"or remove (exclude|both lists|it|the file)",
    "test_a_file_of_a_stage_is_deleted_and_the_stage_run_again": r"delete it so that it is made again"
    r"|delete it, and run the stage again|run the stage again$|run its notebook to the end",
    "test_a_checkpoint_is_trained_again_or_copied_once_more": r"train it again|copy (both|it) once more",
    "test_a_lock_is_waited_for": r"wait for it, or use another --run",
    "test_room_is_made": r"make room on it",
    "test_a_record_is_deleted_and_the_settings_given_again": r"delete it and give the run's settings again",
    "test_a_store_is_built_again": r"run cxr run or cxr store again",
}
"""Tests that follow an advice, and the advice."""

EXCEPTIONS = {
    r"06_evaluation|01_stage1 first": "needs a trained run; tests/test_chain executes the notebooks",
    r"predict again|choose them again|choose them again by|fit it again": "the same, predicted by the notebook itself",
    r"Hub|huggingface_hub|labels could not be downloaded|is not the file of labels|disk is full: ": "needs a network",
    r"the GPU failed": "needs a card that fails",
    r"stages after it again": "tests/test_stale trains them again",
    r"--run (elsewhere|NAME)|another (name with )?--run|another --to|CXR_PROJECT": "another name; the command's tests",
    r"^--seeds": "another number; tests/workbook/test_pipeline",
    r"for the one that is older|predicts again": "needs trained runs; tests/workbook/test_averaging",
    r"^soft labels of": "a caller's mistake, of no file of the user's",
    r"run the same again to resume|save it as UTF-8": "tests/training/test_fit and tests/data/test_tables follow it",
    r"so that it is downloaded again": "needs a network",
    r"put it there": "tests/data/test_sources has the folder with and without the file",
    r"it is of other films": "predicted by the notebook itself",
}
"""Advice that is not followed here, and why."""


def text(node: ast.AST) -> str:
    """Text of an expression; {} for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return text(node.left) + text(node.right) if isinstance(node, ast.BinOp) else "{}"


def advising_messages() -> list[tuple[str, str]]:
    """Messages of errors in the package that advise something after a semicolon, each with its file."""
    found = []
    for file in sorted((ROOT / "cxrlib").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                words = text(node.args[0]) if node.args else ""
                if ADVICE.search(words.partition(";")[2]):
                    found.append((file.name, words))
    return found


def test_every_advice_is_followed_by_a_test_or_excepted_with_a_reason():
    messages = advising_messages()
    assert len(messages) > 90
    patterns = [*FOLLOWED.values(), *EXCEPTIONS]
    new = [message for message in messages if not any(re.search(pattern, message[1]) for pattern in patterns)]
    assert new == [], "follow it in a test here, and name the test in FOLLOWED"
    said = " ".join(words for _, words in messages) + (ROOT / "cxrlib/data/store.py").read_text()
    assert [name for name, pattern in FOLLOWED.items() if not re.search(pattern.replace("$", ""), said)] == []
    assert all(callable(globals().get(name)) for name in FOLLOWED)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(paths, "_sync", lambda path: None)


@pytest.fixture
def data(tmp_path) -> Path:
    folder = samples.write_folder(tmp_path / "nih", films=6)
    names = sorted(film.name for film in folder.glob("images/*.png"))
    last = [name for name in names if name[:8] == names[-1][:8]]  # of one patient
    for file, part in (("train_val_list.txt", [name for name in names if name not in last]), ("test_list.txt", last)):
        (folder / file).write_text("".join(f"{name}\n" for name in part))
    return folder


def read(data: Path, **how) -> store.Store:
    """Read a data folder as a run does, down to the pixels."""
    films = records.read(data, **how)
    splits.make(films, data, seed=0)
    return store.build(films, 16, folder=data.with_name("store"), progress=False, **how)


DAMAGES = {
    "film: empty": ("images/*.png", lambda data: b"", "is empty .0 bytes.; download it again"),
    "film: cut": ("images/*.png", lambda data: data[: len(data) // 2], "is damaged .*; download it again"),
    "film: other bytes": ("images/*.png", lambda data: b"x" * 999, "neither PNG.*; download it again"),
    "table: empty": ("Data_Entry*.csv", lambda data: b"", "is empty; download it again"),
    "table: header": ("Data_Entry*.csv", lambda data: data.partition(b"\n")[0], "no rows; download it again"),
    "table: bytes": ("Data_Entry*.csv", lambda data: data + b"\0\xff", "; save it as UTF-8, or download it again"),
    "list: empty": ("test_list.txt", lambda data: b"", "is empty; download it again"),
    "list: twice": ("test_list.txt", lambda data: data + b"\n" + data, "twice; download it again"),
}


@pytest.mark.parametrize("damage", [*DAMAGES])
def test_a_file_of_films_is_downloaded_again(damage, data):
    pattern, change, message = DAMAGES[damage]
    file = sorted(data.glob(pattern))[0]
    original = file.read_bytes()
    file.write_bytes(change(original))
    with pytest.raises(UserError, match=message):
        read(data)
    file.write_bytes(original)
    assert len(read(data).names) == 6


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_film_that_is_no_file_is_removed(data):
    films = records.read(data)
    film = Path(films["path"][0])
    film.unlink()
    os.mkfifo(film)
    how = {"folder": data.with_name("store"), "progress": False}
    with pytest.raises(UserError, match=r"not a file; remove it"):
        store.build(films, 16, **how)
    film.unlink()
    with pytest.raises(UserError, match=r"is not there; .*--allow-missing"):  # the next advice
        store.build(films, 16, **how)
    assert len(store.build(films, 16, **how, allow_missing=True).names) == 5


def test_permissions_are_corrected(data, monkeypatch):
    opened = open

    def refuse(file, *rest, **more):
        if str(file).endswith(".png"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *rest, **more)

    with monkeypatch.context() as refused:
        refused.setattr("builtins.open", refuse)
        with pytest.raises(UserError, match="correct its permissions and run again"):
            read(data)
    assert len(read(data).names) == 6


def test_a_film_is_restored_or_left_out(data):
    films = records.read(data)
    film = Path(films["path"][0])
    original = film.read_bytes()
    film.unlink()
    with pytest.raises(UserError, match=r"is not there; restore the film, or use --allow-missing"):
        store.build(films, 16, folder=data.with_name("store"), progress=False)
    assert len(store.build(films, 16, folder=data.with_name("a"), progress=False, allow_missing=True).names) == 5
    film.write_bytes(original)
    assert len(store.build(films, 16, folder=data.with_name("store"), progress=False).names) == 6


def test_a_row_is_restored(data):
    table = next(data.glob("Data_Entry*.csv"))
    original = table.read_text()
    table.write_text(original.rstrip("\n").rpartition(",")[0].rpartition(",")[0][:-20])
    with pytest.raises(UserError, match=r"a row needs \d+ cells, as the header has; restore the line"):
        read(data)
    table.write_text(original)
    assert len(read(data).names) == 6


def test_an_empty_list_is_removed(data, own_outputs):
    empty = data / "list.csv"
    empty.write_text("")
    with pytest.raises(UserError, match=r"is empty; write one film's name per line, or remove exclude"):
        exclusion.read(empty)
    empty.write_text("00000001_000.png\n")
    assert len(exclusion.read(empty)) == 1
    marks = reading.marks_file(paths.Run("r"))
    paths.write_text(marks, "film\na\n")
    with pytest.raises(UserError, match=r"has no column image; restore it, or remove the file"):
        reading.read_marks(paths.Run("r"))
    marks.unlink()
    assert reading.read_marks(paths.Run("r")) == {}


def train(folder: Path):
    films = {"train": tiny.TinyBatches(8, shuffle=True), "val": tiny.TinyBatches(4, first=24)}
    return tiny.train(folder, {"groups": ("fc",), "epochs": 1}, **films)


@pytest.mark.parametrize("content", ["{", '{"best": 3}', "[]"])
def test_a_file_of_a_stage_is_deleted_and_the_stage_run_again(content, tmp_path):
    best = train(tmp_path).best
    record = tmp_path / "best.json"
    record.write_text(content)
    with pytest.raises(UserError, match=r"delete it(, and run the stage again| so that it is made again)"):
        checkpoint.best(tmp_path)
    record.unlink()
    with pytest.raises(UserError, match=r"holds no finished stage; run its notebook to the end"):
        checkpoint.best(tmp_path)
    train(tmp_path)
    assert checkpoint.best(tmp_path) == best
    best.unlink()
    with pytest.raises(UserError, match=r"which is not there; run the stage again"):
        checkpoint.best(tmp_path)
    train(tmp_path)
    assert checkpoint.best(tmp_path) == best


@pytest.mark.parametrize("follow", ["train it again", "copy it once more"])
@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_a_checkpoint_is_trained_again_or_copied_once_more(ending, follow, tmp_path):
    best = train(tmp_path / "stage1").best
    shutil.copytree(tmp_path / "stage1", tmp_path / "copy")
    file = best.with_suffix(ending)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"train it again"):
        checkpoint.load(best)
    if follow == "train it again":
        train(tmp_path / "stage1")
    else:
        shutil.copy(tmp_path / "copy" / file.name, file)
    assert checkpoint.load(best).path == best


def test_a_lock_is_waited_for(tmp_path):
    with (
        paths.lock_folder(tmp_path),
        pytest.raises(UserError, match=r"in use by process \d+ .*; wait for it, or use another --run"),
        paths.lock_folder(tmp_path),
    ):
        pass
    with paths.lock_folder(tmp_path):
        pass


def test_room_is_made(data, monkeypatch):
    usage = shutil.disk_usage(data)
    with monkeypatch.context() as full:
        full.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=1))
        with pytest.raises(UserError, match=r"make room on it"):
            read(data)
    assert len(read(data).names) == 6


def test_a_record_is_deleted_and_the_settings_given_again(own_outputs):
    home = paths.Run("r")
    paths.write_text(home.run_json, "[1]")
    with pytest.raises(UserError, match=r"delete it and give the run's settings again"):
        run_record.read(home)
    home.run_json.unlink()
    assert run_record.read(home) == {}


def test_a_store_is_built_again(data):
    built = read(data)
    pixels = Path(built.pixels.filename)
    pixels.write_bytes(pixels.read_bytes()[:-300] + bytes(300))
    with pytest.raises(UserError, match=r"run cxr run or cxr store again"):
        store.load(built.folder)
    pd.testing.assert_series_equal(pd.Series(read(data).names), pd.Series(built.names))
    assert store.load(built.folder).fingerprint == built.fingerprint
