"""Schedules: tables of five stages, one row each.

A *stage* trains some layer groups of the network at a rate for some epochs. The other groups do not change.
There are four schedules:

``seed``
    the original project's table, for ImageNet weights, as it was published.
``modern``
    five stages of today's fine-tuning: groups are unfrozen from the head downwards.
``control``
    one stage that trains all groups, for as many epochs as ``modern`` in total. Staging is compared with it.
``scratch``
    for random weights: all groups first, then the upper groups at lower rates, then all again. The demo's schedule.

This module does not import torch, so that a command line can check a recipe quickly.
"""

from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from cxrlib.training import recipes
from cxrlib.training.recipes import FROM_LAYER2, FROM_LAYER3, FROM_LAYER4, GROUPS, HEAD, Stage


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
    idle = "no training, so that the chain has the same five steps"
    first = Stage(**{**recipe, "number": 1, "epochs": epochs, "purpose": purpose})
    return first, *(Stage(**{**recipe, "number": n, "epochs": 0, "purpose": idle}) for n in range(2, 6))


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
    "scratch": _scratch(),
}


def recipe(
    schedule: str, number: int, *, lr: float = 0.0, epochs: int = -1, loss: str = "", also: str = "", **other: Any
) -> Stage:
    """Recipe of a schedule's stage, with some values replaced. ``lr=0``, ``epochs=-1`` and ``loss=""`` replace nothing.

    ``other`` are further fields of ``Stage``, such as ``lower_rate=0.5``. ``also`` is a text of them for
    ``recipes.parse``. Raises UserError for an unknown schedule, stage or field, and a value of wrong type or range.
    """
    recipes.require(schedule in SCHEDULES, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    recipes.check_type("stage", number, int)
    recipes.require(1 <= number <= 5, "stage", number, "1 to 5")
    changes = {**recipes.parse(also), **other}
    for name in changes:
        recipes.require_settable(name)
    changes |= {"lr": lr} if lr != 0 else {}
    changes |= {"epochs": epochs} if epochs != -1 else {}
    changes |= {"loss": loss} if loss != "" else {}
    return replace(SCHEDULES[schedule][number - 1], **changes)


def table(schedule: str) -> pd.DataFrame:
    """Table of a schedule: one row per stage, indexed by its number."""
    recipes.require(schedule in SCHEDULES, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    rows = [recipes.row(stage) for stage in SCHEDULES[schedule]]
    return pd.DataFrame(rows).rename(columns={"number": "stage"}).set_index("stage").drop(columns="schedule")


def compare(recipe: Stage, parent: Stage | None) -> pd.DataFrame:
    """Differences of a stage from its parent: one row per field that differs, columns ``parent`` and ``this``.

    Without a parent every field is listed, with "–" as ``parent``.
    """
    new = recipes.row(recipe)
    old = recipes.row(parent) if parent is not None else dict.fromkeys(new, "–")
    changed = [name for name in new if name not in ("number", "purpose") and new[name] != old[name]]
    columns = {"parent": [old[name] for name in changed], "this": [new[name] for name in changed]}
    return pd.DataFrame(columns, index=pd.Index(changed, name="setting"), dtype=object)
