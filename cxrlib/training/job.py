"""A stage trained by several processes, as a job of its own with a notebook's parameters.

A notebook cannot start them inside itself where its own process has touched the GPU, and predicting the validation
films before a stage does. So the chain calls ``launch`` before it executes the notebook. ``launch`` starts
``cxrlib.training.fit`` as a program, as a batch system does on several machines; the notebook's own ``fit`` then finds
the stage finished, by its fingerprint, and reports on it.
"""

import argparse
import importlib
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from cxrlib import paths, provenance
from cxrlib.data import dataset, records
from cxrlib.errors import UserError
from cxrlib.training import checkpoint, fit, lineage, losses, network, stages
from cxrlib.training import team as teams
from cxrlib.training.progress import Progress

SCORE = "cxrlib.evaluation.metrics:auc_per_label"
"""Who scores a validation, by name: evaluation is a floor above, and this one imports nothing of it."""
WRONG, STOPPED = 2, 130
"""Exit codes of a user's mistake and of a job that was stopped with its state saved."""
GRACE = 60.0
"""Seconds that a job has to save its state when it is stopped."""
COMPLAINT = "cxr: "
LAUNCHED = "CXR_LAUNCHED"
"""Environment variable of a job that ``launch`` started."""


def train(
    *,
    stage: int,
    run: str = "demo",
    data: str = "",
    schedule: str = "scratch",
    size: int = 64,
    batch_size: int = 32,
    allow_missing: bool = False,
    weights: str = "none",
    ckpt: str = "",
    lr: float = 0.0,
    epochs: int = -1,
    loss: str = "",
    also: str = "",
    seed: int = 0,
) -> fit.Result:
    """Train a stage as its notebook does, with the notebook's parameters, in one process or a launcher's several.

    ``batch_size`` counts the films of all processes together. Raises what ``fit`` raises.
    """
    folder, recipe = paths.Run(run), stages.recipe(schedule, stage, lr=lr, epochs=epochs, loss=loss, also=also)
    team = teams.of()
    parent = lineage.parent(folder, stage, ckpt)
    if parent:
        checkpoint.load(parent)
    else:
        network.judge(weights)
    how = {"seed": seed, "allow_missing": allow_missing, "progress": False}
    if team.world > 1:  # one process decodes the films, the others find them decoded
        team.from_first(lambda: dataset.open(data, size, **how).fingerprint)
    films = dataset.open(data, size, **how)
    train, val = films.batches(batch_size, augment=recipe.augment, cap=recipe.cap, views=recipe.views)
    model = network.build("none" if parent else weights, seed=seed)
    if parent:
        checkpoint.load_into(model, parent)
    balance = losses.positive_weights(records.label_matrix(films.parts.train), recipe.positive_weight)
    room, _, name = SCORE.partition(":")
    return fit.fit(
        model,
        train,
        val,
        losses.make(recipe.loss, gamma=recipe.gamma, positive_weight=balance),
        recipe,
        folder=folder.stage(stage),
        score=getattr(importlib.import_module(room), name),
        parent=parent,
        weights=weights,
        data=films.fingerprint,
        seed=seed,
        progress=team.first and sys.stderr.isatty(),
        watch=Log() if team.first else None,
    )


def launch(processes: int, *, shown: bool = True, **parameters: Any) -> None:
    """Train a stage in so many processes on this machine, one per GPU or sharing the CPU; return when it is done.

    ``parameters`` as ``train`` takes them. What the job says goes to ``job.log`` in the stage's folder; ``shown`` draws
    a bar of the batches done.
    Raises UserError with the job's own complaint, or that a process of it died; ``fit.Stopped`` on an interrupt.
    """
    folder = paths.Run(parameters.get("run", "demo")).stage(parameters["stage"])
    gpus = torch.cuda.device_count()
    if processes < 1 or (gpus and processes > gpus):
        raise UserError(f"processes is {processes}; this machine has {gpus} GPUs, give 1 to {max(gpus, 1)}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "cxrlib.training.fit", f"@{folder / 'job.args'}"]
    paths.write_text(folder / "job.args", "\n".join(words(parameters)))
    log = folder / "job.log"
    with log.open("w", encoding="utf-8") as out:
        began = time.time()
        job = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # never written to; it closes when this process ends, and the job with it
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_environment(processes, gpus),
            start_new_session=True,  # a notebook's interrupt reaches us alone, and the job gets one signal, not three
        )
        try:
            _follow(job, folder / "progress.json", began, shown)
        except KeyboardInterrupt:
            job.send_signal(signal.SIGTERM)
            _wait_for_its_end(job, folder)
            raise fit.Stopped(
                f"the job was stopped; its state is saved in {folder}: run the same again to go on"
            ) from None
    if job.returncode:
        raise UserError(complaint(log, job.returncode))


