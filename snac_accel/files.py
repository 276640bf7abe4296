"""Files that are either whole or absent: written under a temporary name, flushed to the disk, moved into place.

Every error names the file it is about. Each operation is one call of `os`, so that tests can break off at any of them.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

TEMPORARY_PREFIX = ".incomplete-"
WRITE_BYTES = 1 << 26  # at a time, of large files
# What file systems say that have no such operation, such as those of buckets.
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_PLAIN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class Written(NamedTuple):
    """What was meant to be written: a disk that returns anything else is found out."""

    bytes: int
    sha256: str


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> Written:
    """Write one after the other and flush to the disk; the name itself is durable only after `sync_folder`."""
    digest, size = hashlib.sha256(), 0
    with _naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _PLAIN, 0o666)
        try:
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                _write(descriptor, memoryview(piece))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return Written(size, digest.hexdigest())


def _write(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content[:WRITE_BYTES]) :]


def write_bytes(path: Path, content: bytes) -> Written:
    """Write and flush to the disk; the name itself is durable only after `sync_folder`."""
    return write_pieces(path, [content])


def to_json(value: Any) -> bytes:
    """`value` as indented JSON, NaN refused."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> Written:
    """Write `value` as indented JSON, NaN refused, and flush to the disk."""
    return write_bytes(path, to_json(value))


def replace_json(path: Path, value: Any) -> None:
    """Write `value` beside `path` and rename it over `path`: readers see the old or the new file, never half of one."""
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    try:
        write_json(temporary, value)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create a folder and those above it, if it is not there."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    with _naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors of the system name `path`; those of writing name nothing by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def new_folder(path: Path, mark: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` on success (what was there goes) and is removed on failure.

    `mark`, for file systems that may move a folder file by file: the file in it that gets its name last of all. Nothing
    may be at `path` then.
    """
    make_folder(path.parent)
    temporary = path.with_name(TEMPORARY_PREFIX + path.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if mark is None:
            sync_folder(temporary)
            _move_over(temporary, path)
        else:
            _move_with_mark(temporary, path, mark)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_over(source: Path, target: Path) -> None:
    """Let a folder take the place of another in one move, or, where that cannot be, in two with the old one aside.

    What was at `target` is removed only once the new names are on the disk.
    """
    aside = target.with_name(TEMPORARY_PREFIX + "old-" + target.name)
    if not os.path.lexists(target):
        os.rename(source, target)
    elif not exchange(source, target):
        remove_tree(aside)  # the target is there: nobody needs it
        os.rename(target, aside)
        os.rename(source, target)
    sync_folder(target.parent)
    remove_tree(source)
    remove_tree(aside)


def _move_with_mark(source: Path, target: Path, mark: str) -> None:
    """Move a folder, and then let a file of it get its name."""
    hidden = TEMPORARY_PREFIX + mark
    os.rename(source / mark, source / hidden)
    sync_folder(source)
    try:
        os.rename(source, target)
        sync_folder(target)
        sync_folder(target.parent)
        os.rename(target / hidden, target / mark)
        sync_folder(target)
    except OSError:
        remove_tree(target)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one move; False where system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def can_exchange(folder: Path) -> bool:
    """Whether `exchange` works for folders in `folder`; tried with two empty ones."""
    pair = [folder / f"{TEMPORARY_PREFIX}exchange-{number}" for number in (1, 2)]
    try:
        for path in pair:
            path.mkdir(exist_ok=True)
        return exchange(*pair)
    finally:
        for path in pair:
            remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a folder or file if it is there; what cannot be removed stays, the next one tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        with suppress(OSError):
            path.unlink()


def free_bytes(path: Path) -> int | None:
    """Bytes that may still be written where `path` is or will be; None where the file system does not say."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return usage.free if usage.total else None  # buckets have no size


def writing_problem(error: OSError, path: Path) -> str:
    """One line about what could not be written: the path (not that of a temporary file), the reason, the free bytes."""
    free = free_bytes(path)
    room = "" if free is None else f" ({free} bytes free)"
    return f"{path} cannot be written: {error.strerror or error}{room}"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
