"""Reading room: a widget that shows the films of a run one by one, with all that the network says about each.

Choose run, part and finding; sort the films; move the threshold and see the counts; lay the heat map over the film;
look at the patient's other films and at films that look alike; mark a film as doubtful. ``evaluation.reading`` does the
work. All text that comes from data is escaped. A user's mistake is one sentence in the widget.
"""

import base64
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import cv2
import ipywidgets
import numpy as np
import pandas as pd
from ipywidgets import HTML, Button, Checkbox, Dropdown, FloatLogSlider, FloatSlider, HBox, Text, VBox

from cxrlib import UserError, labels, paths
from cxrlib.data import records
from cxrlib.evaluation import localisation, reading, thresholds
from cxrlib.labels import display_name
from cxrlib.plots import common, results
from cxrlib.workbook import settings

SIDE, SMALL = 440, 104
"""Sides of the large film and of the small ones on the screen, in pixels."""
LOWEST, STEP = 1e-4, 0.01
"""Lowest threshold of the slider, and its step in powers of ten (2.3 %). Its range never changes, since a browser
answers a change of the range with a value of its own."""
BESIDE = 6
"""Small films in a row."""
OWN = "own"
RULES = {**{rule: rule.replace("_", " ") for rule in thresholds.RULES}, OWN: "own"}
SORTS = {"probability": "probability, highest first", "error": "error, largest first", "doubt": "nearest the threshold"}
KINDS = {
    "all": "all films",
    "positive": "labelled",
    "negative": "not labelled",
    "missed": "missed at this threshold",
    "false alarm": "false alarms at this threshold",
    "doubtful": "marked as doubtful",
}
AUTOMATIC = 4_000_000
"""Pixels of all films up to which their features are computed without being asked: seconds on a CPU core."""
DEFAULTS = {"data": "", "size": 0, "seed": 0, "allow_missing": False, "exclude": "", "uncertain": "unknown"}

STYLE = f"""<style>
.cxr-room {{font: 13px/1.45 system-ui, sans-serif; color: {common.INK}}}
.cxr-room table {{border-collapse: collapse; font-variant-numeric: tabular-nums}}
.cxr-room td, .cxr-room th {{padding: 1px 10px 1px 0; text-align: left; font-weight: normal; white-space: nowrap}}
.cxr-room th {{color: {common.MUTED}}}
.cxr-room b {{font-weight: 600}}
.cxr-room .big td {{font-size: 19px; padding-right: 22px}}
.cxr-room tr.now td {{font-weight: 600; background: #eef3f8}}
.cxr-room .quiet {{color: {common.MUTED}}}
.cxr-room .mark {{color: #a5381e; font-weight: 600}}
.cxr-room img {{display: block}}
</style>"""


def open_room(run: str, part: str = "test", finding: str = "Effusion", *, ckpt: str = "", **films: Any) -> "Room":
    """A reading room on a run's predicted films.

    ``films``: data, size, seed, allow_missing, exclude and uncertain of this run, as in its notebooks; those of other
    runs are in their ``run.json``. What cannot be opened is said in the room, and nothing is raised.
    """
    return Room(run, part, finding, ckpt=ckpt, **films)


