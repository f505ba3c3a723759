"""Exclusion list: a CSV of films to leave out of a run, and what it left out.

The list has a column ``image`` and may have a column ``reason``; names alone, one per line, are a list too. It comes
from ``cxr check``, from the reading room, from a spreadsheet or from a publication. It may be UTF-8 or UTF-16, with
commas, semicolons or tabs, with or without a header. A name may have folders before it, or no ending.

The split is drawn from all films, and the listed ones are left out of its parts afterwards. So two runs, with and
without a list, have the same patients in each part, and can be compared.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cxrlib import UserError, paths, provenance
from cxrlib.data import images, records, splits, tables

NO_REASON = "no reason given"
IMAGE_HEADERS = ("image", "imageindex", "imageid", "imagename", "film", "filename", "file", "name", "path")
"""Headers of the column of names, without case, blanks and marks; the first in this order counts."""
REASON_HEADERS = ("reason", "reasons", "why", "comment", "comments", "note", "notes", "remark", "issue", "problem")
LONGEST = 200
"""Characters of a reason that are kept."""


@dataclass(frozen=True)
class Excluded:
    """Films that a list leaves out of a data folder. Without a list it is empty, and ``file`` is "".

    ``names``: films of the folder that are on the list · ``reasons``: number of these films by reason, the most
    frequent first · ``unknown``: listed names that are no film of the folder.
    """

    file: str = ""
    sha256: str = ""
    names: frozenset[str] = frozenset()
    reasons: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    def without(self, films: pd.DataFrame) -> pd.DataFrame:
        """The films that are not listed. ``attrs["missing"]`` loses the listed ones too."""
        if not self.names:
            return films
        left = films[~films["image"].isin(self.names)].reset_index(drop=True)
        left.attrs["missing"] = [name for name in films.attrs.get("missing", []) if name not in self.names]
        return left

    def without_in_parts(self, parts: splits.Parts) -> splits.Parts:
        """The parts without the listed films. Raises UserError if a part is empty then."""
        if not self.names:
            return parts
        left = {name: self.without(getattr(parts, name)) for name in ("train", "val", "test")}
        for name, films in left.items():
            if films.empty and len(getattr(parts, name)):
                raise UserError(f"{self.file} excludes all {len(getattr(parts, name))} films of the {name} part")
        return replace(parts, **left)

    def doubt(self) -> str:
        """Sentence on listed names that are not in the data; "" if there are none."""
        if not self.unknown:
            return ""
        names = len(self.unknown) + len(self.names)
        return (
            f"{Path(self.file).name}: {len(self.unknown):,} of its {names:,} films are not in the data, "
            f"first {self.unknown[0]}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``run.json``."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "films": len(self.names),
            "reasons": dict(self.reasons),
            "unknown": {"films": len(self.unknown), "first": list(self.unknown[:20])},
        }

    def __str__(self) -> str:
        return "; ".join(filter(None, [in_words(self.as_dict()), self.doubt()])) if self.file else "no film is excluded"


NOTHING = Excluded()
"""What no list leaves out."""


def in_words(excluded: dict[str, Any]) -> str:
    """Sentence on ``Excluded.as_dict``, such as "12 films excluded by bad.csv (8 inverted, 4 no reason given)"."""
    reasons = excluded.get("reasons") or {}
    named = [f"{count:,} {reason}" for reason, count in list(reasons.items())[:3]]
    more = len(reasons) - len(named)
    named += [f"{more} more reasons"] if more > 0 else []
    what = f" ({', '.join(named)})" if [*reasons] not in ([], [NO_REASON]) else ""
    films = int(excluded.get("films", 0))
    name = re.split(r"[/\\]", str(excluded.get("file", "")))[-1]
    return f"{films:,} film{'' if films == 1 else 's'} excluded by {name}{what}"


def read(file: str | Path) -> dict[str, str]:
    """Reasons by the listed names, as they are written; "" where none is given. A name that is there twice counts once.

    Raises UserError if the file is absent or not text, if it has a header without a column of names, or no names.
    """
    path = paths.resolve(file)
    if not path.is_file():
        what = "is a folder; give a CSV" if path.is_dir() else "is not there; give a CSV"
        raise UserError(f"{path} {what} with a column image, and perhaps reason")
    text = tables.read_text(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(tables.SEPARATORS, key=first.count)
    try:
        cells = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines = [(cells.line_num, [cell.strip() for cell in row]) for row in cells]
    except csv.Error as error:
        raise UserError(f"{path} is not a readable CSV ({error})") from None
    lines = [(line, row) for line, row in lines if any(row)]
    rows = [row for _, row in lines]
    if not rows:
        raise UserError(f"{path} is empty; write one film's name per line, or remove exclude")
    image, reason, header = _columns(rows[0], path)
    tables.refuse_ragged(lines[header:] if header else [], len(rows[0]), path)
    listed: dict[str, str] = {}
    for row in rows[header:]:
        name = row[image] if image < len(row) else ""
        if not name:
            raise UserError(f"{path}: the row {separator.join(row)[:80]!r} has no film's name; complete or remove it")
        why = " ".join(row[reason].split())[:LONGEST] if reason is not None and reason < len(row) else ""
        listed[name] = listed.get(name) or why
    return listed


def write(file: Path, reasons: Mapping[str, str]) -> Path:
    """Write a list from reasons by film, atomically: columns image and reason. ``read`` gives the same back."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "reason"])
    rows.writerows([name, " ".join(why.split())] for name, why in reasons.items())
    return paths.write_text(file, text.getvalue())


