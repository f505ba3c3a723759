"""The rehearsal's plan, its table from made-up records, its memory, and what is done again after it was cut off."""

import csv
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cxrlib import UserError, paths
from cxrlib.data import records
from cxrlib.phantom import phantom
from cxrlib.workbook import pipeline, settings
from tests.benchmarks import memory, rehearsal, rows, timetable

FEW = ["--films", "40", "--size", "32", "--schedule", "scratch", "-p", "epochs=1"]


def entry(state="done", seconds=10.0, started="1", fingerprint="f"):
    found = {"state": state, "started": started, "fingerprint": fingerprint}
    return found | ({} if seconds is None else {"seconds": seconds})


def new_diary():
    return {"steps": {}, "goes": {}, "cpu": {}, "gpu": {}}


@pytest.fixture
def made_up():
    """A run of which 01_stage1 trained two epochs: 60 films in 2 s, and 60 in 4 s."""
    home = paths.Run("made-up")
    home.stage(1).mkdir(parents=True)
    lines = "epoch,train_loss,seconds,images_per_s\n1,0.3,2.0,30.0\n2,0.2,4.0,15.0\n"
    (home.stage(1) / "history.csv").write_text(lines)
    diary = new_diary()
    diary["steps"] = {timetable.DRAWING: {"seconds": 4.0, "films": 100, "killed": False}}
    diary["cpu"] = {"01_stage1": 2 * 10**9, timetable.DRAWING: 10**9}
    timetable.note_goes(diary, {"notebooks": {"01_stage1": entry(), "06_evaluation": entry(seconds=5.0)}})
    return diary, home


def test_the_table_is_what_the_records_say(made_up):
    found = {step.name: step for step in timetable.steps(*made_up)}
    assert list(found) == [*timetable.STEPS, "01_stage1", "training, 2 epochs", "06_evaluation"]
    assert found[timetable.DRAWING].rate == 25
    assert found[timetable.STORING].seconds is None
    training = found["training, 2 epochs"]
    assert (training.seconds, training.films, training.rate) == (6.0, 120, 20.0)
    assert found["01_stage1"].cpu == 2 * 10**9
    everything = timetable.total(list(found.values()))
    assert everything.seconds == 4.0 + 10.0 + 5.0  # the training is part of its notebook
    assert everything.cpu == 2 * 10**9
    assert everything.gpu is None


def test_the_table_shows_a_dash_for_what_is_not_known(made_up):
    table = timetable.text(timetable.steps(*made_up), {"films": 650_000_000, "run": 3_000_000}).splitlines()
    assert table[0].split() == ["step", "seconds", "films", "films/s", "CPU", "GB", "GPU", "GB"]
    lines = {cells[0]: cells[1:] for cells in (re.split(r" {2,}", line.strip()) for line in table)}
    assert lines[timetable.DRAWING] == ["4.0", "100", "25.0", "1.00", "-"]
    assert lines[timetable.STORING] == ["-"] * 5
    assert lines["01_stage1"] == ["10.0", "-", "-", "2.00", "-"]
    assert lines["training, 2 epochs"] == ["6.0", "120", "20.0", "-", "-"]
    assert lines["in all"] == ["19.0", "-", "-", "2.00", "-"]
    assert table[-1] == "On disk: films 0.65 GB, run 3 MB"


def test_rows_join_the_results_under_names_of_their_own(made_up):
    small = timetable.rows(timetable.steps(*made_up), {"films": 10**9}, "100-32-scratch", 100, "here")
    large = timetable.rows(timetable.steps(*made_up), {"films": 10**9}, "20000-224-modern", 20_000, "here")
    rows.merge([rows.Row("data: other", 1.0, "s")])
    with rows.merge([*small, *large]).open(newline="") as file:
        written = {row["name"]: row for row in csv.DictReader(file)}
    assert len(written) == 1 + len(small) + len(large)
    assert all(name.startswith("rehearsal: ") for name in written if name != "data: other")
    speed = written["rehearsal: 100-32-scratch: 01_stage1, training, speed"]
    assert (speed["value"], speed["unit"], speed["n"]) == ("20.0", "films/s", "120")
    assert written["rehearsal: 100-32-scratch: films on disk"]["value"] == "1.0"
    assert not any("GPU" in name for name in written)


