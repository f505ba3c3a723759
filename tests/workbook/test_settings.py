import json
import shlex
from pathlib import Path

import papermill
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights

from cxrlib import UserError, dataset, paths
from cxrlib.evaluation import predict
from cxrlib.training import losses, parameters, schedules
from cxrlib.workbook import settings
from tests.cells import execute


def test_a_general_setting_goes_to_every_notebook_that_has_it(chain):
    shared = settings.share(settings.chain(), {"loss": "bce", "seed": 3})
    assert shared["00_exploration"] == {"seed": 3}
    assert shared["01_stage1"] == shared["02_stage2"] == {"loss": "bce", "seed": 3}
    assert shared["06_evaluation"] == {"seed": 3}


@pytest.mark.parametrize("order", [["lr", "stage2.lr"], ["stage2.lr", "lr"]])
def test_a_setting_of_one_stage_wins_over_the_general_one(chain, order):
    values = {"lr": "1e-3", "stage2.lr": "1e-4"}
    shared = settings.share(settings.chain(), {name: values[name] for name in order})
    assert (shared["01_stage1"]["lr"], shared["02_stage2"]["lr"]) == (1e-3, 1e-4)


@pytest.mark.parametrize(
    ("wrong", "hint"), [("epoch", "epochs"), ("stage2.lrr", "stage2.lr"), ("batchsize", "batch_size")]
)
def test_an_unknown_name_is_an_error_with_the_close_ones(chain, wrong, hint):
    with pytest.raises(UserError, match=f"no notebook has the parameter '{wrong}'.*{hint}"):
        settings.share(settings.chain(), {wrong: "1"})


def test_a_parameter_of_a_stage_is_not_one_of_exploration(chain):
    with pytest.raises(UserError, match="no notebook has"):
        settings.share(settings.chain(), {"exploration.lr": "1e-3"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "fast"),
        ("lr", True),
        ("size", "64.5"),
        ("size", 64.5),
        ("loss", 1),
        ("size", ""),
    ],
)
def test_a_value_of_another_type_is_an_error(chain, name, value):
    with pytest.raises(UserError, match=rf"{name} is .*; it must be"):
        settings.share(settings.chain(), {name: value})


def test_a_whole_number_will_do_for_a_rate(chain):
    assert settings.share(settings.chain(), {"lr": 1})["01_stage1"]["lr"] == 1.0


@pytest.mark.parametrize("text", ["lr", "=3", ""])
def test_a_pair_without_name_or_value_is_an_error(text):
    with pytest.raises(UserError, match="name=value"):
        settings.parse([text])


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,9}(\.[a-z]{1,4})?", fullmatch=True), st.text("abc=1.-/ ").map(str.strip))
)
def test_pairs_are_read_back(pairs):
    assert settings.parse(f"{name}={value}" for name, value in pairs.items()) == pairs


def test_parameters_agree_with_papermill(chain):
    for book in settings.chain():
        seen = papermill.inspect_notebook(str(book))
        assert {name: repr(value) for name, value in settings.parameters(book).items()} == {
            name: found["default"].replace('"', "'") for name, found in seen.items()
        }


@pytest.mark.parametrize("line", ["lr: float = 1.0", "lr = None", "sizes = [64]", "a = b = 1", "import os", "x.y = 1"])
def test_only_plain_scalars_are_parameters(chain, line):
    book = chain / "01_stage1.ipynb"
    content = json.loads(book.read_text())
    content["cells"][1]["source"] = [line]
    book.write_text(json.dumps(content))
    with pytest.raises(UserError, match="line 1 of the parameters cell"):
        settings.parameters(book)


def test_a_folder_without_notebooks_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        settings.chain(tmp_path)


