"""Progress of a run, one line per notebook: live on a terminal, plain lines in a log."""

import json
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cxrlib.training import progress

POLL = 1.0  # seconds between two reads of a stage's progress.json


@dataclass
class Line:
    """State of one notebook, and the file in which its training writes progress."""

    name: str
    watched: Path
    state: str = "waiting"
    cell: int = 0
    cells: int = 0
    began: float = 0.0
    seconds: float = 0.0
    note: str = ""

    def elapsed(self) -> float:
        return time.time() - self.began if self.state == "running" else self.seconds

    def training(self) -> dict:
        """The stage's progress.json while this notebook trains it, else an empty dict."""
        try:
            if self.state != "running" or self.watched.stat().st_mtime < self.began:
                return {}
            progress = json.loads(self.watched.read_text())
            return {} if progress.get("done") else progress
        except (OSError, ValueError):
            return {}


def epochs(now: dict) -> str:
    """Text from a progress.json: ``epoch 2/6, batch 10/44, 38 images/s, 2:00 left``; absent keys are left out."""
    words = []
    for one, all_ in (("epoch", "epochs"), ("batch", "batches")):
        if one in now and all_ in now:
            words.append(f"{one} {now[one]}/{now[all_]}")
    if now.get("images_per_s"):
        words.append(f"{now['images_per_s']:.0f} images/s")
    if now.get("eta_s"):
        words.append(f"{progress.clock(now['eta_s'])} left")
    return ", ".join(words)


@dataclass
class ConsoleBoard(AbstractContextManager):
    """Lines of one run. Call ``start``, ``cell`` and ``finish`` as a notebook is executed."""

    lines: list[Line]
    console: Console = field(default_factory=Console)

    def __post_init__(self) -> None:
        self._by_name = {line.name: line for line in self.lines}
        self._live = Live(console=self.console, get_renderable=self.table, refresh_per_second=4)
        self._stop = threading.Event()
        self._reporter = threading.Thread(target=self._report_epochs, daemon=True)

    def __enter__(self) -> "ConsoleBoard":
        if self.console.is_terminal:
            self._live.start()
        else:
            self._reporter.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        if self.console.is_terminal:
            self._live.stop()
        else:
            self._reporter.join()

    def start(self, name: str, cells: int) -> None:
        line = self._by_name[name]
        line.state, line.cells, line.cell, line.began = "running", cells, 0, time.time()
        self._print(f"{name}: {cells} cells")

    def cell(self, name: str, index: int) -> None:
        self._by_name[name].cell = index + 1

    def finish(self, name: str, state: str, note: str = "") -> None:
        line = self._by_name[name]
        line.seconds, line.state, line.note = line.elapsed() if line.began else 0.0, state, note
        took = f" in {progress.clock(line.seconds)}" if line.seconds else ""
        self._print(f"{name}: {state}{took}{f', {note}' if note else ''}")

    def table(self) -> Table:
        """Lines of the current state; called at every refresh, so it reads the training's progress again."""
        table = Table.grid(padding=(0, 2))
        for line in self.lines:
            mark, style = MARKS[line.state]
            text = Text(_doing(line), style="dim" if line.state in ("waiting", "unchanged") else "")
            elapsed = progress.clock(line.elapsed()) if line.began else ""
            table.add_row(Text(mark, style), Text(line.name, style), Text(elapsed, justify="right"), text)
        return table

    def _print(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True, highlight=False, markup=False)

    def _report_epochs(self) -> None:
        """Print a line when a training reaches another epoch."""
        last = None
        while not self._stop.wait(POLL):
            for line in self.lines:
                now = line.training()
                if now and (line.name, now.get("epoch")) != last:
                    last = (line.name, now.get("epoch"))
                    self._print(f"{line.name}: cell {line.cell}/{line.cells}, {epochs(now)}")


MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▸", "bold cyan"),
    "done": ("✓", "green"),
    "unchanged": ("=", "dim"),
    "failed": ("✗", "bold red"),
    "interrupted": ("‖", "yellow"),
}


def _doing(line: Line) -> str:
    if line.state == "running":
        now = epochs(line.training())
        return f"cell {line.cell}/{line.cells}" + (f" · {now}" if now else "")
    return line.note or ("" if line.state in ("waiting", "done") else line.state)
