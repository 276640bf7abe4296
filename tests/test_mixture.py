"""Several sources: exact proportions, no clip again before its turn, the same in every layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from snac_accel.dataset import AudioDataset, Mixture, make_loader
from snac_accel.dataset.mixture import whole_quotas


@pytest.fixture(scope="module")
def parts(demo_folder: Path) -> list[AudioDataset]:
    """Two sources of real speech, 24 clips and many more, with orders of their own."""
    return [
        AudioDataset(demo_folder, 24_000, 0.2, split=split, seed=seed)
        for seed, split in enumerate(["validation", "train"])
    ]


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        ([0.8, 0.1, 0.1], [8, 1, 1]),  # the paper: music, effects, speech
        ([1, 1, 1], [1, 1, 1]),
        ([80, 10, 10], [8, 1, 1]),
        ([3, 1], [3, 1]),
        ([1e-9, 1], [1, 10_000]),  # never left out
    ],
)
def test_weights_become_whole_numbers(weights: list[float], quotas: list[int]) -> None:
    assert whole_quotas(weights) == quotas


def test_odd_weights_are_met_within_a_ten_thousandth() -> None:
    weights = np.random.default_rng(0).random(7)
    quotas = np.array(whole_quotas(list(weights)))
    assert np.abs(quotas / quotas.sum() - weights / weights.sum()).max() < 1e-3


def test_the_mixture_is_exact_in_each_cycle_and_near_it_everywhere(parts: list[AudioDataset]) -> None:
    mixture = Mixture([*parts, parts[0]], [0.8, 0.1, 0.1])
    sources = np.array([mixture.place(position)[0] for position in range(1000)])
    for start in range(0, 1000, 10):
        assert np.bincount(sources[start : start + 10]).tolist() == [8, 1, 1]
    for source, share in enumerate([0.8, 0.1, 0.1]):
        before = np.concatenate([[0], np.cumsum(sources == source)])
        for width in (16, 100):
            counts = before[width:] - before[:-width]
            assert np.abs(counts - share * width).max() < 3  # in any stretch, aligned or not
    assert len({tuple(sources[start : start + 10]) for start in range(0, 1000, 10)}) > 10  # not one pattern repeated


def test_each_source_is_gone_through_in_its_own_order(parts: list[AudioDataset]) -> None:
    """The positions within a source follow each other without gap or repetition."""
    mixture = Mixture(parts, [3, 2], seed=5)
    for source in (0, 1):
        own = [place for at, place in map(mixture.place, range(500)) if at == source]
        assert own == list(range(len(own)))


def test_without_weights_every_clip_comes_once_in_an_epoch(parts: list[AudioDataset]) -> None:
    mixture = Mixture(parts)
    assert mixture.num_clips == sum(map(len, parts))
    names = Counter(
        parts[source].order.key_at(place)[2:] + (source,)
        for source, place in map(mixture.place, range(mixture.num_clips))
    )
    assert set(names.values()) == {1}
    assert len(names) == mixture.num_clips
    assert mixture.passes(2 * mixture.num_clips) == pytest.approx([2.0, 2.0])


def test_batches_are_those_of_the_sources_in_any_layout(parts: list[AudioDataset]) -> None:
    mixture = Mixture(parts, [1, 2], ["a", "b"], seed=1)
    whole = next(iter(make_loader(mixture, 12, num_steps=1, num_workers=0, pin_memory=False)))
    for row, position in enumerate(range(12)):
        source, place = mixture.place(position)
        assert whole.sources[row] == source
        assert torch.equal(whole.audio[row], parts[source].sample_at(place).audio)
    split = [
        batch
        for rank in (0, 1)
        for batch in make_loader(
            mixture, 6, num_processes=2, rank=rank, num_steps=1, num_workers=1, pin_memory=False
        )
    ]
    assert torch.equal(torch.cat([batch.audio for batch in split]), whole.audio)
    assert [source for batch in split for source in batch.sources] == whole.sources
