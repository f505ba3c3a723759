"""Names resolve the same from everywhere, and a file is either the old one or the new one."""

import os
import re
import stat
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlib import UserError, paths


def test_outputs_follow_the_environment(own_outputs, monkeypatch):
    assert paths.outputs() == own_outputs.resolve()
    monkeypatch.delenv("CXR_OUTPUTS")
    assert paths.outputs() == paths.project() / "outputs"


def test_a_relative_path_starts_from_where_the_user_stands(tmp_path, monkeypatch):
    """Also where the project has a folder of that name, and whether or not the path exists."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "data").mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.setenv("CXR_PROJECT", str(project))
    for folder in (project, elsewhere):
        monkeypatch.chdir(folder)
        assert paths.resolve("data") == folder / "data"
    assert paths.resolve(tmp_path / "absent") == tmp_path / "absent"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.resolve("~/films") == tmp_path / "films"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_a_path_that_no_disk_can_have_is_refused(path):
    with pytest.raises(UserError, match="cannot be used"):
        paths.resolve(path)


WRONG_NAMES = [
    *("", ".", "..", "a/b", "a\\b", "a:b", "a\0b", 'a"b', "a*", " ", "a\nb", "x ", "x\n", ".hidden", "-x", "--help"),
    *("$HOME", "{run}", "a'b", "run1.5", "läuft", "٣", "a" * 101, "a" * 300),
]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_run_has_one_rule_for_its_name_also_where_such_a_folder_exists(name, own_outputs):
    with suppress(OSError, ValueError):
        (own_outputs / name).mkdir(parents=True)
        (own_outputs / name / "run.json").write_text("{}")
    with pytest.raises(UserError, match="letters a to z, digits, - and _") as caught:
        paths.Run(name)
    assert len(str(caught.value)) < 250
    assert paths.runs() == []


@given(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_-]{0,99}", fullmatch=True).filter(lambda name: name.lower() != "bench"))
def test_a_name_by_the_rule_is_taken(name):
    if not re.match("stores$|phantom-|rehearsal-films-|compare-", name.lower()):
        assert paths.Run(name).name == name


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
