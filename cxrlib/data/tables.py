"""CSV files of the NIH download as columns of checked values.

Every check looks at whole columns; where values repeat, at the distinct ones only. Messages name the file, the line
(the header is line 1) and the value of the first wrong row, and count the others.
"""

import gzip
import zlib
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


def cells(csv: Path) -> pd.DataFrame:
    """All cells as text; the index is the line number less 2. Blank lines are dropped."""
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
    if table.empty:
        raise UserError(f"{csv} has a header and no rows; download it again")
    return table


def refuse(csv: Path, column: pd.Series, wrong: np.ndarray, header: str, expected: str) -> None:
    """Raise UserError for the first row where ``wrong`` is True; return where there is none."""
    if wrong.any():
        at = int(np.argmax(wrong))
        more = f" ({int(wrong.sum())} such rows)" if wrong.sum() > 1 else ""
        raise UserError(f"{csv}, line {column.index[at] + 2}: {header} {column.iloc[at]!r}{more}; expected {expected}")


def by_value(column: pd.Series) -> tuple[np.ndarray, pd.Series]:
    """Codes (N,) into the distinct values, which are far fewer than the rows and are what is validated."""
    codes, values = pd.factorize(column)
    return codes, pd.Series(values, dtype="str").str.strip()


def image_names(column: pd.Series, csv: Path, unique: bool = True) -> pd.Series:
    fine = column.str.fullmatch(FILE_NAME, case=False).to_numpy(bool)
    refuse(csv, column, ~fine, "Image Index", "a plain file name such as 00000001_000.png")
    if unique:
        refuse(csv, column, column.duplicated().to_numpy(), "Image Index", "each film once")
    return column


def integers(column: pd.Series, csv: Path, header: str) -> np.ndarray:
    codes, values = by_value(column)
    fine = values.str.fullmatch(r"\d{1,12}", flags=0).to_numpy(bool) & values.map(str.isascii).to_numpy(bool)
    refuse(csv, column, ~fine[codes], header, "a whole number of 0 or more")
    return values.astype("int64").to_numpy()[codes]


def ages(column: pd.Series, csv: Path) -> np.ndarray:
    """Years as float64; the file of 2017 also writes 058Y, 013M or 009D. Empty and above ``OLDEST`` give NaN."""
    codes, values = by_value(column)
    parts = values.str.upper().str.extract(f"^(?:{_AGE})$")
    number = pd.to_numeric(parts["number"], errors="coerce").to_numpy(float)
    wrong = np.isnan(number) & (values != "").to_numpy()
    refuse(csv, column, wrong[codes], "Patient Age", "years such as 58 or 058Y")
    years = number * parts["unit"].map(_YEARS).to_numpy(float)
    return np.where(years > OLDEST, np.nan, years)[codes]


def choice(column: pd.Series, csv: Path, header: str, allowed: tuple[str, ...]) -> np.ndarray:
    codes, values = by_value(column)
    values = values.str.upper()
    expected = " or ".join(value or "nothing" for value in allowed)
    refuse(csv, column, ~values.isin(allowed).to_numpy()[codes], header, expected)
    return values.to_numpy(object)[codes]


def label_rows(column: pd.Series, csv: Path) -> np.ndarray:
    """(N, 15) uint8; each distinct cell (836 in the whole dataset) is encoded once."""
    codes, values = pd.factorize(column)
    encoded = np.zeros((len(values), len(labels.LABELS)), np.uint8)
    for i, text in enumerate(values):
        try:
            encoded[i] = labels.encode(text)
        except UserError as error:
            line = column.index[int(np.argmax(codes == i))] + 2
            raise UserError(f"{csv}, line {line}: {error}") from None
    return encoded[codes]


def box_findings(column: pd.Series, csv: Path) -> np.ndarray:
    codes, values = by_value(column)
    names = values.map(lambda name: labels.ALIASES.get(name, name))
    refuse(csv, column, ~names.isin(labels.FINDINGS).to_numpy()[codes], "Finding Label", "one of the 14 findings")
    return names.to_numpy(object)[codes]


def coordinates(column: pd.Series, csv: Path, name: str) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(float)
    refuse(csv, column, ~np.isfinite(numbers), f"box {name}", "a number of pixels")
    if name in "wh":
        refuse(csv, column, numbers <= 0, f"box {name}", "more than 0")
    return numbers
