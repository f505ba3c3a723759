"""Settings of a run: the notebooks, their parameters, and the values that each notebook gets.

A setting is ``name=value``, for every notebook that has the parameter, or ``part.name=value`` for one notebook, as in
``stage3.lr=1e-4``; a part is a notebook's name without its number. Names and types are checked here before anything
starts, because papermill only warns of a parameter that a notebook does not have.
"""

import ast
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from cxrlib import UserError, paths

Scalar = str | int | float | bool

REAL: Mapping[str, Scalar] = {"size": 224, "batch_size": 64, "weights": "IMAGENET1K_V2", "schedule": "modern"}
"""Defaults for the user's films, where they differ from the notebooks' own defaults (the demo)."""

SEED: Mapping[str, Scalar] = {**REAL, "batch_size": 128, "schedule": "seed", "weights": "IMAGENET1K_V1"}
"""The same for the original program's commands, with its own schedule, to which its learning rates belong."""

FILES = ("data", "ckpt", "weights")
"""Parameters that may name a file, relative to the user's current folder."""

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


def located(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings with absolute file paths, since notebooks run in their own folder."""
    absolute = dict(settings)
    for name, value in settings.items():
        word = name.rpartition(".")[2]
        if word == "data" and value:
            absolute[name] = str(paths.resolve(str(value)))
        elif word in FILES and isinstance(value, str) and Path(value).suffix and Path(value).expanduser().is_file():
            absolute[name] = str(Path(value).expanduser().resolve())
    return absolute


def share(books: Iterable[Path], settings: Mapping[str, Scalar]) -> dict[str, dict[str, Scalar]]:
    """Settings of each notebook (by stem), in the types of its defaults.

    Raises UserError for a setting that no notebook has, with similar names, and for a value of a wrong type.
    """
    books = list(books)
    defaults = {book: parameters(book) for book in books}
    shared: dict[str, dict[str, Scalar]] = {book.stem: {} for book in books}
    for setting, value in sorted(settings.items(), key=lambda item: "." in item[0]):  # those of one notebook last
        prefix, _, name = setting.rpartition(".")
        receivers = [book for book in books if prefix in ("", part(book), book.stem) and name in defaults[book]]
        if not receivers:
            raise UserError(_unknown(setting, defaults))
        for book in receivers:
            shared[book.stem][name] = typed(setting, value, defaults[book][name])
    return shared


def common(books: Iterable[Path], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Parameters that all stages' notebooks have, with their values under these settings."""
    own = [parameters(book) for book in books if part(book).startswith("stage")]
    shared = {name: value for name, value in own[0].items() if all(name in other for other in own)} if own else {}
    return {name: typed(name, given.get(name, default), default) for name, default in shared.items() if name not in OWN}


def typed(setting: str, value: Scalar, default: Scalar) -> Scalar:
    """The value in the type of ``default``; text is parsed. Raises UserError if the value does not fit the type."""
    kind = type(default)
    try:
        if isinstance(value, str) and kind is bool:
            return TRUTH[value.lower()]
        if isinstance(value, str) and kind in (int, float):
            value = kind(value)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise ValueError
    except (KeyError, ValueError):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise UserError(f"{setting} = {value!r} is not {expected} (its default is {json.dumps(default)})") from None
    return value


def _unknown(setting: str, defaults: Mapping[Path, Mapping[str, Scalar]]) -> str:
    names = {name for own in defaults.values() for name in own}
    names |= {f"{part(book)}.{name}" for book, own in defaults.items() for name in own}
    close = difflib.get_close_matches(setting, sorted(names), n=3)
    hint = (
        f"did you mean {' or '.join(close)}?"
        if close
        else f"there are {', '.join(sorted(n for n in names if '.' not in n))}"
    )
    return f"no notebook has the parameter {setting!r}; {hint}"
