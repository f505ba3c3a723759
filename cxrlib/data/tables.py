"""CSV files of the NIH download as columns of checked values.

Every check looks at whole columns; where values repeat, at the distinct ones only. Messages name the file, the line
(the header is line 1) and the value of the first wrong row, and count the others.
"""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cxrlib import labels
from cxrlib.errors import UserError

OLDEST = 120
"""Ages above are typing errors (the file of 2017 has 412 years) and count as unknown."""

FILE_NAME = r"[^\W_][\w .()+-]*\.(?:png|jpe?g)"
_AGE = r"(?P<number>\d{1,4})(?:\.0+)?(?P<unit>[YMD]?)"
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}


def cells(csv: Path, *, rows: bool = True) -> pd.DataFrame:
    """All cells as text; the index is the line number less 2. Blank lines are dropped.

    Raises UserError where it is no readable CSV or, with ``rows``, has none.
    """
    try:
        table = pd.read_csv(
            csv,
            dtype=str,
            keep_default_na=False,
            na_values=[],
            index_col=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            usecols=lambda name: True,
        )
    except pd.errors.EmptyDataError:
        raise UserError(f"{csv} is empty; download it again") from None
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{csv} is no readable CSV ({str(error).strip().splitlines()[-1]})") from None
    except (OSError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{csv} cannot be read ({error}); download it again") from None
    table = table.fillna("")
    table = table[(table.iloc[:, 0] != "") | (table.iloc[:, 1:] != "").any(axis=1)]
    if rows and table.empty:
        raise UserError(f"{csv} has a header and no rows; download it again")
    return table


Refuse = Callable[[Path, pd.Series, np.ndarray, str, str], None]
"""What to do about wrong cells: (file, column, which rows are wrong, the column's header, what to do about it)."""


def refuse(csv: Path, column: pd.Series, wrong: np.ndarray, header: str, advice: str) -> None:
    """Raise UserError for the first row where ``wrong`` is True; return where there is none."""
    if wrong.any():
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise UserError(f"{csv}, {first(column, wrong)}{more}: {header} {column[wrong].iloc[0]!r}; {advice}")


def first(column: pd.Series, wrong: np.ndarray) -> str:
    """ "line 17": where the first wrong row stands in the file, its header being line 1."""
    return f"line {column.index[int(np.argmax(wrong))] + 2}"


def by_value(column: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Codes (N,) into the distinct values, which are far fewer than the rows and are what is validated."""
    codes, values = pd.factorize(column)
    return codes, pd.Series(values, dtype="str").str.strip()


def image_names(column: pd.Series, csv: Path, unique: bool = True, on_wrong: Refuse = refuse) -> pd.Series:
    fine = column.str.fullmatch(FILE_NAME, case=False).to_numpy(bool)
    on_wrong(csv, column, ~fine, "Image Index", "expected a plain file name such as 00000001_000.png")
    if unique:
        twice = column.duplicated().to_numpy()
        on_wrong(csv, column, twice, "Image Index", "a film stands in one row only; delete the others")
    return column


def integers(column: pd.Series, csv: Path, header: str, on_wrong: Refuse = refuse) -> np.ndarray:
    codes, values = by_value(column)
    fine = values.str.fullmatch(r"\d{1,12}", flags=0).to_numpy(bool) & values.map(str.isascii).to_numpy(bool)
    on_wrong(csv, column, ~fine[codes], header, "expected a whole number of 0 or more")
    return values.where(fine, "0").astype("int64").to_numpy()[codes]


def ages(column: pd.Series, csv: Path, on_wrong: Refuse = refuse) -> np.ndarray:
    """Years as float64; the file of 2017 also writes 058Y, 013M or 009D. Empty and above ``OLDEST`` give NaN."""
    codes, values = by_value(column)
    parts = values.str.upper().str.extract(f"^(?:{_AGE})$")
    number = pd.to_numeric(parts["number"], errors="coerce").to_numpy(float)
    wrong = np.isnan(number) & (values != "").to_numpy()
    on_wrong(csv, column, wrong[codes], "Patient Age", "expected years such as 58 or 058Y")
    years = number * parts["unit"].map(_YEARS).to_numpy(float)
    return np.where(years > OLDEST, np.nan, years)[codes]


def choice(
    column: pd.Series, csv: Path, header: str, allowed: tuple[str, ...], on_wrong: Refuse = refuse
) -> np.ndarray:
    codes, values = by_value(column)
    values = values.str.upper()
    advice = "expected " + " or ".join(value or "nothing" for value in allowed)
    on_wrong(csv, column, ~values.isin(allowed).to_numpy()[codes], header, advice)
    return values.to_numpy(object)[codes]


def label_rows(column: pd.Series, csv: Path, on_wrong: Refuse = refuse) -> np.ndarray:
    """(N, 15) uint8; each distinct cell (836 in the whole dataset) is encoded once."""
    codes, values = pd.factorize(column)
    encoded = np.zeros((len(values), len(labels.LABELS)), np.uint8)
    advice: dict[int, str] = {}
    for i, text in enumerate(values):
        try:
            encoded[i] = labels.encode(text)
        except UserError as error:
            advice[i] = str(error)
    wrong = np.isin(codes, list(advice))
    on_wrong(csv, column, wrong, "Finding Labels", next(iter(advice.values()), ""))
    return encoded[codes]


def box_findings(column: pd.Series, csv: Path, on_wrong: Refuse = refuse) -> np.ndarray:
    codes, values = by_value(column)
    names = values.map(lambda name: labels.ALIASES.get(name, name))
    on_wrong(
        csv, column, ~names.isin(labels.FINDINGS).to_numpy()[codes], "Finding Label", "expected one of the 14 findings"
    )
    return names.to_numpy(object)[codes]


def coordinates(column: pd.Series, csv: Path, name: str, on_wrong: Refuse = refuse) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(float)
    on_wrong(csv, column, ~np.isfinite(numbers), f"box {name}", "expected a number of pixels")
    if name in "wh":
        on_wrong(csv, column, numbers <= 0, f"box {name}", "expected more than 0")
    return numbers
