"""Saving without holding up training: the state is copied to host memory, and a thread writes the copy. On rank 0 alone.

At most one write is in flight: the next save waits for it. Whoever opens a `Saver` closes it on every way out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoint import Snapshot, snapshot
from .errors import CheckpointError
from .state import TrainState

Write = Callable[[Snapshot], Path]  # raises CheckpointError if it cannot


class Outcome(NamedTuple):
    """How a save ended."""

    step: int
    path: Path | None  # None: it failed
    problem: str | None  # then one line that says why
    stall_seconds: float  # for which training was held up: the wait for the save before, and the copy
    write_seconds: float  # of the thread
    failed_in_a_row: int  # saves, with this one


class Saver:
    """Writes checkpoints in the background; `report` is told of each when the training asks (`poll`, `wait`)."""

    def __init__(self, write: Write, report: Callable[[Outcome], None], max_failed: int = 3) -> None:
        self._write, self._report, self._max_failed = write, report, max_failed
        self._thread: threading.Thread | None = None
        self._finished: list[Outcome] = []
        self._error: Exception | None = None  # of the program, not of the disk
        self.failed_in_a_row = 0
        self.saved_step: int | None = None  # of the last save that succeeded
        self.saved_path: Path | None = None  # the same
        self.problem: str | None = None  # of the last save; None: it succeeded

    @property
    def given_up(self) -> bool:
        """Whether so many saves in a row failed that the run had better end."""
        return self.failed_in_a_row >= self._max_failed

    def start(self, state: TrainState, score: dict[str, Any] | None = None) -> None:
        """Copy the state and begin to write it; what is trained may change as soon as this returns.

        `score`: what the validation of this step came to.
        """
        begun = time.perf_counter()
        self.wait()
        taken = snapshot(state)._replace(score=score)
        stall = time.perf_counter() - begun
        # Not a daemon: the program never ends with half a checkpoint.
        self._thread = threading.Thread(target=self._run, args=(taken, stall), name="checkpoint")
        self._thread.start()

    def _run(self, taken: Snapshot, stall: float) -> None:
        begun = time.perf_counter()
        path, problem = None, None
        try:
            path = self._write(taken)
        except CheckpointError as error:
            problem = str(error)
        except Exception as error:  # told to whoever asks next
            self._error = error
            return
        failed = 0 if problem is None else self.failed_in_a_row + 1
        seconds = time.perf_counter() - begun
        self._finished.append(Outcome(taken.step, path, problem, stall, seconds, failed))
        # Only now: `failed_in_a_row` is read while the thread runs.
        self.saved_step = self.saved_step if path is None else taken.step
        self.saved_path = self.saved_path if path is None else path
        self.problem, self.failed_in_a_row = problem, failed

    def poll(self) -> None:
        """Report what has ended since the last call; raises what was the program's fault."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        while self._finished:
            self._report(self._finished.pop(0))

    def wait(self) -> None:
        """Wait until nothing is being written, and report it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.poll()

    def finish(self, state: TrainState, score: dict[str, Any] | None = None) -> None:
        """Make sure that the checkpoint of the state's step is on the disk; one that failed is tried once more.

        Raises CheckpointError, one line, if that fails too.
        """
        self.wait()
        if self.saved_step != state.step:
            self.start(state, score)
            self.wait()
        if self.problem is not None:
            raise CheckpointError(self.problem)
