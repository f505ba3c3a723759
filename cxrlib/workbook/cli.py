"""Command line ``cxr``: its commands, its flags (those of the original among them), and the settings they stand for.

Nothing heavy is imported before a command runs, so that ``cxr --help`` answers at once.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cxrlib import UserError, disk, paths

LOSSES = {"focalloss": "focal", "focal": "focal", "bce": "bce", "bceloss": "bce"}

Data = Annotated[
    str,
    typer.Option(
        "--data",
        "--data_path",
        "--data-path",
        help="Data folder: NIH's layout or another's.",
    ),
]
Run = Annotated[
    str, typer.Option("--run", help="Name of the run: letters, digits, - and _. Its results go to outputs/RUN.")
]
Schedule = Annotated[str, typer.Option("--schedule", help="modern, seed, control, published or scratch.")]
Size = Annotated[int | None, typer.Option("--size", help="Side of the images in pixels.")]
BatchSize = Annotated[int | None, typer.Option("--batch_size", "--batch-size", "--bs", help="Films per training step.")]
Weights = Annotated[
    str, typer.Option("--weights", help="none, a torchvision name (IMAGENET1K_V1), a run, or a file of weights.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of every random draw.")]
Loss = Annotated[str, typer.Option("--loss", "--loss_func", "--loss-func", help="focal (FocalLoss) or bce (BCE).")]
Rate = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs of a stage.")]
Override = Annotated[
    str, typer.Option("--override", help='More settings of a stage: "positive_weight=10 patience=3 accumulate=2".')
]
Processes = Annotated[int | None, typer.Option("--processes", help="Processes that train together, one per GPU.")]
Parameter = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--parameter",
        metavar="NAME=VALUE",
        help="Any notebook parameter; stage3.lr=1e-4 for one stage; loss= for the default.",
    ),
]
Again = Annotated[
    bool, typer.Option("--again", help="Execute notebooks and train stages again even if nothing changed.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Go on without films that are absent or cannot be decoded.")
]
Exclude = Annotated[
    str, typer.Option("--exclude", metavar="FILE", help="CSV of films to leave out: a column image, perhaps reason.")
]
Uncertain = Annotated[
    str, typer.Option("--uncertain", help="What a label of -1 counts as: unknown (default), positive or negative.")
]
Teacher = Annotated[
    str,
    typer.Option("--teacher", metavar="RUN[,RUN]", help="Runs whose probabilities become half of each training label."),
]
Checkpoint = Annotated[
    str, typer.Option("--ckpt", help="Checkpoint by name (stage5_1e-06_22) or file, from where you stand.")
]


def given_settings(
    data: str,
    schedule: str,
    size: int | None,
    batch_size: int | None,
    weights: str,
    seed: int | None,
    allow_missing: bool = False,
    processes: int | None = None,
    exclude: str = "",
    uncertain: str = "",
    teacher: str = "",
) -> dict:
    """Settings from the flags, under their names as notebook parameters; flags without a value are left out."""
    named = {
        "data": data,
        "schedule": schedule,
        "weights": weights,
        "size": size,
        "batch_size": batch_size,
        "seed": seed,
        "allow_missing": allow_missing or None,
        "processes": processes,
        "exclude": exclude,
        "uncertain": uncertain,
        "teacher": teacher,
    }
    return {name: value for name, value in named.items() if value not in ("", None)}


def stage_settings(prefix: str, lr: float | None, epochs: int | None, loss: str, override: str) -> dict[str, Any]:
    """Settings of a stage. With a stage's prefix a flag without a value takes back that of an earlier call."""
    values = {"lr": lr, "epochs": epochs, "loss": LOSSES.get(loss.lower(), loss), "override": override}
    values = {prefix + name: "" if value is None else value for name, value in values.items()}
    return {name: value for name, value in values.items() if prefix or value != ""}


DEMO, REAL, ORIGINAL = "demo", "base", "original"
EVALUATIONS = ("evaluation", "localisation", "reading_room", "labels")
"""Notebooks of one evaluation; all evaluate the same checkpoint."""
STOPPED, TERMINATED = 130, 143
"""Exit codes after Ctrl-C and after SIGTERM, as a shell gives them."""

