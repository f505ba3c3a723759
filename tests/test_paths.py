"""Names resolve the same from everywhere, and a file is either the old one or the new one."""

import os
import stat

import pytest

from cxrlib import UserError, paths


def test_outputs_follow_the_environment(own_outputs, monkeypatch):
    assert paths.outputs() == own_outputs.resolve()
    monkeypatch.delenv("CXR_OUTPUTS")
    assert paths.outputs() == paths.project() / "outputs"


def test_a_relative_path_means_the_same_from_every_folder(tmp_path, monkeypatch):
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "data").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.setenv("CXR_PROJECT", str(project))
    for folder in (project, elsewhere):
        monkeypatch.chdir(folder)
        assert paths.resolve("data") == project / "data"
    (elsewhere / "data").mkdir()
    assert paths.resolve("data") == elsewhere / "data"
    assert paths.resolve(tmp_path / "absent") == tmp_path / "absent"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a:b", "a\0b", 'a"b', "a*"])
def test_a_run_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(UserError, match="folder name"):
        paths.Run(name)


def test_the_folders_of_a_run(own_outputs):
    run = paths.Run("demo")
    inside = [run.run_json, run.notebooks, run.predictions, run.tables, run.figures, run.report, run.stage(3)]
    assert all(path.parent == own_outputs / "demo" for path in inside)
    assert run.stage(3).name == "stage3"


def test_an_atomic_write_is_whole_or_not_there(tmp_path):
    target = tmp_path / "new" / "file.txt"
    paths.write_text(target, "first")

    def broken():
        with paths.atomic(target) as temporary:
            temporary.write_text("half")
            assert target.read_text() == "first"
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_written_files_have_the_usual_rights(tmp_path):
    (tmp_path / "plain").touch()
    paths.write_text(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        paths.write_text(tmp_path / "file" / "below", "")


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, "ü"]}, [], "text", 3])
def test_json_comes_back(value, tmp_path):
    assert paths.read_json(paths.write_json(tmp_path / "value.json", value)) == value


def test_json_has_no_nan(tmp_path):
    paths.write_json(tmp_path / "value.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        paths.write_json(tmp_path / "value.json", float("nan"))
    assert paths.read_json(tmp_path / "value.json") == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe"])
def test_damaged_json_is_named(damage, tmp_path):
    (tmp_path / "value.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"value\.json is damaged"):
        paths.read_json(tmp_path / "value.json")
    with pytest.raises(UserError, match="not there"):
        paths.read_json(tmp_path / "absent.json")


def test_the_umask_stays(tmp_path):
    before = os.umask(0o027)
    try:
        paths.write_text(tmp_path / "file", "")
        assert os.umask(0o027) == 0o027
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    "name", ["stores", "Stores", "bench", "phantom-900-128-0", "rehearsal-films-9-8-0", "compare-a"]
)
def test_a_run_is_not_called_like_something_else_in_the_outputs_folder(name):
    with pytest.raises(UserError, match="is a reserved name"):
        paths.Run(name)
    assert paths.Run(f"my-{name}").name == f"my-{name}"
