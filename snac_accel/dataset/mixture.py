"""Several sources in fixed proportions: which of them each position of the training stream takes.

The stream is cut into cycles in which every source has its exact number of windows, spread evenly with some jitter, so
that each stretch of the stream has about the right shares and each cycle has them exactly. Within a source every clip
comes once before any comes again, however often the others were gone through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .audio_dataset import AudioDataset
from .order import MIXTURE, draw_words
from .samples import Sample

MAX_DENOMINATOR, MAX_CYCLE = 1000, 10_000


class Cycle(NamedTuple):
    """One cycle of the mixture, (cycle length,) each."""

    sources: NDArray[np.int64]  # the source at each place
    numbers: NDArray[np.int64]  # the how manieth of that source in this cycle


class Mixture:
    """The training data of a run: one source or several.

    `weights` are proportions of windows; None: those of the numbers of clips. `names` are for the log.
    """

    def __init__(
        self,
        parts: Sequence[AudioDataset],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if not parts:
            raise ValueError("a mixture needs at least one source")
        self.parts, self.seed = list(parts), seed
        self.names = list(names) if names else [part.dataset_path for part in parts]
        if len(self.parts) == 1:
            self.quotas = [1]
        else:
            self.quotas = [len(part) for part in parts] if weights is None else whole_quotas(weights)
        self._cycle: tuple[int, Cycle] | None = None

    @property
    def shares(self) -> list[float]:
        """Share of each source in the windows, 0 to 1."""
        return [quota / sum(self.quotas) for quota in self.quotas]

    @property
    def indexed(self) -> bool:
        """Whether every source can be read anywhere."""
        return all(part.indexed for part in self.parts)

    @property
    def num_clips(self) -> int | None:
        """Clips of all sources together; None if one of them has no index."""
        return sum(map(len, self.parts)) if self.indexed else None

    def place(self, position: int) -> tuple[int, int]:
        """Return (source, position in the source's own stream) of a position of the run's stream."""
        if len(self.parts) == 1:
            return 0, position
        number, place = divmod(position, sum(self.quotas))
        if self._cycle is None or self._cycle[0] != number:
            self._cycle = number, self._compute(number)
        cycle = self._cycle[1]
        source = int(cycle.sources[place])
        return source, number * self.quotas[source] + int(cycle.numbers[place])

    def _compute(self, number: int) -> Cycle:
        """Return a cycle: the j-th of a source's q windows lies at a random place of the j-th of q equal stretches."""
        words = draw_words(sum(self.quotas), MIXTURE, self.seed, number)
        jitter = (words >> np.uint64(11)) * 2.0**-53
        sources = np.repeat(np.arange(len(self.quotas)), self.quotas)
        numbers = np.concatenate([np.arange(quota) for quota in self.quotas])
        order = np.argsort((numbers + jitter) / np.repeat(self.quotas, self.quotas), kind="stable")
        return Cycle(sources[order], numbers[order])

    def sample_at(self, position: int) -> Sample:
        """Return the sample at a position of the run's stream; raises DataError if no clip can be used."""
        source, own = self.place(position)
        sample = self.parts[source].sample_at(own)
        failures = [failure._replace(source=source) for failure in sample.failures]
        return sample._replace(source=source, failures=failures)

    def passes(self, num_windows: int) -> list[float | None]:
        """Return how often each source is gone through in a run of so many windows; None for one without an index."""
        return [
            num_windows * share / len(part) if part.indexed else None
            for share, part in zip(self.shares, self.parts, strict=True)
        ]


def whole_quotas(weights: Sequence[float]) -> list[int]:
    """Return the smallest whole numbers in the proportions of `weights`, at least 1 each.

    Exact for proportions of small denominators (0.8, 0.1, 0.1 give 8, 1, 1), else within 1 in 10,000.
    """
    total = sum(weights)
    parts = [Fraction(weight / total).limit_denominator(MAX_DENOMINATOR) for weight in weights]
    denominator = math.lcm(*(part.denominator for part in parts))
    if sum(parts) == 1 and denominator <= MAX_CYCLE and all(parts):
        quotas = [int(part * denominator) for part in parts]
    else:
        quotas = [max(1, round(MAX_CYCLE * weight / total)) for weight in weights]
    common = math.gcd(*quotas)
    return [quota // common for quota in quotas]
