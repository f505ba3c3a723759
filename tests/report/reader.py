"""A page's text, links, headings and pictures, as a reader or a screen reader gets them."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "input", "hr"}


class Reader(HTMLParser):
    """Collects text, addresses and headings, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.addresses, self.headings, self.pictures, self.drawings = [], [], [], [], []
        self.ids, self.unscoped, self.words = [], 0, ""

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.pictures += [attrs] if tag == "img" else []
        self.drawings += [attrs] if tag == "svg" and "aria-hidden" not in attrs else []
        self.unscoped += tag == "th" and "scope" not in attrs
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words += " " + " ".join(data.split())


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text())
    assert not reader.open
    reader.words = re.sub(r"\s+", " ", reader.words)
    return reader


def section(words: str, title: str, following: str) -> str:
    """The words between two headings."""
    return words[words.rindex(title) : words.rindex(following)]
