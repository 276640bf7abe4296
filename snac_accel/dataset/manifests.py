"""Manifests: files of JSON lines, JSON, CSV or TSV that name a file of audio in each row, as people have them."""

from __future__ import annotations

import csv
import json
import math
import os
import posixpath
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from ..errors import DataError
from .folder import split_of
from .manifest_rows import Row, read_rows
from .network import NetworkError, is_address
from .source_errors import no_split
from .tables import SEGMENT_COLUMNS

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
# NeMo and its kin, Hub datasets, metadata of audio folders, SpeechBrain.
USUAL_COLUMNS = (
    "audio_filepath",
    "audio",
    "path",
    "file_name",
    "wav",
    "audio_path",
    "file",
    "filename",
    "wav_path",
)
ROWS_AT_A_TIME = 10_000  # held as Python objects; the rest is kept as columns


def open_manifest(path: str, split: str = "train", audio_column: str = "audio") -> datasets.Dataset:
    """Open a manifest, a path or an address: `audio_column` with the files as text, and its other columns.

    Without a column "audio" the usual names of such a column are tried. Relative names start at the manifest: below a
    local one they stay as they are, below an address they become addresses. Its split is "train", or the one that it
    is called by. Raises DataError in one line.
    """
    own = split_of(f"{Path(path).stem}/x") or "train"  # dev.jsonl
    if split not in ("train", own):
        raise no_split(path, split, own)
    try:
        rows = read_rows(path)
        batches = []
        column: str | None = None
        while batch := list(islice(rows, ROWS_AT_A_TIME)):
            column = column or _audio_column(path, audio_column, batch)
            batches.append(_columns(path, column, audio_column, batch))
    except (OSError, ValueError, csv.Error, NetworkError) as error:
        raise DataError(f"{path!r} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not batches:
        raise DataError(f"{path!r} holds no rows")
    try:
        table = pyarrow.concat_tables(batches, promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # a column that is numbers here and text there
        table = pyarrow.concat_tables([_as_text(batch) for batch in batches], promote_options="permissive")
    return datasets.Dataset(table)


def _columns(path: str, column: str, audio_column: str, rows: list[Row]) -> pyarrow.Table:
    """Return some rows as a table, the audio column first."""
    folder = os.path.dirname(path) if is_address(path) else None
    audio = [_file_name(path, column, row, folder) for row in rows]
    names = dict.fromkeys(name for row in rows for name in row.fields)
    others = {
        name: _values(row.fields.get(name) for row in rows)
        for name in names
        if name not in (column, audio_column)
    }
    if set(SEGMENT_COLUMNS) <= set(names):
        others |= {name: _seconds(path, name, rows) for name in SEGMENT_COLUMNS}
    return pyarrow.table({audio_column: pyarrow.array(audio, pyarrow.string()), **others})


def _seconds(path: str, name: str, rows: list[Row]) -> pyarrow.Array:
    """Return a column of seconds, null where nothing stands; raises DataError for what is no number."""
    found: list[float | None] = []
    for row in rows:
        value = row.fields.get(name)
        try:
            number = None if value in (None, "") else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise DataError(f"{path!r} {row.place} has no number of seconds in {name!r}: {_shown(value)}")
        found.append(number)
    return pyarrow.array(found, pyarrow.float64())


def _file_name(path: str, column: str, row: Row, folder: str | None) -> str:
    """Return what a row names; raises DataError if that is nothing."""
    value = row.fields.get(column)
    if isinstance(value, Mapping):  # {"path": …}, as `datasets` writes an audio column
        value = value.get("path")
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path!r} {row.place} names no file in column {column!r}: {_shown(value)}")
    name = _storable(value.strip())
    if folder is None:
        return name
    if not (address := _address_of(name, folder)):
        raise DataError(f"{path!r} {row.place} names {name[:60]!r}, which lies outside of where the manifest comes from")
    return address


def _address_of(name: str, folder: str) -> str | None:
    """Return what a name in a manifest in `folder`, at an address, leads to; None if it may not lead there.

    A repository of the Hub is somebody else's: it may name its own files and those of other servers, none of this machine.
    """
    protocol, _, place = folder.partition("://")
    if is_address(name) or name.startswith("/"):
        is_local = not is_address(name) or "::" in name or name.lower().startswith(("file:", "local:"))
        return None if is_local and protocol == "hf" else name
    owned = 3 if place.startswith(("datasets/", "spaces/")) and protocol == "hf" else 2 if protocol == "hf" else 1
    target = posixpath.normpath(f"{place}/{name}")
    return f"{protocol}://{target}" if target.split("/")[:owned] == place.split("/")[:owned] else None


def _audio_column(path: str, audio_column: str, rows: list[Row]) -> str:
    """Return the column with the files: the one asked for, else the only usual one there is."""
    names = list(dict.fromkeys(name for row in rows for name in row.fields))
    if audio_column in names:
        return audio_column
    usual = [name for name in USUAL_COLUMNS if name in names] if audio_column == "audio" else []
    if not usual:
        raise DataError(
            f"{path!r} has no column {audio_column!r}; there are: {', '.join(names)}"
            + ("; set data.audio_column to the one with the files" if audio_column == "audio" else "")
        )
    if any(row.fields.get(name) != row.fields.get(usual[0]) for row in rows for name in usual[1:]):
        raise DataError(
            f"{path!r} has several columns that may name the files: set data.audio_column to one of {', '.join(usual)}"
        )
    return usual[0]


def _values(values: Iterable[Any]) -> pyarrow.Array:
    """Return a column of numbers or of text; what is neither becomes text."""
    found = list(values)
    kinds = {type(value) for value in found if value is not None}
    are_small = kinds <= {int, float} and all(abs(value) < 2**63 for value in found if value is not None)
    if kinds and are_small:
        return pyarrow.array(found, pyarrow.int64() if kinds == {int} else pyarrow.float64())
    return pyarrow.array([None if value is None else _text(value) for value in found], pyarrow.string())


def _text(value: Any) -> str:
    return _storable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _storable(text: str) -> str:
    """Return text that Arrow can store: halves of surrogate pairs, which JSON may hold, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _as_text(table: pyarrow.Table) -> pyarrow.Table:
    return table.cast(pyarrow.schema([(name, pyarrow.string()) for name in table.column_names]))


def _shown(value: Any) -> str:
    return repr(value)[:60] if value is not None else "nothing stands there"
