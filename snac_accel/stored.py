"""Checkpoints as folders: which there are, whether they are complete and undamaged. Loads no torch.

A checkpoint is `step_N` with a manifest of every file's size and SHA-256; the manifest is the mark that makes it one. Where a
folder cannot be replaced in one move, a step that is saved again stands beside the first as `step_N.2`.
Whatever a manifest says, nothing outside its folder is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .errors import CheckpointError
from .files import sha256
from .plain_json import parse_json, read_bounded

FORMAT = 3  # 1 had no place in the data; 2 had no seal, no moving average, no best validation
READABLE = (2, 3)
HASHING_THREADS = 4
SETTLED_SECONDS = 3.0  # after which a file's time of change tells contents apart, on every file system
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 16 * 2**20  # nothing of a checkpoint in JSON comes near it
MAX_FILES = 1000
FACTS = {"step", "config_hash", "world_size", "global_batch_size"}
NO_SEAL = "0" * 64
_NAME = re.compile(r"step_(\d{1,18})(?:\.(\d{1,9}))?")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*")
log = logging.getLogger(__name__)


class Place(NamedTuple):
    """What the name of a checkpoint's folder says; newer ones compare greater."""

    step: int
    again: int  # 0, or how often the step was saved before, where a folder cannot be replaced


def place_of(path: Path) -> Place | None:
    """The step of a folder's name; None if it is no name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return Place(int(match[1]), int(match[2] or 0)) if match else None


def list_checkpoints(folder: Path) -> list[Path]:
    """All folders below `folder` that are named as checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if place_of(path) is not None and path.is_dir()]
    return sorted(found, key=lambda path: (place_of(path), path.name))


def path_for(folder: Path, step: int, replaceable: bool) -> Path:
    """Where the checkpoint of a step is to be written, so that one of that step that stands there is never missing.

    `replaceable`: whether a folder can take the place of another in one move.
    """
    path = folder / f"step_{step:08d}"
    if replaceable or not os.path.lexists(path):
        return path
    places = [place_of(other) for other in list_checkpoints(folder)]
    last = max(place.again for place in places if place is not None and place.step == step)
    return folder / f"{path.name}.{max(last, 1) + 1}"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint below `folder`; damaged ones are passed over with a warning."""
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
            return path
        except CheckpointError as error:
            log.warning("%s; falling back to the checkpoint before it", error)
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` is, or the newest intact one of the run there; CheckpointError if there is none."""
    if (path / MANIFEST).is_file():
        return path
    found = newest_checkpoint(path / "checkpoints") or newest_checkpoint(path)
    if found is None:
        raise CheckpointError(
            f"{path}: no checkpoint there; give a step_… folder or the folder of a run (--resume also takes auto and never)"
        )
    return found


def sealed(facts: dict[str, Any]) -> bytes:
    """A manifest as it is written: with the SHA-256 of itself, of when that was 64 zeros."""
    content = (json.dumps({**facts, "seal": NO_SEAL}, indent=2, allow_nan=False) + "\n").encode()
    return _with_seal(content, NO_SEAL, hashlib.sha256(content).hexdigest())


def _with_seal(content: bytes, old: str, new: str) -> bytes:
    """`content` with another seal; the last place that looks like it is it."""
    before, mark, after = content.rpartition(f'"seal": "{old}"'.encode())
    return before + mark.replace(old.encode(), new.encode()) + after


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Return the manifest after comparing every file's size and SHA-256 with it; raise CheckpointError naming the file."""
    manifest = read_manifest(path)
    expected = _expected_files(path, manifest)
    for file, (size, _) in expected.items():
        if not file.is_file():
            raise CheckpointError(f"{file} is missing from the checkpoint")
        if file.is_symlink():
            raise CheckpointError(f"{file} is a link: a checkpoint's files stand in its folder")
        if _size(file) != size:
            raise _damaged(file)
    with ThreadPoolExecutor(HASHING_THREADS) as threads:  # hashlib lets the others run meanwhile
        for (file, (_, digest)), found in zip(expected.items(), threads.map(_fingerprint, expected), strict=True):
            if found != digest:
                raise _damaged(file)
    return manifest


def looks_complete(path: Path) -> bool:
    """Whether the files of a checkpoint are there, of the right sizes: without reading them."""
    try:
        return all(_size(file) == size for file, (size, _) in _expected_files(path, read_manifest(path)).items())
    except CheckpointError:
        return False


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint `path`: its seal is right, this version reads its format, its step is the folder's."""
    file = path / MANIFEST
    if not file.is_file() or file.is_symlink():
        raise CheckpointError(f"{path} is not a complete checkpoint: it has no {MANIFEST}")
    content = _read(file)
    manifest = _parse(file, content)
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise _damaged(file)
    if manifest["format"] not in READABLE:
        raise CheckpointError(_other_format(path, manifest))
    if manifest["format"] > 2 or "seal" in manifest:
        _check_seal(file, content, manifest.get("seal"))
    place = place_of(path)
    if place is not None and manifest.get("step") != place.step:
        found = str(manifest.get("step"))[:20]
        raise CheckpointError(f"{file} is of step {found}, not of the step that the folder is named after")
    return manifest


def _check_seal(file: Path, content: bytes, seal: Any) -> None:
    if not isinstance(seal, str) or len(seal) != len(NO_SEAL):
        raise _damaged(file)
    if hashlib.sha256(_with_seal(content, seal, NO_SEAL)).hexdigest() != seal:
        raise _damaged(file)


def _other_format(path: Path, manifest: dict[str, Any]) -> str:
    found, written_by = manifest["format"], manifest.get("program")
    writer = f"{written_by[:60]}, which wrote it" if isinstance(written_by, str) else "the version that wrote it"
    return (
        f"{path} has checkpoint format {found}, this version reads {' and '.join(map(str, READABLE))}: "
        f"start a new run from its weights with --init_from {path}, or go on with {writer}"
    )


def _expected_files(path: Path, manifest: dict[str, Any]) -> dict[Path, tuple[int, str]]:
    """Size and SHA-256 of every file that should be there: plain names, no paths."""
    files = manifest.get("files")
    if not manifest.keys() >= FACTS or not isinstance(files, dict) or len(files) > MAX_FILES:
        raise _damaged(path / MANIFEST)
    expected = {}
    for name, facts in files.items():
        if not _PLAIN_NAME.fullmatch(name) or name == MANIFEST or not isinstance(facts, dict):
            raise _damaged(path / MANIFEST)
        size, digest = facts.get("bytes"), facts.get("sha256")
        if type(size) is not int or not isinstance(digest, str):
            raise _damaged(path / MANIFEST)
        expected[path / name] = (size, digest)
    return expected


def read_json(file: Path) -> Any:
    """What a file in JSON holds; CheckpointError, one line, if it cannot be read or is far too large."""
    return _parse(file, _read(file))


def _read(file: Path) -> bytes:
    try:
        return read_bounded(file, MAX_JSON_BYTES)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is too large for what it should hold: {error}") from error


def _parse(file: Path, content: bytes) -> Any:
    try:
        return parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} is damaged: it is not the file that was saved")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error


def _fingerprint(file: Path) -> str:
    """The SHA-256. A file that has not changed since is not read again: a run that looks for its newest checkpoint
    reads all of it, and then loads it."""
    try:
        status = file.stat()
        if time.time() - status.st_mtime < SETTLED_SECONDS:  # it might change within one tick of its clock
            return sha256(file)
        return _known_sha256(file.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=64)
def _known_sha256(file: Path, size: int, modified: int, inode: int) -> str:
    return sha256(file)
