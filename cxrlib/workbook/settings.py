"""Settings of a run: the notebooks, their parameters, and the values that each notebook gets.

A setting is ``name=value``, for every notebook that has the parameter, or ``part.name=value`` for one notebook, as in
``stage3.lr=1e-4``; a part is a notebook's name without its number. Names, types and values are checked before anything
starts, because papermill only warns of a parameter that a notebook does not have. ``training.parameters`` has the rules
for values.

A run remembers its settings for later calls. ``name=`` without a value takes a setting back.
"""

import ast
import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from cxrlib import UserError, paths
from cxrlib.training import parameters as rules
from cxrlib.training import schedules
from cxrlib.training.parameters import Scalar

REAL: Mapping[str, Scalar] = {"size": 224, "batch_size": 64, "weights": "IMAGENET1K_V1", "schedule": "modern"}
"""Defaults for the user's films, where they differ from the notebooks' own defaults (the demo).

Every published figure of a ResNet-50 on the official split starts from torchvision's first ImageNet weights (V1). The
second (V2) are better on ImageNet, but less usable as they stand for another task, and ``modern`` begins with the head
alone on frozen features."""

SEED: Mapping[str, Scalar] = {**REAL, "batch_size": 128, "schedule": "seed"}
"""The same for the original program's commands, with its own schedule, to which its learning rates belong."""

OF_SCHEDULE: Mapping[str, Mapping[str, Scalar]] = {"published": {"size": 256, "batch_size": 32, "tta": "tencrop"}}
"""Defaults that belong to a schedule, on the user's films."""

FILES = ("data", "ckpt", "weights", "exclude", "expert_labels", "teacher")
"""Parameters that may name a file or folder, relative to the user's current folder."""

OWN = ("lr", "epochs", "loss", "override", "ckpt")
"""Parameters with a separate value for each stage."""

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def chain(folder: Path | None = None) -> list[Path]:
    """The numbered notebooks in order. Raises UserError if there are none."""
    folder = folder or paths.notebooks()
    books = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not books:
        raise UserError(f"no notebooks in {folder}; run from the project's folder, or set CXR_PROJECT to it")
    return books


def part(book: Path) -> str:
    """A notebook's name without its number: ``stage3`` for ``03_stage3.ipynb``."""
    return book.stem.partition("_")[2]


def cells(book: Path) -> list[dict]:
    """Cells of a notebook as plain data. Raises UserError if the file is not a notebook."""
    content = paths.read_json(book)
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise UserError(f"{book} is not a notebook of format 4")
    return content["cells"]


def source(cell: Mapping) -> str:
    return "".join(cell["source"])


def parameters(book: Path) -> dict[str, Scalar]:
    """Names and defaults in the cell tagged ``parameters``; empty if there is no such cell.

    Raises UserError for a default that is not a plain scalar, since neither papermill nor a flag could set it.
    """
    tagged = [cell for cell in cells(book) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    defaults: dict[str, Scalar] = {}
    for statement in ast.parse(source(tagged[0])).body if tagged else []:
        try:
            (target,) = statement.targets
            value = ast.literal_eval(statement.value)
            if not isinstance(value, Scalar):
                raise TypeError
            defaults[target.id] = value
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{book}: line {statement.lineno} of the parameters cell is not `name = plain value`"
            ) from None
    return defaults


def parse(pairs: Iterable[str]) -> dict[str, str]:
    """Settings from ``["loss=bce", "stage3.lr=1e-4"]``; values stay text until ``share`` gives them a type."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"-p {pair!r} is not name=value; for example -p stage3.lr=1e-4")
        settings[name.strip()] = value.strip()
    return settings


MOST_SEEDS = 100
"""Runs of a series, at most: a larger number is rather a seed than a count."""


def parse_seeds(text: str, given: Collection[str] = ()) -> list[int]:
    """Seeds from ``"3"``, which means 0, 1 and 2, or from ``"0,7,12"``.

    given: names of the other settings of the call. Raises UserError for what is no such list, for a seed that occurs
    twice or is out of range, and if another setting is a seed.
    """
    if other := [name for name in given if name.rpartition(".")[2] == "seed"]:
        raise UserError(f"--seeds and {other[0]} cannot be given together; --seeds gives each run its own")
    words = [word.strip() for word in text.split(",")]
    most = rules.SEEDS[1]
    wrong = [word for word in words if not (re.fullmatch(r"[0-9]{1,10}", word) and int(word) <= most)]
    if wrong:
        raise UserError(
            f"--seeds {schedules.shown(text)}: {schedules.shown(wrong[0])} is not a whole number from 0 to {most}; "
            "give a count such as 3, or seeds such as 0,7,12"
        )
    if len(words) == 1:
        if not 1 <= int(words[0]) <= MOST_SEEDS:
            raise UserError(f"--seeds {text} is a count of runs, 1 to {MOST_SEEDS}; for one run of a seed give --seed")
        return list(range(int(words[0])))
    seeds = [int(word) for word in words]
    if doubled := [seed for i, seed in enumerate(seeds) if seed in seeds[:i]]:
        raise UserError(f"--seeds {text}: seed {doubled[0]} is there twice; each run of a series has its own")
    return seeds


def located(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings with absolute file paths, since notebooks run in their own folder and later calls in any.

    ``weights`` that are a run's name become its last checkpoint, so that one dataset's run starts from another's, and
    so does each ``teacher``.
    """
    absolute = dict(settings)
    for name, value in settings.items():
        word = name.rpartition(".")[2]
        if word == "weights" and value and not _is_path(word, value) and (last := paths.last_checkpoint(str(value))):
            absolute[name] = str(last)
        elif word == "teacher":
            absolute[name] = ",".join(_teacher_file(one.strip()) for one in str(value).split(",")) if value else ""
        elif word in FILES and isinstance(value, str) and (word in ("data", "exclude") or _is_path(word, value)):
            absolute[name] = str(paths.resolve(value)) if value else ""
    return absolute


