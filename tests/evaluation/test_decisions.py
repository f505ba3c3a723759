"""Calibration and thresholds in a checkpoint's JSON; writing them does not change the checkpoint's identity."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from cxrlib import UserError, paths, provenance
from cxrlib.evaluation import thresholds
from cxrlib.labels import LABELS
from cxrlib.training import checkpoint, lineage, schedules
from cxrlib.workbook import run_record


@pytest.fixture
def path(own_outputs):
    """A checkpoint of one weight in a run's first stage; only its JSON matters here."""
    return saved(0.0)


def saved(weight):
    line, stage = lineage.of_stage(None, "none"), paths.Run("demo").stage(1)
    state = {"fc.bias": torch.full((15,), weight)}
    return checkpoint.save(stage, state, schedules.recipe("scratch", 1), line, epoch=1, metrics={})


@pytest.fixture
def validation():
    """200 films with 15 labels, the last finding absent, and a network's probabilities."""
    rng = np.random.default_rng(0)
    known = (rng.random((200, 15)) < 0.3).astype(np.uint8)
    known[:, 13] = 0
    return known, np.clip(0.2 + 0.3 * known + 0.3 * rng.random(known.shape), 0, 1)


def test_who_has_the_checkpoint_decides_as_its_evaluation_did(path, validation):
    made = thresholds.fit_decisions(*validation, size=64, tta="flip")
    thresholds.attach_decisions(path, made)
    found = thresholds.read_decisions(path)
    assert found.calibration == made.calibration
    assert found.made_on == {"part": "validation", "films": 200, "size": 64, "tta": "flip"}
    known, said = validation
    judged = found.judge(known, said, np.arange(200))
    pd.testing.assert_frame_equal(
        judged.drop(columns="reason"), made.judge(known, said, np.arange(200)).drop(columns="reason")
    )
    for rule in thresholds.RULES:
        calls, rows = found.calls(said, rule), judged[judged["rule"] == rule]
        assert np.isnan(calls[:, 13]).all(), "no threshold for a finding that validation lacks"
        np.testing.assert_allclose(calls[known[:, 4] == 1, 4].mean(), rows["sensitivity"].iloc[4])
        np.testing.assert_allclose(1 - calls[known[:, 9] == 0, 9].mean(), rows["specificity"].iloc[9])
    assert judged["reason"][judged["finding"] == "Hernia"].str.startswith("validation: no").all()
    with pytest.raises(UserError, match="choose youden, f1, sensitivity_90"):
        found.calls(said, "best")


def test_thresholds_are_on_calibrated_probabilities(validation):
    known, said = validation
    made = thresholds.fit_decisions(known, said)
    np.testing.assert_array_equal(
        made.cuts("f1"), thresholds.vector(thresholds.as_dict(thresholds.choose(known, made.calibration(said))), "f1")
    )
    assert made.calls(said, "sensitivity_90")[known[:, 0] == 1, 0].mean() >= 0.9


def test_a_checkpoint_without_them_says_how_to_come_by_them(path):
    with pytest.raises(UserError, match="carries no calibration; run 06_evaluation"):
        thresholds.read_decisions(path)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("calibration", lambda values: values | {"labels": [*LABELS[::-1]]}, "labels"),
        ("calibration", lambda values: values | {"slopes": values["slopes"][:3]}, "15 labels"),
        ("calibration", lambda values: values | {"slopes": [-1.0] * 15}, "rising line"),
        ("calibration", lambda values: values | {"intercepts": ["x"] * 15}, "rising line"),
        ("calibration", lambda values: {"labels": values["labels"]}, "lacks 'kind'"),
        ("thresholds", lambda values: values | {"youden": dict.fromkeys(LABELS, 1.5)}, "Atelectasis at 1.5"),
        ("thresholds", lambda values: values | {"youden": {"Mass": 0.5}}, "labels"),
        ("thresholds", lambda values: values | {"youden": [0.5] * 15}, "damaged|labels"),
        ("thresholds", lambda values: [1, 2], "damaged"),
    ],
)
def test_damaged_ones_are_named(path, validation, name, damage, says):
    thresholds.attach_decisions(path, thresholds.fit_decisions(*validation))
    file = path.with_suffix(".json")
    meta = paths.read_json(file)  # without the guard
    meta["attached"][name] = damage(meta["attached"][name])
    file.write_text(json.dumps(meta))
    with pytest.raises(UserError, match=says) as caught:
        thresholds.read_decisions(path)
    assert path.stem in str(caught.value)


def test_a_notebook_told_to_read_the_checkpoint_is_not_made_again_for_it(path, validation, tmp_path):
    """The fingerprint covers files that ``ckpt`` may mean, and an evaluation writes beside them."""
    book, kept = tmp_path / "06_evaluation.ipynb", {"run": "demo", "notebooks": {}, "data": {"fingerprint": "f"}}
    book.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    for number, ckpt in enumerate((path.stem, str(path), str(path.with_suffix(""))), 1):
        before = run_record.fingerprint(book, [book], {book.stem: {"ckpt": ckpt}}, kept)
        thresholds.attach_decisions(path, thresholds.fit_decisions(*validation, size=len(ckpt)))
        assert run_record.fingerprint(book, [book], {book.stem: {"ckpt": ckpt}}, kept) == before
        saved(float(number))
        assert run_record.fingerprint(book, [book], {book.stem: {"ckpt": ckpt}}, kept) != before


def test_the_hash_that_lineage_depends_on_stays(path, validation):
    before = lineage.ancestors(path)
    thresholds.attach_decisions(path, thresholds.fit_decisions(*validation))
    assert lineage.ancestors(path) == before
    assert provenance.file_sha256(path) == checkpoint.read_meta(path)["sha256"]
