"""A program that imports the heavy libraries once and forks a notebook's kernel from itself, again and again.

``python -m cxrlib.workbook.kernel_server FD``, started by ``kernel.Server``; FD is its end of a socket. It reads one
request a line as JSON and answers in kind: ``{"ready": ""}`` or why it will not fork; ``{"pid": …}`` for a kernel
asked for by ``argv``, ``cwd`` and ``env``; ``{"ended": pid, "code": …}`` when one has ended. It ends with its socket.
With ``argv`` of ``-c CODE`` the process runs that instead, its output going to the file ``out``.

A kernel made so is a process of its own, as one that is started: session, folder, environment, standard input, signal
handlers, arguments and random state are a new one's. Only the reading of the libraries' files is spared. A fork is
safe as long as nothing has computed here, so that there is one thread and no card has been touched: that is checked.
None of our own modules is imported, and none that asks at import who it runs under.
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

LIBRARIES = ("torch", "torchvision.models.resnet", "pandas", "matplotlib.pyplot", "seaborn", "scipy.stats", "cv2",
             "scipy.special", "sklearn.neighbors", "sklearn.model_selection", "safetensors.torch", "ipywidgets",
             "torch.nn.utils.fusion", "ipykernel.kernelapp", "PIL.Image")  # fmt: skip
"""What notebooks and our modules import that takes time. Not ``tqdm.auto``, which asks at import who it runs under."""
BLAS = "OPENBLAS_NUM_THREADS"
"""NumPy's library of matrix products starts its threads when it is imported, unless this is 1."""
LOOK = 0.1
"""Seconds between two looks for kernels that have ended."""


def main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the chain's to hear
    link = socket.socket(fileno=descriptor)
    before = dict(os.environ)
    os.environ[BLAS] = "1"
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the kernels then share these pages, which a collection would write to
    reason = unsafe()
    tell(link, {"ready": reason})
    if not reason:
        own = {name: value for name, value in os.environ.items() if before.get(name) != value and name != BLAS}
        serve(link, own)
    os._exit(0)  # an orderly end would have every library take its leave


def unsafe() -> str:
    """Why this process must not be forked, "" where it may."""
    import torch

    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads} threads run after the imports"
    return "a card was touched" if torch.cuda.is_initialized() else ""


def serve(link: socket.socket, own: dict[str, str]) -> None:
    """Answer requests until the other end of the socket is closed; kernels that still run then end as well.

    ``own``: what the libraries have set in the environment.
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
    """Tell of the kernels that have ended."""
    ended = set()
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            tell(link, {"ended": found[0], "code": os.waitstatus_to_exitcode(found[1])})
            ended.add(found[0])
    return ended


def tell(link: socket.socket, answer: dict) -> None:
    with suppress(OSError):  # whoever asked is gone, which the next reading tells
        link.sendall(json.dumps(answer).encode() + b"\n")


def become(request: dict, link: socket.socket, own: dict[str, str]) -> None:
    """Go on as the kernel that was asked for. Does not return."""
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
            sys.argv[0] = spec.origin  # as ``python -m`` names the program
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
    """Be a kernel, or run the code that was given."""
    if request["argv"][0] != "-c":
        from ipykernel import kernelapp

        kernelapp.launch_new_instance()
        return
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    exec(compile(request["argv"][1], "<chain>", "exec"), {"__name__": "__main__"})


def as_new() -> None:
    """Bring what the imports had settled to the state of a new process: BLAS's threads, random state, the backend.

    ipykernel names matplotlib's backend in the environment, where matplotlib looks when it is imported.
    """
    import matplotlib
    import numpy as np
    import pandas as pd
    import threadpoolctl
    import torch

    threads = int(os.environ.get(BLAS) or os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    threadpoolctl.threadpool_limits(threads, user_api="blas")
    pd.set_option("display.max_columns", 20)  # as where no terminal is found when pandas is imported
    torch.default_generator.seed()
    np.random.seed()
    random.seed()
    backend = os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    matplotlib.rcParams["backend"] = backend


if __name__ == "__main__":
    main(int(sys.argv[1]))
