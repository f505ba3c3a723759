"""Training job: one stage trained by one process or several, with the parameters of its notebook.

A notebook cannot start the processes inside itself once its own process has used the GPU, for example to predict the
validation films. So the chain calls ``launch`` before it executes the notebook. ``launch`` starts
``cxrlib.training.fit`` as a program, as a batch system does on several machines; the notebook's own ``fit`` then finds
the stage finished, by its identity, and reports on it.
"""

import argparse
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from cxrlib import UserError, dataset, paths
from cxrlib.data import records
from cxrlib.training import (
    checkpoint,
    fit,
    lineage,
    losses,
    network,
    parameters,
    processes,
    schedules,
    teachers,
)
from cxrlib.training.progress import Progress

WRONG, STOPPED = 2, 130
"""Exit codes of a user's mistake, and of a job that was stopped with its state saved."""
GRACE = 60.0
"""Seconds that a stopped job has to save its state."""
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
    exclude: str = "",
    uncertain: str = "unknown",
    weights: str = "none",
    ckpt: str = "",
    lr: float = 0.0,
    epochs: int = -1,
    loss: str = "",
    override: str = "",
    teacher: str = "",
    seed: int = 0,
) -> fit.Result:
    """Train a stage with the parameters of its notebook, in one process or in each process of a launcher.

    ``batch_size`` counts the films of all processes together. Raises UserError for a wrong parameter, before a film is
    read, and the errors of ``fit``.
    """
    recipe = schedules.recipe(schedule, stage, lr=lr, epochs=epochs, loss=loss, override=override)
    given = {"run": run, "data": data, "size": size, "batch_size": batch_size, "seed": seed}
    given |= {"weights": weights, "ckpt": ckpt, "allow_missing": allow_missing}
    given |= {"exclude": exclude, "uncertain": uncertain, "teacher": teacher}
    folder = parameters.judge(f"stage{stage}", given)
    process_group = processes.launched_group()
    parent = lineage.parent_of_stage(folder, stage, ckpt)
    if parent:
        checkpoint.load(parent)
    else:
        network.judge(weights)
    options = {"seed": seed, "allow_missing": allow_missing, "exclude": exclude, "uncertain": uncertain}
    options |= {"progress": False}
    if process_group.world > 1:  # one process decodes the films, the others find them decoded
        process_group.from_first(lambda: dataset.open(data, size, **options).fingerprint)
    films = dataset.open(data, size, **options)
    how = {"augment": recipe.augment, "cap": recipe.cap, "variants": recipe.variants}
    taught = partial(teachers.soft_labels, teacher, films, recipe.teacher_share, home=folder)
    if process_group.world > 1:  # one process asks the teachers, the others find what they said
        process_group.from_first(lambda: taught() is None)
    train, val = films.batches(batch_size, soft=taught(), **how)
    model = network.build("none" if parent else weights, seed=seed)
    if parent:
        checkpoint.load_into(model, parent)
    positive_weight = losses.positive_weights(records.label_matrix(films.parts.train), recipe.positive_weight)
    return fit.fit(
        model,
        train,
        val,
        losses.make(recipe.loss, gamma=recipe.gamma, positive_weight=positive_weight),
        recipe,
        folder=folder.stage(stage),
        parent=parent,
        weights=weights,
        data=films.fingerprint,
        seed=seed,
        progress=process_group.first and sys.stderr.isatty(),
        watch=Log() if process_group.first else None,
    )


def launch(processes: int, *, shown: bool = True, **parameters: Any) -> None:
    """Start a training job of several processes on this machine, one per GPU or all on the CPU, and wait for its end.

    ``parameters`` are those of ``train``. The job's output goes to ``job.log`` in the stage's folder; ``shown`` draws a
    bar of its batches.
    Raises UserError with the job's own message, or where one of its processes died; ``fit.Stopped`` on an interrupt.
    """
    folder = paths.Run(parameters.get("run", "demo")).stage(parameters["stage"])
    gpus = torch.cuda.device_count()
    if processes < 1 or (gpus and processes > gpus):
        raise UserError(f"processes is {processes}; this machine has {gpus} GPUs, give 1 to {max(gpus, 1)}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "cxrlib.training.job", f"@{folder / 'job.args'}"]
    paths.write_text(folder / "job.args", "\n".join(words(parameters)))
    log = folder / "job.log"
    with log.open("w", encoding="utf-8") as out:
        start = time.time()
        job = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # it closes when this process ends, and the job then stops
            stdout=out,
            stderr=subprocess.STDOUT,
            env=_environment(processes, gpus),
            start_new_session=True,  # an interrupt reaches this process only, which sends the job one signal
        )
        try:
            _follow(job, folder / "progress.json", start, shown)
        except KeyboardInterrupt:
            job.send_signal(signal.SIGTERM)
            _wait_for_end(job, folder)
            raise fit.Stopped(
                f"the job was stopped; its state is saved in {folder}: run the same again to resume"
            ) from None
    if job.returncode:
        raise UserError(complaint(log, job.returncode))


