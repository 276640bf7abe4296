"""Clips from a map-style table of `datasets`: in memory, or mapped from Arrow files on the disk."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import pyarrow
import pyarrow.compute
from huggingface_hub import constants

from ..audio import AudioError
from .clips import RawClip, clip_name, path_and_bytes
from .folder import on_disk
from .network import is_address


SEGMENT_COLUMNS = ("offset", "duration")


class StoredAudio(datasets.Audio):
    """The audio feature without torchcodec, which `datasets.Audio` imports even to pass on a path."""

    def encode_example(self, value: Any) -> Any:
        """Return a path or a mapping of bytes and path as it is stored."""
        return {"bytes": None, "path": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class RowReader:
    """Turns rows of `datasets`, with the audio column undecoded, into clips."""

    audio_column: str
    speaker_column: str | None
    root: str | None  # where relative paths start: a folder or an address
    split: str
    is_foreign: bool = False  # written by somebody else: it may name no file of this machine
    has_segments: bool = False  # columns `offset` and `duration`, in seconds, as in NeMo's manifests

    def clip(self, row: Mapping[str, Any], index: int | None = None) -> RawClip:
        """Return the clip of a row; `index` names it if it has no file name, else its content does."""
        speaker = str(row[self.speaker_column]) if self.speaker_column else None
        path, content = path_and_bytes(row[self.audio_column])
        segment = segment_of(row) if self.has_segments else None
        name = self.name(path, index, content, segment)
        if content is not None or not path:
            return RawClip(
                name, content or b"", speaker, segment
            )  # nothing at all: reported as empty when opened
        if self.is_foreign and not is_address(path) and not _is_downloaded(path):
            raise AudioError("is a file of this machine, which data of the Hub may not name")
        absolute = path if self.root is None or is_address(path) else on_disk(os.path.join(self.root, path))
        return RawClip(name, absolute, speaker, segment)

    def name(
        self,
        path: str | None,
        index: int | None,
        content: bytes | None = None,
        segment: tuple[float, float] | None = None,
    ) -> str:
        """Return the stable name of a clip with this path, row index or content."""
        if path:
            return clip_name(path, self.root) + (f"@{segment[0]:g}" if segment else "")
        label = hashlib.blake2b(content or b"", digest_size=8).hexdigest() if index is None else index
        return f"{self.split}/{label}"


class TableClips:
    """The rows of a `datasets.Dataset`; see the protocol `Clips`."""

    block_lengths = None

    def __init__(self, rows: Any, reader: RowReader) -> None:
        self.rows, self.reader = rows, reader

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.rows)

    def clip(self, index: int) -> RawClip:
        """Return clip `index` undecoded."""
        return self.reader.clip(self.rows[index], index)

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Do nothing: there are no blocks."""

    def names_and_speakers(self) -> list[tuple[str, str]]:
        """Return name and speaker ("" without a column) of each clip; reads no audio."""
        reader = self.reader
        found: list[tuple[str, str]] = []
        for table in self.rows.with_format("arrow").iter(batch_size=1000):
            paths = _paths(table.column(reader.audio_column))
            column = reader.speaker_column
            speakers = table.column(column).to_pylist() if column else [""] * len(table)
            segments: list[tuple[float, float] | None] = [None] * len(table)
            if reader.has_segments:
                segments = [segment_of(row) for row in table.select(list(SEGMENT_COLUMNS)).to_pylist()]
            found += [
                (reader.name(path, len(found) + row, None, segment), str(speaker))
                for row, (path, segment, speaker) in enumerate(zip(paths, segments, speakers, strict=True))
            ]
        return found

    @cached_property
    def _digest(self) -> str:
        names = "\n".join(name for name, _ in self.names_and_speakers())
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:12]

    def digest(self) -> str:
        """Return a hash of all names."""
        return self._digest


def _is_downloaded(path: str) -> bool:
    """Return whether a path leads into the caches of `datasets` and of the Hub's client."""
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    return any(os.path.abspath(path).startswith(f"{os.path.abspath(cache)}{os.sep}") for cache in caches)


def segment_of(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the segment that a row names, start and length in seconds; None: the whole file."""
    offset, duration = (row[name] for name in SEGMENT_COLUMNS)
    return None if offset is None else (offset, math.inf if duration is None else duration)


def _paths(column: pyarrow.ChunkedArray) -> list[str | None]:
    """Return the path of each row of an audio column, None where there are only bytes."""
    if pyarrow.types.is_struct(column.type):
        if column.type.get_field_index("path") < 0:
            return [None] * len(column)
        column = pyarrow.compute.struct_field(column, "path")
    is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
    return column.to_pylist() if is_text else [None] * len(column)
