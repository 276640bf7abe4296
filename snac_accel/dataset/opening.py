"""What all ways of opening a source share: the request, the splits, and the checks of what was opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import datasets
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from ..errors import DataError, NoAudioError
from .block_cache import BlockCache
from .clips import path_and_bytes
from .folder import is_audio
from .network import is_address
from .parquet import ParquetClips
from .source_errors import no_split
from .streams import StreamedClips
from .tables import SEGMENT_COLUMNS, RowReader, StoredAudio, TableClips

PROBED_ROWS = 8  # rows looked at before a column of text is said to hold no audio


@dataclass(frozen=True)
class Request:
    """What is asked for: one split of a dataset, and its columns."""

    path: str
    split: str = "train"
    streaming: bool = False
    audio_column: str = "audio"
    configuration: str | None = None
    revision: str | None = None
    speaker_column: str | None = None
    cache: BlockCache | None = None  # of what is read while training; None: the default one

    def reader(self, root: str | None, rows: Any, is_foreign: bool) -> RowReader:
        """Return what turns these rows into clips."""
        has_segments = set(SEGMENT_COLUMNS) <= set(rows.column_names or ())
        return RowReader(self.audio_column, self.speaker_column, root, self.split, is_foreign, has_segments)

    def pick(self, splits: Mapping[Any, Any]) -> Any:
        """Return the split asked for; raises DataError naming those there are."""
        for name, rows in splits.items():
            if str(name) == self.split:
                return rows
        raise no_split(self.path, self.split, ", ".join(map(str, splits)))


def pick_loaded(request: Request, loaded: Any) -> Any:
    """Return the split of what `save_to_disk` wrote."""
    if isinstance(loaded, Mapping):
        return request.pick(loaded)
    if loaded.split is not None and str(loaded.split) != request.split:
        raise no_split(request.path, request.split, str(loaded.split))
    return loaded


def prepare_split(builder: Any, request: Request) -> Any:
    """Return a split as `datasets.load_dataset` does, without torchcodec for folders of audio files."""
    if isinstance(builder, FolderBasedBuilder):
        builder.BASE_FEATURE = StoredAudio
    builder.download_and_prepare()
    return builder.as_dataset(split=request.split)


def files_of_split(request: Request, builder: Any) -> list[str]:
    """Return the data files of the split; "a+b" are those of both."""
    files = builder.config.data_files or {}
    return [
        str(file) for part in request.split.split("+") for file in _split_files(request, files, part.strip())
    ]


def _split_files(request: Request, files: Mapping[Any, Sequence[str]], split: str) -> Sequence[str]:
    found: Sequence[str] = Request(request.path, split).pick(files)
    return found


def open_parquet(request: Request, builder: Any, root: str | None) -> ParquetClips:
    files = files_of_split(request, builder)
    return open_parquet_files(request, files, root)


def open_parquet_files(request: Request, files: Sequence[str], root: str | None) -> ParquetClips:
    clips = ParquetClips(
        files, request.split, request.audio_column, request.speaker_column, root, request.cache
    )
    clips.check(request.path)
    return clips


def as_table(
    request: Request, rows: Any, root: str | None, is_manifest: bool = False, is_foreign: bool = False
) -> TableClips:
    """Return the rows as clips, after checking that the columns exist and hold audio.

    In a manifest `offset` and `duration` name parts of files. Foreign rows may name no file of this machine.
    """
    if len(rows) == 0:
        raise DataError(f"{request.path!r} holds no clips in split {request.split!r}")
    segments = SEGMENT_COLUMNS if is_manifest and set(SEGMENT_COLUMNS) <= set(rows.column_names) else ()
    rows = _undecoded(request, rows, rows.column_names, segments)
    _check_audio(request, rows, root)
    return TableClips(rows, request.reader(root, rows, is_foreign))


def as_stream(request: Request, rows: Any, is_foreign: bool = True) -> StreamedClips:
    """Return the stream as clips, after the same checks."""
    names = rows.column_names or list(next(iter(rows), {}))
    if not names:
        raise DataError(f"{request.path!r} holds no clips")
    if request.audio_column == "audio" and "audio" not in names:  # a tar has its members by their suffixes
        audio = [name for name in names if is_audio(f"x.{name}")]
        request = replace(request, audio_column=audio[0]) if len(audio) == 1 else request
    rows = _undecoded(request, rows, names)
    _check_audio(request, rows, None)
    return StreamedClips(rows, request.reader(None, rows, is_foreign), request.path)


def _undecoded(request: Request, rows: Any, names: Sequence[str], others: Sequence[str] = ()) -> Any:
    """Return the wanted columns alone, audio undecoded; raises DataError if one is missing."""
    wanted = [request.audio_column] + ([request.speaker_column] if request.speaker_column else [])
    for column in wanted:
        if column not in names:
            raise NoAudioError(f"{request.path!r} has no column {column!r}; there are: {', '.join(names)}")
    rows = rows.select_columns([*wanted, *others])
    if isinstance((rows.features or {}).get(request.audio_column), datasets.Audio):
        rows = rows.cast_column(request.audio_column, StoredAudio(decode=False))
    return rows


def _check_audio(request: Request, rows: Any, root: str | None) -> None:
    """Raise DataError unless one of the first rows of the audio column is a file or names one."""
    values = [row[request.audio_column] for row in islice(rows, PROBED_ROWS)]
    if not values:
        raise DataError(f"{request.path!r} holds no clips in split {request.split!r}")
    if not any(_is_file(value, root) for value in values):
        raise NoAudioError(
            f"column {request.audio_column!r} of {request.path!r} holds no audio: "
            f"its first value is {str(values[0])[:60]!r}"
        )


def _is_file(value: Any, root: str | None) -> bool:
    """Return whether a value of the audio column is a file or names one."""
    if isinstance(value, Mapping):
        return bool({"bytes", "path"} & set(value))
    path, content = path_and_bytes(value)
    if content is not None or not isinstance(path, str):
        return content is not None
    if is_address(path) or (root is not None and is_address(root)):
        return bool(path)
    return bool(path) and os.path.exists(os.path.join(root or "", path))
