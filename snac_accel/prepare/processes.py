"""Worker processes that end with their parent, and tasks that are handed to them a few at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ..errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")

PARENT_INTERVAL = 0.2  # seconds between looks at whether the parent is still there
TASKS_PER_WORKER = 2  # handed out; more would only fill the memory

_context: Any = None  # what this worker works on
_stop: Any = None  # set when the work is to end early


class Stopped(Exception):
    """The preparation ends early."""


def context() -> Any:
    """Return what the parent gave its workers; raises Stopped when they should end."""
    if _stop is not None and _stop.is_set():
        raise Stopped
    return _context


def _start_worker(value: Any, stop: Any, parent: int) -> None:
    global _context, _stop
    _context, _stop = value, stop
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes of a terminal; the parent sees to it
    torch.set_num_threads(1)  # the same sums in the same order, whatever the machine
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed without a chance to say so."""
    while os.getppid() == parent:
        time.sleep(PARENT_INTERVAL)
    os._exit(1)


class Workers:
    """Runs tasks in processes."""

    def __init__(self, pool: ProcessPoolExecutor, num_workers: int) -> None:
        self._pool, self._limit = pool, num_workers * TASKS_PER_WORKER

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the results of all tasks as they come. Raises what a task raised, DataError if a worker died."""
        pending: set[Future[Result]] = set()
        try:
            for task in _until_error(tasks, pending):
                pending.add(self._pool.submit(function, task))
                while len(pending) >= self._limit:
                    done = wait(pending, return_when=FIRST_COMPLETED).done
                    pending -= done
                    yield from (future.result() for future in done)
            while pending:
                done = wait(pending, return_when=FIRST_COMPLETED).done
                pending -= done
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for want of memory: start again with fewer --workers to go on"
            ) from error


def _until_error(tasks: Iterable[Task], pending: set[Future[Result]]) -> Iterator[Task]:
    """Yield tasks; if there cannot be more, as when a stream breaks off, those handed out are done first."""
    try:
        yield from tasks
    except Exception:
        wait(pending)
        raise


@contextmanager
def workers(num_workers: int, value: Any) -> Iterator[Workers]:
    """Start processes that work on `value` (see `context`), and end them.

    They are forked where that can be done, so that an opened dataset of millions of clips is shared and not copied.
    """
    kind = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    stop = kind.Event()
    pool = ProcessPoolExecutor(num_workers, kind, _start_worker, (value, stop, os.getpid()))
    try:
        yield Workers(pool, num_workers)
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