app = typer.Typer(
    name="cxr",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train and evaluate a ResNet-50 on chest X-rays, in five stages, as notebooks.\n\n"
    "A relative path starts from the folder that you stand in, in every command.\n\nExample: cxr run",
)


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
    override: Override = "",
    processes: Processes = None,
    parameter: Parameter = None,
    allow_missing: AllowMissing = False,
    exclude: Exclude = "",
    uncertain: Uncertain = "",
    teacher: Teacher = "",
    again: Again = False,
    seeds: Annotated[
        str,
        typer.Option("--seeds", help="A run for each seed: 3 means 0, 1, 2; or 0,7,12. They are RUN-s0, RUN-s7, …"),
    ] = "",
) -> None:
    """Run all notebooks in order and write the report; without --data on the phantom set.

    With --data the defaults are 224 pixels, batch 64, ImageNet weights and the schedule "modern". A run keeps its
    settings for later calls, and -p NAME= gives a default back. Notebooks that are finished and unchanged are not run
    again.

    Example: cxr run --data data --run base -p stage3.lr=1e-4

    Example: cxr run --data data --run cleaned --exclude outputs/base/doubtful.csv

    Example: cxr run --data data --run second --teacher base

    Example: cxr run --data data --run base --seeds 3
    """
    from cxrlib.workbook import pipeline, settings

    options = given_settings(
        data, schedule, size, batch_size, weights, seed, allow_missing, processes, exclude, uncertain, teacher
    )
    options |= stage_settings("", None, epochs, loss, override)
    options |= settings.parse(parameter or [])
    name = run or (REAL if data else DEMO)
    if not seeds:
        _print_path(pipeline.run(name, options, again=again))
        return
    for report in pipeline.run_series(name, settings.parse_seeds(seeds, options), options, again=again):
        _print_path(report)


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
    override: Override = "",
    processes: Processes = None,
    parameter: Parameter = None,
    allow_missing: AllowMissing = False,
    exclude: Exclude = "",
    uncertain: Uncertain = "",
    teacher: Teacher = "",
    again: Again = False,
) -> None:
    """Train one stage: execute its notebook. Accepts the flags of the original program.

    A new run on real films follows the original: schedule "seed", 224 pixels, batch 128. Without --ckpt the stage
    starts from the best checkpoint of the stage before it in the run. Of an earlier call's --lr, --epochs, --loss and
    --override for this stage nothing stays.

    Example: cxr train --data_path data --bs 128 --lr 1e-5 --stage 1

    Example: cxr train --resume --data_path data --ckpt stage5_1e-06_22 --stage 4 --lr 1e-3
    """
    from cxrlib.workbook import pipeline, settings

    if stage not in range(1, 6):
        raise UserError(f"--stage {stage}: the stages are 1 to 5")
    prefix = f"stage{stage}."
    options = given_settings(
        data, schedule, size, batch_size, weights, seed, allow_missing, processes, exclude, uncertain, teacher
    )
    options |= stage_settings(prefix, lr, epochs, loss, override)
    named = settings.parse(parameter or [])
    options |= {prefix + name if name in settings.OWN else name: value for name, value in named.items()}
    once = {f"stage{stage}.ckpt": ckpt} if ckpt else {}
    name = run or (ORIGINAL if data else DEMO)
    chosen = {"stages": [stage], "exploration": False, "evaluation": False, "again": again}
    _print_path(pipeline.run(name, options, once=once, base=settings.SEED, **chosen))


