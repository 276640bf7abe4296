"""Stopping on a signal: a handler that only sets a flag; the loop asks for it between steps."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import psutil

# Ctrl-C; what schedulers, containers and torchrun send; what SLURM can be told to send before its time limit.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed.run", "torch.distributed.launch")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopSignal:
    """Context in which `STOP_SIGNALS` ask for a stop instead of causing one.

    Outside the main thread (a notebook's worker, say) Python cannot install handlers; then nothing is caught.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that came, 0: none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number

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


def end_as_init() -> None:
    """As process 1 of a container, end on `STOP_SIGNALS` also before `StopSignal` is there: the kernel would ignore them."""
    if os.getpid() == 1:
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
