"""Kernel server: a program that imports the slow libraries once and forks every notebook's kernel from itself.

``python -m cxrlib.workbook.kernel_server FD``, started by ``kernels.KernelServer``; FD is its end of a socket. Requests
and answers are JSON, one per line: ``{"ready": ""}``, or the reason why it will not fork; ``{"pid": …}`` for a request
with ``argv``, ``cwd`` and ``env``; ``{"ended": pid, "code": …}`` when a kernel has ended. It ends when the socket is
closed. With ``argv`` of ``-c CODE`` the process runs that code, and its output goes to the file ``out``.

A forked kernel has its own session, folder, environment, standard input, signal handlers, arguments and random state;
it only saves the time of the imports. A fork is safe while the server has one thread and has not used a GPU; both are
checked. No module of this project is imported, and none that looks at its environment when imported.
"""

import gc
import importlib
import importlib.util
import json
import os
import random
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

LIBRARIES = (
    *("torch", "torchvision.models.resnet", "pandas", "matplotlib.pyplot", "seaborn", "scipy.stats", "cv2"),
    *("scipy.special", "sklearn.neighbors", "sklearn.model_selection", "safetensors.torch", "ipywidgets"),
    *("torch.nn.utils.fusion", "ipykernel.kernelapp", "PIL.Image"),
)
"""Slow imports of notebooks and our modules. Not ``tqdm.auto``: its import checks whether it runs in a notebook."""
BLAS = "OPENBLAS_NUM_THREADS"
THREADLESS = {BLAS: "1", "NUMEXPR_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment variables without which imports start threads: NumPy's BLAS, and numexpr and pyarrow (in its memory
allocator), which pandas imports where they are installed."""
LOOK = 0.1
"""Seconds between two checks for kernels that have ended."""


def main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the chain handles Ctrl-C
    link = socket.socket(fileno=descriptor)
    before = dict(os.environ)
    os.environ.update(THREADLESS)
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # kernels share these memory pages; a garbage collection would write to them and copy them
    reason = unsafe()
    tell(link, {"ready": reason})
    if not reason:
        changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
        own = {name: value for name, value in changed.items() if name not in THREADLESS}
        serve(link, own)
    os._exit(0)  # without the exit handlers of the libraries


def unsafe() -> str:
    """Reason why this process must not be forked; "" if it may."""
    import torch

    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads} threads run after the imports"
    return "a GPU was used" if torch.cuda.is_initialized() else ""


def serve(link: socket.socket, own: dict[str, str]) -> None:
    """Answer requests until the other end of the socket is closed; then kill the kernels that still run.

    own: environment variables that the libraries have set.
    """
    waiting, running = b"", set()
    while True:
        running -= reap(link)
        if not select.select([link], [], [], LOOK)[0]:
            continue
        received = link.recv(65536)
        if not received:
            for pid in running:
                with suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
            return
        *lines, waiting = (waiting + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                become(request, link, own)
            running.add(pid)
            tell(link, {"pid": pid})


def reap(link: socket.socket) -> set[int]:
    """Report the kernels that have ended; returns their process ids."""
    ended = set()
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            tell(link, {"ended": child[0], "code": os.waitstatus_to_exitcode(child[1])})
            ended.add(child[0])
    return ended


def tell(link: socket.socket, answer: dict) -> None:
    with suppress(OSError):  # the client is gone; the next ``recv`` shows it
        link.sendall(json.dumps(answer).encode() + b"\n")


def become(request: dict, link: socket.socket, own: dict[str, str]) -> None:
    """Turn this process into the requested kernel. Does not return."""
    try:
        parent = os.getppid()
        link.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"] | own, JPY_PARENT_PID=str(parent))
        silent = os.open(os.devnull, os.O_RDONLY)
        os.dup2(silent, 0)
        os.close(silent)
        sys.argv = request["argv"]
        if spec := importlib.util.find_spec(sys.argv[0]) if sys.argv[0] != "-c" else None:
            sys.argv[0] = spec.origin  # as ``python -m`` does
        del sys.path[0]  # the folder that this program was started in
        as_new()
        work(request)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work(request: dict) -> None:
    """Run a kernel, or the requested code."""
    if request["argv"][0] != "-c":
        from ipykernel import kernelapp

        kernelapp.launch_new_instance()
        return
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    exec(compile(request["argv"][1], "<chain>", "exec"), {"__name__": "__main__"})


def as_new() -> None:
    """Set what the imports fixed to the state of a new process: BLAS threads, random states, matplotlib's backend.

    ipykernel sets the backend as an environment variable, which matplotlib reads only at its import.
    """
    import matplotlib
    import numpy as np
    import pandas as pd
    import threadpoolctl
    import torch

    threads = int(os.environ.get(BLAS) or os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    threadpoolctl.threadpool_limits(threads, user_api="blas")
    if numexpr := sys.modules.get("numexpr"):
        numexpr.set_num_threads(int(os.environ.get("NUMEXPR_NUM_THREADS") or min(numexpr.ncores, 16)))  # its default
    pd.set_option("display.max_columns", 20)  # pandas' value when it is imported without a terminal
    torch.default_generator.seed()
    np.random.seed()
    random.seed()
    backend = os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    matplotlib.rcParams["backend"] = backend


if __name__ == "__main__":
    main(int(sys.argv[1]))
