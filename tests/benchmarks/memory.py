"""Peaks of memory, step by step, of this process with all that it starts, and of the GPUs."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import psutil

EVERY = 0.5  # seconds between two looks

NVIDIA = "nvidia-smi"


def of_processes() -> int:
    """Bytes that this process and its descendants hold.

    Pages that several of them share count once where the system can tell (Linux), else once for each.
    """
    me = psutil.Process()
    held = 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error, OSError):  # one that has just ended
            held += _proportional(process.pid) or process.memory_info().rss
    return held


def _proportional(pid: int) -> int:
    """Bytes of a process, its shared pages divided among those that share them; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:  # noqa: PTH123 (fast)
            return next((1024 * int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def of_gpus() -> int | None:
    """Bytes in use on all GPUs together, by whomever; None where no NVIDIA driver answers."""
    command = [NVIDIA, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return sum(int(line) for line in said.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


class Peaks(AbstractContextManager):
    """Watches while it is open. ``step`` is asked at every look for what is being done; "" is not counted.

    ``cpu`` and ``gpu`` hold each step's highest value in bytes; ``gpu`` stays empty without an NVIDIA driver.
    ``ended`` is called in the watching thread when a step is over.
    """

    def __init__(self, step: Callable[[], str], ended: Callable[[], None] = lambda: None) -> None:
        self.step, self.ended = step, ended
        self.cpu: dict[str, int] = {}
        self.gpu: dict[str, int] = {}
        self._stop = threading.Event()
        watched = [(of_processes, self.cpu), *([(of_gpus, self.gpu)] if shutil.which(NVIDIA) else [])]
        self._threads = [threading.Thread(target=self._watch, args=pair, daemon=True) for pair in watched]

    def __enter__(self) -> "Peaks":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, look: Callable[[], int | None], peaks: dict[str, int]) -> None:
        last = ""
        while True:
            before, held, after = self.step(), look(), self.step()
            if held is not None and before and before == after:
                peaks[before] = max(peaks.get(before, 0), held)
            if last not in ("", after) and peaks is self.cpu:
                self.ended()
            last = after
            if self._stop.wait(EVERY):
                return


def whole() -> int:
    """Bytes of memory that the machine has."""
    return psutil.virtual_memory().total


def on_disk(folder: os.PathLike) -> int:
    """Bytes that the files of a folder take on the disk; 0 where it is absent."""
    taken = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                status = os.lstat(os.path.join(place, name))  # noqa: PTH118 (fast on 112,120 files)
                taken += 512 * status.st_blocks if hasattr(status, "st_blocks") else status.st_size
    return taken


def words(size: float) -> str:
    """``0.65 GB``, or ``3 MB`` where that is less than a hundredth."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.0f} MB"