def _columns(first: list[str], path: Path) -> tuple[int, int | None, int]:
    """Columns of names and reasons, and the number of header rows (0 or 1)."""
    keys = [re.sub(r"[\W_]+", "", cell).casefold() for cell in first]
    image = next((keys.index(name) for name in IMAGE_HEADERS if name in keys), None)
    if image is not None:
        return image, next((keys.index(name) for name in REASON_HEADERS if name in keys), None), 1
    if re.search(r"\d", first[0]):  # a name has a number, and a header has none
        return 0, 1, 0
    shown = ", ".join(repr(cell[:40]) for cell in first[:10])
    raise UserError(f"{path} has no column image; it has {shown}. Name the column of the films' names image")


def find(films: pd.DataFrame, file: str) -> Excluded:
    """The films of a table (with those in ``attrs["missing"]``) that a list leaves out; none for ``file`` "".

    A listed name is a film's own, or differs from it by folders before it or by the ending.
    Raises UserError as ``read``, if no listed name is known, if a name fits several films, or if no film is left.
    """
    if not file:
        return NOTHING
    listed, path = read(file), paths.resolve(file)
    own = [*films["image"], *films.attrs.get("missing", [])]
    known = _places(own)
    found: dict[str, str] = {}
    unknown = []
    for name, reason in listed.items():
        fits = next((known[form] for form in _forms(name) if form in known), ())
        if len(fits) > 1:
            raise UserError(f"{path}: {name} may be {' or '.join(sorted(fits)[:3])}; write the whole name")
        if fits:
            (film,) = fits
            found[film] = found.get(film) or reason
        else:
            unknown.append(name)
    if listed and not found:
        raise UserError(
            f"{path}: no film on this list is in the data ({len(listed):,} listed, first {unknown[0]}); "
            "give a list of these films, or remove exclude"
        )
    if len(found) >= len(set(own)):
        raise UserError(f"{path} excludes all {len(own):,} films; leave some")
    counts = Counter(reason or NO_REASON for reason in found.values())
    return Excluded(str(path), provenance.file_sha256(path), frozenset(found), dict(counts.most_common()), (*unknown,))


def read_films(folder: Path, file: str, *, allow_missing: bool = False, **how: Any) -> pd.DataFrame:
    """All films of a data folder, as ``records.read`` with ``how``; a listed film may lack its file.

    Raises UserError as ``records.read`` and ``find``.
    """
    if not file:
        return records.read(folder, allow_missing=allow_missing, **how)
    films = records.read(folder, allow_missing=True, **how)
    if not allow_missing and not set(films.attrs["missing"]) <= find(films, file).names:
        return records.read(folder, **how)  # raises, and says which films are absent
    return films


def _places(names: list[str]) -> dict[str, set[str]]:
    """Films by each form in which a list may name them. A film's whole name is always its own."""
    places: dict[str, set[str]] = {}
    for name in names:
        for form in _forms(name)[1:]:
            places.setdefault(form, set()).add(name)
    return places | {name: {name} for name in names}


def _forms(name: str) -> list[str]:
    """A name, then without its ending, and both again with ever fewer folders before it: the most exact first."""
    parts = re.split(r"[/\\]", name)
    ends = ["/".join(parts[k:]) for k in range(len(parts))]
    return list(dict.fromkeys([name, *(form for end in ends for form in (end, _stem(end)))]))


def _stem(name: str) -> str:
    return records.stem(name) if name.lower().endswith(images.SUFFIXES) else name
