"""Asynchronous copies of tensors to an NVIDIA GPU and back, without a wait of CPU or GPU."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")


def moved(values: torch.Tensor, to: torch.device) -> torch.Tensor:
    """Copy of a tensor on that device. A copy to a GPU uses pinned memory, because other memory makes the CPU wait."""
    if to.type != "cuda" or values.is_cuda:
        return values.to(to)
    return values.pin_memory().to(to, non_blocking=True)


class Coming:
    """Asynchronous copy of a tensor to the CPU. ``values()`` waits until the copy is complete."""

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
    """``map(work, jobs)`` on a separate CUDA stream, one result in advance.

    ``work`` copies to ``device``, computes there and returns a tuple of tensors. The consumer's stream waits for each
    result, and a result's memory is not reused before that stream has read it.
    """
    stream = torch.cuda.Stream(device)
    queue: list[tuple] = []
    for job in jobs:
        with torch.cuda.stream(stream):
            queue.append((job, work(job), stream.record_event()))  # the job holds pinned memory that is being copied
        if len(queue) > 1:
            yield _synchronised(*queue.pop(0)[1:], device)
    for _, result, done in queue:
        yield _synchronised(result, done, device)


def _synchronised(result: tuple, done: torch.cuda.Event, device: torch.device) -> tuple:
    """The result, ready for the consumer's stream."""
    reader = torch.cuda.current_stream(device)
    reader.wait_event(done)
    for value in result:
        if isinstance(value, torch.Tensor) and value.is_cuda:
            value.record_stream(reader)
    return result
