"""The index of a WebDataset shard: which clips it holds and where their bytes lie, from the tar headers alone.

A sample is the neighbouring members whose paths agree up to the first dot of the file name; its audio is the member with
an audio suffix, or with the extension that the audio column names. Members that are not plain files inside the archive
(links, devices, names that lead out of it) are passed over.
"""

from __future__ import annotations

import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from numpy.typing import NDArray

from ..errors import DataError
from ..plain_json import parse_json
from .folder import is_audio

MAX_HEADER_BYTES = 2**20  # of a long name or a pax record; a damaged header may claim the whole shard
MAX_TEXT_BYTES = 2**20  # of a member with the speaker, or with JSON
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # WebDataset's rule: up to the first dot of the file name

log = logging.getLogger(__name__)


class Member(NamedTuple):
    """A plain file inside a tar."""

    key: str
    extension: str  # all that follows the first dot of the file name, in lower case
    offset: int  # of its bytes in the tar
    size: int  # bytes

    @property
    def is_audio(self) -> bool:
        """Whether its last suffix is that of an audio file."""
        return is_audio(f"x.{self.extension}")


class Shard(NamedTuple):
    """What is kept of a tar's headers."""

    names: pyarrow.LargeStringArray
    speakers: pyarrow.LargeStringArray  # null: none
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    extensions: set[str]  # of all members; a few are enough for messages
    damage: str | None


def index_tar(path: Path, file: str, audio_column: str, speaker_column: str | None) -> Shard:
    """Read the headers of one tar; warn if it is damaged."""
    names: list[str] = []
    speakers: list[str | None] = []
    places: list[tuple[int, int]] = []
    extensions: set[str] = set()
    taken: dict[str, int] = {}
    members = _Members(path, file)
    with members:
        for key, group in groupby(members, key=lambda member: member.key):
            sample = list(group)
            extensions |= {member.extension for member in sample} if len(extensions) < 20 else set()
            speaker = _speaker(members, sample, speaker_column) if speaker_column else None
            for audio in _audio_members(sample, audio_column):
                names.append(_unique(f"{file}/{key}.{audio.extension}", taken))
                speakers.append(speaker)
                places.append((audio.offset, audio.size))
    if members.damage:
        log.warning("%s; the %d clips before that are used", members.damage, len(names))
    offsets, sizes = np.array(places, dtype=np.int64).reshape(-1, 2).T
    text = pyarrow.large_string()
    return Shard(
        pyarrow.array(names, text), pyarrow.array(speakers, text), offsets, sizes, extensions, members.damage
    )


def _audio_members(sample: Sequence[Member], audio_column: str) -> list[Member]:
    """Return the audio of a sample: one member, or several if the same name stands in the tar several times."""
    if audio_column != "audio":
        return [member for member in sample if member.extension == audio_column.lower().lstrip(".")]
    audio = [member for member in sample if member.is_audio]
    return [member for member in audio if member.extension == audio[0].extension]


def _speaker(members: _Members, sample: Sequence[Member], column: str) -> str | None:
    """Return the speaker of a sample: the text of the member the column names, or a field of its JSON member."""
    for member in sample:
        if member.extension in (column.lower(), f"{column.lower()}.txt"):
            return members.read(member).decode("utf-8", "replace").strip()
    for member in sample:
        if member.extension == "json":
            try:
                fields = parse_json(members.read(member).decode("utf-8", "replace"))
            except ValueError:
                continue
            if isinstance(fields, dict) and fields.get(column) is not None:
                return str(fields[column])
    return None


def _unique(name: str, taken: dict[str, int]) -> str:
    """Return the name, with its number if it came before: the order in the tar decides, so it stays the same."""
    taken[name] = number = taken.get(name, 0) + 1
    return name if number == 1 else f"{name}#{number}"


class _Header(tarfile.TarInfo):
    """A tar header that does not believe in long names or records of any size; `_proc_member` may be overridden."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        is_record = self.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
        )
        if self.size < 0 or (is_record and self.size > MAX_HEADER_BYTES):
            raise tarfile.ReadError("a header names an absurd size")
        return super()._proc_member(archive)  # type: ignore[misc]


class _Members:
    """Iterates over the plain files of a tar with seeks from header to header; `damage` says what ended it early."""

    def __init__(self, path: Path, file: str) -> None:
        self.file = file
        self.damage: str | None = None
        try:
            self._bytes = path.open("rb")
        except OSError as error:
            raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        self._size = os.fstat(self._bytes.fileno()).st_size

    def __enter__(self) -> _Members:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()

    def __iter__(self) -> Iterator[Member]:
        try:
            archive = tarfile.open(fileobj=self._bytes, mode="r:", tarinfo=_Header, errors="surrogateescape")
            yield from self._walk(archive)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            self._damaged(" ".join(str(error).split())[:100])

    def _walk(self, archive: tarfile.TarFile) -> Iterator[Member]:
        """Yield the members that are plain files, until the end or the damage."""
        before = -1
        while (header := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # the archive would keep them all
            if archive.offset <= before:
                return self._damaged("a header leads backwards")
            before = archive.offset
            if header.isreg() and not header.issparse():
                if header.offset_data + header.size > self._size:
                    return self._damaged(f"cut off inside {header.name!r}")
                member = _member(header)
                if member is not None:
                    yield member
        self._bytes.seek(archive.offset)
        if any(self._bytes.read(tarfile.BLOCKSIZE)):
            self._damaged(f"no header at byte {archive.offset}")
        elif self._bytes.tell() == archive.offset:
            self._damaged("it has no end mark")
        return None

    def _damaged(self, reason: str) -> None:
        kind = "compressed" if _is_compressed(self._bytes) else "damaged or cut off"
        self.damage = f"the tar {self.file} is {kind} ({_storable(reason)})"

    def read(self, member: Member) -> bytes:
        """Return the bytes of a member that is text, its first megabyte at most, without moving the place of the walk."""
        return os.pread(self._bytes.fileno(), min(member.size, MAX_TEXT_BYTES), member.offset)


def _member(header: tarfile.TarInfo) -> Member | None:
    """Return what a header names, None if the name has no key or leads out of the archive."""
    name = _storable(header.name.removeprefix("./"))
    match = _KEY.fullmatch(name)
    if match is None or name.startswith("/") or ".." in PurePosixPath(name).parts:
        return None
    return Member(match[1], match[2].lower(), header.offset_data, header.size)


def _storable(text: str) -> str:
    """Return text that Arrow can store: what is not UTF-8 is escaped."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_compressed(file: Any) -> bool:
    file.seek(0)
    return file.read(6).startswith(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
    )
