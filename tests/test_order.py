"""The order of training: one function of seed, epoch and position, for clips on their own and in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from snac_accel.dataset import ClipOrder, SampleKey, micro_batch_starts
from snac_accel.dataset.order import draw_sample, draw_windows

GLOBAL_BATCH = 12
LAYOUTS = [(4, 1, 3), (6, 2, 1), (2, 3, 2), (3, 4, 1)]  # batch size, processes, accumulation steps


def clips_of(order: ClipOrder, epoch: int = 0) -> list[int]:
    return [int(clip) for clip in order.epoch(epoch).clips]


def test_positions_of_all_layouts_are_the_same_numbers() -> None:
    """A million clips, steps far into the run: nothing is replayed and no state is needed."""
    order = ClipOrder(1_000_000, seed=3)

    def keys(batch_size: int, processes: int, accumulation: int) -> list[list[SampleKey]]:
        ranks = [
            micro_batch_starts(batch_size, processes, rank, accumulation, 1_999_920, 12)
            for rank in range(processes)
        ]
        starts = [start for micro_batches in zip(*ranks, strict=True) for start in micro_batches]
        rows = [order.key_at(start + row) for start in starts for row in range(batch_size)]
        return [rows[start : start + GLOBAL_BATCH] for start in range(0, len(rows), GLOBAL_BATCH)]

    reference = keys(12, 1, 1)
    assert {key.epoch for step in reference for key in step} == {1, 2}
    assert all(keys(*layout) == reference for layout in LAYOUTS)
    assert reference != [[key._replace(epoch=0) for key in step] for step in reference]


def test_the_order_is_pinned() -> None:
    """A changed order would break the promise that a run can be resumed by a newer version."""
    assert clips_of(ClipOrder(10, seed=0)) == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    blocks = ClipOrder(10, 0, np.array([3, 3, 4]), pool_size=4)
    assert clips_of(blocks) == [0, 3, 5, 1, 2, 4, 8, 9, 7, 6]


@pytest.mark.parametrize("seed", range(5))
def test_blocks_are_needed_one_pool_after_the_other(seed: int) -> None:
    """Every clip once in an epoch; the clips of a pool lie together, and no pool is much smaller than asked for."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 30, size=50)
    block_of_clip = np.repeat(np.arange(50), lengths)
    order = ClipOrder(int(lengths.sum()), seed, lengths, pool_size=60)
    for number in (0, 1):
        epoch = order.epoch(number)
        assert sorted(epoch.clips) == list(range(order.num_clips))
        assert sorted(epoch.blocks) == list(range(50))
        pool_of_block = dict(zip(epoch.blocks.tolist(), epoch.pool_of_block.tolist(), strict=True))
        pools = [pool_of_block[block_of_clip[clip]] for clip in epoch.clips]
        assert pools == sorted(pools)
        assert [order.pool_at(SampleKey(number, position, -1))[1] for position in range(len(pools))] == pools
        sizes = np.bincount(pools)
        assert sizes[:-1].min() > 60 - 30
        assert sizes.max() <= 60 + 30
    assert clips_of(order, 0) != clips_of(order, 1)


def test_the_blocks_ahead_go_on_into_the_next_epoch() -> None:
    order = ClipOrder(40, 1, np.full(10, 4), pool_size=8)
    blocks = order.blocks_of_pools(0, 4, 3)  # the last pool of epoch 0 and the first two of epoch 1
    assert blocks == [*order.epoch(0).blocks[8:], *order.epoch(1).blocks[:4]]


def test_a_pool_as_large_as_the_epoch_mixes_everything() -> None:
    order = ClipOrder(1000, 3, np.full(10, 100), pool_size=5000)
    first = order.epoch(0).clips[:100] // 100
    assert len(set(first.tolist())) == 10


def test_blocks_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="the blocks hold 9 clips, not 10"):
        ClipOrder(10, 0, np.array([4, 5]))
    with pytest.raises(ValueError, match="num_clips"):
        ClipOrder(0, 0)


def test_numbers_of_a_sample_depend_on_its_key_alone() -> None:
    key = SampleKey(3, 17, 5)
    assert draw_sample(1, key, 0) == draw_sample(1, key._replace(clip=9), 0)  # the clip is what was drawn, not a key
    draws = {draw_sample(s, SampleKey(e, p, 0), a) for s in (0, 1) for e in (0, 1) for p in (0, 1) for a in (0, 1)}
    assert len(draws) == 16
    assert draw_windows(1, key, 0, 3) == draw_windows(1, key, 0, 5)[:3]
    assert not set(draw_windows(1, key, 0, 8)) & set(draw_sample(1, key, 0))
    assert all(0 <= number < 1 for number in draw_sample(1, key, 0))