def _teacher_file(word: str) -> str:
    """The file of a teacher that is a run or a path; another word, such as a checkpoint's name, as it is."""
    if last := paths.last_checkpoint(word):
        return str(last)
    return str(paths.resolve(word)) if _is_path("ckpt", word) else word


def _is_path(word: str, value: str) -> bool:
    """Whether a value names a file, not a checkpoint or known weights."""
    if not value or value in (rules.NO_WEIGHTS, *rules.WEIGHTS):
        return False
    if word == "ckpt" and (value.startswith(paths.HUB) or paths.is_model_folder(value)):
        return not value.startswith(paths.HUB)
    ending = paths.CHECKPOINT if word == "ckpt" and not value.endswith((paths.CHECKPOINT, ".json")) else ""
    return Path(value).name != value or paths.resolve(value + ending).is_file()


def merge(
    run: str, before: Mapping[str, Any], given: Mapping[str, Scalar], base: Mapping[str, Scalar]
) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """All settings of a run in this call, and the defaults that a setting falls back to when it is taken back.

    before: the run's record. ``given``: settings of this call; an empty value takes a setting back. ``base``: defaults
    of a new run on the user's films.
    """
    kept, given = remembered(before), located(given)
    films = given.get("data") or kept.get("data")
    of_schedule = OF_SCHEDULE.get(str(given.get("schedule", "")), {})
    defaults = dict(before.get("defaults", {**base, **of_schedule} if films else {}))
    wanted = {**({} if "settings" in before else defaults), **kept, **given}
    for name in [name for name, value in given.items() if value == ""]:
        del wanted[name]
        wanted |= {name: defaults[name]} if name in defaults else {}
    return {**wanted, "run": run}, defaults


def remembered(before: Mapping[str, Any]) -> dict[str, Scalar]:
    """Settings of earlier calls, from the run's record."""
    return {name: value for name, value in before.get("settings", {}).items() if name != "run"}


def check_names(books: Iterable[Path], names: Iterable[str]) -> None:
    """Raise UserError for a setting that no notebook has, and for the run's name, which ``-p`` does not set."""
    for name in names:
        if name.rpartition(".")[2] == "run":
            raise UserError(f"-p {name}= does not name the run; use --run NAME")
    list(_received({book: parameters(book) for book in books}, dict.fromkeys(names, ""), ()))


def share(
    books: Iterable[Path], settings: Mapping[str, Scalar], kept: Collection[str] = ()
) -> dict[str, dict[str, Scalar]]:
    """Settings of each notebook (by stem), in the types of its defaults.

    kept: settings that are remembered from an earlier call; the message says how to take one back.
    Raises UserError for a setting that no notebook has, with similar names, and for a value of a wrong type.
    """
    defaults = {book: parameters(book) for book in books}
    shared: dict[str, dict[str, Scalar]] = {book.stem: {} for book in defaults}
    for book, name, setting in _received(defaults, settings, kept):
        try:
            shared[book.stem][name] = typed(setting, settings[setting], defaults[book][name])
        except UserError as error:
            raise UserError(f"{error}{_take_back(setting, kept)}") from None
    return shared