def _wait_for_end(job: subprocess.Popen, folder: Path) -> None:
    """Wait until the launcher has ended and the writing process has saved its state and released the folder's lock."""
    deadline = time.monotonic() + GRACE
    with suppress(subprocess.TimeoutExpired):
        job.wait(GRACE)
    while time.monotonic() < deadline:
        with suppress(UserError), paths.lock_folder(folder):
            return
        time.sleep(0.1)


def words(parameters: dict[str, Any]) -> list[str]:
    """Command-line arguments from parameters, without those that are empty or false."""
    return [f"--{name}={value}" for name, value in parameters.items() if value != "" and value is not False]


def complaint(log: Path, code: int) -> str:
    """Error message of a failed job, from its log; or that a process died without a message."""
    messages = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if COMPLAINT in line]
    if messages:
        return messages[0].partition(COMPLAINT)[2]
    return (
        f"a process of the training job died (exit code {code}), so the others were stopped; the log is {log}. "
        "The same command resumes from the last saved state"
    )


class Log:
    """Progress log of a batch job: one line per epoch."""

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
    """Program that trains a stage. A user's mistake gives one line on stderr and exit code 2."""
    parameters = vars(parser().parse_args(arguments))
    if LAUNCHED in os.environ:
        threading.Thread(target=_stop_with_launcher, daemon=True).start()
    try:
        result = train(**parameters)
    except UserError as error:
        _exit(f"{COMPLAINT}{error}", WRONG)
    except KeyboardInterrupt as error:
        _exit(str(error) or "stopped", STOPPED)
    else:
        if processes.launched_group().first:
            print(f"{'trained' if result.trained else 'finished before'}: {result.best.name}")


def _stop_with_launcher() -> None:
    """Stop with the state saved when the launching process ends, which closes this process's stdin."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def parser() -> argparse.ArgumentParser:
    """Command-line parser: a flag for each parameter of ``train``, with its name, type and default."""
    command_line = argparse.ArgumentParser(
        prog="cxrlib.training.job",
        description="Train one stage, in every process that the launcher starts, with its notebook's parameters.",
        fromfile_prefix_chars="@",  # torchrun would read some flags as its own, so launch passes them in a file
        epilog="Example: accelerate launch --multi_gpu --num_processes 8 -m cxrlib.training.job --stage 1 --run base "
        "--data data --schedule modern --size 224 --batch_size 512 --weights IMAGENET1K_V1",
    )
    for name, parameter in inspect.signature(train).parameters.items():
        required = parameter.default is inspect.Parameter.empty
        kind = int if required else type(parameter.default)
        reader = _parse_bool if kind is bool else kind
        command_line.add_argument(f"--{name}", type=reader, required=required, default=parameter.default)
    return command_line


def _parse_bool(text: str) -> bool:
    return text.lower() in ("true", "yes", "1")


def _exit(message: str, code: int) -> None:
    """Print the message and end at once. A normal exit would wait for other processes, which may have ended."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code) if processes.launched_group().world > 1 else sys.exit(code)


def _environment(processes: int, gpus: int) -> dict[str, str]:
    variables = {"CXR_OUTPUTS": str(paths.outputs()), "CXR_PROJECT": str(paths.project()), LAUNCHED: "1"}
    variables |= {} if gpus else {"ACCELERATE_USE_CPU": "1"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {**os.environ, **variables, "OMP_NUM_THREADS": str(max(1, cores // processes))}


def _follow(job: subprocess.Popen, progress: Path, start: float, shown: bool) -> None:
    """Show a job's progress until it ends."""
    with tqdm(desc="job", unit="batch", mininterval=5, disable=not shown) as bar:
        while True:
            try:
                job.wait(1.0)
                return
            except subprocess.TimeoutExpired:
                _show(bar, progress, start)


def _show(bar: tqdm, progress: Path, start: float) -> None:
    try:
        if progress.stat().st_mtime >= start:
            now = paths.read_json(progress)
            bar.total = now["batches"] * now["epochs"]
            bar.update((now["epoch"] - 1) * now["batches"] + now["batch"] - bar.n)
    except (OSError, UserError, KeyError):  # not written yet
        return


if __name__ == "__main__":
    main()
