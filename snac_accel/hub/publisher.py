"""The pushes of a run, in a thread of their own: no step waits for the network, and nothing here ends the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from tenacity import RetryError, Retrying, retry_if_exception, stop_when_event_set

from .jobs import FILES, Queue
from .pushing import problem, push_files
from .trouble import in_one_line, is_passing, is_refusal, pause

Fill = Callable[[Queue], None]  # puts jobs into the queue


class Publisher:
    """Writes jobs into the queue and pushes them, newest first, until `close`. What is left there waits for the next process."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.queue, self._say = Queue(folder), say
        self._fills: list[Fill] = []
        self._given_up: set[Path] = set()  # by this process; the next tries again
        self._changed, self._over, self._idle = threading.Event(), threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self.off = False  # the Hub refuses
        self._failing = False
        # A daemon: a network that hangs never keeps a process alive, and the queue is on the disk.
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def offer(self, fill: Fill) -> None:
        """Have `fill` write its jobs soon; of several that wait only the last is called."""
        with self._lock:
            self._fills = [fill]
            self._idle.clear()
            self._changed.set()

    def close(self, wait_seconds: float) -> None:
        """Wait for what is on its way, but not for ever; then end. What is left is said."""
        if not self.off and not self._idle.wait(wait_seconds) and len(self.queue):
            self._say(f"warning: not all is on the Hub yet; it waits in {self.queue.folder} for the next start of the run")
        self._over.set()
        self._changed.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._over.is_set():
            self._changed.clear()
            try:
                self._work()
            except Exception as error:  # whatever it is, the training goes on
                self._say(f"warning: the Hub: {in_one_line(error)}")
            with self._lock:
                if not self._changed.is_set():
                    self._idle.set()
            self._changed.wait()

    def _work(self) -> None:
        while not self.off and not self._over.is_set():
            while self._fills:
                self._fills.pop()(self.queue)
            item = self.queue.take()
            if item is None or item[0] in self._given_up:
                return
            self._push()

    def _push(self) -> None:
        retrying = Retrying(
            wait=pause,
            retry=retry_if_exception(is_passing),
            stop=stop_when_event_set(self._over),
            sleep=self._sleep,
            before_sleep=lambda state: self._say_once(state.outcome.exception() if state.outcome else None),
        )
        try:
            retrying(self._push_newest)
        except RetryError:  # the run is over
            return

    def _push_newest(self) -> None:
        """One try of whatever is newest now."""
        while self._fills:
            self._fills.pop()(self.queue)
        item = self.queue.take()
        if item is None:
            return
        path, job = item
        started = time.perf_counter()
        try:
            address = push_files(path / FILES, job)
        except Exception as error:
            if is_passing(error):
                raise
            self.off = is_refusal(error)
            self._given_up.add(path)
            self._say(f"warning: {problem(error, job)}{'; nothing more is pushed, training goes on' if self.off else ''}")
            return
        self._failing = False
        self.queue.done(path)
        self._say(f"step {job.step}: pushed to {address} in {time.perf_counter() - started:.0f} s")

    def _say_once(self, error: BaseException | None) -> None:
        if error is not None and not self._failing:
            self._say(f"warning: the Hub: {in_one_line(error)}; tried again in the background")
        self._failing = True

    def _sleep(self, seconds: float) -> None:
        """Wait, but no longer than until something newer comes or the run is over."""
        end = time.monotonic() + seconds
        while not self._over.is_set() and (left := end - time.monotonic()) > 0:
            self._over.wait(min(left, 0.5))
