"""The second pass: the tables of the steps, joined into shards in the order of the sources. Codes are small: one process does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from ..errors import DataError
from ..files import sha256, sync_folder
from ..prepare.output import OutputFolder
from ..prepare.settings import MAX_NUMBER
from .settings import DEFAULT_SHARD_BYTES

ROW_GROUP_ROWS = 1000


class Split(NamedTuple):
    """What was encoded of a split."""

    num_rows: int  # with codes
    num_bytes: int  # of the codes in memory
    num_samples: int
    bad: list[dict[str, Any]]  # clip, part, name and reason of the others


def look_at(tables: Sequence[Path], code_columns: Sequence[str]) -> Split:
    """Read what the plan needs."""
    rows = num_bytes = samples = 0
    bad: list[dict[str, Any]] = []
    for path in tables:
        table = pyarrow.parquet.ParquetFile(path).read()
        bad += table.filter(pyarrow.compute.not_equal(table["reason"], "")).select(["part", "clip", "name", "reason"]).to_pylist()
        good = _good(table)
        rows += len(good)
        num_bytes += good.select(code_columns).nbytes
        samples += pyarrow.compute.sum(good["num_samples"]).as_py() or 0
    return Split(rows, num_bytes, samples, bad)


def edges_of(name: str, split: Split, num_shards: int | None) -> list[int]:
    """First rows of the shards, and the end; raises DataError if there are no rows, or too many shards."""
    if not split.num_rows:
        first = f", the first one {split.bad[0]['name']}: {split.bad[0]['reason']}" if split.bad else ""
        raise DataError(f"none of the {len(split.bad)} clips of {name} can be used{first}")
    count = min(num_shards or -(-split.num_bytes // DEFAULT_SHARD_BYTES) or 1, split.num_rows)
    if count > MAX_NUMBER:
        raise DataError(f"{count} shards of {name} are more than the {MAX_NUMBER} that can be named: give --num_shards")
    return [split.num_rows * shard // count for shard in range(count + 1)]


def write_shards(
    output: OutputFolder, name: str, tables: Sequence[Path], edges: Sequence[int], schema: pyarrow.Schema
) -> Iterator[dict[str, Any]]:
    """Write the shards of a split; yield the record of each."""
    rows, count = _groups(tables, schema), len(edges) - 1
    waiting = schema.empty_table()
    for shard in range(count):
        file = f"{name}-{shard:05d}-of-{count:05d}.parquet"
        left = edges[shard + 1] - edges[shard]
        temporary = output.shards / file  # the same file system, and a name that `datasets` never sees
        seconds = 0.0
        with pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
            while left:
                if not len(waiting):
                    waiting = next(rows)
                part, waiting = waiting.slice(0, left), waiting.slice(left)
                writer.write_table(part, row_group_size=ROW_GROUP_ROWS)
                seconds += pyarrow.compute.sum(part["seconds"]).as_py()
                left -= len(part)
        yield _finish(temporary, output.data / file, edges[shard + 1] - edges[shard], seconds)


def _groups(tables: Sequence[Path], schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """Yield the good rows of the tables in tables of up to ROW_GROUP_ROWS rows."""
    waiting: list[pyarrow.Table] = []
    for path in tables:
        good = _good(pyarrow.parquet.ParquetFile(path).read()).select(schema.names).cast(schema)
        waiting += [good] if len(good) else []
        if sum(map(len, waiting)) >= ROW_GROUP_ROWS:
            yield pyarrow.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pyarrow.concat_tables(waiting)


def _good(table: pyarrow.Table) -> pyarrow.Table:
    return table.filter(pyarrow.compute.equal(table["reason"], ""))


def _finish(temporary: Path, path: Path, clips: int, seconds: float) -> dict[str, Any]:
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    size = temporary.stat().st_size
    record = {"name": path.name, "clips": clips, "seconds": seconds, "bytes": size, "sha256": sha256(temporary)}
    os.replace(temporary, path)
    sync_folder(path.parent)
    return record
