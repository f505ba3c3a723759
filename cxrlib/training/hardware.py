"""Device, precision, memory and signals of this machine."""

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
"""Image side in pixels at which a ResNet's last group has a single pixel."""
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Allocator settings of glibc, see mallopt(3)."""
CPU_BF16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
FP16_GAINS = {(6, 0), (7, 0), (7, 2), (7, 5)}
"""Compute capabilities without bfloat16 but with fast float16: P100, V100, Xavier, T4, RTX 20 cards. On other cards of
capability 6, float16 has 1/64 of float32's rate (CUDA C++ Programming Guide, throughput of arithmetic instructions)."""
LOST = re.compile(r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|cuDNN error|device-side assert|NCCL error")
DEVICE = "CXR_DEVICE"
"""Environment variable that names the device: cpu, cuda, cuda:1 or mps."""


def device(wanted: str | torch.device | None = None) -> torch.device:
    """The device: ``wanted``, else the one in ``CXR_DEVICE``, else the best one: CUDA, then Apple's, then the CPU.

    Raises UserError for an absent device, and for an NVIDIA card that this torch cannot use: a message is better than
    a day of training on the CPU beside an idle card.
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
    """Whether bfloat16 is native on the device. Emulated, it is slower: 10 times on a CPU with AVX2 only."""
    if at.type == "cuda":
        return torch.cuda.get_device_capability(at) >= (8, 0)
    if at.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in CPU_BF16)
    return False


def fp16(at: torch.device) -> bool:
    """Whether float16 training works on the device: always on CUDA, on Apple's devices where torch supports it."""
    if at.type == "cpu":
        return bool(getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", bool)())
    return at.type == "cuda" or (at.type == "mps" and torch.amp.is_autocast_available("mps"))


def dtype(at: torch.device, precision: str = "auto") -> torch.dtype:
    """The torch dtype of a recipe's ``precision`` on the device: float32, bfloat16 or float16.

    "auto" means bfloat16 where it is native, float16 on CUDA cards without it in ``FP16_GAINS``, else float32, also on
    Apple's devices. Raises UserError where the device lacks the precision.
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
    """The torch dtype for predictions. A precision that the device lacks is replaced by "auto".

    So a checkpoint trained in bfloat16 on a card works on any laptop.
    """
    return dtype(at, precision if precision in available(at) else "auto")


def available(at: torch.device) -> list[str]:
    """Precisions that a device supports."""
    return ["float32"] + ["bfloat16"] * bf16(at) + ["float16"] * fp16(at)


def name(of: torch.dtype) -> str:
    """Name of a dtype: ``bfloat16`` for torch.bfloat16."""
    return str(of).removeprefix("torch.")


def autocast(at: torch.device, to: torch.dtype) -> AbstractContextManager:
    """torch's autocast to bfloat16 or float16; nothing for float32."""
    return nullcontext() if to == torch.float32 else torch.autocast(at.type, to)


def lost(error: BaseException) -> bool:
    """Whether an error means a GPU failure other than out of memory."""
    return isinstance(error, RuntimeError) and not no_memory(error) and bool(LOST.search(str(error)))


def require_size(part: Any, to: torch.dtype) -> None:
    """Raise UserError where the images of ``part`` are too small to train in bfloat16.

    At 16 pixels layer4 has a single pixel. On a CPU its strided convolution leaves the gradients of the taps in the
    padding unset: with torch 2.15 they were NaN, without an error.
    """
    size = getattr(getattr(part, "store", None), "size", None)
    if to == torch.bfloat16 and size is not None and size <= SMALL:
        problem = f"films of {size} pixels are too small for bfloat16"
        raise UserError(f'{problem}; give size {2 * SMALL} or more, or also="precision=float32"')


def no_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on CUDA, the CPU or Apple's devices."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@contextmanager
def failures_of(at: torch.device, what: str, batch_size: int) -> Iterator[None]:
    """Raise UserError for out of memory and for a GPU failure inside the block. Includes ``keeping_memory``.

    The message has the batch size that fits, where the error's ``fits`` has it.
    """
    try:
        with keeping_memory(at):
            yield
    except (MemoryError, RuntimeError) as error:
        if lost(error):
            raise UserError(
                f"{what}: the GPU failed ({str(error).splitlines()[0]}); the last saved state is kept, and the same "
                "command resumes from it. If it fails again, look at nvidia-smi and the system's log"
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
    """Keep freed memory in the process for its next allocations, inside the block, on a CPU.

    By default glibc returns blocks above 32 MiB to the kernel at once, and the kernel zeroes new ones. For the
    activations this takes a tenth of a step that trains all of a ResNet-50 (224 px, batch 32, two cores; 165,000 page
    faults), and a third of a prediction in float32. After the block, glibc has the settings of a process that has used
    large blocks, and free memory goes back to the system. With another C library nothing changes.
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
    """Delay Ctrl-C, a notebook's interrupt and SIGTERM inside the block, so that no step is left half done.

    Yields a function that returns the first signal's name, "" for none. A second Ctrl-C interrupts at once. A SIGTERM
    after a Ctrl-C does not, because launchers send one to processes that were already interrupted.
    Outside the main thread signals cannot be delayed, and nothing changes.
    """
    signals: list[str] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and signal.SIGINT.name in signals:
            raise KeyboardInterrupt
        signals.append(signal.Signals(number).name)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: signals[0] if signals else ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
