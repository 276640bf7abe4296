"""The second pass: the good clips, in a keyed order, dealt into shards whose numbers of clips differ by at most one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

from ..audio import AudioError
from ..dataset.order import PERMUTATION, draw_words
from ..errors import DataError
from ..files import replace_json, sha256, sync_folder
from ..seeds import derive_seed
from .contents import digest, local_source, whole
from .processes import context
from .settings import DEFAULT_SHARD_BYTES, MAX_NUMBER, SUFFIXES, PrepareSettings
from .shard_files import WRITERS, Row
from .sources import Part


class SplitPlan(NamedTuple):
    """Which pieces of a split go where."""

    pieces: pyarrow.Table  # the good ones, in the order of the sources
    order: NDArray[np.int64]  # in which the shards take them
    edges: NDArray[np.int64]  # shard i takes order[edges[i]:edges[i + 1]]

    @property
    def num_shards(self) -> int:
        """How many shards the split has."""
        return len(self.edges) - 1


def plan_split(name: str, pieces: pyarrow.Table, settings: PrepareSettings) -> SplitPlan:
    """Return the plan of a split; raises DataError if nothing in it is good, or for more shards than can be named."""
    good = pieces.filter(pyarrow.compute.equal(pieces.column("reason"), ""))
    count = len(good)
    if count == 0:
        first = (
            f", the first one {pieces.column('name')[0]}: {pieces.column('reason')[0]}" if len(pieces) else ""
        )
        raise DataError(f"none of the {len(pieces)} clips of {name} can be used{first}")
    if settings.num_shards is not None:
        num_shards = min(settings.num_shards, count)
    elif settings.clips_per_shard is not None:
        num_shards = -(-count // settings.clips_per_shard)
    else:
        num_shards = min(count, -(-pyarrow.compute.sum(good.column("size")).as_py() // DEFAULT_SHARD_BYTES))
    if num_shards > MAX_NUMBER:
        raise DataError(
            f"{num_shards} shards of {name} are more than the {MAX_NUMBER} that can be named: put more clips in each"
        )
    # A purpose and a split of its own, so that training never draws the same order again.
    words = draw_words(count, PERMUTATION, settings.seed, derive_seed("prepare", name))
    edges = np.array([count * shard // num_shards for shard in range(num_shards + 1)], dtype=np.int64)
    return SplitPlan(good.combine_chunks(), np.argsort(words, kind="stable"), edges)


class Dealer(NamedTuple):
    """What the workers of this pass need."""

    settings: PrepareSettings
    parts: dict[str, list[Part]]
    plans: dict[str, SplitPlan]
    stored: Path  # bytes that the first pass laid down
    records: Path  # of finished shards
    data: Path  # the shards

    def shard_name(self, split: str, shard: int) -> str:
        """Return the name that `datasets` expects of a shard."""
        return f"{split}-{shard:05d}-of-{self.plans[split].num_shards:05d}{SUFFIXES[self.settings.format]}"

    def shards(self) -> Iterator[tuple[str, int]]:
        """Yield every shard."""
        for split, plan in self.plans.items():
            yield from ((split, shard) for shard in range(plan.num_shards))


def make_shard(task: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    """Write a shard, in a worker, unless it is there and whole; return its split and record."""
    dealer: Dealer = context()
    split, shard = task
    name = dealer.shard_name(split, shard)
    record_path, path = dealer.records / f"{name}.json", dealer.data / name
    record = _valid_record(record_path, path)
    if record is not None:
        return split, record
    temporary = dealer.records / name  # the same file system, and a name that `datasets` never sees
    rows = Rows(dealer, split, shard)
    WRITERS[dealer.settings.format](temporary, rows)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    record = {
        "name": name,
        "clips": rows.count,
        "seconds": rows.seconds,
        "bytes": temporary.stat().st_size,
        "sha256": sha256(temporary),
    }
    replace_json(record_path, record)
    os.replace(temporary, path)
    sync_folder(path.parent)
    return split, record


def _valid_record(record_path: Path, path: Path) -> dict[str, Any] | None:
    """Return the record of a shard if it is there as it was written, else None."""
    try:
        record: dict[str, Any] = json.loads(record_path.read_text())
        is_whole = path.stat().st_size == record["bytes"] and sha256(path) == record["sha256"]
    except (OSError, ValueError):
        return None
    return record if is_whole else None


class Rows(Iterable[Row]):
    """The rows of a shard, read one by one; counts them."""

    def __init__(self, dealer: Dealer, split: str, shard: int) -> None:
        self._dealer, self._split, self._shard = dealer, split, shard
        self.count, self.seconds = 0, 0.0

    def __iter__(self) -> Iterator[Row]:
        plan = self._dealer.plans[self._split]
        for index in plan.order[plan.edges[self._shard] : plan.edges[self._shard + 1]]:
            context()  # ends here if the preparation does
            piece = {name: plan.pieces.column(name)[int(index)].as_py() for name in plan.pieces.column_names}
            yield self._row(piece)
            self.count, self.seconds = self.count + 1, self.seconds + piece["seconds"]

    def _row(self, piece: Mapping[str, Any]) -> Row:
        parts = self._dealer.parts[self._split]
        label = parts[piece["part"]].label
        path = piece["path"] if len(parts) == 1 else f"{label}/{piece['path']}"
        return Row(
            path,
            piece["name"],
            label,
            piece["speaker"],
            piece["seconds"],
            piece["sampling_rate"],
            piece["suffix"],
            self._content(piece, parts[piece["part"]]),
        )

    def _content(self, piece: Mapping[str, Any], part: Part) -> bytes:
        """Return the bytes of a piece; raises DataError if they are not those of the first pass."""
        try:
            if piece["file"]:
                with open(self._dealer.stored / piece["file"], "rb") as file:
                    content = os.pread(file.fileno(), piece["size"], piece["offset"])
            else:
                content = whole(local_source(part.clips.clip(piece["clip"]))[0])  # type: ignore[union-attr]
        except (AudioError, OSError) as error:
            raise DataError(f"{piece['name']} was good and is so no more: {error}") from error
        if digest(content) != piece["digest"]:
            raise DataError(
                f"{piece['name']} was changed while it was prepared: begin anew with another --output"
            )
        return content
