"""Local folders of audio files, read as `datasets` reads them, but without needing torchcodec and FFmpeg.

Splits are sub-folders named train, validation, test or the like; without such folders everything is "train".
A metadata.csv, metadata.jsonl or metadata.parquet with a column `file_name` decides which clips there are,
and adds its columns; metadata in another layout (LJSpeech's, for example) is left alone.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import datasets
import pyarrow.parquet

from ..errors import DataError
from ..plain_json import parse_json
from .manifest_rows import lines_of

# What libsndfile decodes. The second row it does not: such files are listed all the same, and reported as bad
# when they are opened.
AUDIO_SUFFIXES = {
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64",
    ".m4a", ".aac", ".wma", ".mp4", ".webm", ".amr", ".ape",
}  # fmt: skip
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SEPARATORS = "-._ 0123456789"  # after the name: train-clean-100 is a folder of the split train


def list_files(root: Path) -> list[str]:
    """Return the files below `root`, sorted, relative to it; no hidden ones, linked folders followed once."""
    found: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        relative = Path(folder).relative_to(root)
        found += [(relative / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def is_audio(path: str) -> bool:
    """Return whether the name of a file is that of an audio file."""
    return PurePosixPath(path).suffix.lower() in AUDIO_SUFFIXES


def split_of(path: str) -> str | None:
    """Return the split that a relative path belongs to by the name of one of its folders, or None."""
    for folder in PurePosixPath(path).parts[:-1]:
        for split, names in SPLIT_FOLDERS.items():
            for name in names:
                if folder.lower().startswith(name) and folder[len(name) :][:1] in SEPARATORS:
                    return split
    return None


def open_audio_folder(root: Path, files: list[str]) -> datasets.DatasetDict:
    """Return the splits of an audio folder: column `audio` (paths below `root`) and those of its metadata."""
    metadata = [path for path in files if PurePosixPath(path).name in METADATA_NAMES]
    rows = [row for path in metadata for row in _read_metadata(root, path)]
    rows = rows or [{"audio": path} for path in files if is_audio(path)]
    by_split: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_split.setdefault(split_of(row["audio"]) or "train", []).append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    splits = {}
    for split, members in sorted(by_split.items()):
        table = {column: [_storable(row.get(column, "")) for row in members] for column in columns}
        splits[split] = datasets.Dataset.from_dict(table)
    return datasets.DatasetDict(splits)


def _read_metadata(root: Path, path: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a metadata file as text, `audio` first; nothing if it has no column `file_name`."""
    folder = PurePosixPath(path).parent
    try:
        for row in _metadata_rows(root / path):
            name = str(row.pop("file_name"))
            clip = os.path.normpath(folder / name)
            if os.path.isabs(name) or clip.startswith(".."):
                raise DataError(f"{root / path} names {name!r}, which lies outside the folder {root}")
            yield {
                "audio": clip,
                **{column: str(value) for column, value in row.items() if column not in ("", "audio")},
            }
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(f"{root / path} cannot be read: {str(error).splitlines()[0]}") from error


def _metadata_rows(path: Path) -> list[dict[str, object]]:
    """Return the rows of a metadata file that has a column `file_name`, else an empty list."""
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
        return table.to_pylist() if "file_name" in table.column_names else []
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            rows = [parse_json(line) for line in lines_of(str(path), file) if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no JSON object")
            return [row for row in rows if "file_name" in row]
        reader = csv.DictReader(lines_of(str(path), file), restkey="", restval="")
        return list(reader) if "file_name" in (reader.fieldnames or ()) else []


def _storable(text: str) -> str:
    """Return text that Arrow can store: what is not UTF-8 is escaped, `\\xff` (see `on_disk`)."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def on_disk(path: str) -> str:
    """Return the path of a file whose stored name may be escaped because it is not in UTF-8."""
    if "\\x" not in path or os.path.exists(path):
        return path
    escaped = re.compile(rb"\\x([89a-f][0-9a-f])")
    return os.fsdecode(escaped.sub(lambda code: bytes([int(code[1], 16)]), path.encode()))
