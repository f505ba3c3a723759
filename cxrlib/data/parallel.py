"""Parallel work in processes that end with the process that started them."""

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
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_in_processes(work: Callable[..., Result], jobs: dict[Key, tuple], workers: int) -> Iterator[tuple[Key, Result]]:
    """Results of ``work(*job)`` for each job, with the job's key, in the order of completion.

    With one worker this process does the work. If a worker dies, this process does the rest.
    """
    remaining = dict(jobs)
    if workers > 1:
        # "spawn", not "fork": a fork can hang if libraries of the process run threads.
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)
        try:
            futures = {pool.submit(work, *job): key for key, job in jobs.items()}
            for future in as_completed(futures):
                result = future.result()
                del remaining[futures[future]]
                yield futures[future], result
        except BrokenProcessPool:
            tqdm.write("a worker process died; this process continues alone")
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for key, job in remaining.items():
        yield key, work(*job)


def _start() -> None:
    """Set up a worker: one OpenCV thread, no reaction to Ctrl-C (the parent handles it), exit with the parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent_process().join()
    os._exit(1)
