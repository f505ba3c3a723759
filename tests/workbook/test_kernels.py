"""Kernels forked from a process that has imported the libraries: they behave as new processes do, and they end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest

from cxrlib import UserError, paths
from cxrlib.workbook import kernel_server
from cxrlib.workbook import kernels as kernel_rooms

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
WAIT = 60
ENVIRONMENT = """import os, random, signal, sys
import cv2, numpy as np, pandas, seaborn, sklearn.neighbors, threadpoolctl, torch, torchvision
import matplotlib.pyplot as plt
from tqdm.auto import tqdm
print(sys.argv[:2], sys.argv[3:], os.getcwd(), sys.path)
print(sorted(name for name in os.environ if name != "JPY_PARENT_PID"), os.environ["MPLBACKEND"], plt.get_backend())
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), os.getsid(0) == os.getpid())
print(tqdm.__module__, sys.stdin.closed, os.read(0, 1), __name__)
print(torch.get_num_threads(), sorted({(d["internal_api"], d["num_threads"]) for d in threadpoolctl.threadpool_info()}))
print(torch.cuda.is_initialized(), torch.is_grad_enabled())"""
COMPUTING = """torch.manual_seed(0)
print(torch.nn.Conv2d(3, 8, 3)(torch.randn(2, 3, 64, 64)).sum().item())
print((torch.randn(500, 500) @ torch.randn(500, 500)).sum().item())
square = np.random.default_rng(0).random((300, 300))
print((square @ square).sum(), cv2.resize(square, (10, 10)).sum())
plt.plot([1, 2])
plt.show()"""
DRAWING = "print(np.random.rand(), random.random(), torch.initial_seed(), torch.rand(1))"


@pytest.fixture(scope="module")
def kernels():
    with kernel_rooms.KernelSource() as kernels:
        yield kernels


def executed(folder, server):
    """The outputs of a notebook's cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in (ENVIRONMENT, DRAWING, COMPUTING)]
    book = nbformat.v4.new_notebook(cells=cells)
    book.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(book, folder / "in.ipynb")
    how = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    manager = {
        "kernel_manager_class": kernel_rooms.kernel_manager(server),
        "resources": {"metadata": {"path": str(folder)}},
    }
    done = papermill.execute_notebook(str(folder / "in.ipynb"), str(folder / "out.ipynb"), {}, **how, **manager)
    return [cell.outputs for cell in done.cells]


@pytest.mark.slow
def test_a_forked_kernel_is_like_a_started_one_but_for_chance(kernels, tmp_path):
    started, forked, again = (executed(tmp_path, server) for server in (None, kernels.server, kernels.server))
    assert kernels.server.state == "yes", "nothing was forked"
    assert (forked[0], forked[2]) == (started[0], started[2])
    drawn = [outputs[1][0]["text"].split() for outputs in (started, forked, again)]
    assert all(len(set(numbers)) == 3 for numbers in zip(*drawn, strict=True)), "kernels share their random state"


def process(kernels, code, folder):
    return kernels.server.fork(["-c", code], str(folder), kernel_rooms.environment(), out=str(folder / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "ended"),
    [("import sys; sys.exit(3)", 3), ("1 / 0", 1), ("pass", 0), ("import os; os.kill(os.getpid(), 9)", -9)],
)
def test_how_a_process_ended_is_told(kernels, tmp_path, code, ended):
    assert process(kernels, code, tmp_path).end() == ended


@pytest.mark.slow
def test_an_interrupt_reaches_it_and_a_kill_ends_it(kernels, tmp_path):
    code = """
import time
print("ready", flush=True)
try:
    time.sleep(100)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(100)
"""
    made = process(kernels, code, tmp_path)
    for number, words in ((signal.SIGINT, "ready\n"), (signal.SIGKILL, "ready\ninterrupted\n")):
        until(lambda words=words: (tmp_path / "out").exists() and (tmp_path / "out").read_text() == words)
        made.send_signal(number)
    assert made.end() == -signal.SIGKILL


def until(true):
    """Wait until a condition is true."""
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_the_device_is_asked_in_a_process_of_its_own(kernels):
    assert kernels.device.startswith("cpu") or kernels.device
    assert "torch" not in kernel_server.__dict__


@pytest.mark.slow
def test_a_device_that_cannot_be_used_is_told(monkeypatch):
    monkeypatch.setenv("CXR_DEVICE", "abacus")
    monkeypatch.setenv(kernel_rooms.FORK, "0")
    with kernel_rooms.KernelSource() as kernels, pytest.raises(UserError, match="device 'abacus' is unknown; give cpu"):
        _ = kernels.device


@pytest.mark.slow
def test_without_its_server_a_kernel_is_started(tmp_path, kernels):
    with kernel_rooms.KernelSource() as dying:
        dying.server.process.kill()
        assert process(dying, "pass", tmp_path) is None
        assert dying.output("print(1)") == ("1\n", 0)


CHAIN = """
import sys, time
from cxrlib.workbook import kernels
with kernels.KernelSource() as source:
    code = "import time; time.sleep(100)"
    made = source.server.fork(["-c", code], ".", kernels.environment(), out="/dev/null")
    print(source.server.process.pid, made.pid, flush=True)
    time.sleep(100)
"""


@pytest.mark.slow
def test_a_killed_chain_leaves_no_process():
    how = {"stdout": subprocess.PIPE, "text": True, "cwd": paths.PACKAGE.parent}
    with subprocess.Popen([sys.executable, "-c", CHAIN], **how) as chain:
        left = [int(pid) for pid in chain.stdout.readline().split()]
        assert len(left) == 2
        chain.kill()
    until(lambda: not any(runs(pid) for pid in left))


def runs(pid):
    """True if a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_switched_off_or_elsewhere_there_is_no_server(monkeypatch):
    monkeypatch.setenv(kernel_rooms.FORK, "0")
    assert kernel_rooms.KernelSource().server is None
    monkeypatch.delenv(kernel_rooms.FORK)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert kernel_rooms.KernelSource().server is None


def test_a_process_with_threads_is_not_forked(monkeypatch):
    monkeypatch.setattr(kernel_server.Path, "iterdir", lambda folder: iter("12"))
    assert kernel_server.unsafe() == "2 threads run after the imports"
