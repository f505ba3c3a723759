"""The film reader against ``predict`` on a store; its order, its refusals, and what it holds in memory."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from cxrlib import UserError, labels, paths
from cxrlib.data import batches, film_quality, images, records, store
from cxrlib.evaluation import film_reader, predict
from cxrlib.training import checkpoint
from tests.data import dicom_files
from tests.evaluation import tiny_reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return tiny_reader.reader(tmp_path_factory.mktemp("stage1"))


@pytest.fixture(scope="module")
def films(tiny_phantom):
    return records.read(tiny_phantom)


@pytest.fixture(autouse=True)
def no_judgement(monkeypatch):
    """Drawn films and noise are no chest films for the pixels' judge, which has tests of its own."""
    monkeypatch.setattr(film_quality, "judge", lambda film: film_quality.Judged(film.pixels))


@pytest.mark.parametrize("tta", ["none", "flip", "tencrop"])
def test_the_numbers_are_those_of_a_store_to_the_last_bit(films, tmp_path, tta):
    reader, films = tiny_reader.reader(tmp_path / "stage1", tta=tta), films.head(30)
    kept = store.build(films, reader.size, folder=tmp_path / "store", progress=False)
    expected = predict.predict(reader.model, batches.Batches(kept, films, batch_size=20), tta=reader.tta)
    answers = list(reader.stream(films["path"], batch_size=20, workers=3))
    assert [answer.film for answer in answers] == films["path"].tolist()
    np.testing.assert_array_equal(np.stack([answer.network for answer in answers]), expected)


def test_bad_films_are_refused_one_by_one_and_the_others_still_read(reader, films, tmp_path):
    """More refused ones than a batch holds, at the start, in the middle and at the end."""
    good = films["path"][:6].tolist()
    half = tmp_path / "half.png"
    half.write_bytes(Path(good[0]).read_bytes()[:-40])
    (tmp_path / "empty.png").touch()
    bad = [str(half), str(tmp_path / "empty.png"), str(tmp_path / "absent.png"), str(tmp_path)]
    asked = [*bad * 6, *good[:3], *bad, *good[3:], *bad]
    answers = list(reader.stream(asked, batch_size=2))
    assert [answer.film for answer in answers] == asked
    assert [answer.network is None for answer in answers] == [film in bad for film in asked]
    for film, reason in zip(bad, ("truncated", "empty", "not there", "must be a file"), strict=True):
        said = {answer.refusal for answer in answers if answer.film == film}
        assert len(said) == 1
        assert reason in said.pop()
    passing = {answer.film for answer in answers if answer.passing}
    assert passing == set(bad[2:]), "only what another try may mend"


def test_of_a_dicom_header_only_view_sex_and_age_are_told(reader, tmp_path):
    film = dicom_files.dataset(dicom_files.film(), PatientAge="062Y", PatientSex="F", ViewPosition="PA")
    film.PatientName, film.PatientID, film.StudyDate = "Doe^Jane", "SECRET7", "20190203"
    path = dicom_files.write(tmp_path / "film.dcm", dicom_files.encode(film))
    film.ViewPosition = "LATERAL"
    side = dicom_files.write(tmp_path / "side.dcm", dicom_files.encode(film))
    answer, lateral = reader.stream([path, side])
    assert (answer.view, answer.sex, answer.age) == ("PA", "F", 62)
    assert answer.network is not None
    assert lateral.network is None
    assert "lateral" in lateral.refusal
    assert pydicom.dcmread(path).PatientID == "SECRET7"
    for secret in ("Doe", "SECRET7", "2019"):
        assert secret not in f"{answer}{lateral}"


def test_the_judges_pixels_are_read_and_its_refusals_are_told(reader, films, tmp_path, monkeypatch):
    """What is righted gives the numbers of the film that it was; ``anyway`` turns a refusal into a note."""
    upright, other = films["path"][:2]
    turned = str(tmp_path / "turned.png")
    cv2.imwrite(turned, np.rot90(images.read(upright)))
    plain = next(reader.stream([upright]))

    def judge(film):
        if film.pixels.tobytes() == images.read(turned).tobytes():
            return film_quality.Judged(np.rot90(film.pixels, -1), righted="turned to the right by 90°")
        return film_quality.Judged(film.pixels, refusal="a photo, no film")

    monkeypatch.setattr(film_quality, "judge", judge)
    righted, refused = reader.stream([turned, other])
    np.testing.assert_allclose(righted.network, plain.network, atol=1e-6)
    assert righted.righted == "turned to the right by 90°"
    assert (refused.network, refused.refusal) == (None, "a photo, no film")
    allowed = next(reader.stream([other], anyway=True))
    assert allowed.network is not None
    assert allowed.notes == ("a photo, no film",)


