"""TensorBoard gets a stage's history where it is installed."""

import signal
import sys
import types

import pytest
import tiny
import torch

from cxrlib.labels import FINDINGS
from cxrlib.training import fit, progress

ROW = {"epochs_so_far": 3, "train_loss": 0.5, "val_loss": 0.4, "lr": 1e-3, "images_per_s": 30.0, "val_auc": 0.7}
ROW |= {f"auc_{finding}": 0.6 for finding in FINDINGS} | {"auc_Hernia": float("nan")}


class Writer:
    """Double of ``torch.utils.tensorboard.SummaryWriter`` that records its calls."""

    made = ()

    def __init__(self, folder):
        self.folder, self.scalars, self.closed = folder, {}, False
        Writer.made += (self,)

    def add_scalar(self, title, value, step):
        self.scalars[title, step] = value

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def installed(monkeypatch):
    """TensorBoard, as if it were installed."""
    room = types.ModuleType("torch.utils.tensorboard")
    room.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", room)
    monkeypatch.setattr(progress, "find_spec", lambda name: name == "tensorboard")
    monkeypatch.setattr(Writer, "made", ())


def test_every_number_of_an_epoch_but_the_undefined(installed, tmp_path):
    mine = progress.TensorBoard(tmp_path)
    mine.begin()
    mine.epoch(ROW)
    mine.close()
    (writer,) = Writer.made
    assert writer.folder == str(tmp_path / "tensorboard")
    assert writer.scalars["loss/training", 3] == 0.5
    assert writer.scalars["AUC/mean", 3] == 0.7
    assert writer.scalars["AUC/Mass", 3] == 0.6
    assert ("AUC/Hernia", 3) not in writer.scalars
    assert writer.closed


def test_begin_takes_away_what_an_earlier_training_wrote(installed, tmp_path):
    old = tmp_path / "tensorboard" / "events.out"
    old.parent.mkdir()
    old.write_text("old")
    progress.TensorBoard(tmp_path).begin()
    assert not old.exists()


def test_a_failing_writer_is_warned_of_once_and_ends_nothing(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(Writer, "add_scalar", lambda *given: 1 / 0)
    mine = progress.TensorBoard(tmp_path)
    with pytest.warns(UserWarning, match="TensorBoard failed"):
        mine.epoch(ROW)
    mine.epoch(ROW)
    mine.close()


def test_fit_writes_its_epochs_and_writes_them_again_when_it_goes_on(installed, tmp_path):
    def stop(progress):
        if len(progress.history) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(fit.Stopped):
        tiny.train(tmp_path, {"epochs": 2}, watch=stop)
    assert {step for _, step in Writer.made[-1].scalars} == {1}
    tiny.train(tmp_path, {"epochs": 2})
    assert len(Writer.made) == 2
    assert {step for _, step in Writer.made[-1].scalars} == {1, 2}


def test_without_it_nothing_is_imported_or_written(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tiny.train(tmp_path, {"epochs": 1})
    assert not (tmp_path / "tensorboard").exists()


def test_the_real_one_reads_back_what_was_written(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    mine = progress.TensorBoard(tmp_path)
    mine.epoch(ROW)
    mine.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    (event,) = read.Scalars("AUC/Mass")
    assert event.step == 3
    assert torch.tensor(event.value) == torch.tensor(0.6)
