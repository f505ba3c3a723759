import dataclasses
import subprocess
import sys

import pytest

from cxrlib import UserError
from cxrlib.training import losses, schedules


def test_seed_is_the_original_table():
    """Groups, rate and epochs as the original project published them."""
    rows = [(stage.groups[0], stage.lr, stage.epochs) for stage in schedules.SCHEDULES["seed"]]
    expected = [("layer2", 1e-5, 2), ("layer3", 3e-4, 1), ("layer4", 1e-3, 3), ("fc", 1e-3, 2), ("stem", 1e-6, 3)]
    assert rows == expected
    for stage in schedules.SCHEDULES["seed"]:
        common = (stage.optimizer, stage.loss, stage.gamma, stage.augment, stage.cap, stage.decay)
        assert common == ("adam", "focal", 2, "none", 10_000, "none")


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_every_schedule_has_five_stages_that_train_from_the_head_downwards_without_gaps(name):
    assert [stage.number for stage in schedules.SCHEDULES[name]] == [1, 2, 3, 4, 5]
    for stage in schedules.SCHEDULES[name]:
        assert stage.schedule == name
        assert stage.groups == schedules.GROUPS[-len(stage.groups) :]
        assert stage.loss in losses.NAMES
        assert stage.purpose


def test_control_makes_as_many_passes_as_modern_in_one_stage():
    passes = [stage.epochs for stage in schedules.SCHEDULES["control"]]
    assert passes == [sum(stage.epochs for stage in schedules.SCHEDULES["modern"]), 0, 0, 0, 0]
    assert schedules.SCHEDULES["control"][0].groups == schedules.GROUPS


def test_only_what_is_given_replaces_the_schedules_own():
    own = schedules.SCHEDULES["scratch"][2]
    assert schedules.recipe("scratch", 3, lr=0.0, epochs=-1, loss="") == own
    changed = schedules.recipe("scratch", 3, lr=1, epochs=0, loss="bce", lower_rate=0.5)
    assert schedules.compare_recipes(changed, own).index.tolist() == ["lr", "epochs", "loss", "lower_rate"]
    assert schedules.compare_recipes(changed, own).loc["lr", "this"] == 1.0


def test_further_fields_are_read_from_words():
    words = "positive_weight=10, accumulate=2 keep_moments=no groups=layer4+fc decay=plateau"
    expected = {
        "positive_weight": 10.0,
        "accumulate": 2,
        "keep_moments": False,
        "groups": ("layer4", "fc"),
        "decay": "plateau",
    }
    assert schedules.parse_override(words) == expected
    assert schedules.parse_override("") == {}
    changed = schedules.recipe("scratch", 3, override=words)
    assert {name: getattr(changed, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": "old"}, "schedule is 'old'"),
        ({"number": 6}, "stage is 6"),
        ({"number": True}, "stage is True"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"lr": -1e-3}, "lr is -0.001"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"epochs": -2}, "epochs is -2"),
        ({"loss": "mse"}, "loss is 'mse'"),
        ({"loss": "BCE"}, "did you mean bce"),
        ({"lr": 10**400}, "lr is inf"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"groups": ("head",)}, "groups"),
        ({"learning_rate": 1e-3}, "no learning_rate to set"),
        ({"purpose": "fun"}, "no purpose to set"),
        ({"keep_moments": 1}, "keep_moments is 1; it must be true or false"),
        ({"plateau": 0}, "plateau is 0"),
        ({"precision": "bf16"}, "precision is 'bf16'"),
        ({"override": "positive_weight"}, "override is 'positive_weight'"),
        ({"override": "accumulte=2"}, "no accumulte to set; did you mean accumulate"),
        ({"override": "accumulate=two"}, "accumulate is 'two'; it must be a whole number"),
        ({"override": "keep_moments=perhaps"}, "keep_moments is 'perhaps'"),
        ({"override": "ema=2"}, "ema is 2.0"),
        ({"override": "groups=layer4+head"}, "groups is 'layer4.head'"),
        ({"override": "carry=no"}, "carry is now called keep_moments"),
        ({"override": "halve=yes"}, "halve is now called split_on_oom"),
        ({"override": "views=2"}, "views is now called variants"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values, message):
    with pytest.raises(UserError, match=message):
        schedules.recipe(**{"schedule": "scratch", "number": 1, **values})


def test_tables_are_complete():
    assert schedules.schedule_table("modern").index.tolist() == [1, 2, 3, 4, 5]
    first = schedules.compare_recipes(schedules.recipe("seed", 1), None)
    assert {"lr", "groups", "optimizer"} <= set(first.index)


@pytest.mark.parametrize("name", schedules.SETTABLE)
@pytest.mark.parametrize("text", ["-1", "9" * 400, "nan", "", "nosuch"])
def test_every_word_of_an_override_is_refused_where_it_makes_no_sense(name, text):
    """What remains: 9 … 9 is beyond each upper bound, and no choice, no truth and no group is called so."""
    with pytest.raises(UserError, match=name) as caught:
        schedules.recipe("scratch", 1, override=f"{name}={text}")
    assert len(str(caught.value)) < 400


def test_every_number_of_a_recipe_has_limits_and_every_word_choices():
    kinds = {field.name: field.type for field in dataclasses.fields(schedules.Stage)}
    assert {name for name, kind in kinds.items() if kind in (int, float)} == set(schedules.LIMITS)
    assert {name for name, kind in kinds.items() if kind is str} == {*schedules.CHOICES, "schedule", "purpose"}


def test_a_recipe_is_checked_without_torch_and_pandas():
    code = "import sys; from cxrlib.training import schedules; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_published_is_the_recipe_of_the_best_plain_resnet_50():
    """As FIELD and the authors' code have it: BCE, Adam 2e-4 without decay, batch 32, everything trains."""
    first, *rest = schedules.SCHEDULES["published"]
    assert first.groups == schedules.GROUPS
    assert (first.loss, first.positive_weight, first.optimizer, first.lr) == ("bce", 0, "adam", 2e-4)
    assert (first.weight_decay, first.warmup, first.lower_rate, first.ema, first.clip) == (0, 0, 1, 0, 0)
    assert (first.decay, first.plateau, first.patience, first.chosen_by, first.augment) == (
        "plateau",
        6,
        10,
        "loss",
        "crops",
    )
    assert [stage.epochs for stage in rest] == [0] * 4


@pytest.mark.parametrize(("batch", "accumulate", "factor"), [(32, 1, 1), (128, 1, 2), (32, 4, 2), (8, 1, 0.5)])
def test_a_larger_batch_has_a_higher_rate_where_the_recipe_says_to_which_batch_it_belongs(batch, accumulate, factor):
    recipe = schedules.recipe("published", 1, accumulate=accumulate)
    assert schedules.for_batch_size(recipe, batch).lr == pytest.approx(factor * 2e-4)
    plain = schedules.recipe("modern", 1)
    assert schedules.for_batch_size(plain, batch) == plain
