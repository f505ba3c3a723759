"""An exported folder: the same weights, read by this package, by onnxruntime and by the card's own lines."""

import contextlib
import io
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch

from cxrlib import UserError, hub, labels, paths, provenance
from cxrlib.data import images
from cxrlib.evaluation import calibration, thresholds
from cxrlib.report import export
from cxrlib.training import checkpoint, lineage, network, schedules
from cxrlib.workbook import cli

SIZE = 64


def films(dataset, *patients):
    names = [f"{patient:08d}_000.png" for patient in patients]
    return pd.DataFrame({"image": names, "patient": np.array(patients, np.int64), "dataset": dataset})


def finished_run(outputs, datasets=("phantom-0",)):
    """A run with one stage of a random ResNet-50, which saw patients of these datasets, and eight films."""
    home = paths.Run("r")
    model = network.build("none", seed=3)
    with torch.no_grad():  # a head whose logits differ
        model.fc.weight.mul_(20)
    seen = pd.concat([films(name, 1, 2, 3) for name in datasets])
    sides = SimpleNamespace(films=seen, store=None), SimpleNamespace(films=seen.head(1), store=None)
    line = lineage.of_stage(None, "none", *sides)
    path = checkpoint.save(
        home.stage(1), model.state_dict(), schedules.recipe("scratch", 1), line, epoch=2, metrics={"val_auc": 0.7}
    )
    meta = paths.read_json(path.with_suffix(".json"))
    paths.write_json(path.with_suffix(".json"), {**meta, "size": SIZE})
    paths.write_json(home.stage(1) / "best.json", {"best": path.stem})
    random = np.random.default_rng(0)
    folder = outputs / "films"
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(8):
        smooth = cv2.resize(random.integers(0, 256, (9, 9)).astype(np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / "images" / f"{i + 1:08d}_000.png"), smooth)
        rows.append(f"{i + 1:08d}_000.png,No Finding,0,{i + 1},50,M,PA")
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    (folder / "Data_Entry_2017.csv").write_text("\n".join([header, *rows]))
    home.predictions.mkdir()
    pd.DataFrame({"image": [row.split(",")[0] for row in rows]}).to_csv(home.predictions / "test.csv", index=False)
    paths.write_json(home.run_json, {"data": {"folder": str(folder)}, "settings": {}})
    return home, path, folder / "images" / "00000001_000.png"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A run's folder and, in ``made``, its export with ONNX."""
    outputs = tmp_path_factory.mktemp("shop")
    before = os.environ.get("CXR_OUTPUTS")
    os.environ["CXR_OUTPUTS"] = str(outputs)
    try:
        home, path, film = finished_run(outputs)
        labels_, scores = np.tile(np.eye(2, 15, dtype=np.uint8), (20, 1)), np.random.default_rng(1).random((40, 15))
        made = thresholds.fit_decisions(labels_, scores, gamma=2.0, size=SIZE, tta="none")
        thresholds.attach_decisions(path, made)
        (path.parent / ".lock").unlink(missing_ok=True)
        result = None
        if export._has_onnx():
            result = export.export("r", outputs / "made")
        else:
            result = export.export("r", outputs / "made", onnx=False)
    finally:
        os.environ["CXR_OUTPUTS"] = before or ""
        if before is None:
            del os.environ["CXR_OUTPUTS"]
    return SimpleNamespace(outputs=outputs, home=home, path=path, film=film, folder=result.folder, result=result)


@pytest.fixture
def inside(shop, monkeypatch):
    monkeypatch.setenv("CXR_OUTPUTS", str(shop.outputs))
    return shop


def logits(path, film):
    model = network.Network()
    checkpoint.load_into(model, path)
    pixels = torch.from_numpy(images.shrink(images.read(film), SIZE)).float()
    with torch.no_grad():
        return model.eval()(((pixels / 255 - 0.449) / 0.226)[None, None])[0].numpy()


