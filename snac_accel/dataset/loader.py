"""The data loader of training: micro-batches of one process in the keyed order, prepared by worker processes.

It is not passed through `accelerator.prepare`: the order is already divided among the processes, and dividing
it twice loses data.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..errors import DataError
from .delivery import LostWorker, Reader, Transfer, transfer_to
from .network import num_retries
from .order import micro_batch_starts
from .samples import Batch, Sample, collate

PREFETCHED_BATCHES = 2  # per worker
MAX_REPLACEMENTS = 3  # of lost workers, without a batch in between
CHECK_SECONDS = 2.0  # how often it is looked whether the workers live, while a batch is waited for
log = logging.getLogger(__name__)


class SampleSource(Protocol):
    """What can be trained on: a sample at each position of an endless stream."""

    def sample_at(self, position: int) -> Sample:
        """Return a sample; raises DataError if no clip can be used."""


class Layout(NamedTuple):
    """Which positions of the stream a process takes, and in which order."""

    batch_size: int = 1  # of a micro-batch
    num_processes: int = 1
    rank: int = 0
    accumulation_steps: int = 1
    start_position: int = 0
    num_steps: int | None = None  # None: endless


class BatchLoader:
    """Iterates over the `Batch`es of one process; raises DataError when no usable clip is found.

    Workers that die, or give nothing for `timeout_seconds`, are replaced, and the batches go on where they were: at
    most `MAX_REPLACEMENTS` times in a row.
    """

    def __init__(
        self,
        source: SampleSource,
        layout: Layout,
        timeout_seconds: float,
        transfer: Transfer | None = None,
        **options: Any,
    ) -> None:
        self.source, self.layout, self.options = source, layout, options
        self.timeout_seconds = timeout_seconds
        self.transfer = transfer or Transfer()
        self._workers: set[BaseProcess] = set()

    def __iter__(self) -> Iterator[Batch]:
        delivered = lost_in_a_row = 0
        while True:
            try:
                for batch in self._open(delivered):
                    delivered, lost_in_a_row = delivered + 1, 0
                    yield _checked(batch)
                return
            except LostWorker as error:
                self._end_workers()
                lost_in_a_row += 1
                if lost_in_a_row > MAX_REPLACEMENTS:
                    raise DataError(_lost_message(error)) from error
                log.warning("a data worker was lost (%s): others take over", error)

    def _open(self, first: int) -> Iterator[Batch]:
        """Yield from micro-batch `first` on; raises LostWorker."""
        batches = self._start(DataLoader(_Batches(self.source, self.layout, first), **self.options))
        if not self._workers:
            yield from (self.transfer.receive(self.transfer.send(batch)) for batch in batches)
            return
        reader = Reader(batches, self.transfer)
        del batches  # the reader's alone: its end is that of the workers
        try:
            while (batch := reader.next_batch(self.timeout_seconds)) is not None:
                yield batch
        finally:
            reader.stop()

    def _start(self, loader: DataLoader[Batch]) -> Iterator[Batch]:
        """Start the workers, without torch's handler of SIGCHLD.

        It raises wherever the main thread is, in the middle of an update too. Without it the loss is noticed within
        `CHECK_SECONDS` of waiting for a batch.
        """
        previous, before = signal.getsignal(signal.SIGCHLD), set(active_children())
        batches = iter(loader)
        self._workers = set(active_children()) - before
        if threading.current_thread() is threading.main_thread() and previous is not None:
            signal.signal(signal.SIGCHLD, previous)
        return batches

    def _end_workers(self) -> None:
        """End what is left of the workers: one that is stopped hears nothing but SIGKILL."""
        for worker in self._workers:
            worker.kill()


def make_loader(
    source: SampleSource,
    batch_size: int,
    *,
    num_processes: int = 1,
    rank: int = 0,
    accumulation_steps: int = 1,
    start_position: int = 0,
    num_steps: int | None = None,
    num_workers: int = 2,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    timeout_seconds: float = 600.0,
) -> BatchLoader:
    """Return the loader of process `rank`: from `start_position` of the stream on, `accumulation_steps`
    batches a step.

    Endless if `num_steps` is None. The global batch of a step depends on its size alone. If `device` is a GPU, the
    batches come there, copied while earlier ones are used, from pinned memory unless `pin_memory` is False; else they
    come on the CPU. A worker that gives no batch for `timeout_seconds` is replaced.
    """
    if not 0 <= rank < num_processes:
        raise ValueError(f"rank must lie in 0..{num_processes - 1}, not {rank}")
    on_gpu = device is not None and device.type == "cuda"
    return BatchLoader(
        source,
        Layout(batch_size, num_processes, rank, accumulation_steps, start_position, num_steps),
        timeout_seconds,
        transfer_to(device),
        batch_size=None,  # whole micro-batches come out of the workers
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        pin_memory=on_gpu if pin_memory is None else pin_memory,
        timeout=min(CHECK_SECONDS, timeout_seconds) if num_workers else 0,
        worker_init_fn=_start_worker,
        # Without a generator of its own the loader would draw from the global one and shift the model's
        # random numbers.
        generator=torch.Generator(),
    )


class _Batches(IterableDataset[Batch]):
    """Yields the micro-batches of one process from number `first` on, each of K workers every K-th of them."""

    def __init__(self, source: SampleSource, layout: Layout, first: int) -> None:
        self.source, self.layout, self.first = source, layout, first

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        own, every = (worker.id, worker.num_workers) if worker else (0, 1)
        retries = num_retries()
        for start in islice(micro_batch_starts(*self.layout), self.first + own, None, every):
            try:
                samples = [self.source.sample_at(start + row) for row in range(self.layout.batch_size)]
            except DataError as error:
                yield _failed(error)
                return
            before, retries = retries, num_retries()  # what was fetched ahead between two batches counts too
            yield collate(samples)._replace(num_retries=retries - before)


def _failed(error: DataError) -> Batch:
    """Return the batch that carries an error to the main process."""
    return Batch(torch.empty(0), [], 0, [], [], error=str(error))


def _checked(batch: Batch) -> Batch:
    """Raise the error of a batch here: an exception from a worker arrives as a page of traceback."""
    if batch.error is not None:
        raise DataError(batch.error)
    return batch


def _lost_message(error: LostWorker) -> str:
    return (
        f"data workers were lost {MAX_REPLACEMENTS + 1} times in a row ({error}): look for "
        "a lack of memory (of /dev/shm too, which containers keep small), or set data.num_workers to 0 to see the error itself"
    )


def _start_worker(worker_id: int) -> None:
    """Set up a worker process: one thread computes, since they share the cores, and signals are left to the main process.

    Decoding is libsndfile's, which has no threads; resampling and levels are torch's, Arrow unpacks parquet: these two would
    take all cores. Threads that wait for the network are few and of a fixed number (`parquet.FETCH_THREADS`).

    Ctrl-C, SLURM and containers signal whole groups of processes; a worker that died of it would take the last step with
    it. The first SIGTERM is let pass, a second one, from the main process to a worker that is stuck, ends it.
    Workers are started the way the platform does by default (forked on Linux up to Python 3.13): they only
    ever touch tensors on the CPU, so a CUDA context in the parent is not used, and nothing has to be pickled
    or imported again.
    """
    torch.set_num_threads(1)
    if (arrow := sys.modules.get("pyarrow")) is not None:  # a source that needs it has loaded it by now
        arrow.set_cpu_count(1)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
