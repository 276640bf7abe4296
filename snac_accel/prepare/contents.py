"""The bytes of clips: where they come from, what tells them apart, and where they lie until the shards are written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from ..audio import AudioError
from ..dataset.clips import RawClip, read_source

MAX_FILE_BYTES = 2**30  # of one clip; cells of parquet and rows in memory have an end


def local_source(raw: RawClip) -> tuple[str | bytes, bool]:
    """Return path or bytes of a clip, and whether that is what the source gave; what lies at an address is fetched.

    Raises AudioError if that fails.
    """
    source = read_source(raw)
    if isinstance(source, str | bytes):
        return source, True
    with source:
        try:
            content = source.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise AudioError(f"cannot be fetched: {str(error)[:200]}") from error
    return content, False


def whole(source: str | bytes) -> bytes:
    """Return the bytes of a clip; raises AudioError if they are too many for a cell of a table."""
    try:
        size = os.path.getsize(source) if isinstance(source, str) else len(source)
        if size > MAX_FILE_BYTES:
            raise AudioError(
                f"has {size / 2**30:.1f} GB, at most 1 GB can be copied: cut it with --max_clip_seconds"
            )
        return Path(source).read_bytes() if isinstance(source, str) else source
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from error


def digest(content: bytes) -> bytes:
    """Return what tells whether a file is still the one that was checked."""
    return hashlib.blake2b(content, digest_size=16).digest()


def storable(text: str) -> str:
    """Return text that Arrow can store: what is not UTF-8 is escaped."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Store:
    """The file beside a step's table, for bytes that the source does not give again; made when the first ones come."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._file: BinaryIO | None = None

    @property
    def name(self) -> str:
        """The name under which the table has it."""
        return self.path.name

    def add(self, content: bytes) -> int:
        """Append bytes; return their place."""
        self._file = self._file or open(self.path, "wb")  # a file left by a killed preparation goes
        self._file.write(content)
        self.size += len(content)
        return self.size - len(content)

    def cut(self, size: int) -> None:
        """Take back what was added beyond a size."""
        if self._file is not None:
            self._file.seek(size)
            self._file.truncate()
            self.size = size

    def close(self) -> None:
        """Flush to the disk. The name is durable with that of the table."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
