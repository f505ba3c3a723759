"""The kernels that execute a run's notebooks, as papermill asks for them."""

import sys
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import LocalProvisioner

from cxrlib.workbook import kernel_client


class ForkingProvisioner(LocalProvisioner):
    """Takes a kernel from a server of kernels where it can, and starts one where it cannot."""

    server: kernel_client.Server | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict:
        words = cmd[cmd.index("ipykernel_launcher") :] if "ipykernel_launcher" in cmd else []
        made = None
        if self.server is not None and words:
            made = self.server.fork(words, str(kwargs.get("cwd") or Path.cwd()), kwargs["env"])
        if made is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process, self.pid, self.pgid = made, made.pid, made.pid
        return self.connection_info


class ThisPython(AsyncKernelManager):
    """Kernels of the interpreter that runs this, whatever kernel named python3 is installed elsewhere for the user.

    The project's and the outputs' folders go to it as absolute paths, since a notebook runs in its own folder.
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
    """The kernel manager whose kernels come from this server; None: each is started anew."""
    return type("Kernels", (ThisPython,), {"server": server})
