"""Decode a window of a clip as mono at one rate, and keep its level in range.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 4_000, 384_000  # Hz; outside, a header is broken rather than unusual
MAX_CHANNELS = 8
MAX_LEVEL = 4.0  # full scale is 1; a float file beyond this was never normalised, or is damaged
MAX_FRAMES = 2**40  # libsndfile gives about 2**63 for a length that it does not know
MAX_MISSING_FRAMES = 4608  # an mp3 header may count encoder padding that is not decoded (two long frames)
MAX_KERNEL_SIZE = 2**24  # numbers in a resampling kernel; only rates without a small common ratio come near
MAX_PAGE_SIZE = 65_307  # bytes of a page in an Ogg file, by its specification


class AudioError(Exception):
    """A clip cannot be used. The message is the reason alone, without the clip's name."""


class AudioInfo(NamedTuple):
    """What the header of a clip says."""

    num_frames: int  # samples per channel
    sampling_rate: int  # Hz
    num_channels: int


class AudioReader(AbstractContextManager["AudioReader"]):
    """An opened clip; its windows are mono at `sampling_rate`, equal to slices of the whole clip resampled.

    `source` is a path or the bytes of a file; wav, flac, ogg, opus, mp3 and what else libsndfile reads. Only
    the window is decoded: exact to the bit for wav, flac and ogg, to 1e-6 for mp3, and to about 2e-3 for opus
    below 48 kHz (its decoder remembers more than a seek restores). Raises AudioError with the reason if the
    clip cannot be used.
    """

    def __init__(self, source: str | Path | bytes, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self._source = source
        self._file = _open(source)
        try:
            self.info = _checked_info(self._file)
            self._resampler = _resampler(self.info.sampling_rate, sampling_rate)
        except AudioError:
            self._file.close()
            raise
        # at `sampling_rate`, rounded up
        self.num_samples = -(-self.info.num_frames * sampling_rate // self.info.sampling_rate)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, start: int = 0, num_samples: int | None = None) -> Tensor:
        """Return `num_samples` samples (T,) from `start`, both at `sampling_rate`; fewer at the end."""
        if not 0 <= start < self.num_samples:
            raise ValueError(f"start must lie in 0..{self.num_samples - 1}, not {start}")
        count = min(num_samples or self.num_samples, self.num_samples - start)
        if self.info.sampling_rate == self.sampling_rate:
            return self._decode(start, count)
        # The resampler repeats every `period_in` frames, which give `period_out` samples: a chunk that starts
        # on this grid, with the filter's half width on either side, gives the same numbers as the whole clip.
        common = math.gcd(self.info.sampling_rate, self.sampling_rate)
        period_in, period_out = self.info.sampling_rate // common, self.sampling_rate // common
        margin = -(-int(self._resampler.width) // period_in) + 1
        first = max(0, start // period_out - margin)
        last = -(-(start + count) // period_out) + margin
        begin, end = first * period_in, min(last * period_in, self.info.num_frames)
        offset = start - first * period_out
        audio = self._resampler(self._decode(begin, end - begin))[offset : offset + count]
        if len(audio) == 0:
            raise AudioError(f"ends before its {self.info.num_frames} frames")
        return audio

    def _decode(self, start: int, count: int) -> Tensor:
        """Return `count` frames from `start` at the clip's own rate as mono (T,), after checking them."""
        try:
            frames = torch.from_numpy(self._frames(start, count))  # (T, C)
        except (RuntimeError, OSError, ValueError) as error:
            raise AudioError(f"cannot be decoded at frame {start}: {error}") from error
        missing = self.info.num_frames - start - len(frames)
        if len(frames) == 0 or (len(frames) < count and missing > MAX_MISSING_FRAMES):
            raise AudioError(f"ends after {start + len(frames)} of {self.info.num_frames} frames")
        if not bool(torch.isfinite(frames).all()):
            raise AudioError("holds samples that are not finite")
        if float(frames.abs().max()) > MAX_LEVEL:
            raise AudioError(f"has a level of {float(frames.abs().max()):.3g}, full scale is 1")
        return frames.mean(dim=1)

    def _frames(self, start: int, count: int) -> NDArray[np.float32]:
        """Return `count` frames (T, C) from `start`, decoded from further back where a seek is not exact."""
        begin = start
        if self._file.subtype == "VORBIS" and start > (last_page := _last_page_start(self._source)):
            begin = max(0, last_page - 4096)  # a seek into the last page, which is cut, arrives too late
        with _quiet() if self._file.format == "MP3" else nullcontext():
            self._file.seek(begin)
            frames = self._file.read(start - begin + count, dtype="float32", always_2d=True)
        return np.asarray(frames[start - begin :])


def _open(source: str | Path | bytes) -> soundfile.SoundFile:
    """Open a clip for reading; raise AudioError with the reason."""
    try:
        if isinstance(source, bytes):
            if not source:
                raise AudioError("is empty (0 bytes)")
            return soundfile.SoundFile(io.BytesIO(source))
        status = Path(source).stat()
        if not stat.S_ISREG(status.st_mode):
            raise AudioError("is not a regular file")  # opening a pipe would wait for ever
        if status.st_size == 0:
            raise AudioError("is empty (0 bytes)")
        return soundfile.SoundFile(str(source))
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        raise AudioError(f"cannot be opened: {reason}") from error


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


def _last_page_start(source: str | Path | bytes) -> int:
    """Return the frame with which the last page of an Ogg Vorbis file begins."""
    if isinstance(source, bytes):
        tail = source[-2 * MAX_PAGE_SIZE :]
    else:
        with Path(source).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2 * MAX_PAGE_SIZE))
            tail = file.read()
    pages = [match.start() for match in re.finditer(rb"OggS\x00", tail)]
    ends = [
        int.from_bytes(tail[page + 6 : page + 14], "little") for page in pages
    ]  # in frames; all ones: none
    return max((end for end in ends[:-1] if end < MAX_FRAMES), default=0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the standard error stream of this process for a moment.

    After a seek in an mp3 file libmpg123 complains, in several lines, that the frames it starts from refer to
    earlier ones; it drops these frames, and the samples are right.
    """
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


@lru_cache(maxsize=16)
def _resampler(from_rate: int, to_rate: int) -> torchaudio.transforms.Resample:
    """Return the resampler between two rates, its kernel (a windowed sinc of 6 zero crossings) built once."""
    common = math.gcd(from_rate, to_rate)
    if (from_rate // common) * (to_rate // common) > MAX_KERNEL_SIZE:
        raise AudioError(f"has a sampling rate of {from_rate} Hz, which has no small ratio to {to_rate} Hz")
    return torchaudio.transforms.Resample(from_rate, to_rate)


def probe(source: str | Path | bytes) -> AudioInfo:
    """Return what the header of a clip (path or bytes) says; raise AudioError if it cannot be used."""
    with _open(source) as file:
        return _checked_info(file)


def apply_gain(audio: Tensor, gain_db: float = 0.0) -> Tensor:
    """Return `audio` with a gain in dB, less where the peak would pass 1; nothing is raised to full scale."""
    gain = 10.0 ** (gain_db / 20.0)
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    if peak * gain > 1.0:
        gain = 1.0 / peak
    return audio if gain == 1.0 else (audio * gain).clamp(-1.0, 1.0)  # the clamp only removes rounding
