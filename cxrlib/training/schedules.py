"""Schedules of five stages, and a stage's recipe: every setting that decides its result, checked when it is read.

A *stage* trains some layer groups of the network at a rate for some epochs; the rest stays as the parent left it.
Five schedules are here:

``seed``
    the original project's table, for ImageNet weights, as faithfully as it was published.
``modern``
    the same five steps the way the field fine-tunes today: unfreeze from the head downwards. At equal passes it has not
    been shown to be better than one stage, and on 20,000 phantom films it was worse (README, "Does staging help?").
``control``
    one stage that trains everything for as many passes over the films as ``modern`` has in all.
    Staging is measured against it.
``published``
    the recipe of the best published plain ResNet-50 on the official split (mean AUC 0.817): one stage that trains
    everything. It belongs to films of 256 px, batches of 32, the weights IMAGENET1K_V1, and ten crops in the test.
``scratch``
    for random weights, where there is nothing to preserve: everything first, then the upper groups at lower
    rates, then everything again. The demo's schedule.

This module imports neither torch nor pandas before a table is asked for, so that a command line can check a recipe at
once.
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from cxrlib import UserError

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
"""Layer groups of a ResNet, from input to output; ``fc`` is the classification head."""

FROM_LAYER4 = GROUPS[4:]
FROM_LAYER3 = GROUPS[3:]
FROM_LAYER2 = GROUPS[2:]
HEAD = GROUPS[5:]

CHOICES = {
    "loss": ("focal", "bce"),
    "optimizer": ("adam", "adamw", "sgd"),
    "decay": ("none", "cosine", "plateau"),
    "augment": ("none", "light", "full", "crops"),
    "chosen_by": ("auc", "loss"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "compile": ("auto", "yes", "no"),
}

LIMITS: dict[str, tuple[float, float]] = {
    "number": (1, 5),
    "lr": (0, 10),
    "epochs": (0, 10_000),
    "gamma": (0, 100),
    "positive_weight": (0, 1e6),
    "weight_decay": (0, 10),
    "warmup": (0, 1),
    "lower_rate": (0, 1),
    "cap": (0, 1_000_000_000),
    "ema": (0, 1),
    "clip": (0, 1e6),
    "accumulate": (1, 10_000),
    "plateau": (1, 10_000),
    "patience": (0, 10_000),
    "soup": (0, 1_000),
    "variants": (0, 10_000),
    "lr_batch": (0, 1_000_000),
    "teacher_share": (0, 1),
}
"""Lowest and highest value of each number in a recipe. The upper bounds are far above any use, to catch misprints."""

ABOVE_LOWEST, BELOW_HIGHEST = ("lr", "lower_rate"), ("ema",)
"""Numbers that must not be equal to their lowest, or to their highest value."""

OLD_NAMES = {"also": "override", "carry": "keep_moments", "halve": "split_on_oom", "views": "variants"}
"""Settings of earlier versions and their names now."""

LONGEST = 120
"""Letters of a refused value that a message repeats."""

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
"""Types in words."""

TRUTH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def check_setting_type(name: str, value: Any, expected: Any) -> None:
    """Check the type of a value, else raise UserError. An int passes as a float; a bool does not pass as a number."""
    if expected == tuple[str, ...]:
        fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    else:
        allowed = (int, float) if expected is float else expected
        fits = isinstance(value, allowed) and isinstance(value, bool) == (expected is bool)
    require_setting(fits, name, value, KINDS.get(expected, "names in a tuple"))


def require_setting(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raise UserError with the setting's name, its value and the expected value, unless ``condition`` is true."""
    if not condition:
        raise UserError(f"{name} is {shown(value)}; it must be {expected}")


def one_of(value: Any, allowed: Iterable[str]) -> str:
    """The choices in words, with the one that is most similar to ``value``: "one of focal, bce; did you mean bce?"."""
    names = {name.lower(): name for name in allowed}
    similar = difflib.get_close_matches(str(value).lower(), names, 1)
    return f"one of {', '.join(names.values())}" + (f"; did you mean {names[similar[0]]}?" if similar else "")


def shown(value: Any) -> str:
    """A value as a message repeats it: cut if it is very long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a very large number"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def in_words(low: float, high: float) -> str:
    """A range in words: "8 to 4,096"."""
    return f"{low:,.10g} to {high:,.10g}"


def to_float(value: float) -> float:
    """A number as a float; infinity for a whole number that is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_number(name: str, value: float) -> None:
    low, high = LIMITS[name]
    if name in ABOVE_LOWEST:
        fits, expected = low < value <= high, f"above {low:g} and at most {high:,.10g}"
    elif name in BELOW_HIGHEST:
        fits, expected = low <= value < high, f"{low:g} or more and below {high:g}"
    else:
        fits, expected = low <= value <= high, in_words(low, high)
    require_setting(fits, "stage" if name == "number" else name, value, expected)