def test_files_are_located_from_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    Path("mine.pth").touch()
    Path("stage2_1e-05_2.safetensors").touch()
    Path("none").touch()
    given = {"data": "films", "weights": "mine.pth", "stage1.weights": "none", "loss": "bce"}
    given |= {"stage2.ckpt": "stage1_1e-05_2", "stage3.ckpt": "stage2_1e-05_2", "stage4.ckpt": "stage3/stage3_1e-05_2"}
    assert settings.located(given) == {
        "data": str(tmp_path / "films"),
        "weights": str(tmp_path / "mine.pth"),
        "stage1.weights": "none",
        "loss": "bce",
        "stage2.ckpt": "stage1_1e-05_2",
        "stage3.ckpt": str(tmp_path / "stage2_1e-05_2"),
        "stage4.ckpt": str(tmp_path / "stage3" / "stage3_1e-05_2"),
    }


def test_given_films_bring_the_settings_of_real_films(tmp_path):
    base = {"size": 224, "schedule": "modern"}
    fresh, defaults = settings.merge("base", {}, {"data": str(tmp_path), "size": 96}, base)
    assert fresh == {"size": 96, "schedule": "modern", "data": str(tmp_path), "run": "base"}
    assert defaults == base
    assert settings.merge("demo", {}, {"seed": 1}, base) == ({"seed": 1, "run": "demo"}, {})
    before = {"settings": fresh, "defaults": defaults}
    assert settings.merge("base", before, {"size": 64}, {})[0] == {**fresh, "size": 64}


def test_an_empty_value_takes_a_setting_back_to_the_runs_own_default(tmp_path):
    base = {"size": 224, "schedule": "modern"}
    kept = {"data": str(tmp_path), "size": 96, "schedule": "seed", "loss": "bce", "stage3.lr": 1e-4, "run": "base"}
    before = {"settings": kept, "defaults": base}
    taken = settings.merge("base", before, {"size": "", "loss": "", "stage3.lr": "", "tta": ""}, {"size": 32})[0]
    assert taken == {"data": str(tmp_path), "size": 224, "schedule": "seed", "run": "base"}


def test_an_empty_value_of_an_unknown_name_is_an_error(chain):
    with pytest.raises(UserError, match="did you mean loss"):
        settings.check_names(settings.chain(), ["lsos"])


BOOKS = sorted(paths.notebooks().glob("*.ipynb")) + sorted(paths.notebooks().glob("solutions/*.ipynb"))
EACH = [(book, name) for book in BOOKS for name in settings.parameters(book)]
VALUES = ["0", "-1", "9" * 400, "1e400", "nan", "", "nosuch", "\0"]
SENSIBLE = {
    ("lr", "0"): "the schedule's",
    ("epochs", "0"): "the stage trains nothing",
    ("epochs", "-1"): "the schedule's",
    ("seed", "0"): "a seed",
    ("allow_missing", "0"): "false",
    ("allow_leak", "0"): "false",
    ("data", ""): "the phantom set",
    ("exclude", ""): "no film is left out",
    ("ckpt", ""): "the stage before",
    ("expert_labels", ""): "looked for beside the data",
    ("loss", ""): "the schedule's",
    ("override", ""): "the schedule's",
    ("teacher", ""): "no teacher",
    ("run", "0"): "a name",
    ("run", "nosuch"): "a name",
    ("run", "nan"): "a name",
    ("run", "1e400"): "a name",
}
"""Values that mean something, and what."""
each_parameter = pytest.mark.parametrize(("book", "name"), EACH, ids=lambda it: getattr(it, "stem", it))


def sensible(book, name, value):
    own_size = (name, value) == ("size", "0") and settings.part(book) in parameters.TESTS
    return own_size or (name, value) in SENSIBLE


@each_parameter
def test_every_parameter_of_every_notebook_has_a_rule_of_its_defaults_type(book, name):
    default = settings.parameters(book)[name]
    assert type(default) is parameters.RULES[name].kind
    assert not list(parameters.faults(settings.part(book), settings.parameters(book)))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:6])
