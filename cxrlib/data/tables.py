"""Table cells of a CSV: read in the forms that spreadsheets and other programs write, then validated by column.

A CSV may be separated by commas, semicolons or tabs, and be UTF-8 or (with a byte order mark) UTF-16. Whatever is read
in another than NIH's own form is told to ``on_assumed``. A cell that can be read in two ways is refused.

Every check looks at whole columns; where values repeat, at the distinct ones only. Messages name the file, the line
(the header is line 1) and the value of the first wrong row, and count the others.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import UserError, labels

OLDEST = 120
"""Highest valid age in years. Higher ages are typing errors (the file of 2017 has 412) and count as unknown."""

FILE_NAME = r"[^\W_][\w .()+-]*\.(?:png|jpe?g|dcm|dicom)"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
HEADERS = {
    "Image Index": "image",
    "Finding Labels": "finding_labels",
    "Follow-up #": "follow_up",
    "Patient ID": "patient",
    "Patient Age": "age",
    "Patient Gender": "sex",
    "Patient Sex": "sex",
    "View Position": "view",
}
OPTIONAL = ("follow_up", "age", "sex", "view")
"""Columns that a table may lack. The follow-up is then the film's number among its patient's rows, from 0."""
SEXES = {"M": "M", "MALE": "M", "MAN": "M", "F": "F", "FEMALE": "F", "WOMAN": "F", "": "", "UNKNOWN": ""}
VIEWS = {"PA": "PA", "AP": "AP", "": ""}
UNKNOWN = "unknown"
UNCERTAIN = {UNKNOWN: np.nan, "positive": 1.0, "negative": 0.0}
"""What a label of -1, which the reader of the report was not sure of, may count as."""

NOT_SURE = {"-1", "-1.0", "-1,0"}
NOT_STATED = {"", "NAN"}
ON_OR_OFF = {"0": 0, "0.0": 0, "0,0": 0, "FALSE": 0, "1": 1, "1.0": 1, "1,0": 1, "TRUE": 1}

_AGE = r"(?P<number>\d{1,4})(?:\.0+|,0{1,2})?(?P<unit>[YMD]?)"
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}

Refuse = Callable[[Path, pd.Series, np.ndarray, str, str], None]
"""Handler of wrong cells: (file, column, wrong rows (N,) bool, header of the column, advice for the user)."""

Assume = Callable[[str, list], None]
"""Handler of what was assumed: (what, cases)."""


def refuse_row(csv: Path, column: pd.Series, wrong: np.ndarray, header: str, advice: str) -> None:
    """Raise UserError for the first row where ``wrong`` is True, if there is one."""
    if wrong.any():
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise UserError(f"{csv}, {first_line(column, wrong)}{more}: {header} {column[wrong].iloc[0]!r}; {advice}")


def keep_silent(what: str, cases: list) -> None:
    """Handler that tells nobody what was assumed."""


def first_line(column: pd.Series, wrong: np.ndarray) -> str:
    """Line of the first wrong row, such as "line 17". The header is line 1."""
    return f"line {column.index[int(np.argmax(wrong))] + 2}"


def read_text(path: Path, on_assumed: Assume = keep_silent) -> str:
    """Text of a file (UTF-8, or UTF-16 with a byte order mark or without; gzip if so named), line ends as they are.

    Raises UserError if it cannot be read or is not text.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from None
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    unmarked = "" if marked else _utf_16_without_mark(data)
    try:
        text = data.decode("utf-16" if marked else unmarked or "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error}); save it as UTF-8, or download it again") from None
    if "\0" in text:
        raise UserError(f"{path} is not text; save it as UTF-8, or download it again")
    if marked or unmarked:
        on_assumed("file in UTF-16" + (" without a byte order mark" if unmarked else ""), [path.name])
    return text


def _utf_16_without_mark(data: bytes) -> str:
    """Kind of UTF-16 without a mark, else "". Every second byte of the first line is then zero, and no other is."""
    for kind, end, zeros, others in (("utf-16-le", b"\n\0", 1, 0), ("utf-16-be", b"\0\n", 0, 1)):
        start = data[:65_536]
        line = start[: start.find(end) & ~1] if end in start else b""
        if line and len(data) % 2 == 0 and not any(line[zeros::2]) and all(line[others::2]):
            return kind
    return ""


