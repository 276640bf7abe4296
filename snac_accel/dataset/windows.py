"""From a clip to a training window: where the window lies, and what replaces a clip that cannot be used.

Shapes: T samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio import AudioError, AudioReader, apply_gain
from ..errors import DataError
from .order import Draws, SampleKey, draw_sample
from .samples import BAD, SHORT, Failure, Sample
from .clips import RawClip, read_source

MAX_ATTEMPTS = (
    16  # clips tried for one sample; with half of the clips unusable, all fail once in 65 000 samples
)


class TooShort(AudioError):
    """A clip is shorter than the stated minimum: it is dropped, but nothing is wrong with it."""


@dataclass(frozen=True)
class WindowReader:
    """Cuts windows of one length and rate out of clips."""

    sampling_rate: int  # Hz, of the windows
    num_samples: int  # length of a window
    seed: int = 0
    gain_db: tuple[float, float] = (0.0, 0.0)  # range of the random gain
    min_clip_seconds: float = 0.2  # shorter clips are dropped
    random_window: bool = True  # else the window is the clip's beginning, without gain

    def read(self, clip: RawClip, draws: Draws) -> tuple[Tensor, int]:
        """Return a window (1, T) of a clip and how many samples of it are padding, or raise AudioError."""
        with AudioReader(read_source(clip), self.sampling_rate) as reader:
            seconds = reader.num_samples / self.sampling_rate
            if seconds < self.min_clip_seconds:
                raise TooShort(f"lasts {seconds:.3f} s, less than {self.min_clip_seconds:g} s")
            num_starts = max(1, reader.num_samples - self.num_samples + 1)
            start = int(draws.window * num_starts) if self.random_window else 0
            audio = reader.read(start, self.num_samples)
        low, high = self.gain_db if self.random_window else (0.0, 0.0)
        audio = apply_gain(audio, low + (high - low) * draws.gain)
        num_padding = self.num_samples - len(audio)
        return torch.nn.functional.pad(audio, (0, num_padding)).unsqueeze(0), num_padding

    def sample(self, key: SampleKey, candidate: Callable[[int, Draws], RawClip]) -> Sample:
        """Return the sample of a key; `candidate(attempt, draws)` gives its clip (attempt 0) or another.

        Raises DataError if none of `MAX_ATTEMPTS` clips can be used.
        """
        failures: list[Failure] = []
        for attempt in range(MAX_ATTEMPTS):
            draws = draw_sample(self.seed, key, attempt)
            clip = candidate(attempt, draws)
            try:
                audio, num_padding = self.read(clip, draws)
                return Sample(audio, clip.name, num_padding, failures)
            except AudioError as error:
                failures.append(Failure(clip.name, str(error), SHORT if isinstance(error, TooShort) else BAD))
        last = failures[-1]
        raise DataError(
            f"none of {MAX_ATTEMPTS} clips tried can be used; the last one, {last.name}, {last.reason}"
        )
