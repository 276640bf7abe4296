"""Decoding as tokens come: the whole decode's audio, after the stated latency, whatever the pushes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from snac_accel.errors import DataError
from snac_accel.generator import TrainableSNAC
from snac_accel.inference import Codec, Codes, FlatLayout, StreamingDecoder
from snac_accel.inference.networks import Network, prepare_network
from snac_accel.presets import MODEL_CONFIGS

import tiny

MODELS = {"plain": tiny.MODEL, "attention": tiny.ATTENTION_MODEL, "odd": tiny.ODD_MODEL, "demo": MODEL_CONFIGS["tiny"]}
GROUPS = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are too small for several."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


def make(config: dict[str, Any]) -> tuple[Network, list[Tensor]]:
    """A network with random weights, and random codes."""
    torch.manual_seed(0)
    strides, size = config["vq_strides"], config["codebook_size"]
    levels = [torch.randint(0, size, (GROUPS * strides[0] // stride,)) for stride in strides]
    return prepare_network(TrainableSNAC(**config)), levels


def part(levels: list[Tensor], begin: int, end: int) -> list[Tensor]:
    """Groups `begin` to `end`."""
    return [level[begin * len(level) // GROUPS : end * len(level) // GROUPS] for level in levels]


def whole(network: Network, levels: list[Tensor]) -> Tensor:
    samples = len(levels[0]) * network.model.vq_strides[0] * int(network.model.hop_length)
    ((_, pieces),) = Codec(network, chunk_seconds=1000).decode([Codes(levels, samples)])
    return torch.cat(list(pieces))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [[1], [1, 3, 0, 2]])
def test_it_is_the_whole_decode_after_the_latency(name: str, sizes: list[int]) -> None:
    """To 1e-5 of the peak (-100 dB), noise and all; never later than `look_ahead` says, and it says no more than twice that."""
    network, levels = make(MODELS[name])
    decoder = StreamingDecoder(network)
    expected, pieces, begin, latest = whole(network, levels), [], 0, 0
    while begin < GROUPS:
        end = min(GROUPS, begin + sizes[len(pieces) % len(sizes)])
        pieces.append(decoder.push(part(levels, begin, end)))
        begin = end
        latest = max(latest, begin * decoder.group_samples - sum(map(len, pieces)))
    assert decoder.look_ahead / 2 < latest <= decoder.look_ahead < GROUPS * decoder.group_samples
    pieces.append(decoder.finish())
    audio = torch.cat(pieces)
    assert audio.shape == expected.shape
    assert (audio - expected).abs().max() < 1e-5 * expected.abs().max()


def test_tokens_of_a_language_model() -> None:
    """One by one, through the layout with its offsets; what is not whole at the end is said."""
    network, levels = make(tiny.MODEL)
    layout = FlatLayout([4, 2, 1], 32, base=1000)
    decoder = StreamingDecoder(network, layout=layout)
    tokens = layout.flatten(levels).tolist()
    pieces = [decoder.push_tokens([token]) for token in tokens]
    decoder.push_tokens(tokens[:3])
    with pytest.raises(DataError, match="the last 3 tokens are no whole group"):
        decoder.finish()
    pieces.append(decoder.push_tokens(tokens[3:7]))
    pieces.append(decoder.finish())
    longer = [torch.cat([level, first]) for level, first in zip(levels, part(levels, 0, 1), strict=True)]
    expected = whole(network, longer)
    assert (torch.cat(pieces) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_two_decoders_do_not_disturb_each_other() -> None:
    """The network is shared, and so is the place of its noise."""
    network, levels = make(tiny.MODEL)
    one, other = StreamingDecoder(network), StreamingDecoder(network, noise_seed=5)
    pieces = []
    for group in range(GROUPS):
        pieces.append(one.push(part(levels, group, group + 1)))
        other.push(part(levels, GROUPS - group - 1, GROUPS - group))
    pieces.append(one.finish())
    expected = whole(network, levels)
    assert (torch.cat(pieces) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "message"), [({1: torch.tensor([1])}, "level 1 has 1 codes for 1 groups: 2 belong to each"),
                            ({2: torch.tensor([1, 2, 3, 32])}, "level 2 has codes beyond 0..31")],
)  # fmt: skip
def test_wrong_codes_are_refused(change: dict[int, Tensor], message: str) -> None:
    network, levels = make(tiny.MODEL)
    group = part(levels, 0, 1)
    for level, codes in change.items():
        group[level] = codes
    with pytest.raises(DataError, match=message):
        StreamingDecoder(network).push(group)
