"""The chain on notebooks that take a second each; ``tests/test_nbval.py`` runs the real ones."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from rich.console import Console

from cxrlib import UserError, paths
from cxrlib.report import report
from cxrlib.training import frozen, job, progress
from cxrlib.workbook import cli, kernels, pipeline, run_record, settings
from cxrlib.workbook import console as console_lines
from tests.workbook.conftest import HOME, STAGE, TRAIN, write

HERE = paths.Run("demo")


@pytest.fixture
def log():
    return Console(file=io.StringIO(), width=200)


def states(home=HERE):
    return {name: entry["state"] for name, entry in paths.read_json(home.run_json)["notebooks"].items()}


def ran(log):
    """Names of the notebooks that the last call executed, by its log; empties the log."""
    lines = log.file.getvalue().splitlines()
    log.file.seek(0), log.file.truncate()
    return [line.split()[1].rstrip(":") for line in lines if line.endswith(" cells")]


def change(book, **metadata_or_source):
    notebook = nbformat.read(book, 4)
    notebook.cells[-1].source += metadata_or_source["add"]
    nbformat.write(notebook, book)


@pytest.mark.slow
def test_a_chain_is_executed_once_and_only_what_changed_again(chain, log, best):
    report = pipeline.run("demo", {"seed": 1}, console=log)
    assert ran(log) == ["00_exploration", "01_stage1", "02_stage2", "06_evaluation"]
    assert report == HERE.report
    assert report.exists()
    written = paths.read_json(HERE.run_json)
    assert written["settings"] == {"seed": 1, "run": "demo"}
    assert written["data"]["films"] == 4
    assert written["notebooks"]["02_stage2"]["outputs"] == ["stage2/best.json"]
    assert written["device"]
    assert sorted(file.name for file in HERE.notebooks.iterdir()) == sorted(book.name for book in chain.iterdir())
    executed = nbformat.read(HERE.notebooks / "01_stage1.ipynb", 4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")

    pipeline.run("demo", console=log)
    assert ran(log) == []
    pipeline.run("demo", {"stage2.lr": 1e-4}, console=log)
    assert ran(log) == ["02_stage2", "06_evaluation"]
    assert best(2)["lr"] == 1e-4
    (HERE.root / "tables" / "auc.json").unlink()
    pipeline.run("demo", console=log)
    assert ran(log) == ["06_evaluation"]
    change(chain / "00_exploration.ipynb", add="\nprint(seed)")
    pipeline.run("demo", console=log)
    assert ran(log) == ["00_exploration"]
    paths.write_json(HERE.root / "tables" / "auc.json", ["changed by hand"])
    HERE.report.write_text("")
    pipeline.run("demo", console=log)
    assert "06_evaluation is executed again: tables/auc.json is not what it made." in log.file.getvalue()
    assert "report.html is written again" in log.file.getvalue()
    assert ran(log) == ["06_evaluation"]
    assert paths.read_json(HERE.root / "tables" / "auc.json") == ["stage1", "stage2"]
    pipeline.run("demo", console=log)
    assert ran(log) == []


@pytest.mark.slow
def test_doubts_about_the_films_are_among_the_first_lines_and_in_the_record(chain, log, monkeypatch):
    """One doubt appears before the films are decoded, the other only afterwards."""
    told = iter([["names differ"], ["names differ", "one picture twice"]])
    plain = pipeline.data
    monkeypatch.setattr(pipeline, "data", lambda *where, **how: {**plain(*where), "doubts": next(told)})
    pipeline.run("demo", console=log)
    lines = log.file.getvalue().splitlines()
    assert next(i for i, line in enumerate(lines) if "In doubt: names differ." in line) < 3
    assert sum("In doubt" in line for line in lines) == 2
    assert "In doubt: one picture twice." in lines[-1] + lines[-2]
    assert paths.read_json(HERE.run_json)["data"]["doubts"] == ["names differ", "one picture twice"]


def test_a_failing_cell_stops_the_chain_and_the_next_call_goes_on_there(chain, log, best):
    book = write(chain / "02_stage2.ipynb", STAGE, HOME, "rate = 1 / seed", TRAIN.format(k=2))
    with pytest.raises(UserError) as caught:
        pipeline.run("demo", {"size": 32}, console=log)
    message = str(caught.value)
    assert message.startswith("02_stage2.ipynb, cell 4 (In [4]): ZeroDivisionError: division by zero\n")
    partial = HERE.notebooks / "02_stage2.failed.ipynb"
    assert str(partial) in message
    assert len(message.splitlines()) == 2
    assert any(
        out.output_type == "error" for cell in nbformat.read(partial, 4).cells for out in cell.get("outputs", [])
    )
    assert states() == {"00_exploration": "done", "01_stage1": "done", "02_stage2": "failed"}
    assert not (HERE.notebooks / "02_stage2.ipynb").exists()

    ran(log)
    first = best(1)["pid"]
    book.unlink()
    write(book, STAGE, HOME, TRAIN.format(k=2))
    pipeline.run("demo", console=log)
    assert ran(log) == ["02_stage2", "06_evaluation"]
    assert best(1)["pid"] == first
    assert not partial.exists()


@pytest.mark.slow
def test_a_failure_leaves_the_last_good_execution_as_it_was(chain, log):
    pipeline.run("demo", stages=[1], exploration=False, evaluation=False, console=log)
    good = (HERE.notebooks / "01_stage1.ipynb").read_bytes()
    change(chain / "01_stage1.ipynb", add="\nfrom cxrlib import UserError\nraise UserError('no such film')")
    with pytest.raises(UserError, match=r"^01_stage1.ipynb, cell 4 \(In \[4\]\): no such film\n"):
        pipeline.run("demo", stages=[1], exploration=False, evaluation=False, console=log)
    assert (HERE.notebooks / "01_stage1.ipynb").read_bytes() == good


@pytest.mark.slow
def test_a_dead_kernel_is_told_with_its_cell(chain, log):
    write(chain / "01_stage1.ipynb", STAGE, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(UserError, match=r"01_stage1.ipynb, cell 3: the kernel died"):
        pipeline.run("demo", stages=[1], exploration=False, console=log)


@pytest.mark.slow
def test_the_kernel_is_this_python_in_the_notebooks_folder_with_absolute_outputs(chain, log, monkeypatch, tmp_path):
    kernels = tmp_path / "kernels" / "python3"
    kernels.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "Another Python 3", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXR_OUTPUTS", "results {here}")
    source = 'import os, sys\npaths.write_json(home.root / "seen.json", [sys.executable, os.getcwd()])'
    write(chain / "01_stage1.ipynb", STAGE, HOME, source)
    pipeline.run("demo", stages=[1], exploration=False, evaluation=False, console=log)
    seen = paths.read_json(tmp_path / "results {here}" / "demo" / "seen.json")
    assert seen == [sys.executable, str(chain)]
    assert os.getcwd() == str(tmp_path)  # noqa: PTH109 -- the working folder is what is asked


def with_processes(chain, *sources):
    """The chain's stages take ``processes``, and stage 1 has these code cells."""
    for k in (1, 2):
        write(
            chain / f"0{k}_stage{k}.ipynb",
            STAGE + "\nprocesses = 1",
            HOME,
            *(sources if k == 1 else [TRAIN.format(k=2)]),
        )


