"""Tensors on their way to an NVIDIA card and from it, without making the processor or the card wait."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")


def moved(values: torch.Tensor, to: torch.device) -> torch.Tensor:
    """The tensor on that device; to a card through pinned memory, since a copy from other memory is waited for."""
    if to.type != "cuda" or values.is_cuda:
        return values.to(to)
    return values.pin_memory().to(to, non_blocking=True)


class Coming:
    """A tensor on its way to the CPU: ``values()`` waits for it, which costs nothing when it has long arrived."""

    def __init__(self, there: torch.Tensor) -> None:
        self.arrived = None
        if not there.is_cuda:
            self.here = there.cpu()
            return
        self.here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
        self.here.copy_(there, non_blocking=True)
        self.arrived = torch.cuda.current_stream(there.device).record_event()

    def values(self) -> torch.Tensor:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.here


def prefetched(jobs: Iterable[Job], work: Callable[[Job], tuple], device: torch.device) -> Iterator[Any]:
    """``map(work, jobs)`` on a stream of its own, one result ahead of the one in use.

    ``work`` copies to ``device`` and computes there; it gives a tuple of tensors. A result is handed over when the
    stream that reads it has been told to wait for it, and its memory is not used again before that stream is done.
    """
    beside = torch.cuda.Stream(device)
    waiting: list[tuple] = []
    for job in jobs:
        with torch.cuda.stream(beside):
            waiting.append((job, work(job), beside.record_event()))
        if len(waiting) > 1:
            yield _handed_over(*waiting.pop(0)[1:], device)
    for _, result, done in waiting:
        yield _handed_over(result, done, device)


def _handed_over(result: tuple, done: torch.cuda.Event, device: torch.device) -> tuple:
    reader = torch.cuda.current_stream(device)
    reader.wait_event(done)
    for value in result:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            value.record_stream(reader)
    return result
