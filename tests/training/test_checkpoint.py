import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import save_file
from saved import films, save

from cxrlib import UserError, paths
from cxrlib.training import checkpoint, lineage, network
from cxrlib.workbook import settings


@pytest.fixture(scope="module")
def model():
    return tiny.net()


@pytest.fixture
def saved(tmp_path, model):
    return save(tmp_path, model, 3, 1, 2)


def rewrite(path, **changes):
    """Change a checkpoint's JSON and remove its guard, as a forger would."""
    meta = paths.read_json(path.with_suffix(".json"))
    path.with_suffix(".json").write_text(json.dumps({**meta, **changes}))


def test_weights_come_back_bit_for_bit_whatever_the_memory_format(tmp_path, model):
    path = save(tmp_path, model.to(memory_format=torch.channels_last), 1)
    other = tiny.net(seed=9)
    report = checkpoint.load_into(other, path)
    assert report.missing == report.unexpected == ()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_named_as_the_original_names_its_own(tmp_path, model):
    first = save(tmp_path, model, 1, lr=1e-5, epoch=2)
    assert first.name == "stage1_1e-05_2.safetensors"
    assert save(tmp_path, model, 1, number=5, lr=1e-6, epoch=20, parent=first).stem == "stage5_1e-06_22"


def test_new_weights_of_a_name_remove_the_gate_of_the_old_ones(tmp_path, model, saved):
    gate = checkpoint.gate_beside(saved)
    gate.write_bytes(b"of the old weights")
    assert save(tmp_path, model, 3, 1, 2) == saved
    assert not gate.exists()


def test_a_damaged_file_is_refused(saved, model):
    content = saved.read_bytes()
    for bad in (content[:-100], content[:4], b"", content[:-1] + bytes([content[-1] ^ 1])):
        saved.write_bytes(bad)
        with pytest.raises(UserError, match="damaged or not the file"):
            checkpoint.load_into(model, saved)
    saved.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(saved)
    saved.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="not there"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["Hernia"] * 15}, "labels are"),
        ({"layout": "densenet121"}, "another network"),
        ({"format": 99}, "format 99"),
        ({"sha256": None}, "has no SHA-256"),
        ({"seen": {"trained": {}, "validated": {}}}, "was changed or damaged: its seen is not what"),
        ({"origin": "nothing at all"}, "its origin is not"),
        ({"format": 1, "patients": ""}, "its format"),
    ],
)
def test_foreign_or_altered_descriptions_are_refused(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(UserError, match=message):
        checkpoint.load(saved)


def test_weights_of_another_layout_leave_the_network_as_it_was(saved):
    other = network.build("none", layers=(2, 1, 1, 1))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UserError, match=r"does not fit this network: \d+ weights missing, 0 unexpected"):
        checkpoint.load_into(other, saved)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert "layer1.1.conv1.weight" in checkpoint.load_into(other, saved, strict=False).missing


def test_a_file_beside_a_foreign_json_is_refused(saved):
    save_file({"x": torch.zeros(3)}, saved)
    with pytest.raises(UserError, match="not the file its JSON describes"):
        checkpoint.load(saved)


def test_a_name_is_found_in_the_run_then_in_all_runs(own_outputs, model):
    one, two = paths.Run("one"), paths.Run("two")
    mine = save(one.stage(1), model, 1)
    other = save(two.stage(2), model, 1, number=2)
    for name in (mine.stem, mine.name, str(mine), str(mine.with_suffix(""))):
        assert checkpoint.resolve(name, one) == mine
    assert checkpoint.resolve(other.stem, one) == other
    twin = save(two.stage(1), model, 1)
    assert checkpoint.resolve(twin.stem, two) == twin
    with pytest.raises(UserError, match="in several runs"):
        checkpoint.resolve(twin.stem, None)
    with pytest.raises(UserError, match=f"there are: {mine.stem}, {other.stem}"):
        checkpoint.resolve("stage5_1_1", one)
    with pytest.raises(UserError, match="ckpt is empty"):
        checkpoint.resolve("", one)


def test_what_is_attached_comes_back_and_touches_nothing_else(tmp_path, saved, model):
    weights, before = saved.read_bytes(), checkpoint.read_meta(saved)
    values = {"kind": "platt", "slopes": (1.5, 2.0), "lowest": None}
    checkpoint.attach(saved, "calibration", values)
    checkpoint.attach(saved, "thresholds", {"youden": {"Mass": 0.25}})
    assert checkpoint.attached(saved, "calibration") == {"kind": "platt", "slopes": [1.5, 2.0], "lowest": None}
    assert checkpoint.attached(saved, "thresholds") == {"youden": {"Mass": 0.25}}
    loaded = checkpoint.load_into(tiny.net(seed=9), saved).checkpoint.meta
    assert {key: value for key, value in loaded.items() if key != checkpoint.ATTACHED} == before
    assert saved.read_bytes() == weights
    child = save(tmp_path / "child", model, 1, number=2, parent=saved)
    assert checkpoint.read_meta(child)["parent"]["sha256"] == before["sha256"]
    with pytest.raises(UserError, match="carries no calibration; run 06_evaluation"):
        checkpoint.attached(child, "calibration")


