"""The rows of a manifest: JSON lines, JSON, CSV and TSV, in the forms that people have.

JSON may be a list of objects, an object that holds one, columns, or objects by their ids; a file called .json may hold
JSON lines, as NeMo's do. A CSV file may be parted by commas, semicolons, tabs or bars.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from ..errors import DataError
from .network import is_address, open_address

DELIMITERS = ",\t;|"


class Row(NamedTuple):
    """A row of a manifest."""

    place: str  # of it in the file, for messages
    fields: Mapping[str, Any]


def read_rows(path: str) -> Iterator[Row]:
    """Yield the rows of a manifest of any kind."""
    source = open_address(path) if is_address(path) else open(path, "rb")
    # `newline=""`: quoted fields of CSV may hold line breaks.
    with io.TextIOWrapper(source, encoding="utf-8-sig", newline="") as file:
        if path.lower().endswith((".csv", ".tsv")):
            yield from _csv_rows(path, file)
        else:
            yield from _json_rows(path, file)


def _csv_rows(path: str, file: io.TextIOBase) -> Iterator[Row]:
    """Yield the rows of a CSV file. In a TSV file quotes are text, as Common Voice and its kin have it."""
    csv.field_size_limit(2**24)
    header = file.readline()
    if not header.strip():
        return
    is_tsv = path.lower().endswith(".tsv")
    delimiter = "\t" if is_tsv else next((mark for mark in DELIMITERS if mark in header), ",")
    reader = csv.DictReader(
        chain([header], file),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if is_tsv else csv.QUOTE_MINIMAL,
        strict=not is_tsv,
    )
    for fields in reader:
        place = f"line {reader.line_num}"
        if None in fields:
            raise DataError(f"{path!r} {place} has more fields than the header: {delimiter!r} parts them")
        # Empty fields are nothing, as in a row that is too short.
        yield Row(place, {name: value or None for name, value in fields.items()})


def _json_rows(path: str, file: io.TextIOBase) -> Iterator[Row]:
    """Yield the rows of JSON lines, or of one JSON value."""
    first = next((line for line in file if line.strip()), "")
    number = 1
    if not path.lower().endswith((".jsonl", ".ndjson")) and not _is_object(first):
        yield from _value_rows(path, json.loads(first + file.read()))
        return
    for line in chain([first], file):
        if line.strip():
            yield Row(f"line {number}", _object(path, number, line))
        number += 1


def _is_object(line: str) -> bool:
    """Return whether a line is a whole row: an object, not the columns of a file on one line."""
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and not _is_whole(value)


def _is_whole(value: dict[str, Any]) -> bool:
    """Return whether an object is a whole manifest: a list of objects, columns, or objects by their ids."""
    values = list(value.values())
    return bool(values) and (
        any(isinstance(item, list) and item and isinstance(item[0], dict) for item in values)
        or all(isinstance(item, list) for item in values)
        or all(isinstance(item, dict) and not {"path", "bytes"} & set(item) for item in values)
    )


def _object(path: str, number: int, line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path!r} line {number} is no JSON: {' '.join(str(error).split())[:100]}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path!r} line {number} is no JSON object: {line.strip()[:60]!r}")
    return value


def _value_rows(path: str, value: Any) -> Iterator[Row]:
    """Yield the rows of one JSON value."""
    if isinstance(value, dict):
        lists = [
            item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)
        ]
        if len(lists) == 1:  # {"data": [{…}, …]}
            value = lists[0]
        elif value and all(isinstance(item, list) for item in value.values()):  # columns
            value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
        elif value and all(isinstance(item, dict) for item in value.values()):  # SpeechBrain's: by id
            value = [{"id": name, **fields} for name, fields in value.items()]
        else:
            value = [value]
    for number, fields in enumerate(value, 1):
        if not isinstance(fields, dict):
            raise DataError(f"{path!r} row {number} is no JSON object: {str(fields)[:60]!r}")
        yield Row(f"row {number}", fields)
