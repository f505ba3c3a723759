"""The reading room: what its numbers are, what its controls do, and what it says where something is absent."""

import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from cxrlib import UserError, dataset, labels, paths, provenance
from cxrlib.data import exclusion, store
from cxrlib.evaluation import predict, reading, thresholds
from cxrlib.training import checkpoint, network
from cxrlib.workbook import reading_room
from tests.training import tiny
from tests.workbook import rooms
from tests.workbook.rooms import SIZE

FINDING = "Mass"
COLUMN = labels.column(FINDING)


@pytest.fixture(scope="module")
def trained(tiny_phantom, tmp_path_factory):
    """Outputs with a run of a tiny network on the phantom films."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXR_OUTPUTS", str(tmp_path_factory.mktemp("trained")))
        rooms.leave("tiny", tiny_phantom, tiny.net())
        return paths.outputs()


@pytest.fixture
def whole(trained, own_outputs):
    """The run in outputs of this test's own."""
    shutil.copytree(trained, own_outputs, dirs_exist_ok=True)
    return paths.Run("tiny")


@pytest.fixture
def small(monkeypatch):
    """The network that the room builds is as small as the one that was trained."""
    build = network.build
    monkeypatch.setattr(network, "build", lambda weights, **_: build(weights, layers=(1, 1, 1, 1)))


@pytest.fixture
def room(whole, small, tiny_phantom):
    return reading_room.open_room("tiny", "test", FINDING, data=str(tiny_phantom))


