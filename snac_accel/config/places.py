"""Paths that cannot work, found before anything heavy starts: data that are not there, folders that cannot be made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from ..errors import ConfigError
from .messages import one_line, show
from .schema import TrainingConfig

TABLE_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tar")
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes; of Linux, and no other system takes more
_KERNEL = {Path("/proc"), Path("/sys")}  # whose permissions say nothing


def check_places(config: TrainingConfig) -> None:
    """Raise ConfigError, one line with setting and path, for a path that cannot be read or written on this machine."""
    for name, path in _inputs(config):
        _check_input(name, path)
    paths = config.paths
    outputs = {
        "paths.run_dir": paths.run_dir, "paths.checkpoint_dir": paths.checkpoint_dir, "paths.log_dir": paths.log_dir,
        "data.cache_dir": config.data.cache_dir,
    }  # fmt: skip
    for name, output in outputs.items():
        if output is not None:
            _check_output(name, output)


def _inputs(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """The settings that name something to read, where they clearly mean a path on this machine."""
    data, validation = config.data, config.validation
    found: dict[str, str | None] = {
        f"data.sources[{number}].dataset_path": source.dataset_path for number, source in enumerate(data.sources)
    } or {"data.dataset_path": data.dataset_path}
    if validation.enabled:
        found["validation.dataset_path"] = validation.dataset_path
    found["training.init_from"] = config.training.init_from
    for name, path in found.items():
        if path is not None and looks_local(path):
            yield name, path


def looks_local(path: str) -> bool:
    """Whether a path means one on this machine, there or not, rather than a Hub id or an address."""
    if "://" in path:
        return False
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).suffix in TABLE_SUFFIXES


def _check_input(name: str, path: str) -> None:
    _check_length(name, path)
    full = os.path.expanduser(path)
    try:
        os.stat(full)
    except FileNotFoundError:
        raise ConfigError(one_line(f"{name} = {show(path)}: no such folder or file; {_nearest_path(full)}")) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(one_line(f"{name} = {show(path)}: cannot be read ({reason}); should be a folder or file")) from None
    if not os.access(full, os.R_OK):
        raise ConfigError(one_line(f"{name} = {show(path)}: may not be read; its permissions should allow it"))


def _nearest_path(path: str) -> str:
    """What to say about a path that is not there: a name like it, or how far it leads."""
    there = Path(path).absolute()
    missing = there.name
    while not there.is_dir() and there != there.parent:
        missing, there = there.name, there.parent
    try:
        near = get_close_matches(missing, [entry.name for entry in islice(os.scandir(there), 1000)], n=1)
    except OSError:
        near = []
    return f"did you mean {there / near[0]}?" if near else f"{there} holds no {show(missing)}"


def _check_output(name: str, path: str) -> None:
    """Refuse a folder that cannot be made or written."""
    _check_length(name, path)
    there = Path(path).absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    problem = None
    if not there.is_dir():
        problem = f"{there} is no folder; should be a folder, or a path where one can be made"
    elif _KERNEL & {there, *there.parents} or not os.access(there, os.W_OK | os.X_OK) or _is_read_only(there):
        problem = f"{there} cannot be written; should be a folder that can"
    if problem:
        raise ConfigError(one_line(f"{name} = {show(path)}: {problem}"))


def _check_length(name: str, path: str) -> None:
    longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    if longest > LONGEST_NAME or len(os.fsencode(path)) > LONGEST_PATH:
        problem = f"should have names of at most {LONGEST_NAME} bytes, {LONGEST_PATH} in all"
        raise ConfigError(one_line(f"{name} = {show(path)}: {problem}"))


def _is_read_only(folder: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