def read_cells(
    file: Path, *, rows: bool = True, on_wrong: Refuse = refuse_row, on_assumed: Assume = keep_silent
) -> pd.DataFrame:
    """Cells of a CSV as text. The index is the line number minus 2. Blank lines are dropped.

    ``attrs["cut"]`` is True if the last line has no end, as in a file that was cut off. A row with more or fewer cells
    than the header is wrong; empty cells at the end do not count.
    Raises UserError if the CSV is not readable or, with ``rows``, has no rows.
    """
    text = read_text(file, on_assumed)
    if not text.strip():
        raise UserError(f"{file} is empty; download it again")
    separator = find_separator(text, file)
    try:
        widths = np.fromiter(map(len, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), int)
        table = pd.read_csv(
            io.StringIO(text, newline=""),
            sep=separator,
            header=None,
            names=range(widths.max()),
            dtype=str,
            keep_default_na=False,
            na_values=[],
            index_col=False,
            skip_blank_lines=False,
        ).fillna("")
    except (pd.errors.ParserError, csv.Error, ValueError) as error:
        raise UserError(f"{file} is not a readable CSV ({str(error).strip().splitlines()[-1]})") from None
    if separator != ",":
        on_assumed(f"table separated by {SEPARATORS[separator]}", [file.name])
    header = [cell.strip() for cell in table.iloc[0, : widths[0]]]
    table = table.iloc[1:].set_axis(table.index[1:] - 1)
    filled = (table != "").any(axis=1).to_numpy()
    if rows and not filled.any():
        raise UserError(f"{file} has a header but no rows; download it again")
    widths, table = widths[1 : len(table) + 1][filled], table[filled]
    named = max((i + 1 for i, name in enumerate(header) if name), default=0)
    wrong = (widths < named) | (table.iloc[:, len(header) :] != "").any(axis=1).to_numpy()
    advice = f"a row needs {named} cells, as the header has; restore the line"
    on_wrong(file, table[0], wrong, "row", advice)
    table = table.iloc[:, : len(header)].set_axis(header, axis=1)
    table.attrs["cut"] = not text.endswith(("\n", "\r"))
    return table


def refuse_ragged(rows: Iterable[tuple[int, list[str]]], width: int, file: Path) -> None:
    """Raise UserError for the first row, as (line, cells), with more or fewer cells than the header's ``width``.

    Empty rows do not count.
    """
    for line, row in rows:
        if any(row) and len(row) != width:
            shown = ",".join(row)[:60]
            raise UserError(
                f"{file}, line {line}: row {shown!r} has {len(row)} cells; a row needs {width}, as the header has; "
                "restore the line, or put a text with separators in quotes"
            )


def find_separator(text: str, file: Path) -> str:
    """Separator of a table's cells: the one that gives the header most known names. Raises UserError for a tie."""
    header = re.match(r"[^\r\n]*", text)[0]
    known = {name: sum(map(_is_known, next(csv.reader([header], delimiter=name), []))) for name in SEPARATORS}
    best = [name for name in SEPARATORS if known[name] == max(known.values()) and name in header]
    if max(known.values()) and len(best) > 1:
        words = " and by ".join(SEPARATORS[name] for name in best)
        raise UserError(f"{file}: the header is separated by {words}; save the table with one separator")
    return max(best or SEPARATORS, key=header.count)


