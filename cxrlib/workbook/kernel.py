"""The kernel that notebooks of a run are executed by."""

import os
import sys

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

from cxrlib import paths


class ThisPython(AsyncKernelManager):
    """Starts the interpreter that runs this, whatever kernel named python3 is installed elsewhere for the user.

    The project's and the outputs' folders go to it as absolute paths, since a notebook runs in its own folder.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=CRITICAL"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=environment())


def environment() -> dict[str, str]:
    """What is laid over our own environment; the last entry silences the debugger's word on frozen modules.

    Nobody looks on, so nothing is drawn live (``live.QUIET``).
    """
    folders = {"CXR_OUTPUTS": str(paths.outputs()), "CXR_PROJECT": str(paths.project())}
    return {**os.environ, **folders, "CXR_QUIET": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
