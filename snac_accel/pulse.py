"""What a process of a run is doing: told to its heartbeat, its watchdog and the clock of the run; loads no torch.

The training code says `enter` where one phase ends and the next begins. Threads do the rest, so no step waits for a file.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

from . import watchdog
from .clock import BUCKETS, GOODPUT_FILE, Clock
from .heartbeat import BEAT_SECONDS, FOLDER, Beat, forget_others, missing, place_of_main_thread, read_beats, write_beat
from .redaction import redact

Function = TypeVar("Function", bound=Callable[..., Any])
Item = TypeVar("Item")
SHORTEST_BEAT = 0.5  # seconds: a new phase is told at once, but not more often than this


class Pulse:
    """The phase of this process. Without `begin` it writes nothing, without `watch` nothing ends."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, limit_seconds: float = 600.0, started: float | None = None
    ) -> None:
        """`started`: when the process was, of `time.perf_counter()`; None: now. The run's clock is kept by rank 0."""
        age = 0.0 if started is None else time.perf_counter() - started
        self.rank, self.world_size, self.limit_seconds = rank, world_size, limit_seconds
        self.clock = Clock(time.time() - age)
        self.beat_seconds = min(BEAT_SECONDS, limit_seconds / 10)
        self.step, self.name, self.outcome = 0, "start", ""
        self.since, self.entered = time.time(), time.perf_counter()
        self.folder: Path | None = None
        self._watchdog = watchdog.Watchdog(limit_seconds, self._give_up, self.clock.lost)
        self._changed, self._over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, logs: Path) -> None:
        """Keep heartbeat and clock in a run's folder of logs from now on."""
        self.folder = logs / FOLDER
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                forget_others(self.folder, self.world_size)
        if self.rank == 0:
            self.clock.go_on(logs / GOODPUT_FILE)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def watch(self) -> None:
        """From now on end the process if it does not get on."""
        self._watchdog.start()

    def enter(self, name: str, step: int | None = None, *, patient: bool = False) -> None:
        """A phase begins; what it is called is its bucket of the clock, if there is one. `patient`: it may take any time."""
        self.step = self.step if step is None else step
        is_new, self.name, self.since = name != self.name, name, time.time()
        self.entered = time.perf_counter()
        self.clock.enter(name if name in BUCKETS else "other", self.step)
        self._watchdog.got_on(patient)
        if is_new and name not in ("step", "data"):
            self._changed.set()  # it may be what the file system blocks: told before

    def got_on(self) -> None:
        """The phase goes on."""
        self.since = time.time()
        self._watchdog.got_on(self._watchdog.patient)

    def along(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; with each of them the phase goes on."""
        for item in items:
            self.got_on()
            yield item

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase within another, which goes on after it."""
        before = self.name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def beat(self) -> Beat:
        """What there is to say now."""
        place, waits = place_of_main_thread()
        host, now = socket.gethostname(), time.time()
        return Beat(
            self.rank, self.world_size, host, os.getpid(), now, self.step, self.name, min(self.since, now),
            place, waits, self.beat_seconds, self.limit_seconds, self.outcome,
        )  # fmt: skip

    def others(self) -> str:
        """Which ranks are missing, as far as the heartbeats tell; "" if nothing is known."""
        if self.folder is None or self.world_size == 1:
            return ""
        folder, own = self.folder, self.beat()
        beats = watchdog.within(watchdog.PATIENCE_WITH_FILES, lambda: read_beats(folder))
        if beats is None:
            return "the heartbeats of the others cannot be read: the file system does not answer"
        found = missing(beats, own)
        return f"missing: {'; '.join(found)}" if found else ""

    def _beat(self) -> None:
        while not self._over.is_set():
            self._changed.clear()
            self._write()
            self._over.wait(min(SHORTEST_BEAT, self.beat_seconds))
            self._changed.wait(max(self.beat_seconds - SHORTEST_BEAT, 0.0))

    def _write(self) -> None:
        if self.folder is not None:
            write_beat(self.folder, self.beat())
            self.clock.save()

    def _give_up(self, seconds: float) -> None:
        """End the process: it has not got on for too long."""
        own = self.beat()
        self.clock.lost(seconds)
        line = f"error: rank {self.rank} of {self.world_size} on {own.host} has not got on for {seconds:.0f} s, {own.at} "
        line += f"(distributed.timeout_seconds = {self.limit_seconds:g})"
        line = redact("; ".join(filter(None, [line, self.others(), "started again, the run goes on"])))
        watchdog.write_line(line)
        if self.folder is not None:
            self.outcome = f"gave up {own.at}, where it had not got on for {seconds:.0f} s"
            watchdog.within(watchdog.PATIENCE_WITH_FILES, self._write)
            watchdog.dump_stacks(self.folder.parent / f"stacks.rank_{self.rank}.txt", line)
        watchdog.end_now()

    def __enter__(self) -> Pulse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads, and write down how the process ended."""
        if error is not None:
            self.outcome = f"failed: {redact(' '.join(str(error).split()))[:300] or type(error).__name__}"
            if self._watchdog.seconds > self.limit_seconds / 2:
                self.clock.lost(self._watchdog.seconds)
        self._watchdog.stop()
        self._over.set()
        self._changed.set()
        if self._thread is not None:
            watchdog.within(watchdog.PATIENCE_WITH_FILES, self._last_words)

    def _last_words(self) -> None:
        assert self._thread is not None
        self._thread.join()
        self._write()


def in_phase(name: str) -> Callable[[Function], Function]:
    """Of a function that is given the session: it is this phase of the run."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(session: Any, *arguments: Any, **options: Any) -> Any:
            with session.pulse.phase(name):
                return function(session, *arguments, **options)

        return cast(Function, call)

    return decorate