def test_several_processes_train_a_stage_before_its_notebook_is_executed(chain, log, monkeypatch):
    """The notebook then finds the stage finished: here it fails where the job left nothing."""
    asked = []

    def launch(processes, **parameters):
        asked.append((processes, parameters))
        paths.write_text(HERE.stage(1) / "trained", "")

    monkeypatch.setattr(job, "launch", launch)
    with_processes(chain, "assert (home.stage(1) / 'trained').exists()")
    chosen = {"stages": [1], "exploration": False, "evaluation": False, "console": log}
    pipeline.run("demo", {"processes": 2, "seed": 1, "stage1.lr": 1e-4}, **chosen)
    assert asked == [(2, {"stage": 1, "shown": False, "run": "demo", "seed": 1, "lr": 1e-4})]
    assert states() == {"01_stage1": "done"}
    pipeline.run("demo", **chosen)
    assert len(asked) == 1, "a notebook that is unchanged asks for no job"


def test_one_process_needs_no_job(chain, log, monkeypatch):
    monkeypatch.setattr(job, "launch", lambda *_, **__: pytest.fail("a job was started"))
    with_processes(chain, TRAIN.format(k=1))
    pipeline.run("demo", {"processes": 1}, exploration=False, console=log)
    assert states() == {"01_stage1": "done", "02_stage2": "done", "06_evaluation": "done"}


