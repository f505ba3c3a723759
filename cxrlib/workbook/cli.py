"""The command ``cxr``.

Nothing heavy is imported before a command runs, so that ``cxr --help`` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cxrlib import paths
from cxrlib.errors import UserError

DEMO, REAL, ORIGINAL = "demo", "base", "original"
STOPPED = 130  # a shell's exit code for Ctrl-C
LOSSES = {"focalloss": "focal", "focal": "focal", "bce": "bce", "bceloss": "bce"}

app = typer.Typer(
    name="cxr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and evaluate a ResNet-50 on chest X-rays, in five stages, as notebooks.\n\nExample: cxr run",
)

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
Parameter = Annotated[
    list[str] | None,
    typer.Option(
        "-p", "--parameter", metavar="NAME=VALUE", help="Any notebook parameter; stage3.lr=1e-4 for one stage."
    ),
]
Again = Annotated[bool, typer.Option("--again", help="Execute the notebooks even where nothing has changed.")]
Checkpoint = Annotated[str, typer.Option("--ckpt", help="Checkpoint by name (stage5_1e-06_22) or file.")]


@app.command()
def run(
    data: Data = "",
    run: Run = "",
    schedule: Schedule = "",
    size: Size = None,
    batch_size: BatchSize = None,
    weights: Weights = "",
    seed: Seed = None,
    loss: Loss = "",
    epochs: Epochs = None,
    parameter: Parameter = None,
    again: Again = False,
) -> None:
    """Run all notebooks in order and write the report; without --data on the phantom set.

    With --data the films are taken at 224 pixels, batch 64, ImageNet weights and the schedule "modern", unless told
    otherwise. A run remembers its settings. What is finished and unchanged is not done again.

    Example: cxr run --data data --run base -p stage3.lr=1e-4
    """
    from cxrlib.workbook import pipeline, settings

    given = _given(data, schedule, size, batch_size, weights, seed) | _stage("", None, epochs, loss)
    given |= settings.parse(parameter or [])
    _done(pipeline.run(run or (REAL if data else DEMO), given, again=again))


@app.command()
def train(
    stage: Annotated[int, typer.Option("--stage", help="Stage, 1 to 5.")],
    data: Data = "",
    run: Run = "",
    lr: Rate = None,
    epochs: Epochs = None,
    loss: Loss = "",
    ckpt: Checkpoint = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --ckpt, or from the stage before.")] = False,
    schedule: Schedule = "",
    size: Size = None,
    batch_size: BatchSize = None,
    weights: Weights = "",
    seed: Seed = None,
    parameter: Parameter = None,
    again: Again = False,
) -> None:
    """Train one stage: execute its notebook. Takes the original's flags as they were.

    A new run made here on real films follows the original: schedule "seed", 224 pixels, batch 128. Without --ckpt the
    stage starts from the best checkpoint of the stage before it in the run.

    Example: cxr train --data_path data --bs 128 --lr 1e-5 --stage 1

    Example: cxr train --resume --data_path data --ckpt stage5_1e-06_22 --stage 4 --lr 1e-3
    """
    from cxrlib.workbook import pipeline, settings

    if stage not in range(1, 6):
        raise UserError(f"--stage {stage}: the stages are 1 to 5")
    given = _given(data, schedule, size, batch_size, weights, seed) | settings.parse(parameter or [])
    given |= _stage(f"stage{stage}.", lr, epochs, loss)
    once = {f"stage{stage}.ckpt": ckpt} if ckpt else {}
    name = run or (ORIGINAL if data else DEMO)
    chosen = {"stages": [stage], "exploration": False, "evaluation": False, "again": again}
    _done(pipeline.run(name, given, once=once, base=settings.SEED, **chosen))


@app.command("test")
def evaluate(
    data: Data = "",
    run: Run = "",
    ckpt: Checkpoint = "",
    size: Size = None,
    batch_size: BatchSize = None,
    parameter: Parameter = None,
    again: Again = False,
) -> None:
    """Evaluate a checkpoint on the test part: execute 06_evaluation. Without --ckpt the best of the last stage.

    Example: cxr test --data_path data --ckpt stage5_1e-06_22
    """
    from cxrlib.workbook import pipeline, settings

    given = _given(data, "", size, batch_size, "", None) | settings.parse(parameter or [])
    name = run or (ORIGINAL if data else DEMO)
    once = {"evaluation.ckpt": ckpt} if ckpt else {}
    _done(pipeline.run(name, given, once=once, base=settings.SEED, stages=[], exploration=False, again=again))


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the set.")],
    images: Annotated[int, typer.Option("--images", min=1, help="How many films.")] = 2000,
    size: Annotated[int, typer.Option("--size", min=16, help="Side in pixels.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same set.")] = 0,
) -> None:
    """Draw a set of phantom films in the complete NIH layout.

    Example: cxr phantom my-phantoms --images 500 --size 256 --seed 1
    """
    from cxrlib.data import phantom as room

    print(f"Drew {images} films: {room.write(folder, images=images, size=size, seed=seed)}")


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names of runs.")],
) -> None:
    """Write the report of a run again, from its tables and figures.

    Example: cxr report demo
    """
    from cxrlib.workbook import report as room

    for name in runs:
        if not paths.Run(name).root.is_dir():
            known = ", ".join(sorted(file.parent.name for file in paths.outputs().glob("*/run.json"))) or "none yet"
            raise UserError(f"there is no run {name!r} in {paths.outputs()}; there are: {known}")
        _done(room.build(name))


def main() -> None:
    """The entry point: a user's mistake ends in one or two lines on stderr and exit code 2, without a traceback."""
    sys.exit(call(sys.argv[1:]))


