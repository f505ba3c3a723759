"""A page in Debian's Chromium, driven by its debugging protocol: console messages, requests and widths.

https://chromedevtools.github.io/devtools-protocol/ names the methods and events.
"""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
OVERHANG = """[...document.querySelectorAll("main *, header *, footer *")]
  .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
  .filter(e => !e.closest("thead")).map(e => e.outerHTML.slice(0, 120))"""
"""Elements beyond the window's right edge; heads of stacked tables are left out, as only screen readers use them."""

A4 = 688  # CSS pixels between margins of 14 mm
PATIENCE = 60  # seconds to wait for one answer


class Page:
    """One tab. ``said`` holds console messages and errors, ``asked`` the addresses that were requested."""

    def __init__(self, socket) -> None:
        self._socket, self._last = socket, 0
        self.said: list[str] = []
        self.asked: list[str] = []
        self._loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Load an address and wait until it is complete."""
        self._loaded = False
        self.call("Page.navigate", url=address)
        while not self._loaded:
            self._heed(json.loads(self._socket.recv()))

    def overhang(self, width: int, medium: str = "screen") -> list[str]:
        """Elements beyond the right edge of a window of this width, with all details open."""
        self.call("Emulation.setEmulatedMedia", media=medium)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        if medium == "screen":
            self.value("document.querySelectorAll('details').forEach(part => part.open = true)")
        return self.value(OVERHANG)

    def value(self, script: str):
        """Value of a line of JavaScript."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def call(self, method: str, **given):
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": given}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last:
                assert "error" not in message, message["error"]
                return message["result"]
            self._heed(message)

    def _heed(self, message: dict) -> None:
        told = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.asked.append(told["request"]["url"])
            case "Log.entryAdded":
                self.said.append(told["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.said.append(json.dumps(told))


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """A tab of a new Chromium with its files in ``folder``; skips the test if Chromium is not installed."""
    websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
    program = shutil.which("chromium") or pytest.skip("no chromium on this machine")
    words = [program, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as browser:
        try:
            address = _address(browser.stderr)
            threading.Thread(target=browser.stderr.read, daemon=True).start()  # a full pipe would stop the browser
            socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
            yield Page(_tab(websocket, socket, address))
        finally:
            browser.kill()


def _address(lines) -> str:
    for line in lines:
        if found := re.search(r"ws://\S+", line):
            return found.group()
    raise AssertionError("chromium ended before it could be spoken to")


def _tab(websocket, socket, address: str):
    """A connection to the first tab of the browser that ``socket`` speaks to."""
    socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
    targets = json.loads(socket.recv())["result"]["targetInfos"]
    tab = next(target["targetId"] for target in targets if target["type"] == "page")
    there = re.sub(r"/browser/.*", f"/page/{tab}", address)
    return websocket.create_connection(there, timeout=PATIENCE, suppress_origin=True)