def test_a_job_that_fails_or_is_stopped_ends_the_chain_before_the_notebook(chain, log, monkeypatch):
    def launch(processes, **parameters):
        raise UserError("too many processes") if parameters["seed"] else KeyboardInterrupt("stopped")

    monkeypatch.setattr(job, "launch", launch)
    with_processes(chain, "assert False")
    chosen = {"stages": [1], "exploration": False, "evaluation": False, "console": log}
    with pytest.raises(UserError, match=r"^too many processes$"):
        pipeline.run("demo", {"processes": 3, "seed": 1}, **chosen)
    assert states() == {"01_stage1": "failed"}
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        pipeline.run("demo", {"processes": 3, "seed": 0}, **chosen)
    assert states() == {"01_stage1": "interrupted"}


def test_nothing_is_written_for_a_wrong_setting(chain, log):
    with pytest.raises(UserError, match="did you mean"):
        pipeline.run("demo", {"epoch": 3}, console=log)
    assert not HERE.root.exists()


@pytest.fixture
def quick(chain, monkeypatch):
    """The chain with notebooks that are only copied; returns what each call gave them, by stem."""
    given = []

    def copy(book, output, share, watch, kernels):
        shutil.copy(book, output)
        given[-1][book.stem] = share

    def run(wanted=None, **chosen):
        given.append({})
        log = Console(file=io.StringIO(), width=200)
        pipeline.run("demo", wanted, console=log, **chosen)
        return given[-1], log.file.getvalue()

    monkeypatch.setattr(pipeline, "_papermill", copy)
    monkeypatch.setattr(pipeline, "forecast_lines", lambda *_: [])
    monkeypatch.setattr(report, "build", lambda name: paths.write_text(paths.Run(name).report, "page"))
    monkeypatch.setattr(kernels.KernelSource, "server", None)
    monkeypatch.setattr(kernels.KernelSource, "device", "cpu")
    return run


WRONG = [
    *({"loss": "xx"}, {"seed": "9" * 25}, {"stage2.lr": "-1"}),
    *({"nosuch": "1"}, {"data": "/nosuch"}, {"weights": "x"}),
]


def kept():
    return {name: value for name, value in paths.read_json(HERE.run_json)["settings"].items() if name != "run"}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_a_refused_setting_leaves_no_trace(quick, wrong, own_outputs):
    with pytest.raises(UserError):
        quick(wrong)
    assert list(own_outputs.iterdir()) == []
    quick({"loss": "bce"})
    before = HERE.run_json.read_bytes()
    with pytest.raises(UserError):
        quick(wrong)
    assert HERE.run_json.read_bytes() == before
    quick()
    assert kept() == {"loss": "bce"}


@pytest.mark.parametrize("place", ["data", "judge_weights", "forecast_lines"])
def test_a_call_that_is_cut_off_before_its_first_notebook_leaves_no_trace(quick, place, monkeypatch, own_outputs):
    def cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, place, cut)
        with pytest.raises(KeyboardInterrupt):
            quick({"seed": 3}, exploration=False)
    assert list(own_outputs.iterdir()) == []
    quick({"loss": "bce"})
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, place, cut)
        with pytest.raises(KeyboardInterrupt):
            quick({"seed": 3}, exploration=False)
    assert kept() == {"loss": "bce"}


