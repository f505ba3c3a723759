"""CSV files of the NIH download as columns of validated values.

Checks work on whole columns, and on distinct values where values repeat. A message gives the file, the line (the header
is line 1), the value of the first wrong row and the number of wrong rows.
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
"""Highest valid age in years. Higher ages are typing errors (the file of 2017 has 412) and count as unknown."""

FILE_NAME = r"[^\W_][\w .()+-]*\.(?:png|jpe?g)"
_AGE = r"(?P<number>\d{1,4})(?:\.0+)?(?P<unit>[YMD]?)"
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}


def cells(csv: Path, *, rows: bool = True) -> pd.DataFrame:
    """Cells of a CSV as text. The index is the line number minus 2. Blank lines are dropped.

    Raises UserError if the CSV is not readable or, with ``rows``, has no rows.
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
        raise UserError(f"{csv} is not a readable CSV ({str(error).strip().splitlines()[-1]})") from None
    except (OSError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{csv} cannot be read ({error}); download it again") from None
    table = table.fillna("")
    table = table[(table.iloc[:, 0] != "") | (table.iloc[:, 1:] != "").any(axis=1)]
    if rows and table.empty:
        raise UserError(f"{csv} has a header but no rows; download it again")
    return table


Refuse = Callable[[Path, pd.Series, np.ndarray, str, str], None]
"""Handler of wrong cells: (file, column, wrong rows (N,) bool, header of the column, advice for the user)."""


def refuse(csv: Path, column: pd.Series, wrong: np.ndarray, header: str, advice: str) -> None:
    """Raise UserError for the first row where ``wrong`` is True, if there is one."""
    if wrong.any():
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise UserError(f"{csv}, {first(column, wrong)}{more}: {header} {column[wrong].iloc[0]!r}; {advice}")


def first(column: pd.Series, wrong: np.ndarray) -> str:
    """Line of the first wrong row, such as "line 17". The header is line 1."""
    return f"line {column.index[int(np.argmax(wrong))] + 2}"


def by_value(column: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Codes (N,) of the rows and the distinct values, stripped. There are far fewer values than rows to validate."""
    codes, values = pd.factorize(column)
    return codes, pd.Series(values, dtype="str").str.strip()


def image_names(column: pd.Series, csv: Path, unique: bool = True, on_wrong: Refuse = refuse) -> pd.Series:
    valid = column.str.fullmatch(FILE_NAME, case=False).to_numpy(bool)
    on_wrong(csv, column, ~valid, "Image Index", "expected a plain file name such as 00000001_000.png")
    if unique:
        duplicates = column.duplicated().to_numpy()
        on_wrong(csv, column, duplicates, "Image Index", "a film must have one row only; delete the others")
    return column


def integers(column: pd.Series, csv: Path, header: str, on_wrong: Refuse = refuse) -> np.ndarray:
    codes, values = by_value(column)
    valid = values.str.fullmatch(r"[0-9]{1,12}").to_numpy(bool)
    on_wrong(csv, column, ~valid[codes], header, "expected a whole number of 0 or more")
    return values.where(valid, "0").astype("int64").to_numpy()[codes]


def ages(column: pd.Series, csv: Path, on_wrong: Refuse = refuse) -> np.ndarray:
    """Ages in years, float64. The file of 2017 also has 058Y, 013M or 009D. Empty and above ``OLDEST`` become NaN."""
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
    """Label matrix of a column, (N, 15) uint8. Each distinct cell (836 in the dataset) is encoded once."""
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
