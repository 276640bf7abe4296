"""Blocks of clips on the local disk: fetched once per machine, shared by its processes, kept to a bounded size.

    FOLDER/NAME.arrow         one block: an Arrow file, mapped into memory by whoever reads it
    FOLDER/locks/             one process fetches, the others wait; a lock dies with its holder

A block that was removed is fetched again when it is asked for: the size changes what is read, never what is trained on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import datasets
import pyarrow
from filelock import FileLock, Timeout

from ..errors import DataError
from ..files import TEMPORARY_PREFIX, free_bytes

DEFAULT_BYTES = 10 * 10**9
AHEAD_WAIT_SECONDS = 15.0  # for a lock, by what is fetched ahead
STALE_SECONDS = 86_400.0  # after which what a killed process left half written goes
MAX_FETCHES = 20  # of one block in a row, each removed by another process before it was read
NUM_LOCKS = 16  # names share them, so a machine fetches at most so many blocks at a time
Writer = Callable[[pyarrow.NativeFile], None]


def default_folder() -> Path:
    """Return a folder in the cache of `datasets`, which people already keep on a large disk (HF_HOME)."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "snac_accel_blocks"


@dataclass(frozen=True)
class BlockCache:
    """A folder of blocks by name."""

    folder: Path
    max_bytes: int = DEFAULT_BYTES

    @classmethod
    def default(cls) -> BlockCache:
        """Return the one in the cache of `datasets`."""
        return cls(default_folder())

    def get(self, name: str, write: Writer) -> pyarrow.Table:
        """Return block `name`, mapped from the disk; `write` fetches it into an open file if it is not there.

        Raises DataError if the folder cannot be written, or keeps nothing.
        """
        for _ in range(MAX_FETCHES):
            if (table := self._read(name)) is not None:
                return table
            self._add(name, write)
        raise DataError(
            f"{self.folder} keeps no block long enough to be read: raise data.cache_gigabytes, "
            f"{self.max_bytes / 1e9:g} now"
        )

    def prepare(self, name: str, write: Writer) -> None:
        """Fetch block `name` unless it is there."""
        if not self._path(name).exists():
            with suppress(Timeout):  # somebody fetches it, or another one: it is asked for again when it is needed
                self._add(name, write, wait_seconds=AHEAD_WAIT_SECONDS)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.arrow"

    def _read(self, name: str) -> pyarrow.Table | None:
        path = self._path(name)
        try:
            with suppress(OSError):
                os.utime(path)  # the least recently read go first
            with pyarrow.memory_map(str(path)) as file:
                return pyarrow.ipc.open_file(file).read_all()
        except FileNotFoundError:
            return None
        except (pyarrow.ArrowInvalid, OSError):  # damaged by something else: a whole one takes its place
            with suppress(OSError):
                path.unlink()
            return None

    def _add(self, name: str, write: Writer, wait_seconds: float = -1) -> None:
        with self._lock(name, wait_seconds):
            if self._path(name).exists():
                return
            temporary = self.folder / f"{TEMPORARY_PREFIX}{name}-{os.getpid()}"
            try:
                with pyarrow.OSFile(str(temporary), "wb") as file:
                    try:
                        write(file)
                    except FileNotFoundError as error:  # what is read, not this folder
                        raise OSError(str(error)) from error
                os.replace(temporary, self._path(name))
            except OSError as error:
                if error.errno is None:  # of the network, not of this folder
                    raise
                raise self._unwritable(error) from error
            finally:
                temporary.unlink(missing_ok=True)
        self._shrink(keep=name)

    @contextmanager
    def _lock(self, name: str, wait_seconds: float = -1) -> Iterator[None]:
        """Hold the lock of this name; raises Timeout if it cannot be had in time (-1: however long it takes)."""
        locks = self.folder / "locks"
        try:
            locks.mkdir(parents=True, exist_ok=True)
            lock = FileLock(locks / str(crc32(name.encode()) % NUM_LOCKS))
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            raise
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _unwritable(self, error: OSError) -> DataError:
        reason, free = error.strerror or str(error), free_bytes(self.folder)
        room = "" if free is None else f" ({free} bytes free)"
        return DataError(
            f"{self.folder}, where parts of the stream are kept, cannot be written: {reason}{room}; set data.cache_dir"
        )

    def _shrink(self, keep: str) -> None:
        """Remove the blocks read longest ago until the rest fits."""
        for path in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
        files = []
        for path in self.folder.glob("*.arrow"):
            with suppress(OSError):  # removed by another process
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            if path != self._path(keep):
                path.unlink(missing_ok=True)
                total -= size