def test_what_a_notebook_left_in_a_run_that_is_cut_off_stays(quick, monkeypatch):
    """By hand, without run.json."""
    mine = paths.write_text(HERE.stage(1) / "stage1_1_1.safetensors", "weights")
    monkeypatch.setattr(pipeline, "forecast_lines", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quick({"seed": 3}, exploration=False)
    assert mine.read_text() == "weights"


def test_the_first_lines_tell_what_is_remembered_and_taking_it_back_gives_the_default(quick, tmp_path):
    (tmp_path / "films").mkdir()
    shares, said = quick({"data": str(tmp_path / "films"), "loss": "bce", "stage2.lr": 1e-4, "size": 32})
    assert "Remembered" not in said
    assert shares["02_stage2"] | {"loss": "bce", "lr": 1e-4, "size": 32} == shares["02_stage2"]
    _, said = quick({"seed": 1})
    (line,) = [line for line in said.splitlines() if line.startswith("Remembered from earlier calls: ")]
    for words in (f"data {tmp_path / 'films'}", "loss bce", "stage2.lr 0.0001", "size 32"):
        assert words in line
    assert "seed" not in line
    assert "batch_size" not in line, "it is a default"
    advice = line.rpartition("-p ")[2]
    assert advice in ("size=", "stage2.lr=", "loss=")
    shares, said = quick(settings.parse(["size=", "loss=", "stage2.lr=", "seed="]))
    assert "loss" not in shares["01_stage1"]
    assert "lr" not in shares["02_stage2"]
    assert shares["02_stage2"]["size"] == settings.REAL["size"]
    assert kept() == {"data": str(tmp_path / "films"), **settings.REAL}


def test_a_setting_of_a_notebook_that_is_not_chosen_is_remembered_and_forgotten(quick):
    quick()
    for given, expected in (({"stage2.lr": "1e-4"}, {"stage2.lr": "1e-4"}), ({"stage2.lr": ""}, {})):
        quick(given, stages=[1], exploration=False, evaluation=False)
        assert kept() == expected


def test_a_run_that_remembers_an_old_name_is_told_in_one_line_and_the_advice_helps(quick, chain):
    write(chain / "01_stage1.ipynb", STAGE + '\noverride = ""', HOME)
    quick()
    record = paths.read_json(HERE.run_json)
    paths.write_json(HERE.run_json, record | {"settings": {"run": "demo", "also": "carry=no"}})
    with pytest.raises(UserError, match=r"also, which is now called override.*override=keep_moments=no$") as caught:
        quick()
    assert "\n" not in str(caught.value)
    quick({"also": "", "override": "keep_moments=no"})
    assert kept() == {"override": "keep_moments=no"}


def test_a_run_in_use_is_refused_naming_the_holder(chain, log):
    with paths.lock_folder(HERE.root), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        pipeline.run("demo", console=log)
    assert not HERE.run_json.exists()


def test_a_run_is_not_continued_on_other_films(chain, log):
    old = {"folder": "/films", "films": 9, "patients": 5, "fingerprint": "0" * 16}
    paths.write_json(HERE.run_json, {"run": "demo", "settings": {}, "data": old, "notebooks": {}})
    with pytest.raises(UserError, match="made on other films: 9 in /films"):
        pipeline.run("demo", console=log)


def test_an_unfit_folder_is_refused_before_anything_starts_unless_told_to_go_on(tmp_path, tiny_phantom):
    films = tmp_path / "films"
    shutil.copytree(tiny_phantom, films)
    lost = sorted((films / "images").glob("*.png"))[:2]
    for file in lost:
        file.unlink()
    with pytest.raises(UserError, match=r"films of the table absent \(2\).*cxr check"):
        pipeline.data(str(films))
    found = pipeline.data(str(films), allow_missing=True)
    assert found["films"] == 94
    assert found["left_out"] == {"films": 2, "first": [file.name for file in lost]}
    assert found["film_size"] == "64x64"


def test_films_that_moved_or_grew_are_the_same_run():
    old = {"run": "a", "data": {"folder": "/a", "fingerprint": "1", "films": 3}}
    run_record.check_same_films(old, {"folder": "/b", "fingerprint": "1", "films": 3})
    run_record.check_same_films(old, {"folder": "/a", "fingerprint": "2", "films": 4})


def test_another_checkpoint_of_the_same_name_is_a_change(chain):
    book, kept = chain / "02_stage2.ipynb", {"run": "demo", "notebooks": {}, "data": {"fingerprint": "f"}}
    file = paths.Run("other").stage(1) / "stage1_1e-05_2.safetensors"
    paths.write_text(file, "weights")
    share = {book.stem: {"ckpt": "stage1_1e-05_2"}}
    first = run_record.fingerprint(book, [book], share, kept)
    assert run_record.fingerprint(book, [book], share, kept) == first
    paths.write_text(file, "others")
    assert run_record.fingerprint(book, [book], share, kept) != first


def test_progress_of_a_training_is_shown_while_it_is_fresh(tmp_path):
    file = tmp_path / "progress.json"
    line = console_lines.Line("03_stage3", file, state="running", cell=9, cells=21, began=1.0)
    assert line.training() == {}
    now = {"epoch": 2, "epochs": 6, "batch": 10, "batches": 44, "images_per_s": 38.1, "eta_s": 120, "done": False}
    file.write_text(json.dumps(now))
    assert console_lines.epochs(line.training()) == "epoch 2/6, batch 10/44, 38 images/s, 2:00 left"
    file.write_text(json.dumps(now | {"done": True}))
    assert line.training() == {}
    file.write_text('{"epoch": 1, "epo')
    assert line.training() == {}
    line.began = file.stat().st_mtime + 1
    file.write_text(json.dumps(now))
    os.utime(file, (0, 0))
    assert line.training() == {}


def test_on_a_terminal_there_is_one_line_per_notebook():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with console_lines.ConsoleBoard(
        [console_lines.Line("01_stage1", paths.PACKAGE), console_lines.Line("02_stage2", paths.PACKAGE)], console
    ) as board:
        board.start("01_stage1", 21)
        board.cell("01_stage1", 6)
        console.print(board.table())
        board.finish("01_stage1", "done")
    shown = console.file.getvalue()
    assert "cell 7/21" in shown
    assert "✓" in shown
    assert "02_stage2" in shown


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (760, "12:40"), (11100, "3:05:00"), (0, "0:00")])
def test_clock(seconds, text):
    assert progress.clock(seconds) == text


