"""Browser of films for a notebook: choose finding, view position and sex."""

import base64
import io
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from cxrlib import labels, theme
from cxrlib.data import images
from cxrlib.errors import UserError

ANY = "any"
SIDE, ACROSS = 180, 4  # side of a film on the grid in pixels; films in a row
CAPTION, WIDTH = 30, 31  # height of a caption in pixels; characters in a line of it


def choose(films: pd.DataFrame, finding: str = ANY, view: str = ANY, sex: str = ANY) -> pd.DataFrame:
    """The films with this finding (one of the 15 labels), view position ("PA", "AP") and sex ("F", "M")."""
    chosen = np.ones(len(films), bool)
    if finding != ANY:
        chosen &= films[labels.LABELS[labels.column(finding)]].to_numpy() == 1
    for name, value in (("view", view), ("sex", sex)):
        if value != ANY:
            chosen &= films[name].to_numpy() == value
    return films[chosen]


def draw(films: pd.DataFrame, n: int = 8) -> bytes:
    """The first ``n`` films as one picture (PNG), each with its findings and patient; a damaged film says so."""
    films = films.head(n)
    rows = max(1, -(-len(films) // ACROSS))
    sheet = Image.new("L", (ACROSS * (SIDE + 6), rows * (SIDE + CAPTION + 6)), 255)
    pen = ImageDraw.Draw(sheet)
    if films.empty:
        pen.text((8, SIDE // 2), "No film matches.", fill=90, font_size=14)
    for i, (_, film) in enumerate(films.iterrows()):
        x, y = i % ACROSS * (SIDE + 6), i // ACROSS * (SIDE + CAPTION + 6)
        sheet.paste(_thumbnail(film["path"]), (x, y))
        for line, text in enumerate(caption(film)):
            shown = text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
            pen.text((x, y + SIDE + 1 + 14 * line), shown, fill=30 + 70 * line, font_size=11)
    picture = io.BytesIO()
    sheet.save(picture, "PNG", optimize=True)
    return picture.getvalue()


def caption(film: pd.Series) -> tuple[str, str]:
    """Two lines on a film: its findings; its patient and, where known, age, sex and view position."""
    findings = labels.decode(film[list(labels.LABELS)]).replace(labels.SEPARATOR, ", ")
    age = "" if pd.isna(film["age"]) else f"{film['age']:.0f} y"
    return theme.name(findings), " · ".join(
        filter(None, (f"patient {film['patient']}", age, film["sex"], film["view"]))
    )


def _thumbnail(path: str) -> Image.Image:
    try:
        return Image.fromarray(images.read(path)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    except UserError:
        blank = Image.new("L", (SIDE, SIDE), 225)
        ImageDraw.Draw(blank).text((12, SIDE // 2 - 8), "cannot be read", fill=60, font_size=12)
        return blank


class Browser(ipywidgets.VBox):
    """Three menus and a grid of the matching films; "next" turns the page.

    Where no kernel runs (a notebook on a code host), the first grid is shown as a picture.
    """

    def __init__(self, films: pd.DataFrame, n: int = 8) -> None:
        self.films, self.n, self.page = films, n, 0
        self.finding = _choice("Finding", [label for label in labels.LABELS if films[label].any()])
        self.view = _choice("View", sorted(set(films["view"]) - {""}))
        self.sex = _choice("Sex", sorted(set(films["sex"]) - {""}))
        self.next = ipywidgets.Button(description="next", tooltip="Other films of this kind")
        self.count = ipywidgets.Label()
        self.sheet = ipywidgets.Image(format="png")
        for choice in (self.finding, self.view, self.sex):
            choice.observe(lambda _: self.show(0), names="value")
        self.next.on_click(lambda _: self.show(self.page + 1))
        self.show(0)
        bar = ipywidgets.HBox([self.finding, self.view, self.sex, self.next], layout={"flex_flow": "row wrap"})
        super().__init__([bar, self.count, self.sheet])

    def show(self, page: int) -> None:
        """Draw a page of the chosen films; after the last page the first follows."""
        chosen = choose(self.films, self.finding.value, self.view.value, self.sex.value)
        pages = max(1, -(-len(chosen) // self.n))
        self.page = page % pages
        self.sheet.value = draw(chosen.iloc[self.page * self.n :], self.n)
        patients = chosen["patient"].nunique()
        counts = f"{_several(len(chosen), 'film')} of {_several(patients, 'patient')}"
        self.count.value = f"{counts} · page {self.page + 1} of {pages:,}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        shown = super()._repr_mimebundle_(**kwargs)
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        picture = base64.b64encode(self.sheet.value).decode()
        return {**data, "text/plain": self.count.value, "image/png": picture}, metadata


def browser(films: pd.DataFrame, n: int = 8) -> Browser:
    """A browser of films (frame as ``records.read``), ``n`` on a page: choose finding, view position and sex."""
    return Browser(films, n)


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _choice(name: str, values: list[str]) -> ipywidgets.Dropdown:
    options = [(theme.name(value), value) for value in (ANY, *values)]
    return ipywidgets.Dropdown(options=options, value=ANY, description=name, layout={"width": "15rem"})
