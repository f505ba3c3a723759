"""Parameters of the notebooks: the kind, range and choices of each, judged in one place.

The command line, the chain, a training job and a notebook that is executed by hand all ask this module, before a film
is read. It imports neither torch nor pandas, so that a wrong value is refused at once.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrlib import UserError, paths
from cxrlib.training import schedules
from cxrlib.training.schedules import KINDS, in_words, one_of, shown

Scalar = str | int | float | bool

SIZES = (8, 4096)
"""Smallest and largest side of the stored films in pixels; the originals have 1024."""
BATCHES = (1, 65_536)
SEEDS = (0, 2**32 - 1)
"""NumPy and scikit-learn take no other seeds."""
OCCLUSIONS = (1, 100_000)

NO_WEIGHTS = "none"
WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_V2")
"""Names of torchvision's weights of a ResNet-50."""
MODES = ("none", "flip", "tencrop")
"""Modes of test-time augmentation."""
UNCERTAIN = ("unknown", "positive", "negative")
"""What a label of -1 may count as: ``data.tables.UNCERTAIN``."""
TESTS = ("evaluation", "localisation", "reading_room", "labels")
"""Notebooks that test a checkpoint. Their ``size`` may be 0, which is the checkpoint's own."""
PARTS = ("val", "test")
"""Parts of the films that a checkpoint predicts."""


@dataclass(frozen=True)
class Rule:
    """Rule of a parameter: its type, and what a value must be.

    ``fault(value, part)`` gives the end of a sentence that begins with name and value; "" if the value is right.
    ``part``: the notebook's name without its number.
    """

    kind: type
    fault: Callable[[Any, str], str] = lambda value, part: ""


def _number(low: float, high: float) -> Rule:
    return Rule(int, lambda value, part: "" if low <= value <= high else f"must be {in_words(low, high)}")


def _choice(*allowed: str) -> Rule:
    return Rule(str, lambda value, part: "" if value in allowed else f"must be {one_of(value, allowed)}")


def _size(value: int, part: str) -> str:
    if SIZES[0] <= value <= SIZES[1] or (value == 0 and part in TESTS):
        return ""
    own = ", or 0 for the one that the checkpoint was trained at" if part in TESTS else ""
    return f"must be {in_words(*SIZES)}{own}"


def _batch_size(value: int, part: str) -> str:
    low = 2 if part.startswith("stage") else BATCHES[0]
    why = "; BatchNorm needs two films" if value == 1 else ""
    return "" if low <= value <= BATCHES[1] else f"must be {in_words(low, BATCHES[1])}{why}"


def _data(value: str, part: str) -> str:
    path = paths.resolve(value)
    if not value or path.is_dir() or (path.is_file() and part == "exploration"):
        return ""
    if path.is_file():
        return "is a file; it must be a folder in the NIH layout"
    here = Path.cwd()
    project = paths.project() / path.relative_to(here) if path.is_relative_to(here) else path
    hint = f"; a relative path starts from where you stand, and the project's is {project}" if project.is_dir() else ""
    return "is not there" + (f": {path}" if str(path) != value else "") + hint


def _expert_labels(value: str, part: str) -> str:
    return "" if not value or paths.resolve(value).exists() else f"is not there: {paths.resolve(value)}"


def _weights(value: str, part: str) -> str:
    if value in (NO_WEIGHTS, *WEIGHTS):
        return ""
    file, choice = paths.resolve(value), one_of(value, (NO_WEIGHTS, *WEIGHTS)).removeprefix("one of ")
    if value and file.is_file():
        return "" if _holds_weights(file) else "is no file of weights; give a .pth or .safetensors file"
    if part.startswith("stage") and part != "stage1" and file.suffix:
        return ""  # only stage 1 reads it, and it may be gone since
    return f"are neither a file nor a known name; they can be a .pth or .safetensors file, {choice}"


