"""Signs of life: a small file for each rank that says where it is, rewritten every few seconds; loads no torch.

    logs/heartbeat/rank_0.json    {"unix_time": …, "step": 120, "phase": "step", "phase_since": …, "host": …, "pid": …, …}
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .clock import read_small, write_small

FOLDER = "heartbeat"
BEAT_SECONDS = 5.0  # between two beats, at most
# Where a rank is that waits for the others; a backward pass waits, or computes.
_WAITING = (
    os.path.join("torch", "distributed", ""),
    os.path.join("torch", "autograd", "graph.py"),
    os.path.join("accelerate", "utils", "operations.py"),
    os.path.join("accelerate", "state.py"),
)
_PLUMBING = ("threading.py", "contextlib.py", "queue.py", "selectors.py")


@dataclass(frozen=True)
class Beat:
    """What a rank said of itself."""

    rank: int
    world_size: int
    host: str
    pid: int
    unix_time: float  # of this sign of life
    step: int  # steps done
    phase: str
    phase_since: float  # Unix time at which it last got on
    place: str = ""  # of its code
    waits: bool = False  # for other ranks, as far as its code shows
    beat_seconds: float = BEAT_SECONDS  # to the next one
    limit_seconds: float = 600.0  # after which a rank that does not get on gives up; distributed.timeout_seconds
    outcome: str = ""  # how it ended; "": it has not

    @property
    def name(self) -> str:
        """Rank, host and process."""
        return f"rank {self.rank} on {self.host} (pid {self.pid})"

    @property
    def at(self) -> str:
        """Where it is."""
        place = f" at {self.place}" if self.place else ""
        return f"in phase {self.phase}{place} after step {self.step}"

    @property
    def stuck_seconds(self) -> float:
        """How long it had not got on when it gave this sign."""
        return self.unix_time - self.phase_since

    @property
    def is_gone(self) -> bool:
        """Whether its process is not there any more, which only a process of the same machine can see."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        with suppress(OSError, IndexError):  # a zombie?
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return False

    def silent_seconds(self, now: float) -> float:
        """How long it has been silent."""
        return now - self.unix_time

    def is_silent(self, now: float, limit: float | None = None) -> bool:
        """Whether it should have given another sign by now."""
        return not self.outcome and self.silent_seconds(now) > (3 * self.beat_seconds + 1 if limit is None else limit)


def file_of(folder: Path, rank: int) -> Path:
    """The file of a rank."""
    return folder / f"rank_{rank}.json"


def write_beat(folder: Path, beat: Beat) -> None:
    """Say it; a disk that refuses is no reason to stop."""
    write_small(file_of(folder, beat.rank), asdict(beat))


def read_beats(folder: Path) -> list[Beat]:
    """The last sign of every rank, rank 0 first; what cannot be read is left out."""
    beats = [beat for file in folder.glob("rank_*.json") if (beat := read_beat(file)) is not None]
    return sorted(beats, key=lambda beat: beat.rank)


def read_beat(file: Path) -> Beat | None:
    """The sign in a file; None if there is none."""
    if (saved := read_small(file)) is None:
        return None
    kinds = {"str": str, "int": int, "float": float, "bool": bool}
    try:
        return Beat(**{f.name: kinds[str(f.type)](saved[f.name]) for f in fields(Beat) if f.name in saved})
    except (TypeError, ValueError, OverflowError):
        return None


def forget_others(folder: Path, world_size: int) -> None:
    """Remove the files of ranks that an earlier process of the run had, and this one has not."""
    for file in folder.glob("rank_*.json"):
        number = file.stem.removeprefix("rank_")
        if number.isdecimal() and int(number) >= world_size:
            file.unlink(missing_ok=True)


def place_of_main_thread() -> tuple[str, bool]:
    """The innermost line of this package, or else of any, that the main thread is in; whether it waits for other ranks."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    waits, innermost, own = False, "", ""
    package = os.path.dirname(os.path.abspath(__file__))
    while frame is not None:
        file = frame.f_code.co_filename
        here = f"{os.path.basename(file)}:{frame.f_lineno} {frame.f_code.co_name}"
        waits = waits or any(part in file for part in _WAITING)
        if os.path.basename(file) not in _PLUMBING:
            innermost = innermost or here
        if file.startswith(package) and not own:
            own = here
        frame = frame.f_back
    return own or innermost, waits


def missing(beats: Sequence[Beat], own: Beat, now: float | None = None) -> list[str]:
    """The ranks that the others wait for, each with where it was last seen.

    First those that give no sign of life, or have ended; else those whose process is gone, or that do not wait themselves.
    """
    now = time.time() if now is None else now
    others = {beat.rank: beat for beat in beats if beat.rank != own.rank and beat.world_size == own.world_size}
    found = [f"rank {rank} (never seen)" for rank in range(own.world_size) if rank not in {*others, own.rank}]
    for beat in others.values():
        if beat.outcome:
            found.append(f"{beat.name}, which has ended: {beat.outcome}")
        elif beat.is_silent(now):
            found.append(f"{beat.name}, silent for {beat.silent_seconds(now):.0f} s, last {beat.at}")
    found = found or [f"{beat.name}, which is gone, last {beat.at}" for beat in others.values() if beat.is_gone]
    return found or [_stuck(beat) for beat in _do_not_wait(others.values(), own)]


def _do_not_wait(others: Iterable[Beat], own: Beat) -> list[Beat]:
    others = list(others)
    elsewhere = [beat for beat in others if not beat.waits and (beat.step, beat.phase) != (own.step, own.phase)]
    return elsewhere or [beat for beat in others if not beat.waits and own.waits]


def _stuck(beat: Beat) -> str:
    return f"{beat.name}, for {beat.stuck_seconds:.0f} s {beat.at}"
