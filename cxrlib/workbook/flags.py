"""Flags of ``cxr``: their names, those of the original program included, and the settings that they give."""

from typing import Annotated, Any

import typer

from cxrlib.errors import UserError

LOSSES = {"focalloss": "focal", "focal": "focal", "bce": "bce", "bceloss": "bce"}

Data = Annotated[str, typer.Option("--data", "--data_path", "--data-path", help="Folder in the NIH layout.")]
Run = Annotated[str, typer.Option("--run", help="Name of the run: its results go to outputs/RUN.")]
Schedule = Annotated[str, typer.Option("--schedule", help="seed, modern, control or scratch.")]
Size = Annotated[int | None, typer.Option("--size", help="Side of the images in pixels.")]
BatchSize = Annotated[int | None, typer.Option("--batch_size", "--batch-size", "--bs", help="Films per training step.")]
Weights = Annotated[
    str, typer.Option("--weights", help="none, a torchvision name (IMAGENET1K_V2), or a file of weights.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random draw.")]
Loss = Annotated[str, typer.Option("--loss", "--loss_func", "--loss-func", help="focal (FocalLoss) or bce (BCE).")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of a stage.")]
Also = Annotated[
    str, typer.Option("--also", help='More settings of a stage: "positive_weight=10 patience=3 accumulate=2".')
]
Processes = Annotated[int | None, typer.Option("--processes", help="Processes that train together, one per GPU.")]
Parameter = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--parameter", metavar="NAME=VALUE", help="Any notebook parameter; stage3.lr=1e-4 for one stage."
    ),
]
Again = Annotated[
    bool, typer.Option("--again", help="Execute notebooks and train stages again even if nothing changed.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Go on without films that are absent or cannot be decoded.")
]
Checkpoint = Annotated[str, typer.Option("--ckpt", help="Checkpoint by name (stage5_1e-06_22) or file.")]


def given(
    data: str,
    schedule: str,
    size: int | None,
    batch_size: int | None,
    weights: str,
    seed: int | None,
    allow_missing: bool = False,
    processes: int | None = None,
) -> dict:
    """Settings from the flags, under their names as notebook parameters; flags without a value are left out."""
    for name, value in (("size", size), ("batch_size", batch_size), ("processes", processes)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be 1 or more")
    named = {
        "data": data,
        "schedule": schedule,
        "weights": weights,
        "size": size,
        "batch_size": batch_size,
        "seed": seed,
        "allow_missing": allow_missing or None,
        "processes": processes,
    }
    return {name: value for name, value in named.items() if value not in ("", None)}


def of_stage(prefix: str, lr: float | None, epochs: int | None, loss: str, also: str) -> dict[str, Any]:
    """Settings of a stage; with a stage's prefix all of them, so that those of an earlier call do not stay."""
    if lr is not None and not 0 < lr < float("inf"):
        raise UserError(f"--lr {lr} is not a learning rate; give a number above 0 such as 1e-4")
    if epochs is not None and epochs < 0:
        raise UserError(f"--epochs {epochs} must be 0 or more")
    if loss and loss.lower() not in LOSSES:
        raise UserError(f"--loss {loss!r} is unknown; choose focal (FocalLoss) or bce (BCE)")
    unset = {"lr": 0.0, "epochs": -1, "loss": "", "also": ""}
    values = {"lr": lr, "epochs": epochs, "loss": LOSSES.get(loss.lower()), "also": also or None}
    values = {name: value for name, value in values.items() if value is not None}
    return {prefix + name: value for name, value in ({**unset, **values} if prefix else values).items()}
