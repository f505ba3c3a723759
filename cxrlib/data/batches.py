"""Batches of tensors from a store: an epoch's order, films gathered and augmented, on the network's device.

Every random draw is a pure function of (seed, epoch, position in the epoch). The counter-based generator Philox gives
the table of random numbers of a whole epoch at its start. So any batch can be made again, a run can go on in
mid-epoch, and several processes that share an epoch see every film once. A thread prefetches the next batches while
the network works; on an NVIDIA card a stream of its own moves them there.

A batch comes out on the device of the network that reads it: the caller of ``epoch`` names the device.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch

from cxrlib import UserError, labels, randomness
from cxrlib.data import augmentation, records
from cxrlib.data.store import Store

_ORDER, _TABLE = 0, 1
_HERNIA = labels.column("Hernia")


def random_table(films: int, draws: int, seed: int, epoch: int) -> np.ndarray:
    """Random numbers (films, draws) float32 in [0, 1): one row per position of the epoch."""
    raw = randomness.raw(films * draws, seed, epoch, _TABLE)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(films, draws)


def epoch_order(films: int, seed: int, epoch: int) -> np.ndarray:
    """Random order of the positions 0 … films - 1, (films,) int64."""
    return randomness.permutation(films, seed, epoch, _ORDER)


def cap_per_label(marks: np.ndarray, cap: int) -> np.ndarray:
    """Films kept if each of the 15 labels may occur ``cap`` times: positions (k,) int64, ascending.

    ``marks`` are labels (N, 15) in the order of the draw; only those that are 1 count. All Hernia films are kept and
    counted first. Then a film is kept if none of its labels has reached the cap. The original did this film by film,
    and dropped the first film of each class that has only that label; this function keeps it.
    """
    marks = marks == 1
    hernia = marks[:, _HERNIA]
    counts = marks[hernia].sum(0, dtype=np.int64)
    full = counts >= cap
    full[_HERNIA] = False  # Hernia has no cap
    kept = [np.flatnonzero(hernia)]
    rest = np.flatnonzero(~hernia)
    while len(rest := rest[~marks[rest][:, full].any(1)]):
        running = counts + marks[rest].cumsum(0, dtype=np.int64)  # (n, 15)
        filled = np.flatnonzero((running >= cap)[:, :_HERNIA].any(1) | (running >= cap)[:, _HERNIA + 1 :].any(1))
        end = filled[0] + 1 if len(filled) else len(rest)
        kept.append(rest[:end])
        counts, rest = running[end - 1], rest[end:]
        full = counts >= cap
        full[_HERNIA] = False
    return np.sort(np.concatenate(kept))


Job = TypeVar("Job")
Result = TypeVar("Result")


def prefetch(work: Callable[[Job], Result], jobs: Iterable[Job], depth: int = 3) -> Iterator[Result]:
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


def to_device(values: torch.Tensor, to: torch.device) -> torch.Tensor:
    """Copy of a tensor on that device. A copy to a GPU uses pinned memory, because other memory makes the CPU wait."""
    if to.type != "cuda" or values.is_cuda:
        return values.to(to)
    return values.pin_memory().to(to, non_blocking=True)


class OnItsWayToCpu:
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


def prefetch_on_gpu(jobs: Iterable[Job], work: Callable[[Job], tuple], device: torch.device) -> Iterator[Any]:
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


class Batch(NamedTuple):
    """A batch on its device. ``rows`` are positions in the ``films`` of ``Batches``, always on the CPU."""

    images: torch.Tensor | None  # (B, 1, T, T) float32, normalised; None without images
    labels: torch.Tensor  # (B, 15) float32: 0, 1, or NaN where unknown
    rows: torch.Tensor  # (B,) int64


@dataclass(frozen=True)
class SoftLabels:
    """Targets of a training part in place of its labels.

    ``values`` (N, 15) float32 from 0 to 1 in the films' order, NaN where the label is unknown. ``teachers`` are the
    checkpoints that they come from.
    """

    values: np.ndarray
    teachers: tuple[Path, ...] = ()


class Batches:
    """Batches of films from a store, epoch by epoch.

    Without ``shuffle`` the films keep their order. With it each epoch has a random order, and ``cap`` > 0 selects a
    random subset: at most ``cap`` films per class, and all Hernia films. ``batch_size`` counts the films of all
    processes. Process ``rank`` of ``world`` gets its share of each batch, so a step uses the same films for any number
    of processes. With ``shuffle`` each share has at least two films, if there are enough, because BatchNorm cannot
    train on one. A smaller last batch joins the batch before.

    With ``soft`` the batches have these targets in place of the labels; ``cap`` and ``known`` go by the labels.

    With ``variants`` 0 each epoch augments a film differently. With k > 0 each film has k fixed variants, and epoch e
    uses variant e mod k, so that the features of frozen layers can be cached.
    """

    def __init__(
        self,
        store: Store,
        films: pd.DataFrame,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        augment: augmentation.Augment | None = None,
        cap: int = 0,
        variants: int = 0,
        soft: SoftLabels | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world or cap < 0 or variants < 0:
            raise UserError(
                f"batch_size {batch_size}, cap {cap}, variants {variants}, rank {rank} of {world}: "
                "give a size of 1 or more"
            )
        if films.empty:
            raise UserError("there are no films to make batches of")
        self.store, self.films, self.batch_size, self.seed = store, films, batch_size, seed
        self.shuffle, self.augment, self.cap, self.variants = shuffle, augment or augmentation.Augment(), cap, variants
        self.rank, self.world = rank, world
        self._rows = store.rows(films)
        self._labels = records.label_codes(films)
        self.soft = soft
        if soft is not None and soft.values.shape != self._labels.shape:
            raise UserError(f"soft labels of {len(soft.values)} films do not fit {len(films)} films; make them again")
        self._targets = self._labels if soft is None else np.ascontiguousarray(soft.values, np.float32)
        self._known = (self._labels != records.UNKNOWN_CODE).sum(1)  # (N,) number of known labels of each film
        self._all_known = bool((self._known == self._labels.shape[1]).all())

    def __len__(self) -> int:
        """Number of batches in epoch 0. With ``cap`` other epochs may have a few more or less: see ``steps``."""
        return self.steps(0)

    def steps(self, epoch: int) -> int:
        """Number of batches in this epoch, the same for each rank."""
        return len(self.sizes(epoch))

    def sizes(self, epoch: int) -> np.ndarray:
        """Number of films in each batch of this epoch, all processes together, (steps,) int64."""
        return np.diff(self._cuts(len(self.order(epoch))))

    def known(self, epoch: int) -> np.ndarray:
        """Number of known labels in each batch of this epoch, all processes together, (steps,) int64."""
        if self._all_known:
            return self.sizes(epoch) * self._labels.shape[1]
        order = self.order(epoch)
        return np.add.reduceat(self._known[order], self._cuts(len(order))[:-1])

    def known_of(self, rows: torch.Tensor) -> int:
        """Number of known labels of the films at these rows of ``films``. No accelerator is waited for."""
        return len(rows) * self._labels.shape[1] if self._all_known else int(self._known[rows.numpy()].sum())

    def variant(self, epoch: int) -> int | None:
        """Number of the variant that an epoch uses. None if each epoch augments differently."""
        if not self.augment.varies:
            return 0
        return epoch % self.variants if self.variants else None

    def order(self, epoch: int) -> np.ndarray:
        """Rows of this epoch's films in their order, all processes together, (n,) int64."""
        if not self.shuffle:
            return np.arange(len(self._rows))
        order = epoch_order(len(self._rows), self.seed, epoch)
        if self.cap:
            order = order[cap_per_label(self._labels[order], self.cap)]
        return order

    def epoch(
        self, epoch: int, start: int = 0, *, on: str | torch.device = "cpu", images: bool = True
    ) -> Iterator[Batch]:
        """Batches of this epoch from number ``start`` on. The same seed, epoch and number give the same batch.

        ``on`` is the network's device. Without ``images`` no film is read; the batches have labels and rows only.
        """
        order, on = self.order(epoch), torch.device(on)
        table = self._table(epoch, order)
        cuts = self._cuts(len(order))
        parts = (self._share(cuts[i], cuts[i + 1]) for i in range(start, len(cuts) - 1))
        jobs = ((order[part], table[part]) for part in parts if len(part))
        if not images:
            yield from (self._labels_only(rows, on) for rows, _ in jobs)
        elif on.type == "cuda":  # read into pinned memory in advance; copied and augmented on the GPU in parallel
            packed = prefetch(lambda job: self._pack(*job), jobs)
            yield from prefetch_on_gpu(packed, lambda job: self._unpack(*job, on), on)
        else:
            yield from prefetch(lambda job: self._whole(*job, on), jobs)

    def _table(self, epoch: int, order: np.ndarray) -> np.ndarray:
        """Random numbers for each position of an epoch's order, (n, DRAWS) float32."""
        if self.variants:  # the numbers depend on the film and not on its position
            return random_table(len(self._rows), augmentation.DRAWS, self.seed, epoch % self.variants)[order]
        return random_table(len(order), augmentation.DRAWS, self.seed, epoch)

    def _cuts(self, films: int) -> np.ndarray:
        """Bounds of the batches in an epoch's order, all processes together, (steps + 1,) int64.

        The last batch joins the batch before if it has too few films: less than one per process, or two with shuffle.
        """
        cuts = np.append(np.arange(0, films, self.batch_size), films)
        if len(cuts) > 2 and cuts[-1] - cuts[-2] < self.world * (2 if self.shuffle else 1):
            cuts = np.delete(cuts, -2)
        return cuts

    def _share(self, begin: int, end: int) -> np.ndarray:
        """Positions of this process in a batch of all processes. The shares differ by at most one film."""
        return np.array_split(np.arange(begin, end), self.world)[self.rank]

    def _labels_only(self, rows: np.ndarray, on: torch.device) -> Batch:
        labels = torch.from_numpy(self._targets[rows])
        return Batch(None, self._decoded(to_device(labels, on)), torch.from_numpy(rows))

    def _whole(self, rows: np.ndarray, random: np.ndarray, on: torch.device) -> Batch:
        pixels = torch.empty(len(rows), self.store.size, self.store.size, dtype=torch.uint8)
        self.store.gather(self._rows[rows], pixels.numpy())
        labels = torch.from_numpy(self._targets[rows])
        images = augmentation.augmented_images(
            pixels, torch.from_numpy(random), self.augment
        )  # on the CPU: some devices lack operations
        return Batch(images.to(on), self._decoded(labels.to(on)), torch.from_numpy(rows))

    def _decoded(self, codes: torch.Tensor) -> torch.Tensor:
        """Labels (B, 15) float32 of 0, 1 and NaN from ``records.label_codes``; soft labels as they are."""
        if self.soft is not None:
            return codes
        labels = codes.float()
        return labels if self._all_known else labels.masked_fill_(codes == records.UNKNOWN_CODE, torch.nan)

    def _pack(self, rows: np.ndarray, random: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Random numbers, labels and pixels of a batch in one pinned buffer, for a single copy to the GPU.

        Soft labels are float32, so they come before the pixels, at a multiple of four bytes.
        """
        size, draws_end = self.store.size, random.nbytes
        labels = self._targets[rows]
        labels_end = draws_end + labels.nbytes
        end = labels_end + len(rows) * size**2
        buffer = torch.empty(end, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        flat = buffer.numpy()
        flat[:draws_end] = random.reshape(-1).view(np.uint8)
        flat[draws_end:labels_end] = labels.reshape(-1).view(np.uint8)
        self.store.gather(self._rows[rows], flat[labels_end:].reshape(len(rows), size, size))
        return buffer, torch.from_numpy(rows)

    def _unpack(self, buffer: torch.Tensor, rows: torch.Tensor, on: torch.device) -> Batch:
        size = self.store.size
        draws_end = 4 * augmentation.DRAWS * len(rows)
        labels_end = draws_end + len(rows) * self._targets[:1].nbytes
        buffer = buffer.to(on, non_blocking=True)
        random = buffer[:draws_end].view(torch.float32).view(len(rows), augmentation.DRAWS)
        labels = buffer[draws_end:labels_end].view(torch.uint8 if self.soft is None else torch.float32)
        labels = labels.view(len(rows), -1)
        pixels = buffer[labels_end:].view(len(rows), size, size)
        return Batch(augmentation.augmented_images(pixels, random, self.augment), self._decoded(labels), rows)
