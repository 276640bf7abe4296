"""What is to be pushed, as folders that outlive the process: `NAME/job.json` and the files in `NAME/files/`.

A job is whole or absent. A newer one for the same place makes the older ones superfluous.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import new_folder, remove_tree, write_json
from ..plain_json import read_json

JOB_FILE, FILES = "job.json", "files"


@dataclass(frozen=True)
class Job:
    """One commit."""

    repository: str  # NAME or OWNER/NAME
    step: int
    message: str
    branch: str = "main"
    private: bool | None = None  # of a repository that has to be made; None: as its owner's settings have it
    tag: str | None = None  # that is to lead to the commit
    new_branch: str | None = None  # the same
    replaced: str | None = None  # files below this folder that are not among the job's go

    @property
    def place(self) -> tuple[str, str]:
        """Where it goes."""
        return self.repository, self.branch

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.step:08}-{'-'.join(self.place).replace('/', '--')}"


class Queue:
    """The jobs in a folder; safe between the threads of a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._busy: Path | None = None  # its folder stays, whatever comes

    def put(self, job: Job, fill: Callable[[Path], None]) -> Path:
        """Add a job whose files `fill` writes into a folder that it makes, and drop those that it makes superfluous."""
        path = self.folder / job.name
        with new_folder(path) as draft:
            fill(draft / FILES)
            write_json(draft / JOB_FILE, asdict(job))
        with self._lock:
            for other, older in self._all():
                if older.place == job.place and other != path and other != self._busy:
                    remove_tree(other)
        return path

    def put_copy(self, job: Job, source: Path) -> Path:
        """Add a job with the files of a folder."""
        return self.put(job, lambda files: _copy(source, files))

    def take(self) -> tuple[Path, Job] | None:
        """The newest job, which stays until it is `done`; older ones for the same place are dropped."""
        with self._lock:
            jobs = sorted(self._all(), key=lambda item: item[1].step, reverse=True)
            seen: set[tuple[str, str]] = set()
            for path, job in jobs:
                if job.place in seen:
                    remove_tree(path)
                seen.add(job.place)
            self._busy = jobs[0][0] if jobs else None
            return jobs[0] if jobs else None

    def done(self, path: Path) -> None:
        """A job has arrived, or is given up."""
        with self._lock:
            self._busy = None
            remove_tree(path)

    def __len__(self) -> int:
        with self._lock:
            return len(self._all())

    def _all(self) -> list[tuple[Path, Job]]:
        found = []
        for path in sorted(self.folder.glob("[!.]*")) if self.folder.is_dir() else []:
            try:
                found.append((path, Job(**read_json(path / JOB_FILE))))
            except (OSError, ValueError, TypeError):
                continue  # not ours, or of another version
        return found


def _copy(source: Path, target: Path) -> None:
    """Copy the files of a folder, without links that lead elsewhere."""
    for file in sorted(source.rglob("*")):
        if file.is_file() and not file.is_symlink():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
