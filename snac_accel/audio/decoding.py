"""Decode a range of frames from a file, at its own rate and with its own channels; nothing else is decoded.

Shapes: C channels, T frames.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from .handles import AudioError, open_handle

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 4_000, 384_000  # Hz; outside, a header is broken rather than unusual
MAX_CHANNELS = 8
MAX_FRAMES = 2**40  # libsndfile gives about 2**63 for a length that it does not know
MAX_PAGE_BYTES = 65_307  # of a page in an Ogg file, by its specification
# A frame of an mp3 may hold its data in up to 511 bytes of the frames before it, which are 9 at the lowest bitrate
# (255 bytes, 23 half as long frames, up to 24 kHz). libmpg123 itself goes back by 4 after a seek.
MP3_BACK_FRAMES = 12 * 1152
MAX_PAGE_FRAMES = 2**21  # a page ends at most 255 packets, of at most 8192 frames each


class AudioInfo(NamedTuple):
    """What the header of a clip says."""

    num_frames: int  # samples per channel
    sampling_rate: int  # Hz
    num_channels: int


class AudioFile(AbstractContextManager["AudioFile"]):
    """An opened clip: `info`, and `decode` for a range of its frames.

    `source` is a path, the bytes of a file, or a file opened for reading bytes that can seek (taken over: it is
    closed with the clip). With `segment`, start and length in seconds, that part of the file is the clip. Raises
    AudioError with the reason if no real clip looks like this.
    """

    def __init__(
        self, source: str | Path | bytes | BinaryIO, segment: tuple[float, float] | None = None
    ) -> None:
        self._bytes = open_handle(source)
        self._last_page: int | None = None
        try:
            # libmpg123 complains of damaged headers on the standard error stream.
            with self._errors("opened"), _quiet() if _looks_like_mp3(self._bytes.head(3)) else nullcontext():
                self._file = _Reader(self._bytes.handle, closefd=False)
        except BaseException:
            self._bytes.close()
            raise
        try:
            info = _checked_info(self._file)
            self._first, num_frames = _frames_of(segment, info)
            self.info = info._replace(num_frames=num_frames)
        except AudioError:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._bytes.close()

    @property
    def encoding(self) -> str:
        """Container and encoding, as libsndfile names them: "FLAC PCM_16"."""
        return f"{self._file.format} {self._file.subtype}"

    def decode(self, start: int, count: int) -> NDArray[np.float32]:
        """Return `count` frames (T, C) from `start`, fewer where the file ends early."""
        start, count = self._first + start, min(count, self.info.num_frames - start)
        with self._errors(f"decoded at frame {start}"):
            if self._file.format == "MP3":
                with _quiet():
                    return self._decode_from(max(0, start - MP3_BACK_FRAMES), start, count)
            if self._file.subtype == "VORBIS" and start > self._last_page_start():
                # A seek into the last page, since that is cut, arrives too late.
                return self._decode_from(max(0, self._last_page_start() - 4096), start, count)
            return self._decode_from(start, start, count)

    def _decode_from(self, begin: int, start: int, count: int) -> NDArray[np.float32]:
        """Return `count` frames from `start`, decoding from `begin` on, where a seek to `start` is not exact."""
        if start - begin > MAX_PAGE_FRAMES:
            raise AudioError("has a damaged last page")
        if self._file.subtype == "VORBIS":
            self._file.seek(
                0
            )  # libsndfile often arrives elsewhere when it seeks forward from within the file
        self._file.seek(begin)
        frames = self._file.read(start - begin + count, dtype="float32", always_2d=True)
        return np.asarray(frames[start - begin :])

    def _last_page_start(self) -> int:
        """Return the frame with which the last page of an Ogg file begins."""
        if self._last_page is None:
            tail = self._bytes.tail(2 * MAX_PAGE_BYTES)
            pages = [match.start() for match in re.finditer(rb"OggS\x00", tail)]
            ends = [int.from_bytes(tail[page + 6 : page + 14], "little") for page in pages]  # in frames
            self._last_page = max((end for end in ends[:-1] if end < MAX_FRAMES), default=0)  # all ones: none
        return self._last_page

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        """Turn what goes wrong inside into AudioError; an error of the stream below comes first."""
        try:
            yield
        except (RuntimeError, OSError, ValueError, TypeError, MemoryError) as error:
            self._bytes.check()
            reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
            # What libsndfile says of an mp3 without a whole frame.
            if reason.startswith("File does not exist"):
                reason = "The file is damaged."
            raise AudioError(f"cannot be {action}: {' '.join(reason.split())[:200]}") from error
        self._bytes.check()


class _Reader(soundfile.SoundFile):
    """A SoundFile that does not seek after each read: `soundfile` does, to the place where it stands already."""

    def seekable(self) -> bool:
        return False


def probe(source: str | Path | bytes | BinaryIO, segment: tuple[float, float] | None = None) -> AudioInfo:
    """Return what the header of a clip (see `AudioFile`) says; raise AudioError if it cannot be used."""
    with AudioFile(source, segment) as file:
        return file.info


def _frames_of(segment: tuple[float, float] | None, info: AudioInfo) -> tuple[int, int]:
    """Return the first frame and the number of frames of a segment; raise AudioError if the file ends before it."""
    if segment is None:
        return 0, info.num_frames
    first = round(segment[0] * info.sampling_rate)
    num_frames = round(min(segment[1] * info.sampling_rate, info.num_frames - first))  # endless: to the end
    if first < 0 or num_frames <= 0:
        seconds = info.num_frames / info.sampling_rate
        raise AudioError(f"has no segment of {segment[1]:g} s at {segment[0]:g} s: it lasts {seconds:g} s")
    return first, num_frames


def _checked_info(file: soundfile.SoundFile) -> AudioInfo:
    """Return the header of an opened clip, or raise AudioError if no real clip has such a header."""
    info = AudioInfo(file.frames, file.samplerate, file.channels)
    if not MIN_SAMPLING_RATE <= info.sampling_rate <= MAX_SAMPLING_RATE:
        raise AudioError(
            f"has a sampling rate of {info.sampling_rate} Hz, not {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE}"
        )
    if not 1 <= info.num_channels <= MAX_CHANNELS:
        raise AudioError(f"has {info.num_channels} channels, at most {MAX_CHANNELS} are read")
    if info.num_frames <= 0:
        raise AudioError("holds no samples")
    if info.num_frames > MAX_FRAMES:
        raise AudioError("does not say how long it is")
    return info


def _looks_like_mp3(head: bytes) -> bool:
    """Return whether a file that begins like this is given to libmpg123: with a tag, or with the 11 bits of a frame."""
    return head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the standard error stream of this process for a moment.

    After a seek in an mp3 file libmpg123 complains, in several lines, that the frames it starts from refer to
    earlier ones; it drops these frames, and the samples are right.
    """
    try:
        saved = os.dup(2)
    except OSError:  # a process without such a stream is quiet
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
