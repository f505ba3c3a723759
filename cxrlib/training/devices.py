"""Devices: which one is used, in which precision, whether a card can be used, its memory, and interrupts."""

import ctypes
import math
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cxrlib import UserError

NODES = ("/dev/nvidiactl", "/dev/dxg")
"""Device files of the NVIDIA driver on Linux, and on Linux under Windows."""
ON_CPU = "set CXR_DEVICE=cpu to go on without it"
BUILDS = "see https://pytorch.org/get-started for the builds of torch"


def require_usable_card(at: torch.device) -> torch.device:
    """The device itself, if it exists, opens, and this torch has code for it. Raises UserError otherwise."""
    _check_opens(str(at))
    return at


@cache
def _check_opens(name: str) -> None:
    at = torch.device(name)
    if not torch.cuda.is_available():
        refuse_idle_card()
        raise UserError(f"device {name} is not available: no NVIDIA card is found; {ON_CPU}")
    number = at.index or 0
    if number >= torch.cuda.device_count():
        raise UserError(f"there is no {name}: this machine shows {torch.cuda.device_count()} cards, from cuda:0 on")
    card, capability = torch.cuda.get_device_name(at), torch.cuda.get_device_capability(at)
    if not has_code(capability, torch.cuda.get_arch_list()):
        raise UserError(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) has no code for {card}, compute capability "
            f"{capability[0]}.{capability[1]}; install torch and torchvision built for an older CUDA, for example "
            f"uv pip install torch torchvision --torch-backend=cu126 ({BUILDS}), or {ON_CPU}"
        )
    try:
        torch.zeros(1, device=at).item()
    except RuntimeError as error:  # used by another process in exclusive mode, full, or failed
        reason = str(error).splitlines()[0]
        raise UserError(f"{card} ({name}) cannot be used ({reason}); see nvidia-smi, or {ON_CPU}") from None


def refuse_idle_card() -> None:
    """Raise UserError where the machine has a card and its driver, but this torch cannot open the card.

    A torch built for the CPU alone gives a warning only, because the user may want it.
    """
    if not any(Path(node).exists() for node in NODES):
        return
    if torch.version.cuda is None:
        warnings.warn(f"an NVIDIA card is here, but torch {torch.__version__} is built for the CPU alone", stacklevel=3)
        return
    raise UserError(f"the NVIDIA card cannot be used: {why_unusable(_complaint())}, or {ON_CPU}")


def why_unusable(complaint: str) -> str:
    """The reason why torch cannot open a card, from torch's own message: what is wrong and what to do."""
    match = re.search(r"too old \(found version (\d+)\)", complaint)
    if match:
        version = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
        return (
            f"its driver is for CUDA {version} at most, and torch {torch.__version__} is built for CUDA "
            f"{torch.version.cuda}; install a newer driver, or torch and torchvision for CUDA {version} ({BUILDS})"
        )
    return f"{complaint or 'torch gives no reason'}; see whether nvidia-smi lists it"