def judge(
    books: Iterable[Path],
    settings: Mapping[str, Scalar],
    *,
    kept: Collection[str] = (),
    done: Mapping[str, Mapping[str, Scalar]] | None = None,
    chosen: Collection[Path] | None = None,
) -> dict[str, dict[str, Scalar]]:
    """``share``, with every value checked, those in the notebooks' own cells too.

    kept: as in ``share``. ``done``: parameters of finished notebooks, by stem, which are not judged again.
    ``chosen``: notebooks of this call; of the others no files are looked for.
    Raises UserError for the first wrong name or value.
    """
    books = list(books)
    shared, defaults = share(books, settings, kept), {book: parameters(book) for book in books}
    origins = {(book, name): setting for book, name, setting in _received(defaults, settings, kept)}
    for book in books:
        if (done or {}).get(book.stem) == shared[book.stem]:
            continue
        values = {**defaults[book], **shared[book.stem]}
        if chosen is not None and book not in chosen:
            values = {name: value for name, value in values.items() if name not in FILES}
        for name, fault in rules.faults(part(book), values):
            setting = origins.get((book, name))
            if setting is None:
                raise UserError(f"{book.name}: {fault}")
            raise UserError(f"{setting}{fault.removeprefix(name)}{_take_back(setting, kept)}")
    return shared


def _take_back(setting: str, kept: Collection[str]) -> str:
    if setting not in kept:
        return ""
    return f"; it is remembered from an earlier call, and -p {setting}= gives the default back"


def _received(
    defaults: Mapping[Path, Mapping[str, Scalar]], settings: Mapping[str, Scalar], kept: Collection[str]
) -> Iterator[tuple[Path, str, str]]:
    """(notebook, parameter, setting) of all settings; those of one notebook last, so that they win."""
    for setting in sorted(settings, key=lambda setting: "." in setting):
        prefix, _, name = setting.rpartition(".")
        receivers = [book for book in defaults if prefix in ("", part(book), book.stem) and name in defaults[book]]
        if not receivers:
            unknown = _unknown(setting, defaults)
            raise UserError(_outdated(setting, settings[setting], unknown) if setting in kept else unknown)
        for book in receivers:
            yield book, name, setting


def _outdated(setting: str, value: Scalar, unknown: str) -> str:
    """What to do about a remembered setting that no notebook has any more."""
    prefix, dot, name = setting.rpartition(".")
    new = schedules.OLD_NAMES.get(name)
    if new is None:
        return f"{unknown}; it is remembered from an earlier call, and -p {setting}= forgets it"
    text = re.sub(r"\w+(?==)", lambda word: schedules.OLD_NAMES.get(word[0], word[0]), str(value))
    if new not in rules.RULES:  # it became a word of override
        new, text = "override", f"{new}={text}"
    again = quote(f"{prefix}{dot}{new}={text}")
    return f"the run remembers {setting}, which is now called {new}; add once: -p {setting}= -p {again}"


def common(books: Iterable[Path], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Parameters that all stages' notebooks have, with their values under these settings."""
    own = [parameters(book) for book in books if part(book).startswith("stage")]
    shared = {name: value for name, value in own[0].items() if all(name in other for other in own)} if own else {}
    return {name: typed(name, given.get(name, default), default) for name, default in shared.items() if name not in OWN}


def typed(setting: str, value: Scalar, default: Scalar) -> Scalar:
    """The value in the parameter's type; text is parsed. Raises UserError if the value does not fit the type.

    Of a parameter without a rule the type is that of ``default``.
    """
    name = setting.rpartition(".")[2]
    kind = rules.RULES[name].kind if name in rules.RULES else type(default)
    try:
        if isinstance(value, str) and kind is bool:
            value = TRUTH[value.lower()]
        if isinstance(value, str) and kind in (int, float):
            value = kind(value)
        if not rules.fits(value, kind):
            raise ValueError
    except (KeyError, ValueError):
        expected = f"{schedules.KINDS[kind]} (its default is {json.dumps(default)})"
        raise UserError(f"{setting} is {schedules.shown(value)}; it must be {expected}") from None
    return schedules.to_float(value) if kind is float else value


def _unknown(setting: str, defaults: Mapping[Path, Mapping[str, Scalar]]) -> str:
    names = {name for own in defaults.values() for name in own}
    names |= {f"{part(book)}.{name}" for book, own in defaults.items() for name in own}
    word = setting.rpartition(".")[2]
    new = schedules.OLD_NAMES.get(word, word)
    if new in names and new != word:
        return f"no notebook has the parameter {setting!r} any more; it is now called {new}"
    if "override" in names and new in schedules.SETTABLE:
        called = "" if new == word else f" {word} is now called {new}, and"
        return f"no notebook has the parameter {setting!r};{called} it is a word of override: -p override={new}=VALUE"
    close = difflib.get_close_matches(setting, sorted(names), n=3)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"there are {', '.join(sorted(n for n in names if '.' not in n))}"
    )
    return f"no notebook has the parameter {schedules.shown(setting)}; {hint}"