def film_columns(cells: pd.DataFrame, file: Path, on_assumed: Assume = keep_silent) -> pd.DataFrame:
    """The known columns of a table of films, named as in ``HEADERS`` and ``labels.LABELS``.

    Those in ``OPTIONAL`` may be absent. Labels are in ``finding_labels``, or in a column for each finding. Raises
    UserError, which names the columns found and those needed, if a column is absent or is there twice.
    """
    found = [_KNOWN.get(_key(name), "") for name in cells.columns]
    absent = [name for name in dict.fromkeys(HEADERS.values()) if name not in (*found, *OPTIONAL)]
    if "finding_labels" in absent and set(found) & {*labels.FINDINGS}:
        absent += [name for name in labels.FINDINGS if name not in found]
        absent.remove("finding_labels")
    if absent:
        header_of = {name: header for header, name in reversed(HEADERS.items())}
        names = ", ".join(repr(header_of.get(name, name)) for name in absent)
        shown = [name[:40] for name in cells.columns if name][:20]
        raise UserError(
            f"{file} has no column {names}; it has {', '.join(map(repr, shown)) or 'none with a name'}. A table needs "
            "Image Index, Finding Labels and Patient ID (or, for Finding Labels, a column of 0 and 1 for each of the "
            "14 findings); it may have Follow-up #, Patient Age, Patient Gender and View Position"
        )
    twice = [name for name in dict.fromkeys(found) if name and found.count(name) > 1]
    if twice:
        both = [header for header, name in zip(cells.columns, found, strict=True) if name == twice[0]]
        raise UserError(f"{file} has a column twice: {' and '.join(map(repr, both))}; remove the wrong one")
    exact = {name: header for header, name in reversed(_EXACT.items())}
    pairs = zip(cells.columns, found, strict=True)
    renamed = [f"{header!r} as {exact[name]}" for header, name in pairs if name and header not in _EXACT]
    on_assumed("columns named in another way", renamed)
    return cells.set_axis(found, axis=1).loc[:, [bool(name) for name in found]]