@app.command("test")
def evaluate(
    data: Data = "",
    run: Run = "",
    ckpt: Checkpoint = "",
    size: Size = None,
    batch_size: BatchSize = None,
    parameter: Parameter = None,
    allow_missing: AllowMissing = False,
    exclude: Exclude = "",
    uncertain: Uncertain = "",
    again: Again = False,
) -> None:
    """Evaluate a checkpoint on the test part: execute 06_evaluation, 07_localisation and 08_reading_room.

    Without --ckpt it is the best checkpoint of the last stage. With --ckpt and without --size, images have the size
    that the checkpoint was trained at.

    Example: cxr test --data_path data --ckpt stage5_1e-06_22
    """
    from cxrlib.workbook import pipeline, settings

    options = given_settings(data, "", size, batch_size, "", None, allow_missing, None, exclude, uncertain)
    options |= settings.parse(parameter or [])
    name = run or (ORIGINAL if data else DEMO)
    once = {f"{part}.ckpt": ckpt for part in EVALUATIONS} if ckpt else {}
    if ckpt and "size" not in options:  # 0: the checkpoint's own size
        once |= {f"{part}.size": 0 for part in EVALUATIONS if f"{part}.size" not in options}
    _print_path(pipeline.run(name, options, once=once, base=settings.SEED, stages=[], exploration=False, again=again))


@app.command()
def predict(
    films: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Films (PNG, JPEG, DICOM), folders of them, CSVs of paths.")
    ],
    run: Annotated[str, typer.Option("--run", help='Run whose last checkpoint is asked; default: "base".')] = "",
    ckpt: Annotated[
        str, typer.Option("--ckpt", help="Checkpoint by name or file, exported folder, or hf:owner/name.")
    ] = "",
    out: Annotated[str, typer.Option("--out", help="Folder for the files; default: in outputs/predictions.")] = "",
    heat: Annotated[bool, typer.Option("--heat", help="Heat maps on the page, of each film's top findings.")] = False,
    prevalence: Annotated[
        str, typer.Option("--prevalence", help="CSV with columns finding, prevalence (0 to 1), for PPV and NPV.")
    ] = "",
    rule: Annotated[str, typer.Option("--rule", help="Threshold rule: youden, f1 or sensitivity_90.")] = "youden",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Numbers also for films that do not look like frontal chest films.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", "--bs", min=1, help="Films at once.")] = 32,
) -> None:
    """Say what the network says about films: a table for one; CSV, JSON and a page for many.

    For one film nothing is written without --out or --heat. Films that cannot be read, or are no frontal chest films,
    are refused with the reason; the others are still read. An interrupted call goes on. Exit code 1 if some were
    refused.

    Example: cxr predict film.dcm --run base

    Example: cxr predict films/ --ckpt stage5_1e-06_22 --heat --prevalence clinic.csv --out answers
    """
    from cxrlib.workbook import predicting

    how = {"out": out, "heat": heat, "prevalence": prevalence, "rule": rule, "anyway": anyway, "batch_size": batch_size}
    if code := predicting.run(films, run=run, ckpt=ckpt, **how):
        raise typer.Exit(code)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="Data folder: NIH's layout or another's.")],
    fast: Annotated[bool, typer.Option("--fast", help="Do not decode the films: seconds instead of minutes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    size: Annotated[int, typer.Option("--size", min=8, help="Image side in pixels, for the disk space needed.")] = 224,
    list_: Annotated[
        str, typer.Option("--list", metavar="FILE", help="Write the films with a remark as a CSV for --exclude.")
    ] = "",
) -> None:
    """Check a data folder: print all that is wrong with it, and what to do. Exit code 1 if it cannot be used.

    Look at the films of a list, and take out the rows of those that are right, before you exclude them.

    Example: cxr check data --fast

    Example: cxr check data --list remarks.csv
    """
    from json import dumps

    from cxrlib.data import check, exclusion

    if list_ and fast:
        raise UserError("--list needs the films decoded; leave --fast out")
    result = check.folder(folder, fast=fast, size=size, progress=not json)
    print(dumps(result.to_json(), indent=2) if json else result)
    if list_:
        reasons = {name: "; ".join(remarks) for name, remarks in sorted(result.remarks.items())}
        written = exclusion.write(paths.resolve(list_), reasons) if reasons else "none, so no list is written"
        print(f"Films with a remark: {len(reasons):,}: {written}", file=sys.stderr if json else sys.stdout)
    if not result.fit:
        raise typer.Exit(1)


@app.command()
def download(
    handle: Annotated[str, typer.Option("--handle", help="Kaggle's owner/name; default: the original films.")] = "",
    cache: Annotated[str, typer.Option("--cache", help="Folder to keep the download in.")] = "",
    labels: Annotated[
        str,
        typer.Option("--labels", metavar="DATA", help="Get the radiologists' labels into this data folder instead."),
    ] = "",
) -> None:
    """Download the films with Kaggle's client (42 GB; a resized mirror has 2 GB). An interrupted download goes on.

    Unpacking needs twice that disk space for a while. The films are used from the download folder, not copied.

    Example: cxr download --cache /big/disk --handle khanfashee/nih-chest-x-ray-14-224x224-resized
    """
    from shlex import quote

    from cxrlib.data import download, radiologists

    if labels:
        files = download.expert_labels(paths.resolve(labels))
        print(f"Radiologists' labels: {', '.join(map(str, files))}\nTerms: {radiologists.LICENCE}")
        print("Next: 09_labels, or cxr run again")
        return
    films = download.dataset(handle or download.NIH, cache=cache)
    print(f"Films: {films}\nNext: cxr check {quote(str(films))}")


@app.command()
def store(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="Data folder: NIH's layout or another's.")],
    size: Annotated[int, typer.Option("--size", min=8, help="Side in pixels.")] = 224,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes that decode.")] = None,
    allow_missing: AllowMissing = False,
) -> None:
    """Decode every film once into a memory map, as a run does at its start. An interrupted call goes on.

    Example: cxr store data --size 224
    """
    from cxrlib.data import records, store

    films = records.read(paths.resolve(folder), allow_missing=allow_missing)
    built = store.build(films, size, workers=workers, allow_missing=allow_missing)
    left_out = [*films.attrs["missing"], *built.missing]
    if left_out:
        print(f"Left out: {len(left_out):,} films that are absent or cannot be decoded, first {left_out[0]}")
    print(f"{len(built.names):,} films of {size} pixels from {', '.join(built.film_sizes)}: {built.folder}")


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the set.")],
    images: Annotated[int, typer.Option("--images", min=1, help="Number of films.")] = 2000,
    size: Annotated[int, typer.Option("--size", min=32, help="Side in pixels.")] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same set.")] = 0,
    folders: Annotated[int, typer.Option("--folders", help="12: the folders of the download; 0: images/ alone.")] = 0,
    layout: Annotated[
        str,
        typer.Option("--layout", help="nih, chexpert, mimic, padchest, vindr, rsna or openi: tables and files of it."),
    ] = "nih",
    hospital: Annotated[
        str, typer.Option("--hospital", help="A, or B: other people, exposure, prevalence and marker, more AP films.")
    ] = "A",
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes that draw.")] = None,
) -> None:
    """Draw a set of phantom films in a dataset's complete layout. A seed gives the same set with any --workers.

    Example: cxr phantom my-phantoms --images 500 --size 256 --seed 1

    Example: cxr phantom other-hospital --hospital B --layout chexpert
    """
    from cxrlib.phantom import layouts

    how = {"layout": layout.lower(), "hospital": hospital.upper(), "folders": folders, "workers": workers}
    print(f"Drew {images} films: {layouts.write(folder, images, size, seed, **how, progress=True)}")