def test_the_folder_is_the_checkpoint(inside):
    weights = checkpoint.resolve(str(inside.folder))
    assert weights == inside.folder / "model.safetensors"
    assert provenance.file_sha256(weights) == provenance.file_sha256(inside.path)  # phantom patients stay
    before, after = checkpoint.load(inside.path), checkpoint.load(weights)
    assert {k: v for k, v in after.meta.items() if k != "export"} == before.meta
    assert checkpoint.size(weights) == SIZE
    kept, read = thresholds.read_decisions(inside.path), thresholds.read_decisions(weights)
    assert read.calibration == kept.calibration == calibration.from_dict(checkpoint.attached(weights, "calibration"))
    assert lineage.seen_by(weights)["trained"].count == 3
    assert checkpoint.resolve(str(inside.folder / "config.json")) == weights


def test_a_stage_starts_from_the_folder(inside):
    line = lineage.of_stage(lineage.parent_of_stage(inside.home, 2, str(inside.folder)), "none")
    assert line.parent["sha256"] == checkpoint.read_meta(inside.path)["sha256"]
    assert line.epochs_so_far == 2


def test_onnx_gives_the_same_for_any_number_of_films(inside):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the optional onnxruntime is not installed")
    session = onnxruntime.InferenceSession(str(inside.folder / "model.onnx"), providers=["CPUExecutionProvider"])
    pixels = images.shrink(images.read(inside.film), SIZE)
    film = ((torch.from_numpy(pixels).float() / 255 - 0.449) / 0.226)[None, None].numpy()
    ours = logits(inside.path, inside.film)
    for count in (1, 3):
        theirs = session.run(["logits"], {"images": np.repeat(film, count, 0)})[0]
        assert theirs.shape == (count, 15)
        assert np.abs(theirs - ours).max() < 1e-4
    assert np.ptp(ours) > 0.01  # so that this can fail


