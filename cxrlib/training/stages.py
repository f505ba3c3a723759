"""The schedules: tables of five stages, each stage a row that says what it changes.

A *stage* trains some layer groups of the network at a rate for some epochs; the rest stays as the parent left it.
Four schedules are here:

``seed``
    the original project's table, for ImageNet weights, as faithfully as it was published.
``modern``
    the same five steps the way the field fine-tunes today: unfreeze from the head downwards.
``control``
    one stage that trains everything for as many passes over the films as ``modern`` has in all.
    Staging is measured against it.
``scratch``
    for random weights, where there is nothing to preserve: everything first, then the upper groups at lower
    rates, then everything again. The demo's schedule.

This room imports no torch, so that a command line can check a recipe in no time.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pandas as pd

from cxrlib.errors import UserError

GROUPS = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
"""The layer groups of a ResNet in the order an image passes them; ``fc`` is the classification head."""

FROM_LAYER4 = GROUPS[4:]
FROM_LAYER3 = GROUPS[3:]
FROM_LAYER2 = GROUPS[2:]
HEAD = GROUPS[5:]

CHOICES = {
    "loss": ("focal", "bce"),
    "optimizer": ("adam", "adamw", "sgd"),
    "decay": ("none", "cosine"),
    "augment": ("none", "light", "full"),
}


def _check_type(name: str, value: Any, expected: Any) -> None:
    """A whole number may stand for a float; nothing else is converted, and a bool is no number."""
    if expected == tuple[str, ...]:
        fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    else:
        fits = isinstance(value, (int, float) if expected is float else expected) and not isinstance(value, bool)
    _require(fits, name, value, "names in a tuple" if expected == tuple[str, ...] else f"of type {expected.__name__}")


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {expected}")


@dataclass(frozen=True)
class Stage:
    """One stage's recipe: everything that decides its result apart from data, seed and starting weights.

    ``groups`` trained, the others frozen · ``lr`` peak rate of the topmost trained group · ``epochs`` 0 or more ·
    ``gamma`` of the focal loss · ``positive_weight`` bound of the weight given to a finding's positives, 0 for no
    weights · ``warmup`` share of all steps in which the rate rises, 0 to 1 · ``decay`` of the rate after it ·
    ``lower_rate`` factor on the rate per group downwards, 1 for one rate · ``augment`` preset of
    ``data.batches`` · ``cap`` films per finding and epoch, 0 for all · ``ema`` decay of the weights' moving
    average, 0 for none · ``clip`` largest norm of the gradient, 0 for any · ``accumulate`` batches per step.

    Raises UserError for a value that is none of these.
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
    purpose: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
            if field.type is float:  # 1 and 1.0 are the same recipe
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name, allowed in CHOICES.items():
            _require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {', '.join(allowed)}")
        _require(1 <= self.number <= 5, "stage", self.number, "1 to 5")
        groups_known = bool(self.groups) and set(self.groups) <= set(GROUPS)
        _require(groups_known, "groups", self.groups, f"some of {', '.join(GROUPS)}")
        _require(0 < self.lr < math.inf, "lr", self.lr, "a number above 0")
        _require(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more")
        for name in ("epochs", "gamma", "positive_weight", "weight_decay", "cap", "clip"):
            _require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for name in ("warmup", "ema", "lower_rate"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        _require(self.lower_rate > 0, "lower_rate", self.lower_rate, "above 0")
        _require(self.ema < 1, "ema", self.ema, "below 1")


def _seed() -> tuple[Stage, ...]:
    """The original table: Adam at constant rates, focal loss, no augmentation, at most 10,000 films per finding."""
    common = {"schedule": "seed", "optimizer": "adam", "weight_decay": 0.0, "cap": 10_000}
    return (
        Stage(
            number=1,
            groups=FROM_LAYER2,
            lr=1e-5,
            epochs=2,
            purpose="let the upper layers drift gently to X-rays",
            **common,
        ),
        Stage(
            number=2, groups=FROM_LAYER3, lr=3e-4, epochs=1, purpose="move the two upper groups quickly, once", **common
        ),
        Stage(number=3, groups=FROM_LAYER4, lr=1e-3, epochs=3, purpose="fit the last group to the findings", **common),
        Stage(
            number=4, groups=HEAD, lr=1e-3, epochs=2, purpose="settle the head on features that stand still", **common
        ),
        Stage(number=5, groups=GROUPS, lr=1e-6, epochs=3, purpose="bring all layers into tune, very slowly", **common),
    )


def _modern() -> tuple[Stage, ...]:
    """Unfreezing from the head downwards (Howard and Ruder, ULMFiT, 2018), rates falling as more layers move."""
    common = {
        "schedule": "modern",
        "loss": "bce",
        "weight_decay": 0.05,
        "warmup": 0.1,
        "decay": "cosine",
        "lower_rate": 0.7,
        "augment": "full",
        "ema": 0.998,
        "clip": 1.0,
    }
    head = {**common, "augment": "none", "ema": 0.0}
    return (
        Stage(
            number=1, groups=HEAD, lr=1e-3, epochs=2, purpose="learn a head before any gradient reaches below", **head
        ),
        Stage(number=2, groups=FROM_LAYER4, lr=3e-4, epochs=2, purpose="open the most specific group", **common),
        Stage(number=3, groups=FROM_LAYER3, lr=2e-4, epochs=3, purpose="open the parts-of-shapes group", **common),
        Stage(number=4, groups=FROM_LAYER2, lr=2e-4, epochs=4, purpose="open the texture group", **common),
        Stage(number=5, groups=GROUPS, lr=1e-4, epochs=5, purpose="fine-tune everything, lower layers least", **common),
    )


def _control() -> tuple[Stage, ...]:
    """Everything trained in stage 1 for as many passes as ``modern``; stages 2 to 5 hand it on."""
    modern = _modern()
    recipe = {**asdict(modern[-1]), "schedule": "control", "lr": 2e-4, "lower_rate": 1.0}
    passes = sum(stage.epochs for stage in modern)
    purpose = {1: "one plain fine-tuning of equal passes, to measure staging against"}
    idle = "hand the weights on, so that the chain's steps stay the same"
    return tuple(
        Stage(**{**recipe, "number": n, "epochs": passes if n == 1 else 0, "purpose": purpose.get(n, idle)})
        for n in range(1, 6)
    )


def _scratch() -> tuple[Stage, ...]:
    """From random weights a frozen lower layer would stay random, so the first stage trains everything."""
    common = {"schedule": "scratch", "weight_decay": 0.05, "decay": "cosine", "augment": "light", "clip": 1.0}
    still = {**common, "augment": "none"}
    return (
        Stage(
            number=1,
            groups=GROUPS,
            lr=1e-3,
            epochs=4,
            warmup=0.25,
            purpose="learn to see films at all, one cycle",
            **common,
        ),
        Stage(
            number=2, groups=FROM_LAYER2, lr=3e-4, epochs=1, purpose="keep the first filters, refine above", **common
        ),
        Stage(number=3, groups=FROM_LAYER3, lr=3e-4, epochs=1, purpose="refine the two upper groups", **common),
        Stage(
            number=4, groups=HEAD, lr=1e-3, epochs=2, purpose="settle the head on features that stand still", **still
        ),
        Stage(number=5, groups=GROUPS, lr=1e-4, epochs=1, warmup=0.1, purpose="bring all into tune again", **common),
    )


SCHEDULES: dict[str, tuple[Stage, ...]] = {
    "seed": _seed(),
    "modern": _modern(),
    "control": _control(),
    "scratch": _scratch(),
}


def recipe(schedule: str, number: int, *, lr: float = 0.0, epochs: int = -1, loss: str = "", **other: Any) -> Stage:
    """A schedule's stage with the given values in place of its own; ``lr=0``, ``epochs=-1``, ``loss=""`` keep its own.

    ``other`` are further fields of ``Stage`` such as ``lower_rate=0.5`` or ``augment="none"``.
    Raises UserError for an unknown schedule, stage or field, and for a value of the wrong type or range.
    """
    _require(schedule in SCHEDULES, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    _check_type("stage", number, int)
    _require(1 <= number <= 5, "stage", number, "1 to 5")
    unknown = set(other) - {field.name for field in fields(Stage)} | set(other) & {"schedule", "number", "purpose"}
    if unknown:
        raise UserError(f"a recipe has no {', '.join(sorted(unknown))} to set; it has {', '.join(_settable())}")
    changes = dict(other)
    changes |= {"lr": lr} if lr != 0 else {}
    changes |= {"epochs": epochs} if epochs != -1 else {}
    changes |= {"loss": loss} if loss != "" else {}
    return replace(SCHEDULES[schedule][number - 1], **changes)


def table(schedule: str) -> pd.DataFrame:
    """One row per stage of a schedule, indexed by its number."""
    _require(schedule in SCHEDULES, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    rows = [_row(stage) for stage in SCHEDULES[schedule]]
    return pd.DataFrame(rows).rename(columns={"number": "stage"}).set_index("stage").drop(columns="schedule")


def compare(recipe: Stage, parent: Stage | None) -> pd.DataFrame:
    """What a stage changes from its parent: one row per field that differs, columns ``parent`` and ``this``.

    Without a parent every field is listed and the column ``parent`` is "–".
    """
    mine = _row(recipe)
    theirs = _row(parent) if parent is not None else dict.fromkeys(mine, "–")
    changed = [name for name in mine if name not in ("number", "purpose") and mine[name] != theirs[name]]
    columns = {"parent": [theirs[name] for name in changed], "this": [mine[name] for name in changed]}
    return pd.DataFrame(columns, index=pd.Index(changed, name="setting"), dtype=object)


def _row(stage: Stage) -> dict[str, Any]:
    return {**asdict(stage), "groups": " ".join(stage.groups)}


def _settable() -> list[str]:
    return [field.name for field in fields(Stage) if field.name not in ("schedule", "number", "purpose")]
