"""What the machine has, asked for when it is needed: the device, the precision that gains on it, its memory's end."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from cxrlib.errors import UserError

SMALL = 16
"""Side of films in pixels at which a ResNet's last group is down to a single one."""
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""glibc's settings of its allocator, see mallopt(3)."""
CPU_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def device(wanted: str | torch.device | None = None) -> torch.device:
    """The wanted device, or the best there is: CUDA, then Apple's, then the CPU."""
    if wanted:
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def bf16(at: torch.device) -> bool:
    """Whether bfloat16 is native there. Emulated it is slower than float32: 10 times on a CPU with AVX2 alone."""
    if at.type == "cuda":
        return torch.cuda.get_device_capability(at) >= (8, 0)
    if at.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in CPU_BF16)
    return False


def half(at: torch.device, precision: str = "auto") -> bool:
    """Whether a recipe's ``precision`` means bfloat16 there: "auto" takes it where it is native."""
    return precision == "auto" and bf16(at)


def autocast(at: torch.device, precision: str = "auto") -> AbstractContextManager:
    """bfloat16 autocast where ``half`` says so, float32 elsewhere. It needs no loss scaling, unlike float16."""
    return torch.autocast(at.type, torch.bfloat16) if half(at, precision) else nullcontext()


def require_size(part: Any, halved: bool) -> None:
    """Raise UserError where the films of ``part`` would be trained on in bfloat16 and are too small for it.

    At 16 pixels layer4 sees a single one, and its strided convolution on a CPU leaves the gradients of taps that lie
    in the padding unset: torch 2.15 was seen to put NaN there, without a word.
    """
    size = getattr(getattr(part, "store", None), "size", None)
    if halved and size is not None and size <= SMALL:
        what = f"films of {size} pixels are too small for bfloat16"
        raise UserError(f'{what}; give size {2 * SMALL} or more, or also="precision=float32"')


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in the words of CUDA, the CPU or Apple's devices."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@contextmanager
def memory_of(at: torch.device, what: str, batch_size: int) -> Iterator[None]:
    """Turn running out of memory into a UserError with the batch size to try; keep what is freed on a CPU."""
    try:
        with keeping_memory(at):
            yield
    except (MemoryError, RuntimeError) as error:
        if not no_memory(error):
            raise
        smaller = max(batch_size // 2, 1)
        raise UserError(
            f"{what} ran out of memory on {at} at batch size {batch_size}; "
            f'try batch_size {smaller} with also="accumulate=2", whose steps still see {2 * smaller} films, '
            'also="halve=yes", or a smaller size'
        ) from None


@contextmanager
def keeping_memory(at: torch.device) -> Iterator[None]:
    """On a CPU, let the process keep memory that is freed inside the block for its next allocations.

    glibc hands blocks above 32 MiB back at once and has the kernel zero new ones, for every activation of every step:
    a tenth of the time of a step that trains all of a ResNet-50 (224 px, batch 32, two cores; 165,000 page faults), a
    third of that of reading films in float32. Afterwards glibc's ways are those of a process that has seen large
    blocks, and what is free goes back to the system. Where the C library is another, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if at.type == "cpu" and sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(MMAP_MAX, 65536)
        mallopt(MMAP_THRESHOLD, 2**25)
        mallopt(TRIM_THRESHOLD, 2**26)
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def interrupts() -> Iterator[Callable[[], str]]:
    """Hold back Ctrl-C, a notebook's interrupt and SIGTERM inside the block, so that a step is never torn.

    Gives a function that says which signal came, "" for none. A second Ctrl-C interrupts at once; a SIGTERM after it
    does not, since a launcher sends one to processes that have had theirs.
    Outside the main thread signals cannot be held back, and nothing is changed.
    """
    came: list[str] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and signal.SIGINT.name in came:
            raise KeyboardInterrupt
        came.append(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: came[0] if came else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
