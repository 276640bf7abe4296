"""WebDataset shards on the disk: clips by their number, read where they lie in the tars. Nothing is extracted."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow
from numpy.typing import NDArray

from ..audio import AudioError
from ..errors import DataError
from .clips import RawClip
from .folder import split_of
from .source_errors import no_split
from .tar_index import Shard, index_tar

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
MAX_CLIP_BYTES = 2**31  # of a clip, which is read into memory as a whole
MAX_OPEN_FILES = 64  # per process; a corpus may have more shards than a process may open files


class TarClips:
    """The clips of local tar files, by number; see the protocol `Clips`.

    `files` are relative to `root`. A clip's name is that of its tar and its own in it. Raises DataError if a column is
    missing or nothing can be read; of a damaged tar what lies before the damage is used, with a warning.
    """

    block_lengths: NDArray[np.int64] | None = None  # each clip is read alone

    def __init__(
        self, root: Path, files: Sequence[str], audio_column: str = "audio", speaker_column: str | None = None
    ) -> None:
        self.root, self.files = root, list(files)
        self._opened = _OpenFiles()
        shards = [index_tar(root / file, file, audio_column, speaker_column) for file in self.files]
        self._lengths = np.array([len(shard.sizes) for shard in shards])
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])
        self._names = pyarrow.chunked_array([shard.names for shard in shards]).combine_chunks()
        self._speakers = pyarrow.chunked_array([shard.speakers for shard in shards]).combine_chunks()
        self._ends = np.cumsum(self._lengths)
        self._check(root, shards, audio_column, speaker_column)

    def _check(
        self, root: Path, shards: Sequence[Shard], audio_column: str, speaker_column: str | None
    ) -> None:
        where = str(root / self.files[0]) if len(self.files) == 1 else str(root)
        found = ", ".join(sorted({extension for shard in shards for extension in shard.extensions})[:20])
        if len(self) == 0:
            wanted = "audio members" if audio_column == "audio" else f"members .{audio_column}"
            damage = next((f"; {shard.damage}" for shard in shards if shard.damage), "")
            raise DataError(f"{where} holds no {wanted}; there are: {found or 'none'}{damage}")
        if speaker_column is not None and self._speakers.null_count == len(self):
            raise DataError(
                f"{where} has no column {speaker_column!r}: neither members .{speaker_column} "
                f"nor a field of members .json; there are: {found}"
            )

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._sizes)

    def clip(self, index: int) -> RawClip:
        """Return clip `index` undecoded, as bytes."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        offset, size = int(self._offsets[index]), int(self._sizes[index])
        path = self.root / self.files[shard]
        if size > MAX_CLIP_BYTES:
            raise AudioError(f"has {size / 2**30:.1f} GiB, at most {MAX_CLIP_BYTES // 2**30} are read from a tar")
        try:
            content = self._opened.read(str(path), offset, size)
        except OSError as error:
            raise AudioError(f"cannot be read from {self.files[shard]}: {error.strerror or error}") from error
        if len(content) < size:
            raise AudioError(f"cannot be read: {self.files[shard]} was cut off after it was opened")
        return RawClip(self._names[index].as_py(), content, self._speakers[index].as_py())

    def names_and_speakers(self) -> list[tuple[str, str]]:
        """Return name and speaker ("" without one) of each clip; reads no audio."""
        return list(
            zip(
                self._names.to_pylist(),
                (speaker or "" for speaker in self._speakers.to_pylist()),
                strict=True,
            )
        )

    def prefetch(self, blocks: Iterable[int]) -> None:
        """Do nothing: there are no blocks."""

    def digest(self) -> str:
        """Return a hash of all names, places and sizes."""
        digest = hashlib.sha256("\n".join(self._names.to_pylist()).encode())
        for column in (self._lengths, self._offsets, self._sizes):
            digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()[:12]


def open_tars(
    root: Path,
    files: Sequence[str],
    split: str = "train",
    audio_column: str = "audio",
    speaker_column: str | None = None,
) -> TarClips:
    """Open the split of the tar files among `files` (relative to the folder `root`), or of `root` if it is one tar.

    Splits are named by folders or by the files themselves (train-00000.tar); those of no split are "train". Raises
    DataError in one line.
    """
    where = str(root)
    if root.is_file():  # named by the user: it is what there is to train on, whatever it is called
        by_split = {"train": [root.name]}
        root = root.parent
    else:
        by_split = {}
        for file in sorted(files):
            if file.lower().endswith((".tar", *COMPRESSED)):
                by_split.setdefault(_split_of(file), []).append(file)
    if split not in by_split:
        raise no_split(where, split, ", ".join(sorted(by_split)))
    for file in by_split[split]:
        if file.lower().endswith(COMPRESSED):
            raise DataError(
                f"{str(root / file)!r} is compressed, so clips cannot be found in it: unpack it to a plain .tar"
            )
    return TarClips(root, by_split[split], audio_column, speaker_column)


def _split_of(file: str) -> str:
    """Return the split of a tar by its folders, or by its own name taken as one."""
    return split_of(str(PurePosixPath(file).with_suffix("") / "x")) or "train"


class _OpenFiles:
    """Files opened once in each process, and read by place, so that processes and threads do not disturb each other."""

    def __init__(self) -> None:
        self._process = -1
        self._lock = threading.Lock()
        self._files: dict[str, int] = {}

    def __reduce__(self) -> tuple[type[_OpenFiles], tuple[()]]:
        return _OpenFiles, ()  # another process opens them anew

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`, fewer if the file ends there."""
        if (
            self._process != os.getpid()
        ):  # after a fork: the parent's descriptors are the parent's, and so is its lock
            self._process, self._lock, self._files = os.getpid(), threading.Lock(), {}
        with self._lock:
            descriptor = self._descriptor(path)
            parts: list[bytes] = []
            while size > 0 and (part := os.pread(descriptor, size, offset)):
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _descriptor(self, path: str) -> int:
        """Return the descriptor of a file; the one opened first makes room when there are too many."""
        if path not in self._files:
            if len(self._files) >= MAX_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return self._files[path]

    def __del__(self) -> None:
        if self._process == os.getpid():
            for descriptor in self._files.values():
                os.close(descriptor)