@dataclass(frozen=True)
class Stage:
    """Recipe of one stage: everything that decides its result, except data, seed and starting weights.

    ``groups``: trained layer groups, the others are frozen · ``lr``: peak rate of the topmost trained group ·
    ``epochs``: 0 or more · ``gamma``: of the focal loss · ``positive_weight``: largest weight of a finding's positives,
    0 for no weights · ``warmup``: share of all steps in which the rate rises, 0 to 1 · ``decay``: of the rate after the
    warmup · ``lower_rate``: factor on the rate per group downwards, 1 for one rate · ``augment``: preset of
    ``augmentation`` · ``cap``: films per finding and epoch, 0 for all · ``ema``: decay of the weights' moving average,
    0 for none · ``clip``: largest norm of the gradient, 0 for no limit · ``accumulate``: batches per step.

    ``chosen_by``: the validation number that chooses the best epoch, "auc" (the mean over the 14 findings) or "loss" ·
    ``decay="plateau"`` halves the rate after every ``plateau`` epochs in which that number is no better · ``patience``:
    early stopping after so many such epochs, 0 for never · ``soup``: epochs at the end whose mean weights are tried on
    the validation films, and taken if they are better than the best epoch, 0 for none · ``lr_batch``: films per step to
    which ``lr`` belongs; with n times as many the rate is √n times as high, as Adam needs it (Malladi et al., On the
    SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022); 0: the rate stays as it is · ``variants``: fixed
    variants of each film, 0 for new ones in every epoch · ``teacher_share``: share of the teachers' probabilities in
    the labels, where there are teachers · ``keep_moments``: keep the parent's optimizer moments for weights that it
    trained too · ``split_on_oom``: split batches that do not fit into memory, instead of stopping · ``precision``:
    "auto" is bfloat16 where the device has it, else float16 on cards where it is fast, else float32 · ``compile``:
    torch.compile, "auto" if it saves time.

    Raises UserError for any other value.
    """

    schedule: str
    number: int
    groups: tuple[str, ...]
    lr: float
    epochs: int
    loss: str = "focal"
    gamma: float = 2.0
    positive_weight: float = 0.0
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    warmup: float = 0.0
    decay: str = "none"
    lower_rate: float = 1.0
    augment: str = "none"
    cap: int = 0
    ema: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    plateau: int = 2
    patience: int = 0
    soup: int = 0
    chosen_by: str = "auc"
    lr_batch: int = 0
    teacher_share: float = 0.5
    variants: int = 0
    keep_moments: bool = True
    split_on_oom: bool = False
    precision: str = "auto"
    compile: str = "auto"
    purpose: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_setting_type(field.name, getattr(self, field.name), field.type)
            if field.type is float:  # 1 and 1.0 are the same recipe
                object.__setattr__(self, field.name, to_float(getattr(self, field.name)))
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            require_setting(value in allowed, name, value, one_of(value, allowed))
        wrong = [group for group in self.groups if group not in GROUPS]
        expected = one_of(wrong[0], GROUPS) if wrong else f"some of {', '.join(GROUPS)}"
        require_setting(bool(self.groups) and not wrong, "groups", "+".join(self.groups), expected)
        for name in LIMITS:
            _check_number(name, getattr(self, name))
        valid = self.positive_weight == 0 or self.positive_weight >= 1
        expected = "0 for no weights, or the largest weight, 1 or more"
        require_setting(valid, "positive_weight", self.positive_weight, expected)


SETTABLE = tuple(field.name for field in fields(Stage) if field.name not in ("schedule", "number", "purpose"))
"""Fields of a recipe that ``override`` can set."""


def parse_override(override: str) -> dict[str, Any]:
    """Parse recipe fields from ``"positive_weight=10 accumulate=2 keep_moments=no groups=layer4+fc"``; "" gives none.

    Raises UserError for a word that is not ``name=value``, an unknown name, and a value of another type.
    """
    values: dict[str, Any] = {}
    for word in override.replace(",", " ").split():
        name, equals, text = word.partition("=")
        require_setting(
            bool(equals), "override", override, 'name=value words such as "positive_weight=10 accumulate=2"'
        )
        require_settable(name)
        values[name] = _read(name, text)
    return values


