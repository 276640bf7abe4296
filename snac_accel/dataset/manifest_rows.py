"""The rows of a manifest: JSON lines, JSON, CSV and TSV, in the forms that people have.

JSON may be a list of objects, an object that holds one, columns, or objects by their ids; a file called .json may hold
JSON lines, as NeMo's do. A CSV file may be parted by commas, semicolons, tabs or bars.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from ..errors import DataError
from ..plain_json import parse_json
from .network import is_address, open_address

DELIMITERS = ",\t;|"
MAX_LINE = 2**24  # characters
MAX_JSON = 2**27  # characters of a file that is one JSON value; as JSON lines it may have any size


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
    lines = lines_of(path, file)
    header = next(lines, "")
    if not header.strip():
        return
    is_tsv = path.lower().endswith(".tsv")
    delimiter = "\t" if is_tsv else next((mark for mark in DELIMITERS if mark in header), ",")
    reader = csv.DictReader(
        chain([header], lines),
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
    may_be_value = not path.lower().endswith((".jsonl", ".ndjson"))
    lines = lines_of(path, file, MAX_JSON if may_be_value else MAX_LINE)
    first = next((line for line in lines if line.strip()), "")
    number = 1
    if may_be_value and not _is_object(first):
        text = first + file.read(MAX_JSON + 1 - len(first))
        if len(text) > MAX_JSON:
            raise DataError(f"{path!r} is one JSON value of more than {MAX_JSON} characters: give JSON lines, a row on each")
        yield from _value_rows(path, parse_json(text))
        return
    for line in chain([first], lines):
        if line.strip():
            yield Row(f"line {number}", _object(path, number, line))
        number += 1


def lines_of(path: str, file: io.TextIOBase, longest: int = MAX_LINE) -> Iterator[str]:
    """Yield the lines of a file; raise DataError for one so long that it cannot be a row."""
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise DataError(f"{path!r} line {number} has more than {longest} characters")
        yield line


def _is_object(line: str) -> bool:
    """Return whether a line is a whole row: an object, not the columns of a file on one line."""
    try:
        value = parse_json(line)
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
        value = parse_json(line)
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
