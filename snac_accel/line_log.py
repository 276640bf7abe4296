"""A log of lines that no full disk ends: what cannot be written waits in memory, and is tried again with the next line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .files import writing_problem

WAITING_BYTES = 4 * 2**20  # after which lines are dropped, and counted


class LineLog:
    """Adds lines to a file. Whole ones: a line that a crash or a full disk cut short is ended or gone on with."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        """`warn` is told once when the file cannot be written, and once when it can be again."""
        self.path = path
        self.failing = False
        self._warn = warn
        self._descriptor: int | None = None
        self._waiting = bytearray()
        self._dropped = 0

    def open(self) -> None:
        """Open the file now rather than at the first line; raises OSError if it cannot be written."""
        if self._descriptor is not None:
            return
        with open(self.path, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    self._waiting[:0] = b"\n"
            self._descriptor = os.dup(file.fileno())

    def write(self, line: str) -> None:
        """Add a line, and those that wait; never raises OSError."""
        content = line.encode() + b"\n"
        if len(self._waiting) + len(content) <= WAITING_BYTES:
            self._waiting += content
        else:
            self._dropped += 1
        self.flush()

    def flush(self) -> None:
        """Try to write what waits."""
        try:
            self.open()
            assert self._descriptor is not None
            while self._waiting:
                del self._waiting[: os.write(self._descriptor, self._waiting)]
        except OSError as error:
            if not self.failing:
                self._warn(f"warning: {writing_problem(error, self.path)}; its lines wait for room")
            self.failing = True
            return
        if self.failing:
            lost = f", {self._dropped} lines were dropped" if self._dropped else ", no line is lost"
            self._warn(f"{self.path} can be written again{lost}")
        self.failing, self._dropped = False, 0

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
        if self._waiting:
            self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
