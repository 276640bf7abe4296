"""Rows of a tokenized dataset, as codes again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from ..errors import DataError
from ..inference.codec import Codes
from ..inference.layouts import OFFSETS, FlatLayout
from ..plain_json import read_json
from .card import DONE
from .columns import code_columns

MAX_RECORD_BYTES = 2**28  # of the file that names all shards


def is_tokenized(folder: Path) -> bool:
    """Whether a folder holds a finished tokenization."""
    return (folder / DONE).is_file()


def read_tokenized(folder: Path, facts: Mapping[str, str]) -> Iterator[tuple[str, Codes]]:
    """Yield name and codes of every row; raises DataError, one line, if they are of another model, or cannot be read."""
    record = _record(folder)
    made_by = record["settings"]["model"]
    for name, value in facts.items():
        if made_by.get(name) != value:
            there = f"{name} = {str(made_by.get(name))[:40]}, this model has {value}"
            raise DataError(f"{folder} was made by another model ({there}): decode it with the one that made it")
    strides = [int(stride) for stride in facts["vq_strides"].split()]
    layout = _layout(folder, record["settings"], strides, int(facts["codebook_size"]))
    for split in record["splits"].values():
        for shard in split["shards"]:
            yield from _rows(folder / "data" / Path(shard["name"]).name, code_columns(len(strides), layout), layout)


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / DONE, MAX_RECORD_BYTES)
        names = [shard["name"] for split in record["splits"].values() for shard in split["shards"]]
        if not all(isinstance(name, str) for name in names) or not isinstance(record["settings"]["model"], dict):
            raise ValueError("it names no shards, or no model")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / DONE} cannot be read: {error}") from error
    return dict(record)


def _layout(folder: Path, settings: Mapping[str, Any], strides: list[int], codebook_size: int) -> FlatLayout | None:
    if settings.get("layout") == "levels":
        return None
    offsets, base = settings.get("offsets"), settings.get("base")
    if settings.get("layout") != "flat" or offsets not in OFFSETS or not isinstance(base, int):
        raise DataError(f"{folder / DONE} does not say how its tokens are laid out")
    return FlatLayout(strides, codebook_size, offsets=offsets, base=base)


def _rows(path: Path, columns: list[str], layout: FlatLayout | None) -> Iterator[tuple[str, Codes]]:
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(100, columns=["name", "num_samples", *columns]):
            for row in batch.to_pylist():
                rows = [torch.tensor(row[column], dtype=torch.int64) for column in columns]
                yield row["name"], Codes(rows if layout is None else layout.unflatten(rows[0]), row["num_samples"])
    except (OSError, pyarrow.ArrowException, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0][:200]}") from error