class Room(VBox):
    """The widget. ``reading`` is None, and ``why`` a sentence, where nothing could be opened."""

    def __init__(self, run: str, part: str, finding: str, *, ckpt: str = "", **films: Any) -> None:
        self.reading: reading.Reading | None = None
        self.why = ""
        self._own = {"run": run, "ckpt": ckpt, **films}
        self._order = np.empty(0, np.int64)
        self._place = 0
        self._marks: dict[str, dict[str, str]] = {}
        self._quiet, self._rules_cut = False, 0.5
        self._make_controls(run, part, finding)
        super().__init__(self._layout())
        self.add_class("cxr-reading-room")
        self._open()

    # What is chosen

    @property
    def column(self) -> int:
        """Column of the chosen finding in ``labels.LABELS``."""
        return labels.column(self.finding.value)

    @property
    def film(self) -> int | None:
        """Position of the film on the screen in ``reading.films``; None if no film is of the chosen kind."""
        return int(self._order[self._place]) if len(self._order) else None

    @property
    def cut(self) -> float:
        """Threshold of the chosen finding: the rule's own (perhaps between two steps of the slider) or the slider's."""
        return self.threshold.value if self.rule.value == OWN else self._rules_cut

    def said(self) -> str:
        """Sentence on what is open, or on why nothing is."""
        if self.reading is None:
            return self.why
        path = self.reading.path.stem if self.reading.path else "a checkpoint that is gone"
        part = {"val": "validation", "test": "test"}[self.reading.part]
        patients = self.reading.films["patient"].nunique()
        films = f"{len(self.reading):,} {part} films of {patients:,} patients"
        return " · ".join([f"run {self.reading.run.name}: {films}, predicted by {path}", *self.reading.why])

    def table(self, by: str = "error") -> pd.DataFrame:
        """All films sorted for the chosen finding, as ``Reading.table``; no rows where nothing is open."""
        if self.reading is None:
            return pd.DataFrame(columns=["image", "patient", "label", "probability", "raw", "row"])
        return self.reading.table(self.reading.order(self.column, by, threshold=self.cut), self.column)

    def rules(self) -> pd.DataFrame:
        """Results of each rule's threshold on these films, as ``Reading.rules``; no rows where nothing is open."""
        return pd.DataFrame() if self.reading is None else self.reading.rules(self.column)

    def draw(self, films: pd.DataFrame, axes: np.ndarray) -> np.ndarray:
        """Draw films (rows of ``table``) with heat map and box of the chosen finding on a grid of axes."""
        rows, size = films["row"].to_numpy(int), 0 if self.reading is None else self.reading.pixels.size
        if not len(rows):
            common.films([], [], axes)
            common.blank(np.ravel(axes)[0], "\n".join(textwrap.wrap(self.why or "no films", 30)))
            return axes
        wanted = films[["image"]].assign(finding=self.finding.value).reset_index(drop=True)
        boxes = localisation.masks(wanted, self.reading.boxes, size)
        heat = np.zeros((len(rows), size, size), np.float32)
        if self.reading.path:
            heat = np.stack([self.reading.heat(i, self.column) for i in rows])
        pictures = np.stack([self.reading.pixels_of(i) for i in rows])
        name = display_name(self.finding.value)
        words = {1.0: name, 0.0: f"no {name}"}
        truth, said = films["label"], films["probability"]
        captions = [f"{words.get(t, f'{name} unknown')}, predicted {p:.2f}" for t, p in zip(truth, said, strict=True)]
        return results.show_maps(pictures, heat, boxes, captions, axes)

    # Opening

    def _open(self, change: Any = None) -> None:
        if self._quiet:
            return
        self.reading, self.why = None, ""
        self._say("Opening …")
        try:
            run = paths.Run(self.run.value)
            self.reading = reading.open_part(run, self.part.value, **self._parameters())
            self._marks = reading.read_marks(run)
        except (UserError, OSError) as error:
            self.reading, self.why = None, str(error)
        else:
            self._prepare()
        self.body.layout.display = "" if self.reading else "none"
        first = change is None  # a notebook prints what is open
        self._say(
            ("; ".join(self.reading.why) if first else self.said()) if self.reading else self.why, wrong=bool(self.why)
        )
        if self.reading:
            self._set_finding()

    def _prepare(self) -> None:
        """Compute the features of a few films at once; without a network that fits, the room says so and goes on."""
        if self.reading.path and self.reading.pixels.size**2 * len(self.reading) <= AUTOMATIC:
            try:
                self.reading.prepare_features()
            except (UserError, OSError) as error:
                self.reading.why = (*self.reading.why, str(error))

    def _parameters(self) -> dict[str, Any]:
        """Parameters of the chosen run's films: those given for the room's own run, else those in its record."""
        if self.run.value == self._own["run"]:
            return {name: value for name, value in self._own.items() if name != "run"}
        record = paths.read_json(paths.Run(self.run.value).run_json)
        known = {**record.get("parameters", {}), **record.get("settings", {})}
        values = {name: settings.typed(name, known.get(name, value), value) for name, value in DEFAULTS.items()}
        return {**values, "size": 0}

    # Reactions

    @contextmanager
    def _without_reactions(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _react(self, change: Callable[[], None]) -> Callable[[Any], None]:
        """Handler that does nothing while values are set by the room itself, and turns an error into a sentence."""

        def handler(_: Any = None) -> None:
            if self._quiet or self.reading is None:
                return
            try:
                change()
            except (UserError, OSError) as error:
                self._say(str(error), wrong=True)

        return handler

    def _set_finding(self) -> None:
        self._set_rule()
        self._sort(keep=False)

    def _set_rule(self) -> None:
        """Put the slider to the chosen rule's threshold, or where there is none to half of the highest probability."""
        rule = self.rule.value if self.rule.value != OWN else "youden"
        cut = self.reading.cuts(rule)[self.column]
        half = self.reading.probabilities[:, self.column].max(initial=0.0) / 2
        with self._without_reactions():
            self.rule.value = rule if np.isfinite(cut) else OWN
            self._rules_cut = float(cut if np.isfinite(cut) else half)
            self.threshold.value = float(np.clip(self._rules_cut, LOWEST, 1))

    def _choose_rule(self) -> None:
        if self.rule.value != OWN:
            self._set_rule()
            self._sort()

    def _move_threshold(self) -> None:
        moved = np.log10(self.threshold.value / np.clip(self._rules_cut, LOWEST, 1))
        if self.rule.value != OWN and abs(moved) <= 0.51 * STEP:
            return  # the browser put the slider on its nearest step
        with self._without_reactions():
            self.rule.value = OWN
        self._sort()

    def _sort(self, keep: bool = True) -> None:
        """Sort the films again, and stay at the film on the screen if ``keep`` and it is still among them."""
        before = self.film if keep else None
        self._order = self.reading.order(
            self.column, self.sort.value, self.kind.value, threshold=self.cut, marked=self._marks
        )
        at = np.flatnonzero(self._order == before) if before is not None else []
        self._place = int(at[0]) if len(at) else 0
        self._show_counts()
        self._show_film(same=bool(len(at)))

    def step(self, by: int) -> None:
        """Go ``by`` films on; after the last film the first follows."""
        if len(self._order):
            self._place = (self._place + by) % len(self._order)
            self._show_film()

    def go_to(self, i: int) -> None:
        """Show film ``i``; where it is not of the chosen kind, all films are shown again."""
        if i not in self._order:
            with self._without_reactions():
                self.kind.value = "all"
            self._sort()
        self._place = int(np.flatnonzero(self._order == i)[0])
        self._show_film()

    def _toggle_mark(self) -> None:
        if self.film is None:
            return
        image, run = self.reading.images[self.film], self.reading.run
        if image in self._marks:
            self._marks = reading.unmark(run, image)
        else:
            where = {"part": self.reading.part, "finding": self.finding.value}
            self._marks = reading.mark(run, image, self.reason.value, **where)
        if self.kind.value == "doubtful":
            self._sort()
        else:
            self._show_mark()

    def _find_alike(self) -> None:
        if self.film is None:
            return
        self.alike_button.disabled = True
        try:
            self.reading.prepare_features(
                lambda done, every: setattr(self.alike_button, "description", f"{done:,} of {every:,} films read")
            )
        finally:
            self.alike_button.disabled = False
            self.alike_button.description = "find films that look alike"
        self._show_alike()

    # What is drawn

    def _say(self, text: str, *, wrong: bool = False) -> None:
        kind = "mark" if wrong else "quiet"
        self.message.value = (
            f'{STYLE}<div class="cxr-room"><span class="{kind}" role="status">{escape(text)}</span></div>'
        )

    def _show_film(self, same: bool = False) -> None:
        """Draw the film on the screen and all beside it; with ``same`` only what a threshold changes."""
        many = len(self._order)
        self.position.value = _room(f"film <b>{self._place + 1:,}</b> of {many:,}" if many else "no such film")
        for button in (self.previous, self.next, self.mark):
            button.disabled = not many
        if self.film is None:
            for part in (self.picture, self.heat, self.lines, self.caption, self.numbers, self.trend):
                part.value = ""
            for row in (self.visits, self.alike):
                row.fill([])
            return
        if not same:
            self.picture.value = _picture(_png(self.reading.pixels_of(self.film)), self._alt(), SIDE)
            self.heat.value = ""
            self._show_lines()
            self.caption.value = self._caption()
            self._show_mark()
            self._show_alike()
        self.numbers.value = self._numbers()
        self._show_visits()
        if not same or not self.heat.value:
            self._show_heat()  # last, since it may need the network: all else is on the screen before

    def _alt(self) -> str:
        return f"Chest film {self.reading.images[self.film]}"

    def _caption(self) -> str:
        film = self.reading.films.iloc[self.film]
        found = self.reading.truth[self.film]
        known = [display_name(name) for name, value in zip(labels.LABELS, found, strict=True) if value == 1]
        unknown = int(np.isnan(found).sum())
        words = [", ".join(known) or "none", *([f"{unknown} unknown"] if unknown else [])]
        age = "" if np.isnan(film["age"]) else f"{film['age']:.0f} y"
        who = filter(None, (f"patient {film['patient']}", age, film["sex"], film["view"]))
        return _room(
            f"<b>{escape(film['image'])}</b> · {escape(' · '.join(who))}<br>labels: {escape(', '.join(words))}"
        )

    def _show_heat(self) -> None:
        if not self.shown.value or self.film is None:
            self.heat.value = ""
            return
        try:
            map_ = self.reading.heat(self.film, self.column)
        except (UserError, OSError) as error:
            self.heat.value = ""
            self._say(str(error), wrong=True)
            return
        self._heat_png = _png(_tinted(map_))
        self._show_opacity()

    def _show_opacity(self) -> None:
        if self.heat.value or self.shown.value:
            self.heat.value = _picture(self._heat_png, "", SIDE, f"opacity:{self.opacity.value:.2f}")

    def _show_lines(self) -> None:
        """Draw the radiologists' boxes: those of the chosen finding in full, the others dashed."""
        boxes = self.reading.boxes_of(self.film) if self.boxed.value and self.film is not None else []
        side, shapes = records.BOX_PIXELS, []
        for finding, x, y, w, h in boxes:
            dash = "" if finding == self.finding.value else 'stroke-dasharray="14 10"'
            at = f'x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}"'
            for colour, width in (("#000", 10), ("#fff", 5)):
                shapes.append(f'<rect {at} fill="none" stroke="{colour}" stroke-width="{width}" {dash}/>')
            place = f'x="{min(x + 8, side - 330):.0f}" y="{max(y - 12, 30):.0f}"'
            look = 'fill="#fff" stroke="#000" stroke-width="7" paint-order="stroke" font-size="32"'
            shapes.append(f"<text {place} {look}>{escape(display_name(finding))}</text>")
        self.lines.value = _svg(shapes, side, side, SIDE, SIDE, "The radiologists' boxes") if shapes else ""

    def _show_mark(self) -> None:
        marked = self._marks.get(self.reading.images[self.film])
        self.mark.description = "take the mark back" if marked else "mark as doubtful"
        count = f"{len(self._marks):,} marked in outputs/{escape(self.reading.run.name)}/doubtful.csv"
        state = (
            f'<span class="mark">doubtful</span>: {escape(marked["reason"] or "no reason given")} · ' if marked else ""
        )
        self.marked.value = _room(f'{state}<span class="quiet">{count}</span>')
        self.reason.value = marked["reason"] if marked else ""

    def _show_counts(self) -> None:
        cut, column = self.cut, self.column
        counts = self.reading.counts(column, cut)
        shares = {"sensitivity": "found", "specificity": "clear", "ppv": "calls", "npv": "others"}
        parts = {"sensitivity": counts.found, "specificity": counts.clear, "ppv": counts.found, "npv": counts.clear}
        heads = "".join(f"<th>{name.upper() if name[1:] == 'pv' else name}</th>" for name in shares)
        values = "".join(f"<td>{_number(counts.share(name), 2)}</td>" for name in shares)
        films = "".join(
            f'<td class="quiet">{parts[name]:,} of {counts.films(name):,} {word}</td>' for name, word in shares.items()
        )
        missed = self.reading.order(column, "probability", "missed", threshold=cut)
        self.counts.value = _room(
            f'<table><tr>{heads}</tr><tr class="big">{values}</tr><tr>{films}</tr></table>'
            f"<div>{self._missed(missed)}</div>{self._of_the_rule()}"
        )

    def _missed(self, missed: np.ndarray) -> str:
        name = escape(display_name(self.finding.value))
        if not len(missed):
            return f"No film with {name} is missed."
        patients = self.reading.films["patient"].to_numpy()[missed]
        first = ", ".join(f"{escape(self.reading.images[i])}" for i in missed[:4])
        more = f" and {len(missed) - 4:,} more" if len(missed) > 4 else ""
        whom = f"{len(missed):,} film{'s' if len(missed) > 1 else ''} of {len(np.unique(patients)):,}"
        return f"<b>Missed:</b> {whom} patient{'s' if len(np.unique(patients)) > 1 else ''}: {first}{more}"

    def _of_the_rule(self) -> str:
        """Sentence on the threshold: the rule, why there is none, or that it is not chosen on other films."""
        chosen = None if self.reading.decisions is None else self.reading.decisions.chosen
        if self.rule.value != OWN:
            return f'<div class="quiet">{escape(thresholds.RULES[self.rule.value])}, chosen on validation films</div>'
        reasons = [] if chosen is None else chosen.loc[chosen["finding"] == self.finding.value, "reason"].tolist()
        if reasons and reasons[0]:
            return f'<div class="quiet">no threshold was chosen ({escape(reasons[0])})</div>'
        return '<div class="quiet">A threshold that looks best on these films looks worse on others.</div>'

    def _numbers(self) -> str:
        """Table of all labels: probability, the network's own, threshold, call and label, the chosen finding marked."""
        rule = self.rule.value if self.rule.value != OWN else "youden"
        cuts = self.reading.cuts(rule).copy()
        cuts[self.column] = self.cut
        rows = []
        for k, name in enumerate(labels.LABELS):
            said, cut, truth = self.reading.probabilities[self.film, k], cuts[k], self.reading.truth[self.film, k]
            call = "" if np.isnan(cut) else "positive" if said >= cut else "–"
            label = "unknown" if np.isnan(truth) else "yes" if truth else "–"
            wrong = call and label != "unknown" and (call == "positive") != (label == "yes")
            cells = [
                display_name(name),
                f"{said:.3f}",
                _number(cut),
                call,
                label,
                f"{self.reading.raw[self.film, k]:.3f}",
            ]
            cells = [f"<td>{escape(cell)}</td>" for cell in cells]
            cells[3] = f'<td class="mark">{call}</td>' if wrong else cells[3]
            cells.insert(2, f"<td>{_bar(said, cut)}</td>")
            rows.append(f"<tr{' class=now' if k == self.column else ''}>{''.join(cells)}</tr>")
        said = "calibrated" if self.reading.decisions else "probability"
        heads = "".join(f"<th>{head}</th>" for head in ("", said, "", "threshold", "call", "label", "network's own"))
        return _room(f"<table><tr>{heads}</tr>{''.join(rows)}</table>")

    def _show_visits(self) -> None:
        """Draw the patient's films nearest to this one in order, and the probabilities over all of them."""
        visits = self.reading.follow_ups(self.film)
        at = int(np.flatnonzero(visits == self.film)[0])
        first = max(0, min(at - BESIDE // 2, len(visits) - BESIDE))
        numbers = self.reading.films["follow_up"].to_numpy()
        said = self.reading.probabilities[:, self.column]
        self.visits.fill(
            [
                (int(i), _jpeg(self.reading.pixels_of(i)), f"follow-up {numbers[i]} · {said[i]:.3f}", i == self.film)
                for i in visits[first : first + BESIDE]
            ]
        )
        self.trend.value = _trend(said[visits], self.reading.truth[visits, self.column], numbers[visits], at, self.cut)

    def _show_alike(self) -> None:
        ready = self.reading.has_features
        self.alike_button.layout.display = "none" if ready else ""
        self.alike_button.disabled = self.reading.path is None
        found = []
        if ready and self.film is not None:
            rows, likeness = self.reading.alike(self.film, BESIDE)
            truth = self.reading.truth[:, self.column]
            for i, value in zip(rows, likeness, strict=True):
                label = {1.0: "labelled", 0.0: "not labelled"}.get(truth[i], "unknown")
                found.append((int(i), _jpeg(self.reading.pixels_of(i)), f"{value:.2f} alike · {label}", False))
        self.alike.fill(found)

    # Widgets

    def _make_controls(self, run: str, part: str, finding: str) -> None:
        runs = list(dict.fromkeys([run, *paths.runs()]))
        self.run = _menu("Run", {name: name for name in runs}, run)
        self.part = _menu("Part", {"test": "test", "val": "validation"}, part)
        self.finding = _menu("Finding", {name: display_name(name) for name in labels.LABELS}, finding)
        self.sort = _menu("Sort by", SORTS, "error")
        self.kind = _menu("Show", KINDS, "all")
        self.rule = _menu("Rule", RULES, "youden")
        self.previous = Button(description="previous", tooltip="The film before", layout={"width": "6.5rem"})
        self.next = Button(
            description="next", tooltip="The next film", button_style="primary", layout={"width": "6.5rem"}
        )
        self.position = HTML()
        self.message = HTML()
        self.threshold = FloatLogSlider(
            description="Threshold",
            min=np.log10(LOWEST),
            max=0,
            step=STEP,
            value=0.5,
            readout_format=".4f",
            layout={"width": "25rem"},
        )
        self.shown = Checkbox(value=True, description="heat map", indent=False, layout={"width": "6.5rem"})
        self.boxed = Checkbox(value=True, description="boxes", indent=False, layout={"width": "5rem"})
        self.opacity = FloatSlider(
            description="opacity", value=0.4, min=0, max=1, step=0.05, readout=False, layout={"width": "13rem"}
        )
        self.opacity.style.description_width = "3.5rem"
        stacked = {"grid_area": "1 / 1 / 2 / 2", "margin": "0", "width": f"{SIDE}px"}
        self.picture = HTML(layout={**stacked, "height": f"{SIDE}px"})
        self.heat, self.lines = HTML(layout=stacked), HTML(layout=stacked)
        self.caption, self.counts, self.numbers, self.trend, self.marked = (HTML() for _ in range(5))
        self.reason = Text(placeholder="reason, such as: inverted", layout={"width": "15rem"})
        self.mark = Button(description="mark as doubtful", layout={"width": "10.5rem"})
        self.visits, self.alike = _Row(self._opened), _Row(self._opened)
        self.alike_button = Button(
            description="find films that look alike",
            tooltip="Compute the network's features of all films of this part, once",
            layout={"width": "16rem"},
        )
        self._heat_png = ""
        self._connect()

    def _connect(self) -> None:
        for menu in (self.run, self.part):
            menu.observe(self._open, names="value")
        for control, change in (
            (self.finding, self._set_finding),
            (self.sort, lambda: self._sort(keep=False)),
            (self.kind, lambda: self._sort(keep=False)),
            (self.rule, self._choose_rule),
            (self.threshold, self._move_threshold),
            (self.shown, self._show_heat),
            (self.boxed, self._show_lines),
            (self.opacity, self._show_opacity),
        ):
            control.observe(self._react(change), names="value")
        for button, change in (
            (self.previous, lambda: self.step(-1)),
            (self.next, lambda: self.step(1)),
            (self.mark, self._toggle_mark),
            (self.alike_button, self._find_alike),
        ):
            button.on_click(self._react(change))

    def _opened(self, i: int) -> None:
        self._react(lambda: self.go_to(i))()

    def _layout(self) -> list[ipywidgets.Widget]:
        wrap = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 10px"}
        stack = ipywidgets.GridBox([self.picture, self.heat, self.lines], layout={"width": f"{SIDE}px"})
        left = VBox(
            [
                stack,
                self.caption,
                HBox([self.shown, self.opacity, self.boxed], layout=wrap),
                HBox([self.reason, self.mark], layout=wrap),
                self.marked,
            ],
            layout={"width": f"{SIDE + 8}px", "overflow": "hidden"},
        )
        right = VBox(
            [HBox([self.threshold, self.rule], layout=wrap), self.counts, self.numbers],
            layout={"flex": "1 1 30rem", "min_width": "30rem", "overflow": "auto"},
        )
        columns = {"flex_flow": "row wrap", "align_items": "flex-start", "grid_gap": "6px 26px"}
        visits = VBox([HTML(_room("<b>This patient's films</b>, with the probability")), self.trend, self.visits])
        alike = VBox(
            [HTML(_room("<b>Films of other patients that look most alike</b>")), self.alike_button, self.alike]
        )
        turn = HBox([self.previous, self.next, self.position], layout={"align_items": "center", "grid_gap": "10px"})
        bar = HBox([self.sort, self.kind, turn], layout=wrap)
        self.body = VBox([bar, HBox([left, right], layout=columns), visits, alike])
        return [HBox([self.run, self.part, self.finding], layout=wrap), self.message, self.body]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        shown = super()._repr_mimebundle_(**kwargs)
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return {**data, "text/plain": self.said()}, metadata


class _Row(HBox):
    """A row of small films, each with a button that opens it."""

    def __init__(self, opened: Callable[[int], None]) -> None:
        self._films: list[int] = []
        self._pictures = [HTML() for _ in range(BESIDE)]
        self._buttons = [Button(description="open", layout={"width": f"{SMALL}px"}) for _ in range(BESIDE)]
        for k, button in enumerate(self._buttons):
            button.on_click(lambda _, k=k: opened(self._films[k]))
        pairs = zip(self._pictures, self._buttons, strict=True)
        self._slots = [VBox([picture, button], layout={"width": f"{SMALL + 56}px"}) for picture, button in pairs]
        super().__init__(self._slots, layout={"flex_flow": "row wrap"})

    def fill(self, films: list[tuple[int, str, str, bool]]) -> None:
        """Show films: (position, picture as a data address, caption, whether it is the one on the screen)."""
        self._films = [film[0] for film in films]
        for k, (slot, picture, button) in enumerate(zip(self._slots, self._pictures, self._buttons, strict=True)):
            slot.layout.display = "" if k < len(films) else "none"
            if k >= len(films):
                picture.value = ""
                continue
            _, address, caption, now = films[k]
            frame = f"outline:3px solid {common.SPLIT_COLOURS['train']};outline-offset:-3px" if now else ""
            picture.value = _picture(address, caption, SMALL, frame) + _room(escape(caption))
            button.description, button.disabled = ("on the screen", True) if now else ("open", False)


def _menu(name: str, options: dict[str, str], value: str) -> Dropdown:
    menu = Dropdown(options=[(shown, key) for key, shown in options.items()], value=value, description=name)
    menu.style.description_width = "4rem"
    menu.layout.width = "19rem" if name in ("Sort by", "Show") else "15rem"
    return menu


def _room(html: str) -> str:
    return f'<div class="cxr-room">{html}</div>'


def _number(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def _address(kind: str, encoded: np.ndarray) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def _png(pixels: np.ndarray) -> str:
    """Grey (S, S) or BGRA (S, S, 4) pixels as the address of a PNG; quick rather than small."""
    return _address("png", cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def _jpeg(pixels: np.ndarray) -> str:
    """A small JPEG of a film."""
    small = cv2.resize(pixels, (SMALL, SMALL), interpolation=cv2.INTER_AREA)
    return _address("jpeg", cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1])


def _tinted(map_: np.ndarray) -> np.ndarray:
    """Heat map (S, S) as BGRA pixels: from clear over orange to yellow, so that it is brighter where it is higher."""
    pixels = np.zeros((*map_.shape, 4), np.uint8)
    pixels[..., 1] = np.round(60 + 160 * map_)
    pixels[..., 2] = 255
    pixels[..., 3] = np.round(255 * np.clip(map_ * 1.15, 0, 1))
    return pixels


def _picture(address: str, alt: str, side: int, style: str = "") -> str:
    return (
        f'<img src="{address}" alt="{escape(alt)}" width="{side}" height="{side}" style="{style}">' if address else ""
    )


def _svg(shapes: list[str], width: int, height: int, shown_width: int, shown_height: int, name: str) -> str:
    size = f'width="{shown_width}" height="{shown_height}" viewBox="0 0 {width} {height}"'
    return f'<svg {size} role="img" aria-label="{escape(name)}" style="display:block">{"".join(shapes)}</svg>'


def _bar(value: float, cut: float) -> str:
    """A probability as a bar, with a tick at the threshold."""
    shapes = [
        f'<rect width="90" height="9" fill="{common.FAINT}"/>',
        f'<rect width="{90 * value:.1f}" height="9" fill="{common.SPLIT_COLOURS["train"]}"/>',
    ]
    if np.isfinite(cut):
        shapes.append(f'<rect x="{min(90 * cut, 88):.1f}" width="2" height="9" fill="{common.SPLIT_COLOURS["test"]}"/>')
    return _svg(shapes, 90, 9, 90, 9, f"{value:.3f} of 1")


def _trend(said: np.ndarray, truth: np.ndarray, numbers: np.ndarray, at: int, cut: float) -> str:
    """Probabilities over a patient's films as a line: labelled ones are filled, the film on the screen has a ring."""
    if len(said) == 1:
        return _room('<span class="quiet">the only film of this patient in this part</span>')
    width, height, left = 760, 110, 40
    high = float(min(1.0, 1.15 * max(said.max(), cut, 0.02)))
    x = left + 14 + (width - left - 150) * (np.arange(len(said)) / max(len(said) - 1, 1))
    y = 12 + (height - 34) * (1 - said / high)
    line, muted = common.SPLIT_COLOURS["train"], common.MUTED
    level = 12 + (height - 34) * (1 - cut / high)
    shapes = [
        f'<line x1="{left}" x2="{width - 110}" y1="{level:.1f}" y2="{level:.1f}" stroke="{muted}" '
        'stroke-dasharray="5 4"/>',
        f'<text x="{width - 106}" y="{level + 4:.1f}" font-size="11" fill="{muted}">threshold</text>',
        *(
            f'<text x="{left - 4}" y="{12 + (height - 34) * (1 - share) + 4:.0f}" font-size="11" text-anchor="end" '
            f'fill="{muted}">{share * high:.2f}</text>'
            for share in (0, 1)
        ),
        f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))}" fill="none" '
        f'stroke="{line}" stroke-width="1.6"/>',
    ]
    step = max(1, -(-len(said) // 24))
    for k, (a, b) in enumerate(zip(x, y, strict=True)):
        fill = line if truth[k] == 1 else "#fff" if truth[k] == 0 else common.FAINT
        ring = f'<circle cx="{a:.1f}" cy="{b:.1f}" r="8" fill="none" stroke="{common.INK}"/>' if k == at else ""
        shapes.append(
            f'{ring}<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{fill}" stroke="{line}" stroke-width="1.6"/>'
        )
        if k % step == 0 or k == at:
            at_foot = f'x="{a:.1f}" y="{height - 4}" font-size="11" text-anchor="middle" fill="{muted}"'
            shapes.append(f"<text {at_foot}>{numbers[k]}</text>")
    words = '<span class="quiet">follow-up number · filled: labelled · ring: the film above</span>'
    drawn = _svg(shapes, width, height, width, height, "Probabilities over this patient's films")
    return _room(f"{drawn}{words}")
