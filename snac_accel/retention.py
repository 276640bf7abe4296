"""Which checkpoints stay, and how the others go. Loads no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import CheckpointError
from .files import TEMPORARY_PREFIX, can_exchange, remove_tree, sync_folder
from .stored import MANIFEST, Place, list_checkpoints, looks_complete, place_of, read_manifest

# What a killed save, a killed removal and a killed trial leave behind.
LEFTOVERS = tuple(f"{TEMPORARY_PREFIX}{kind}" for kind in ("step_", "removed-", "exchange-"))


class Retention(NamedTuple):
    """What is kept beside the checkpoint just written."""

    last: int | None = None  # so many of the newest, with it; None: all
    every: int | None = None  # those of multiples of so many steps
    best: int = 0  # so many of the smallest score


def rotate(folder: Path, saved: Path, retention: Retention) -> None:
    """Remove what `retention` does not keep, up to the checkpoint `saved`: newer ones belong to a run that was left.

    Damaged ones and those of other versions are left alone. Call it only when `saved` is durable.
    """
    last = _place(saved)
    older = [path for path in list_checkpoints(folder) if _place(path) <= last]
    if retention.last is None:
        older = [path for path in older if _place(path).step == last.step]
    complete = [path for path in older if path == saved or looks_complete(path)]
    keep = {saved} | _kept(complete, retention)
    unfinished = {path for path in older if not os.path.lexists(path / MANIFEST)}
    obsolete = [path for path in older if path not in keep and (path in complete or path in unfinished)]
    if obsolete:
        in_one_move = can_exchange(folder)
        for path in obsolete:
            remove_checkpoint(path, in_one_move)
        sync_folder(folder)


def _kept(complete: list[Path], retention: Retention) -> set[Path]:
    """What stays of complete checkpoints, oldest first; of a step that was saved twice, the second."""
    newest = list({_place(path).step: path for path in complete}.values())
    keep = set(newest if retention.last is None else newest[-retention.last :])
    if retention.every is not None:
        keep |= {path for path in newest if _place(path).step and _place(path).step % retention.every == 0}
    scores = _comparable(newest)
    # Of equal ones the older: it was the better for longer.
    return keep | set(sorted(scores, key=lambda path: (scores[path], _place(path)))[: retention.best])


def _comparable(paths: list[Path]) -> dict[Path, float]:
    """The scores, smaller is better, of those paths, oldest first, that were judged by the metric of the last one of them."""
    judged = {path: (metric, value) for path in paths if (value := score_of(path)) is not None and (metric := _metric(path))}
    last = next(reversed(judged.values()))[0] if judged else None
    return {path: value for path, (metric, value) in judged.items() if metric == last}


def score_of(path: Path) -> float | None:
    """What the validation of a checkpoint's step came to, smaller is better; None if there was none."""
    score = _score(path)
    value = score.get("value")
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return -float(value) if score.get("better") == "higher" else float(value)


def _metric(path: Path) -> str:
    return str(_score(path).get("metric", "unnamed"))


def _score(path: Path) -> Mapping[str, Any]:
    try:
        score = read_manifest(path).get("score")
    except CheckpointError:
        return {}
    return score if isinstance(score, dict) else {}


def remove_checkpoint(path: Path, in_one_move: bool) -> None:
    """Remove a checkpoint so that no half of it is ever taken for one: out of the way first, or its manifest first."""
    if in_one_move:
        grave = path.with_name(f"{TEMPORARY_PREFIX}removed-{path.name}")
        remove_tree(grave)
        os.rename(path, grave)
        remove_tree(grave)
    else:
        with suppress(OSError):
            (path / MANIFEST).unlink()
        remove_tree(path)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written or half removed; only the writer of the folder may call it."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name.startswith(LEFTOVERS):
            remove_tree(path)


def _place(path: Path) -> Place:
    place = place_of(path)
    if place is None:
        raise ValueError(f"{path} is not named as a checkpoint")
    return place
