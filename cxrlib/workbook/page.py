"""HTML pages from Jinja templates: text from files is escaped, and numbers have one format."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from cxrlib import theme
from cxrlib.workbook import marks, progress, words

FILTERS = {
    "name": theme.name,
    "clock": progress.clock,
    "number": words.number,
    "signed": words.signed,
    "count": words.count,
    "percent": words.percent,
    "small": words.small,
    "chance": words.chance,
    "listed": words.listed,
    "joined": words.joined,
}


def render(template: str, **values: Any) -> str:
    """HTML of a template, a file in this folder, filled with plain values."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    colours = theme.RUN_COLOURS[: len(marks.SHAPES)]
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return environment.get_template(template).render(made=made, colours=colours, **values)
