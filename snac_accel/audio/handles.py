"""What libsndfile reads from: a file on disk, bytes in memory, or a file opened by Python. Nothing is decoded here.

Each has `handle` (what `soundfile` opens), the `head` and `tail` of its bytes, and `check`, which raises what went
wrong where libsndfile could not say.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError


class AudioError(Exception):
    """A clip cannot be used. The message is the reason alone, without the clip's name."""


def open_handle(source: str | Path | bytes | BinaryIO) -> Descriptor | Memory | Stream:
    """Return a clip as libsndfile reads it."""
    if isinstance(source, bytes):
        return Memory(source)
    return Descriptor(source) if isinstance(source, (str, Path)) else Stream(source)


class Descriptor:
    """A regular file on disk. It is opened once, so that one path being replaced cannot give two files."""

    handle = -1

    def __init__(self, path: str | Path) -> None:
        try:
            # Without O_NONBLOCK, opening a pipe would wait for ever.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            self.handle = os.open(path, flags)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise AudioError(f"cannot be opened: {reason}") from error
        status = os.fstat(self.handle)
        is_regular = stat.S_ISREG(status.st_mode)
        if not is_regular or status.st_size == 0:
            self.close()
            raise AudioError("is empty (0 bytes)" if is_regular else "is not a regular file")

    def head(self, num_bytes: int) -> bytes:
        """Return the first bytes of the file, as long as nothing else was read."""
        start = os.read(self.handle, num_bytes)
        os.lseek(self.handle, 0, os.SEEK_SET)
        return start

    def tail(self, num_bytes: int) -> bytes:
        """Return the last bytes of the file."""
        position = os.lseek(self.handle, 0, os.SEEK_CUR)
        try:
            os.lseek(self.handle, -min(num_bytes, os.fstat(self.handle).st_size), os.SEEK_END)
            return os.read(self.handle, num_bytes)
        finally:
            os.lseek(self.handle, position, os.SEEK_SET)

    def check(self) -> None:
        """Raise what went wrong below libsndfile: nothing, it reads the descriptor itself."""

    def close(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1

    __del__ = close  # of a clip that was not opened by `with`


class Memory(io.BytesIO):
    """The bytes of a file, as libsndfile reads them: through callbacks, from which no exception can pass."""

    def __init__(self, content: bytes) -> None:
        if not content:
            raise AudioError("is empty (0 bytes)")
        super().__init__(content)  # shared, not copied
        self._content = content
        self.handle = self

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; return it, or -1 if a damaged header asks for one before the beginning."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return -1

    def head(self, num_bytes: int) -> bytes:
        """Return the first bytes."""
        return self._content[:num_bytes]

    def tail(self, num_bytes: int) -> bytes:
        """Return the last bytes."""
        return self._content[-num_bytes:]

    def check(self) -> None:
        """Raise what went wrong below libsndfile: nothing can."""


class Stream:
    """A file opened by Python, as libsndfile reads it.

    It reads through callbacks, from which no exception can pass: the first one is kept for `check`, and from then
    on the file is at its end.
    """

    def __init__(self, source: BinaryIO) -> None:
        self._file = source
        self._error: BaseException | None = None
        self.handle = self
        try:
            size = self.seek(0, os.SEEK_END)
            self.check()
            if size == 0:
                raise AudioError("is empty (0 bytes)")
            self.seek(0)
        except BaseException:
            self.close()
            raise

    def read(self, count: int) -> bytes:
        """Return `count` bytes, fewer only at the end, whatever the file gives at a time."""
        parts: list[bytes] = []
        while count > 0 and self._error is None:
            try:
                part = self._file.read(count)
            except BaseException as error:  # noqa: B036 - raised by check
                self._error = error
                break
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; return it, or -1 if that failed."""
        try:
            return self._file.seek(offset, whence) if self._error is None else -1
        except (ValueError, OverflowError):  # a damaged header asks for a place before the beginning
            return -1
        except BaseException as error:  # noqa: B036 - raised by check
            self._error = error
            return -1

    def tell(self) -> int:
        """Return the place."""
        return self.seek(0, os.SEEK_CUR)

    def head(self, num_bytes: int) -> bytes:
        """Return the first bytes of the file, as long as nothing else was read."""
        start = self.read(num_bytes)
        self.seek(0)
        return start

    def tail(self, num_bytes: int) -> bytes:
        """Return the last bytes of the file."""
        position, size = self.tell(), self.seek(0, os.SEEK_END)
        self.seek(max(0, size - num_bytes))
        last = self.read(num_bytes)
        self.seek(position)
        return last

    def check(self) -> None:
        """Raise what went wrong as AudioError; an error of the whole source, meant for the user, as it is."""
        error = self._error
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise AudioError(f"cannot be read: {' '.join(str(error).split())[:200]}") from error
        if error is not None:
            raise error

    def close(self) -> None:
        self._file.close()
