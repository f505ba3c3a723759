"""One order of labels, and no text read as something that it does not say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlib import UserError, labels


def test_the_order_of_the_paper():
    assert len(labels.FINDINGS) == len(set(labels.FINDINGS)) == 14
    assert (*labels.FINDINGS, "No Finding") == labels.LABELS
    assert [labels.column(name) for name in labels.LABELS] == list(range(15))


@given(st.sets(st.sampled_from(labels.FINDINGS), min_size=1))
def test_encode_and_decode_are_inverse(findings):
    vector = labels.encode("|".join(findings))
    assert vector.dtype == np.uint8
    assert vector.sum() == len(findings)
    assert vector[-1] == 0
    assert set(labels.decode(vector).split("|")) == findings
    np.testing.assert_array_equal(labels.encode(labels.decode(vector)), vector)


def test_no_finding_stands_alone():
    assert labels.encode("No Finding").tolist() == [0] * 14 + [1]
    with pytest.raises(UserError, match="beside a finding"):
        labels.encode("Mass|No Finding")


def test_other_spellings():
    assert labels.column("Infiltrate") == labels.column("Infiltration")
    np.testing.assert_array_equal(
        labels.encode(" Pleural Thickening | Mass "), labels.encode("Mass|Pleural_Thickening")
    )


@given(st.text(max_size=40))
def test_any_other_text_is_refused(text):
    known = {name.strip() for name in text.split("|")} <= {*labels.LABELS, *labels.ALIASES}
    if not known:
        with pytest.raises(UserError, match="unknown label"):
            labels.encode(text)


@pytest.mark.parametrize("text", ["", "|", "Mass|", "mass", "Mass,Nodule", "Hernia|Hernie"])
def test_texts_met_in_spoilt_files_are_refused(text):
    with pytest.raises(UserError, match="unknown label"):
        labels.encode(text)


def test_another_order_raises():
    labels.check_order(labels.LABELS, "here")
    with pytest.raises(UserError, match="there: labels are"):
        labels.check_order(sorted(labels.LABELS), "there")
