"""Work shared out among processes that end with the one that started them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import TypeVar

import cv2
from tqdm.auto import tqdm

Key = TypeVar("Key")
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(work: Callable[..., Result], jobs: dict[Key, tuple], workers: int) -> Iterator[tuple[Key, Result]]:
    """``work(*job)`` for every job, in the order in which they are done, each with its key.

    With one worker it is done here; if a worker dies, what is left is done here too.
    """
    left = dict(jobs)
    if workers > 1:
        # Not forked: a fork of a process whose libraries run threads can hang.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)
        try:
            futures = {pool.submit(work, *job): key for key, job in jobs.items()}
            for future in as_completed(futures):
                result = future.result()
                del left[futures[future]]
                yield futures[future], result
        except BrokenProcessPool:
            tqdm.write("a worker process died; going on with one")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for key, job in left.items():
        yield key, work(*job)


def _start() -> None:
    """Set a worker up: one thread, deaf to Ctrl-C (its parent hears it), gone when its parent is."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent_process().join()
    os._exit(1)
