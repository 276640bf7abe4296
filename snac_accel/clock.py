"""Where the wall time of a run goes, from its first start on, over all restarts; loads no torch.

Time is dealt into buckets, one stretch after the other without a gap, so that they always add up to the wall time.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

GOODPUT_FILE = "goodput.json"
BUCKETS = (
    "start",  # from the start of a process to its first step
    "step",  # steps that got further than any before
    "data",  # waiting for batches
    "saving",  # what a save keeps training waiting
    "validation",
    "recomputed",  # steps that had been made before: after a kill, or a rollback
    "hang",  # no process got on, or this one was stopped
    "down",  # no process at all; at most one heartbeat of it was still work
    "other",  # logs, export, the end
)
LARGEST_FILE = 1 << 16  # bytes


class Clock:
    """Seconds by bucket. Times are Unix times that go on evenly, whatever happens to the machine's clock meanwhile."""

    def __init__(self, started: float | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin in the bucket `start`, at `started` (Unix time), None: now."""
        self._monotonic, self._offset = monotonic, time.time() - monotonic()
        self._lock = threading.Lock()
        self.first_start = self._mark = self.now() if started is None else started
        self.seconds = dict.fromkeys(BUCKETS, 0.0)
        self.bucket = "start"
        self.furthest = 0  # the most steps that were ever done
        self.file: Path | None = None

    def now(self) -> float:
        """Unix time."""
        return self._monotonic() + self._offset

    def go_on(self, file: Path) -> None:
        """Take up the account that earlier processes of the run have left, and keep it in the file from now on."""
        with self._lock:
            self.file = file
            if (saved := read_account(file)) is None:
                return
            began, self.first_start = self._mark, saved["first_start"]
            self._mark = max(began, saved["until"])  # two machines' clocks may disagree
            self.furthest = saved["furthest_step"]
            for name in BUCKETS:
                self.seconds[name] += saved["seconds"][name]
            self.seconds["down"] += self._mark - saved["until"]

    def enter(self, bucket: str, step: int = 0) -> None:
        """What happens from now on belongs to a bucket; `step`: the steps done so far."""
        with self._lock:
            self._settle()
            if bucket == "step" and step < self.furthest:
                bucket = "recomputed"
            self.bucket, self.furthest = bucket, max(self.furthest, step)

    def lost(self, seconds: float) -> None:
        """The last so many seconds were a hang."""
        with self._lock:
            self._settle()
            seconds = min(max(seconds, 0.0), self.seconds[self.bucket])
            self.seconds[self.bucket] -= seconds
            self.seconds["hang"] += seconds

    def _settle(self) -> None:
        passed = self.now() - self._mark
        if passed > 0:
            self.seconds[self.bucket] += passed
            self._mark += passed

    def account(self) -> dict[str, Any]:
        """What the file holds."""
        with self._lock:
            self._settle()
            return {
                "first_start": self.first_start,
                "until": self._mark,
                "wall_seconds": self._mark - self.first_start,
                "goodput": self._share(),
                "furthest_step": self.furthest,
                "seconds": dict(self.seconds),
            }

    def _share(self) -> float:
        return self.seconds["step"] / max(self._mark - self.first_start, 1e-9)

    def scalars(self) -> dict[str, float]:
        """For the log: the share of productive steps in the wall time, and the seconds of each bucket."""
        account = self.account()
        named = {f"goodput/{name}_seconds": value for name, value in account["seconds"].items()}
        return {"goodput/share": account["goodput"], "goodput/wall_seconds": account["wall_seconds"], **named}

    def save(self) -> None:
        """Write the account, if there is a file; a disk that refuses it is no reason to stop."""
        if self.file is not None:
            write_small(self.file, self.account())


def write_small(file: Path, value: Any) -> None:
    """Write JSON whole or not at all, without waiting for the disk; errors of the file system are passed over."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(value), encoding="utf-8")
        os.replace(draft, file)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def read_small(file: Path) -> dict[str, Any] | None:
    """The mapping that `write_small` wrote; None if it is not there, or is something else."""
    try:
        with open(file, encoding="utf-8") as lines:
            value = json.loads(lines.read(LARGEST_FILE))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_account(file: Path) -> dict[str, Any] | None:
    """A run's account of its time; None if there is none that can be read."""
    saved = read_small(file)
    try:
        if saved is None:
            return None
        numbers = {name: float(saved["seconds"][name]) for name in BUCKETS}
        first, until = float(saved["first_start"]), float(saved["until"])
        goodput, furthest = float(saved["goodput"]), int(saved["furthest_step"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not all(0 <= number < 1e12 for number in [*numbers.values(), first, until]):
        return None
    return {
        "first_start": first,
        "until": until,
        "goodput": goodput,
        "wall_seconds": until - first,
        "furthest_step": furthest,
        "seconds": numbers,
    }