@app.command()
def ensemble(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names of two or more runs on the same films.")],
    run: Annotated[str, typer.Option("--run", help="Name of the mean's own run.")] = "mean",
    of: Annotated[str, typer.Option("--of", help="What is averaged: probabilities or logits.")] = "probabilities",
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Take a member that has seen the films, and mark the result.")
    ] = False,
) -> None:
    """Make a run of the mean of several runs' predictions: thresholds, tables, figures and the report; no network.

    Members must have predicted the same films with the same labels. The same command does nothing as long as no member
    has changed.

    Example: cxr ensemble base-s0 base-s1 base-s2 --run base-mean
    """
    from cxrlib.workbook import averaging

    _print_path(averaging.run(runs, name=run, of=of, allow_leak=allow_leak))


@app.command()
def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN…", help="Names of runs or series; several are also compared.")
    ],
) -> None:
    """Write the report of a run again from its tables and figures; for several runs also a page that compares them.

    Runs of several seeds (base-s0, base-s1) are one series on that page, which "base" stands for.

    Example: cxr report base bce
    """
    from cxrlib.report import comparison, report, sections

    names = comparison.expand(runs)
    for name in names:
        report.home(name)
    if len(names) > 1:
        comparison.check(names)
    for name in names:
        _print_path(report.build(name))
        for word in report.not_made_by_run(paths.Run(name), sections.read_run_record(paths.Run(name)).value):
            print(word)
    if len(names) > 1:
        _print_path(comparison.build(names), "Comparison")


