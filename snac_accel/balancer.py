"""The gradient balancer: each loss pulls at the audio with the strength of its weight, whatever the scale of its gradient.

Let gᵢ be the gradient of loss i with respect to the reconstructed audio, λᵢ its weight, and ⟨‖gᵢ‖⟩ the moving average of its
norm. Then the generator is given

    Σᵢ  R · λᵢ / Σⱼ λⱼ · gᵢ / ⟨‖gᵢ‖⟩

Source: EnCodec (Défossez et al. 2022), section 3.4, where R = 1 and the average decays by 0.999. Norms are of one clip's
gradient of one clip's loss, averaged over the clips of all ranks and micro-batches, so that the layout of a step does not
matter. EnCodec's code adds up the clips of a batch where here they are averaged: its R = 1 with 16 clips is R = 16 here.

The average is that of the steps before: gradients of early micro-batches are used before those of later ones are known. Where
there is none yet, at the start or when a loss begins, the step's own norms are measured first, in a pass of its own.
The quantizer losses do not act on the audio, and are not balanced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .losses import DISCRIMINATOR_LOSSES, SPECTRAL_LOSSES

TERMS = (*DISCRIMINATOR_LOSSES, *SPECTRAL_LOSSES)  # the losses on the audio
SMALLEST = 1e-12  # a norm, of silence for instance; as in EnCodec's code


class Balancer:
    """Moving averages of the norms of the losses' gradients; the same on every rank."""

    def __init__(self, total_norm: float = 1.0, decay: float = 0.999) -> None:
        self.total_norm, self.decay = total_norm, decay
        self.sums: dict[str, float] = {}  # of norms, each weighted by its age
        self.weights: dict[str, float] = {}  # sums of these weights: the average does not begin at 0

    def usual(self, name: str) -> float | None:
        """The average norm of a loss; None: not known yet."""
        return self.sums[name] / self.weights[name] if self.weights.get(name) else None

    def knows(self, names: Iterable[str]) -> bool:
        """Whether all of these losses have a norm."""
        return all(self.usual(name) is not None for name in names)

    def observe(self, norms: Mapping[str, float]) -> None:
        """Take the mean norms of a step, over all ranks; those that are not finite are passed over."""
        for name, norm in norms.items():
            if math.isfinite(norm):
                self.sums[name] = self.decay * self.sums.get(name, 0.0) + norm
                self.weights[name] = self.decay * self.weights.get(name, 0.0) + 1.0

    def combine(self, gradients: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
        """The balanced sum of gradients (B, 1, T) by loss."""
        total = sum(weights[name] for name in gradients)
        shares = {name: weights[name] / total / max(self.usual(name) or 1.0, SMALLEST) for name in gradients}
        return torch.stack([self.total_norm * shares[name] * gradient for name, gradient in gradients.items()]).sum(0)

    def progress(self) -> dict[str, list[float]]:
        """What a checkpoint keeps."""
        return {name: [self.sums[name], self.weights[name]] for name in sorted(self.sums)}

    def load_progress(self, saved: Mapping[str, Any]) -> None:
        """Take back what `progress` gave."""
        self.sums = {name: float(pair[0]) for name, pair in saved.items()}
        self.weights = {name: float(pair[1]) for name, pair in saved.items()}


def row_norms(gradients: Mapping[str, Tensor], loss_scale: float = 1.0) -> Tensor:
    """The sum over the clips of each clip's norm, for each of `TERMS`, then the number of clips for each: (2 · terms,).

    `gradients` (B, 1, T) are of means over B clips, times the `loss_scale` of float16.
    """
    first = next(iter(gradients.values()))
    dtype = torch.promote_types(first.dtype, torch.float32)
    sums = first.new_zeros(2 * len(TERMS), dtype=dtype)
    for name, gradient in gradients.items():
        place, clips = TERMS.index(name), len(gradient)
        norms = torch.linalg.vector_norm(gradient.to(dtype).flatten(1), dim=1)
        sums[place] = norms.sum() * clips / loss_scale
        sums[len(TERMS) + place] = clips
    return sums


def mean_norms(sums: Sequence[float]) -> dict[str, float]:
    """The means from `row_norms`, added up over ranks and micro-batches; losses without clips are left out."""
    pairs = zip(TERMS, sums[: len(TERMS)], sums[len(TERMS) :], strict=True)
    return {name: total / clips for name, total, clips in pairs if clips}
