"""Ends a process that does not get on any more, and says which rank is missing, and where; loads no torch.

A collective waits for every rank, so one that is stopped, or blocked in a file system, would hold up all others for ever.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

EXIT_CODE = 75  # as of LaunchError: started again, the run goes on
SHARE_OF_LIMIT = 0.9  # the collectives' own limit, which names nobody, comes later
PATIENCE_WITH_FILES = 3.0  # seconds: they may be what does not answer
Result = TypeVar("Result")


class Watchdog:
    """A thread that calls `bark(seconds)` once when `got_on` was not called for nearly `limit` seconds.

    Time in which the whole process was stopped (Ctrl-Z, a frozen container) does not count; it goes to `was_stopped`.
    """

    def __init__(self, limit: float, bark: Callable[[float], None], was_stopped: Callable[[float], None]) -> None:
        self.limit, self.bark, self.was_stopped = limit * SHARE_OF_LIMIT, bark, was_stopped
        self.poll = min(1.0, limit / 20)
        self.patient = False  # what happens now may take any time
        self._last = time.monotonic()
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        self.got_on()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def got_on(self, patient: bool = False) -> None:
        """The process got on."""
        self.patient, self._last = patient, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the process got on."""
        return time.monotonic() - self._last

    def stop(self) -> None:
        """End the thread."""
        self._over.set()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._over.wait(self.poll):
            now = time.monotonic()
            gap, before = now - before - self.poll, now
            if gap > max(1.0, 5 * self.poll):
                self._last = min(self._last + gap, now)
                self.was_stopped(gap)
            elif not self.patient and now - self._last > self.limit:
                self.bark(now - self._last)
                return


def within(seconds: float, function: Callable[[], Result]) -> Result | None:
    """The function's result; None if it takes longer, in a thread that is left behind then, or fails."""
    results: list[Result] = []

    def call() -> None:
        with suppress(Exception):
            results.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def dump_stacks(file: Path, line: str) -> None:
    """Write the Python stacks of all threads to stderr, and to a file if its disk answers."""
    with suppress(OSError, ValueError):
        faulthandler.dump_traceback(file=2, all_threads=True)
    within(PATIENCE_WITH_FILES, lambda: _dump_to(file, line))


def _dump_to(file: Path, line: str) -> None:
    with open(file, "a", encoding="utf-8") as stacks:
        stacks.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        stacks.flush()
        faulthandler.dump_traceback(file=stacks, all_threads=True)


def write_line(line: str) -> None:
    """Write to stderr past Python's buffers, whose locks the stuck thread may hold."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))


def end_now() -> NoReturn:
    """End this process and its data workers, without waiting for anything."""
    with suppress(Exception):
        for worker in multiprocessing.active_children():
            worker.kill()
    os._exit(EXIT_CODE)
