"""Codes in one row, as language models read them, and back.

A group is what one code of the coarsest level spans: with strides 4 2 1 seven codes, 2048 samples at the published 24 kHz. Its
codes stand in the order of a tree walked down to the left: each code, then the two (or more) finer ones in its first half, then
those in its second half.

    strides 4 2 1      c0  c1 c2 c2  c1 c2 c2                                   (Orpheus and its kin)
    strides 8 4 2 1    c0  c1 c2 c3 c3 c2 c3 c3  c1 c2 c3 c3 c2 c3 c3

Tokens are the codes plus an offset: `slot` gives each of the places of a group a range of its own, as Orpheus does (place p adds
p · K), `level` each level (level l adds l · K), `none` nothing; `base` is added to all, 128266 in Orpheus' vocabulary. Source:
https://github.com/canopyai/Orpheus-TTS (orpheus_tts_pypi/orpheus_tts/decoder.py, `convert_to_audio`).

Shapes: G groups, S places of a group, F_l codes of level l, K codebook size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError, DataError

Offsets = Literal["slot", "level", "none"]
OFFSETS: tuple[Offsets, ...] = ("slot", "level", "none")
ORPHEUS_BASE = 128266  # of the first code in Orpheus' vocabulary


class FlatLayout:
    """Codes of a model in one row. Raises ConfigError for strides of which one does not divide the one before."""

    def __init__(self, strides: Sequence[int], codebook_size: int, *, offsets: Offsets = "slot", base: int = 0) -> None:
        if any(coarse % fine for coarse, fine in zip(strides, strides[1:], strict=False)) or strides[-1] != 1:
            named = " ".join(map(str, strides))
            raise ConfigError(f"strides {named}: codes can be put in one row where each stride divides the one before")
        if base < 0:
            raise ConfigError(f"--base = {base}: should be 0 or more")
        self.strides, self.codebook_size, self.base = tuple(strides), codebook_size, base
        self.places = list(_walk(self.strides, 0, 0))  # level and frame of each place
        self.group_size = len(self.places)
        levels = torch.tensor([level for level, _ in self.places])
        numbers = {"slot": torch.arange(self.group_size), "level": levels, "none": torch.zeros_like(levels)}
        self.offsets = base + numbers[offsets] * codebook_size  # (S,)
        # The places of a level come in the order of its codes.
        self._places_of = [torch.nonzero(levels == level)[:, 0] for level in range(len(strides))]

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest token."""
        return int(self.offsets.max()) + self.codebook_size

    def flatten(self, levels: Sequence[Tensor]) -> Tensor:
        """Codes, per level (F_l,), as tokens (G · S,), int64."""
        rows = torch.empty(len(levels[0]), self.group_size, dtype=torch.int64)
        for places, codes in zip(self._places_of, levels, strict=True):
            rows[:, places] = codes.to(torch.int64).view(len(rows), len(places))
        return (rows + self.offsets).flatten()

    def unflatten(self, tokens: Tensor) -> list[Tensor]:
        """Codes, per level (F_l,), of tokens (G · S,); raises DataError if they are not tokens of this layout."""
        if tokens.dim() != 1 or len(tokens) % self.group_size:
            raise DataError(f"{len(tokens)} tokens: they should come in groups of {self.group_size}")
        rows = tokens.to(torch.int64).view(-1, self.group_size) - self.offsets
        if bool(((rows < 0) | (rows >= self.codebook_size)).any()):
            group, place = torch.nonzero((rows < 0) | (rows >= self.codebook_size))[0].tolist()
            first = int(self.offsets[place])
            token = int(tokens[group * self.group_size + place])
            raise DataError(
                f"token {token} at place {place} of group {group}: there {first}..{first + self.codebook_size - 1} belong"
            )
        return [rows[:, places].flatten() for places in self._places_of]


def _walk(strides: tuple[int, ...], level: int, frame: int) -> Iterator[tuple[int, int]]:
    """Level and first frame of each place of a group, from a code of `level` at `frame` on."""
    yield level, frame
    if level + 1 < len(strides):
        for first in range(frame, frame + strides[level], strides[level + 1]):
            yield from _walk(strides, level + 1, first)
