"""The data loader of training: micro-batches of one process in the keyed order, prepared by worker processes.

It is not passed through `accelerator.prepare`: the order is already divided among the processes, and dividing
it twice loses data.
"""

from __future__ import annotations

import logging
import queue
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pickle import UnpicklingError
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..errors import DataError
from .network import num_retries
from .order import micro_batch_starts
from .samples import Batch, Sample, collate

PREFETCHED_BATCHES = 2  # per worker
MAX_REPLACEMENTS = 3  # of lost workers, without a batch in between
# What torch says of a worker that is gone, or does not answer.
_LOST = re.compile(r"DataLoader worker .* (exited unexpectedly|is killed by signal)")
_SLOW = re.compile("DataLoader timed out")
CHECK_SECONDS = 2.0  # how often it is looked whether the workers live, while a batch is waited for
log = logging.getLogger(__name__)


class LostWorker(Exception):
    """A data worker died, or stopped answering."""


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

    def __init__(self, source: SampleSource, layout: Layout, timeout_seconds: float, **options: Any) -> None:
        self.source, self.layout, self.timeout_seconds, self.options = source, layout, timeout_seconds, options
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
            yield from batches
            return
        reader = _Reader(batches)
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
    pin_memory: bool | None = None,
    timeout_seconds: float = 600.0,
) -> BatchLoader:
    """Return the loader of process `rank`: from `start_position` of the stream on, `accumulation_steps`
    batches a step.

    Endless if `num_steps` is None. The global batch of a step depends on its size alone. `pin_memory` None:
    where there is a GPU. A worker that gives no batch for `timeout_seconds` is replaced.
    """
    if not 0 <= rank < num_processes:
        raise ValueError(f"rank must lie in 0..{num_processes - 1}, not {rank}")
    return BatchLoader(
        source,
        Layout(batch_size, num_processes, rank, accumulation_steps, start_position, num_steps),
        timeout_seconds,
        batch_size=None,  # whole micro-batches come out of the workers
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        timeout=min(CHECK_SECONDS, timeout_seconds) if num_workers else 0,
        worker_init_fn=_start_worker,
        # Without a generator of its own the loader would draw from the global one and shift the model's
        # random numbers.
        generator=torch.Generator(),
    )


class _Reader:
    """Takes batches from the workers in a thread of its own.

    What a worker began to send, or holds open to be fetched, blocks whoever reads it for ever when the worker is
    stopped or dies just then; here that is a thread, and the trainer stops waiting for it.
    """

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._answers: queue.Queue[Batch | Exception | None] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        threading.Thread(target=self._read, args=(batches,), name="batches", daemon=True).start()

    def next_batch(self, timeout_seconds: float) -> Batch | None:
        """Return the next batch, None at the end; raises LostWorker, or what was raised in a worker."""
        try:
            answer = self._answers.get(timeout=min(timeout_seconds, threading.TIMEOUT_MAX))
        except queue.Empty:
            raise LostWorker(f"none gave a batch for {timeout_seconds:g} s") from None
        if not isinstance(answer, Exception):
            return answer
        # A batch is fetched from its worker when it is unpacked, which fails in these ways if the worker died just then.
        if isinstance(answer, OSError | EOFError | UnpicklingError) or _LOST.search(str(answer)):
            raise LostWorker(" ".join(f"{type(answer).__name__}: {answer}".split())[:200]) from answer
        raise answer

    def stop(self) -> None:
        """Let the thread end, and the workers with it."""
        self._stopped.set()

    def _read(self, batches: Iterator[Batch]) -> None:
        answer: Batch | Exception | None
        while not self._stopped.is_set():
            try:
                answer = next(batches)
            except StopIteration:
                answer = None
            except Exception as error:
                if _SLOW.search(str(error)):
                    continue  # the workers were looked after; they live
                answer = error
            self._put(answer)
            if not isinstance(answer, Batch):
                return

    def _put(self, answer: Batch | Exception | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._answers.put(answer, timeout=0.1)
                return


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
    """Set up a worker process: one thread, since they share the cores, and signals left to the main process.

    Ctrl-C, SLURM and containers signal whole groups of processes; a worker that died of it would take the last step with
    it. The first SIGTERM is let pass, a second one, from the main process to a worker that is stuck, ends it.
    Workers are started the way the platform does by default (forked on Linux up to Python 3.13): they only
    ever touch tensors on the CPU, so a CUDA context in the parent is not used, and nothing has to be pickled
    or imported again.
    """
    torch.set_num_threads(1)
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
