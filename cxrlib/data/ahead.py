"""A few results made in advance by a thread, while the one who needs them works."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
_END = object()


def ahead(work: Callable[[Job], Result], jobs: Iterable[Job], depth: int = 3) -> Iterator[Result]:
    """``map(work, jobs)``, worked out up to ``depth`` results ahead in a thread.

    What ``work`` raises is raised here, in its place in the order. The thread ends when the iterator is closed.
    """
    results: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                results.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        try:
            for job in jobs:
                if not put((work(job), None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=run, name="batches ahead", daemon=True)
    thread.start()
    try:
        while True:
            result, error = results.get()
            if error is not None:
                raise error
            if result is _END:
                return
            yield result
    finally:
        stop.set()
        thread.join()
