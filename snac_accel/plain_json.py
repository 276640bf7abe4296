"""JSON from files that nobody has looked at: bounded in size and depth, and every way to fail is a ValueError or OSError."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MAX_BYTES = 4 * 2**20  # far above any file of a checkpoint or model; as objects it takes some thirty times as much


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a file; raises ValueError if it is no JSON, too large or nested too deeply, OSError if it cannot be read."""
    return parse_json(read_bounded(path, max_bytes).decode("utf-8-sig"))


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file; raises ValueError if they are more than `max_bytes`, OSError if it cannot be read."""
    # Without O_NONBLOCK, opening a pipe would wait for ever.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    return content


def parse_json(text: str) -> Any:
    """The value of a text; raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
