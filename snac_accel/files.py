"""Files that are either whole or absent: written under a temporary name, flushed to the disk, renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".incomplete-"


def write_bytes(path: Path, content: bytes) -> None:
    """Write and flush to the disk; the name itself is durable only after `sync_folder`."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, NaN refused, and flush to the disk."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def replace_json(path: Path, value: Any) -> None:
    """Write `value` beside `path` and rename it over `path`: readers see the old or the new file, never half of one."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    write_json(temporary, value)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` on success (what was there goes) and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        _move_over(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_over(source: Path, target: Path) -> None:
    """Rename a folder; a full target cannot be renamed over, so it steps aside first."""
    aside = target.with_name(TEMPORARY_PREFIX + "old-" + target.name)
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.rename(target, aside)
    os.rename(source, target)
    shutil.rmtree(aside, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
