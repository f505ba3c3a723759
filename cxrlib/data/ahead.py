"""Prefetch: a thread makes the next results while the consumer works on the present one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def ahead(work: Callable[[Job], Result], jobs: Iterable[Job], depth: int = 3) -> Iterator[Result]:
    """``map(work, jobs)``, computed in a thread up to ``depth`` results in advance.

    An exception of ``work`` is raised at its place in the order. The thread ends when the iterator is closed.
    """
    jobs = iter(jobs)
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        futures = deque(thread.submit(work, job) for job in islice(jobs, depth))
        while futures:
            result = futures.popleft().result()
            futures.extend(thread.submit(work, job) for job in islice(jobs, 1))
            yield result
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
