"""SNAC made trainable: the upstream modules, plus the quantizer losses that the released package leaves out.

The released `snac` package quantizes with a straight-through estimator and no loss on the codebooks, so their gradient is
None for ever. Up to snac 1.1.0 two losses were there; they are computed here beside the upstream forward pass, whose outputs
and codes stay bit-identical (eager float32, same noise), and whose `state_dict` this class shares.

Shapes: B batch, T samples, D latent channels, d codebook dimension, F frames of the latent, F_l frames of level l.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from snac import SNAC
from snac.vq import VectorQuantize
from torch import Tensor

from .depthwise import replace_depthwise
from .snake import replace_snakes


class QuantizerOutput(NamedTuple):
    """What the residual quantizer makes of a latent."""

    quantized: Tensor  # (B, D, F)
    codes: list[Tensor]  # per level (B, F_l), integers below K, coarse to fine
    latents: list[Tensor]  # per level (B, d, F_l), projected, before the lookup, detached
    commitment: Tensor  # scalar: mean (z_e - sg(z_q))², summed over levels
    codebook: Tensor  # scalar: mean (z_q - sg(z_e))², summed over levels


class GeneratorOutput(NamedTuple):
    """A reconstruction with everything that the step needs. A named tuple, so that DDP and autocast see its tensors."""

    audio: Tensor  # (B, 1, T), in -1..1
    codes: list[Tensor]  # per level (B, F_l)
    latents: list[Tensor]  # per level (B, d, F_l), detached: for codebook statistics outside `forward`
    commitment: Tensor  # scalar
    codebook: Tensor  # scalar


class TrainableSNAC(SNAC):
    """`snac.SNAC` whose forward pass also returns the quantizer losses.

    Takes the constructor arguments of `snac.SNAC`; weights move freely between the two classes. `encode` and `decode` are
    the upstream ones.
    """

    def __init__(self, **model: Any) -> None:
        super().__init__(**model)
        replace_snakes(self)
        replace_depthwise(self)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights: float32, unless the module was converted."""
        return self.quantizer.quantizers[0].codebook.weight.dtype

    def forward(self, audio: Tensor) -> GeneratorOutput:
        """Reconstruct `audio` (B, 1, T); any T, padded with zeros to whole quanta inside and trimmed again."""
        length = audio.shape[-1]
        latent = self.encoder(self.preprocess(audio))  # (B, D, F)
        quantized = self.quantize(latent)
        fake = self.reconstruct(quantized.quantized)[..., :length]
        return GeneratorOutput(
            fake, quantized.codes, quantized.latents, quantized.commitment, quantized.codebook
        )

    def quantize(self, latent: Tensor) -> QuantizerOutput:
        """Residual vector quantization of `latent` (B, D, F), always in float32: bfloat16 has too few digits to rank codes."""
        with torch.autocast(latent.device.type, enabled=False):
            return _quantize_levels(list(self.quantizer.quantizers), latent.to(self.dtype))

    def reconstruct(self, quantized: Tensor) -> Tensor:
        """Decode `quantized` (B, D, F) to audio (B, 1, T); last snake, convolution and tanh in float32 under autocast."""
        hidden = self.decoder.model[:-3](quantized)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.decoder.model[-3:](hidden.to(self.dtype))

    @torch.no_grad()
    def encode_latent(self, audio: Tensor) -> Tensor:
        """The latent (B, D, F) that the first level quantizes, for data-dependent initialisation."""
        return self.encoder(self.preprocess(audio)).to(self.dtype)


def zero_encoding_biases(generator: TrainableSNAC) -> None:
    """Set the biases of everything that decides the codes to 0, for training from scratch (DAC's trainer does it too).

    Speech is quiet beside torch's default biases: with those, the latents of all frames are almost parallel (their mean
    resultant length is 0.97 at the published 24 kHz size), every level hits a handful of codes, and the decoder
    spends its first hundreds of steps on the average spectrum. Source: `init_weights` in descript-audio-codec.
    """
    for part in encoding_modules(generator):
        for name, parameter in part.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)


def encoding_modules(generator: TrainableSNAC) -> list[torch.nn.Module]:
    """Encoder, projections into the codebooks, codebooks: with these the coarsest level's codes stand still.

    The projections out of the codebooks belong to the decoding side: finer levels see what they leave, and move with them.
    """
    levels = generator.quantizer.quantizers
    return [generator.encoder, *(level.in_proj for level in levels), *(level.codebook for level in levels)]


def freeze(generator: TrainableSNAC, parts: Collection[str]) -> None:
    """Keep the parameters of encoder, quantizer or decoder as they are: no gradient, so no optimiser moves them."""
    for part in parts:
        for parameter in getattr(generator, part).parameters():
            parameter.requires_grad_(False)


def _quantize_levels(levels: list[VectorQuantize], latent: Tensor) -> QuantizerOutput:
    residual = latent
    total = torch.zeros_like(latent)
    commitment = codebook = latent.new_zeros(())
    codes, latents = [], []
    for level in levels:
        z_e = project(level, residual)  # (B, d, F_l)
        z_q, indices = level.decode_latents(z_e)
        # Losses on the raw rows, as in snac <= 1.1.0 (snac/vq.py); the lookup alone is L2-normalised.
        commitment = commitment + F.mse_loss(z_e, z_q.detach())
        codebook = codebook + F.mse_loss(z_q, z_e.detach())
        contribution = unproject(level, z_e + (z_q - z_e).detach())  # straight-through
        total = total + contribution
        residual = residual - contribution
        codes.append(indices)
        latents.append(z_e.detach())
    return QuantizerOutput(total, codes, latents, commitment, codebook)


def project(level: VectorQuantize, residual: Tensor) -> Tensor:
    """Average-pool `residual` (B, D, F) to the level's rate and project it to (B, d, F_l)."""
    if level.stride > 1:
        residual = F.avg_pool1d(residual, level.stride, level.stride)
    return level.in_proj(residual)


def unproject(level: VectorQuantize, z_q: Tensor) -> Tensor:
    """Project `z_q` (B, d, F_l) back to the latent and repeat it to the full frame rate (B, D, F)."""
    contribution = level.out_proj(z_q)
    return contribution.repeat_interleave(level.stride, dim=-1) if level.stride > 1 else contribution
