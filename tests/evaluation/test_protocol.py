"""The protocol of a test: written once, grown with every reading, never reset without a word."""

import json
import shutil
import sys

import pandas as pd
import pytest

from cxrlib import paths
from cxrlib.evaluation import ensemble, protocol
from cxrlib.training import checkpoint

sys.path.insert(0, str(paths.PACKAGE.parent / "tests" / "training"))
import saved
import tiny

HOW = {"size": 32, "tta": "none", "seed": 0, "data": "d"}


@pytest.fixture
def test():
    return pd.DataFrame({"image": [f"{n:08d}_000.png" for n in range(90, 96)], "patient": range(90, 96)})


def stage(run, number=1, *patients, parent=None, weight=0.0):
    model = tiny.net()
    model.fc.bias.data.fill_(weight)
    return saved.save(paths.Run(run).stage(number), model, *patients, parent=parent, number=number, epoch=number)


def test_the_plan_is_written_before_and_names_what_is_tested(test):
    path = stage("base", 1, 1, 2)
    found = protocol.begin(paths.Run("base"), [path], test, **HOW)
    plan = paths.read_json(paths.Run("base").root / protocol.FILE)["plans"][0]
    assert plan["checkpoint"] == {"name": path.stem, "sha256": checkpoint.read_meta(path)["sha256"]}
    assert plan["films"]["number"] == plan["films"]["patients"] == 6
    assert not plan["films"]["official"]
    assert "14 findings" in str(found)
    assert found.sentences == [
        "Readings of these test films before this run: none in this outputs folder.",
        f"This run: 1 reading, checkpoints 1, first on {plan['when'][:10]}. Nothing was chosen on them.",
    ]


def test_the_same_look_again_is_not_counted_another_one_is(test):
    home, path = paths.Run("base"), stage("base", 1, 1, 2)
    for _ in range(3):
        protocol.begin(home, [path], test.sample(frac=1, random_state=1), **HOW)
    assert len(protocol.read(home).looks) == 1
    assert len(protocol.read(home).plans) == 1
    later = protocol.begin(home, [path], test, **{**HOW, "tta": "flip"})
    assert len(later.looks) == 2
    assert "The plan was changed on" in str(later)
    assert "after 1 reading of the test part" in str(later)


def test_readings_by_ancestors_and_other_runs_are_told(test):
    first = stage("base", 1, 1, 2)
    protocol.begin(paths.Run("base"), [first], test, **HOW)
    protocol.begin(paths.Run("other"), [stage("other", 1, 3, weight=1.0)], test, **HOW)
    child = stage("second", 2, 1, 2, parent=first, weight=2.0)
    found = protocol.begin(paths.Run("second"), [child], test, **HOW)
    assert found.looks["relation"].value_counts().to_dict() == {"an ancestor": 1, "another run": 1, "this run": 1}
    assert "before this run: 1 reading by an ancestor, 1 reading by another run" in str(found)
    assert "Since then other runs have read them: 2 readings." in protocol.read(paths.Run("base")).sentences


def test_readings_of_sets_that_share_films_are_told(test):
    protocol.begin(paths.Run("base"), [stage("base", 1, 1, 2)], test, **HOW)
    mine = test.iloc[2:5].assign(dataset="")
    other = protocol.begin(paths.Run("third"), [stage("third", 1, 5, weight=3.0)], mine, **HOW)
    assert other.looks["shared"].tolist() == [3, 3]
    assert "before this run: none" in str(other)
    assert "Other sets with some of these films: 1 reading, at most 3 of 3 films." in other.sentences
    last = protocol.begin(paths.Run("fourth"), [stage("fourth", 1, 6, weight=4.0)], test.iloc[4:], **HOW)
    assert "Other sets with some of these films: 2 readings, at most 2 of 2 films." in last.sentences
    assert "Other sets with some of these films: 2 readings, at most 3 of 6 films." in (
        protocol.read(paths.Run("base")).sentences
    )
    for damaged in protocol.folder().glob("films-*.txt"):
        damaged.write_text(damaged.read_text() + "another.png\n")
    again = protocol.begin(paths.Run("fourth"), [stage("fourth", 1, 6, weight=4.0)], test.iloc[4:], **HOW)
    assert again.looks["relation"].tolist() == ["this run"], "a damaged list of films is not believed"
    assert (
        protocol.begin(paths.Run("third"), [stage("third", 1, 5, weight=3.0)], mine, **HOW).looks["shared"].max() == 3
    )
    elsewhere = test.assign(dataset="our-hospital")
    found = protocol.begin(paths.Run("fifth"), [stage("fifth", 1, 7, weight=5.0)], elsewhere, **HOW)
    assert found.looks["relation"].tolist() == ["this run"], "films of another dataset can have the same names"


