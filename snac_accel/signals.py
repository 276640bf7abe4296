"""Stopping on a signal: a handler that only sets a flag; the loop asks for it between steps.

Before the steps there is nothing to save: there `ending_at_once` lets the command line's process end with a documented exit
code wherever it is, in a collective call too.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import psutil

# Ctrl-C; what schedulers, containers and torchrun send; what SLURM can be told to send before its time limit.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed.run", "torch.distributed.launch")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_WAKEUPS: set[int] = set()  # descriptors that this process writes the numbers of signals to
_early: dict[str, int] = {}  # the number of a signal that came before `hold`


class StopSignal:
    """Context in which, after `hold`, `STOP_SIGNALS` ask for a stop instead of causing one.

    Outside the main thread (a notebook's worker, say) Python cannot install handlers; then nothing is caught.
    """

    def __init__(self) -> None:
        self.number = 0  # of the first signal that came, 0: none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        return self

    def hold(self) -> None:
        """From now on, until the context ends, only take note of signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
            self.number = self.number or _early.pop("number", 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number  # launchers send TERM after INT: the first one is what was meant

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def end_with_launcher() -> None:
    """Let SIGTERM come when the launcher that started this process dies, so that the run is saved and nothing is left.

    `accelerate launch` with one process dies of SIGTERM without passing it on, and no launcher can pass on SIGKILL. Only a
    parent that is a launcher is followed: a run started by a shell may outlive it. Linux only; elsewhere nothing happens.
    """
    parent = os.getppid()
    if not sys.platform.startswith("linux") or not _is_launcher(parent):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died just before
        os.kill(os.getpid(), signal.SIGTERM)


def _is_launcher(pid: int) -> bool:
    """Whether the process was started as `accelerate launch` or torchrun: by the name of its script or module."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    names = {os.path.basename(word) for word in words[:3]}
    return any(name.split(".commands")[0] in LAUNCHERS for name in names)


@contextmanager
def ending_at_once(tidy: Callable[[], object]) -> Iterator[None]:
    """Let `STOP_SIGNALS` end this process with 128 + their number, after `tidy`, unless they are held.

    A thread does it, since Python runs handlers only between two of its own instructions, and the main thread may be inside
    a long call, waiting for another rank. Process 1 of a container must have handlers: the kernel keeps all other signals
    from it. What the process ends with is decided when the context ends: then a second signal must not change it while the
    interpreter is taken down.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _WAKEUPS.add(writer)
    threading.Thread(target=_end_on, args=(reader, tidy), name="signals", daemon=True).start()
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _woken) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        _WAKEUPS.discard(writer)
        os.close(writer)
        atexit.unregister(ignore_stop_signals)
        atexit.register(ignore_stop_signals)  # the last to be registered is the first to be called


def _woken(number: int, frame: FrameType | None) -> None:
    """The handler before signals are held: the thread acts, unless they are held before it can."""
    _early["number"] = number


def _end_on(reader: int, tidy: Callable[[], object]) -> None:
    with open(reader, "rb", buffering=0) as numbers:
        while data := numbers.read(1):
            if signal.getsignal(number := data[0]) is not _woken:
                continue  # noted by the run, or not one of ours
            try:
                tidy()
                print(f"stopped by {signal.Signals(number).name} before the first step", file=sys.stderr, flush=True)
            finally:
                os._exit(128 + number)


def ignore_stop_signals() -> None:
    """Leave this process alone from now on."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave_to_parent() -> None:
    """In a forked process, a data worker: its signals are its own."""
    if _WAKEUPS and threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