def distinct_values(column: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Codes (N,) of the rows and the distinct values, stripped. There are far fewer values than rows to validate."""
    codes, values = pd.factorize(column)
    return codes, pd.Series(values, dtype="str").str.strip()


def parse_image_names(column: pd.Series, csv: Path, unique: bool = True, on_wrong: Refuse = refuse_row) -> pd.Series:
    valid = column.str.fullmatch(FILE_NAME, case=False).to_numpy(bool)
    on_wrong(csv, column, ~valid, "Image Index", "expected a plain file name such as 00000001_000.png")
    if unique:
        duplicates = column.duplicated().to_numpy()
        on_wrong(csv, column, duplicates, "Image Index", "a film must have one row only; delete the others")
    return column


def parse_integers(
    column: pd.Series, csv: Path, header: str, on_wrong: Refuse = refuse_row, on_assumed: Assume = keep_silent
) -> np.ndarray:
    """Whole numbers, (N,) int64. A spreadsheet or pandas may have written 75 as ``75.0`` or ``75,0``."""
    codes, values = distinct_values(column)
    whole = values.str.extract(r"^([0-9]{1,12})(?:[.,]0{1,2})?$", expand=False)
    valid = whole.notna().to_numpy()
    on_wrong(csv, column, ~valid[codes], header, "expected a whole number of 0 or more")
    on_assumed(f"{header} with decimals", _changes(values[valid], whole[valid]))
    return whole.where(valid, "0").astype("int64").to_numpy()[codes]


def parse_ages(
    column: pd.Series, csv: Path, on_wrong: Refuse = refuse_row, on_assumed: Assume = keep_silent
) -> np.ndarray:
    """Ages in years, float64. The file of 2017 also has 058Y, 013M or 009D. Empty and above ``OLDEST`` become NaN."""
    codes, values = distinct_values(column)
    parts = values.str.upper().str.extract(f"^(?:{_AGE})$")
    number = pd.to_numeric(parts["number"], errors="coerce").to_numpy(float)
    wrong = np.isnan(number) & (values != "").to_numpy()
    on_wrong(csv, column, wrong[codes], "Patient Age", "expected years such as 58 or 058Y")
    with_comma = values.str.contains(",", regex=False).to_numpy() & ~wrong
    on_assumed("Patient Age with a decimal comma", [f"{value!r}" for value in values[with_comma]])
    years = number * parts["unit"].map(_YEARS).to_numpy(float)
    return np.where(years > OLDEST, np.nan, years)[codes]


def parse_words(
    column: pd.Series,
    csv: Path,
    header: str,
    meaning: dict[str, str],
    on_wrong: Refuse = refuse_row,
    on_assumed: Assume = keep_silent,
) -> np.ndarray:
    """Meaning of each cell, (N,) object. ``meaning`` has the allowed words in capitals, and what each stands for."""
    codes, values = distinct_values(column)
    words = values.str.upper()
    valid = words.isin(list(meaning)).to_numpy()
    advice = "expected " + " or ".join(value or "nothing" for value in dict.fromkeys(meaning.values()))
    on_wrong(csv, column, ~valid[codes], header, advice)
    read = words.map(meaning).where(valid, words)
    in_other_words = (words != read).to_numpy()
    on_assumed(f"{header} in other words", _changes(values[in_other_words], read[in_other_words]))
    return read.to_numpy(object)[codes]


def parse_labels(
    column: pd.Series, csv: Path, on_wrong: Refuse = refuse_row, on_assumed: Assume = keep_silent
) -> np.ndarray:
    """Label matrix of a column, (N, 15) uint8. Each distinct cell (836 in the dataset) is encoded once."""
    codes, values = pd.factorize(column)
    encoded = np.zeros((len(values), len(labels.LABELS)), np.uint8)
    advice: dict[int, str] = {}
    changed = []
    for i, text in enumerate(values):
        try:
            encoded[i] = labels.encode(text)
        except UserError:
            try:
                encoded[i] = labels.encode(spell_labels(text))
                changed.append(f"{text!r} as {labels.decode(encoded[i])}")
            except UserError as error:
                advice[i] = str(error)
    wrong = np.isin(codes, list(advice))
    on_wrong(csv, column, wrong, "Finding Labels", next(iter(advice.values()), ""))
    on_assumed("labels written in another way", changed)
    return encoded[codes]


def spell_labels(text: str) -> str:
    """Labels of a cell in the dataset's own spelling, with ``|`` between them.

    The cell may have other capitals, and commas, semicolons or spaces between the labels (one of these in a cell). What
    is no label is left as it is.
    """
    separator = next((mark for mark in "|;," if mark in text), None)
    if separator:
        names = [name.strip() for name in text.split(separator)]
    else:
        names = _LABEL.findall(text) if _LABELS_AND_SPACES.fullmatch(text.strip()) else [text.strip()]
    return labels.SEPARATOR.join(_SPELLING.get(_word(name), name) for name in names)


def parse_finding_columns(
    columns: pd.DataFrame,
    csv: Path,
    expected: np.ndarray | None = None,
    uncertain: str = UNKNOWN,
    on_wrong: Refuse = refuse_row,
    on_assumed: Assume = keep_silent,
) -> np.ndarray:
    """Label matrix (N, 15) of a column for each finding: uint8 where all labels are known, else float32 with NaN.

    A cell holds 0 or 1. An empty cell is unknown, and -1 counts as ``uncertain`` says. ``No Finding`` may be absent or
    empty; then it is 1 where all 14 findings are 0, 0 where all are known and one is 1, and else unknown. With
    ``expected`` (N, 15), from the table's ``Finding Labels``, the columns that are there must say the same, and
    ``expected`` is returned. Raises UserError for another ``uncertain``.
    """
    if uncertain not in UNCERTAIN:
        raise UserError(f"uncertain {uncertain!r} is unknown; choose {', '.join(UNCERTAIN)}")
    matrix = np.zeros((len(columns), len(labels.LABELS)), np.float32)
    wrong = np.zeros(matrix.shape, bool)
    for k, name in enumerate(labels.LABELS):
        if name not in columns:
            matrix[:, k] = np.nan
            continue
        matrix[:, k], wrong[:, k] = _label_values(columns[name], UNCERTAIN[uncertain])
        on_wrong(csv, columns[name], wrong[:, k], name, "expected 0, 1, nothing (unknown) or -1 (uncertain)")
        if expected is not None:
            other = labels.differ(matrix[:, k], expected[:, k]) & ~wrong[:, k]
            on_wrong(csv, columns[name], other, name, "it contradicts the row's Finding Labels; remove the wrong one")
    if expected is not None:
        return expected
    on_assumed("columns of 0 and 1 in place of Finding Labels", [csv.name])
    if labels.NO_FINDING in columns:
        other = _contradicts_no_finding(matrix) & ~wrong[:, -1]
        advice = "it must be 1 where all 14 findings are 0, and 0 elsewhere"
        on_wrong(csv, columns[labels.NO_FINDING], other, labels.NO_FINDING, advice)
    else:
        on_assumed("No Finding is where all 14 findings are 0", [csv.name])
    concluded = labels.no_finding(matrix[:, :-1])
    matrix[:, -1] = np.where(np.isnan(concluded), matrix[:, -1], concluded)
    unknown = np.isnan(matrix)
    if unknown.any():
        counts = zip(labels.LABELS, unknown.sum(0), strict=True)
        on_assumed("labels unknown", [f"{name} of {count:,} films" for name, count in counts if count])
    return matrix if unknown.any() else matrix.astype(np.uint8)


def _label_values(column: pd.Series, not_sure: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a column, (N,) of 0, 1 and NaN, and whether a cell is no label, (N,) bool; its value is 0."""
    codes, values = distinct_values(column)
    values = values.str.upper()
    read = values.map(ON_OR_OFF | dict.fromkeys(NOT_SURE, not_sure)).to_numpy(np.float64)
    wrong = ~values.isin([*ON_OR_OFF, *NOT_SURE, *NOT_STATED]).to_numpy(bool)
    return np.where(wrong, 0, read)[codes], wrong[codes]


def _contradicts_no_finding(matrix: np.ndarray) -> np.ndarray:
    """Whether a film's "No Finding" contradicts its findings, (N,) bool; labels (N, 15) of 0, 1 and NaN."""
    stated, present = matrix[:, -1], (matrix[:, :-1] == 1).any(1)
    return ((stated == 1) & present) | ((stated == 0) & (matrix[:, :-1] == 0).all(1))


def parse_box_findings(column: pd.Series, csv: Path, on_wrong: Refuse = refuse_row) -> np.ndarray:
    codes, values = distinct_values(column)
    names = values.map(lambda name: labels.ALIASES.get(name, name))
    on_wrong(
        csv, column, ~names.isin(labels.FINDINGS).to_numpy()[codes], "Finding Label", "expected one of the 14 findings"
    )
    return names.to_numpy(object)[codes]


def parse_coordinates(
    column: pd.Series, csv: Path, name: str, on_wrong: Refuse = refuse_row, on_assumed: Assume = keep_silent
) -> np.ndarray:
    """Numbers of pixels, (N,) float64, with a decimal point, or with a decimal comma throughout the column.

    ``1,024`` may be read in two ways. It is a decimal comma only if another cell of the column must have one.
    """
    text = column.str.strip()
    commas = text.str.fullmatch(r"-?\d+,\d+").to_numpy(bool)
    thousands = text.str.fullmatch(r"-?[1-9]\d{0,2},\d{3}").to_numpy(bool)
    if (commas & ~thousands).any() and not text.str.contains(".", regex=False).any():
        on_assumed(f"decimal commas in box {name}", [f"{cell!r}" for cell in text[commas].head(1)])
        text = text.str.replace(",", ".", regex=False)
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(float)
    on_wrong(csv, column, ~np.isfinite(numbers), f"box {name}", "expected a number of pixels such as 225.08")
    if name in "wh":
        on_wrong(csv, column, numbers <= 0, f"box {name}", "expected more than 0")
    return numbers


def _key(header: str) -> str:
    """Header without case, blanks and marks: ``Follow-up #`` and ``follow_up`` are the same column."""
    return re.sub(r"[\W_]+", "", header).casefold()


def _word(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label.strip()).casefold()


def _changes(values: pd.Series, read: pd.Series) -> list[str]:
    changed = (values != read).to_numpy()
    return [f"{a!r} as {b or 'unknown'}" for a, b in zip(values[changed], read[changed], strict=True)]


def _is_known(header: str) -> bool:
    return _key(header) in _KNOWN or _key(header) == "findinglabel"  # the box file has Finding Label


_EXACT = HEADERS | {name: name for name in labels.LABELS} | labels.ALIASES
_KNOWN = {_key(header): name for header, name in _EXACT.items()}
_SPELLING = {_word(name): name for name in labels.LABELS} | {_word(a): b for a, b in labels.ALIASES.items()}
_LABEL = re.compile("|".join(word.replace(" ", "[ _-]") + r"(?!\S)" for word in _SPELLING), re.IGNORECASE)
_LABELS_AND_SPACES = re.compile(rf"(?:(?:{_LABEL.pattern})\s*)+", re.IGNORECASE)
