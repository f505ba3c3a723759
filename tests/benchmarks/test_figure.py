"""The figure of the benchmarks: which side of its target a figure is on, and that nothing runs into anything else."""

import itertools

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cxrlib import UserError
from tests.benchmarks import figure, rows

MEASURED = [
    rows.Row("data: faster than aimed at", 900.0, "films/s", 3.0, 300.0, ">= 100 x", 96, 0.2),
    rows.Row("data: slower than aimed at", 5.0, "films/s", 4.0, 1.25, ">= 2.5 x", 96, 0.1),
    rows.Row("data: half of what is allowed", 0.5, "s", target="<= 1 s", n=9, spread=0.0),
    rows.Row("data: twice what is allowed", 2.0, "%", target="< 1 %"),
    rows.Row("data: a cost as a ratio", 3.0, "ms", 2.0, 1.5, "<= 1.25 x"),
    rows.Row("data: skipped", "", "films/s", target=">= 2 x", conditions="skipped: not installed"),
    rows.Row("training: without a target", 7.0, "films/s", 1.0, 7.0),
    rows.Row("evaluation: no distance at all", 0.0, "AUC", target="<= 1e-9"),
    rows.Row("evaluation: coverage", 95.0, "%", target="93 to 97 %"),
]


@pytest.fixture
def results(own_outputs):
    return rows.merge(MEASURED)


def read(path) -> pd.DataFrame:
    return figure.margins(pd.read_csv(path, dtype=str, keep_default_na=False))


def test_a_margin_is_above_one_when_the_target_is_met(results):
    found = read(results).set_index("label")["margin"]
    assert found.drop("no distance at all").to_dict() == pytest.approx(
        {
            "faster than aimed at": 3,
            "slower than aimed at": 0.5,
            "half of what is allowed": 2,
            "twice what is allowed": 0.5,
            "a cost as a ratio": 1.25 / 1.5,
        }
    )
    assert found["no distance at all"] > figure.REACH


def test_a_target_in_other_words_is_named(own_outputs):
    path = rows.merge([rows.Row("data: x", 1.0, "s", target="fast")])
    with pytest.raises(UserError, match=r"data: x.*'fast'"):
        read(path)


def test_nothing_measured_is_said(own_outputs):
    with pytest.raises(UserError, match="make bench"):
        figure.figure(read(rows.merge([MEASURED[6]])))


def test_words_do_not_overlap(results):
    fig = figure.figure(read(results))
    FigureCanvasAgg(fig).draw()
    texts = [text for ax in fig.axes for text in (*ax.get_yticklabels(), *ax.texts, ax.title)]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 6 + 6 + 2
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    edge = fig.bbox
    assert all(edge.x0 <= box.x0 and box.x1 <= edge.x1 for box in boxes)


def test_the_picture_is_written_whole(results, tmp_path):
    path = figure.write(results, tmp_path / "figures" / "bench.png")
    with Image.open(path) as picture:
        picture.load()
        assert picture.width > 800
    assert [file.name for file in path.parent.iterdir()] == ["bench.png"]
