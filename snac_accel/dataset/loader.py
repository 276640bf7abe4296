"""The data loader of training: micro-batches of one process in the keyed order, prepared by worker processes.

It is not passed through `accelerator.prepare`: the order is already divided among the processes, and dividing
it twice loses data.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..errors import DataError
from .audio_dataset import AudioDataset
from .order import SampleKey, StepBatchSampler, micro_batch_starts
from .samples import Batch, collate
from .streaming import SampleStream

PREFETCHED_BATCHES = 2  # per worker


class BatchLoader:
    """Iterates over the `Batch`es of one process; raises DataError when no usable clip is found."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if (
                batch.error is not None
            ):  # raised here, since an exception from a worker arrives as a page of traceback
                raise DataError(batch.error)
            yield batch


def make_loader(
    dataset: AudioDataset,
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
    where there is a GPU. A worker that stops without dying raises an error after `timeout_seconds`
    (map-style; a resumed stream may take long to skip).
    """
    layout = (batch_size, num_processes, rank, accumulation_steps, start_position, num_steps)
    batches: Dataset[Any] = (
        _StreamedBatches(dataset, layout) if dataset.streaming else _IndexedBatches(dataset)
    )
    sampler = None if dataset.streaming else StepBatchSampler(len(dataset), dataset.windows.seed, *layout)
    loader = DataLoader(
        batches,
        sampler=sampler,
        batch_size=None,  # the sampler yields whole micro-batches, and so does the stream
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        timeout=timeout_seconds if num_workers and not dataset.streaming else 0,
        worker_init_fn=_start_worker,
        # Without a generator of its own the loader would draw from the global one and shift the model's
        # random numbers.
        generator=torch.Generator(),
    )
    return BatchLoader(loader)


class _IndexedBatches(Dataset[Batch]):
    """Maps a list of keys to a batch."""

    def __init__(self, dataset: AudioDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, keys: list[SampleKey]) -> Batch:
        try:
            return collate([self.dataset[key] for key in keys])
        except DataError as error:
            return _failed(error)


class _StreamedBatches(IterableDataset[Batch]):
    """Yields the micro-batches of one process from a stream, each of K workers every K-th of them."""

    def __init__(self, dataset: AudioDataset, layout: tuple[int, int, int, int, int, int | None]) -> None:
        self.dataset = dataset
        self.layout = layout

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        stream = SampleStream(self.dataset.windows, self.dataset.stream_clips)
        try:
            for number, start in enumerate(micro_batch_starts(*self.layout)):
                if number % every == first:
                    stream.skip_to(start)
                    yield collate([stream.next_sample() for _ in range(self.layout[0])])
        except DataError as error:
            yield _failed(error)


def _failed(error: DataError) -> Batch:
    """Return the batch that carries an error to the main process."""
    return Batch(torch.empty(0), [], 0, [], str(error))


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