def test_a_deleted_run_and_a_deleted_protocol_still_count(test):
    home, path = paths.Run("base"), stage("base", 1, 1, 2)
    protocol.begin(home, [path], test, **HOW)
    child = stage("second", 2, 1, 2, parent=path, weight=2.0)
    shutil.rmtree(home.root)
    found = protocol.begin(paths.Run("second"), [child], test, **HOW)
    assert "before this run: 1 reading by an ancestor" in str(found)
    when = found.looks["when"].iloc[-1]
    (paths.Run("second").root / protocol.FILE).unlink()
    again = protocol.begin(paths.Run("second"), [child], test, **{**HOW, "tta": "flip"})
    assert "This run: 2 readings" in str(again)
    assert "deleted and made anew; its readings from before still count" in str(again)
    assert "The plan was written on" in str(again)
    assert when in again.looks["when"].tolist()


@pytest.mark.parametrize("damage", ["", "[]", "{}"])
def test_a_damaged_record_of_a_reading_is_told(test, damage):
    home, path = paths.Run("base"), stage("base", 1, 1, 2)
    protocol.begin(home, [path], test, **HOW)
    (file,) = protocol.folder().glob("base-*.json")
    file.write_text(damage)
    other = protocol.begin(paths.Run("other"), [stage("other", 1, 3, weight=1.0)], test, **HOW)
    assert "Of the records of readings 1 cannot be read, so they are not counted." in other.sentences
    assert len(other.looks) == 2, "the protocol itself still has it"
    assert not protocol.begin(home, [path], test, **HOW).notes, "it is written again"


def test_the_mean_of_runs_is_a_look_of_its_own(test):
    members = []
    for number, name in enumerate(("a", "b")):
        path = stage(name, 1, number, weight=number)
        protocol.begin(paths.Run(name), [path], test, **HOW)
        weights = checkpoint.read_meta(path)["sha256"]
        members.append(ensemble.Member(name, {}, weights, 32, "none", {}))
    found = protocol.begin_mean(paths.Run("mean"), members, test, of="probabilities", data="d")
    assert "before this run: 2 readings by a member" in str(found)
    assert found.plans[0]["stages"] == ["a", "b"]
    assert found.looks["relation"].tolist() == ["a member", "a member", "this run"]
    again = protocol.begin_mean(paths.Run("mean"), members[::-1], test, of="probabilities", data="d")
    assert (len(again.looks), len(again.plans)) == (3, 1), "the order of the members is no new look"
    other = protocol.begin_mean(paths.Run("mean"), members, test, of="logits", data="d")
    assert "The plan was changed on" in str(other)
    assert len(other.looks) == 4


@pytest.mark.parametrize("damage", ["digit", "cut", "empty", "list"])
def test_a_changed_protocol_is_kept_aside_and_told_for_ever(test, damage):
    home, path = paths.Run("base"), stage("base", 1, 1, 2)
    protocol.begin(home, [path], test, **HOW)
    file = home.root / protocol.FILE
    text = file.read_text(encoding="utf-8")
    changed = {"digit": text.replace('"number": 6', '"number": 7'), "cut": text[:-40], "empty": "", "list": "[]"}[
        damage
    ]
    file.write_text(changed, encoding="utf-8")
    assert protocol.read(home) is None
    assert protocol.is_damaged(home)
    for _ in range(2):
        found = protocol.begin(home, [path], test, **HOW)
        assert "changed or damaged" in str(found)
        assert "protocol.damaged-1.json" in str(found)
    assert (home.root / "protocol.damaged-1.json").read_text(encoding="utf-8") == changed


def test_predictions_without_a_protocol_are_told(test):
    home, path = paths.Run("base"), stage("base", 1, 1, 2)
    paths.write_text(home.predictions / "test.csv", "image\n")
    assert "without a protocol" in str(protocol.begin(home, [path], test, **HOW))
    assert "without a protocol" in str(protocol.read(home))


def test_another_runs_damaged_protocol_does_no_harm(test):
    paths.write_text(paths.outputs() / "wrong" / protocol.FILE, json.dumps({"plans": 3}))
    found = protocol.begin(paths.Run("base"), [stage("base", 1, 1)], test, **HOW)
    assert len(found.looks) == 1
    assert "The protocol of run wrong cannot be read, so its readings may not be counted." in found.sentences
    (paths.outputs() / "wrong" / protocol.FILE).unlink()
    assert not protocol.read(paths.Run("base")).notes, "it is not noted for ever"
