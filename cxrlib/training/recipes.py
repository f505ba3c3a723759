"""Recipe of a stage: every setting that decides its result, checked by name, type and range; and a parser for it.

This module does not import torch, so that a command line can check a recipe quickly.
"""

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from cxrlib.errors import UserError

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
    "augment": ("none", "light", "full"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "compile": ("auto", "yes", "no"),
}

TRUTH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def check_type(name: str, value: Any, expected: Any) -> None:
    """Check the type of a value, else raise UserError. An int passes as a float; a bool does not pass as a number."""
    if expected == tuple[str, ...]:
        fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    else:
        allowed = (int, float) if expected is float else expected
        fits = isinstance(value, allowed) and isinstance(value, bool) == (expected is bool)
    require(fits, name, value, "names in a tuple" if expected == tuple[str, ...] else f"of type {expected.__name__}")


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raise UserError with the setting's name, its value and the expected value, unless ``condition`` is true."""
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {expected}")


@dataclass(frozen=True)
class Stage:
    """Recipe of one stage: everything that decides its result, except data, seed and starting weights.

    ``groups``: trained layer groups, the others are frozen · ``lr``: peak rate of the topmost trained group ·
    ``epochs``: 0 or more · ``gamma``: of the focal loss · ``positive_weight``: largest weight of a finding's positives,
    0 for no weights · ``warmup``: share of all steps in which the rate rises, 0 to 1 · ``decay``: of the rate after the
    warmup · ``lower_rate``: factor on the rate per group downwards, 1 for one rate · ``augment``: preset of
    ``data.batches`` · ``cap``: films per finding and epoch, 0 for all · ``ema``: decay of the weights' moving average,
    0 for none · ``clip``: largest norm of the gradient, 0 for no limit · ``accumulate``: batches per step.

    ``decay="plateau"`` halves the rate after every ``plateau`` epochs without a better validation AUC · ``patience``:
    early stopping after so many such epochs, 0 for never · ``views``: fixed variants of each film, 0 for new ones in
    every epoch · ``carry``: keep the parent's optimizer moments for weights that it trained too · ``halve``: split
    batches that do not fit into memory, instead of stopping · ``precision``: "auto" is bfloat16 where the device has
    it, else float16 on cards where it is fast, else float32 · ``compile``: torch.compile, "auto" if it saves time.

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
    views: int = 0
    carry: bool = True
    halve: bool = False
    precision: str = "auto"
    compile: str = "auto"
    purpose: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_type(field.name, getattr(self, field.name), field.type)
            if field.type is float:  # 1 and 1.0 are the same recipe
                object.__setattr__(self, field.name, float(getattr(self, field.name)))
        for name, allowed in CHOICES.items():
            require(getattr(self, name) in allowed, name, getattr(self, name), f"one of {', '.join(allowed)}")
        require(1 <= self.number <= 5, "stage", self.number, "1 to 5")
        valid = bool(self.groups) and set(self.groups) <= set(GROUPS)
        require(valid, "groups", self.groups, f"some of {', '.join(GROUPS)}")
        require(0 < self.lr < math.inf, "lr", self.lr, "a number above 0")
        for name in ("accumulate", "plateau"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("epochs", "gamma", "positive_weight", "weight_decay", "cap", "clip", "patience", "views"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for name in ("warmup", "ema", "lower_rate"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        valid = self.positive_weight == 0 or self.positive_weight >= 1
        expected = "0 for no weights, or the largest weight, 1 or more"
        require(valid, "positive_weight", self.positive_weight, expected)
        require(self.lower_rate > 0, "lower_rate", self.lower_rate, "above 0")
        require(self.ema < 1, "ema", self.ema, "below 1")


def parse(also: str) -> dict[str, Any]:
    """Parse recipe fields from ``"positive_weight=10 accumulate=2 carry=no groups=layer4+fc"``; "" gives none.

    Raises UserError for a word that is not ``name=value``, an unknown name, and a value of another type.
    """
    values: dict[str, Any] = {}
    for word in also.replace(",", " ").split():
        name, equals, text = word.partition("=")
        require(bool(equals), "also", also, 'name=value words such as "positive_weight=10 accumulate=2"')
        require_settable(name)
        values[name] = _read(name, text)
    return values


def _read(name: str, text: str) -> Any:
    kind = next(field.type for field in fields(Stage) if field.name == name)
    if kind == tuple[str, ...]:
        return tuple(text.split("+"))
    if kind is bool:
        require(text.lower() in TRUTH, name, text, "yes or no")
        return TRUTH[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} is {text!r}; it must be of type {kind.__name__}") from None


def require_settable(name: str) -> None:
    """Check a setting's name, else raise UserError with the most similar name."""
    names = [field.name for field in fields(Stage) if field.name not in ("schedule", "number", "purpose")]
    if name not in names:
        similar = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {similar[0]}? It has" if similar else "it has"
        raise UserError(f"a recipe has no {name} to set; {hint} {', '.join(names)}")


def row(stage: Stage) -> dict[str, Any]:
    """Table row of a recipe, with its groups in one string."""
    return {**asdict(stage), "groups": " ".join(stage.groups)}
