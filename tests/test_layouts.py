"""Tokens in one row: the order and the offsets that language models expect, worked out by hand, and the way back."""

from __future__ import annotations

import pytest
import torch

from snac_accel.errors import ConfigError, DataError
from snac_accel.inference.layouts import OFFSETS, ORPHEUS_BASE, FlatLayout, Offsets

K = 4096
# Two groups of the 24 kHz model: 2 + 4 + 8 codes.
LEVELS = [torch.tensor([10, 11]), torch.tensor([20, 21, 22, 23]), torch.tensor([30, 31, 32, 33, 34, 35, 36, 37])]
PLAIN = [10, 20, 30, 31, 21, 32, 33, 11, 22, 34, 35, 23, 36, 37]  # c0 c1 c2 c2 c1 c2 c2, twice


def test_three_levels_by_hand() -> None:
    assert FlatLayout([4, 2, 1], K, offsets="none").flatten(LEVELS).tolist() == PLAIN


def test_orpheus_by_hand() -> None:
    """The numbers of the tokens that Orpheus-TTS writes for these codes."""
    layout = FlatLayout([4, 2, 1], K, offsets="slot", base=ORPHEUS_BASE)
    first = [
        128266 + 10,
        128266 + 4096 + 20,
        128266 + 2 * 4096 + 30,
        128266 + 3 * 4096 + 31,
        128266 + 4 * 4096 + 21,
        128266 + 5 * 4096 + 32,
        128266 + 6 * 4096 + 33,
    ]
    assert layout.flatten(LEVELS).tolist()[:7] == first == [128276, 132382, 136488, 140585, 144671, 148778, 152875]
    assert layout.vocabulary_size == 128266 + 7 * 4096 == 156938


def test_orpheus_own_decoder_reads_them() -> None:
    """`convert_to_audio` of Orpheus-TTS, on its side of the numbers: the place of a token modulo 7 decides."""
    ids = (FlatLayout([4, 2, 1], K, base=ORPHEUS_BASE).flatten(LEVELS) - ORPHEUS_BASE).tolist()
    frame = [token - (index % 7) * 4096 for index, token in enumerate(ids)]
    codes_0, codes_1, codes_2 = [], [], []
    for i in range(0, len(frame), 7):
        codes_0 += [frame[i]]
        codes_1 += [frame[i + 1], frame[i + 4]]
        codes_2 += [frame[i + 2], frame[i + 3], frame[i + 5], frame[i + 6]]
    assert [codes_0, codes_1, codes_2] == [level.tolist() for level in LEVELS]


def test_four_levels_by_hand() -> None:
    levels = [
        torch.tensor([1]),
        torch.tensor([2, 9]),
        torch.tensor([3, 6, 10, 13]),
        torch.tensor([4, 5, 7, 8, 11, 12, 14, 15]),
    ]
    layout = FlatLayout([8, 4, 2, 1], K, offsets="none")
    assert layout.flatten(levels).tolist() == list(range(1, 16))
    by_level = FlatLayout([8, 4, 2, 1], 100, offsets="level").flatten([level + 0 for level in levels]).tolist()
    assert by_level == [1, 102, 203, 304, 305, 206, 307, 308, 109, 210, 311, 312, 213, 314, 315]


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("strides", [[4, 2, 1], [8, 4, 2, 1], [2, 1], [6, 2, 1], [1]])
def test_there_and_back(strides: list[int], offsets: Offsets) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randint(0, 50, (12 * strides[0] // stride,), generator=generator) for stride in strides]
    layout = FlatLayout(strides, 50, offsets=offsets, base=7)
    tokens = layout.flatten(levels)
    assert 7 <= int(tokens.min()) and int(tokens.max()) < layout.vocabulary_size
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(layout.unflatten(tokens), levels, strict=True))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([0] * 6, "6 tokens: they should come in groups of 7"),
        ([0, 50, 100, 150, 200, 250, 300, 0, 49, 100, 150, 200, 250, 300], "token 49 at place 1 of group 1: there 50..99"),
        ([-1, 50, 100, 150, 200, 250, 300], "token -1 at place 0 of group 0: there 0..49"),
        ([0, 50, 100, 150, 200, 250, 350], "token 350 at place 6 of group 0: there 300..349"),
    ],
)
def test_other_tokens_are_refused(tokens: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        FlatLayout([4, 2, 1], 50).unflatten(torch.tensor(tokens))


@pytest.mark.parametrize("strides", [[3, 2, 1], [4, 2]])
def test_strides_without_a_tree_are_refused(strides: list[int]) -> None:
    with pytest.raises(ConfigError, match=" ".join(map(str, strides))):
        FlatLayout(strides, 50)
