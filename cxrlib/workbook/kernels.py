"""Kernels that execute the notebooks of a run: forked from a server where that works, started anew where not."""

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

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import LocalProvisioner

from cxrlib import UserError, paths

FORK = "CXR_FORK"
"""Environment variable; 0 starts every kernel as a new process, without the server."""
DEVICE = """
import sys
from cxrlib import UserError
from cxrlib import provenance
from cxrlib.training import devices


try:
    devices.device()
    print(provenance.device())
except UserError as error:
    print(error)
    sys.exit(2)
"""


class KernelSource:
    """Source of kernels for the notebooks of one call; the server starts at its first use."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if server := self.__dict__.get("server"):
            server.close()

    def begin(self) -> None:
        """Start the server now, so that its imports run in parallel with other work."""
        _ = self.server

    @cached_property
    def server(self) -> "KernelServer | None":
        """The kernel server; None where forking is not safe (other systems than Linux) or off (``CXR_FORK=0``)."""
        return KernelServer() if sys.platform == "linux" and os.environ.get(FORK) != "0" else None

    @cached_property
    def device(self) -> str:
        """Name of the device that notebooks will use. Raises UserError for a device that cannot be used.

        A separate process finds it out, so that this one loads neither torch nor a device's driver.
        """
        text, code = self.output(DEVICE)
        if code == 2:
            raise UserError(text.strip())
        return text.strip()

    def output(self, code: str) -> tuple[str, int]:
        """Output of Python code that runs in a separate process, and its exit code."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            where = {"cwd": str(paths.PACKAGE.parent), "env": environment()}
            forked = self.server.fork(["-c", code], out=str(out), **where) if self.server else None
            if forked is None:
                with out.open("w") as file:
                    exit_code = subprocess.run([sys.executable, "-c", code], stdout=file, **where).returncode
            else:
                exit_code = forked.end()
            return out.read_text(encoding="utf-8") if out.exists() else "", exit_code


class KernelServer:
    """Handle of the process that forks kernels (``kernel_server``); ``close`` ends the process.

    It starts at once, so that its imports run while the films are read. If it cannot be used, ``fork`` returns None.
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

    def fork(self, argv: list[str], cwd: str, env: dict[str, str], out: str = "") -> "ForkedKernel | None":
        """A kernel with these arguments, folder and environment; None if the server cannot fork.

        ``argv`` of ``-c CODE`` runs that code instead, with its output in the file ``out``.
        """
        try:
            if not self.state:
                self.state = "no" if self._answer("ready") else "yes"
            if self.state != "yes":
                return None
            self.link.sendall(json.dumps({"argv": argv, "cwd": cwd, "env": env, "out": out}).encode() + b"\n")
            return ForkedKernel(self, self._answer("pid"))
        except OSError:  # it died
            self.state = "no"
            return None

    def code(self, pid: int) -> int | None:
        """Exit code of a kernel that has ended; None while it runs; 1 if the server is gone."""
        with suppress(OSError):
            while pid not in self.ended and select.select([self.link], [], [], 0)[0]:
                self._receive()
            return self.ended.get(pid)
        return 1

    def close(self) -> None:
        """End the server and its kernels."""
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


class ForkedKernel:
    """A forked kernel with those methods of ``subprocess.Popen`` that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, server: KernelServer, pid: int) -> None:
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.code(self.pid)
        return self.returncode

    def wait(self) -> int | None:
        """Exit code; jupyter_client calls this only after the kernel has ended."""
        return self.poll()

    def end(self) -> int:
        """Wait for the kernel's end and return its exit code."""
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
    """Environment of a kernel: ours, absolute folders, no live plot (``live.QUIET``), no warning of the debugger."""
    folders = {"CXR_OUTPUTS": str(paths.outputs()), "CXR_PROJECT": str(paths.project())}
    return {**os.environ, **folders, "CXR_QUIET": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


class ForkingProvisioner(LocalProvisioner):
    """Kernel provisioner that forks from the kernel server, or starts a new process if the server cannot be used."""

    server: KernelServer | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict:
        arguments = cmd[cmd.index("ipykernel_launcher") :] if "ipykernel_launcher" in cmd else []
        forked = None
        if self.server is not None and arguments:
            forked = self.server.fork(arguments, str(kwargs.get("cwd") or Path.cwd()), kwargs["env"])
        if forked is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid = forked, forked.pid, forked.pid
        return self.connection_info


class ThisPython(AsyncKernelManager):
    """Kernels of the current interpreter, even if the user has another kernel named python3.

    The project's and the outputs' folders are passed as absolute paths, since a notebook runs in its own folder.
    """

    server: KernelServer | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=environment())

    async def _async_pre_start_kernel(self, **kw: Any) -> tuple[list[str], dict]:
        if self.provisioner is None:
            self.kernel_id = self.kernel_id or kw.pop("kernel_id", "kernel")
            self.provisioner = ForkingProvisioner(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            self.provisioner.server = self.server
        return await super()._async_pre_start_kernel(**kw)

    pre_start_kernel = _async_pre_start_kernel


def kernel_manager(server: KernelServer | None) -> type[ThisPython]:
    """Kernel manager class whose kernels come from this server; None: each is a new process."""
    return type("Kernels", (ThisPython,), {"server": server})
