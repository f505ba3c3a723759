"""The chain's end of the server of kernels: it starts the server, asks it for processes, and follows them."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from cxrlib import paths
from cxrlib.errors import UserError

FORK = "CXR_FORK"
"""Environment variable; where it is 0, every kernel is started anew."""
DEVICE = """
import sys
from cxrlib import provenance
from cxrlib.errors import UserError
from cxrlib.training import hardware
try:
    hardware.device()
    print(provenance.device())
except UserError as error:
    print(error)
    sys.exit(2)
"""


class Kernels:
    """Where the notebooks of one call get their kernels from; the server is started when it is first wanted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if server := self.__dict__.get("server"):
            server.close()

    def begin(self) -> None:
        """Start the server now, so that it imports while something else is done."""
        _ = self.server

    @cached_property
    def server(self) -> "Server | None":
        """None where forking is not safe (only on Linux it is) or not wanted (``CXR_FORK=0``)."""
        return Server() if sys.platform == "linux" and os.environ.get(FORK) != "0" else None

    @cached_property
    def device(self) -> str:
        """The device that notebooks will use, in words. Raises UserError where there is one that cannot be used.

        Asked in a process of its own: torch, and a device's memory, stay out of this one.
        """
        said, code = self.output(DEVICE)
        if code == 2:
            raise UserError(said.strip())
        return said.strip()

    def output(self, code: str) -> tuple[str, int]:
        """What Python code prints in a process of its own, and its exit code."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            where = {"cwd": str(paths.PACKAGE.parent), "env": environment()}
            made = self.server.fork(["-c", code], out=str(out), **where) if self.server else None
            if made is None:
                with out.open("w") as file:
                    ended = subprocess.run([sys.executable, "-c", code], stdout=file, **where).returncode
            else:
                ended = made.end()
            return out.read_text(encoding="utf-8") if out.exists() else "", ended


class Server:
    """The process that forks kernels (``kernel_server``), as seen from the chain; it ends with this object's ``close``.

    Started at once, so that it imports while the chain reads the films. Where it cannot be used, ``fork`` gives None.
    """

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.waiting, self.ended, self.state = b"", {}, ""
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cxrlib.workbook.kernel_server", str(theirs.fileno())],
                cwd=paths.PACKAGE.parent,
                env=environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fork(self, argv: list[str], cwd: str, env: dict[str, str], out: str = "") -> "Forked | None":
        """A kernel with these arguments, in this folder and environment; None where the server cannot make one.

        ``argv`` of ``-c CODE`` runs that code instead, with its output in the file ``out``.
        """
        try:
            if not self.state:
                self.state = "no" if self._answer("ready") else "yes"
            if self.state != "yes":
                return None
            self.link.sendall(json.dumps({"argv": argv, "cwd": cwd, "env": env, "out": out}).encode() + b"\n")
            return Forked(self, self._answer("pid"))
        except OSError:  # it died
            self.state = "no"
            return None

    def code(self, pid: int) -> int | None:
        """Exit code of a kernel that has ended, None while it runs; 1 where nobody can tell any more."""
        with suppress(OSError):
            while pid not in self.ended and select.select([self.link], [], [], 0)[0]:
                self._receive()
            return self.ended.get(pid)
        return 1

    def close(self) -> None:
        """End the server, and so its kernels."""
        self.link.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.process.kill()
        self.process.wait()

    def _answer(self, key: str) -> Any:
        while True:
            for answer in self._receive():
                if key in answer:
                    return answer[key]

    def _receive(self) -> list[dict]:
        received = self.link.recv(65536)
        if not received:
            raise ConnectionError("the server of kernels has ended")
        *lines, self.waiting = (self.waiting + received).split(b"\n")
        answers = [json.loads(line) for line in lines]
        self.ended |= {answer["ended"]: answer["code"] for answer in answers if "ended" in answer}
        return answers


class Forked:
    """A forked kernel with what jupyter_client asks of a ``subprocess.Popen``."""

    stdin = stdout = stderr = None

    def __init__(self, server: Server, pid: int) -> None:
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.code(self.pid)
        return self.returncode

    def wait(self) -> int | None:
        """The exit code; jupyter_client asks only when there is one."""
        return self.poll()

    def end(self) -> int:
        """The exit code, waited for."""
        while self.poll() is None:
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def environment() -> dict[str, str]:
    """What is laid over our own environment; the last entry silences the debugger's word on frozen modules.

    Nobody looks on, so nothing is drawn live (``live.QUIET``).
    """
    folders = {"CXR_OUTPUTS": str(paths.outputs()), "CXR_PROJECT": str(paths.project())}
    return {**os.environ, **folders, "CXR_QUIET": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
