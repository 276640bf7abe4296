"""Where clips come from: the Hub, a local folder or file; map-style or streaming. Nothing is decoded here.

No remote code is ever run: `datasets` 4 and newer refuse loading scripts, and nothing here asks for them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from ..errors import DataError
from .clips import RawClip
from .folder import is_audio, list_files, open_audio_folder
from .source_errors import explain, no_split

FILE_BUILDERS = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv",
    ".jsonl": "json", ".json": "json", ".ndjson": "json",
}  # fmt: skip
STREAM_SHARDS = 64  # of a local set that is streamed: how finely the order of its parts is shuffled
PROBED_ROWS = 8  # rows looked at before a column of text is said to hold no audio


class StoredAudio(datasets.Audio):
    """The audio feature without torchcodec, which `datasets.Audio` imports even to pass on a path."""

    def encode_example(self, value: Any) -> Any:
        """Return a path or a mapping of bytes and path as it is stored."""
        return {"bytes": None, "path": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Source:
    """An opened split: rows of `datasets` with the audio column (and the speaker's) left undecoded."""

    rows: Any  # datasets.Dataset, or datasets.IterableDataset when streaming
    audio_column: str
    speaker_column: str | None
    root: Path | None  # where relative paths start
    split: str

    def clip(self, row: Mapping[str, Any], index: int | None = None) -> RawClip:
        """Return the clip of a row; `index` names it if it has no file name, else its content does."""
        speaker = str(row[self.speaker_column]) if self.speaker_column else None
        value = row[self.audio_column]
        content, path = (
            (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
        )
        if isinstance(path, bytes):
            content, path = path, None
        name = self.name(path, index, content)
        if content is not None or not path:
            return RawClip(
                name, content or b"", speaker
            )  # no bytes and no path: reported as empty when it is opened
        return RawClip(
            name, path if "://" in path or self.root is None else os.path.join(self.root, path), speaker
        )

    def name(self, path: str | None, index: int | None, content: bytes | None = None) -> str:
        """Return the stable name of a clip with this path, row index or content."""
        if path:
            return clip_name(path, self.root)
        label = hashlib.blake2b(content or b"", digest_size=8).hexdigest() if index is None else index
        return f"{self.split}/{label}"


def clip_name(path: str, root: Path | None) -> str:
    """Return the part of a path that is the same wherever the data lie: no root, cache folder or address."""
    if "://" in path:
        inner = re.sub(r"^\w+://", "", path.split("::")[0])
        return (
            re.sub(r"^(datasets/)?[^/]+/[^/@]+(@[^/]+)?/", "", inner) if path.startswith("hf://") else inner
        )
    cached = re.search(r"/(?:snapshots|downloads/extracted)/[0-9a-f]{32,}/(.+)$", path)
    if cached:
        return cached.group(1)
    return os.path.relpath(path, root) if root is not None and path.startswith(f"{root}{os.sep}") else path


def open_source(
    dataset_path: str | Path,
    split: str = "train",
    streaming: bool = False,
    audio_column: str = "audio",
    configuration: str | None = None,
    revision: str | None = None,
    speaker_column: str | None = None,
) -> Source:
    """Open one split of a dataset.

    A path that exists is local (audio folder, folder or file of parquet / arrow / JSON lines / CSV, or a
    folder made by `save_to_disk`), anything else a Hub id. Raises DataError in one line.
    """
    path, local = str(dataset_path), Path(dataset_path).expanduser()
    is_local = local.exists()
    if not is_local and looks_local(path):
        raise DataError(f"no such folder or file: {path!r}")
    try:
        if is_local:
            rows = _open_local(local.absolute(), path, split, streaming, configuration)
        else:
            rows = _open_builder(path, split, streaming, name=configuration, revision=revision)
    except DataError:
        raise
    except Exception as error:  # `datasets`, its file systems and the HTTP client raise a great many kinds
        raise explain(error, path, configuration, split, is_local) from error
    root = (local if local.is_dir() else local.parent).absolute() if is_local else None
    source = Source(rows, audio_column, speaker_column, root, split)
    return _checked(source, path)


def looks_local(path: str) -> bool:
    """Return whether a path that does not exist was meant as a local one rather than as a Hub id."""
    if "://" in path:
        return False
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).suffix in FILE_BUILDERS


def _open_local(local: Path, path: str, split: str, streaming: bool, configuration: str | None) -> Any:
    """Open a local file or folder."""
    if local.is_file():
        builder = FILE_BUILDERS.get(local.suffix.lower())
        if builder is None:
            raise DataError(
                f"{path!r} is a file, but none of {' '.join(FILE_BUILDERS)}: give the folder it lies in"
            )
        return _open_builder(builder, split, streaming, data_files=str(local))
    if (local / "state.json").exists() or (local / "dataset_dict.json").exists():
        return _pick(datasets.load_from_disk(str(local)), path, split, streaming)
    files = list_files(local)
    num_tables = sum(Path(name).suffix.lower() in (".parquet", ".arrow") for name in files)
    if sum(map(is_audio, files)) > num_tables:
        return _pick(open_audio_folder(local, files), path, split, streaming)
    if not any(Path(name).suffix.lower() in FILE_BUILDERS for name in files):
        raise DataError(
            f"{path!r} holds no audio files (wav, flac, ogg, opus, mp3 …), parquet, arrow or JSON lines"
        )
    return _open_builder(str(local), split, streaming, name=configuration)


def _pick(loaded: Any, path: str, split: str, streaming: bool) -> Any:
    """Return one split of what was loaded whole, as a stream if asked."""
    if isinstance(loaded, Mapping):
        if split not in loaded:
            raise no_split(path, split, ", ".join(loaded))
        loaded = loaded[split]
    elif loaded.split is not None and str(loaded.split) != split:
        raise no_split(path, split, str(loaded.split))
    if not streaming or len(loaded) == 0:
        return loaded
    return loaded.to_iterable_dataset(num_shards=min(STREAM_SHARDS, len(loaded)))


def _open_builder(path: str, split: str, streaming: bool, **options: Any) -> Any:
    """Open a split as `datasets.load_dataset` does, without torchcodec for folders of audio files."""
    builder = datasets.load_dataset_builder(path, **options)
    if isinstance(builder, FolderBasedBuilder):
        builder.BASE_FEATURE = StoredAudio
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _checked(source: Source, path: str) -> Source:
    """Return the source with undecoded columns, after checking that they exist and hold audio."""
    rows = source.rows
    is_stream = isinstance(rows, datasets.IterableDataset)
    if not is_stream and len(rows) == 0:
        raise DataError(f"{path!r} holds no clips in split {source.split!r}")
    wanted = [source.audio_column] + ([source.speaker_column] if source.speaker_column else [])
    names = rows.column_names or _first_columns(rows, path)
    for column in wanted:
        if column not in names:
            raise DataError(f"{path!r} has no column {column!r}; there are: {', '.join(names)}")
    rows = rows.select_columns(wanted)
    if isinstance((rows.features or {}).get(source.audio_column), datasets.Audio):
        rows = rows.cast_column(source.audio_column, StoredAudio(decode=False))
    source = Source(rows, source.audio_column, source.speaker_column, source.root, source.split)
    _check_audio(source, path)
    return source


def _first_columns(rows: Any, path: str) -> list[str]:
    """Return the columns of a stream that does not declare them, from its first row."""
    for row in rows:
        return list(row)
    raise DataError(f"{path!r} holds no clips")


def _check_audio(source: Source, path: str) -> None:
    """Raise DataError unless one of the first rows of the audio column is a file or names one."""
    values = [row[source.audio_column] for row in islice(source.rows, PROBED_ROWS)]
    if not values:
        raise DataError(f"{path!r} holds no clips in split {source.split!r}")
    if not any(_is_file(value, source.root) for value in values):
        raise DataError(
            f"column {source.audio_column!r} of {path!r} holds no audio: "
            f"its first value is {str(values[0])[:60]!r}"
        )


def _is_file(value: Any, root: Path | None) -> bool:
    """Return whether a value of the audio column is a file or names one."""
    if isinstance(value, str):
        return "://" in value or (bool(value) and os.path.exists(os.path.join(root or "", value)))
    return isinstance(value, bytes) or (isinstance(value, Mapping) and bool({"bytes", "path"} & set(value)))
