"""How far a network looks, and chunks of a clip that look at least as far: what is kept of them is what the whole clip gives.

A chunk is computed with a margin on either side, which is thrown away. At the ends of a clip it has none, so that the zeros
with which the convolutions pad are those of the whole clip. All places are in frames (one code of the finest level), and chunks
begin on whole quanta, where windows of attention and pooled frames begin too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from snac import SNAC
from snac.attention import LocalMHA
from torch import nn


class Chunk(NamedTuple):
    """A part of a clip, in frames: what is computed, and what is kept of it."""

    begin: int
    end: int
    keep_begin: int
    keep_end: int

    @property
    def num_frames(self) -> int:
        """Frames that are computed."""
        return self.end - self.begin

    def kept_codes(self, stride: int) -> slice:
        """What is kept of the chunk's codes of a level, `stride` frames each."""
        return slice((self.keep_begin - self.begin) // stride, (self.keep_end - self.begin) // stride)

    def kept_samples(self, hop: int) -> slice:
        """What is kept of the chunk's audio, `hop` samples to a frame."""
        return slice((self.keep_begin - self.begin) * hop, (self.keep_end - self.begin) * hop)


class Reach(NamedTuple):
    """How far encoder and decoder look to either side, in frames, rounded up to whole quanta."""

    quantum: int
    encoder: int
    decoder: int


def reach_of(model: SNAC) -> Reach:
    """Walk the network; its modules stand in the order in which they are called, none beside another."""
    quantum = math.lcm(model.vq_strides[0], model.attn_window_size or 1)
    hop = int(model.hop_length)
    return Reach(quantum, _margin(model.encoder, Fraction(hop), quantum), _margin(model.decoder, Fraction(1), quantum))


def _margin(network: nn.Module, rate: Fraction, quantum: int) -> int:
    """Frames that the output of a frame may depend on, to either side; `rate` is the samples per frame of the input."""
    total, since_attention = 0, Fraction(0)
    for module in network.modules():
        if isinstance(module, LocalMHA):  # looks at its whole window, so what comes before begins anew
            total, since_attention = total + _whole(since_attention, quantum), Fraction(0)
        elif isinstance(module, nn.ConvTranspose1d):
            since_attention += 1 / rate  # kernels of two strides: one sample to either side
            rate *= module.stride[0]
        elif isinstance(module, nn.Conv1d):
            padding = int(module.padding[0])  # on the left; the right side of a strided kernel is the longer one
            since_attention += ((module.kernel_size[0] - 1) * module.dilation[0] - padding) / rate
            rate /= module.stride[0]
    return total + _whole(since_attention, quantum)


def _whole(frames: Fraction, quantum: int) -> int:
    return math.ceil(frames / quantum) * quantum


def chunks_of(num_frames: int, body: int, margin: int) -> Iterator[Chunk]:
    """Chunks that keep `body` frames each; all but the first and the last ones have the same length.

    A clip that is not longer than a chunk with its margins is one chunk.
    """
    if num_frames <= body + 2 * margin:
        yield Chunk(0, num_frames, 0, num_frames)
        return
    for first in range(0, num_frames, body):
        last = min(first + body, num_frames)
        yield Chunk(max(0, first - margin), min(num_frames, last + margin), first, last)