@each_parameter
def test_every_value_is_refused_in_one_line_or_means_something(book, name, value):
    def judged():
        return settings.judge([book], {f"{settings.part(book)}.{name}": value})

    if sensible(book, name, value):
        assert judged()
        return
    with pytest.raises(UserError, match=rf"\b{name}\b") as caught:
        judged()
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@each_parameter
def test_by_hand_or_under_papermill_a_value_of_another_type_is_refused(book, name):
    """Where a user edits the cell, or papermill reads ``-p run 7`` as a number."""
    other = 7 if parameters.RULES[name].kind in (str, bool) else "7"
    with pytest.raises(UserError, match=rf"^{name} is {other!r}; it must be"):
        parameters.judge(settings.part(book), {**settings.parameters(book), name: other})


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: f"{book.parent.name}-{book.stem}")
def test_a_notebook_judges_its_parameters_before_it_reads_a_film(book):
    _, first, *later = [settings.source(cell) for cell in settings.cells(book) if cell["cell_type"] == "code"]
    call = f'parameters.judge("{settings.part(book)}", globals())'
    assert first.count(call) == 1
    assert not any(word in first.partition(call)[0] for word in ("dataset.open", "lineage.", "records.read"))
    assert not any("parameters.judge" in source for source in later)


def test_a_notebook_executed_by_hand_refuses_a_wrong_word(monkeypatch):
    monkeypatch.setattr(dataset, "open", lambda *_, **__: pytest.fail("a film was read"))
    with pytest.raises(UserError, match=r"^schedule is 'modem'.*did you mean modern\?$"):
        execute(paths.notebooks() / "02_stage2.ipynb", schedule="modem")


def test_the_rules_choices_are_those_of_the_rooms_that_use_them():
    assert [entry.name for entry in ResNet50_Weights] == [*parameters.WEIGHTS]
    assert schedules.OLD_NAMES.keys().isdisjoint({*parameters.RULES, *schedules.SETTABLE})
    for mode in parameters.MODES:
        assert predict.variants(mode)
    assert set(losses.NAMES) == set(schedules.CHOICES["loss"])


def test_processes_are_counted_against_the_cards_or_else_the_cores(monkeypatch):
    book = [paths.notebooks() / "01_stage1.ipynb"]
    for count, what in ((1, "cores"), (4, "cores"), (8, "cards")):
        monkeypatch.setattr(parameters, "capacity", lambda found=(count, what): found)
        settings.judge(book, {"processes": count})
        with pytest.raises(UserError, match=f"this machine has {count} {what}"):
            settings.judge(book, {"processes": count + 1})
    with pytest.raises(UserError, match="batch_size must be 16 or more"):
        settings.judge(book, {"processes": 8, "batch_size": 15})


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"stage1,0.5\n", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_weights_file_is_refused_by_its_first_bytes(tmp_path, content):
    for name, ending in (("weights", "pth"), ("weights", "safetensors"), ("ckpt", "safetensors")):
        file = tmp_path / f"w.{ending}"
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} .* is no file of weights"):
            settings.judge([paths.notebooks() / "01_stage1.ipynb"], {name: str(file)})


def test_real_files_of_weights_pass(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "zip.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors")
    for file in tmp_path.iterdir():
        settings.judge([paths.notebooks() / "01_stage1.ipynb"], {"weights": str(file)})


def test_a_wrong_default_in_a_notebook_is_refused_with_its_name(chain):
    book = chain / "01_stage1.ipynb"
    book.write_text(book.read_text().replace('schedule = \\"scratch\\"', 'schedule = \\"scratsh\\"'))
    with pytest.raises(UserError, match=r"^01_stage1.ipynb: schedule is 'scratsh'.*did you mean scratch"):
        settings.judge(settings.chain(), {})


def test_a_finished_notebook_is_not_judged_again(chain, tmp_path):
    """Its weights or its checkpoint may be gone since."""
    given = {"stage1.weights": str(tmp_path / "gone.pth")}
    with pytest.raises(UserError, match="neither a file"):
        settings.judge(settings.chain(), given)
    settings.judge(settings.chain(), given, done={"01_stage1": given_by_name(given)})


