"""The decoder's noise as a function of place: the same sample of a clip gets the same noise, however the clip is cut.

SNAC's `NoiseBlock` draws fresh noise at every call, so two decodes of the same codes differ, and a clip that is decoded in
chunks differs from one that is decoded whole. Here the noise of a block is drawn in cells of `CELL_FRAMES` frames, each from a
seed made of the user's seed, the block and the cell. It is drawn on the CPU, so that every device gets the same.

Shapes: B batch, C channels, T samples at the rate of the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from snac.layers import NoiseBlock
from torch import Tensor, nn

from ..seeds import derive_seed

CELL_FRAMES = 32


class NoisePlace:
    """Where the decoder is: which seed, and the first frame of each row. All blocks of a network share one."""

    def __init__(self) -> None:
        self.seed: int | None = 0  # None: no noise
        self.first_frames: Sequence[int] = (0,)  # of each row; one number stands for all

    def draw(self, block: int, rate: int, rows: int, first: int, count: int) -> Tensor:
        """Noise (B, 1, T) of `count` samples from sample `first` after the first frame; `rate` samples to a frame."""
        assert self.seed is not None
        starts = self.first_frames if len(self.first_frames) == rows else [self.first_frames[0]] * rows
        return torch.stack([_noise(self.seed, block, rate, start * rate + first, count) for start in starts])


class PlacedNoise(nn.Module):
    """`snac.layers.NoiseBlock` with noise by place; the same parameters under the same names."""

    def __init__(self, block: NoiseBlock, place: NoisePlace, number: int, rate: int) -> None:
        super().__init__()
        self.linear = block.linear
        self.place, self.number, self.rate = place, number, rate

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """(B, C, T) -> (B, C, T); `first` is the place of the first sample after the rows' first frames."""
        if self.place.seed is None:
            return x
        noise = self.place.draw(self.number, self.rate, len(x), first, x.shape[-1])
        return self.linear(x).mul_(noise.to(x.device, x.dtype)).add_(x)


def _noise(seed: int, block: int, rate: int, first: int, count: int) -> Tensor:
    """Noise (1, T) of the samples from `first` on."""
    size = CELL_FRAMES * rate
    begin, end = first // size, -(-(first + count) // size)
    cells = torch.cat([_cell(seed, block, size, cell) for cell in range(begin, end)])
    return cells[None, first - begin * size :][:, :count]


@lru_cache(maxsize=128)
def _cell(seed: int, block: int, size: int, cell: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "decoder noise", block, cell))
    with torch.inference_mode(False):
        return torch.randn(size, generator=generator)


def place_noise(decoder: nn.Module, rates: Sequence[int]) -> NoisePlace:
    """Put a `PlacedNoise` in the place of every noise block of a decoder that upsamples by `rates`; return what they share."""
    place = NoisePlace()
    blocks = [(parent, name) for parent in decoder.modules() for name, m in parent.named_children() if isinstance(m, NoiseBlock)]
    rate = 1
    for number, ((parent, name), factor) in enumerate(zip(blocks, rates, strict=False)):
        rate *= factor
        setattr(parent, name, PlacedNoise(parent.get_submodule(name), place, number, rate))
    return place