def _holds_weights(file: Path) -> bool:
    """Whether a file begins as safetensors, a zip (torch.save) or a pickle (torch.save before 1.6)."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(9)
    except OSError:  # its own message follows when it is read
        return True
    return begin[8:] == b"{" or begin[:4] == b"PK\x03\x04" or begin[:1] == b"\x80"


def _exclude(value: str, part: str) -> str:
    if not value:
        return ""
    file = paths.resolve(value)
    if not file.is_file():
        what = "is a folder; give a CSV of films to leave out" if file.is_dir() else "is not there"
        return what + (f": {file}" if str(file) != value and not file.is_dir() else "")
    from cxrlib.data import exclusion  # it loads pandas, which a run without a list does not need here

    try:
        exclusion.read(file)
    except UserError as error:
        return f"cannot be used: {error}"
    return ""


def _words(value: str) -> list[str]:
    return [word for word in (word.strip() for word in value.split(",")) if word]


def _is_of_run(word: str, run: str) -> bool:
    """Whether a teacher is the run itself or one of its checkpoints."""
    return word == run or (not paths.run_name_fault(run) and paths.resolve(word).is_relative_to(paths.Run(run).root))


def _teacher(value: str, part: str) -> str:
    if value and not all(word.strip() for word in value.split(",")):
        return "must be runs or checkpoints with commas between them, such as base,other"
    for word in _words(value):
        try:
            if paths.last_checkpoint(word) is None:
                paths.find_checkpoint(word)
        except UserError as error:
            return f"cannot be used: {shown(word)} is neither a run with a finished stage nor a checkpoint ({error})"
    return ""


def _finding(value: str, part: str) -> str:
    from cxrlib import labels  # it loads NumPy, which the command line does not need

    return "" if value in labels.LABELS else f"must be {one_of(value, labels.LABELS)}"


def _processes(value: int, part: str) -> str:
    count, what = capacity()
    if value == 1 or 1 <= value <= count:
        return ""
    return f"must be {in_words(1, count) if count > 1 else 1}; this machine has {count} {what}"


def capacity() -> tuple[int, str]:
    """How many processes can train together here, and of what that is the number: NVIDIA cards, or else CPU cores.

    Asked of the system, since torch takes seconds to load.
    """
    cards = len([file for file in Path("/dev").glob("nvidia[0-9]*") if file.name[6:].isdigit()])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if cards and visible is not None:
        cards = len([word for word in visible.split(",") if word.strip() not in ("", "-1")])
    if cards:
        return cards, "cards"
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, "cores"


RULES: Mapping[str, Rule] = {
    "run": Rule(str, lambda value, part: paths.run_name_fault(value)),
    "data": Rule(str, _data),
    "schedule": _choice(*schedules.SCHEDULES),
    "size": Rule(int, _size),
    "batch_size": Rule(int, _batch_size),
    "allow_missing": Rule(bool),
    "exclude": Rule(str, _exclude),
    "uncertain": _choice(*UNCERTAIN),
    "allow_leak": Rule(bool),
    "weights": Rule(str, _weights),
    "ckpt": Rule(str),
    "teacher": Rule(str, _teacher),
    "expert_labels": Rule(str, _expert_labels),
    "lr": Rule(float),
    "epochs": Rule(int),
    "loss": Rule(str),
    "override": Rule(str),
    "seed": _number(*SEEDS),
    "processes": Rule(int, _processes),
    "tta": _choice(*MODES),
    "part": _choice(*PARTS),
    "finding": Rule(str, _finding),
    "occluded": _number(*OCCLUSIONS),
}
"""Rules by name. Those of ``lr``, ``epochs``, ``loss`` and ``override`` are the recipe's own (``schedules``)."""

RECIPE: Mapping[str, Scalar] = {"lr": 0.0, "epochs": -1, "loss": "", "override": ""}
"""Parameters that change a recipe, and the values that change nothing."""


def faults(part: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Wrong values as (name, sentence that begins with the name); none for names without a rule.

    part: the notebook's name without its number; ``values``: its parameters, by name.
    """
    wrong_types = set()
    for name, value in values.items():
        if name in RULES and not fits(value, RULES[name].kind):
            wrong_types.add(name)
            yield name, f"{name} is {shown(value)}; it must be {KINDS[RULES[name].kind]}"
    sound = {name: value for name, value in values.items() if name in RULES and name not in wrong_types}
    for name, value in sound.items():
        try:
            fault = RULES[name].fault(value, part)
        except UserError as error:  # a path that no disk can have
            fault = f"cannot be used: {error}"
        if fault:
            joined = "; it " if fault.startswith("must be") else " "
            yield name, f"{name} {'is ' if fault.startswith('must be') else ''}{shown(value)}{joined}{fault}"
    yield from _recipe_faults(part, sound)
    yield from _joint_faults(part, sound)


def _recipe_faults(part: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of the recipe that these values make of the schedule's."""
    schedule, number = values.get("schedule"), part.removeprefix("stage")
    if schedule not in schedules.SCHEDULES or number == part:
        return
    for name in [name for name in RECIPE if name in values]:
        try:
            schedules.recipe(schedule, int(number), **{name: values[name]})
        except UserError as error:
            text = str(error)
            yield name, text if text.startswith(name) else f"{name} {shown(values[name])}: {text}"


def _joint_faults(part: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of values that are right one by one and not together."""
    processes, batch = values.get("processes", 1), values.get("batch_size", 0)
    if processes > 1 and batch and batch < 2 * processes:
        need = f"batch_size must be {2 * processes} or more for them, since it counts the films of all"
        yield "processes", f"processes is {processes} and batch_size {batch}; {need}"
    own = [word for word in _words(values.get("teacher", "")) if _is_of_run(word, values.get("run", ""))]
    if own:
        yield "teacher", f"teacher {own[0]} is of the run {values['run']} itself; train under another name with --run"
    if values.get("ckpt") and not paths.run_name_fault(values.get("run", "")):
        try:
            file = paths.find_checkpoint(values["ckpt"], paths.Run(values["run"]))
        except UserError as error:
            yield "ckpt", f"ckpt {shown(values['ckpt'])}: {error}"
        else:
            if not _holds_weights(file):
                yield "ckpt", f"ckpt {shown(values['ckpt'])}: {file} is no file of weights"


def judge(part: str, values: Mapping[str, Any]) -> paths.Run:
    """Check the parameters of a notebook, and return the folder of its run.

    part: the notebook's name without its number, such as "stage3". Names without a rule are left alone, so that
    ``globals()`` will do for ``values``. Raises UserError for the first wrong value.
    """
    for _, fault in faults(part, values):
        raise UserError(fault)
    return paths.Run(values["run"])


def fits(value: Any, kind: type) -> bool:
    """Whether a value has this type. A whole number passes as a float, and true as nothing but a bool."""
    return type(value) is kind or (kind is float and type(value) is int)
