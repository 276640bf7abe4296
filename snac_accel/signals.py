"""Stopping on a signal: a handler that only sets a flag; the loop asks for it between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Context in which SIGINT (Ctrl-C) and SIGTERM ask for a stop instead of causing one.

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