def _read(name: str, text: str) -> Any:
    kind = next(field.type for field in fields(Stage) if field.name == name)
    if kind == tuple[str, ...]:
        return tuple(text.split("+"))
    if kind is bool:
        require_setting(text.lower() in TRUTH, name, text, "yes or no")
        return TRUTH[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} is {shown(text)}; it must be {KINDS[kind]}") from None


def require_settable(name: str) -> None:
    """Check a setting's name, else raise UserError with its new name, or the most similar one."""
    if name in OLD_NAMES:
        raise UserError(f"{name} is now called {OLD_NAMES[name]}")
    if name not in SETTABLE:
        similar = difflib.get_close_matches(name, SETTABLE, 1)
        hint = f"did you mean {similar[0]}? It has" if similar else "it has"
        raise UserError(f"a recipe has no {shown(name)[1:-1]} to set; {hint} {', '.join(SETTABLE)}")


def recipe_row(stage: Stage) -> dict[str, Any]:
    """Table row of a recipe, with its groups in one string."""
    return {**asdict(stage), "groups": " ".join(stage.groups)}


def _seed() -> tuple[Stage, ...]:
    """The original table: Adam at constant rates, focal loss, no augmentation, at most 10,000 films per finding."""
    common = {"schedule": "seed", "optimizer": "adam", "weight_decay": 0.0, "cap": 10_000}
    return (
        Stage(number=1, groups=FROM_LAYER2, lr=1e-5, epochs=2, purpose="adapt upper layers slowly to X-rays", **common),
        Stage(number=2, groups=FROM_LAYER3, lr=3e-4, epochs=1, purpose="adapt the two upper groups quickly", **common),
        Stage(number=3, groups=FROM_LAYER4, lr=1e-3, epochs=3, purpose="fit the last group to the findings", **common),
        Stage(number=4, groups=HEAD, lr=1e-3, epochs=2, purpose="train the head on fixed features", **common),
        Stage(number=5, groups=GROUPS, lr=1e-6, epochs=3, purpose="adjust all layers very slowly", **common),
    )


def _modern() -> tuple[Stage, ...]:
    """Modern table: unfreeze from the head downwards (Howard and Ruder, ULMFiT, 2018), with lower rates each time.

    The rates were chosen on real and on synthetic films, by validation only; README's log lists the trials.
    """
    common = {
        "schedule": "modern",
        "loss": "bce",
        "weight_decay": 0.05,
        "warmup": 0.1,
        "decay": "cosine",
        "lower_rate": 0.85,
        "augment": "full",
        "ema": 0.998,
        "clip": 1.0,
    }
    head = {**common, "augment": "none", "ema": 0.0}
    return (
        Stage(number=1, groups=HEAD, lr=1e-3, epochs=2, purpose="train the new head alone first", **head),
        Stage(number=2, groups=FROM_LAYER4, lr=6e-4, epochs=2, purpose="unfreeze the most specific group", **common),
        Stage(number=3, groups=FROM_LAYER3, lr=4e-4, epochs=3, purpose="unfreeze the group of shape parts", **common),
        Stage(number=4, groups=FROM_LAYER2, lr=4e-4, epochs=4, purpose="unfreeze the texture group", **common),
        Stage(number=5, groups=GROUPS, lr=3e-4, epochs=5, purpose="fine-tune everything, lower layers least", **common),
    )


def _control() -> tuple[Stage, ...]:
    """Control table: stage 1 trains all groups for as many epochs as ``modern``. Stages 2 to 5 do nothing."""
    modern = _modern()
    recipe = {**asdict(modern[-1]), "schedule": "control", "lr": 2e-4, "lower_rate": 1.0}
    epochs = sum(stage.epochs for stage in modern)
    purpose = "one fine-tuning of all layers with as many epochs, to compare staging with"
    return _once(Stage(**{**recipe, "number": 1, "epochs": epochs, "purpose": purpose}))


def _once(first: Stage) -> tuple[Stage, ...]:
    """A table in which stage 1 trains, and the others have no epochs."""
    idle = "no training, so that the chain has the same five steps"
    return first, *(replace(first, number=n, epochs=0, purpose=idle) for n in range(2, 6))