def test_wrong_weights_and_checkpoints_are_told_before_the_films_are_read(chain, log, monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "data", lambda *_, **__: pytest.fail("films were read"))
    (tmp_path / "w.pth").write_bytes(pickle.dumps(tmp_path))
    for wrong, message in (("IMAGENET", "neither a file"), (str(tmp_path / "w.pth"), "never loaded")):
        with pytest.raises(UserError, match=message):
            pipeline.run("demo", {"weights": wrong}, console=log)
    for part in ("stage2", "evaluation"):
        with pytest.raises(UserError, match="there is no checkpoint 'stage1_1_1'"):
            pipeline.run("demo", {f"{part}.ckpt": "stage1_1_1"}, console=log)
    cut = paths.write_text(tmp_path / "stage1_1_1.safetensors", "01234567{half a file")
    paths.write_json(cut.with_suffix(".json"), {"sha256": "0" * 64})
    with pytest.raises(UserError, match="does not describe a checkpoint"):
        pipeline.run("demo", {"stage2.ckpt": str(cut)}, console=log)
    assert not HERE.run_json.exists()


def test_again_asks_the_chosen_stages_to_train_anew(chain, log):
    chosen = {"exploration": False, "evaluation": False, "console": log}
    pipeline.run("demo", stages=[1], **chosen)
    assert not (HERE.stage(1) / paths.AGAIN).exists()
    pipeline.run("demo", stages=[1], again=True, **chosen)  # these notebooks train nothing that would take it away
    assert (HERE.stage(1) / paths.AGAIN).exists()
    assert not HERE.stage(2).exists()


def test_a_test_at_another_size_than_the_trainings_is_told(chain):
    books = [book for book in settings.chain(chain) if book.stem.startswith("06")]
    paths.write_json(HERE.stage(1) / "best.json", {"best": "stage1_1_1"})
    paths.write_json(HERE.stage(1) / "stage1_1_1.json", {"size": 32})
    for size, told in ((0, []), (32, []), (64, ["stage1_1_1 was trained on films of 32 pixels and is read at 64"])):
        assert pipeline.first_lines(HERE, books, {"06_evaluation": {"size": size}}) == told


def series(monkeypatch, fail=()):
    """Make ``pipeline.run`` note its calls and leave features to share; those in ``fail`` stop."""
    calls = []

    def run(name, given, **how):
        calls.append((name, given))
        paths.write_text(Path(os.environ[frozen.SHARED]) / name, "features")
        if name in fail:
            raise KeyboardInterrupt
        return paths.Run(name).report

    monkeypatch.setattr(pipeline, "run", run)
    return calls


def test_a_series_runs_its_seeds_one_after_the_other(monkeypatch, capsys):
    calls = series(monkeypatch)
    assert cli.call(["run", "--run", "base", "--seeds", "0,7", "--loss", "bce"]) == 0
    assert calls == [(f"base-s{seed}", {"loss": "bce", "seed": seed}) for seed in (0, 7)]
    out = capsys.readouterr().out
    assert "Seed 7, 2 of 2:" in out
    assert out.count("Report: ") == 2


def test_a_series_that_is_stopped_goes_on_with_the_same_command(quick, monkeypatch):
    """The first call stops in the second run; the next one finds the first run finished."""
    executed = []

    def papermill(book, output, share, *rest):
        if share.get("run") == "base-s1" and book.stem == "02_stage2" and len(executed) < 8:
            raise KeyboardInterrupt
        executed.append((share.get("run"), book.stem, share.get("seed")))
        shutil.copy(book, output)

    monkeypatch.setattr(pipeline, "_papermill", papermill)
    console = Console(file=io.StringIO())
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_series("base", [0, 1], {"size": 32}, console=console)
    first = list(executed)
    assert [name for name, _, _ in first] == ["base-s0"] * 4 + ["base-s1"] * 2
    executed += [None] * 2
    pipeline.run_series("base", [0, 1], {"size": 32}, console=console)
    assert [entry[:2] for entry in executed[8:]] == [("base-s1", "02_stage2"), ("base-s1", "06_evaluation")]
    assert {seed for name, _, seed in first if name == "base-s1"} == {1}
    for seed in (0, 1):
        kept = paths.read_json(paths.Run(f"base-s{seed}").run_json)["settings"]
        assert kept == {"run": f"base-s{seed}", "size": 32, "seed": seed}


