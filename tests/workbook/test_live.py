"""The live plot shows a stage's progress, draws seldom, and draws nothing outside a notebook."""

from types import SimpleNamespace

import numpy as np
import pytest

from cxrlib.training import schedules
from cxrlib.training.progress import Progress
from cxrlib.workbook import kernels, live

HISTORY = [{"epoch": 1, "val_loss": 0.4, "val_auc": 0.61}, {"epoch": 2, "val_loss": 0.3, "val_auc": 0.66}]


@pytest.fixture
def progress(tmp_path):
    return Progress(tmp_path, schedules.recipe("scratch", 1), 10, shown=False)


@pytest.fixture
def shown(monkeypatch):
    """Pictures that a notebook would show, in order, new or updated."""
    from IPython import display as room

    pictures = []

    def display(picture, display_id):
        pictures.append(("new", picture))
        return SimpleNamespace(update=lambda later: pictures.append(("update", later)))

    monkeypatch.setattr(room, "display", display)
    monkeypatch.setattr(live, "_in_notebook", lambda: True)
    monkeypatch.delenv(live.QUIET, raising=False)
    return pictures


def texts(ax):
    return " ".join(text.get_text() for text in ax.texts)


def test_a_moment_is_drawn_as_it_is(progress):
    fig = live.draw_progress(progress)
    assert "after the first epoch" in texts(fig.axes[1])
    for batch in range(1, 6):
        progress.step(0, batch, 32, 0.5 / batch)
    progress.history.extend(HISTORY)
    fig = live.draw_progress(progress)
    fig.canvas.draw()
    loss, auc = fig.axes
    assert np.allclose(loss.lines[0].get_ydata(), [value for _, value in progress.curve])
    assert list(auc.lines[0].get_ydata()) == [0.61, 0.66]
    assert fig.get_suptitle().startswith("stage 1, epoch 1 of 4, batch 5 of 10")
    assert "images/s" in fig.get_suptitle()
    assert "left" in fig.get_suptitle()


def test_one_picture_updated_in_its_place(progress, shown):
    plot = live.Plot()
    plot(progress)
    plot(progress)
    assert [how for how, _ in shown] == ["new"], "drawn again at once"
    progress.history.append(HISTORY[0])
    plot(progress)
    progress.done = True
    plot(progress)
    assert [how for how, _ in shown] == ["new", "update", "update"]
    assert shown[0][1].data.startswith(b"\x89PNG")


def test_quiet_when_told_so_and_outside_notebooks(progress, shown, monkeypatch):
    monkeypatch.setenv(live.QUIET, "1")
    live.Plot()(progress)
    monkeypatch.delenv(live.QUIET)
    monkeypatch.setattr(live, "_in_notebook", lambda: False)
    live.Plot()(progress)
    assert shown == []


def test_a_run_is_quiet():
    assert kernels.environment()[live.QUIET] == "1"
