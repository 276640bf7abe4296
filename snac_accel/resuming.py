"""Which checkpoint a run goes on from, and its folder taken for itself. Loads no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .changes import find_changes, shown
from .errors import CheckpointError, ConfigError
from .files import sync_folder
from .locks import FolderLock, RunLockedError
from .run_folder import SET_ASIDE, RunFolder, place_run, same_command, saved_config
from .stored import MANIFEST, find_checkpoint, list_checkpoints, place_of, verify_checkpoint


class RunClaim:
    """The folders of a run, locked until `release`, the end of the context or of this process."""

    def __init__(self) -> None:
        self.folder: RunFolder | None = None
        self._locks: list[FolderLock] = []

    def __enter__(self) -> RunClaim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def take(self, config: Mapping[str, Any]) -> RunFolder:
        """Decide the folder of the run and lock it, once; see `place_run`. Raises RunLockedError if another run has it."""
        while self.folder is None:
            folder = place_run(config)
            try:
                fresh = self._lock(folder)
            except RunLockedError:
                if place_run(config).root != folder.root:  # two fresh runs of one name in the same second
                    continue
                raise
            # Another run may have come and gone since the folder was looked at; one that was made here is ours.
            if fresh or (folder := place_run(config)).root.resolve() == self._locks[0].folder.resolve():
                self.folder = folder
            else:
                self.release()
        return self.folder

    def _lock(self, folder: RunFolder) -> bool:
        """Lock the run's folder, and those of its checkpoints and logs that lie elsewhere; whether the first was made."""
        root = folder.root.resolve()
        elsewhere = {
            path.resolve() for path in (folder.checkpoints, folder.logs) if not path.resolve().is_relative_to(root)
        }
        try:
            # In the order of their names, so that of two runs that share some of them one gets all.
            for path in sorted({root, *elsewhere}):
                self._locks.append(FolderLock(path))
        except BaseException:
            self.release()
            raise
        self._locks.sort(key=lambda lock: lock.folder != root)
        return root in self._locks[0].made

    def release(self) -> None:
        """Let others have the folders."""
        self.folder = None
        while self._locks:
            self._locks.pop().release()


def choose_run(config: Mapping[str, Any]) -> RunFolder:
    """The folder of a run and the checkpoint it continues from, without a lock, writing nothing."""
    return find_checkpoints(place_run(config), config)


def find_checkpoints(folder: RunFolder, config: Mapping[str, Any]) -> RunFolder:
    """`folder` with the checkpoint that the run continues from, and what is to be said about that.

    Raises CheckpointError, one line, if the named checkpoint is damaged, or all of the run's are.
    """
    checkpoint, notes = _choose(folder, config)
    if checkpoint is None:
        return folder._replace(resume_from=None, notes=(*folder.notes, *notes))
    before = saved_config(checkpoint) or saved_config(folder.root) or config
    changes = tuple(find_changes(before, config))
    if lines := shown(changes):
        notes.append("\n".join([f"settings changed since {checkpoint}:", *lines]))
    return folder._replace(resume_from=checkpoint, notes=(*folder.notes, *notes), changes=changes)


def _choose(folder: RunFolder, config: Mapping[str, Any]) -> tuple[Path | None, list[str]]:
    resume = config["checkpoint"]["resume"]
    if resume == "never":
        return None, []
    if resume == "auto":
        return newest_intact(folder.checkpoints)
    path = Path(resume)
    if list_checkpoints(folder.checkpoints) and same_command(saved_config(folder.root), config):
        newest, notes = newest_intact(folder.checkpoints)
        if newest is not None and (path / MANIFEST).is_file() and newest.resolve() != path.resolve():
            notes.append(f"--resume {path} was followed before: going on with what was saved since, {newest}")
        return newest, notes
    if (path / MANIFEST).is_file():
        verify_checkpoint(path)  # the user chose it: no other will do
        return path, []
    for place in (path / "checkpoints", path):
        newest, notes = newest_intact(place)
        if newest is not None:
            return newest, notes
    return find_checkpoint(path), []  # raises


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint below `folder`, and a line about each newer one that is damaged.

    Raises CheckpointError if there are only damaged ones: to begin anew beside them would be to overwrite them.
    """
    notes: list[str] = []
    first = None
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
            return path, notes
        except CheckpointError as error:
            notes.append(f"warning: {error}; falling back to the checkpoint before it")
            if (path / MANIFEST).exists():
                first = first or error
    if first is not None:
        raise CheckpointError(f"{first}; no checkpoint in {folder} is intact: move them away to begin anew")
    return None, notes


def set_newer_aside(folder: RunFolder) -> str | None:
    """Where a run goes back to an older checkpoint, move the newer ones, of which nothing is lost, out of its way.

    They would be taken for its own otherwise, and continued from. Returns the sentence to show, if there were any.
    """
    chosen = folder.resume_from
    if chosen is None or chosen.resolve().parent != folder.checkpoints.resolve():
        return None
    own = place_of(chosen)
    newer = [path for path in list_checkpoints(folder.checkpoints) if own is not None and (place_of(path) or own) > own]
    intact = [path for path in newer if _is_intact(path)]
    if not intact:
        return None  # damaged ones are passed over anyway, and written anew
    aside = folder.checkpoints / SET_ASIDE / time.strftime("%Y%m%d-%H%M%S")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        for path in reversed(intact):
            path.rename(aside / path.name)
        sync_folder(folder.checkpoints)
    except OSError as error:
        raise ConfigError(f"{aside}: newer checkpoints cannot be moved there: {error}") from error
    return f"going back to {chosen}: {len(intact)} newer checkpoints are in {aside} now"


def _is_intact(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True
