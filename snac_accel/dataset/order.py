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
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERMUTATION, SAMPLE, SHUFFLE, WINDOW, BLOCKS, MIXTURE = range(6)  # purposes, so that draws for one never repeat those for another
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


class Epoch(NamedTuple):
    """The order in which one epoch takes the clips."""

    clips: NDArray[np.int64]  # (num_clips,): the clip at each position
    blocks: NDArray[np.int64]  # the blocks in the order in which they are needed; none where clips have no blocks
    pool_of_block: NDArray[np.int64]  # of these blocks, rising
    pool_ends: NDArray[np.int64]  # position at which each pool ends


class ClipOrder:
    """The clip at each position of an endless stream: epoch after epoch, each holding every clip once.

    Without blocks an epoch is a permutation of all clips. With `block_lengths` (clips in each block of neighbours
    that are read together) the blocks are permuted, and the clips are then permuted within pools of successive
    blocks, each of about `pool_size` clips or more: all clips of a pool are needed at about the same time, those of
    other pools are not.
    """

    def __init__(
        self, num_clips: int, seed: int, block_lengths: NDArray[np.int64] | None = None, pool_size: int = 1000
    ) -> None:
        if num_clips < 1:
            raise ValueError(f"num_clips must be at least 1, not {num_clips}")
        if block_lengths is not None and int(block_lengths.sum()) != num_clips:
            raise ValueError(f"the blocks hold {int(block_lengths.sum())} clips, not {num_clips}")
        self.num_clips, self.seed, self.pool_size = num_clips, seed, pool_size
        self.block_lengths = block_lengths
        self._epochs: dict[int, Epoch] = {}

    def key_at(self, stream_position: int) -> SampleKey:
        """Return the sample at a position of the endless stream."""
        epoch, position = divmod(stream_position, self.num_clips)
        return SampleKey(epoch, position, int(self.epoch(epoch).clips[position]))

    def epoch(self, number: int) -> Epoch:
        """Return the order of an epoch; the last two are kept."""
        if number not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            self._epochs[number] = self._compute(number)
        return self._epochs[number]

    def _compute(self, number: int) -> Epoch:
        words = draw_words(self.num_clips, PERMUTATION, self.seed, number)
        none = np.empty(0, dtype=np.int64)
        if self.block_lengths is None:
            return Epoch(np.argsort(words, kind="stable"), none, none, none)
        blocks = np.argsort(draw_words(len(self.block_lengths), BLOCKS, self.seed, number), kind="stable")
        lengths = self.block_lengths[blocks]
        starts = np.cumsum(lengths) - lengths
        _, pool_of_block = np.unique(starts // self.pool_size, return_inverse=True)
        pool_by_number = np.empty_like(pool_of_block)
        pool_by_number[blocks] = pool_of_block
        clips = np.lexsort((words, np.repeat(pool_by_number, self.block_lengths)))
        return Epoch(clips, blocks, pool_of_block, np.cumsum(np.bincount(pool_of_block, weights=lengths).astype(np.int64)))

    def pool_at(self, key: SampleKey) -> tuple[int, int]:
        """Return (epoch, pool) of a sample."""
        return key.epoch, int(np.searchsorted(self.epoch(key.epoch).pool_ends, key.position, side="right"))

    def blocks_of_pools(self, epoch: int, first: int, count: int) -> list[int]:
        """Return the blocks of `count` pools from `first` on, in the order in which they are needed."""
        order, found = self.epoch(epoch), []
        for pool in range(first, min(first + count, len(order.pool_ends))):
            found += order.blocks[order.pool_of_block == pool].tolist()
        left = first + count - len(order.pool_ends)
        return found + (self.blocks_of_pools(epoch + 1, 0, left) if left > 0 else [])


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
