"""Files of another shape, and folders that are not ours: one message each, and never a traceback.

A file can be sound JSON, with a guard that fits, and still not be what its reader expects: written by another version
or by hand.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training import tiny

from cxrlib import UserError, paths
from cxrlib.data import exclusion, film_paths, records, store
from cxrlib.evaluation import reading
from cxrlib.training import checkpoint, lineage
from cxrlib.workbook import cli, pipeline, run_record
from data import samples


def other_shapes(value: dict) -> Iterator[Any]:
    """JSON of other shapes: another kind of value in place of all, of each value, and each key left out."""
    yield from ([], 3, "x", None, {})
    for name in value:
        yield from ({**value, name: other} for other in (None, [], {}, "x", 3, {"a": 1}) if other != value[name])
        yield {key: item for key, item in value.items() if key != name}


def complaints(file: Path, *readers: Callable[[], Any]) -> list[str]:
    """Messages of the readers on each other shape of a file, guarded and not. Another error than UserError fails."""
    value, said = paths.read_json(file), []
    for shape in other_shapes(value):
        for guarded in (True, False) if isinstance(shape, dict) else (False,):
            for reader in readers:
                paths.write_json(file, shape, guarded=guarded)
                try:
                    reader()
                except UserError as error:
                    said.append(str(error))
                except Exception as error:
                    raise AssertionError(f"{file.name} with {str(shape)[:200]}") from error
    return said


@pytest.fixture(scope="module", autouse=True)
def no_waiting():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(paths, "_sync", lambda path: None)
        yield


@pytest.fixture
def home(own_outputs) -> paths.Run:
    home = paths.Run("r")
    films = {"train": tiny.TinyBatches(8, shuffle=True), "val": tiny.TinyBatches(4, first=24)}
    tiny.train(home.stage(1), {"groups": ("fc",), "epochs": 1}, **films)
    return home


def test_a_best_json_of_another_shape_is_named(home):
    readers = [
        lambda: paths.last_checkpoint("r"),
        lambda: pipeline._last(home),
        lambda: lineage.stage_checkpoints(home),
        lambda: run_record._best(home.stage(1)),
    ]
    said = complaints(home.stage(1) / "best.json", *readers)
    assert len(said) > 20
    assert all("best.json" in words for words in said)


def test_a_description_of_a_checkpoint_of_another_shape_is_named(home):
    file = next(home.stage(1).glob("stage1_*.safetensors"))
    readers = [
        lambda: checkpoint.load(file),
        lambda: lineage.seen_by(file),
        lambda: lineage.parent_of_stage(home, 2, ""),
        lambda: pipeline._another_size(file.with_suffix(".json"), 16),
    ]
    said = complaints(file.with_suffix(".json"), *readers)
    assert len(said) > 100
    assert all(file.stem in words for words in said)


def test_a_manifest_of_another_shape_is_refused_or_made_again(tmp_path, capsys):
    films = records.read(samples.write_folder(tmp_path / "films", films=4))
    whole = tmp_path / "whole"
    store.build(films, 16, folder=whole, progress=False)

    def copy():
        text = (tmp_path / "store" / store.MANIFEST).read_text()
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(whole, tmp_path / "store")
        (tmp_path / "store" / store.MANIFEST).write_text(text)

    shutil.copytree(whole, tmp_path / "store")
    manifest = tmp_path / "store" / store.MANIFEST
    assert len(complaints(manifest, lambda: (copy(), store.load(tmp_path / "store")))) > 30
    assert (
        complaints(manifest, lambda: (copy(), store.build(films, 16, folder=tmp_path / "store", progress=False))) == []
    )


def test_a_record_of_another_shape_is_refused_with_the_advice_for_it(home):
    entry = {"state": "done", "fingerprint": "f", "parameters": {}, "outputs": [], "made": {}}
    data = {"fingerprint": "f", "folder": "", "films": 3}
    record = {"run": "r", "settings": {}, "data": data, "notebooks": {"01_stage1": entry}}
    paths.write_json(home.run_json, record, guarded=True)
    said = complaints(home.run_json, lambda: run_record.read(home))
    for part, value in (("data", data), ("notebooks", entry)):
        for shape in other_shapes(value):
            content = {**record, part: shape if part == "data" else {"01_stage1": shape}}
            paths.write_json(home.run_json, content, guarded=True)
            try:
                run_record.done(run_record.read(home))
            except UserError as error:
                said.append(str(error))
    assert len(said) > 20
    assert all("delete it and give the run's settings again" in words for words in said)


def one_line(capsys, *words: str) -> str:
    assert cli.call([*words]) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("cxr: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


@pytest.fixture
def few(tmp_path) -> Path:
    return samples.write_folder(tmp_path / "films", films=6)


def test_outputs_that_are_a_file_are_named(few, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("CXR_OUTPUTS", str(tmp_path / "taken"))
    for words in (["run", "--data", str(few), "--size", "32"], ["store", str(few)], ["predict", str(few)]):
        assert str(tmp_path / "taken") in one_line(capsys, *words) or words[0] == "predict"


def test_a_lock_that_is_a_folder_is_named(own_outputs):
    (own_outputs / "base" / ".lock").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"\.lock: it is a folder; move it away"),
        paths.lock_folder(own_outputs / "base"),
    ):
        pass
    (own_outputs / "base" / ".lock").rmdir()
    with paths.lock_folder(own_outputs / "base"):
        pass


def test_outputs_of_another_owner_are_named(own_outputs, monkeypatch):
    def refuse(path, *rest, **more):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    words = r"cannot write .*base.*Permission denied; .* correct its permissions"
    with pytest.raises(UserError, match=words), paths.lock_folder(own_outputs / "base"):
        pass
    with pytest.raises(UserError, match="Permission denied"):
        paths.write_text(own_outputs / "base" / "a.csv", "a")


def test_a_record_that_cannot_be_read_is_named_and_nobody_is_told_to_delete_it(home, monkeypatch):
    paths.write_json(home.run_json, {}, guarded=True)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied", "x")))
    with pytest.raises(UserError, match=r"cannot read .*run\.json: Permission denied") as caught:
        run_record.read(home)
    assert "delete" not in str(caught.value)


class Removing(tiny.TinyBatches):
    """Films whose second epoch finds the run's folder removed."""

    def epoch(self, epoch, start=0, **where):
        if epoch == 1:
            shutil.rmtree(paths.outputs())
        yield from super().epoch(epoch, start, **where)


