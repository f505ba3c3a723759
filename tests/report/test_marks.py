import re

import numpy as np
import pandas as pd
import pytest

from cxrlib.report import page


def curve(**columns):
    base = {"finding": "Pleural_Thickening", "rate": [0, 0.5, 1], "sensitivity": [0, 0.9, 1]}
    return pd.DataFrame(base | columns)


def test_a_curve_runs_from_corner_to_corner_and_says_whose_it_is():
    drawn = page.svg_roc(curve())
    assert 'aria-label="ROC curve of Pleural Thickening"' in drawn
    points = re.search(r'class="curve" points="([^"]+)"', drawn).group(1).split()
    assert points[0] == "0,100"
    assert points[-1] == "100.0,0.0"
    assert "50.0,10.0" in points


def test_a_band_is_drawn_where_there_are_numbers_for_it():
    assert "polygon" not in page.svg_roc(curve())
    assert "polygon" not in page.svg_roc(curve(low=np.nan, high=np.nan))
    assert "polygon" in page.svg_roc(curve(low=[0, 0.8, 1], high=[0, 1, 1]))


def test_a_long_curve_is_thinned():
    steps = np.linspace(0, 1, 5000)
    drawn = page.svg_roc(pd.DataFrame({"finding": "Mass", "rate": steps, "sensitivity": steps}))
    assert len(drawn) < 3000


def test_an_undefined_curve_says_so():
    assert "undefined" in page.svg_roc(curve().assign(rate=np.nan))


def test_a_name_is_escaped():
    assert "<b>" not in page.svg_roc(curve(finding="<b>"))


@pytest.mark.parametrize(("value", "left"), [(0.4, 0), (0.7, 100), (1.0, 200), (0.1, 0), (1.5, 200)])
def test_a_value_stands_where_it_belongs_and_never_outside(value, left):
    drawn = page.svg_interval(value, np.nan, np.nan, least=0.4, most=1.0, neutral=0.5)
    assert float(re.search(r'cx="([\d.]+)"', drawn).group(1)) == pytest.approx(left)
    assert "whisker" not in drawn


def test_an_interval_is_told_in_words():
    drawn = page.svg_interval(0.8, 0.7, 0.9, least=0.4, most=1.0, neutral=0.5)
    assert 'aria-label="AUC 0.800, interval 0.700 to 0.900"' in drawn
    assert "undefined" in page.svg_interval(np.nan, 0.7, 0.9, least=0, most=1, neutral=0.5)


def test_precision_over_recall_has_the_prevalence_as_its_chance_line():
    points = pd.DataFrame(
        {"finding": "Mass", "recall": [0.5, 1], "precision": [1, 0.2], "positives": 20, "negatives": 80}
    )
    assert 'class="chance" d="M0 80.0H100"' in page.svg_pr(points)
    assert "chance" not in page.svg_pr(points.drop(columns=["positives", "negatives"]))
    assert "undefined" in page.svg_pr(points.assign(recall=np.nan))


def test_a_calibration_curve_fills_its_box_and_says_where_the_axes_end():
    points = pd.DataFrame({"finding": "Mass", "reading": "raw", "probability": [0.1, 0.2], "observed": [0.1, 0.3]})
    drawn, top = page.svg_reliability(points)
    assert top == pytest.approx(0.33)
    assert "axes from 0 to 0.33" in drawn
    assert "faint" not in drawn
    both = pd.concat([points, points.assign(reading="calibrated")])
    assert page.svg_reliability(both)[0].count("curve faint") == 1


def test_several_values_have_a_line_a_shape_and_words_each():
    values = [page.Value(name, 0.7, 0.6, 0.8) for name in "abcde"]
    drawn = page.svg_intervals([*values[:4], page.Value("<e>", np.nan, np.nan, np.nan)], least=0.5, most=1, neutral=0.5)
    assert f'viewBox="-4 0 {page.WIDTH + 8} {5 * page.LINE}"' in drawn
    assert [f"run{i}" in drawn for i in range(5)] == [True] * 4 + [False]
    assert "a 0.700, interval 0.600 to 0.800; b" in drawn
    assert "&lt;e&gt; undefined" in drawn
    assert len({str(page.svg_sign(i)) for i in range(len(page.SHAPES))}) == len(page.SHAPES)


def test_differences_are_drawn_on_one_scale_that_is_even_around_0():
    table = pd.DataFrame({"difference": [0.1, -0.05], "low": [0.05, -0.2], "high": [0.15, 0.1]})
    rows = page.svg_differences(table, sides=("higher", "lower"))
    assert page.reach_of_differences(table) == 0.2
    centres = [float(re.search(r'cx="([\d.]+)"', row["mark"]).group(1)) for row in rows]
    assert centres == pytest.approx([150, 75])
    assert [row["says"] for row in rows] == ["higher", "no difference shown"]
    assert page.reach_of_differences(table.head(0)) == page.reach_of_differences(table * np.nan) == 0.02