@dataclass
class Near:
    """A gate that refuses the films of which a feature's sum is above a threshold."""

    threshold: float

    def distance(self, features):
        assert features.shape[1] == 2048
        return features.sum(1)

    def refusal(self, distance):
        return f"unlike the training films ({distance:.1f})" if distance > self.threshold else ""


def test_the_gate_sees_the_features_of_the_same_pass(reader, films):
    asked = films["path"][:8].tolist()
    plain = [answer.network for answer in reader.stream(asked)]
    all_in = [answer.distance for answer in replace(reader, gate=Near(np.inf)).stream(asked)]
    gated = replace(reader, gate=Near(np.median(all_in)))
    answers = list(gated.stream(asked, batch_size=3))
    assert [answer.network is None for answer in answers] == [d > np.median(all_in) for d in all_in]
    for answer, number in zip(gated.stream(asked, anyway=True), plain, strict=True):
        np.testing.assert_array_equal(answer.network, number)
        assert bool(answer.notes) == (answer.distance > np.median(all_in))
    assert all(np.isnan(answer.distance) for answer in reader.stream(asked))


def test_no_more_films_are_decoded_than_a_few_batches_ahead():
    started, lock = [], threading.Lock()

    def work(job):
        with lock:
            started.append(job)
        return job

    results = film_reader.in_threads(work, iter(range(10_000)), 4, ahead=16)
    for wanted in range(40):
        assert next(results) == wanted
        assert len(started) <= wanted + 1 + 16 + 1
    results.close()
    assert len(started) < 100


def test_a_checkpoint_without_calibration_gives_its_own_probabilities_and_says_so(films, tmp_path):
    with pytest.raises(UserError, match="does not record its training size"), tiny_reader.small_networks():
        film_reader.Reader.open(tiny_reader.save(tmp_path / "stage2", calibrated=False))
    path = tiny_reader.save(tmp_path / "stage1", calibrated=False)
    meta = paths.read_json(path.with_suffix(".json"))
    paths.write_json(path.with_suffix(".json"), {**meta, "size": 32})
    with tiny_reader.small_networks():
        reader = film_reader.Reader.open(path)
    assert (reader.decisions, reader.ref) == (None, None)
    told = " ".join(reader.interpreter().remarks())
    assert "no calibration" in told
    assert "no reference" in told
    (row, *_) = reader.interpreter().findings(next(reader.stream(films["path"][:1])).network)
    assert {name for name, value in row.items() if value is not None} == {"finding", "network"}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda meta: meta | {"layout": "densenet121"}, "of another network"),
        (lambda meta: meta | {"sha256": "0" * 64}, "damaged"),
        (lambda meta: meta | {"attached": meta["attached"] | {"thresholds": [1]}}, "damaged"),
        (lambda meta: meta | {"attached": meta["attached"] | {"reference": [1]}}, "damaged"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage, says):
    path = tiny_reader.save(tmp_path / "stage1")
    file = path.with_suffix(".json")
    paths.write_json(file, damage(checkpoint.read_meta(path)))
    with pytest.raises(UserError, match=says) as caught, tiny_reader.small_networks():
        film_reader.Reader.open(path)
    assert path.stem in str(caught.value)


def test_a_frame_for_notebooks_has_a_row_per_film_and_label(reader, films, tmp_path):
    (tmp_path / "empty.png").touch()
    asked = [films["path"][0], tmp_path / "empty.png"]
    with tiny_reader.small_networks():
        frame = predict.films(asked, reader.path, heat=True, prevalence={"Mass": 0.5}, rule="f1")
    answer = next(reader.stream(asked))
    assert frame["finding"][:15].tolist() == [*labels.LABELS]
    assert frame["finding"].isna().tolist() == [False] * 15 + [True]
    np.testing.assert_array_equal(frame["network"][:15], answer.network)
    assert frame["prevalence"][labels.column("Mass")] == 0.5
    assert (frame["rule"][:15] == "f1").all()
    assert "empty" in frame["refused"][15]
    assert frame["heat"].notna().sum() == film_reader.MAPS
    assert frame.attrs["remarks"]


def test_a_picture_has_the_films_shape_and_maps_of_the_findings_of_highest_rank(reader, films):
    answer = next(reader.stream(films["path"][:1]))
    picture = reader.picture(answer, heat=True)
    np.testing.assert_array_equal(picture.pixels, images.read(answer.film))
    ranks = {row["finding"]: row["percentile"] for row in reader.interpreter().findings(answer.network)[:-1]}
    assert len(picture.maps) == film_reader.MAPS
    assert min(ranks[name] for name in picture.maps) >= sorted(ranks.values())[-film_reader.MAPS]
    assert {heat.shape for heat in picture.maps.values()} == {(32, 32)}
    assert reader.picture(answer).maps == {}
    assert reader.picture(replace(answer, film="absent.png")) is None
