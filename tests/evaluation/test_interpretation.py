"""What a film's probabilities mean: the same as the checkpoint's decisions, and never more than is known."""

import numpy as np
import pytest

from cxrlib import UserError
from cxrlib.evaluation import interpretation, reference, thresholds
from cxrlib.labels import FINDINGS, LABELS, NO_FINDING
from tests.evaluation import tiny_reader


@pytest.fixture(scope="module")
def known():
    answers, said = tiny_reader.validation()
    made = thresholds.fit_decisions(answers, said)
    return answers, said, made, reference.make(answers, said, made)


def columns(interpreter, said, name):
    return np.array([[row[name] for row in interpreter.findings(film)] for film in said])


@pytest.mark.parametrize("rule", [*thresholds.RULES])
def test_a_film_is_decided_as_the_checkpoint_decides(known, rule):
    _, said, made, ref = known
    interpreter = interpretation.Interpreter(made, ref, rule)
    np.testing.assert_array_equal(
        columns(interpreter, said[:20], "decision") == "positive", made.calls(said[:20], rule) == 1
    )
    np.testing.assert_array_equal(columns(interpreter, said[:20], "probability"), made.calibration(said[:20]))
    np.testing.assert_array_equal(columns(interpreter, said[:20], "network"), said[:20])
    assert [row["finding"] for row in interpreter.findings(said[0])] == list(LABELS)


def test_a_stated_prevalence_replaces_the_base_rate_and_the_rest_keeps_it(known, tmp_path):
    answers, said, made, ref = known
    file = tmp_path / "clinic.csv"
    file.write_text("Finding;Prevalence\npleural thickening;0.01\nInfiltrate;0.5\n")
    interpreter = interpretation.Interpreter(made, ref, "youden", *interpretation.read_prevalence(file))
    expected = answers.mean(0)
    expected[[LABELS.index("Pleural_Thickening"), LABELS.index("Infiltration")]] = 0.01, 0.5
    np.testing.assert_allclose(interpreter.prevalence, expected)
    np.testing.assert_allclose(columns(interpreter, said[:1], "ppv")[0], ref.predictive_values("youden", expected)[0])
    np.testing.assert_allclose(columns(interpreter, said[:1], "base_rate")[0], answers.mean(0))
    assert interpreter.sources == "clinic.csv, else the base rate in validation"
    assert interpretation.Interpreter(made, ref).sources == "the base rate in validation"
    everywhere = interpretation.read_prevalence(dict.fromkeys(LABELS, 0.2))
    assert interpretation.Interpreter(made, ref, "f1", *everywhere).sources == "stated"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("finding,prevalence\nCough,0.1\n", "row 2: unknown label 'Cough'"),
        ("finding,prevalence\nMass,3\n", "row 2: prevalence '3' is not a share"),
        ("finding,prevalence\nMass,nan\n", "is not a share"),
        ("finding,prevalence\nMass,3 %\n", "is not a share"),
        ("finding,prevalence\nMass,0.1\nmass,0.2\n", "row 3: mass is there twice"),
        ("finding,share\nMass,0.1\n", "one column finding and one column prevalence"),
        (None, "is not there"),
    ],
)
def test_a_wrong_prevalence_is_told_with_its_row(tmp_path, text, says):
    file = tmp_path / "clinic.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=says):
        interpretation.read_prevalence(file)


def test_what_is_unknown_is_none_and_said(known):
    _, said, made, ref = known
    bare = interpretation.Interpreter(None, None)
    for row in bare.findings(said[0]):
        assert {name for name, value in row.items() if value is not None} == {"finding", "network"}
    assert len(bare.remarks()) == 2
    alone = interpretation.Interpreter(made, None)
    rows = alone.findings(said[0])
    assert {row["decision"] for row in rows} == {"positive", "negative"}
    assert {row[name] for row in rows for name in ("percentile", "ppv", "npv", "base_rate")} == {None}
    assert alone.sources == ""
    assert "too good" in interpretation.Interpreter(made, ref).remarks()[0], "rates are from validation"
    with pytest.raises(UserError, match="choose youden, f1, sensitivity_90"):
        interpretation.Interpreter(None, None, "best")
    with pytest.raises(UserError, match="'best' is unknown"):
        interpretation.Interpreter(made, ref, "best")


def test_findings_are_ranked_by_percentile_and_no_finding_comes_last(known):
    _, said, made, ref = known
    for film in said[:10]:
        rows = interpretation.ranked(interpretation.Interpreter(made, ref).findings(film))
        shares = [row["percentile"] for row in rows[:-1]]
        assert shares == sorted(shares, reverse=True)
        assert rows[-1]["finding"] == NO_FINDING
    bare = interpretation.ranked(interpretation.Interpreter(None, None).findings(said[0]))
    assert [row["finding"] for row in bare[:-1]] == [FINDINGS[k] for k in np.argsort(-said[0][:-1])]


def test_percentiles_in_words_never_round_to_all_or_none():
    words = [interpretation.in_words(value) for value in (0, 0.2, 93.4, 99.8, 100, None)]
    assert words == [
        "lower than all films without it",
        "higher than 1 % of the films without it",
        "higher than 93 % of the films without it",
        "higher than 99 % of the films without it",
        "higher than all films without it",
        "",
    ]
