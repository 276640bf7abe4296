"""Where clips come from: the Hub, an address, a local folder or file. Nothing is decoded here.

Whatever can be had in any order is opened as `Clips`; the rest is a `StreamedClips`. No remote code is ever run:
`datasets` 4 and newer refuse loading scripts, and nothing here asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.packaged_modules.json.json import Json
from datasets.packaged_modules.parquet.parquet import Parquet

from ..errors import DataError, NoAudioError
from .block_cache import BlockCache
from .clips import Clips, path_and_bytes
from .folder import is_audio, list_files, open_audio_folder, split_of
from .network import NetworkError, is_address, list_addresses
from .parquet import ParquetClips
from .source_errors import explain, no_split
from .streams import StreamedClips
from .tables import RowReader, StoredAudio, TableClips

FILE_BUILDERS = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv",
    ".jsonl": "json", ".json": "json", ".ndjson": "json",
}  # fmt: skip
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

    def reader(self, root: str | None) -> RowReader:
        """Return what turns rows into clips."""
        return RowReader(self.audio_column, self.speaker_column, root, self.split)

    def pick(self, splits: Mapping[Any, Any]) -> Any:
        """Return the split asked for; raises DataError naming those there are."""
        for name, rows in splits.items():
            if str(name) == self.split:
                return rows
        raise no_split(self.path, self.split, ", ".join(map(str, splits)))


def open_source(request: Request) -> Clips | StreamedClips:
    """Open one split of a dataset; raises DataError in one line.

    An address (s3://…, hf://…) is read from there while training; a path that exists is local; anything else is a
    Hub id, downloaded, or with `streaming` read while training.
    """
    local = Path(request.path).expanduser()
    try:
        if is_address(request.path):
            return _open_address(request)
        if local.exists():
            return _open_local(request, local.absolute())
        if looks_local(request.path):
            raise DataError(f"no such folder or file: {request.path!r}")
        return _open_hub(request)
    except DataError:
        raise
    except NetworkError as error:
        raise DataError(str(error)) from error
    except Exception as error:  # `datasets`, its file systems and the HTTP client raise a great many kinds
        raise explain(error, request.path, request.configuration, request.split, local.exists()) from error


def looks_local(path: str) -> bool:
    """Return whether a path that does not exist was meant as a local one rather than as a Hub id."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).suffix in FILE_BUILDERS


# --- local


def _open_local(request: Request, local: Path) -> Clips:
    """Open a local file or folder."""
    root = str(local if local.is_dir() else local.parent)
    table = partial(_table, request, root=root)
    if local.is_file():
        builder = FILE_BUILDERS.get(local.suffix.lower())
        if builder is None:
            raise DataError(
                f"{request.path!r} is a file, but none of {' '.join(FILE_BUILDERS)}: give the folder it lies in"
            )
        return _open_tables(request, datasets.load_dataset_builder(builder, data_files=str(local)), root)
    if (local / "state.json").exists() or (local / "dataset_dict.json").exists():
        return table(_pick_loaded(request, datasets.load_from_disk(str(local))))
    files = list_files(local)
    num_tables = sum(Path(name).suffix.lower() in (".parquet", ".arrow") for name in files)
    if sum(map(is_audio, files)) > num_tables:
        return table(request.pick(open_audio_folder(local, files)))
    if not any(Path(name).suffix.lower() in FILE_BUILDERS for name in files):
        raise DataError(
            f"{request.path!r} holds no audio files (wav, flac, ogg, opus, mp3 …), parquet, arrow or JSON lines"
        )
    builder = datasets.load_dataset_builder(str(local), name=request.configuration)
    return _open_tables(request, builder, root)


def _pick_loaded(request: Request, loaded: Any) -> Any:
    """Return the split of what `save_to_disk` wrote."""
    if isinstance(loaded, Mapping):
        return request.pick(loaded)
    if loaded.split is not None and str(loaded.split) != request.split:
        raise no_split(request.path, request.split, str(loaded.split))
    return loaded


def _open_tables(request: Request, builder: Any, root: str) -> Clips:
    """Open local data files: parquet row group by row group if it is streamed, else as `load_dataset` does."""
    if request.streaming and isinstance(builder, Parquet):
        return _parquet(request, builder, root)
    return _table(request, _prepare(builder, request), root)


def _prepare(builder: Any, request: Request) -> Any:
    """Return a split as `datasets.load_dataset` does, without torchcodec for folders of audio files."""
    if isinstance(builder, FolderBasedBuilder):
        builder.BASE_FEATURE = StoredAudio
    builder.download_and_prepare()
    return builder.as_dataset(split=request.split)


# --- the Hub


def _open_hub(request: Request) -> Clips | StreamedClips:
    """Open a repository of the Hub: downloaded, or read while training."""
    builder = datasets.load_dataset_builder(request.path, name=request.configuration, revision=request.revision)
    if not request.streaming:
        return _table(request, _prepare(builder, request), None)
    if isinstance(builder, Parquet):
        return _parquet(request, builder, None)
    if isinstance(builder, Csv | Json):  # small beside the audio they name, which is read while training
        files = _files_of_split(request, builder)
        return _table(request, _prepare(builder, request), os.path.dirname(files[0]))
    if isinstance(builder, FolderBasedBuilder):
        files = _files_of_split(request, builder)
        if all(map(is_audio, files)):
            return _table(request, _addresses(files), None)
        builder.BASE_FEATURE = StoredAudio
    return _stream(request, builder.as_streaming_dataset(split=request.split))


def _files_of_split(request: Request, builder: Any) -> list[str]:
    """Return the data files of the split; "a+b" are those of both."""
    files = builder.config.data_files or {}
    return [str(file) for part in request.split.split("+") for file in _split_files(request, files, part.strip())]


def _split_files(request: Request, files: Mapping[Any, Sequence[str]], split: str) -> Sequence[str]:
    found: Sequence[str] = Request(request.path, split).pick(files)
    return found


def _parquet(request: Request, builder: Any, root: str | None) -> ParquetClips:
    files = _files_of_split(request, builder)
    return _parquet_files(request, files, root)


def _parquet_files(request: Request, files: Sequence[str], root: str | None) -> ParquetClips:
    clips = ParquetClips(files, request.split, request.audio_column, request.speaker_column, root, request.cache)
    clips.check(request.path)
    return clips


# --- addresses


def _open_address(request: Request) -> Clips | StreamedClips:
    """Open files at an address, by what most of them are."""
    files = list_addresses(request.path)
    kinds: dict[str, Callable[[str], bool]] = {
        "audio": is_audio,
        "parquet": lambda file: file.endswith(".parquet"),
        "tar": lambda file: file.endswith(".tar"),
        "table": lambda file: Path(file).suffix in (".jsonl", ".json", ".csv", ".tsv"),
    }
    if any(file.endswith("/state.json") for file in files):
        return _table(request, _pick_loaded(request, datasets.load_from_disk(request.path)), None)
    by_kind = {kind: [file for file in files if test(file)] for kind, test in kinds.items()}
    kind = max(by_kind, key=lambda kind: len(by_kind[kind]) if kind != "table" else 0.5 * bool(by_kind[kind]))
    if not by_kind[kind]:
        raise DataError(f"{request.path!r} holds no audio files, parquet, tar, JSON lines or CSV")
    chosen = _of_split(request, by_kind[kind])
    if kind == "audio":
        return _table(request, _addresses(chosen), request.path.rstrip("/"))
    if kind == "parquet":
        return _parquet_files(request, chosen, request.path)
    if kind == "tar":
        builder = datasets.load_dataset_builder("webdataset", data_files={request.split: chosen})
        return _stream(request, builder.as_streaming_dataset(split=request.split))
    builder = datasets.load_dataset_builder(FILE_BUILDERS[Path(chosen[0]).suffix], data_files={request.split: chosen})
    return _table(request, _prepare(builder, request), os.path.dirname(chosen[0]))


def _of_split(request: Request, files: Sequence[str]) -> list[str]:
    """Return the files of the split, by the names of folders and of tables; "train" also has those of no split."""
    splits = {}
    for file in files:
        relative = file.removeprefix(request.path)
        splits[file] = split_of(relative if is_audio(file) else f"{relative}/x") or "train"
    if request.split not in splits.values():
        raise no_split(request.path, request.split, ", ".join(sorted(set(splits.values()))))
    return [file for file, split in splits.items() if split == request.split]


def _addresses(files: Sequence[str]) -> Any:
    return datasets.Dataset.from_dict({"audio": list(files)})


# --- checks


def _table(request: Request, rows: Any, root: str | None) -> TableClips:
    """Return the rows as clips, after checking that the columns exist and hold audio."""
    if len(rows) == 0:
        raise DataError(f"{request.path!r} holds no clips in split {request.split!r}")
    rows = _undecoded(request, rows, rows.column_names)
    _check_audio(request, rows, root)
    return TableClips(rows, request.reader(root))


def _stream(request: Request, rows: Any) -> StreamedClips:
    """Return the stream as clips, after the same checks."""
    names = rows.column_names or list(next(iter(rows), {}))
    if not names:
        raise DataError(f"{request.path!r} holds no clips")
    rows = _undecoded(request, rows, names)
    _check_audio(request, rows, None)
    return StreamedClips(rows, request.reader(None), request.path)


def _undecoded(request: Request, rows: Any, names: Sequence[str]) -> Any:
    """Return the wanted columns alone, audio undecoded; raises DataError if one is missing."""
    wanted = [request.audio_column] + ([request.speaker_column] if request.speaker_column else [])
    for column in wanted:
        if column not in names:
            raise NoAudioError(f"{request.path!r} has no column {column!r}; there are: {', '.join(names)}")
    rows = rows.select_columns(wanted)
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
