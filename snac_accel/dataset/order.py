"""The order of training: which clip, window and gain, as a pure function of (seed, epoch, position).

Clips form one endless stream: epoch after epoch, each a permutation of all clips. Every step takes the next
G = batch size × processes × accumulation steps positions of it, its global batch. So the same global batch comes
out whatever the number of processes, workers or accumulation steps, and resuming needs nothing but the position.
A step that crosses the end of an epoch goes on with the beginning of the next; a dataset smaller than a global
batch gives a step several epochs, each with windows of its own.

Numbers are raw words of the Philox generator, whose stream NumPy guarantees for all versions (its
`permutation` it does not).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERMUTATION, SAMPLE, SHUFFLE, WINDOW = 0, 1, 2, 3  # purposes, so that draws for one never repeat those for another
_WORD = 2**64


class SampleKey(NamedTuple):
    """Names one training sample: everything random about it is drawn from (seed, epoch, position)."""

    epoch: int
    position: int  # in the epoch
    clip: int  # its index in the dataset; -1 when the clip comes from a stream


class Draws(NamedTuple):
    """Numbers in [0, 1) for one attempt at a sample."""

    clip: float  # which clip replaces one that cannot be used
    window: float
    gain: float
    polarity: float
    phase: float
    channel: float


def draw_words(count: int, *key: int) -> NDArray[np.uint64]:
    """Return `count` random 64-bit words that depend on the whole numbers of `key` alone."""
    sequence = np.random.SeedSequence([number % _WORD for number in key])
    return np.asarray(np.random.Philox(sequence).random_raw(count), dtype=np.uint64)


def draw_sample(seed: int, key: SampleKey, attempt: int) -> Draws:
    """Return the random numbers of one attempt (0, 1, …) at a sample."""
    words = draw_words(len(Draws._fields), SAMPLE, seed, key.epoch, key.position, attempt)
    return Draws(*_fractions(words))


def draw_windows(seed: int, key: SampleKey, attempt: int, count: int) -> list[float]:
    """Return `count` numbers in [0, 1): where else in the clip a window may lie if the first choice is too quiet."""
    return _fractions(draw_words(count, WINDOW, seed, key.epoch, key.position, attempt))


def _fractions(words: NDArray[np.uint64]) -> list[float]:
    """Turn random words into numbers in [0, 1)."""
    return ((words >> np.uint64(11)) * 2.0**-53).tolist()


@lru_cache(maxsize=4)
def epoch_order(num_clips: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the permutation (num_clips,) of clip indices in which an epoch takes them."""
    return np.argsort(draw_words(num_clips, PERMUTATION, seed, epoch), kind="stable")


def key_at(stream_position: int, num_clips: int, seed: int) -> SampleKey:
    """Return the sample at a position of the endless stream."""
    epoch, position = divmod(stream_position, num_clips)
    return SampleKey(epoch, position, int(epoch_order(num_clips, seed, epoch)[position]))


def micro_batch_starts(
    batch_size: int,
    num_processes: int,
    rank: int,
    accumulation_steps: int,
    start_position: int,
    num_steps: int | None,
) -> Iterator[int]:
    """Yield the stream position of the first row of each micro-batch of one process; its other rows follow.

    Micro-batch m of rank r takes the rows (m · num_processes + r) · batch_size + 0, 1, … of its step; the first step's
    first row is at `start_position`. Endless if `num_steps` is None.
    """
    micro_batches = accumulation_steps * num_processes  # of all processes in a step
    for step in count() if num_steps is None else range(num_steps):
        for micro_batch in range(accumulation_steps):
            before = step * micro_batches + micro_batch * num_processes + rank
            yield start_position + before * batch_size


class StepBatchSampler:
    """Iterates over the micro-batches (lists of `SampleKey`) of one process, from `start_position` of the stream on.

    `num_steps` steps, endless if None; each step is `accumulation_steps` micro-batches of `batch_size`
    samples.
    """

    def __init__(
        self,
        num_clips: int,
        seed: int = 0,
        batch_size: int = 1,
        num_processes: int = 1,
        rank: int = 0,
        accumulation_steps: int = 1,
        start_position: int = 0,
        num_steps: int | None = None,
    ) -> None:
        if num_clips < 1:
            raise ValueError(f"num_clips must be at least 1, not {num_clips}")
        if not 0 <= rank < num_processes:
            raise ValueError(f"rank must lie in 0..{num_processes - 1}, not {rank}")
        self.num_clips, self.seed, self.batch_size = num_clips, seed, batch_size
        self.layout = (batch_size, num_processes, rank, accumulation_steps, start_position, num_steps)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in micro_batch_starts(*self.layout):
            yield [
                key_at(position, self.num_clips, self.seed)
                for position in range(start, start + self.batch_size)
            ]
