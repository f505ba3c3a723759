"""The reading room in a browser: the page that ``make room`` opens, used by keyboard alone."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from cxrlib import paths
from cxrlib.training import network
from cxrlib.workbook import settings
from tests.report import browser
from tests.workbook import rooms

PATIENCE = 150
"""Seconds until the page is there; on an idle core it takes ten."""
KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37}
TEXT = "document.querySelector('.cxr-reading-room')?.innerText ?? ''"
FOCUS = "(e => e.className + ' ' + (e.getAttribute('aria-valuemax') ?? '') + ' ' + e.innerText)(document.activeElement)"


@pytest.fixture
def page(tiny_phantom, tmp_path):
    """The page in a tab of Chromium, on a run whose network is a ResNet-50 that was not trained."""
    pytest.importorskip("voila", reason="voila is not installed")
    rooms.leave("room", tiny_phantom, network.build("none"))
    book = paths.notebooks() / "08_reading_room.ipynb"
    content = json.loads(book.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = settings.source(cell) + f'\nrun = "room"\ndata = {str(tiny_phantom)!r}\nfinding = "Mass"'
    (tmp_path / book.name).write_text(json.dumps(content), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "voila", str(tmp_path / book.name), "--no-browser", f"--port={port}"]
    place = {
        "CXR_OUTPUTS": str(paths.outputs()),
        "CXR_PROJECT": str(paths.project()),
        "PYTHONPATH": str(paths.project()),
    }
    with (
        browser.page(tmp_path / "profile") as tab,
        (tmp_path / "voila.log").open("w") as log,
        subprocess.Popen(server, env={**os.environ, **place}, stdout=log, stderr=log, cwd=tmp_path) as voila,
    ):
        try:
            tab.call("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
            wait(lambda: "running at" in (tmp_path / "voila.log").read_text())
            tab.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
            wait(lambda: "film 1 of" in (tab.value(TEXT) or ""))
            yield tab
        finally:
            voila.terminate()


def wait(until):
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def press(tab, key):
    """Press a key once."""
    code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
    text = {"text": "\r"} if key == "Enter" else {}
    tab.call("Input.dispatchKeyEvent", type="keyDown", **code, **text)
    tab.call("Input.dispatchKeyEvent", type="keyUp", **code)


def tab_to(tab, pattern):
    """Press Tab until an element is reached whose class, range and text fit the pattern."""
    for _ in range(60):
        press(tab, "Tab")
        if re.search(pattern, tab.value(FOCUS) or ""):
            return
    raise AssertionError(f"no element like {pattern} is reached by Tab")


def found(tab):
    """Numbers of found and clear films on the page."""
    text = tab.value(TEXT)
    return int(re.search(r"(\d+) of \d+ found", text)[1]), int(re.search(r"(\d+) of \d+ clear", text)[1])


@pytest.mark.slow
def test_the_room_is_used_by_keyboard(page):
    text = page.value(TEXT)
    assert "sensitivity" in text
    assert "network's own" in text
    assert page.value("document.querySelectorAll('.cxr-reading-room img').length") >= 2
    first = page.value("document.querySelector('.cxr-reading-room img').alt")

    tab_to(page, r"\bnext$")
    press(page, "Enter")
    wait(lambda: "film 2 of" in page.value(TEXT))
    wait(lambda: page.value("document.querySelector('.cxr-reading-room img').alt") not in ("", first))

    before = found(page)
    tab_to(page, "noUi-handle")  # the first slider after the button is that of the opacity or of the threshold
    threshold = "[...document.querySelectorAll('.cxr-reading-room .noUi-handle')].at(-1).getAttribute('aria-valuetext')"
    at = page.value(threshold)
    if page.value("document.activeElement.getAttribute('aria-valuetext')") != at:
        tab_to(page, "noUi-handle")
    for _ in range(400):
        press(page, "ArrowRight")
    wait(lambda: page.value(threshold) != at and found(page) != before)
    after = found(page)
    assert after[0] <= before[0]  # a higher threshold finds fewer
    assert after[1] >= before[1]

    hidden = [said for said in page.said if "Traceback" in said or "Uncaught" in said]
    assert not hidden
    beyond = """[...document.querySelectorAll('.cxr-reading-room *')].filter(e => e.getClientRects().length
      && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"""
    assert page.value(beyond) == []