def test_goes_at_a_notebook_add_up_and_those_at_another_content_do_not(made_up):
    _, home = made_up
    diary = new_diary()
    seen = [
        entry("interrupted", 3.0, "1"),
        entry("interrupted", 3.0, "1"),  # the same go, read twice
        entry("running", None, "2"),  # killed
        entry("done", 4.0, "3"),
    ]
    for state in seen:
        timetable.note_goes(diary, {"notebooks": {"01_stage1": state}})
    step = timetable.steps(diary, home)[2]
    assert step.seconds == 7.0
    assert step.note == f"in 3 goes, {timetable.LOST}"
    timetable.note_goes(diary, {"notebooks": {"01_stage1": entry("failed", 1.0, "4", fingerprint="other")}})
    step = timetable.steps(diary, home)[2]
    assert (step.seconds, step.note) == (1.0, "failed")


def test_a_disk_without_room_is_refused_before_anything_is_written(monkeypatch, capsys, own_outputs):
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert rehearsal.main(FEW) == 2
    said = capsys.readouterr()
    assert "draw the films" in said.out
    assert len(said.err.splitlines()) == 1
    assert "needs 2.50 GB more and the disk has 1.00 GB free; make room" in said.err
    assert not list(own_outputs.iterdir())


@pytest.mark.parametrize("wrong", [["--schedule", "hasty"], ["-p", "epoks=1"], ["-p", "epochs=many"]])
def test_wrong_settings_are_refused_before_films_are_drawn(wrong, capsys, own_outputs):
    assert rehearsal.main(FEW + wrong) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("rehearsal: ")
    assert not list(own_outputs.iterdir())


def test_a_drawing_that_fails_has_no_speed(monkeypatch, capsys, own_outputs):
    def full(*_, **__):
        raise UserError("the disk is full")

    monkeypatch.setattr(phantom, "write", full)
    assert rehearsal.main(FEW) == 2
    plan = rehearsal.read(FEW)
    step = timetable.steps(json.loads((plan.notes / "diary.json").read_text()), plan.home)[0]
    assert step.seconds is not None
    assert step.rate is None
    assert "the disk is full" in capsys.readouterr().err


def test_what_is_there_already_needs_no_more_room(monkeypatch, capsys, own_outputs):
    plan = rehearsal.read(FEW)
    (plan.home.root).mkdir(parents=True)
    (plan.home.root / "weights").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(rehearsal, "RUN_BYTES", 3_000_000)
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000))
    rehearsal.announce(plan)
    assert "run the chain                            3 MB, of which 3 MB are there" in capsys.readouterr().out


def test_a_chain_that_is_done_needs_no_more_room(monkeypatch, capsys):
    plan = rehearsal.read(FEW)
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: SimpleNamespace(free=400_000))
    with pytest.raises(UserError):
        rehearsal.announce(plan)
    paths.write_json(plan.home.run_json, {"notebooks": {book.stem: entry() for book in settings.chain()}})
    rehearsal.announce(plan)


def test_other_settings_make_another_run_on_the_same_films():
    plans = [rehearsal.read(FEW + more) for more in ([], ["--batch_size", "8"], ["-p", "loss=bce"], ["--weights", "x"])]
    assert len({plan.name for plan in plans}) == 4
    assert len({plan.data for plan in plans}) == 1
    assert rehearsal.read([]).name == "rehearsal-20000-224-modern"


@pytest.fixture
def chain(monkeypatch):
    """A chain that fails the first time, and then finishes; gives its calls."""
    calls = []

    def run(name, given):
        calls.append((name, given))
        home = paths.Run(name)
        states = [entry("failed", 2.0, "1")] if len(calls) == 1 else [entry("done", 3.0, "2")]
        paths.write_json(home.run_json, {"device": "a card", "notebooks": {"01_stage1": states[0]}})
        if len(calls) == 1:
            raise UserError("01_stage1.ipynb, cell 5: no")

    monkeypatch.setattr(pipeline, "run", run)
    return calls