def given_by_name(given):
    return {name.rpartition(".")[2]: value for name, value in given.items()}


OLD = [
    ("also", "patience=3", "-p also= -p override=patience=3"),
    ("also", "carry=no halve=yes views=2", "-p also= -p 'override=keep_moments=no split_on_oom=yes variants=2'"),
    ("stage3.also", "carry=no", "-p stage3.also= -p stage3.override=keep_moments=no"),
    ("carry", "no", "-p carry= -p override=keep_moments=no"),
]


@pytest.mark.parametrize(("name", "value", "advice"), OLD)
def test_an_old_name_that_a_run_remembers_is_told_in_one_line_whose_advice_helps(name, value, advice):
    books = settings.chain(paths.notebooks())
    before = {"settings": {"run": "demo", name: value}}
    with pytest.raises(UserError) as caught:
        settings.judge(books, settings.merge("demo", before, {}, {})[0], kept={name})
    message = str(caught.value)
    assert message.endswith(advice)
    assert "\n" not in message
    given = settings.parse(word for word in shlex.split(advice) if word != "-p")
    wanted = settings.merge("demo", before, given, {})[0]
    assert name not in wanted
    assert settings.judge(books, wanted)


@pytest.mark.parametrize(("old", "new"), schedules.OLD_NAMES.items())
def test_an_old_name_is_told_with_its_new_one(old, new):
    books = settings.chain(paths.notebooks())
    for wrong in ({old: "1"}, {f"stage2.{old}": "1"}, {"override": f"{old}=1"}):
        with pytest.raises(UserError, match=f"now called {new}"):
            settings.judge(books, wrong)


def test_a_remembered_value_that_is_wrong_is_told_with_how_to_take_it_back(chain):
    for wrong in ({"stage2.loss": "xx"}, {"seed": "9" * 25}, {"size": "old"}):
        (name,) = wrong
        with pytest.raises(UserError, match=rf"^{name} is .*-p {name}= gives the default back$"):
            settings.judge(settings.chain(), wrong, kept={name})


def test_weights_that_are_a_runs_name_are_its_last_checkpoint(own_outputs):
    for number, title in ((1, "stage1_0.001_2"), (3, "stage3_0.001_5")):
        folder = own_outputs / "cx" / f"stage{number}"
        folder.mkdir(parents=True)
        paths.write_json(folder / "best.json", {"best": title})
        (folder / f"{title}.safetensors").write_bytes(b"x")
    located = settings.located({"weights": "cx", "stage1.weights": "IMAGENET1K_V1"})
    assert located["weights"] == str(own_outputs / "cx" / "stage3" / "stage3_0.001_5.safetensors")
    assert located["stage1.weights"] == "IMAGENET1K_V1"
    assert settings.located({"weights": "nosuch"})["weights"] == "nosuch"


@given(st.integers(1, settings.MOST_SEEDS))
def test_a_count_of_seeds_means_the_first_ones(count):
    assert settings.parse_seeds(str(count)) == list(range(count))


@given(st.lists(st.integers(*parameters.SEEDS), min_size=2, unique=True))
def test_a_list_of_seeds_is_itself(seeds):
    assert settings.parse_seeds(", ".join(map(str, seeds))) == seeds


@pytest.mark.parametrize(
    "text",
    ["0", "101", "-1", "1,-2", "a", "1,b", "1.5", "1,,2", "1,", "", "0,0", "7,3,7", "4294967296,1", "9" * 5000, "²,1"],
)
def test_a_list_of_seeds_that_cannot_be_meant_is_one_line(text):
    with pytest.raises(UserError) as caught:
        settings.parse_seeds(text)
    assert len(str(caught.value).splitlines()) == 1
    assert "--seeds" in str(caught.value)


@pytest.mark.parametrize("name", ["seed", "stage3.seed"])
def test_a_seed_beside_seeds_is_refused(name):
    with pytest.raises(UserError, match=f"--seeds and {name} cannot be given together"):
        settings.parse_seeds("3", {"lr", name})
