"""One run, one folder: a lock that belongs to a process and dies with it, however it dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import writing_problem

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_ANSWER_SECONDS = 0.5  # for a holder that has the lock, but has not written who it is yet
_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_HELD: set[int] = set()  # descriptors of this process
log = logging.getLogger(__name__)


class RunLockedError(ConfigError):
    """Another process has the folder."""


class FolderLock:
    """The lock of a folder, which is made if it is missing; not passed on to forked processes.

    Raises RunLockedError, one line that names host and process, if another has it. What was made for the lock is removed on
    release, unless something else lies there by then.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._owner = os.getpid()
        self.made: list[Path] = []  # folders that it had to make, outermost first
        self._descriptor: int | None = None
        try:
            self._descriptor = self._take()
        except BaseException:
            self._remove_made()
            raise

    def _take(self) -> int:
        while True:
            self._make_folder()
            try:
                descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # one that gave up has just removed the folder
                continue
            except OSError as error:
                raise ConfigError(f"{self.folder} cannot be written: {error}") from error
            try:
                _lock(descriptor, self.folder)
                if _is_file(descriptor, self.folder / LOCK_FILE):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder removed it before we had it
        _HELD.add(descriptor)
        about = {"host": socket.gethostname(), "pid": self._owner, "unix_time": round(time.time(), 3)}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json.dumps(about) + "\n").encode(), 0)
        except OSError as error:  # a full disk
            _HELD.discard(descriptor)
            os.close(descriptor)
            raise ConfigError(writing_problem(error, self.folder)) from error
        return descriptor

    def _make_folder(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        for path in reversed(missing):
            try:
                path.mkdir()
                self.made.append(path)
            except FileExistsError:
                continue
            except FileNotFoundError:
                return
            except OSError as error:
                raise ConfigError(f"{self.folder} cannot be created: {error}") from error

    def release(self) -> None:
        """Let others have the folder; does nothing in a forked process, or a second time."""
        if self._descriptor is None or os.getpid() != self._owner:
            return
        (self.folder / LOCK_FILE).unlink(missing_ok=True)  # first: whoever opened it already sees that it is gone
        _HELD.discard(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = None
        self._remove_made()

    def _remove_made(self) -> None:
        for path in reversed(self.made):
            try:
                path.rmdir()
            except OSError:  # a run is in it
                return


def read_holder(folder: Path) -> dict[str, Any] | None:
    """Who has, or had when it was killed, the lock of a folder: host, pid, unix_time; None if nobody says so."""
    try:
        about = json.loads((folder / LOCK_FILE).read_text())
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) and {"host", "pid"} <= about.keys() else None


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            log.warning(
                "%s: this file system has no locks (%s): see to it that no two runs write there", folder, error
            )
            return
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise ConfigError(f"{folder} cannot be locked: {error}") from error
        raise RunLockedError(
            f"{folder} is in use by another run ({_holder_text(folder)}): stop that one, or choose another paths.run_dir"
        ) from None


def _holder_text(folder: Path) -> str:
    end = time.monotonic() + _ANSWER_SECONDS
    while (about := read_holder(folder)) is None and time.monotonic() < end:
        time.sleep(0.02)
    return "which has not said who it is" if about is None else f"host {about['host']}, pid {about['pid']}"


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _leave_to_parent() -> None:
    """In a forked process: without its copy of the descriptors the lock ends with the process that took it."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
