"""Activation checkpointing: the generator's blocks are computed twice, so that what they compute need not be kept.

What a network's backward pass needs stays in memory from its forward pass on. The generator's backward pass is the last of a
step, so its activations wait while all discriminators run. With checkpointing only what enters each block waits; the rest is
computed again, one block at a time.

Shapes: B batch, C channels, T samples.
"""

from __future__ import annotations

import torch
from snac.layers import DecoderBlock, EncoderBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RecomputedEncoderBlock(EncoderBlock):
    """`snac.layers.EncoderBlock` that keeps its input alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, 2C, T / stride)."""
        return recomputed(self.block, x)


class RecomputedDecoderBlock(DecoderBlock):
    """`snac.layers.DecoderBlock` that keeps its input alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C / 2, T * stride)."""
        return recomputed(self.block, x)


def checkpoint_activations(generator: nn.Module) -> int:
    """Have every block of encoder and decoder computed again in the backward pass; returns how many there are.

    Values and gradients stay bitwise the same, and so do the names of the weights.
    """
    blocks = [module for module in generator.modules() if type(module) in RECOMPUTED]
    for block in blocks:
        block.__class__ = RECOMPUTED[type(block)]  # the same parameters under the same names
    return len(blocks)


def recomputed(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers(x)`; with gradients, nothing but `x` and the random state (for the noise) is kept for the backward pass."""
    if not torch.is_grad_enabled():
        return layers(x)
    result: Tensor = checkpoint(layers, x, use_reentrant=False, preserve_rng_state=True)
    return result


RECOMPUTED: dict[type[nn.Module], type[nn.Module]] = {
    EncoderBlock: RecomputedEncoderBlock,
    DecoderBlock: RecomputedDecoderBlock,
}
