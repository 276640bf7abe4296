"""Decode a window of a clip as mono at one rate, equal to the same slice of the whole clip resampled.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
import torchaudio
from torch import Tensor

from .decoding import AudioFile
from .handles import AudioError

MAX_LEVEL = 4.0  # full scale is 1; a float file beyond this was never normalised, or is damaged
MAX_MISSING_FRAMES = 4608  # an mp3 header may count encoder padding that is not decoded (two long frames)
MAX_KERNEL_SIZE = 2**24  # numbers in a resampling kernel; only rates without a small common ratio come near


class AudioReader(AbstractContextManager["AudioReader"]):
    """An opened clip; its windows are mono at `sampling_rate` (None: its own), equal to slices of the whole clip resampled.

    `source` is a path, the bytes of a file, or an opened binary file that can seek, which is closed with the
    reader; wav, flac, ogg, opus, mp3 and what else libsndfile reads. Only the window is decoded: exact to the
    bit for wav, flac and ogg, to 1e-6 for mp3, and to about 3e-3 for opus at low bitrates (in its mode for speech
    the decoder remembers more than a seek restores). With `segment`, start and length in seconds, that part of the
    file is the clip. Raises AudioError with the reason if the clip cannot be used.
    """

    def __init__(
        self,
        source: str | Path | bytes | BinaryIO,
        sampling_rate: int | None,
        segment: tuple[float, float] | None = None,
    ) -> None:
        self._file = AudioFile(source, segment)
        self.info = self._file.info
        self.sampling_rate = sampling_rate = sampling_rate or self.info.sampling_rate
        try:
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

    def read(self, start: int = 0, num_samples: int | None = None, channel: int | None = None) -> Tensor:
        """Return `num_samples` samples (T,) from `start`, both at `sampling_rate`; fewer at the end.

        Of one channel (0: left), or of their mean.
        """
        if not 0 <= start < self.num_samples:
            raise ValueError(f"start must lie in 0..{self.num_samples - 1}, not {start}")
        if channel is not None and not 0 <= channel < self.info.num_channels:
            raise ValueError(f"channel must lie in 0..{self.info.num_channels - 1}, not {channel}")
        count = min(num_samples or self.num_samples, self.num_samples - start)
        if self.info.sampling_rate == self.sampling_rate:
            return self._decode(start, count, channel)
        # The resampler repeats every `period_in` frames, which give `period_out` samples: a chunk that starts
        # on this grid, with the filter's half width on either side, gives the same numbers as the whole clip.
        common = math.gcd(self.info.sampling_rate, self.sampling_rate)
        period_in, period_out = self.info.sampling_rate // common, self.sampling_rate // common
        margin = -(-int(self._resampler.width) // period_in) + 1
        first = max(0, start // period_out - margin)
        last = -(-(start + count) // period_out) + margin
        begin, end = first * period_in, min(last * period_in, self.info.num_frames)
        offset = start - first * period_out
        audio = self._resampler(self._decode(begin, end - begin, channel))[offset : offset + count]
        if len(audio) == 0:
            raise AudioError(f"ends before its {self.info.num_frames} frames")
        return audio

    def _decode(self, start: int, count: int, channel: int | None) -> Tensor:
        """Return `count` frames from `start` at the clip's own rate as mono (T,), after checking them."""
        frames = torch.from_numpy(self._file.decode(start, count))  # (T, C)
        missing = self.info.num_frames - start - len(frames)
        if len(frames) == 0 or (len(frames) < count and missing > MAX_MISSING_FRAMES):
            raise AudioError(f"ends after {start + len(frames)} of {self.info.num_frames} frames")
        peak = float(frames.abs().max())  # not a number if one of them is none
        if not math.isfinite(peak):
            raise AudioError("holds samples that are not finite")
        if peak > MAX_LEVEL:
            raise AudioError(f"has a level of {peak:.3g}, full scale is 1")
        if channel is None and frames.shape[1] > 1:
            return frames.mean(dim=1)
        return frames[:, channel or 0].contiguous()


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Audio (..., T) at another rate, by the filter of the readers; raises AudioError for rates without a small ratio."""
    return audio if from_rate == to_rate else _resampler(from_rate, to_rate)(audio)


@lru_cache(maxsize=16)
def _resampler(from_rate: int, to_rate: int) -> torchaudio.transforms.Resample:
    """Return the resampler between two rates, its kernel (a windowed sinc of 6 zero crossings) built once."""
    common = math.gcd(from_rate, to_rate)
    if (from_rate // common) * (to_rate // common) > MAX_KERNEL_SIZE:
        raise AudioError(f"has a sampling rate of {from_rate} Hz, which has no small ratio to {to_rate} Hz")
    return torchaudio.transforms.Resample(from_rate, to_rate)
