"""Does staging help? ``seed``, ``modern``, ``control`` and ``published`` at equal passes over films, seed by seed.

``python -m tests.benchmarks.compare_schedules --data ../shared/nih-1k --seeds 3`` writes
``outputs/bench/schedules.csv``, anew after every run. A finished run is recognised by what decides it and an
interrupted one goes on, so that the program can be stopped and started. A run's seed decides its split into training
and validation, the order and variation of its films, and its head; the test part is the data's own.

Each schedule goes over the training films ``--passes`` times: its epochs are scaled to that number by largest
remainders, each stage with epochs keeping one at least. The starting weights are those of a ResNet-50 trained on
``--pretrain`` drawn films (``cxrlib.phantom.phantom``) or on the films of another folder (``--pretrain_data``, so that
drawn films can be the ones to learn: ``cxr phantom``), or random; others such as ``IMAGENET1K_V2`` by ``--weights``.

``--variant "modern ema=0 stage1.lr=0.003"`` (repeatable) tries a schedule with other settings, of all its stages or of
one. Variants are compared with their schedule on validation films alone, so that choosing among them leaves the test
part unseen. What was chosen there is then read on the test films, too: ``--chosen "modern ema=0"``.

``--until_validation_stops`` trains each schedule and seed at ``--passes``, then at 1.5 times as many, and so on, until
two in a row bring no higher validation AUC. The best one is the run that is told. Test predictions of the others lie
beside it, but nothing looks at them.

``--jobs 8`` trains so many at a time, each in a process of its own; with ``--seconds`` none is begun after that time,
and the table is of the finished ones.
"""

import argparse
import math
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cxrlib import UserError, metrics, paths, provenance
from cxrlib.data import augmentation, batches, records, splits, store
from cxrlib.evaluation import predict
from cxrlib.phantom import phantom
from cxrlib.training import fit, losses, network, schedules, stage_folder
from cxrlib.training.schedules import Stage
from tests.benchmarks import verdict

SCHEDULES = ("seed", "modern", "control", "published")
LONGER = 1.5
"""Factor from one number of passes to the next in ``--until_validation_stops``."""
PATIENCE = 2
"""So many longer trainings in a row without a higher validation AUC end it: that of few films is noisy."""


