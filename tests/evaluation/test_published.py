"""Published results: their means fit their findings, and only runs on the official test part are compared."""

import numpy as np
import pandas as pd
import pytest

from cxrlib.evaluation import summary
from cxrlib.labels import FINDINGS


def test_means_are_those_of_the_findings():
    for result in summary.PUBLISHED:
        if not np.isnan(result.findings[0]):
            assert np.mean(result.findings) == pytest.approx(result.mean, abs=0.0011), result.method
        assert 0.7 < result.mean < 0.85
        assert result.source


def ours():
    rows = {"finding": [*FINDINGS, "mean of 14"], "auc": 0.8, "auc_low": 0.79, "auc_high": 0.81}
    return pd.DataFrame(rows)


def test_other_films_are_not_compared_and_it_is_said_why():
    table, why = summary.beside_published(ours(), ["a.png", "b.png"], "demo")
    assert table.empty
    assert "2 films" in why
    assert "25,596" in why


@pytest.mark.real
def test_the_official_part_in_full_is_compared(nih_metadata):
    names = (nih_metadata / "test_list.txt").read_text().split()
    table, why = summary.beside_published(ours(), names[::-1], "base")
    assert why == ""
    assert table.iloc[0]["method"] == "base"
    assert table.iloc[0]["mean_low"] == 0.79
    assert len(table) == len(summary.PUBLISHED) + 1
    assert summary.why_not_beside_published(names[1:])
    assert summary.why_not_beside_published([*names[1:], "other.png"])
