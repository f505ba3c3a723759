import json
from pathlib import Path

import papermill
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrlib import UserError
from cxrlib.workbook import settings


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
        ("lr", "nan"),
        ("lr", "inf"),
        ("lr", True),
        ("size", "64.5"),
        ("size", 64.5),
        ("loss", 1),
        ("size", ""),
    ],
)
def test_a_value_of_another_type_is_an_error(chain, name, value):
    with pytest.raises(UserError, match=rf"{name} = .* is not"):
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
    found = settings.located({"data": "films", "weights": "mine.pth", "stage2.ckpt": "stage1_1e-05_2", "loss": "bce"})
    assert found == {
        "data": str(tmp_path / "films"),
        "weights": str(tmp_path / "mine.pth"),
        "stage2.ckpt": "stage1_1e-05_2",
        "loss": "bce",
    }
