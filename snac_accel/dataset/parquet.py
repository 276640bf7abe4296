"""Parquet files read while training: an index of their row groups, from the footers alone, and clips by their number.

The clips are numbered file after file. A row group is the block that is read together: it is fetched once per machine,
its audio and speaker columns alone, into the `BlockCache`. Nothing is read before it is asked for, so that going on in
the middle of an epoch costs what beginning one costs.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import lru_cache, partial
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from ..audio import AudioError
from ..errors import DataError, NoAudioError
from .block_cache import BlockCache
from .clips import RawClip, clip_name, path_and_bytes
from .network import AHEAD_SECONDS, NetworkError, file_info, is_address, open_address
from .tables import RowReader

INDEX_THREADS = 16  # footers, and columns of names, that are read at a time
FETCH_THREADS = 4  # row groups fetched ahead at a time, in each process
MAX_OPENED = 8  # blocks mapped into memory at a time
ROWS_AT_A_TIME = 16  # decoded in memory while a row group is copied
BUFFER_BYTES = 4 * 2**20
Item = TypeVar("Item")
Result = TypeVar("Result")


class Footer(NamedTuple):
    """What is kept of a file's footer."""

    path: str
    version: str  # differs when the file was changed
    rows: list[int]  # of each row group
    sizes: list[int]  # bytes of each row group, all columns