def has_code(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a build for these architectures ("sm_75", "compute_90") runs on a card of this capability.

    Binary code runs on the same major version and an equal or higher minor version. Intermediate code is compiled when
    it is loaded, for any equal or higher version (CUDA C++ Programming Guide, application compatibility). An empty
    list means unknown, and gives True.
    """
    names = re.findall(r"(sm|compute)_(\d+)", " ".join(built_for))
    versions = [(kind, divmod(int(number), 10)) for kind, number in names]
    fits = [version <= capability and (kind == "compute" or version[0] == capability[0]) for kind, version in versions]
    return not versions or any(fits)


def _complaint() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


SMALLEST_SIDE = 16
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
        return require_usable_card(torch.device("cuda"))
    refuse_idle_card()
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named(wanted: str | torch.device) -> torch.device:
    try:
        at = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device {wanted!r} is unknown; give cpu, cuda, cuda:1 or mps ({DEVICE})") from None
    if at.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device mps is not available here; give another in {DEVICE}, or unset it")
    return require_usable_card(at) if at.type == "cuda" else at


def has_bfloat16(at: torch.device) -> bool:
    """Whether bfloat16 is native on the device. Emulated, it is slower: 10 times on a CPU with AVX2 only."""
    if at.type == "cuda":
        return torch.cuda.get_device_capability(at) >= (8, 0)
    if at.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in CPU_BF16)
    return False


def has_float16(at: torch.device) -> bool:
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
        if has_bfloat16(at):
            return torch.bfloat16
        gains = at.type == "cuda" and torch.cuda.get_device_capability(at) in FP16_GAINS
        return torch.float16 if gains else torch.float32
    if precision not in available_precisions(at):
        what = torch.cuda.get_device_name(at) if at.type == "cuda" else f"this {at.type}"
        raise UserError(f"{what} has no {precision}; give precision={' or '.join(['auto', *available_precisions(at)])}")
    return getattr(torch, precision)


def inference_dtype(at: torch.device, precision: str = "auto") -> torch.dtype:
    """The torch dtype for predictions. A precision that the device lacks is replaced by "auto".

    So a checkpoint trained in bfloat16 on a card works on any laptop.
    """
    return dtype(at, precision if precision in available_precisions(at) else "auto")


def available_precisions(at: torch.device) -> list[str]:
    """Precisions that a device supports."""
    return ["float32"] + ["bfloat16"] * has_bfloat16(at) + ["float16"] * has_float16(at)


def dtype_name(of: torch.dtype) -> str:
    """Name of a dtype: ``bfloat16`` for torch.bfloat16."""
    return str(of).removeprefix("torch.")


def autocast(at: torch.device, to: torch.dtype) -> AbstractContextManager:
    """torch's autocast to bfloat16 or float16; nothing for float32."""
    return nullcontext() if to == torch.float32 else torch.autocast(at.type, to)


def is_gpu_failure(error: BaseException) -> bool:
    """Whether an error means a GPU failure other than out of memory."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and bool(LOST.search(str(error)))


def require_size_for_bfloat16(part: Any, to: torch.dtype) -> None:
    """Raise UserError where the images of ``part`` are too small to train in bfloat16.

    At 16 pixels layer4 has a single pixel. On a CPU its strided convolution leaves the gradients of the taps in the
    padding unset: with torch 2.15 they were NaN, without an error.
    """
    size = getattr(getattr(part, "store", None), "size", None)
    if to == torch.bfloat16 and size is not None and size <= SMALLEST_SIDE:
        problem = f"films of {size} pixels are too small for bfloat16"
        raise UserError(f'{problem}; give size {2 * SMALLEST_SIDE} or more, or override="precision=float32"')


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on CUDA, the CPU or Apple's devices."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def in_parts(batch_size: int, fits: int) -> tuple[int, int]:
    """A smaller batch of at most ``fits`` films, and how many of them make one step of ``batch_size``.

    The product is ``batch_size`` itself where it has a divisor of more than half of ``fits``, so that the step, and the
    rate that belongs to it, stay the recipe's; else the least above it. 128 films, of which 48 fit, become 4 times 32.
    """
    fits = max(min(fits, batch_size), 1)
    even = next((size for size in range(fits, fits // 2, -1) if batch_size % size == 0), fits)
    return even, math.ceil(batch_size / even)


@contextmanager
def explain_failures(at: torch.device, what: str, batch_size: int) -> Iterator[None]:
    """Raise UserError for out of memory and for a GPU failure inside the block. Includes ``keep_memory``.

    The message has the batch size that fits, where the error's ``fits`` has it.
    """
    try:
        with keep_memory(at):
            yield
    except (MemoryError, RuntimeError) as error:
        if is_gpu_failure(error):
            raise UserError(
                f"{what}: the GPU failed ({str(error).splitlines()[0]}); the last saved state is kept, and the same "
                "command resumes from it. If it fails again, look at nvidia-smi and the system's log"
            ) from None
        if not is_out_of_memory(error):
            raise
        fits = getattr(error, "fits", 0)
        smaller, parts = in_parts(batch_size, fits or batch_size // 2)
        raise UserError(
            f"{what} ran out of memory on {at} at batch size {batch_size}; {f'{fits} films fit: ' if fits else ''}"
            f'try batch_size {smaller} with override="accumulate={parts}", whose steps still see '
            f'{parts * smaller} films, override="split_on_oom=yes", or a smaller size'
        ) from None


@contextmanager
def keep_memory(at: torch.device) -> Iterator[None]:
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
def hold_back_interrupts() -> Iterator[Callable[[], str]]:
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