@app.command("export")
def export_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    to: Annotated[Path, typer.Option("--to", help="New folder, or an earlier export, which is replaced.")],
    ckpt: Annotated[str, typer.Option("--ckpt", help="Checkpoint by name; default: the run's last.")] = "",
    push: Annotated[str, typer.Option("--push", metavar="OWNER/NAME", help="Upload the folder to the Hub.")] = "",
    public: Annotated[bool, typer.Option("--public", help="With --push: a new model is public.")] = False,
    no_onnx: Annotated[bool, typer.Option("--no-onnx", help="Without model.onnx.")] = False,
    with_patients: Annotated[
        bool, typer.Option("--with-patients", help="Keep patient numbers of datasets that are not public.")
    ] = False,
) -> None:
    """Export a run to a folder that others can load: weights, config.json, model card, model.onnx.

    Such a folder is a checkpoint: --ckpt FOLDER reads it, and --ckpt hf:owner/name one on the Hub.

    Example: cxr export base --to base-model --push me/chest-base
    """
    from cxrlib import hub

    if push:
        hub.check(push)
    elif public:
        raise UserError("--public belongs to --push; name the model by --push owner/name")
    from cxrlib.report import export

    made = export.export(run, to, ckpt=ckpt, onnx=not no_onnx, with_patients=with_patients)
    for note in made.notes:
        print(note)
    _print_path(made.folder, "Exported" if made.written else "Unchanged")
    if push:
        print(f"Uploaded: {export.upload(made.folder, push, public=public)}")


@app.command()
def tidy(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names of runs.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Free disk space of finished runs: the optimizer's moments of their stages, and what killed calls left.

    Only a stage that goes on from another with keep_moments needs its moments; it then starts its optimizer anew. All
    results stay.

    Example: cxr tidy base --dry-run
    """
    from cxrlib.workbook import tidying

    for name in dict.fromkeys(runs):
        paths.Run(name)
    for name in dict.fromkeys(runs):
        found = tidying.tidy(name, dry_run=dry_run)
        for part in found:
            print(f"{name}: {part.what}, {disk.size(part.bytes)}")
        print(f"{name}: {disk.size(sum(part.bytes for part in found))} {'can be freed' if dry_run else 'freed'}")


def main() -> None:
    """Entry point: a user's error gives one or two lines on stderr and exit code 2, without a traceback."""
    sys.exit(call(sys.argv[1:]))


def call(words: list[str]) -> int:
    """Run ``cxr`` with these arguments and return its exit code."""
    _replace_what_the_console_lacks()
    with _terminable() as signals:
        code = _call(words)
        return TERMINATED if code == STOPPED and signals else code


def _call(words: list[str]) -> int:
    try:
        code = app(_joined(words), prog_name="cxr", standalone_mode=False) or 0
        return _stopped() if code == STOPPED else code  # after Ctrl-C some versions of Typer return, others raise
    except UserError as error:
        return _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except OSError as error:
        if not disk.number(error) or not error.filename:
            raise
        return _complain(str(disk.fault(Path(str(error.filename)), disk.number(error), kept="", verb="use")))
    except Exception as error:
        if not hasattr(error, "format_message"):  # true of click's errors for wrong arguments
            raise
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help())
            return 0
        return _complain(f"{error.format_message()} See {context.command_path if context else 'cxr'} --help.")


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Let SIGTERM do what Ctrl-C does inside the block: the state is saved first. Yields the signals that came.

    A second SIGTERM changes nothing, because a cluster sends several while the state is being saved.
    """
    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        if len(signals) == 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where no signal can be handled
        yield signals
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)


def _replace_what_the_console_lacks() -> None:
    """Let stdout and stderr print ``?`` for a character that their encoding lacks, as in many shells of Windows."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


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
