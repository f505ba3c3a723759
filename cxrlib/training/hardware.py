"""What the machine has, asked for when it is needed: the device, the precision that gains on it, its memory's end."""

import ctypes
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from cxrlib.errors import UserError
from cxrlib.training import cards

SMALL = 16
"""Side of films in pixels at which a ResNet's last group is down to a single one."""
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""glibc's settings of its allocator, see mallopt(3)."""
CPU_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
FP16_GAINS = {(6, 0), (7, 0), (7, 2), (7, 5)}
"""Compute capabilities without bfloat16 whose float16 is fast: P100, V100, Xavier, T4 and the RTX 20 cards. Others of
capability 6 have it at a 64th of float32's rate (CUDA C++ Programming Guide, throughput of arithmetic instructions)."""
LOST = re.compile(r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|cuDNN error|device-side assert|NCCL error")
DEVICE = "CXR_DEVICE"
"""Environment variable that names the device: cpu, cuda, cuda:1 or mps."""


def device(wanted: str | torch.device | None = None) -> torch.device:
    """The wanted device, or what ``CXR_DEVICE`` names, or the best there is: CUDA, then Apple's, then the CPU.

    Raises UserError for a device that is not there, and for an NVIDIA card that this torch cannot use: a day on the
    CPU beside an idle card is worse than a message.
    """
    wanted = wanted or os.environ.get(DEVICE)
    if wanted:
        return _named(wanted)
    if torch.cuda.is_available():
        return cards.usable(torch.device("cuda"))
    cards.refuse_idle_card()
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named(wanted: str | torch.device) -> torch.device:
    try:
        at = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device {wanted!r} is unknown; give cpu, cuda, cuda:1 or mps ({DEVICE})") from None
    if at.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device mps is not available here; give another in {DEVICE}, or unset it")
    return cards.usable(at) if at.type == "cuda" else at


def bf16(at: torch.device) -> bool:
    """Whether bfloat16 is native there. Emulated it is slower than float32: 10 times on a CPU with AVX2 alone."""
    if at.type == "cuda":
        return torch.cuda.get_device_capability(at) >= (8, 0)
    if at.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in CPU_BF16)
    return False


def fp16(at: torch.device) -> bool:
    """Whether a network can be trained in float16 there: every CUDA card can, Apple's where torch has it."""
    if at.type == "cpu":
        return bool(getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", bool)())
    return at.type == "cuda" or (at.type == "mps" and torch.amp.is_autocast_available("mps"))


def dtype(at: torch.device, precision: str = "auto") -> torch.dtype:
    """What a recipe's ``precision`` means there: torch.float32, bfloat16 or float16.

    "auto" takes bfloat16 where it is native; on CUDA cards without it that gain by float16, float16; else float32,
    also on Apple's devices. Raises UserError where the device lacks the precision that was asked for.
    """
    if precision == "auto":
        if bf16(at):
            return torch.bfloat16
        gains = at.type == "cuda" and torch.cuda.get_device_capability(at) in FP16_GAINS
        return torch.float16 if gains else torch.float32
    if precision not in available(at):
        what = torch.cuda.get_device_name(at) if at.type == "cuda" else f"this {at.type}"
        raise UserError(f"{what} has no {precision}; give precision={' or '.join(['auto', *available(at)])}")
    return getattr(torch, precision)


def dtype_to_read(at: torch.device, precision: str = "auto") -> torch.dtype:
    """The same for reading films, where a precision that the device lacks gives way to "auto".

    So a checkpoint trained in bfloat16 on a card can be read on any laptop.
    """
    return dtype(at, precision if precision in available(at) else "auto")


def available(at: torch.device) -> list[str]:
    """The precisions that a device has."""
    return ["float32"] + ["bfloat16"] * bf16(at) + ["float16"] * fp16(at)


def name(of: torch.dtype) -> str:
    """``bfloat16`` for torch.bfloat16."""
    return str(of).removeprefix("torch.")


def autocast(at: torch.device, to: torch.dtype) -> AbstractContextManager:
    """torch's autocast to bfloat16 or float16; nothing for float32."""
    return nullcontext() if to == torch.float32 else torch.autocast(at.type, to)


def lost(error: BaseException) -> bool:
    """Whether an error says that a GPU failed, apart from its memory running out."""
    return isinstance(error, RuntimeError) and not no_memory(error) and bool(LOST.search(str(error)))


def require_size(part: Any, to: torch.dtype) -> None:
    """Raise UserError where the films of ``part`` would be trained on in bfloat16 and are too small for it.

    At 16 pixels layer4 sees a single one, and its strided convolution on a CPU leaves the gradients of taps that lie
    in the padding unset: torch 2.15 was seen to put NaN there, without a word.
    """
    size = getattr(getattr(part, "store", None), "size", None)
    if to == torch.bfloat16 and size is not None and size <= SMALL:
        what = f"films of {size} pixels are too small for bfloat16"
        raise UserError(f'{what}; give size {2 * SMALL} or more, or also="precision=float32"')


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in the words of CUDA, the CPU or Apple's devices."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@contextmanager
def failures_of(at: torch.device, what: str, batch_size: int) -> Iterator[None]:
    """Turn running out of memory, and a GPU that fails, into a UserError; keep what is freed on a CPU.

    Where the error knows how many films at once there is room for (``fits``), the message says so.
    """
    try:
        with keeping_memory(at):
            yield
    except (MemoryError, RuntimeError) as error:
        if lost(error):
            raise UserError(
                f"{what}: the GPU failed ({str(error).splitlines()[0]}); the state saved last is kept, and the same "
                "command goes on from there. If it comes again, look at nvidia-smi and the system's log"
            ) from None
        if not no_memory(error):
            raise
        fits = getattr(error, "fits", 0)
        smaller = fits or max(batch_size // 2, 1)
        parts = math.ceil(batch_size / smaller)
        raise UserError(
            f"{what} ran out of memory on {at} at batch size {batch_size}; {f'{fits} films fit: ' if fits else ''}"
            f'try batch_size {smaller} with also="accumulate={parts}", whose steps still see {parts * smaller} films, '
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
