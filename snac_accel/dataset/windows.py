"""From a clip to a training window: where the window lies, what is done to it, and what replaces a clip that
cannot be used.

Shapes: T samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio import AudioError, AudioReader, Change, augment, loudness
from ..errors import DataError
from .clips import RawClip, read_source
from .order import Draws, SampleKey, draw_sample, draw_windows
from .samples import BAD, SHORT, Failure, Sample

MAX_ATTEMPTS = 16  # clips tried for one sample; with half of them unusable, all fail once in 65 000 samples


class TooShort(AudioError):
    """A clip is shorter than the stated minimum: it is dropped, but nothing is wrong with it."""


@dataclass(frozen=True)
class WindowReader:
    """Cuts windows of one length and rate out of clips, and changes their level and phase.

    Everything random is drawn from the seed and the sample's key, and a window is computed by itself: its samples
    are the same in any batch, worker and process.
    """

    sampling_rate: int  # Hz, of the windows
    num_samples: int  # length of a window
    seed: int = 0
    gain_db: tuple[float, float] = (0.0, 0.0)  # range of the random gain
    min_clip_seconds: float = 0.2  # shorter clips are dropped
    random_window: bool = True  # else the window is the clip's beginning, without gain and the like
    channels: str = "mean"  # what becomes of stereo: mean, left (the first), random (one of them)
    min_loudness: float | None = None  # LUFS; quieter windows are not chosen
    window_tries: int = 8  # windows of a clip tried for that, before its loudest is taken
    loudness: float | None = None  # LUFS that every window is brought to
    random_polarity: bool = False
    random_phase: bool = False

    def read(self, clip: RawClip, draws: Draws, key: SampleKey, attempt: int = 0) -> tuple[Tensor, int]:
        """Return a window (1, T) of a clip and how many samples of it are padding, or raise AudioError."""
        with AudioReader(read_source(clip), self.sampling_rate, clip.segment) as reader:
            seconds = reader.num_samples / self.sampling_rate
            if seconds < self.min_clip_seconds:
                raise TooShort(f"lasts {seconds:.3f} s, less than {self.min_clip_seconds:g} s")
            audio = self._choose(reader, self._starts(reader.num_samples, draws, key, attempt), draws)
        audio = augment(audio.unsqueeze(0), [self._change(draws)], self.sampling_rate).squeeze(0)
        num_padding = self.num_samples - audio.shape[-1]
        return torch.nn.functional.pad(audio, (0, num_padding)), num_padding

    def _starts(self, clip_samples: int, draws: Draws, key: SampleKey, attempt: int) -> Iterator[int]:
        """Yield where the window may lie, in the order in which that is tried."""
        num_starts = max(1, clip_samples - self.num_samples + 1)
        if not self.random_window:
            num_starts = 1
        yield int(draws.window * num_starts)
        if num_starts > 1 and self.min_loudness is not None and self.window_tries > 1:
            for window in draw_windows(self.seed, key, attempt, self.window_tries - 1):
                yield int(window * num_starts)

    def _choose(self, reader: AudioReader, starts: Iterator[int], draws: Draws) -> Tensor:
        """Return the first window (1, T) that is loud enough, else the loudest of them."""
        drawn = int(draws.channel * reader.info.num_channels)
        channel = {"mean": None, "left": 0, "random": drawn}[self.channels]
        loudest, level = None, -math.inf
        for start in starts:
            audio = reader.read(start, self.num_samples, channel).unsqueeze(0)
            if self.min_loudness is None:
                return audio
            measured = loudness(audio, self.sampling_rate)
            if measured >= self.min_loudness:
                return audio
            if loudest is None or measured > level:
                loudest, level = audio, measured
        assert loudest is not None  # there is always a first start
        return loudest

    def _change(self, draws: Draws) -> Change:
        """Return what is done to the window of these draws."""
        if not self.random_window:
            return Change()
        low, high = self.gain_db
        return Change(
            turn=draws.phase if self.random_phase else 0.0,
            flip=self.random_polarity and draws.polarity < 0.5,
            loudness=self.loudness,
            gain_db=low + (high - low) * draws.gain,
        )

    def sample(self, key: SampleKey, candidate: Callable[[int, Draws], RawClip]) -> Sample:
        """Return the sample of a key; `candidate(attempt, draws)` gives its clip (attempt 0) or another.

        Raises DataError if none of `MAX_ATTEMPTS` clips can be used.
        """
        failures: list[Failure] = []
        for attempt in range(MAX_ATTEMPTS):
            draws = draw_sample(self.seed, key, attempt)
            name = f"clip at position {key.position} of epoch {key.epoch}"  # as long as it has no other
            try:
                clip = candidate(attempt, draws)
                name = clip.name
                audio, num_padding = self.read(clip, draws, key, attempt)
                return Sample(audio, name, num_padding, failures)
            except AudioError as error:
                failures.append(Failure(name, str(error), SHORT if isinstance(error, TooShort) else BAD))
        last = failures[-1]
        raise DataError(
            f"none of {MAX_ATTEMPTS} clips tried can be used; the last one, {last.name}, {last.reason}"
        )
