"""From the workers to the trainer: the thread that takes batches from them, and the copy to a GPU ahead of time."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pickle import UnpicklingError
from typing import NamedTuple

import torch

from .samples import Batch

# What torch says of a worker that is gone, or does not answer.
_LOST = re.compile(r"DataLoader worker .* (exited unexpectedly|is killed by signal)")
_SLOW = re.compile("DataLoader timed out")


class LostWorker(Exception):
    """A data worker died, or stopped answering."""


class Sent(NamedTuple):
    """A batch on its way."""

    batch: Batch
    arrived: torch.cuda.Event | None = None  # on the stream of the copy; None: it is there


class Transfer:
    """Leaves batches where they are. The trainer copies them itself where that is not a CPU."""

    def send(self, batch: Batch) -> Sent:
        """Begin to copy; called once for each batch, in order, by the thread that takes them from the workers."""
        return Sent(batch)

    def receive(self, sent: Sent) -> Batch:
        """Return the batch for use by the work that this thread gives the device from now on."""
        return sent.batch


class CudaTransfer(Transfer):
    """Copies batches to a GPU on a stream of its own, while the steps before them are computed.

    From pinned memory: from elsewhere the thread would wait for the copy, though the trainer would not. Neither waits for
    the other here: the GPU itself lets the step begin when its batch has arrived.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def send(self, batch: Batch) -> Sent:
        """Queue the copy. torch keeps the pinned memory until it is done."""
        with torch.cuda.stream(self.stream):
            there = batch._replace(audio=batch.audio.to(self.device, non_blocking=True))
            return Sent(there, self.stream.record_event())

    def receive(self, sent: Sent) -> Batch:
        """Let the present stream wait for the copy, and keep the memory from later copies until that stream is done."""
        if sent.arrived is not None:
            present = torch.cuda.current_stream(self.device)
            present.wait_event(sent.arrived)
            sent.batch.audio.record_stream(present)
        return sent.batch


def transfer_to(device: torch.device | None) -> Transfer:
    """Return what brings batches to a device; None: they stay where they are."""
    return CudaTransfer(device) if device is not None and device.type == "cuda" else Transfer()


class Reader:
    """Takes batches from the workers in a thread of its own, and sends them off.

    What a worker began to send, or holds open to be fetched, blocks whoever reads it for ever when the worker is
    stopped or dies just then; here that is a thread, and the trainer stops waiting for it. It is two batches ahead of the
    trainer at most: one lies ready, one waits for its place.
    """

    def __init__(self, batches: Iterator[Batch], transfer: Transfer) -> None:
        self._transfer = transfer
        self._answers: queue.Queue[Sent | Exception | None] = queue.Queue(maxsize=1)
        self._stopped = threading.Event()
        threading.Thread(target=self._read, args=(batches,), name="batches", daemon=True).start()

    def next_batch(self, timeout_seconds: float) -> Batch | None:
        """Return the next batch, None at the end; raises LostWorker, or what was raised in a worker."""
        try:
            answer = self._answers.get(timeout=min(timeout_seconds, threading.TIMEOUT_MAX))
        except queue.Empty:
            raise LostWorker(f"none gave a batch for {timeout_seconds:g} s") from None
        if not isinstance(answer, Exception):
            return None if answer is None else self._transfer.receive(answer)
        # A batch is fetched from its worker when it is unpacked, which fails in these ways if the worker died just then.
        if isinstance(answer, OSError | EOFError | UnpicklingError) or _LOST.search(str(answer)):
            raise LostWorker(" ".join(f"{type(answer).__name__}: {answer}".split())[:200]) from answer
        raise answer

    def stop(self) -> None:
        """Let the thread end, and the workers with it."""
        self._stopped.set()

    def _read(self, batches: Iterator[Batch]) -> None:
        answer: Sent | Exception | None
        while not self._stopped.is_set():
            try:
                answer = self._transfer.send(next(batches))
            except StopIteration:
                answer = None
            except Exception as error:
                if _SLOW.search(str(error)):
                    continue  # the workers were looked after; they live
                answer = error
            self._put(answer)
            if not isinstance(answer, Sent):
                return

    def _put(self, answer: Sent | Exception | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._answers.put(answer, timeout=0.1)
                return