@dataclass(frozen=True)
class Trial:
    """A schedule, or a variant of one, whose stages have a number of epochs together; ``tested``: on test films too."""

    name: str
    schedule: str
    recipes: tuple[Stage, ...]
    tested: bool

    @property
    def passes(self) -> int:
        return sum(recipe.epochs for recipe in self.recipes)


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share; ``weights`` as ``network.build`` takes them."""

    films: pd.DataFrame
    pixels: store.Store
    source: Path
    batch_size: int
    weights: str


def trial(words: str, passes: int, *, chosen: bool = False) -> Trial:
    """The trial that words such as ``"modern ema=0 stage1.lr=0.003"`` describe. Raises UserError for unknown ones.

    The test films are for schedules as they stand, and for variants that were ``chosen`` before.
    """
    schedule, *changes = words.split()
    recipes = []
    for number in range(1, 6):
        own = [word.partition(".")[2] for word in changes if word.startswith(f"stage{number}.")]
        common = [word for word in changes if not word.startswith("stage")]
        recipes.append(schedules.recipe(schedule, number, override=" ".join([*common, *own])))
    return Trial(" ".join(words.split()), schedule, scaled(tuple(recipes), passes), tested=chosen or not changes)


def all_trials(given: argparse.Namespace) -> list[Trial]:
    """The trials that a call asks for, each once. A variant that is chosen, too, is read on the test films."""
    trials = [trial(words, given.passes) for words in (*given.schedules.split(), *given.variant)]
    trials += [trial(words, given.passes, chosen=True) for words in given.chosen]
    return list({one.name: one for one in trials}.values())


def scaled(recipes: tuple[Stage, ...], passes: int) -> tuple[Stage, ...]:
    """The stages that have epochs, with ``passes`` epochs in all, shared out by largest remainders, each at least 1."""
    recipes = tuple(recipe for recipe in recipes if recipe.epochs)
    if passes < len(recipes):
        raise UserError(f"passes is {passes}; {len(recipes)} stages need {len(recipes)} or more")
    wanted = np.array([recipe.epochs for recipe in recipes]) * passes / sum(recipe.epochs for recipe in recipes)
    epochs = np.maximum(np.floor(wanted), 1)
    while epochs.sum() != passes:  # up where most is lacking, or down where most is too much
        lacking = np.where((epochs > 1) | (epochs.sum() < passes), wanted - epochs, np.inf)
        if epochs.sum() < passes:
            epochs[lacking.argmax()] += 1
        else:
            epochs[lacking.argmin()] -= 1
    return tuple(replace(recipe, epochs=int(n)) for recipe, n in zip(recipes, epochs, strict=True))


def drawn(films: int, size: int, folder: Path) -> Path:
    """A folder of so many drawn films, which is made the first time."""
    place = folder / f"phantom-{films}"
    return place if place.is_dir() else phantom.write(place, films, size=max(size, 96), seed=1000)


def pretrained(source: Path, epochs: int, size: int, batch_size: int, folder: Path) -> tuple[str, str]:
    """Starting weights from a folder's films, and in words; trained the first time by ``scratch``'s first stage."""
    table = records.read(source)
    pixels = store.build(table, size, progress=False)
    parts = splits.make(table, source)
    recipe = schedules.recipe("scratch", 1, epochs=epochs)
    result = learn(network.build("none", seed=0), parts, pixels, recipe, folder / f"pretrained-{source.name}-{size}",
                   batch_size=batch_size, seed=0)  # fmt: skip
    Path(f"{result.best}.films.txt").touch()  # the other folder's patients are none of this one's
    what = f"ResNet-50 trained on {len(parts.train)} films of {source.name}, {epochs} passes"
    return str(result.best), f"{what} (AUC {result.history['val_auc'].max():.3f})"


def learn(
    model: network.Network, parts: splits.Parts, pixels: store.Store, recipe: Stage, folder: Path, *,
    batch_size: int, seed: int, parent: Path | None = None, weights: str = "none",
) -> fit.Result:  # fmt: skip
    """One stage as its notebook trains it."""
    how = {"augment": augmentation.preset(recipe.augment), "cap": recipe.cap, "variants": recipe.variants}
    train = batches.Batches(pixels, parts.train, batch_size=batch_size, seed=seed, shuffle=True, **how)
    val = batches.Batches(pixels, parts.val, batch_size=2 * batch_size)
    balance = losses.positive_weights(records.label_matrix(parts.train), recipe.positive_weight)
    loss = losses.make(recipe.loss, gamma=recipe.gamma, positive_weight=balance)
    return fit.fit(model, train, val, loss, recipe, folder=folder, score=metrics.auc_per_label, parent=parent,
                   weights=weights, data=pixels.fingerprint, seed=seed, progress=False)  # fmt: skip


def place_of(one: Trial, seed: int, setting: Setting, folder: Path) -> Path:
    name = "".join(c if c.isalnum() or c in ".=" else "_" for c in one.name)
    return folder / f"{setting.source.name}-{setting.pixels.size}-{one.passes}" / f"{name}-{seed}"


def run(one: Trial, seed: int, setting: Setting, folder: Path) -> verdict.Run:
    """Train a trial with a seed, unless that is done, and read validation films, and test films where it may."""
    place = place_of(one, seed, setting, folder)
    parts = splits.make(setting.films, setting.source, seed=seed)
    asked = {"val": parts.val, "test": parts.test} if one.tested else {"val": parts.val}
    who = identity(one, seed, setting)
    note = place / "result.json"
    found = paths.read_json(note) if note.is_file() else {}
    if found.get("who") != who:
        print(f"{time.strftime('%T')} {one.name}, seed {seed}, {one.passes} passes", flush=True)
        histories, model = train(one, seed, setting, parts, place)
        for name, films in asked.items():
            given = batches.Batches(setting.pixels, films, batch_size=2 * setting.batch_size)
            predict.write(place / f"{name}.csv", films, predict.predict(model, given))
        histories.to_csv(place / "history.csv", index=False)
        found = {"who": who, "seconds": float(histories["seconds"].sum())}
        paths.write_json(note, found)
        for stage in place.glob("stage*"):  # 300 MB each
            shutil.rmtree(stage)
    readings = {name: predict.read(place / f"{name}.csv", films) for name, films in asked.items()}
    return verdict.Run(one.name, one.schedule, seed, one.passes, found["seconds"], readings)


def run_until_validation_stops(one: Trial, seed: int, setting: Setting, folder: Path) -> verdict.Run:
    """Run a trial at its passes, then at more and more, until the validation AUC rises no more: the best of them."""
    best = longest = run(one, seed, setting, folder)
    in_vain = 0
    while in_vain < PATIENCE:
        longer = replace(one, recipes=scaled(one.recipes, math.ceil(LONGER * longest.passes)))
        longest = run(longer, seed, setting, folder)
        better = longest.auc("val") > best.auc("val")
        best, in_vain = (longest, 0) if better else (best, in_vain + 1)
    return best


def train(
    one: Trial, seed: int, setting: Setting, parts: splits.Parts, folder: Path
) -> tuple[pd.DataFrame, network.Network]:
    """The stages one after the other, each from the best weights of the one before: all epochs' rows, the network."""
    model, parent, histories = network.build(setting.weights, seed=seed), None, []
    for recipe in one.recipes:
        result = learn(model, parts, setting.pixels, recipe, folder / f"stage{recipe.number}", parent=parent,
                       batch_size=setting.batch_size, seed=seed, weights=setting.weights)  # fmt: skip
        parent = result.best
        histories.append(result.history.assign(stage=recipe.number))
        last = result.history["val_auc"]
        print(f"  stage {recipe.number}, {len(last)} epochs: validation AUC {last.max():.4f}", flush=True)
    return pd.concat(histories, ignore_index=True), model