def _published() -> tuple[Stage, ...]:
    """Published table: the recipe of Ma et al. (Benchmarking and Boosting Transformers for Medical Image
    Classification, 2022) for ResNet-50, which gave a mean AUC of 0.8170 ± 0.0015 in ten runs.

    The numbers are those of its code: torch's ReduceLROnPlateau with patience 5 halves after the sixth epoch in a row
    that is no better; early stopping comes after ten.
    """
    return _once(
        Stage(
            schedule="published",
            number=1,
            groups=GROUPS,
            lr=2e-4,
            epochs=200,
            loss="bce",
            optimizer="adam",
            weight_decay=0.0,
            decay="plateau",
            plateau=6,
            patience=10,
            chosen_by="loss",
            lr_batch=32,
            augment="crops",
            purpose="the recipe of the best published plain ResNet-50",
        )
    )


def _scratch() -> tuple[Stage, ...]:
    """Scratch table: stage 1 trains all groups, since a frozen lower group would keep its random weights."""
    common = {"schedule": "scratch", "weight_decay": 0.05, "decay": "cosine", "augment": "light", "clip": 1.0}
    head = {**common, "augment": "none"}
    return (
        Stage(
            number=1, groups=GROUPS, lr=1e-3, epochs=4, warmup=0.25, purpose="train everything in one cycle", **common
        ),
        Stage(number=2, groups=FROM_LAYER2, lr=3e-4, epochs=1, purpose="refine all above the first filters", **common),
        Stage(number=3, groups=FROM_LAYER3, lr=3e-4, epochs=1, purpose="refine the two upper groups", **common),
        Stage(number=4, groups=HEAD, lr=1e-3, epochs=2, purpose="train the head on fixed features", **head),
        Stage(number=5, groups=GROUPS, lr=1e-4, epochs=1, warmup=0.1, purpose="adjust all layers again", **common),
    )


SCHEDULES: dict[str, tuple[Stage, ...]] = {
    "seed": _seed(),
    "modern": _modern(),
    "control": _control(),
    "published": _published(),
    "scratch": _scratch(),
}


def recipe(
    schedule: str, number: int, *, lr: float = 0.0, epochs: int = -1, loss: str = "", override: str = "", **other: Any
) -> Stage:
    """Recipe of a schedule's stage, with some values replaced. ``lr=0``, ``epochs=-1`` and ``loss=""`` replace nothing.

    ``other`` are further fields of ``Stage``, such as ``lower_rate=0.5``. ``override`` is a text of them for
    ``parse_override``. Raises UserError for an unknown schedule, stage or field, and a value of wrong type or range.
    """
    require_setting(schedule in SCHEDULES, "schedule", schedule, one_of(schedule, SCHEDULES))
    check_setting_type("stage", number, int)
    require_setting(1 <= number <= 5, "stage", number, "1 to 5")
    changes = {**parse_override(override), **other}
    for name in changes:
        require_settable(name)
    changes |= {"lr": lr} if lr != 0 else {}
    changes |= {"epochs": epochs} if epochs != -1 else {}
    changes |= {"loss": loss} if loss != "" else {}
    return replace(SCHEDULES[schedule][number - 1], **changes)


def for_batch_size(recipe: Stage, batch_size: int) -> Stage:
    """The recipe with the rate for batches of ``batch_size`` films, by the rule of its ``lr_batch``."""
    if not recipe.lr_batch:
        return recipe
    return replace(recipe, lr=recipe.lr * math.sqrt(batch_size * recipe.accumulate / recipe.lr_batch), lr_batch=0)


def schedule_table(schedule: str) -> "pd.DataFrame":
    """Table of a schedule: one row per stage, indexed by its number."""
    import pandas as pd

    require_setting(schedule in SCHEDULES, "schedule", schedule, one_of(schedule, SCHEDULES))
    rows = [recipe_row(stage) for stage in SCHEDULES[schedule]]
    return pd.DataFrame(rows).rename(columns={"number": "stage"}).set_index("stage").drop(columns="schedule")


def compare_recipes(recipe: Stage, parent: Stage | None) -> "pd.DataFrame":
    """Differences of a stage from its parent: one row per field that differs, columns ``parent`` and ``this``.

    Without a parent every field is listed, with "–" as ``parent``.
    """
    import pandas as pd

    new = recipe_row(recipe)
    old = recipe_row(parent) if parent is not None else dict.fromkeys(new, "–")
    changed = [name for name in new if name not in ("number", "purpose") and new[name] != old[name]]
    columns = {"parent": [old[name] for name in changed], "this": [new[name] for name in changed]}
    return pd.DataFrame(columns, index=pd.Index(changed, name="setting"), dtype=object)