def test_the_lines_of_the_card_read_a_film_as_we_do(inside, tmp_path, monkeypatch):
    card = (inside.folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "cxrlib" not in code
    assert len(code.splitlines()) == 10
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(inside.folder / name)
    shutil.copy(inside.film, tmp_path / "film.png")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        exec(compile(code, "card", "exec"), {})
    lines = [line.rsplit(maxsplit=1) for line in told.getvalue().splitlines()]
    ours = 1 / (1 + np.exp(-logits(inside.path, inside.film)))
    assert [name.strip() for name, _ in lines] == list(labels.LABELS)
    assert np.abs(np.array([float(value) for _, value in lines]) - ours).max() < 1e-3
    assert np.ptp(ours) > 0.005


def test_the_same_again_changes_nothing_and_another_replaces_it(inside, tmp_path):
    to = tmp_path / "out"
    assert export.export("r", to, onnx=False).written
    stamp = (to / "config.json").stat().st_mtime_ns
    assert not export.export("r", to, onnx=False).written
    assert (to / "config.json").stat().st_mtime_ns == stamp
    checkpoint.attach(to / "model.safetensors", "reference", {"a": 1})
    assert export.export("r", to, onnx=False).written
    assert "reference" not in checkpoint.read_meta(to / "model.safetensors")["attached"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    (to / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="more than an export, such as notes"):
        export.export("r", to, onnx=False)
    assert (to / "notes.txt").read_text() == "mine"


def test_what_is_no_export_is_not_overwritten(inside, tmp_path):
    (tmp_path / "diary").write_text("mine")
    for target in (tmp_path, tmp_path / "diary"):
        with pytest.raises(UserError, match=r"holds no earlier export|is not a folder"):
            export.export("r", target, onnx=False)
    assert (tmp_path / "diary").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_patients_of_a_hospital_stay_in_the_house_unless_asked(own_outputs, tmp_path):
    _, path, _ = finished_run(own_outputs, ("nih", "our-clinic"))
    gate = {"mean": np.arange(3, dtype=np.float32)}
    header = json.dumps({"checkpoint": provenance.file_sha256(path), "rest": 1.0})
    path.with_name(f"gate_{path.name}").write_bytes(safetensors.numpy.save(gate, {"cxrlib": header}))
    made = export.export("r", tmp_path / "out", onnx=False)
    weights = made.folder / "model.safetensors"
    assert "our-clinic" in made.notes[0]
    meta, inside = checkpoint.read_meta(weights), checkpoint.read_header(weights)
    seen = lineage.seen_by(weights)["trained"]
    assert list(seen.patients) == ["nih"]
    assert len(seen.names) == 0
    assert any("our-clinic" in gap for gap in lineage.unknowns(meta))
    assert inside["gaps"] == meta["gaps"]
    state, again = checkpoint.load(path).state, checkpoint.load(weights).state
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert state.keys() == again.keys()
    with safetensors.safe_open(made.folder / "gate.safetensors", "np") as file:
        assert json.loads(file.metadata()["cxrlib"])["checkpoint"] == meta["sha256"] == provenance.file_sha256(weights)
    kept = export.export("r", tmp_path / "all", onnx=False, with_patients=True).folder / "model.safetensors"
    assert {*lineage.seen_by(kept)["trained"].patients} == {"nih", "our-clinic"}


def test_an_onnx_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the optional onnxruntime is not installed")

    class Wrong:
        def __init__(self, *a, **k):
            pass

        def run(self, names, given):
            return [np.full((len(given["images"]), 15), 9.0, np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Wrong)
    network.build("none", layers=(1, 1, 1, 1)).eval()
    with pytest.raises(UserError, match=r"not kept: its logits differ from torch's by .* on 3 films"):
        export._write_onnx(
            network.build("none", layers=(1, 1, 1, 1)).eval(), tmp_path / "m.onnx", np.zeros((3, 1, 32, 32), np.float32)
        )
    assert not list(tmp_path.iterdir())


def test_without_its_packages_the_rest_is_exported(inside, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    made = export.export("r", tmp_path / "out")
    assert made.written
    assert "pip install" in made.notes[-1]
    assert not (made.folder / "model.onnx").exists()
    assert "There is no `model.onnx`" in (made.folder / "README.md").read_text()


def copied(inside, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    shutil.copy(inside.folder / "config.json", folder)
    (folder / "model.safetensors").symlink_to(inside.folder / "model.safetensors")
    return folder


def test_hostile_folders_get_one_line(inside, tmp_path):
    folder = copied(inside, tmp_path)
    config = paths.read_json(folder / "config.json")  # without the guard
    for change, said in (
        ({"labels": config["labels"][::-1]}, "labels are"),
        ({"recipe": [1]}, "its recipe is of a wrong type"),
        ({"size": "big"}, "its size is of a wrong type"),
        ({"seen": {}}, "was changed or damaged"),
        ({"sha256": "0" * 64}, "damaged or not the file"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=said):
            checkpoint.load(checkpoint.resolve(str(folder)))
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.load(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    torch.save({"x": print}, folder / "model.safetensors")
    with pytest.raises(UserError, match="is damaged or not the file"):
        checkpoint.load(folder / "model.safetensors")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(UserError, match="more than a checkpoint can have"):
        checkpoint.load(folder / "model.safetensors")


def test_a_model_of_the_hub_is_downloaded_without_anything_that_is_code(inside, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name, **more):
        asked.update(more, name=name)
        return str(inside.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint.resolve("hf:me/chest@v1") == inside.folder / "model.safetensors"
    assert asked["name"] == "me/chest"
    assert asked["revision"] == "v1"
    assert {pattern.rpartition(".")[2] for pattern in asked["allow_patterns"]} == {"json", "safetensors", "csv"}
    with pytest.raises(UserError, match="is no model on the Hub"):
        checkpoint.resolve("hf:../../etc")

    def offline(name, **more):
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"hf:me/chest could not be downloaded \(no network\)"):
        checkpoint.resolve("hf:me/chest")


def test_pushing_needs_a_login_and_is_private(inside, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="not logged in"):
        export.upload(inside.folder, "me/chest")
    calls = []

    class Api:
        def create_repo(self, name, **more):
            calls.append((name, more["private"]))

        def upload_folder(self, **more):
            calls.append(more["folder_path"])

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "t")
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert export.upload(inside.folder, "me/chest") == "https://huggingface.co/me/chest"
    assert calls == [("me/chest", True), str(inside.folder)]
    with pytest.raises(UserError, match="is no model on the Hub"):
        hub.check("chest")


def test_the_command(inside, tmp_path, capsys):
    assert cli.call(["export", "r", "--to", str(tmp_path / "out"), "--no-onnx"]) == 0
    assert "Exported:" in capsys.readouterr().out
    assert cli.call(["export", "nothing", "--to", str(tmp_path / "x")]) == 2
    assert "there is no run 'nothing'" in capsys.readouterr().err
    assert cli.call(["export", "r", "--to", str(tmp_path / "x"), "--push", "bad name"]) == 2
    assert not (tmp_path / "x").exists()
