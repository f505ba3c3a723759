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

from dataclasses import asdict, replace
from typing import Any

import pandas as pd

from cxrlib.training import recipes
from cxrlib.training.recipes import FROM_LAYER2, FROM_LAYER3, FROM_LAYER4, GROUPS, HEAD, Stage


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
    """Unfreezing from the head downwards (Howard and Ruder, ULMFiT, 2018), rates falling as more layers move.

    Rates were chosen on real and on drawn films by validation alone; README's log has what was tried.
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
        Stage(
            number=1, groups=HEAD, lr=1e-3, epochs=2, purpose="learn a head before any gradient reaches below", **head
        ),
        Stage(number=2, groups=FROM_LAYER4, lr=6e-4, epochs=2, purpose="open the most specific group", **common),
        Stage(number=3, groups=FROM_LAYER3, lr=4e-4, epochs=3, purpose="open the parts-of-shapes group", **common),
        Stage(number=4, groups=FROM_LAYER2, lr=4e-4, epochs=4, purpose="open the texture group", **common),
        Stage(number=5, groups=GROUPS, lr=3e-4, epochs=5, purpose="fine-tune everything, lower layers least", **common),
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


def recipe(
    schedule: str, number: int, *, lr: float = 0.0, epochs: int = -1, loss: str = "", also: str = "", **other: Any
) -> Stage:
    """A schedule's stage with the given values in place of its own; ``lr=0``, ``epochs=-1``, ``loss=""`` keep its own.

    ``other`` are further fields of ``Stage`` such as ``lower_rate=0.5``; ``also`` gives them in words, as
    ``recipes.parse`` reads them.
    Raises UserError for an unknown schedule, stage or field, and for a value of the wrong type or range.
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
    """One row per stage of a schedule, indexed by its number."""
    recipes.require(schedule in SCHEDULES, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")
    rows = [recipes.row(stage) for stage in SCHEDULES[schedule]]
    return pd.DataFrame(rows).rename(columns={"number": "stage"}).set_index("stage").drop(columns="schedule")


def compare(recipe: Stage, parent: Stage | None) -> pd.DataFrame:
    """What a stage changes from its parent: one row per field that differs, columns ``parent`` and ``this``.

    Without a parent every field is listed and the column ``parent`` is "–".
    """
    mine = recipes.row(recipe)
    theirs = recipes.row(parent) if parent is not None else dict.fromkeys(mine, "–")
    changed = [name for name in mine if name not in ("number", "purpose") and mine[name] != theirs[name]]
    columns = {"parent": [theirs[name] for name in changed], "this": [mine[name] for name in changed]}
    return pd.DataFrame(columns, index=pd.Index(changed, name="setting"), dtype=object)
