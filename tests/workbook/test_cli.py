import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cxrlib import UserError, paths
from cxrlib.phantom import phantom
from cxrlib.workbook import cli, console, pipeline, settings

COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands]


@pytest.fixture
def called(monkeypatch):
    """Arguments of the pipeline's calls; nothing is executed."""
    calls = []

    def run(name, given=None, **chosen):
        calls.append((name, given, chosen))
        return paths.Run(name).report

    monkeypatch.setattr(pipeline, "run", run)
    return calls


def complaint(capsys, *words):
    """Text of ``cxr`` on stderr after a user's error; checks exit code 2 and that there is no traceback."""
    assert cli.call(list(words)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    return err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    assert cli.call([command, "--help"]) == 0
    assert f"Example: cxr {command}" in capsys.readouterr().out


def test_without_words_the_help_is_shown(capsys):
    assert cli.call([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    heavy = {"torch", "pandas", "papermill", "matplotlib", "numpy"}
    code = f"""import sys
from cxrlib.workbook import cli
cli.call(["--help"])
print(sorted({heavy} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_run_is_the_demo_where_no_films_are_given(called):
    cli.call(["run"])
    assert called == [("demo", {}, {"again": False})]


def test_the_originals_first_training(called):
    words = "train --data_path data --bs 128 --lr 1e-5 --stage 1"
    assert cli.call(words.split()) == 0
    ((name, given, chosen),) = called
    assert name == "original"
    own = {"stage1.lr": 1e-5, "stage1.epochs": "", "stage1.loss": "", "stage1.override": ""}
    assert given == {"data": "data", "batch_size": 128, **own}
    assert chosen["base"] is settings.SEED
    assert chosen["once"] == {}
    assert (chosen["stages"], chosen["exploration"], chosen["evaluation"]) == ([1], False, False)


def test_in_training_one_stage_a_parameter_of_stages_is_that_stages(called):
    words = [
        "train",
        "--stage",
        "2",
        "-p",
        "epochs=1",
        "-p",
        "override=patience=3",
        "-p",
        "size=96",
        "--processes",
        "2",
    ]
    assert cli.call(words) == 0
    given = called[0][1]
    assert (given["stage2.epochs"], given["stage2.override"], given["size"]) == ("1", "patience=3", "96")
    assert given["processes"] == 2
    assert "epochs" not in given


def test_more_of_a_recipe_for_all_stages(called):
    assert cli.call(["run", "--override", "positive_weight=10 patience=3"]) == 0
    assert called[0][1] == {"override": "positive_weight=10 patience=3"}


@pytest.mark.parametrize("command", ["run", "train --stage 1", "test"])
def test_a_list_of_films_to_leave_out_goes_to_every_notebook(called, command):
    assert cli.call([*command.split(), "--exclude", "bad.csv"]) == 0
    assert called[0][1]["exclude"] == "bad.csv"


def test_the_originals_resumed_training(called):
    words = "train --resume --data_path data --ckpt stage5_1e-06_22 --stage 4 --lr 1e-3 --loss_func BCE"
    assert cli.call(words.split()) == 0
    ((_, given, chosen),) = called
    assert given["stage4.lr"] == 1e-3
    assert given["stage4.loss"] == "bce"
    assert chosen["once"] == {"stage4.ckpt": "stage5_1e-06_22"}


def test_the_originals_test(called):
    tested = {f"{name}.ckpt": "stage5_1e-06_22" for name in cli.EVALUATIONS}
    own_size = {f"{name}.size": 0 for name in cli.EVALUATIONS}
    assert cli.call(["test", "--data_path", "data", "--ckpt", "stage5_1e-06_22"]) == 0
    ((name, given, chosen),) = called
    assert (name, given, chosen["once"]) == ("original", {"data": "data"}, tested | own_size)
    assert (chosen["stages"], chosen["exploration"]) == ([], False)
    assert cli.call(["test", "--size", "32", "--ckpt", "stage5_1e-06_22"]) == 0
    assert called[-1][1:][1]["once"] == tested


@pytest.mark.parametrize("flag", ["--data", "--data_path", "--data-path"])
@pytest.mark.parametrize("batch", ["--bs", "--batch_size", "--batch-size"])
def test_old_and_new_flags_are_the_same(called, flag, batch):
    cli.call(["run", flag, "films", batch, "8"])
    assert called[0][:2] == ("base", {"data": "films", "batch_size": 8})


@pytest.mark.parametrize("words", [["-p", "stage3.lr=1e-4"], ["-p", "stage3.lr", "1e-4"]])
def test_a_parameter_may_be_given_in_papermills_way_too(called, words):
    cli.call(["run", *words, "--run", "mine"])
    assert called[0][:2] == ("mine", {"stage3.lr": "1e-4"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train --stage 6", "the stages are 1 to 5"),
        ("train --stage 0", "the stages are 1 to 5"),
        ("train --stage two", "'--stage'"),
        ("train", "--stage"),
        ("train --stage 1 --lr fast", "'--lr'"),
        ("train --stage 1 --lr nan", "stage1.lr is nan"),
        ("train --stage 1 --lr -1", "stage1.lr is -1"),
        ("train --stage 1 --loss_func mse", "one of focal, bce"),
        ("run --size 0", "size is 0; it must be 8 to 4,096"),
        ("run --epochs -3", "epochs is -3"),
        ("run --processes 0", "processes is 0"),
        ("run --schedule modem", "did you mean modern?"),
        ("run -p loss", "name=value"),
        ("run --runs x", "--runs"),
        ("walk", "walk"),
        ("report nothing", "there is no run 'nothing'"),
        ("run --run a/b", "cannot name a run"),
        ("report a/b", "cannot name a run"),
        ("test --run -x", "cannot name a run"),
        ("run -p run=other", "use --run NAME"),
    ],
)
def test_a_mistake_is_told_in_two_lines_at_most(capsys, words, said):
    assert said in complaint(capsys, *words.split())


def test_phantom_check_and_store_work_hand_in_hand(capsys, tmp_path):
    folder = tmp_path / "films"
    assert cli.call(f"phantom {folder} --images 60 --size 32 --seed 3".split()) == 0
    assert cli.call(["check", str(folder), "--json", "--size", "16"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["fit"]
    assert cli.call(["store", str(folder), "--size", "16"]) == 0
    assert "60 films of 16 pixels" in capsys.readouterr().out
    next((folder / "images").iterdir()).unlink()
    assert cli.call(["check", str(folder), "--fast"]) == 1


def test_missing_films_are_named(capsys, tmp_path, chain, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("CXR_OUTPUTS", str(tmp_path / "out"))
    assert str(tmp_path / "none") in complaint(capsys, "run", "--data", str(tmp_path / "none"))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_says_how_to_go_on(called, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupted)
    assert cli.call(["run"]) == 130
    assert "goes on from here" in capsys.readouterr().err


def test_sigterm_does_what_ctrl_c_does_and_is_told_apart_by_the_exit_code(called, capsys, monkeypatch):
    """Also where several are sent, as a cluster does; afterwards the signal does what it did before."""
    saved = []

    def terminated(*_, **__):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            saved.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pipeline, "run", terminated)
    assert cli.call(["run"]) == 143
    assert saved
    assert "goes on from here" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("command", ["check", "store", "phantom", "run", "train", "test"])
def test_a_relative_path_starts_from_where_the_user_stands_in_every_command(command, tmp_path, monkeypatch, capsys):
    """The project has the folder too, and it is never meant."""
    (tmp_path / "project").mkdir()
    for folder in ("project", "elsewhere"):
        (tmp_path / folder / "films").mkdir(parents=True)
    (tmp_path / "project" / "notebooks").symlink_to(paths.notebooks())
    monkeypatch.setenv("CXR_PROJECT", str(tmp_path / "project"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = {"run": ["--data"], "train": ["--stage", "1", "--data"], "test": ["--data"]}.get(command, [])
    code = cli.call([command, *words, "films", *(["--images", "20", "--size", "32"] if command == "phantom" else [])])
    out, err = capsys.readouterr()
    assert str(tmp_path / "elsewhere" / "films") in out + err
    assert str(tmp_path / "project" / "films") not in out + err
    assert code == {"phantom": 0, "check": 1}.get(command, 2)


def test_a_folder_that_only_the_project_has_is_pointed_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "project" / "films").mkdir(parents=True)
    (tmp_path / "project" / "notebooks").symlink_to(paths.notebooks())
    monkeypatch.setenv("CXR_PROJECT", str(tmp_path / "project"))
    monkeypatch.chdir(tmp_path)
    assert f"the project's is {tmp_path / 'project' / 'films'}" in complaint(capsys, "run", "--data", "films")


def test_a_fault_of_the_programme_is_not_hidden(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "run", broken)
    with pytest.raises(ZeroDivisionError):
        cli.call(["run"])


def test_a_users_mistake_in_the_pipeline_ends_in_its_message(capsys, monkeypatch):
    def refused(*_, **__):
        raise UserError("no such film: a.png in data/images")

    monkeypatch.setattr(pipeline, "run", refused)
    assert complaint(capsys, "run") == "cxr: no such film: a.png in data/images\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252", "utf-8"])
def test_a_console_that_lacks_a_character_gets_another_one(encoding, tmp_path, monkeypatch):
    """As most shells of Windows: an ellipsis, a superscript or a file's name must not end a command."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    folder = phantom.write(tmp_path / "größe ² 胸", images=8, size=32)
    for film in (folder / "images").iterdir():
        film.unlink()
    assert cli.call(["check", str(folder), "--fast"]) == 1
    assert cli.call(["store", str(folder)]) == 2
    console.Console().print("… ² 胸 ▸ ✓")
    for command in COMMANDS:
        assert cli.call([command, "--help"]) == 0
    out, err = (stream.buffer.getvalue().decode(encoding, "replace") for stream in streams)  # click's help is UTF-8
    assert "films of the table absent (8)" in out
    assert "8 of the 8 films" in err


@pytest.mark.parametrize(
    "words", ["run", "run --data {films}", "train --data {films} --stage 1", "test --data {films}"]
)
def test_outputs_that_cannot_be_written_are_told_in_one_line(words, tmp_path, monkeypatch, capsys):
    films = phantom.write(tmp_path / "films", images=60, size=32)
    (tmp_path / "file").touch()  # no folder can be made below a file, by whoever runs the tests
    monkeypatch.setenv("CXR_OUTPUTS", str(tmp_path / "file" / "outputs"))
    weights = "" if words.startswith("test") else " --weights none"
    assert cli.call((words.format(films=films) + weights).split()) == 2
    assert "Traceback" not in (err := capsys.readouterr().err)
    assert "cannot write" in err
    assert len(err.strip().splitlines()) == 1