def identity(one: Trial, seed: int, setting: Setting) -> str:
    """A digest of all that decides a run."""
    file = Path(setting.weights)
    start = provenance.file_sha256(file) if file.is_file() else setting.weights
    recipes = [{**asdict(recipe), "groups": list(recipe.groups), "purpose": ""} for recipe in one.recipes]
    pixels = {"data": setting.pixels.fingerprint, "size": setting.pixels.size, "batch_size": setting.batch_size}
    code = {"code": stage_folder.code_version()} | ({"tested": True} if one.tested and one.name != one.schedule else {})
    return provenance.digest({"recipes": recipes, "seed": seed, "start": start, **code, **pixels})


def main() -> int:
    given = parser().parse_args()
    folder = paths.outputs() / "bench" / "schedules"
    source = paths.resolve(given.data)
    films = records.read(source)
    pixels = store.build(films, given.size, progress=False)
    weights, start = given.weights, f"weights {given.weights or 'none'}"
    if not weights and (given.pretrain_data or given.pretrain):
        other = paths.resolve(given.pretrain_data) if given.pretrain_data else drawn(given.pretrain, given.size, folder)
        if other == source:
            raise UserError(f"pretrain_data is {source} itself, whose films are to be tested on; give another folder")
        weights, start = pretrained(other, given.pretrain_epochs, given.size, given.batch_size, folder)
    print(f"start: {start}", flush=True)
    setting = Setting(films, pixels, source, given.batch_size, weights or "none")
    trials = all_trials(given)
    passes = f"{given.passes} passes" + (" or more, until validation stops" if given.until_validation_stops else "")
    where = f"{len(films)} films of {source.name}, {given.size} px, batch {given.batch_size}, {passes}, "
    where += f"start: {start}; {torch.get_num_threads()} threads"
    wanted = [(one, seed) for seed in range(given.seeds) for one in trials]
    one_run = run_until_validation_stops if given.until_validation_stops else run
    if given.jobs > 1:
        wanted = train_in_processes(one_run, wanted, setting, folder, given.jobs, given.seconds)
    runs = []
    for one, seed in wanted:
        runs.append(one_run(one, seed, setting, folder))
        if given.jobs == 1 or len(runs) == len(wanted):
            table = verdict.table(runs, where)
            paths.write_text(paths.outputs() / "bench" / "schedules.csv", table.to_csv(index=False))
    if not runs:
        raise UserError("no run was finished in time; give more seconds, or fewer passes")
    print(table.drop(columns="conditions").to_string(index=False))
    return 0


def train_in_processes(
    one_run: Callable, wanted: list[tuple[Trial, int]], setting: Setting, folder: Path, jobs: int, seconds: float
) -> list[tuple[Trial, int]]:
    """Train what is wanted, so many at a time, and give what is done.

    What is not begun after ``seconds`` (0: no limit) is left out.
    """
    until = time.time() + seconds if seconds else float("inf")
    how = (setting.source, setting.pixels.size, setting.batch_size, setting.weights, folder, until)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        done = [pool.submit(_train_one, one_run, one, seed, *how) for one, seed in wanted]
        return [which for which, job in zip(wanted, done, strict=True) if job.result()]


def _train_one(
    one_run: Callable, one: Trial, seed: int, source: Path, size: int, batch_size: int, weights: str, folder: Path,
    until: float,
) -> bool:  # fmt: skip
    """Whether it was done; False if there was no time left to begin."""
    if time.time() > until:
        return False
    films = records.read(source)
    setting = Setting(films, store.build(films, size, progress=False), source, batch_size, weights)
    one_run(one, seed, setting, folder)
    return True


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare_schedules", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    made.add_argument("--data", required=True, help="folder in the NIH layout")
    made.add_argument("--schedules", default=" ".join(SCHEDULES), help="which, in one word each")
    made.add_argument("--variant", action="append", default=[], help="a schedule and settings, for validation alone")
    made.add_argument("--chosen", action="append", default=[], help="a variant chosen before, for the test films too")
    made.add_argument(
        "--until_validation_stops", action="store_true", help="1.5 times the passes until that helps no more"
    )
    made.add_argument("--seeds", type=int, default=3, help="runs of each, seeds 0, 1, …")
    made.add_argument("--size", type=int, default=64, help="side of the films in pixels")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--passes", type=int, default=11, help="epochs of each schedule in all")
    made.add_argument("--weights", default="", help="starting weights instead of pretrained ones; none for random")
    made.add_argument("--pretrain", type=int, default=2000, help="drawn films to pretrain on; 0: random weights")
    made.add_argument("--pretrain_data", default="", help="folder of other patients' films to pretrain on instead")
    made.add_argument("--pretrain_epochs", type=int, default=4)
    made.add_argument("--jobs", type=int, default=1, help="runs that train at the same time")
    made.add_argument("--seconds", type=float, default=0, help="with several jobs: begin no run after so long")
    return made


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except fit.Stopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(130) from None