def test_nothing_is_attached_while_another_holds_the_folder(saved):
    checkpoint.attach(saved, "thresholds", {"f1": 0.5})
    before = saved.with_suffix(".json").read_bytes()
    with paths.lock_folder(saved.parent):
        checkpoint.attach(saved, "thresholds", {"f1": 0.5})  # nothing to write
        with pytest.raises(UserError, match="is in use by process"):
            checkpoint.attach(saved, "calibration", {"kind": "none"})
    assert saved.with_suffix(".json").read_bytes() == before


def test_a_checkpoint_is_read_at_the_size_it_was_trained_at_unless_told_otherwise(tmp_path, saved, model):
    with pytest.raises(UserError, match="does not record its training size; give it by size="):
        checkpoint.size(saved)
    assert checkpoint.size(saved, 64) == 64
    assert checkpoint.another_size(saved, 64) == ""
    trained = SimpleNamespace(films=films(1), store=SimpleNamespace(size=32))
    line = lineage.Lineage("none", 0, (), "nothing", (), {}, (trained,))
    line.__dict__["past"] = {}
    path = checkpoint.save(tmp_path / "sized", model.state_dict(), tiny.recipe(), line, epoch=1, metrics={})
    meta = json.loads(path.with_suffix(".json").read_text())
    assert meta["size"] == checkpoint.size(path) == 32
    assert checkpoint.another_size(path, 32) == ""
    assert "trained on films of 32 pixels and is read at 64" in checkpoint.another_size(path, 64)


def test_attaching_the_same_again_writes_nothing(saved):
    file = checkpoint.attach(saved, "thresholds", {"f1": {"Mass": 0.1}})
    stamp = file.stat()
    checkpoint.attach(saved, "thresholds", {"f1": {"Mass": 0.1}})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
    checkpoint.attach(saved, "thresholds", {"f1": {"Mass": 0.2}})
    assert checkpoint.attached(saved, "thresholds") == {"f1": {"Mass": 0.2}}


@pytest.mark.parametrize("values", [{"Mass": np.nan}, [np.inf], {"Mass": np.float32(0.5)}, {1, 2}])
def test_what_no_json_can_hold_is_not_attached(saved, values):
    before = saved.with_suffix(".json").read_bytes()
    with pytest.raises(UserError, match="thresholds cannot be stored in stage1"):
        checkpoint.attach(saved, "thresholds", values)
    assert saved.with_suffix(".json").read_bytes() == before


def test_nothing_is_attached_to_an_unknown_checkpoint(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        checkpoint.attach(tmp_path / "stage1_1_1.safetensors", "thresholds", {})
    assert not list(tmp_path.iterdir())


def test_a_stage_and_its_child_are_not_trained_again_for_what_was_attached(tmp_path):
    model = tiny.net()
    first = tiny.train(tmp_path / "stage1", {"epochs": 1}, model=model)
    how = {"number": 2, "epochs": 1, "groups": ("layer4", "fc")}
    second = tiny.train(tmp_path / "stage2", how, model=model, parent=first.best)
    for result in (first, second):
        checkpoint.attach(result.best, "calibration", {"kind": "none"})
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    model = tiny.net()
    again = tiny.train(tmp_path / "stage1", {"epochs": 1}, model=model)
    tiny.train(tmp_path / "stage2", how, model=model, parent=again.best)
    assert stamps == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert checkpoint.attached(second.best, "calibration") == {"kind": "none"}


def test_the_best_of_an_unfinished_stage_is_refused(tmp_path, saved):
    with pytest.raises(UserError, match="no finished stage"):
        checkpoint.best(tmp_path)
    paths.write_json(tmp_path / "best.json", {"best": saved.stem})
    assert checkpoint.best(tmp_path) == saved
    saved.unlink()
    with pytest.raises(UserError, match="not there"):
        checkpoint.best(tmp_path)


def test_a_folder_under_the_names_of_the_hub_is_a_checkpoint(tmp_path, saved, model, monkeypatch):
    folder = tmp_path / "exported"
    folder.mkdir()
    saved.rename(folder / "model.safetensors")
    saved.with_suffix(".json").rename(folder / "config.json")
    weights = folder / "model.safetensors"
    monkeypatch.chdir(tmp_path)
    for name in (str(folder), "exported", "exported/", "exported/model", "exported/config.json", str(weights)):
        assert checkpoint.resolve(name) == weights
    assert checkpoint.load_into(tiny.net(seed=9), weights).missing == ()
    assert checkpoint.json_beside(weights) == checkpoint.attach(weights, "thresholds", {"f1": 0.5})
    assert settings.located({"evaluation.ckpt": "exported"}) == {"evaluation.ckpt": str(folder)}
    assert settings.located({"evaluation.ckpt": "hf:a/b"}) == {"evaluation.ckpt": "hf:a/b"}
    child = save(tmp_path / "child", model, 1, number=2, parent=weights)
    assert lineage.seen_by(child)["trained"].count == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no checkpoint 'empty'"):
        checkpoint.resolve("empty")