def test_a_run_folder_removed_under_a_stage_is_no_traceback(own_outputs):
    films = {"train": Removing(8, shuffle=True), "val": tiny.TinyBatches(4, first=24)}
    try:
        tiny.train(own_outputs / "r" / "stage1", {"groups": ("fc",)}, **films)
    except UserError as error:
        assert "stage1" in str(error)  # noqa: PT017
    films["train"] = tiny.TinyBatches(8, shuffle=True)
    assert tiny.train(own_outputs / "r" / "stage1", {"groups": ("fc",)}, **films).best.is_file()


RAGGED = ["a.png", "a.png,why,more"]


@pytest.mark.parametrize("row", RAGGED)
def test_a_row_of_a_list_has_as_many_cells_as_its_header_or_is_refused_with_its_line(row, tmp_path, own_outputs):
    file = tmp_path / "list.csv"
    file.write_text(f"image,reason\nb.png,blurred\n{row}\n")
    for read in (exclusion.read, film_paths._listed):
        with pytest.raises(UserError, match=r"list\.csv, line 3: .*a row needs 2"):
            read(file)
    run = paths.Run("r")
    paths.write_text(reading.marks_file(run), f"image,reason\nb.png,blurred\n{row}\n")
    with pytest.raises(UserError, match=r", line 3: a row needs 2 cells"):
        reading.read_marks(run)


def test_a_table_cut_in_mid_line_is_refused_with_its_line(few):
    """Also where what is left is plausible: the film of another patient."""
    table = few / "Data_Entry_2017.csv"
    lines = table.read_text().splitlines()
    cells = lines[-1].split(",")
    for kept in range(1, len([cell for cell in lines[0].split(",") if cell])):
        table.write_text("\n".join([*lines[:-1], ",".join(cells[:kept])]))
        with pytest.raises(UserError, match=rf"line {len(lines)}: .*a row needs|line {len(lines)}"):
            records.read(few)
