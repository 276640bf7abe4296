"""File operations that are written down, and that break off at the one that a test wants: by death, or by an error.

Patched are the functions of `os` that change a disk, and the exchange of two folders. After `Dead` every further operation
raises it again: a killed process cleans nothing up.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from snac_accel import files

GROWING = {"open", "write", "fsync", "mkdir", "rename", "replace", "exchange"}  # what a full disk may refuse
NAMED = ("mkdir", "rename", "replace", "unlink", "rmdir", "link", "symlink", "truncate")


class Dead(BaseException):
    """The process was killed here."""


class Operation(NamedTuple):
    """One call."""

    name: str
    path: str  # below the watched folder; of a removal by descriptor: the last name
    target: str = ""  # of a rename


class Disk:
    """What is done below `root`, and where it breaks off."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.done: list[Operation] = []
        self.breaks_at: int | None = None  # number of the operation
        self.error: int | None = None  # errno; None: death
        self.torn = False  # a write does half of its work before it dies
        self.lasting = False  # the error stays, as on a full disk
        self.dead = False
        self._names: dict[int, str] = {}  # of open files

    def _short(self, path: Any) -> str | None:
        name = self._names.get(path) if isinstance(path, int) else os.fsdecode(path)
        if name is None:
            return None
        if not os.path.isabs(name):
            return name  # of a removal by descriptor
        return os.path.relpath(name, self.root) if Path(name).is_relative_to(self.root) else None

    def operation(self, name: str, path: Any, target: Any, do: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        """Write the operation down and do it, unless it is the one that breaks off."""
        short = self._short(path)
        if short is None:
            return do()
        if self.dead:
            raise Dead
        number = len(self.done)
        self.done.append(Operation(name, short, (self._short(target) or "") if target is not None else ""))
        due = self.breaks_at is not None and (number == self.breaks_at or self.lasting and number >= self.breaks_at)
        if due and self.error is not None and name in GROWING:
            raise OSError(self.error, os.strerror(self.error))
        if due and self.error is None:
            self.dead = True
            if self.torn and half is not None:
                half()
            raise Dead
        return do()


@contextmanager
def watched(root: Path, *, exchange: bool = True, atomic: bool = True) -> Iterator[Disk]:
    """Watch what is done below `root`. Without `exchange` the file system knows none; without `atomic` a folder is renamed
    file by file, as on a bucket."""
    disk, real = Disk(root.resolve()), {name: getattr(os, name) for name in (*NAMED, "open", "write", "fsync", "close")}
    real_exchange = files.exchange

    def opened(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        do: Callable[[], int] = lambda: real["open"](path, flags, *arguments, **options)  # noqa: E731
        descriptor: int = disk.operation("open", path, None, do, None) if writes else do()
        if not isinstance(path, int) and os.path.isabs(os.fsdecode(path)):
            disk._names[descriptor] = os.fsdecode(path)
        return descriptor

    def written(descriptor: int, content: Any) -> int:
        half = memoryview(content)[: len(content) // 2]
        return disk.operation(  # type: ignore[no-any-return]
            "write", descriptor, None, lambda: real["write"](descriptor, content), lambda: real["write"](descriptor, half)
        )

    def closed(descriptor: int) -> None:
        disk._names.pop(descriptor, None)
        real["close"](descriptor)

    def synced(descriptor: int) -> None:
        disk.operation("fsync", descriptor, None, lambda: real["fsync"](descriptor), None)

    def named(name: str) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            target = arguments[0] if name in ("rename", "replace", "link", "symlink") else None
            do = lambda: real[name](path, *arguments, **options)  # noqa: E731
            if name == "rename" and not atomic and os.path.isdir(path):
                return _rename_slowly(os.fsdecode(path), os.fsdecode(arguments[0]))
            return disk.operation(name, path, target, do, None)

        return call

    def exchanged(one: Path, other: Path) -> bool:
        if not exchange:
            return False
        return disk.operation("exchange", one, other, lambda: real_exchange(one, other), None)  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        patch.setattr(os, "write", written)
        patch.setattr(os, "fsync", synced)
        patch.setattr(os, "close", closed)
        patch.setattr(files, "exchange", exchanged)
        for name in NAMED:
            patch.setattr(os, name, named(name))
        yield disk


def _rename_slowly(source: str, target: str) -> None:
    """Every file by itself, in the order of their names, of which the manifest is not the last."""
    os.mkdir(target)
    for name in sorted(os.listdir(source)):
        os.rename(os.path.join(source, name), os.path.join(target, name))
    os.rmdir(source)


FULL_DISK, QUOTA, READ_ONLY, FORBIDDEN = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES
