"""Fewer colours for the pictures in the notebooks than in the saved figures: ``python -m tests.pictures NOTEBOOK…``.

A code host shows a notebook of a megabyte late or not at all, and pictures are nearly all of it.
"""

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

PNG = "image/png"
COLOURS = 64
"""Colours of a picture in a notebook, chosen so that thin lines keep theirs. With 128, as in the saved figures, 06 is
larger than a code host likes."""


def pictures(content: dict) -> Iterator[dict]:
    """The outputs' data that hold a PNG."""
    for cell in content["cells"]:
        for output in cell.get("outputs", []):
            if PNG in output.get("data", {}):
                yield output["data"]


def opened(data: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode("".join(data[PNG]))))


def reduced(picture: Image.Image) -> bool:
    """Whether a picture has a palette, and few colours in it."""
    return picture.mode == "P" and len(picture.getcolors()) <= COLOURS


def reduce(book: Path) -> None:
    """Give every PNG of a notebook a palette of few colours; those that have one already stay as they are."""
    content = json.loads(book.read_text(encoding="utf-8"))
    for data in pictures(content):
        picture = opened(data)
        if not reduced(picture):
            file = io.BytesIO()
            few = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(file, "PNG", optimize=True)
            data[PNG] = base64.b64encode(file.getvalue()).decode() + "\n"
    book.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        reduce(Path(name))
