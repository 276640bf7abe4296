"""The yardstick of `step_time.py`: the original recipe, one loss after the other, in eager float32.

What it does: the generator's forward pass with the stock package's layers; for the generator's loss every
discriminator on real and on fake audio (adversarial, feature matching), the spectral losses, the two
quantizer losses, and one backward pass through everything; then the discriminators' gradients are zeroed,
every discriminator runs again on real and on detached fake audio and is back-propagated; both optimisers
step. Nothing is cached: windows and mel filters are made where they are needed, as a recipe that writes
`MelSpectrogram(...)` into its loss does.

In forward-equivalents of the discriminators, a backward pass counted as two, that is ten: four forward
passes, two for the generator's loss going back through the fake branch, four for the discriminators' loss
going back through both.

Left out is what `snac_accel.step.train_step` does beside the update: gradient norms, the check that
gradients are finite, counting and restarting codes, learning-rate schedules. Losses, weights and modules
are the same, so the update is the same up to rounding.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as functional
import torchaudio
from torch import Tensor, nn
from torch.optim import Optimizer

from snac_accel.generator import GeneratorOutput, TrainableSNAC
from snac_accel.losses import (
    MULTI_SCALE_MEL,
    SPECTRAL_LOSSES,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)


class PlainSNAC(TrainableSNAC):
    """`TrainableSNAC` with the stock package's layers: the same weights, losses and outputs."""

    def __init__(self, **model: object) -> None:
        super(TrainableSNAC, self).__init__(**model)  # past the replacement of layers


def plain_step(
    real: Tensor,
    generator: nn.Module,
    discriminators: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    *,
    loss_weights: Mapping[str, float],
    sampling_rate: int,
) -> None:
    """Update all networks from one batch, (B, 1, T); `optimizers` are "generator" and "discriminator"."""
    output: GeneratorOutput = generator(real)
    loss = adversarial_terms(real, output.audio, discriminators, loss_weights)
    loss = loss + reconstruction_terms(real, output, loss_weights, sampling_rate)
    optimizers["generator"].zero_grad()
    loss.backward()

    optimizers["discriminator"].zero_grad()  # the generator's loss has left gradients there
    fake = output.audio.detach()
    verdicts = [(module(real)[0], module(fake)[0]) for module in discriminators.values()]
    torch.stack([discriminator_loss(*logits) for logits in verdicts]).sum().backward()

    for optimizer in optimizers.values():
        optimizer.step()


def adversarial_terms(
    real: Tensor, fake: Tensor, discriminators: Mapping[str, nn.Module], weights: Mapping[str, float]
) -> Tensor:
    """Weighted adversarial and feature-matching losses of all discriminators, a scalar."""
    total = fake.new_zeros(())
    for module in discriminators.values():
        _, real_features = module(real)
        fake_logits, fake_features = module(fake)
        total = total + weights["adversarial"] * generator_loss(fake_logits)
        total = total + weights["feature_matching"] * feature_matching_loss(real_features, fake_features)
    return total


def reconstruction_terms(
    real: Tensor, output: GeneratorOutput, weights: Mapping[str, float], sampling_rate: int
) -> Tensor:
    """Weighted spectral and quantizer losses, a scalar; losses of weight 0 are not computed."""
    total = weights["commitment"] * output.commitment + weights["codebook"] * output.codebook
    for name, loss in (SPECTRAL_LOSSES | {"multi_scale_mel": multi_scale_mel_loss}).items():
        if weights.get(name, 0.0) > 0:
            total = total + weights[name] * loss(real, output.audio, sampling_rate=sampling_rate)
    return total


def multi_scale_mel_loss(real: Tensor, fake: Tensor, *, sampling_rate: int) -> Tensor:
    """`snac_accel.losses.multi_scale_mel_loss` with torchaudio's own module, made for each scale and call."""
    total = fake.new_zeros(())
    for window, num_mels in MULTI_SCALE_MEL:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*mel filterbank has all zero values.*")
            transform = torchaudio.transforms.MelSpectrogram(
                sampling_rate,
                n_fft=window,
                hop_length=window // 4,
                n_mels=num_mels,
                power=1.0,
                norm="slaney",
                mel_scale="slaney",
                wkwargs={"dtype": real.dtype},
            ).to(real)
        real_mel, fake_mel = (transform(audio.squeeze(1)).clamp_min(1e-5).log10() for audio in (real, fake))
        total = total + functional.l1_loss(fake_mel, real_mel)
    return total