def call(words: list[str]) -> int:
    """Run ``cxr`` with these words and give its exit code."""
    try:
        code = app(_joined(words), prog_name="cxr", standalone_mode=False) or 0
        return _stopped() if code == STOPPED else code  # Typer's releases differ in what becomes of Ctrl-C
    except UserError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except Exception as error:
        if not hasattr(error, "format_message"):  # what click and its descendants raise for wrong words
            raise
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help())
            return 0
        return _complain(f"{error.format_message()} See {context.command_path if context else 'cxr'} --help.")


def _given(data: str, schedule: str, size: int | None, batch_size: int | None, weights: str, seed: int | None) -> dict:
    """The settings that were given, under their names as notebook parameters; those not given are left out."""
    for name, value in (("size", size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value} must be 1 or more")
    named = {
        "data": data,
        "schedule": schedule,
        "weights": weights,
        "size": size,
        "batch_size": batch_size,
        "seed": seed,
    }
    return {name: value for name, value in named.items() if value not in ("", None)}


def _stage(prefix: str, lr: float | None, epochs: int | None, loss: str) -> dict[str, Any]:
    """The settings of a stage; with the prefix of one stage, all three, so that an earlier call's do not linger."""
    if lr is not None and not 0 < lr < float("inf"):
        raise UserError(f"--lr {lr} is no learning rate; give a number above 0 such as 1e-4")
    if epochs is not None and epochs < 0:
        raise UserError(f"--epochs {epochs} must be 0 or more")
    if loss and loss.lower() not in LOSSES:
        raise UserError(f"--loss {loss!r} is not known; there are focal (FocalLoss) and bce (BCE)")
    named = {"lr": lr or 0.0, "epochs": -1 if epochs is None else epochs, "loss": LOSSES.get(loss.lower(), "")}
    told = {"lr": lr is not None, "epochs": epochs is not None, "loss": bool(loss)}
    return {prefix + name: value for name, value in named.items() if prefix or told[name]}


def _joined(words: list[str]) -> list[str]:
    """papermill's ``-p name value`` understood as ``-p name=value``."""
    joined, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-p", "--parameter") and len(rest) > 1 and "=" not in rest[0]:
            joined += [word, f"{rest.pop(0)}={rest.pop(0)}"]
        else:
            joined.append(word)
    return joined


def _done(path: Path) -> None:
    here = Path.cwd()
    print(f"Report: {path.relative_to(here) if path.is_relative_to(here) else path}")


def _stopped() -> int:
    print("\nStopped. The same command goes on from here.", file=sys.stderr)
    return STOPPED


def _complain(message: str) -> int:
    print(f"cxr: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
