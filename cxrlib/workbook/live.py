"""Live views in a notebook: a stage under way as one figure that is drawn anew, and the film browser."""

import base64
import io
import os
import time
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from cxrlib import UserError, labels
from cxrlib.data import images
from cxrlib.labels import display_name
from cxrlib.plots import common
from cxrlib.training.progress import Progress

QUIET = "CXR_QUIET"
"""Environment variable; if not empty nothing is drawn, as when papermill executes a notebook."""
EVERY = 2.0
"""Seconds between two drawings, at least."""
SHARE = 0.01
"""Largest share of the time that drawing may take; slow drawing happens less often."""


class Plot:
    """Watcher for ``fit``: plots loss and validation AUC, with the epoch, images per second and time left.

    Outside a notebook, and where ``CXR_QUIET`` is set, it does nothing.
    """

    def __init__(self) -> None:
        self.handle: Any = None
        self.next = 0.0
        self.epochs = 0
        self.on = _in_notebook() and not os.environ.get(QUIET)

    def __call__(self, progress: Progress) -> None:
        fresh = progress.done or len(progress.history) > self.epochs
        if not self.on or (time.monotonic() < self.next and not fresh):
            return
        began = time.monotonic()
        self._show(draw_progress(progress), progress.text())
        self.epochs = len(progress.history)
        self.next = time.monotonic() + max(EVERY, (time.monotonic() - began) / SHARE)

    def _show(self, fig: Figure, words: str) -> None:
        from IPython.display import Image, display

        picture = io.BytesIO()
        fig.canvas.print_png(picture)
        shown = Image(picture.getvalue(), alt=words)
        if self.handle is None:
            self.handle = display(shown, display_id=True)
        else:
            self.handle.update(shown)


def draw_progress(progress: Progress) -> Figure:
    """Figure of the current state: loss curve on the left, validation AUC of the finished epochs on the right."""
    common.use_theme()
    fig = Figure(figsize=(9, 2.8), layout="constrained")
    FigureCanvasAgg(fig)
    loss, auc = fig.subplots(1, 2)
    _loss(progress, loss)
    _auc(progress, auc)
    fig.suptitle(progress.text(), x=0.01, ha="left", fontsize=9)
    return fig


def _loss(progress: Progress, ax: Axes) -> None:
    done = pd.DataFrame(progress.history, columns=["epoch", "val_loss"])
    if progress.curve:
        ax.plot(*zip(*progress.curve, strict=True), color=common.SPLIT_COLOURS["train"], label="training")
    if len(done):
        val = {"color": common.SPLIT_COLOURS["val"], "marker": "s", "ls": (0, (4, 1.5)), "clip_on": False}
        ax.plot(done["epoch"], done["val_loss"], label="validation", **val)
    ax.set(xlabel="epochs", ylabel="loss", xlim=(0, max(progress.recipe.epochs, 1)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y")
    if progress.curve or len(done):
        ax.legend()


def _auc(progress: Progress, ax: Axes) -> None:
    if not progress.history:
        common.blank(ax, "validation AUC comes\nafter the first epoch")
        return
    done = pd.DataFrame(progress.history)
    ax.plot(done["epoch"], done["val_auc"], color=common.INK, marker="o", ms=4, label="mean AUC", clip_on=False)
    ax.axhline(0.5, color=common.MUTED, lw=0.8, ls=":", label="chance")
    ax.set(xlabel="epochs", ylabel="validation AUC", xlim=(0, max(progress.recipe.epochs, 1)))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y")
    ax.legend(loc="lower right")


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


ANY = "any"
SIDE, ACROSS = 180, 4  # side of a film on the grid in pixels; films in a row
CAPTION, WIDTH = 30, 31  # height of a caption in pixels; characters in a line of it


def choose_films(films: pd.DataFrame, finding: str = ANY, view: str = ANY, sex: str = ANY) -> pd.DataFrame:
    """The films with this finding (one of the 15 labels), view position ("PA", "AP") and sex ("F", "M")."""
    chosen = np.ones(len(films), bool)
    if finding != ANY:
        chosen &= films[labels.LABELS[labels.column(finding)]].to_numpy() == 1
    for name, value in (("view", view), ("sex", sex)):
        if value != ANY:
            chosen &= films[name].to_numpy() == value
    return films[chosen]


def draw_page(films: pd.DataFrame, n: int = 8) -> bytes:
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
    return display_name(findings), " · ".join(
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
        self.finding = _choice("Finding", [label for label in labels.LABELS if (films[label] == 1).any()])
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
        chosen = choose_films(self.films, self.finding.value, self.view.value, self.sex.value)
        pages = max(1, -(-len(chosen) // self.n))
        self.page = page % pages
        self.sheet.value = draw_page(chosen.iloc[self.page * self.n :], self.n)
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
    options = [(display_name(value), value) for value in (ANY, *values)]
    return ipywidgets.Dropdown(options=options, value=ANY, description=name, layout={"width": "15rem"})
