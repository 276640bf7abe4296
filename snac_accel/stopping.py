"""Why a run stops before its end: a signal, a file named STOP in its folder, or the clock. Each amounts to a signal."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .signals import StopSignal

STOP_FILE = "STOP"
BY_FILE = int(signal.SIGINT)
BY_CLOCK = int(getattr(signal, "SIGUSR1", signal.SIGTERM))  # what schedulers send before their time limit
LOOK_SECONDS = 0.5  # between two looks for the file: one on a file system of a network takes milliseconds
SHARE_OF_TIME = 0.1  # of the time until the end of the job that is left to save and leave, at most


@dataclass
class Stopping:
    """Asks this rank's reasons to stop; what it once found, stays. Whether all ranks stop, `session` decides."""

    signal: StopSignal = field(default_factory=StopSignal)
    file: Path | None = None  # on the rank that looks for it
    deadline: float = math.inf  # unix time
    clock: Callable[[], float] = time.time
    reason: str = ""  # of this rank, in words
    _found: int = 0
    _looked: float = -math.inf

    @property
    def number(self) -> int:
        """The signal to stop as if of which, 0: none."""
        if not self._found:
            self._look()
        return self._found

    def _look(self) -> None:
        if self.signal.number:
            self._found, self.reason = self.signal.number, signal.Signals(self.signal.number).name
        elif (now := self.clock()) >= self.deadline:
            self._found, self.reason = BY_CLOCK, "its time is up"
        elif self.file is not None and not 0 <= now - self._looked < LOOK_SECONDS:
            self._looked = now
            if self.file.exists():
                self._found, self.reason = BY_FILE, f"{self.file} is there"

    def honour(self) -> None:
        """Remove the file that the run stopped for, so that the next start goes on."""
        if self.file is not None and self._found == BY_FILE:
            self.file.unlink(missing_ok=True)


def find_deadline(
    wall_clock_hours: float | None,
    slurm_margin_seconds: float | None,
    environment: Mapping[str, str],
    *,
    running_seconds: float = 0.0,
    now: float | None = None,
) -> float:
    """The unix time at which a process that has run for `running_seconds` should stop; infinite if nothing limits it."""
    now = time.time() if now is None else now
    deadline = math.inf if wall_clock_hours is None else now - running_seconds + 3600 * wall_clock_hours
    if slurm_margin_seconds is None:
        return deadline
    try:
        end = float(environment["SLURM_JOB_END_TIME"])
    except (KeyError, ValueError):
        return deadline
    margin = min(slurm_margin_seconds, SHARE_OF_TIME * max(end - now, 0.0))
    return min(deadline, end - margin) if math.isfinite(end) else deadline