@pytest.mark.parametrize(
    "words",
    [
        ["--seeds", "0,0"],
        ["--seeds", "-1"],
        ["--seeds", "x"],
        ["--seeds", "2", "--seed", "1"],
        ["--seeds", "2", "-p", "seed=1"],
    ],
)
def test_a_wrong_series_is_one_line_and_begins_nothing(monkeypatch, capsys, words, own_outputs):
    calls = series(monkeypatch)
    assert cli.call(["run", "--run", "base", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not calls
    assert list(own_outputs.iterdir()) == []


def test_a_series_whose_last_name_is_too_long_begins_nothing(monkeypatch):
    calls = series(monkeypatch)
    with pytest.raises(UserError, match="cannot name a run"):
        pipeline.run_series("a" * 97, [0, 10], {})
    assert not calls


def test_shared_features_are_removed_at_the_end_of_a_series_and_kept_for_one_that_was_stopped(monkeypatch):
    folder = paths.outputs() / "stores" / "features-base"
    series(monkeypatch, fail={"base-s1"})
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_series("base", [0, 1, 2])
    assert sorted(file.name for file in folder.iterdir()) == ["base-s0", "base-s1"]
    assert frozen.SHARED not in os.environ
    monkeypatch.setenv(frozen.SHARED, "of the user")
    series(monkeypatch)
    pipeline.run_series("base", [0, 1, 2])
    assert not folder.exists()
    assert os.environ[frozen.SHARED] == "of the user"
    assert pipeline.FEATURES == frozen.SHARED


def test_a_full_disk_in_a_notebook_is_told_although_the_record_cannot_be_written_either(chain, monkeypatch, capsys):
    """run.json fails too, and the last message is the notebook's. With room again the same call ends well."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def papermill(*_):
        monkeypatch.setattr(paths, "write_json", lambda *_, **__: (_ for _ in ()).throw(full))
        raise UserError("01_stage1.ipynb, cell 3 (In [2]): cannot write best.json: the disk / is full")

    write_json = paths.write_json
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "_papermill", papermill)
        with pytest.raises(UserError, match=r"cell 3 .*best\.json: the disk / is full"):
            pipeline.run("demo", folder=chain)
    monkeypatch.setattr(paths, "write_json", write_json)
    pipeline.run("demo", folder=chain)
    assert run_record.read(paths.Run("demo"))["notebooks"]["06_evaluation"]["state"] == "done"


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("UserError", "film a is not there", "film a is not there"),
        ("DiskError", "cannot write a: the disk / is full", "cannot write a: the disk / is full"),
        (
            "OSError",
            "[Errno 28] No space left on device: '/tmp/a.csv'",
            r"cannot use /tmp/a\.csv: the disk \S+ is full",
        ),
        ("PermissionError", "[Errno 13] Permission denied: '/tmp/a'", r"cannot use /tmp/a: Permission denied; choose"),
        ("KeyError", "'image'", "KeyError: 'image'"),
    ],
)
def test_an_error_of_the_system_in_a_cell_is_one_sentence(kind, words, said):
    assert re.match(said, pipeline._what_failed(kind, words))


def test_a_disk_without_room_for_the_run_is_told_before_the_first_notebook(chain, monkeypatch):
    usage = shutil.disk_usage(chain)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000_000))
    with pytest.raises(UserError, match=r"this run \(4 films of 64 pixels, 2 stages to train\) needs about 1\.\d\d GB"):
        pipeline.run("demo", folder=chain)
    assert not paths.Run("demo").root.exists()


def test_films_smaller_than_the_size_are_told():
    assert pipeline.enlarged({"film_size": "256x256"}, 384) == [
        "The films have 256x256 pixels and are enlarged to 384, which adds no detail."
    ]
    for films, size in (({"film_size": "256x256"}, 256), ({"film_size": "1024x1024"}, 512), ({}, 384)):
        assert pipeline.enlarged(films, size) == []
