"""Where the time of a start goes, from the launch of the process to its first step."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

SHORTEST_SHOWN = 0.05  # seconds


class Stopwatch:
    """Seconds by phase, one after the other."""

    def __init__(self, started: float | None = None) -> None:
        """Begin at `started`, of `time.perf_counter()`; None: now."""
        self.started = self._last = time.perf_counter() if started is None else started
        self.phases: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """All that happened since the phase before ended was `phase`; one that comes again is added to."""
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now

    def line(self) -> str:
        """The whole and its parts, such as "started in 7.4 s: imports 3.9, data 0.8, models 0.6"."""
        parts = [
            f"{name} {seconds:.1f}" for name, seconds in self.phases.items() if seconds >= SHORTEST_SHOWN
        ]
        total = f"started in {self._last - self.started:.1f} s"
        return f"{total}: {', '.join(parts)}" if parts else total


def process_start() -> float:
    """The time, of `time.perf_counter()`, at which this process was started; now, where the system does not say (Linux does)."""
    now = time.perf_counter()
    if not sys.platform.startswith("linux"):
        return now
    try:  # proc(5): field 22 of the line is the start in ticks since boot; field 2, a name in brackets, may hold spaces
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now
    return now - age
