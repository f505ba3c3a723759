"""Kernel manager for papermill: kernels come from the kernel server where possible."""

import sys
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import LocalProvisioner

from cxrlib.workbook import kernel_client


class ForkingProvisioner(LocalProvisioner):
    """Kernel provisioner that forks from the kernel server, or starts a new process if the server cannot be used."""

    server: kernel_client.Server | None = None

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

    server: kernel_client.Server | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=kernel_client.environment())

    async def _async_pre_start_kernel(self, **kw: Any) -> tuple[list[str], dict]:
        if self.provisioner is None:
            self.kernel_id = self.kernel_id or kw.pop("kernel_id", "kernel")
            self.provisioner = ForkingProvisioner(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            self.provisioner.server = self.server
        return await super()._async_pre_start_kernel(**kw)

    pre_start_kernel = _async_pre_start_kernel


def of(server: kernel_client.Server | None) -> type[ThisPython]:
    """Kernel manager class whose kernels come from this server; None: each is a new process."""
    return type("Kernels", (ThisPython,), {"server": server})