class ParquetClips:
    """The clips of parquet files, by number; see the protocol `Clips`.

    `audio_column` holds structs of bytes and path, as `datasets` writes them, bytes, or paths and addresses. Paths
    start at `root`. Raises DataError if a file cannot be read, or lacks a column.
    """

    def __init__(
        self,
        files: Sequence[str],
        split: str,
        audio_column: str,
        speaker_column: str | None = None,
        root: str | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        self.split, self.root = split, root
        self.audio_column, self.speaker_column = audio_column, speaker_column
        self.cache = cache or BlockCache.default()
        self.footers = _parallel(partial(_footer, cache=self.cache), files)
        lengths = [
            (file, group, rows)
            for file, f in enumerate(self.footers)
            for group, rows in enumerate(f.rows)
            if rows
        ]
        blocks = np.array(lengths, dtype=np.int64).reshape(-1, 3)
        self._places = blocks[:, :2]  # file and row group of each block
        self._lengths = blocks[:, 2]  # its rows
        self._ends = np.cumsum(self._lengths)
        self._ahead = _Ahead()
        self._opened: dict[int, pyarrow.Table] = {}  # mapped into memory, the one opened last at the end

    def __len__(self) -> int:
        """Return the number of clips."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def block_lengths(self) -> NDArray[np.int64]:
        """Number of clips in each row group."""
        return self._lengths

    def clip(self, index: int) -> RawClip:
        """Return clip `index` undecoded; raises DataError if its row group cannot be had."""
        block = int(np.searchsorted(self._ends, index, side="right"))
        row = index - int(self._ends[block] - self._lengths[block])
        table = self._block(block)
        try:
            values = {column: table.column(column)[row].as_py() for column in self._columns}
        except UnicodeDecodeError as error:
            raise AudioError("has a name that is not UTF-8") from error
        return self._reader.clip(values, index)

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Begin to fetch these blocks in the background; what goes wrong is met again when a clip is asked for."""
        for block in blocks:
            write = partial(self._copy, block, patience_seconds=AHEAD_SECONDS)
            self._ahead.submit(block, partial(self.cache.prepare, self._name(block), write))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_ahead": _Ahead()}

    def names_and_speakers(self) -> list[tuple[str, str]]:
        """Return name and speaker of each clip: reads these columns of every row group once, and no audio."""
        found: list[tuple[str, str]] = []
        for table in _parallel(self._texts, range(len(self._lengths))):
            for row in table.to_pylist():
                path, _ = path_and_bytes(row.get(self.audio_column))
                speaker = str(row[self.speaker_column]) if self.speaker_column else ""
                found.append((self._reader.name(path, len(found)), speaker))
        return found

    def cache_note(self, pool_size: int) -> str | None:
        """Return a sentence if the cache is too small for pools of so many clips, else None."""
        largest = max((size for footer in self.footers for size in footer.sizes), default=0)
        mean = sum(size for footer in self.footers for size in footer.sizes) / max(len(self), 1)
        need = 2 * (pool_size * mean + largest)  # the pool in use, and the one ahead
        if need <= self.cache.max_bytes:
            return None
        return (
            f"two pools of data.shuffle_buffer = {pool_size} clips take about {need / 1e9:.2g} GB, and data.cache_gigabytes is "
            f"{self.cache.max_bytes / 1e9:.2g}: row groups will be fetched more than once"
        )

    def digest(self) -> str:
        """Return a hash of the files' names, versions and lengths."""
        facts = [[clip_name(f.path, self.root), f.version, f.rows] for f in self.footers]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def check(self, dataset_path: str) -> None:
        """Raise DataError unless the columns are there and the audio column can hold audio."""
        if not len(self):
            raise DataError(f"{dataset_path!r} holds no clips in split {self.split!r}")
        schema = _schema(self.footers[0].path)
        for column in filter(None, (self.audio_column, self.speaker_column)):
            if column not in schema.names:
                raise NoAudioError(
                    f"{dataset_path!r} has no column {column!r}; there are: {', '.join(schema.names)}"
                )
        kind = schema.field(self.audio_column).type
        if pyarrow.types.is_struct(kind) and {"bytes", "path"} & {field.name for field in kind}:
            return
        if not (_is_text(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
            raise NoAudioError(
                f"column {self.audio_column!r} of {dataset_path!r} holds no audio: it is of type {kind}"
            )

    def _block(self, block: int) -> pyarrow.Table:
        if block not in self._opened:
            try:
                self._opened[block] = self.cache.get(self._name(block), partial(self._copy, block))
            except (NetworkError, OSError, LookupError, pyarrow.ArrowException) as error:
                path, text = self._file(block)[0], _text(error)
                raise DataError(text if path in text else f"reading {path} failed: {text}") from error
            if len(self._opened) > MAX_OPENED:
                self._opened.pop(next(iter(self._opened)))
        return self._opened[block]

    def _file(self, block: int) -> tuple[str, str, int]:
        """Return path and version of a block's file, and its row group there."""
        file, group = self._places[block].tolist()
        return self.footers[file].path, self.footers[file].version, group

    @property
    def _columns(self) -> list[str]:
        """The columns that are read."""
        return list(filter(None, (self.audio_column, self.speaker_column)))

    @property
    def _reader(self) -> RowReader:
        is_foreign = self.root is None  # of the Hub
        return RowReader(self.audio_column, self.speaker_column, self.root, self.split, is_foreign)

    def _name(self, block: int, what: str = "clips") -> str:
        facts = [what, *self._file(block), *self._columns]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def _copy(self, block: int, target: pyarrow.NativeFile, patience_seconds: float | None = None) -> None:
        """Write a block as Arrow, a few rows at a time: row groups can be larger than the memory."""
        path, version, group = self._file(block)
        with closing(_open(path, patience_seconds)) as source:
            file = pyarrow.parquet.ParquetFile(source, buffer_size=BUFFER_BYTES, pre_buffer=False)
            if _version(path, patience_seconds) != version:
                raise pyarrow.ArrowInvalid("it was changed after the run began")
            columns = self._columns
            schema = pyarrow.schema([file.schema_arrow.field(column) for column in columns])
            with pyarrow.ipc.new_file(target, schema) as writer:
                for batch in file.iter_batches(
                    ROWS_AT_A_TIME, row_groups=[group], columns=columns, use_threads=False
                ):
                    writer.write_batch(batch.select(columns).cast(schema))

    def _texts(self, block: int) -> pyarrow.Table:
        """Return the columns of a block without its audio, from the cache or from the file."""
        try:
            return self.cache.get(self._name(block, "texts"), partial(self._copy_texts, block))
        except (NetworkError, OSError, LookupError, UnicodeDecodeError, pyarrow.ArrowException) as error:
            raise DataError(f"reading names from {self._file(block)[0]} failed: {_text(error)}") from error

    def _copy_texts(self, block: int, target: pyarrow.NativeFile) -> None:
        path, _, group = self._file(block)
        with closing(_open(path)) as source:
            file = pyarrow.parquet.ParquetFile(source, pre_buffer=False)
            kind = file.schema_arrow.field(self.audio_column).type
            has_path = pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
            audio = f"{self.audio_column}.path" if has_path else self.audio_column if _is_text(kind) else None
            others = [column for column in self._columns if column != self.audio_column]
            for column in others:
                file.schema_arrow.field(column)  # raises KeyError; `read_row_group` leaves out what is not there
            wanted = [column for column in (audio, *others) if column]
            table = file.read_row_group(group, columns=wanted, use_threads=False) if wanted else None
        if table is None:
            table = pyarrow.table({"row": pyarrow.array(range(int(self._lengths[block])))})
        with pyarrow.ipc.new_file(target, table.schema) as writer:
            writer.write_table(table)


class _Ahead:
    """The threads of this process that fetch blocks ahead; a fork begins with none.

    Daemons, not a ThreadPoolExecutor: Python would finish all that is queued there before a process may end.
    """

    def __init__(self) -> None:
        self._owner = 0
        self._queue: queue.Queue[tuple[int, Callable[[], None]]] = queue.Queue()
        self._asked: set[int] = set()

    def __reduce__(self) -> tuple[type[_Ahead], tuple[()]]:
        return _Ahead, ()

    def submit(self, block: int, fetch: Callable[[], None]) -> None:
        if self._owner != os.getpid():
            self._owner, self._queue, self._asked = os.getpid(), queue.Queue(), set()
            for _ in range(FETCH_THREADS):
                threading.Thread(target=self._work, args=(self._queue,), name="fetch", daemon=True).start()
        if block not in self._asked:
            self._asked.add(block)
            self._queue.put((block, fetch))

    def _work(self, waiting: queue.Queue[tuple[int, Callable[[], None]]]) -> None:
        while True:
            block, fetch = waiting.get()
            with suppress(Exception):  # met again when a clip is asked for
                fetch()
            self._asked.discard(block)


def _footer(path: str, cache: BlockCache) -> Footer:
    """Return what matters of a file's footer, kept in the cache by the file's version; raises DataError."""
    try:
        version = _version(path)
        name = f"footer-{hashlib.sha256(f'{path} {version}'.encode()).hexdigest()[:32]}"
        table = cache.get(name, partial(_write_rows, path))
    except (NetworkError, OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet: {_text(error)}") from error
    return Footer(path, version, table.column("rows").to_pylist(), table.column("bytes").to_pylist())


def _write_rows(path: str, target: pyarrow.NativeFile) -> None:
    with closing(_open(path)) as source:
        metadata = pyarrow.parquet.ParquetFile(source, pre_buffer=False).metadata
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    facts = {
        "rows": [group.num_rows for group in groups],
        "bytes": [group.total_byte_size for group in groups],
    }
    table = pyarrow.table({name: pyarrow.array(numbers, pyarrow.int64()) for name, numbers in facts.items()})
    with pyarrow.ipc.new_file(target, table.schema) as writer:
        writer.write_table(table)


@lru_cache(maxsize=64)
def _schema(path: str) -> pyarrow.Schema:
    with closing(_open(path)) as source:
        return pyarrow.parquet.ParquetFile(source, pre_buffer=False).schema_arrow


def _version(path: str, patience_seconds: float | None = None) -> str:
    """Return what tells the versions of a file apart: size and time, or what a store says instead of a time."""
    if not is_address(path):
        status = os.stat(path)
        return f"{status.st_size}-{status.st_mtime_ns}"
    info = file_info(path, patience_seconds)
    marks = [
        str(info[key])
        for key in ("ETag", "etag", "blob_id", "LastModified", "mtime", "created")
        if info.get(key)
    ]
    return "-".join([str(info["size"]), *marks])


def _open(path: str, patience_seconds: float | None = None) -> BinaryIO:
    return open_address(path, patience_seconds) if is_address(path) else open(path, "rb")


def _parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the results in order, computed by threads that end with this call."""
    with ThreadPoolExecutor(INDEX_THREADS, "index") as threads:
        return list(threads.map(function, items))


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
