"""Gate: Mahalanobis distances, a threshold that refuses what it says, and a file that belongs to one checkpoint."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial import distance
from torch.nn import init

from cxrlib import UserError, paths
from cxrlib.data import records, store
from cxrlib.data.augmentation import Augment
from cxrlib.data.batches import Batches
from cxrlib.evaluation import gate
from cxrlib.training import checkpoint, network


@pytest.fixture(scope="module")
def parts(tiny_phantom, tmp_path_factory):
    """64 training and 32 validation films of 32 px."""
    films = records.read(tiny_phantom)
    pixels = store.build(films, 32, folder=tmp_path_factory.mktemp("gate") / "store", progress=False)
    train, val = (part.reset_index(drop=True) for part in (films[:64], films[64:]))
    return Batches(pixels, train, batch_size=8, shuffle=True), Batches(pixels, val, batch_size=8)


@pytest.fixture(scope="module")
def model():
    """Small network with random weights. Its BatchNorms are scaled, since at the start each block adds nothing."""
    made = network.build("none", layers=(1, 1, 1, 1))
    made.precision = "float32"
    for name, weight in made.named_parameters():
        if name.endswith("bn3.weight"):
            init.ones_(weight)
    return made.eval()


@pytest.fixture(scope="module")
def made(model, parts):
    return gate.fit(model, *parts, refused=0.1)


@pytest.fixture
def path(tmp_path, model):
    file = tmp_path / "stage1_0.001_2.safetensors"
    save_file(model.state_dict(), file)
    return file


def by_hand(width: int = 12, count: int = 4, seed: int = 0) -> gate.Gate:
    rng = np.random.default_rng(seed)
    modes = np.linalg.qr(rng.normal(size=(width, count)))[0].T
    variances = np.array([3.0, 2, 1, 0.5][:count])
    return gate.Gate(rng.uniform(0.5, 2, width), modes, variances, 0.25, 10, 2.0, {"refused": 0.01})


def test_the_distance_is_mahalanobis_in_the_roots_of_the_features():
    """Against SciPy with the whole covariance matrix."""
    door = by_hand()
    beside = np.eye(12) - door.modes.T @ door.modes
    covariance = door.modes.T @ np.diag(door.variances) @ door.modes + door.rest * beside
    films = np.random.default_rng(1).exponential(size=(6, 12))
    expected = [distance.mahalanobis(np.sqrt(film), door.mean, np.linalg.inv(covariance)) for film in films]
    np.testing.assert_allclose(door.distance(films) * np.sqrt(door.rank), expected, rtol=1e-9)


def test_training_films_are_at_a_distance_of_one_on_average(made, model, parts):
    away = made.distance(gate.features(model, parts[0]))
    assert np.sqrt(np.mean(away**2)) == pytest.approx(1, abs=0.02)


def test_the_threshold_refuses_the_share_of_validation_films_that_was_asked_for(made, model, parts):
    away = made.distance(gate.features(model, parts[1]))
    assert np.count_nonzero(away > made.threshold) == 4  # of 32, at a tenth
    assert [bool(made.refusal(one)) for one in away] == (away > made.threshold).tolist()


def test_pictures_of_another_kind_are_farther_than_films(made, model, parts):
    films = parts[1].store.pixels[parts[1].store.rows(parts[1].films)]
    noise = np.random.default_rng(0).integers(0, 256, films.shape, dtype=np.uint8)
    inverted, strange = (gate.features_of_pixels(model, pixels) for pixels in (255 - films, noise))
    assert np.mean(made.distance(inverted) > made.threshold) > 0.9
    assert np.mean(made.distance(strange) > made.threshold) > 0.9


def test_features_are_those_of_the_network_in_the_films_order(model, parts):
    """However the batches are shuffled, augmented or sized; the network stays as it was."""
    train, _ = parts
    pixels = train.store.pixels[train.store.rows(train.films)]
    mixed = Batches(train.store, train.films, batch_size=5, shuffle=True, augment=Augment(flip=1.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gate.features(model, mixed)
    assert found.shape == (64, 2048)
    np.testing.assert_array_equal(found, gate.features_of_pixels(model, pixels))
    with torch.no_grad():
        one = next(Batches(train.store, train.films, batch_size=64).epoch(0)).images
        whole = network.train_only(model, ("fc",)).prefix(one).numpy()
    network.train_only(model, network.GROUPS)
    np.testing.assert_allclose(found, whole, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found, gate.features(model, train))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_large_part_gives_a_fixed_random_subset(model, parts):
    few = gate.fit(model, *parts, films=20)
    assert (few.made_on["films"], few.made_on["validation"]) == (20, 20)
    again = gate.fit(model, *parts, films=20)
    np.testing.assert_array_equal(few.modes, again.modes)
    assert few.threshold == again.threshold
    first = Batches(parts[0].store, parts[0].films.head(20), batch_size=8)
    assert not np.array_equal(few.mean, gate.fit(model, first, parts[1], films=20).mean)


def test_a_trial_counts_what_the_gate_says(made, model, parts):
    table = gate.trial(made, model, parts[1], changed=20).set_index("kind")
    assert table["films"].tolist() == [32, 16, 16, 16, 16]
    usual, inverted = table.loc["as they are"], table.loc["inverted"]
    assert (usual["features"], usual["auc"]) == (pytest.approx(4 / 32), 0.5)
    assert (usual["righted"], inverted["righted"]) == (0, 1)
    assert inverted["auc"] > 0.95
    assert (table["features_low"] <= table["features"]).all()
    assert table.loc["mirrored", ["righted", "pixels"]].tolist() == [0, 0]
    pd.testing.assert_frame_equal(gate.trial(made, model, parts[1], changed=20), table.reset_index())


def test_a_refusal_has_both_numbers_and_what_to_do():
    door = by_hand()
    assert door.refusal(2.0) == ""
    said = door.refusal(3.456)
    for part in ("3.46", "2.00", "99%", "; take a frontal chest film"):
        assert part in said
    assert door.refusal(float("nan"))
    assert door.refusal(float("inf"))


def test_features_that_are_not_finite_are_refused(made):
    for value in (np.nan, np.inf):
        (away,) = made.distance(np.full((1, 2048), value, np.float32))
        assert made.refusal(away)


@pytest.mark.parametrize("how", [{"refused": 0}, {"refused": 1}, {"films": 3}])
def test_settings_that_make_no_sense_are_refused(how, model, parts):
    with pytest.raises(UserError, match="give a share between 0 and 1"):
        gate.fit(model, *parts, **how)


def test_too_few_films_are_refused(model, parts):
    few = Batches(parts[0].store, parts[0].films.head(10), batch_size=8)
    with pytest.raises(UserError, match="needs 16 training films or more, and there are 10"):
        gate.fit(model, few, parts[1])


def test_a_gate_comes_back_from_its_file_as_it_was(path, made):
    assert gate.load(path) is None
    file = gate.save(path, made)
    assert file.name == "gate_stage1_0.001_2.safetensors"
    assert file.stat().st_size < 2e6
    found = gate.load(path)
    assert (found.threshold, found.rest, found.rank, found.made_on) == (
        made.threshold,
        made.rest,
        made.rank,
        made.made_on,
    )
    features = np.random.default_rng(0).exponential(size=(5, 2048)).astype(np.float32)
    np.testing.assert_array_equal(found.distance(features), made.distance(features))
    before = file.read_bytes()
    gate.save(path, found)
    assert file.read_bytes() == before


def test_a_gate_of_an_exported_model_has_a_short_name(path, made):
    model = path.rename(path.with_name("model.safetensors"))
    assert gate.save(model, made).name == "gate.safetensors"
    assert gate.load(model).threshold == made.threshold


def changed_header(content: bytes, **values) -> bytes:
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    inside = json.loads(header["__metadata__"][checkpoint.HEADER_KEY])
    inside = {name: value for name, value in {**inside, **values}.items() if name != paths.GUARD}
    header["__metadata__"][checkpoint.HEADER_KEY] = json.dumps(inside)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


DAMAGE = {
    "truncated": (lambda content: content[:-100], "damaged or no gate"),
    "empty": (lambda content: b"", "damaged or no gate"),
    "a bit": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "damaged"),
    "no number": (lambda content: changed_header(content, threshold="wide"), "damaged"),
    "no threshold": (lambda content: changed_header(content, threshold=-1.0), "damaged"),
    "a digit": (lambda content: content.replace(b'format\\": 1,', b'format\\": 2,'), "damaged or no gate"),
    "no list": (lambda content: changed_header(content, made_on=[]), "damaged"),
    "another version": (lambda content: changed_header(content, format=99), "has format 99"),
    "another checkpoint": (lambda content: changed_header(content, checkpoint="0" * 64), "of other weights"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_foreign_gate_is_refused(name, path, made):
    file = gate.save(path, made)
    damage, message = DAMAGE[name]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        gate.load(path)
    assert str(file) in str(caught.value)
    assert "06_evaluation" in str(caught.value)


def test_a_gate_of_the_weights_before_is_refused(path, made):
    gate.save(path, made)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"of other weights than stage1_0\.001_2"):
        gate.load(path)


def test_a_checkpoint_that_is_not_there_has_no_gate(tmp_path, made):
    with pytest.raises(UserError, match="cannot be read"):
        gate.save(tmp_path / "stage1_1e-05_2.safetensors", made)


def test_an_equal_call_reads_the_file_and_any_other_makes_it_again(path, model, parts, monkeypatch):
    made, fits = gate.fit, []
    monkeypatch.setattr(gate, "fit", lambda *args, **more: fits.append(1) or made(*args, **more))
    first = gate.fit_once(path, model, *parts)
    content = checkpoint.gate_beside(path).read_bytes()
    assert gate.fit_once(path, model, *parts).made_on == first.made_on
    assert len(fits) == 1
    gate.fit_once(path, model, *parts, refused=0.2)
    gate.fit_once(path, model, *parts)
    assert checkpoint.gate_beside(path).read_bytes() == content
    fewer = Batches(parts[0].store, parts[0].films.head(40), batch_size=8)
    gate.fit_once(path, model, fewer, parts[1])
    checkpoint.gate_beside(path).write_bytes(content[:-9])
    gate.fit_once(path, model, *parts)
    assert len(fits) == 5
    assert checkpoint.gate_beside(path).read_bytes() == content


def test_a_gate_is_not_taken_for_a_checkpoint(own_outputs, path, made):
    folder = own_outputs / "mine" / "stage1"
    folder.mkdir(parents=True)
    path = Path(shutil.copy(path, folder))
    (folder / "stage1_0.001_2.json").write_text(json.dumps({"sha256": gate._checkpoint_sha256(path), "ancestors": []}))
    gate.save(path, made)
    with pytest.raises(UserError) as caught:
        paths.find_checkpoint("stage9")
    assert "gate" not in str(caught.value)
    assert checkpoint.by_hash(gate._checkpoint_sha256(checkpoint.gate_beside(path))) is None
    assert not checkpoint.has_description(checkpoint.gate_beside(path))
    checkpoint.remove_tensors(path)
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_named(path, made, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match=r"the disk \S+ is full"):
        gate.save(path, replace(made, threshold=1.0))
    assert gate.load(path) is None
