"""What a run is told: which notebooks there are, which parameters each has, and who gets what.

A setting is ``name=value``, for every notebook that has the parameter, or ``part.name=value`` for one of them, as in
``stage3.lr=1e-4``; a part is a notebook's name without its number. Names and types are checked here, before anything
starts, since papermill only warns of a parameter that a notebook does not have and goes on without it.
"""

import ast
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from cxrlib import paths
from cxrlib.errors import UserError

Scalar = str | int | float | bool

REAL: Mapping[str, Scalar] = {"size": 224, "batch_size": 64, "weights": "IMAGENET1K_V2", "schedule": "modern"}
"""What differs from the notebooks' own defaults (the demo) where films are given."""

SEED: Mapping[str, Scalar] = {**REAL, "batch_size": 128, "schedule": "seed", "weights": "IMAGENET1K_V1"}
"""The same for the original's commands: its own schedule, in which its learning rates make sense."""

FILES = ("data", "ckpt", "weights")
"""Parameters that may name a file, and then mean it as seen from where the user stands."""

OWN = ("lr", "epochs", "loss", "also", "ckpt")
"""Parameters that each stage has its own value of."""

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def chain(folder: Path | None = None) -> list[Path]:
    """The numbered notebooks in their order. Raises UserError where there are none."""
    folder = folder or paths.notebooks()
    books = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not books:
        raise UserError(f"no notebooks in {folder}; run from the project's folder, or set CXR_PROJECT to it")
    return books


def part(book: Path) -> str:
    """``stage3`` for ``03_stage3.ipynb``."""
    return book.stem.partition("_")[2]


def cells(book: Path) -> list[dict]:
    """The notebook's cells as plain data. Raises UserError where the file is no notebook."""
    content = paths.read_json(book)
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise UserError(f"{book} is not a notebook of format 4")
    return content["cells"]


def source(cell: Mapping) -> str:
    return "".join(cell["source"])


def parameters(book: Path) -> dict[str, Scalar]:
    """Names and defaults in the cell tagged ``parameters``: plain scalars only; empty where there is no such cell.

    Raises UserError for a default that is no plain scalar, since neither papermill nor a flag could set it.
    """
    tagged = [cell for cell in cells(book) if "parameters" in cell.get("metadata", {}).get("tags", [])]
    found: dict[str, Scalar] = {}
    for statement in ast.parse(source(tagged[0])).body if tagged else []:
        try:
            (target,) = statement.targets
            value = ast.literal_eval(statement.value)
            if not isinstance(value, Scalar):
                raise TypeError
            found[target.id] = value
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{book}: line {statement.lineno} of the parameters cell is not `name = plain value`"
            ) from None
    return found


def parse(pairs: Iterable[str]) -> dict[str, str]:
    """Turn ``["loss=bce", "stage3.lr=1e-4"]`` into a dict; values stay text until a notebook's default types them."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"-p {pair!r} is not name=value; for example -p stage3.lr=1e-4")
        found[name.strip()] = value.strip()
    return found


def located(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The settings with relative files made absolute, since notebooks run in their own folder."""
    found = dict(settings)
    for name, value in settings.items():
        word = name.rpartition(".")[2]
        if word == "data" and value:
            found[name] = str(paths.resolve(str(value)))
        elif word in FILES and isinstance(value, str) and Path(value).suffix and Path(value).expanduser().is_file():
            found[name] = str(Path(value).expanduser().resolve())
    return found


def share(books: Iterable[Path], settings: Mapping[str, Scalar]) -> dict[str, dict[str, Scalar]]:
    """For each notebook (by stem) the settings that are meant for it, typed as its defaults are.

    Raises UserError for a setting that no notebook has, with names that come close, and for a value of a wrong type.
    """
    books = list(books)
    defaults = {book: parameters(book) for book in books}
    shared: dict[str, dict[str, Scalar]] = {book.stem: {} for book in books}
    for setting, value in sorted(settings.items(), key=lambda item: "." in item[0]):  # the particular over the general
        wanted, _, name = setting.rpartition(".")
        takers = [book for book in books if wanted in ("", part(book), book.stem) and name in defaults[book]]
        if not takers:
            raise UserError(_unknown(setting, defaults))
        for book in takers:
            shared[book.stem][name] = typed(setting, value, defaults[book][name])
    return shared


def common(books: Iterable[Path], given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The parameters that the stages' notebooks share, with the values that these settings give them."""
    own = [parameters(book) for book in books if part(book).startswith("stage")]
    shared = {name: value for name, value in own[0].items() if all(name in other for other in own)} if own else {}
    return {name: typed(name, given.get(name, default), default) for name, default in shared.items() if name not in OWN}


def typed(setting: str, value: Scalar, default: Scalar) -> Scalar:
    """The value in the type of ``default``; text is read as that type. Raises UserError where it cannot be."""
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
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
        raise UserError(f"{setting} = {value!r} is not {wanted} (its default is {json.dumps(default)})") from None
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
