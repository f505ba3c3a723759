"""What ``cxr tidy`` frees, what it leaves, and that nothing is done again for it."""

import warnings

import pytest
import torch
from training import tiny

from cxrlib import UserError, disk, paths
from cxrlib.training import fit, stage_folder
from cxrlib.workbook import cli, run_record, tidying

KEEPING = {"groups": ("fc",), "epochs": 1}


def train(folder, **more):
    films = {"train": tiny.TinyBatches(8, shuffle=True), "val": tiny.TinyBatches(4, first=24)}
    return tiny.train(folder, {**KEEPING, **more.pop("recipe", {})}, **films, **more)


@pytest.fixture
def run(own_outputs) -> paths.Run:
    """A run with one finished stage, and what a kill left in it."""
    home = paths.Run("long")
    train(home.stage(1))
    files = sorted(f"stage1/{file.name}" for file in home.stage(1).iterdir() if not file.name.startswith("."))
    made = {name: paths.result_mark(home.root / name) for name in files}
    entry = {"state": "done", "fingerprint": "f", "parameters": {}, "outputs": files, "made": made}
    paths.write_json(home.run_json, {"run": "long", "notebooks": {"01_stage1": entry}}, guarded=True)
    (home.stage(1) / ".tmpAbC").write_bytes(bytes(2_000_000))
    (home.stage(1) / ".best.json.x.tmp").write_bytes(bytes(10))
    return home


def contents(home):
    files = [file for file in home.root.rglob("*") if file.is_file() and file.name != ".lock"]
    return {file.relative_to(home.root).as_posix(): file.read_bytes() for file in files}


def test_moments_and_leftovers_go_and_all_results_stay(run, capsys):
    before = contents(run)
    assert cli.call(["tidy", "long", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "moments of stage1, " in said
    assert "temporary files, 2 MB" in said
    assert "can be freed" in said
    assert contents(run) == before
    assert cli.call(["tidy", "long"]) == 0
    assert "freed" in capsys.readouterr().out
    gone = before.keys() - contents(run).keys()
    names = {"moments.safetensors", "moments.json", ".tmpAbC", ".best.json.x.tmp"}
    assert gone == {f"stage1/{name}" for name in names}
    record = run_record.read(run)
    assert paths.changed_results(run.root, record["notebooks"]["01_stage1"]["made"]) == []
    assert "stage1/moments.safetensors" not in record["notebooks"]["01_stage1"]["outputs"]
    assert not train(run.stage(1)).trained
    assert tidying.tidy("long") == []


def test_a_stage_that_goes_on_says_that_the_moments_were_tidied_away(run):
    tidying.tidy("long")
    best = train(run.stage(1)).best
    with pytest.warns(UserWarning, match=r"optimizer starts anew.*cxr tidy removed the moments of .*stage1 at \d{4}-"):
        result = train(run.stage(2), recipe={"number": 2, "keep_moments": True}, parent=best)
    assert result.trained


def test_a_run_in_use_is_refused_and_so_is_an_absent_one(run, capsys):
    for folder in (run.root, run.stage(1)):
        with paths.lock_folder(folder):
            assert cli.call(["tidy", "long"]) == 2
            assert f"cxr: {folder} is in use by process" in capsys.readouterr().err
    assert (run.stage(1) / "moments.safetensors").is_file()
    assert cli.call(["tidy", "lang"]) == 2
    assert "there is no run 'lang'; the runs are: long" in capsys.readouterr().err


def test_a_stage_that_is_not_finished_keeps_its_moments_and_states(run):
    (run.stage(1) / "best.json").unlink()
    state = stage_folder.save_state(run.stage(1) / "state", 1, {"a": torch.zeros(3)}, {})
    assert [part.what for part in tidying.tidy("long")] == ["temporary files"]
    assert state.is_file()
    assert (run.stage(1) / "moments.safetensors").is_file()


def test_what_a_kill_left_is_removed_by_the_next_run_of_the_stage(run):
    stage_folder.save_state(
        run.stage(1) / "state", 1, {"a": torch.zeros(3)}, {}
    )  # a kill between best.json and the end
    (run.stage(1) / "state" / ".tmpXyZ").write_bytes(bytes(10))
    with paths.lock_folder(run.stage(1)):
        train(run.stage(1))
        assert (run.stage(1) / ".tmpAbC").is_file()
    assert not train(run.stage(1)).trained
    assert not (run.stage(1) / "state").exists()
    assert stage_folder.temporary_files(run.stage(1)) == []


def test_a_stopped_stage_drops_temporary_states_when_it_goes_on(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".tmpAbC").write_bytes(bytes(10))
    assert train(tmp_path).trained
    assert not (tmp_path / "state").exists()


def test_a_stage_asks_for_its_room_and_needs_no_more(tmp_path, monkeypatch):
    """The figure is an upper bound of what lies there while it trains with a state after every batch."""
    monkeypatch.setenv("CXR_SAVE_EVERY", "0")
    model, most = tiny.net(), [0]
    recipe = tiny.recipe(epochs=2)

    def look(progress):
        most[0] = max(most[0], sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")))

    train(
        tmp_path,
        recipe={"groups": ("layer1", "layer2", "layer3", "layer4", "fc"), "epochs": 2},
        model=model,
        watch=look,
    )
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in model.parameters())
    room = stage_folder.room(weights, trained, ema=bool(recipe.ema))
    assert room / 3 < most[0] < room
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(UserError, match=r"stage 1 needs about .* MB, and the disk \S+ has 1 MB free; make room on it"):
        fit.fit(tiny.net(), *tiny.parts(), None, recipe, folder=tmp_path / "new", progress=False)


def test_predictions_are_the_same_bits_after_a_training_and_when_the_stage_is_recognised(tmp_path):
    from cxrlib.evaluation import predict

    val, probabilities = tiny.TinyBatches(4, first=24), []
    for trained in (True, False):
        model = tiny.net()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert train(tmp_path / "stage1", model=model).trained == trained
        file = paths.write_csv(tmp_path / "val.csv", predict.table(val.films, predict.predict(model, val)))
        probabilities.append(file.read_bytes())
    assert probabilities[0] == probabilities[1]
