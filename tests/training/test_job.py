"""Several processes give the result of one, and a clear message when one of them dies."""

import inspect
import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

from cxrlib import UserError, paths
from cxrlib.training import checkpoint, fit, history_tables, job
from cxrlib.workbook import settings

HOW = {"stage": 1, "size": 32, "batch_size": 16, "lr": 0.01}
EXACT = "optimizer=sgd precision=float32 augment=light soup=2 chosen_by=loss"


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")
    monkeypatch.setenv("CXR_SAVE_EVERY", "300")  # a state after each epoch
    torch.set_num_threads(1)


@pytest.mark.slow
def test_two_processes_end_as_one_does_and_are_recognised(tiny_phantom, quiet):
    how = {
        **HOW,
        "data": str(tiny_phantom),
        "epochs": 2,
        "override": EXACT,
        "lr": 0.001,
    }  # higher rates amplify rounding
    one = job.train(run="one", **how)
    job.launch(2, run="two", **how)
    two = job.train(run="two", **how)
    assert one.trained
    assert not two.trained, "the job's stage is not recognised by one process"
    smooth = [name for name in history_tables.HISTORY_COLUMNS if "auc" not in name]
    pd.testing.assert_frame_equal(one.history[smooth], two.history[smooth], rtol=1e-3, atol=1e-3)
    # Two of the few validation films that change places change an AUC at once, by rounding alone.
    assert (one.history["val_auc"] - two.history["val_auc"]).abs().max() < 0.05
    assert one.batches[["epoch", "part", "batch", "films"]].equals(two.batches[["epoch", "part", "batch", "films"]])
    means = [paths.read_json(result.best.with_name("best.json"))["soup"] for result in (one, two)]
    assert means[0]["val_loss"] == pytest.approx(means[1]["val_loss"], rel=1e-3)
    assert means[0]["taken"] == means[1]["taken"]
    ours, theirs = (checkpoint.load(result.best).state for result in (one, two))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-2, atol=2e-3, msg=name)


def workers(run: Path) -> dict[int, int]:
    """Process ids of a job, by rank."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        if b"cxrlib.training.job" in words and b"\0RANK=" in environment and str(run).encode() in words:
            found[int(environment.split(b"\0RANK=")[1].split(b"\0")[0])] = int(place.name)
    return found


def once_it_trains(folder: Path, act) -> threading.Thread:
    """Call ``act`` when a state has been saved."""

    def follow():
        while not list(folder.glob("state/*.json")):
            time.sleep(0.01)  # only the file shows it
        act()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a job's processes in /proc")
def test_a_dead_process_ends_the_job_with_a_word_and_the_next_call_goes_on(tiny_phantom, quiet):
    how = {**HOW, "run": "dead", "data": str(tiny_phantom), "epochs": 12, "override": "groups=layer4+fc"}
    folder = paths.Run("dead").stage(1)
    killer = once_it_trains(folder, lambda: os.kill(workers(folder)[1], signal.SIGKILL))
    with pytest.raises(UserError, match=r"a process of the training job died .*job\.log"):
        job.launch(2, **how)
    killer.join(60)
    left = len(list(folder.glob("state/*.json")))
    assert left
    result = job.train(**how)
    assert result.trained
    assert result.resumed_from.startswith("epoch ")
    assert len(result.history) == 12


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a job's processes in /proc")
def test_a_job_whose_launcher_is_killed_saves_its_state_and_ends(tiny_phantom, quiet):
    """The launching process ends, as when a notebook's kernel is restarted."""
    how = {**HOW, "run": "orphan", "data": str(tiny_phantom), "epochs": 50, "override": "groups=layer4+fc"}
    folder = paths.Run("orphan").stage(1)
    child = tiny.forked(lambda: job.launch(2, **how))
    once_it_trains(folder, lambda: os.kill(child, signal.SIGKILL)).join()
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    deadline = time.monotonic() + 60
    while workers(folder) and time.monotonic() < deadline:
        time.sleep(0.05)  # they are not child processes, so wait() cannot be used
    assert not workers(folder)
    assert "was stopped by SIGTERM" in (folder / "job.log").read_text()
    with paths.lock_folder(folder):
        assert list(folder.glob("state/*.json"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a job's processes in /proc")
def test_an_interrupted_job_saves_its_state_and_is_gone(tiny_phantom, quiet):
    how = {**HOW, "run": "interrupted", "data": str(tiny_phantom), "epochs": 50, "override": "groups=layer4+fc"}
    folder = paths.Run("interrupted").stage(1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore interrupts
    try:
        stopper = once_it_trains(folder, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(fit.Stopped, match="its state is saved"):
            job.launch(2, **how)
    finally:
        signal.signal(signal.SIGINT, before)
    stopper.join()
    assert not workers(folder)
    assert "was stopped by SIGTERM" in (folder / "job.log").read_text()


def test_a_processs_complaint_is_the_jobs(tmp_path):
    log = tmp_path / "job.log"
    log.write_text("warning: something\ncxr: batch_size is 2; give 4\nTraceback …\n")
    assert job.complaint(log, 1) == "batch_size is 2; give 4"
    log.write_text("Segmentation fault\n")
    assert "died (exit code -11)" in job.complaint(log, -11)


@pytest.mark.slow
def test_a_mistake_in_the_job_is_told_in_its_own_words(tiny_phantom, quiet):
    with pytest.raises(UserError, match="there is no checkpoint 'stage9_1_1'"):
        job.launch(2, run="wrong", data=str(tiny_phantom), ckpt="stage9_1_1", **HOW)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="this machine has 2 GPUs, give 1 to 2"):
        job.launch(3, **HOW)


def test_the_parameters_are_the_stage_notebooks():
    own = {name: one.default for name, one in inspect.signature(job.train).parameters.items() if name != "stage"}
    for book in settings.chain():
        if settings.part(book).startswith("stage"):
            notebooks = settings.parameters(book)
            assert notebooks.pop("processes") == 1
            assert notebooks == own


def test_flags_carry_every_parameter_and_nothing_empty():
    given = {
        "stage": 3,
        "run": "a b",
        "data": "",
        "lr": 1e-4,
        "allow_missing": True,
        "override": "ema=0.9 keep_moments=no",
    }
    read = vars(job.parser().parse_args(job.words(given)))
    assert {name: read[name] for name in given} == given
    assert read["seed"] == 0


def test_words_that_are_no_parameter_are_refused(capsys):
    with pytest.raises(SystemExit) as gone:
        job.main(["--stage", "1", "--sise", "64"])
    assert gone.value.code == 2
    assert "--sise" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path):
    with pytest.raises(SystemExit) as gone:
        job.main(["--stage", "1", "--data", str(tmp_path / "nowhere")])
    assert gone.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("cxr: ")
    assert "\n" not in said


def test_the_log_tells_each_epoch_once(capsys):
    row = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "val_auc": 0.7, "images_per_s": 30.0}
    seen = type("Seen", (), {"history": [row], "recipe": type("Recipe", (), {"number": 2})})
    log = job.Log()
    log(seen)
    log(seen)
    assert capsys.readouterr().out.count("stage 2, epoch 1") == 1


def test_what_is_stopped_is_no_error():
    assert issubclass(fit.Stopped, KeyboardInterrupt)
