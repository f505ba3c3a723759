import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cxrlib.data import records
from cxrlib.evaluation import localisation
from cxrlib.labels import FINDINGS
from cxrlib.plots import exploration, results


@pytest.fixture
def films(tiny_phantom):
    return records.read(tiny_phantom), records.read_boxes(tiny_phantom)


def test_each_finding_is_shown_once_on_a_film_that_has_it(films):
    examples = exploration.one_of_each(*films)
    assert list(examples["shown"]) == list(FINDINGS)
    assert all(row[row["shown"]] == 1 for _, row in examples.iterrows())


def test_a_film_with_the_findings_box_is_preferred(films):
    rows, boxes = films
    examples = exploration.one_of_each(rows, boxes).set_index("shown")
    for finding, own in boxes.groupby("finding"):
        assert examples.loc[finding, "image"] in set(own["image"])


def test_the_box_is_drawn_in_the_films_own_pixels(films):
    rows, boxes = films
    examples = exploration.one_of_each(rows, boxes)
    boxed = examples[examples["shown"].isin(boxes["finding"])].head(1)
    fig, axes = plt.subplots(1, 1, squeeze=False)
    exploration.show_examples(boxed, boxes, axes)
    box = boxes[(boxes["image"] == boxed["image"].item()) & (boxes["finding"] == boxed["shown"].item())].iloc[0]
    drawn = axes[0, 0].patches[-1]
    assert drawn.get_x() == pytest.approx(box["x"] * 64 / 1024)
    assert drawn.get_height() == pytest.approx(box["h"] * 64 / 1024)
    plt.close(fig)


def test_no_films_no_examples(films):
    rows, boxes = films
    assert exploration.one_of_each(rows.head(0), boxes).empty


def test_the_cross_is_at_the_maps_maximum():
    heat = np.zeros((1, 16, 16))
    heat[0, 3, 12] = 1
    box = np.zeros((1, 16, 16), bool)
    box[0, 2:6, 10:14] = True
    fig, axes = plt.subplots(1, 1, squeeze=False)
    results.show_maps(np.full((1, 16, 16), 90, np.uint8), heat, box, ["Mass"], axes)
    crosses = [line for line in axes[0, 0].lines if line.get_marker() == "+"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(12, 3)] * 2
    plt.close(fig)


def test_of_equal_maxima_the_middle_is_marked_and_without_evidence_nothing_is():
    heat = np.zeros((2, 16, 16))
    heat[0, 4:8, 8:12] = 1
    fig, axes = plt.subplots(1, 2)
    results.show_maps(np.full((2, 16, 16), 90, np.uint8), heat, heat > 0, ["Mass", "Mass"], axes)
    crosses = [[line for line in ax.lines if line.get_marker() == "+"] for ax in axes]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses[0]] == [(9.5, 5.5)] * 2
    assert crosses[1] == []
    assert len(axes[1].images) == 1, "the film alone"
    plt.close(fig)


def test_lifts_and_overlaps_draw_what_the_tables_say():
    random = np.random.default_rng(0)
    wanted = pd.DataFrame({"finding": ["Mass"] * 20 + ["Edema"] * 4, "patient": np.arange(24)})
    scored = pd.DataFrame({"hit": random.random(24) < 0.5, "chance": 0.2, "iou": random.random(24), "iobb": 0.6})
    table = localisation.table(wanted, scored.astype(float), replicates=50)
    fig, (left, right) = plt.subplots(1, 2)
    results.lifts({"Grad-CAM": table, "weights drawn anew": table.head(1)}, left)
    assert [tick.get_text() for tick in left.get_yticklabels()] == [
        "Mass  (n = 20)",
        "Edema  (n = 4)",
        "all findings  (n = 24)",
    ]
    results.overlaps(table, right)
    drawn = {line.get_label(): line for line in right.containers}
    shares = drawn["IoU"].lines[0].get_ydata()
    assert shares == pytest.approx([(scored["iou"] >= least).mean() for least in localisation.OVERLAPS])
    assert drawn["IoBB"].lines[0].get_ydata() == pytest.approx([1, 1, 1, 0])
    plt.close(fig)