def made_up(n, *, unknown=0.0, pixels=8, run="made-up"):
    """A reading of n films of n / 4 patients without files and network."""
    random = np.random.default_rng(0)
    patients = np.sort(random.integers(0, max(n // 4, 1), n))
    follow_ups = pd.Series(patients).groupby(patients).cumcount().to_numpy()
    truth = (random.random((n, 15)) < 0.2).astype(float)
    truth[random.random((n, 15)) < unknown] = np.nan
    said = np.round(random.beta(1, 4, (n, 15)), 3)
    films = pd.DataFrame({"image": [f"{a:08}_{b:03}.png" for a, b in zip(patients, follow_ups, strict=True)]})
    films = films.assign(patient=patients, follow_up=follow_ups, age=np.nan, sex="", view="")
    grey = random.integers(0, 255, (n, pixels, pixels), dtype=np.uint8)
    held = store.Store(
        paths.outputs(), pixels, films["image"].tolist(), grey, "", {}, {}, np.arange(n, dtype=np.uint32)
    )
    boxes = pd.DataFrame(columns=["image", "finding", "x", "y", "w", "h"])
    return reading.Reading(paths.Run(run), "test", films, held, boxes, truth, said, said)


@pytest.fixture
def of(monkeypatch):
    """A room on a made-up reading."""

    def opened(made):
        monkeypatch.setattr(reading, "open_part", lambda *_, **__: made)
        return reading_room.open_room(made.run.name, "test", FINDING)

    return opened


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.34, 1.0])
def test_counts_are_those_of_scikit_learn_and_unknown_labels_are_left_out(threshold):
    made = made_up(300, unknown=0.3)
    truth, called = made.truth[:, COLUMN], made.probabilities[:, COLUMN] >= threshold
    known = ~np.isnan(truth)
    (clear, alarms), (missed, found) = confusion_matrix(truth[known], called[known], labels=[0, 1])
    counts = made.counts(COLUMN, threshold)
    assert counts == reading.Counts(found, missed, alarms, clear)
    assert counts.share("sensitivity") == pytest.approx(found / (found + missed))
    assert counts.share("npv") == pytest.approx(clear / (clear + missed), nan_ok=True) if clear + missed else True
    assert sum(counts.films(name) for name in ("ppv", "npv")) == known.sum()
    assert len(made.order(COLUMN, kind="missed", threshold=threshold)) == missed
    assert len(made.order(COLUMN, kind="false alarm", threshold=threshold)) == alarms


def test_a_share_of_no_film_is_undefined():
    assert np.isnan(reading.Counts(0, 0, 3, 2).share("sensitivity"))
    assert np.isnan(reading.Counts(0, 4, 0, 2).share("ppv"))


def test_orders_are_what_they_say():
    made = made_up(200, unknown=0.2)
    truth, said = made.truth[:, COLUMN], made.probabilities[:, COLUMN]
    assert (np.diff(said[made.order(COLUMN, "probability")]) <= 0).all()
    error = np.abs(truth - said)[made.order(COLUMN, "error")]
    known = int(np.isfinite(error).sum())
    assert (np.diff(error[:known]) <= 0).all()
    assert np.isnan(error[known:]).all()
    assert (np.diff(np.abs(said[made.order(COLUMN, "doubt", threshold=0.3)] - 0.3)) >= 0).all()
    for by in reading.ORDERS:
        assert sorted(made.order(COLUMN, by)) == list(range(200))
    with pytest.raises(UserError, match="order 'size'"):
        made.order(COLUMN, "size")


def test_follow_ups_are_the_patients_films_in_their_order():
    made = made_up(120)
    for i in range(0, 120, 7):
        visits = made.films.iloc[made.follow_ups(i)]
        assert visits["follow_up"].is_monotonic_increasing
        assert set(visits.index) == set(made.films.index[made.films["patient"] == made.films["patient"][i]])


def test_the_most_alike_are_those_of_other_patients_by_cosine():
    made = made_up(80)
    values = np.random.default_rng(1).random((80, reading.FEATURES)).astype(np.float16)
    made._keep_features(values)
    assert made.has_features
    rows, likeness = made.alike(5, 4)
    centred = values.astype(np.float64) - values.astype(np.float64).mean(0)
    cosine = centred @ centred[5] / np.linalg.norm(centred, axis=1) / np.linalg.norm(centred[5])
    others = np.flatnonzero(made.films["patient"] != made.films["patient"][5])
    assert rows.tolist() == others[np.argsort(-cosine[others])][:4].tolist()
    np.testing.assert_allclose(likeness, cosine[rows], atol=1e-3)


def test_features_are_those_below_the_head_and_kept_for_the_same_films_only(whole, small, tiny_phantom):
    made = reading.open_part(whole, "test", data=str(tiny_phantom))
    assert not made.has_features
    told = []
    made.prepare_features(lambda done, every: told.append((done, every)))
    assert told[-1] == (len(made), len(made))
    file = whole.root / "features" / "test.npy"
    kept = np.load(file, allow_pickle=False)
    assert (kept.dtype, kept.shape) == (np.float16, (len(made), 2048))
    head = nn.functional.linear(torch.from_numpy(kept).float(), made.model.fc.weight, made.model.fc.bias)
    np.testing.assert_allclose(torch.sigmoid(head).detach(), made.raw, atol=5e-3)
    again = reading.open_part(whole, "test", data=str(tiny_phantom))
    assert again.has_features
    note = paths.read_json(file.with_suffix(".json"))
    for name in ("weights", "films", "pixels"):
        paths.write_json(file.with_suffix(".json"), {**note, name: "another"})
        assert not reading.open_part(whole, "test", data=str(tiny_phantom)).has_features
    paths.write_json(file.with_suffix(".json"), note)
    file.write_bytes(file.read_bytes()[:1000])
    assert not reading.open_part(whole, "test", data=str(tiny_phantom)).has_features


def test_what_is_open_is_what_the_evaluation_predicted(room, whole, tiny_phantom):
    said = predict.read(whole.predictions / "test.csv")
    assert room.reading.images == said.images
    np.testing.assert_array_equal(room.reading.raw, said.probabilities)
    decisions = thresholds.read_decisions(room.reading.path)
    np.testing.assert_array_equal(room.reading.probabilities, decisions.calibration(said.probabilities))
    assert room.said().startswith(f"run tiny: {len(said.images)} test films of ")
    pixels = dataset.open(str(tiny_phantom), SIZE, progress=False).store
    np.testing.assert_array_equal(room.reading.pixels_of(3), pixels.pixels[pixels.names.index(said.images[3])])
    for rule in thresholds.RULES:
        cut = decisions.cuts(rule)[COLUMN]
        assert room.rules().loc[rule, "threshold"] == pytest.approx(cut)
        called = decisions.calls(said.probabilities, rule)[:, COLUMN]
        missed = np.count_nonzero((called == 0) & (said.labels[:, COLUMN] == 1))
        assert room.rules().loc[rule, "missed"] == missed


def test_the_controls_do_what_they_say(room):
    first = room.film
    room.next.click()
    assert room.film != first
    assert "film <b>2</b>" in room.position.value
    room.previous.click()
    room.previous.click()
    assert f"film <b>{len(room.reading):,}</b>" in room.position.value
    room.kind.value = "positive"
    assert all(room.reading.truth[room._order, COLUMN] == 1)
    room.finding.value = "Nodule"
    assert all(room.reading.truth[room._order, labels.column("Nodule")] == 1)
    room.part.value = "val"
    assert "validation films" in room.message.value


def test_moving_the_threshold_counts_again_and_stays_at_the_film(room):
    room.next.click()
    film, before = room.film, room.counts.value
    assert room.rule.value == "youden"
    room.threshold.value = 1.0
    assert (room.rule.value, room.film) == ("own", film)
    assert room.counts.value != before
    positives = int((room.reading.truth[:, COLUMN] == 1).sum())
    assert f"0 of {positives} found" in room.counts.value
    assert f"Missed:</b> {positives} film" in room.counts.value
    room.rule.value = "youden"
    assert room.counts.value == before


def test_a_browser_that_puts_the_slider_on_its_grid_does_not_leave_the_rule(room):
    exact = room.cut
    grid = np.round(np.log10(exact), 2)
    room.threshold.value = 10.0**grid
    assert (room.rule.value, room.cut) == ("youden", exact)
    room.threshold.value = 10.0 ** (grid + reading_room.STEP)
    assert (room.rule.value, room.cut) == ("own", 10.0 ** (grid + reading_room.STEP))


def test_the_heat_map_is_made_when_shown_and_once(room, monkeypatch):
    asked = []
    maps = reading.localisation.show
    monkeypatch.setattr(reading.localisation, "show", lambda *a, **k: asked.append(a[3]["row"][0]) or maps(*a, **k))
    room.shown.value = False
    room.next.click()
    assert (asked, room.heat.value) == ([], "")
    room.shown.value = True
    room.previous.click()
    room.next.click()
    assert len(asked) == len(set(asked)) <= 2
    assert "opacity:0.40" in room.heat.value
    room.opacity.value = 0.8
    assert "opacity:0.80" in room.heat.value
    assert len(asked) <= 2


def test_boxes_are_drawn_where_there_are_any(room):
    boxed = set(room.reading.boxes["image"])
    for _ in range(len(room.reading)):
        here = room.reading.images[room.film] in boxed
        assert room.lines.value.count("<rect") == 2 * len(room.reading.boxes_of(room.film))
        assert bool(room.lines.value) == here
        room.shown.value = False  # no map is asked for here
        room.next.click()
    assert boxed & set(room.reading.images)


def test_a_mark_is_kept_excluded_by_the_next_run_and_taken_back(room, whole, tiny_phantom):
    image = room.reading.images[room.film]
    room.reason.value = ' =inverted, "twice" '
    room.mark.click()
    assert "doubtful</span>: =inverted, &quot;twice&quot;" in room.marked.value
    assert room.mark.description == "take the mark back"
    file = reading.marks_file(whole)
    opened = dataset.open(str(tiny_phantom), SIZE, exclude=str(file), progress=False)
    assert opened.excluded.names == {image}
    assert opened.excluded.reasons == {'=inverted, "twice"': 1}
    again = reading_room.open_room("tiny", "test", FINDING, data=str(tiny_phantom))
    again.kind.value = "doubtful"
    assert [again.reading.images[i] for i in again._order] == [image]
    again.mark.click()
    assert (again.film, file.exists()) == (None, False)


def test_marks_of_other_films_and_rooms_stay(whole):
    reading.mark(whole, "a.png", "x")
    reading.mark(whole, "b.png", "", part="val", finding="Mass")
    assert [*reading.unmark(whole, "a.png")] == ["b.png"]
    assert reading.read_marks(whole)["b.png"]["part"] == "val"
    assert exclusion.read(reading.marks_file(whole)) == {"b.png": ""}


def test_text_of_the_data_is_no_markup(of):
    made = made_up(8)
    evil = "<img src=x onerror=alert(1)>.png"
    made.images = [evil] * 8
    made.films["image"] = evil
    made.films["sex"] = "<script>"
    made._rows = np.arange(8)
    room = of(made)
    room.reason.value = "<script>alert(1)</script>"
    room.mark.click()
    parts = (room.picture, room.caption, room.counts, room.numbers, room.marked, room.message, room.trend)
    for part in parts:
        assert "<script" not in part.value
        assert "<img src=x" not in part.value


WRONG = {
    "no run": "there is no run 'nosuch'; the runs are: ",
    "no predictions": "has no predictions of its test part yet; run 06_evaluation first",
    "damaged predictions": "is not what the run predicted",
    "other films": "it is of other films, predict again",
    "another checkpoint": "run 06_evaluation with ckpt=",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_opened_is_one_sentence(whole, tiny_phantom, tmp_path, case):
    run, given = "tiny", {"data": str(tiny_phantom)}
    file = whole.predictions / "test.csv"
    if case == "no run":
        run = "nosuch"
    elif case == "no predictions":
        file.unlink()
    elif case == "damaged predictions":
        file.write_bytes(b'"\x00')
    elif case == "other films":
        listed = tmp_path / "bad.csv"
        listed.write_text(pd.read_csv(file)["image"][0])
        given["exclude"] = str(listed)
    else:
        paths.write_json(predict.cache_note(file), {"weights": "f" * 64, "size": SIZE})
        given["ckpt"] = checkpoint.best(whole.stage(1)).stem
    room = reading_room.open_room(run, "test", FINDING, **given)
    assert WRONG[case] in room.said()
    assert "\n" not in room.said()
    assert (room.reading, room.body.layout.display) == (None, "none")
    assert room.said() in room.message.value.replace("&#x27;", "'")
    assert room.table().empty
    assert room.rules().empty


def test_without_its_checkpoint_the_films_are_shown_all_the_same(whole, tiny_phantom):
    made = checkpoint.best(whole.stage(1))
    made.unlink()
    room = reading_room.open_room("tiny", "test", FINDING, data=str(tiny_phantom))
    assert "the checkpoint that made test.csv is gone" in room.message.value
    assert "film <b>1</b>" in room.position.value
    room.next.click()
    assert room.heat.value == ""
    assert room.alike_button.disabled


def test_another_run_is_opened_from_its_record(whole, small, tiny_phantom):
    settings = {"run": "tiny", "data": str(tiny_phantom), "seed": "0"}
    paths.write_json(whole.run_json, {"run": "tiny", "settings": settings, "parameters": {"seed": 0}, "notebooks": {}})
    room = reading_room.open_room("nosuch", "test", FINDING)
    assert [value for _, value in room.run.options] == ["nosuch", "tiny"]
    room.run.value = "tiny"
    assert room.said().startswith("run tiny: ")
    assert room.body.layout.display == ""


@pytest.mark.parametrize("positives", [0, 1, "all"])
def test_small_and_one_sided_sets_are_no_fault(of, positives):
    made = made_up(3)
    made.truth[:, COLUMN] = 1 if positives == "all" else np.arange(3) < positives
    room = of(made)
    for kind in reading.KINDS:
        room.kind.value = kind
        room.next.click()
    assert "–" in room.counts.value or positives == 1
    room.kind.value = "all"
    assert len(room.table()) == 3


def test_the_next_of_25000_films_comes_at_once(of):
    room = of(made_up(25_000))
    room.sort.value = "probability"
    took = []
    for _ in range(7):
        began = time.perf_counter()
        room.next.click()
        room.threshold.value *= 1.03
        took.append(time.perf_counter() - began)
    assert sorted(took)[3] < 0.3


def test_what_the_notebook_saves_is_told_by_its_code():
    """A change of the room's code executes its notebook again."""
    assert "cxrlib.evaluation.reading" in provenance.closure("cxrlib.workbook.reading_room")
