"""A stage's recipe: every setting that decides its result, checked by name, type and range, and read from words.

This room imports no torch, so that a command line can check a recipe in no time.
"""

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

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
    "decay": ("none", "cosine", "plateau"),
    "augment": ("none", "light", "full"),
    "precision": ("auto", "float32", "bfloat16", "float16"),
    "compile": ("auto", "yes", "no"),
}

TRUTH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def check_type(name: str, value: Any, expected: Any) -> None:
    """Raise UserError where a value is of another type. A whole number may stand for a float; a bool is no number."""
    if expected == tuple[str, ...]:
        fits = isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    else:
        allowed = (int, float) if expected is float else expected
        fits = isinstance(value, allowed) and isinstance(value, bool) == (expected is bool)
    require(fits, name, value, "names in a tuple" if expected == tuple[str, ...] else f"of type {expected.__name__}")


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raise UserError that names the setting, its value and what it must be, unless ``condition`` holds."""
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

    ``decay="plateau"`` halves the rate after every ``plateau`` epochs without a better validation AUC; ``patience``
    such epochs end the stage, 0 never · ``views`` fixed variants of each film, 0 for new ones in every epoch ·
    ``carry`` takes the optimizer's moments over from the parent where it trained the same weights · ``halve`` splits
    batches that do not fit into memory instead of stopping · ``precision`` "auto" is bfloat16 where the device
    has it, else float16 on cards that gain by it, else float32 · ``compile`` by torch.compile; "auto" where it pays.

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
        groups_known = bool(self.groups) and set(self.groups) <= set(GROUPS)
        require(groups_known, "groups", self.groups, f"some of {', '.join(GROUPS)}")
        require(0 < self.lr < math.inf, "lr", self.lr, "a number above 0")
        for name in ("accumulate", "plateau"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("epochs", "gamma", "positive_weight", "weight_decay", "cap", "clip", "patience", "views"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for name in ("warmup", "ema", "lower_rate"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        weight = self.positive_weight
        require(
            weight == 0 or weight >= 1, "positive_weight", weight, "0 for no weights, or the largest weight, 1 or more"
        )
        require(self.lower_rate > 0, "lower_rate", self.lower_rate, "above 0")
        require(self.ema < 1, "ema", self.ema, "below 1")


def parse(also: str) -> dict[str, Any]:
    """Fields of a recipe in words: ``"positive_weight=10 accumulate=2 carry=no groups=layer4+fc"``; "" gives none.

    Raises UserError for a word that is no ``name=value``, an unknown name, and a value of another type.
    """
    values: dict[str, Any] = {}
    for word in also.replace(",", " ").split():
        name, given, text = word.partition("=")
        require(bool(given), "also", also, 'name=value words such as "positive_weight=10 accumulate=2"')
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
    """Raise UserError where a recipe has no setting of this name, with the nearest one that it has."""
    known = [field.name for field in fields(Stage) if field.name not in ("schedule", "number", "purpose")]
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? It has" if near else "it has"
        raise UserError(f"a recipe has no {name} to set; {hint} {', '.join(known)}")


def row(stage: Stage) -> dict[str, Any]:
    """A recipe as a row of a table, its groups in one word."""
    return {**asdict(stage), "groups": " ".join(stage.groups)}