def test_what_is_done_is_not_done_again(chain, capsys, own_outputs):
    plan = rehearsal.read(FEW)
    half = own_outputs / f".{plan.data.name}.killed"
    half.mkdir()
    assert rehearsal.main(FEW) == 2
    said = capsys.readouterr()
    assert "as far as it came" in said.out
    assert timetable.DRAWING in said.out
    assert "01_stage1.ipynb, cell 5: no" in said.err
    assert not half.exists()
    films = {path: path.stat().st_mtime_ns for path in plan.data.rglob("*.png")}
    drawn = json.loads((plan.notes / "diary.json").read_text())["steps"]
    assert rehearsal.main(FEW) == 0
    assert {path: path.stat().st_mtime_ns for path in plan.data.rglob("*.png")} == films
    diary = json.loads((plan.notes / "diary.json").read_text())
    assert diary["steps"] == drawn
    assert [go["seconds"] for go in diary["goes"]["01_stage1"]] == [2.0, 3.0]
    assert "5.0" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("01_stage1"))
    assert chain[0] == chain[1] == (plan.name, plan.settings)
    assert rows.results().exists()


def test_the_films_are_the_complete_layout(chain):
    rehearsal.main(FEW)
    data = rehearsal.read(FEW).data
    assert len(list(data.glob("images_*/images"))) == 12
    assert len(records.read(data)) == 40
    assert len(records.read_boxes(data))
    assert all((data / name).exists() for name in ("train_val_list.txt", "test_list.txt"))


def test_findings_are_as_frequent_as_in_the_dataset_where_there_are_films_enough(monkeypatch):
    asked = []
    monkeypatch.setattr(phantom, "write", lambda *words, **_: asked.append(words[4]))
    for films in (rehearsal.ENOUGH - 1, rehearsal.ENOUGH):
        under_way = rehearsal.Rehearsal(rehearsal.Plan(films=films))
        under_way._draw()
    assert asked == [rehearsal.RARE, 0.0]


def test_a_step_that_was_killed_is_owned_up_to():
    plan = rehearsal.read(FEW)
    first = rehearsal.Rehearsal(plan)
    first._enter(timetable.STORING, {"seconds": 2.0, "films": 40, "killed": False, "open": True})  # and then killed
    second = rehearsal.Rehearsal(plan)
    with second._timed(timetable.STORING, goes_on=True):
        pass
    step = timetable.steps(second.diary, plan.home)[1]
    assert step.seconds >= 2.0
    assert step.note == timetable.LOST


def test_memory_is_that_of_the_children_too():
    code = "import sys; kept = bytearray(b'x') * 200_000_000; print(flush=True); sys.stdin.read()"
    before = memory.of_processes()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    during = memory.of_processes()
    child.communicate()
    assert during - before > 190_000_000
    assert memory.of_processes() < during - 190_000_000


def test_peaks_belong_to_the_step_they_were_seen_in(monkeypatch):
    steps, values = iter(["a", "a", "a", "a", "a", "b", "", "", "b", "b"]), iter([5, 9, 100, 50, 7])
    over = []
    peaks = memory.Peaks(lambda: next(steps), ended=lambda: over.append(dict(peaks.cpu)))
    looks = iter([False, False, False, False, True])
    peaks._stop = SimpleNamespace(wait=lambda _: next(looks))
    peaks._watch(lambda: next(values), peaks.cpu)
    assert peaks.cpu == {"a": 9, "b": 7}  # 100 was seen on the way from a to b, 50 between steps
    assert over == [{"a": 9}, {"a": 9}]  # a ended, then b


def test_gpus_are_added_up_and_absent_ones_are_none(tmp_path, monkeypatch):
    script = tmp_path / "smi"
    script.write_text("#!/bin/sh\nprintf '1000\\n500\\n'\n")
    script.chmod(0o755)
    monkeypatch.setattr(memory, "NVIDIA", str(script))
    assert memory.of_gpus() == 1500 * 2**20
    script.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert memory.of_gpus() is None
    script.write_text("#!/bin/sh\nexit 9\n")
    assert memory.of_gpus() is None
    monkeypatch.setattr(memory, "NVIDIA", str(tmp_path / "none"))
    assert memory.of_gpus() is None


def test_drawing_processes_import_little_of_the_rehearsal():
    code = "import sys, tests.benchmarks.rehearsal; print(sorted({'pandas', 'torch', 'papermill'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
