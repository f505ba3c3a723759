"""The mean of several runs' predictions: its arithmetic, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cxrlib import UserError, labels, paths, provenance
from cxrlib.evaluation import ensemble, predict

PROBABILITY = st.floats(0, 1, width=32)


def probabilities(films=4):
    return arrays.arrays(np.float64, (films, 15), elements=PROBABILITY)


MEMBERS = st.lists(probabilities(), min_size=1, max_size=5)


@given(MEMBERS, st.sampled_from(ensemble.WAYS), st.randoms())
def test_the_order_of_the_members_does_not_change_a_bit(members, of, random):
    mean = ensemble.average(members, of)
    shuffled = list(members)
    random.shuffle(shuffled)
    np.testing.assert_array_equal(ensemble.average(shuffled, of), mean)


@given(probabilities(), st.sampled_from(ensemble.WAYS), st.integers(1, 4))
def test_the_mean_of_one_run_or_of_equal_runs_is_itself(one, of, times):
    np.testing.assert_array_equal(ensemble.average([one] * times, of), one)


@given(MEMBERS, st.sampled_from(ensemble.WAYS))
def test_the_mean_lies_between_its_members(members, of):
    mean = ensemble.average(members, of)
    assert (mean >= np.min(members, axis=0)).all()
    assert (mean <= np.max(members, axis=0)).all()


@given(MEMBERS)
def test_probabilities_are_averaged_as_numpy_does(members):
    np.testing.assert_allclose(ensemble.average(members), np.mean(members, axis=0), rtol=1e-12)


@given(st.lists(arrays.arrays(np.float64, (3, 15), elements=st.floats(-12, 12)), min_size=1, max_size=4))
def test_logits_are_averaged_as_numpy_does(logits):
    members = [1 / (1 + np.exp(-values)) for values in logits]
    expected = 1 / (1 + np.exp(-np.mean(logits, axis=0)))
    np.testing.assert_allclose(ensemble.average(members, "logits"), expected, rtol=1e-9)


def test_the_mean_of_certain_members_is_finite():
    ends = np.array([[0.0] * 15, [1.0] * 15])
    for of in ensemble.WAYS:
        mean = ensemble.average([ends, 1 - ends], of)
        assert ((mean > 0) & (mean < 1)).all()
        np.testing.assert_array_equal(ensemble.average([ends, ends], of), ends)


@pytest.mark.parametrize(
    ("members", "of", "words"),
    [
        ([np.zeros((2, 15))], "ranks", "choose probabilities or logits"),
        ([], "logits", "0 members"),
        ([np.zeros((2, 15)), np.zeros((3, 15))], "logits", "2 shapes"),
    ],
)
def test_what_has_no_mean_is_refused(members, of, words):
    with pytest.raises(UserError, match=words):
        ensemble.average(members, of)


def films(count=12):
    rng = np.random.default_rng(3)
    truth = rng.random((count, 14)) < 0.4
    frame = pd.DataFrame(np.column_stack([truth, ~truth.any(1)]).astype(np.uint8), columns=list(labels.LABELS))
    return frame.assign(image=[f"{i:08d}_000.png" for i in range(count)], patient=np.arange(count) // 2)


def leave(name, *, seed=0, weights="w", fingerprint="f" * 16, change=None):
    """A run with predictions and a record. ``change``: films of each part to films as this run has them."""
    home, rng = paths.Run(name), np.random.default_rng(seed)
    for part in ensemble.PARTS:
        own = films().assign(image=lambda rows, part=part: part + rows["image"])
        own = change(part, own) if change else own
        file = predict.write(home.predictions / f"{part}.csv", own, rng.random((len(own), 15)))
        note = {"weights": weights * 64, "size": 32, "tta": "none", predict.CSV_HASH: provenance.file_sha256(file)}
        paths.write_json(predict.cache_note(file), note, guarded=True)
    record(home, fingerprint)
    return home


def record(home, fingerprint="f" * 16):
    names = [f"predictions/{part}.csv" for part in ensemble.PARTS]
    made = {name: paths.result_mark(home.root / name) for name in names}
    films_of_run = {"fingerprint": fingerprint, "films": 24, "folder": "/films"}
    entry = {"state": "done", "made": made}
    paths.write_json(home.run_json, {"run": home.name, "data": films_of_run, "notebooks": {"06_evaluation": entry}})


def read(*names):
    return ensemble.read([ensemble.member(name) for name in names])


def test_members_are_read_in_one_order():
    leave("a")
    leave("b", seed=1, change=lambda part, rows: rows.sample(frac=1, random_state=2))
    said = read("a", "b")
    by_file = pd.read_csv(paths.Run("b").predictions / "test.csv").set_index("image")
    assert said["test"][0].images == said["test"][1].images
    expected = by_file.loc[said["test"][0].images, predict.PROBABILITIES].to_numpy()
    np.testing.assert_array_equal(said["test"][1].probabilities, expected)


OTHERS = {
    "other test films": (lambda part, rows: rows.iloc[1:] if part == "test" else rows, "test films of a and b differ"),
    "other validation films": (
        lambda part, rows: rows.iloc[1:] if part == "val" else rows,
        r"validation films of a and b differ \(12 and 11, 11 of them the same\).*trained again",
    ),
    "other labels": (lambda part, rows: rows.assign(Mass=1 - rows["Mass"]), "other labels or patients for 12"),
    "other patients": (lambda part, rows: rows.assign(patient=rows["patient"] + 1), "other labels or patients for 12"),
    "an unknown label": (
        lambda part, rows: rows.assign(Mass=rows["Mass"].where(rows.index > 0)),
        "other labels or patients for 1 validation films, the first val00000000_000.png",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_members_of_other_films_or_labels_are_refused(case):
    change, words = OTHERS[case]
    leave("a")
    leave("b", change=change)
    with pytest.raises(UserError, match=words):
        read("a", "b")


def test_members_of_other_data_are_refused():
    leave("a")
    leave("b", fingerprint="e" * 16)
    with pytest.raises(UserError, match="a and b are of other data"):
        read("a", "b")


def test_labels_in_another_order_are_refused():
    leave("a")
    home = leave("b")
    for part in ensemble.PARTS:
        file = home.predictions / f"{part}.csv"
        frame = pd.read_csv(file)
        names = list(frame)
        i, k = names.index("prob_Mass"), names.index("prob_Edema")
        names[i], names[k] = names[k], names[i]
        frame[names].to_csv(file, index=False)
        note = paths.read_json(predict.cache_note(file)) | {predict.CSV_HASH: provenance.file_sha256(file)}
        paths.write_json(predict.cache_note(file), note, guarded=True)
    record(home)
    with pytest.raises(UserError, match="in this order"):
        read("a", "b")


def damage(home, what):
    file = home.predictions / "test.csv"
    if what == "a digit":
        file.write_text(file.read_text().replace(",0.5", ",0.6"))
    if what == "a digit and its note":
        file.write_text(file.read_text().replace(",0.5", ",0.6"))
        note = paths.read_json(predict.cache_note(file)) | {predict.CSV_HASH: provenance.file_sha256(file)}
        paths.write_json(predict.cache_note(file), note, guarded=True)
    if what == "the note":
        predict.cache_note(file).write_text("{")
    if what == "no note":
        predict.cache_note(file).unlink()
    if what == "no file":
        file.unlink()
    if what == "an empty record":
        paths.write_json(home.run_json, {"run": "a", "data": None})
    if what == "no record":
        home.run_json.unlink()
    if what == "another checkpoint":
        note = paths.read_json(predict.cache_note(file)) | {"weights": "x" * 64}
        paths.write_json(predict.cache_note(file), note, guarded=True)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a digit", "test.csv is not what the run predicted"),
        ("a digit and its note", r"predictions/test.csv of run a is not what the run made.*cxr run --run a"),
        ("the note", "test.json was changed or damaged"),
        ("no note", "run a has no predictions/test.csv with its note"),
        ("no file", "run a has no predictions/test.csv"),
        ("an empty record", "run a has no record of its films"),
        ("no record", "there is no run 'a' with a record"),
        ("another checkpoint", "not predicted by one checkpoint"),
    ],
)
def test_a_member_that_is_not_whole_is_refused(what, words):
    home = leave("a")
    damage(home, what)
    with pytest.raises(UserError, match=words) as caught:
        ensemble.member("a")
    assert len(str(caught.value).splitlines()) == 1


def test_a_mean_is_no_member():
    home = leave("a")
    paths.write_json(home.run_json, paths.read_json(home.run_json) | {"members": [{"run": "x"}, {"run": "y"}]})
    with pytest.raises(UserError, match="a is itself the mean of x, y"):
        ensemble.member("a")