def _wait_for_its_end(job: subprocess.Popen, folder: Path) -> None:
    """Wait until the launcher is gone and the process that writes has let go of the folder, its state saved."""
    deadline = time.monotonic() + GRACE
    with suppress(subprocess.TimeoutExpired):
        job.wait(GRACE)
    while time.monotonic() < deadline:
        with suppress(UserError), provenance.only_one(folder):
            return
        time.sleep(0.1)


def words(parameters: dict[str, Any]) -> list[str]:
    """The parameters as a command line's words; those that are empty or false are left out."""
    return [f"--{name}={value}" for name, value in parameters.items() if value not in ("", False)]


def complaint(log: Path, code: int) -> str:
    """What went wrong in a job, in the words of the process that said so, or that one died without a word."""
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if COMPLAINT in line]
    if said:
        return said[0].partition(COMPLAINT)[2]
    return (
        f"a process of the training job died (exit code {code}) and the others were ended; its log is {log}. "
        "The same command goes on from the last saved state"
    )


class Log:
    """One line per epoch, for a batch job's log."""

    def __init__(self) -> None:
        self.told = 0

    def __call__(self, progress: Progress) -> None:
        for row in progress.history[self.told :]:
            words = f"loss {row['train_loss']:.4f}, validation {row['val_loss']:.4f}, mean AUC {row['val_auc']:.4f}"
            speed = f"{row['images_per_s']:.0f} images/s"
            print(
                f"{time.strftime('%F %T')} stage {progress.recipe.number}, epoch {row['epoch']}: {words}, {speed}",
                flush=True,
            )
        self.told = len(progress.history)


def main(arguments: list[str] | None = None) -> None:
    """Train a stage as a program; a user's mistake is one line on stderr and exit code 2."""
    given = vars(parser().parse_args(arguments))
    if LAUNCHED in os.environ:
        threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    try:
        result = train(**given)
    except UserError as error:
        _leave(f"{COMPLAINT}{error}", WRONG)
    except KeyboardInterrupt as error:
        _leave(str(error) or "stopped", STOPPED)
    else:
        if teams.of().first:
            print(f"{'trained' if result.trained else 'finished before'}: {result.best.name}")


def _end_with_the_launcher() -> None:
    """Stop, with the state saved, when the process that launched this job is gone: its end of our input closes then."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def parser() -> argparse.ArgumentParser:
    """The command line: a flag for each of a stage notebook's parameters, of its name, type and default."""
    made = argparse.ArgumentParser(
        prog="cxrlib.training.fit",
        description="Train one stage, in every process that the launcher starts, with its notebook's parameters.",
        fromfile_prefix_chars="@",  # torchrun takes some of our flags for its own, so launch gives them in a file
        epilog="Example: accelerate launch --multi_gpu --num_processes 8 -m cxrlib.training.fit --stage 1 --run base "
        "--data data --schedule modern --size 224 --batch_size 512 --weights IMAGENET1K_V2",
    )
    for name, parameter in inspect.signature(train).parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        kind = int if needed else type(parameter.default)
        reader = _truth if kind is bool else kind
        made.add_argument(f"--{name}", type=reader, required=needed, default=None if needed else parameter.default)
    return made


def _truth(text: str) -> bool:
    return text.lower() in ("true", "yes", "1")


def _leave(said: str, code: int) -> None:
    """Say it and go at once: an orderly end would wait for processes that are past waiting for us."""
    print(said, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code) if teams.of().world > 1 else sys.exit(code)


def _environment(processes: int, gpus: int) -> dict[str, str]:
    own = {"CXR_OUTPUTS": str(paths.outputs()), "CXR_PROJECT": str(paths.project()), LAUNCHED: "1"}
    own |= {} if gpus else {"ACCELERATE_USE_CPU": "1"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {**os.environ, **own, "OMP_NUM_THREADS": str(max(1, cores // processes))}


def _follow(job: subprocess.Popen, progress: Path, began: float, shown: bool) -> None:
    """Show how far a job has come until it ends."""
    with tqdm(desc="job", unit="batch", mininterval=5, disable=not shown) as bar:
        while True:
            try:
                job.wait(1.0)
                return
            except subprocess.TimeoutExpired:
                _show(bar, progress, began)


def _show(bar: tqdm, progress: Path, began: float) -> None:
    try:
        if progress.stat().st_mtime >= began:
            now = paths.read_json(progress)
            bar.total = now["batches"] * now["epochs"]
            bar.update((now["epoch"] - 1) * now["batches"] + now["batch"] - bar.n)
    except (OSError, UserError, KeyError):  # not there yet
        return
