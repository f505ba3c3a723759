"""The command ``cxr``. Slow imports happen inside the commands, so that ``cxr --help`` answers at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cxrlib import paths
from cxrlib.errors import UserError
from cxrlib.workbook import flags

DEMO, REAL, ORIGINAL = "demo", "base", "original"
EVALUATIONS = ("evaluation", "localisation")
"""Notebooks of one evaluation; all evaluate the same checkpoint."""
STOPPED = 130  # exit code of a shell after Ctrl-C

app = typer.Typer(
    name="cxr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and evaluate a ResNet-50 on chest X-rays, in five stages, as notebooks.\n\nExample: cxr run",
)


@app.command()
def run(
    data: flags.Data = "",
    run: flags.Run = "",
    schedule: flags.Schedule = "",
    size: flags.Size = None,
    batch_size: flags.BatchSize = None,
    weights: flags.Weights = "",
    seed: flags.Seed = None,
    loss: flags.Loss = "",
    epochs: flags.Epochs = None,
    also: flags.Also = "",
    processes: flags.Processes = None,
    parameter: flags.Parameter = None,
    allow_missing: flags.AllowMissing = False,
    again: flags.Again = False,
) -> None:
    """Run all notebooks in order and write the report; without --data on the phantom set.

    With --data the defaults are 224 pixels, batch 64, ImageNet weights and the schedule "modern". A run keeps its
    settings for later calls. Notebooks that are finished and unchanged are not run again.

    Example: cxr run --data data --run base -p stage3.lr=1e-4
    """
    from cxrlib.workbook import pipeline, settings

    options = flags.given(data, schedule, size, batch_size, weights, seed, allow_missing, processes)
    options |= flags.of_stage("", None, epochs, loss, also)
    options |= settings.parse(parameter or [])
    _print_path(pipeline.run(run or (REAL if data else DEMO), options, again=again))


@app.command()
def train(
    stage: Annotated[int, typer.Option("--stage", help="Stage, 1 to 5.")],
    data: flags.Data = "",
    run: flags.Run = "",
    lr: flags.Rate = None,
    epochs: flags.Epochs = None,
    loss: flags.Loss = "",
    ckpt: flags.Checkpoint = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from --ckpt, or from the stage before.")] = False,
    schedule: flags.Schedule = "",
    size: flags.Size = None,
    batch_size: flags.BatchSize = None,
    weights: flags.Weights = "",
    seed: flags.Seed = None,
    also: flags.Also = "",
    processes: flags.Processes = None,
    parameter: flags.Parameter = None,
    allow_missing: flags.AllowMissing = False,
    again: flags.Again = False,
) -> None:
    """Train one stage: execute its notebook. Accepts the flags of the original program.

    A new run on real films follows the original: schedule "seed", 224 pixels, batch 128. Without --ckpt the stage
    starts from the best checkpoint of the stage before it in the run.

    Example: cxr train --data_path data --bs 128 --lr 1e-5 --stage 1

    Example: cxr train --resume --data_path data --ckpt stage5_1e-06_22 --stage 4 --lr 1e-3
    """
    from cxrlib.workbook import pipeline, settings

    if stage not in range(1, 6):
        raise UserError(f"--stage {stage}: the stages are 1 to 5")
    prefix = f"stage{stage}."
    options = flags.given(data, schedule, size, batch_size, weights, seed, allow_missing, processes)
    options |= flags.of_stage(prefix, lr, epochs, loss, also)
    named = settings.parse(parameter or [])
    options |= {prefix + name if name in settings.OWN else name: value for name, value in named.items()}
    once = {f"stage{stage}.ckpt": ckpt} if ckpt else {}
    name = run or (ORIGINAL if data else DEMO)
    chosen = {"stages": [stage], "exploration": False, "evaluation": False, "again": again}
    _print_path(pipeline.run(name, options, once=once, base=settings.SEED, **chosen))


@app.command("test")
def evaluate(
    data: flags.Data = "",
    run: flags.Run = "",
    ckpt: flags.Checkpoint = "",
    size: flags.Size = None,
    batch_size: flags.BatchSize = None,
    parameter: flags.Parameter = None,
    allow_missing: flags.AllowMissing = False,
    again: flags.Again = False,
) -> None:
    """Evaluate a checkpoint on the test part: execute 06_evaluation and 07_localisation.

    Without --ckpt it is the best checkpoint of the last stage. With --ckpt and without --size, images have the size
    that the checkpoint was trained at.

    Example: cxr test --data_path data --ckpt stage5_1e-06_22
    """
    from cxrlib.workbook import pipeline, settings

    options = flags.given(data, "", size, batch_size, "", None, allow_missing) | settings.parse(parameter or [])
    name = run or (ORIGINAL if data else DEMO)
    once = {f"{part}.ckpt": ckpt for part in EVALUATIONS} if ckpt else {}
    if ckpt and "size" not in options:  # 0: the checkpoint's own size
        once |= {f"{part}.size": 0 for part in EVALUATIONS if f"{part}.size" not in options}
    _print_path(pipeline.run(name, options, once=once, base=settings.SEED, stages=[], exploration=False, again=again))


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="Folder in the NIH layout.")],
    fast: Annotated[bool, typer.Option("--fast", help="Do not decode the films: seconds instead of minutes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    size: Annotated[int, typer.Option("--size", min=8, help="Image side in pixels, for the disk space needed.")] = 224,
) -> None:
    """Check a data folder: print all that is wrong with it, and what to do. Exit code 1 if it cannot be used.

    Example: cxr check data --fast
    """
    from json import dumps

    from cxrlib.data import check as module

    result = module.folder(folder, fast=fast, size=size, progress=not json)
    print(dumps(result.to_json(), indent=2) if json else result)
    if not result.fit:
        raise typer.Exit(1)


@app.command()
def download(
    handle: Annotated[str, typer.Option("--handle", help="Kaggle's owner/name; default: the original films.")] = "",
    cache: Annotated[str, typer.Option("--cache", help="Folder to keep the download in.")] = "",
) -> None:
    """Download the films with Kaggle's client (42 GB; a resized mirror has 2 GB). An interrupted download goes on.

    Unpacking needs twice that disk space for a while. The films are used from the download folder, not copied.

    Example: cxr download --cache /big/disk --handle khanfashee/nih-chest-x-ray-14-224x224-resized
    """
    from shlex import quote

    from cxrlib.data import download as module

    films = module.dataset(handle or module.NIH, cache=cache)
    print(f"Films: {films}\nNext: cxr check {quote(str(films))}")


@app.command()
def store(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="Folder in the NIH layout.")],
    size: Annotated[int, typer.Option("--size", min=8, help="Side in pixels.")] = 224,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes that decode.")] = None,
    allow_missing: flags.AllowMissing = False,
) -> None:
    """Decode every film once into a memory map, as a run does at its start. An interrupted call goes on.

    Example: cxr store data --size 224
    """
    from cxrlib.data import records
    from cxrlib.data import store as module

    films = records.read(paths.resolve(folder), allow_missing=allow_missing)
    built = module.build(films, size, workers=workers, allow_missing=allow_missing)
    left_out = [*films.attrs["missing"], *built.missing]
    if left_out:
        print(f"Left out: {len(left_out):,} films that are absent or cannot be decoded, first {left_out[0]}")
    print(f"{len(built.names):,} films of {size} pixels from {', '.join(built.film_sizes)}: {built.folder}")


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the set.")],
    images: Annotated[int, typer.Option("--images", min=1, help="Number of films.")] = 2000,
    size: Annotated[int, typer.Option("--size", min=16, help="Side in pixels.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same set.")] = 0,
    folders: Annotated[int, typer.Option("--folders", help="12: the folders of the download; 0: images/ alone.")] = 0,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes that draw.")] = None,
) -> None:
    """Draw a set of phantom films in the complete NIH layout. A seed gives the same set for any number of processes.

    Example: cxr phantom my-phantoms --images 500 --size 256 --seed 1
    """
    from cxrlib.data import phantom as module

    how = {"folders": folders, "workers": workers, "progress": True}
    print(f"Drew {images} films: {module.write(folder, images=images, size=size, seed=seed, **how)}")


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names of runs; several are also compared.")],
) -> None:
    """Write the report of a run again from its tables and figures; for several runs also a page that compares them.

    Example: cxr report base bce
    """
    from cxrlib.workbook import report as module

    names = list(dict.fromkeys(runs))
    for name in names:
        module.home(name)
    if len(names) > 1:
        from cxrlib.workbook import comparison

        comparison.check(names)
    for name in names:
        _print_path(module.build(name))
    if len(names) > 1:
        _print_path(comparison.build(names), "Comparison")


def main() -> None:
    """Entry point: a user's error gives one or two lines on stderr and exit code 2, without a traceback."""
    sys.exit(call(sys.argv[1:]))


def call(words: list[str]) -> int:
    """Run ``cxr`` with these arguments and return its exit code."""
    try:
        code = app(_joined(words), prog_name="cxr", standalone_mode=False) or 0
        return _stopped() if code == STOPPED else code  # after Ctrl-C some versions of Typer return, others raise
    except UserError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except Exception as error:
        if not hasattr(error, "format_message"):  # true of click's errors for wrong arguments
            raise
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help())
            return 0
        return _complain(f"{error.format_message()} See {context.command_path if context else 'cxr'} --help.")


def _joined(words: list[str]) -> list[str]:
    """Arguments with papermill's ``-p name value`` turned into ``-p name=value``."""
    joined, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word in ("-p", "--parameter") and len(rest) > 1 and "=" not in rest[0]:
            joined += [word, f"{rest.pop(0)}={rest.pop(0)}"]
        else:
            joined.append(word)
    return joined


def _print_path(path: Path, what: str = "Report") -> None:
    here = Path.cwd()
    print(f"{what}: {path.relative_to(here) if path.is_relative_to(here) else path}")


def _stopped() -> int:
    print("\nStopped. The same command goes on from here.", file=sys.stderr)
    return STOPPED


def _complain(message: str) -> int:
    print(f"cxr: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
