"""What stays in float32 under autocast: quantizer, last layer, spectra, and the means of the losses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snac_accel.audio import mel_spectrogram, stft_magnitude
from snac_accel.discriminators import MultiScaleSTFTDiscriminator
from snac_accel.losses import (
    SPECTRAL_LOSSES,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from snac_accel.metrics import METRICS, VALIDATION_METRICS
from tiny import make_discriminators, make_generator

LOW = [torch.bfloat16, torch.float16]


@pytest.fixture
def pair(speech: Tensor) -> tuple[Tensor, Tensor]:
    """Real speech and a reconstruction that is a little off: two of (4, 1, 4096)."""
    real = speech[:4, :, :4096]
    return real, (real + 0.01 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", SPECTRAL_LOSSES)
def test_spectral_losses_are_those_of_float32(name: str, dtype: torch.dtype, pair: tuple[Tensor, Tensor]) -> None:
    real, fake = pair
    expected = SPECTRAL_LOSSES[name](real, fake, sampling_rate=16000)
    with torch.autocast("cpu", dtype):
        found = SPECTRAL_LOSSES[name](real, fake, sampling_rate=16000)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", VALIDATION_METRICS)
def test_metrics_are_those_of_float32(name: str, dtype: torch.dtype, pair: tuple[Tensor, Tensor]) -> None:
    real, fake = pair
    expected = METRICS[name](real, fake, sampling_rate=16000).total
    with torch.autocast("cpu", dtype):
        assert METRICS[name](real, fake, sampling_rate=16000).total == expected


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(
    "transform",
    [lambda audio: stft_magnitude(audio, 512, 128), lambda audio: mel_spectrogram(audio, 16000, 512, 128, 40)],
    ids=["stft", "mel"],
)
def test_spectral_transforms_are_those_of_float32(
    transform: Callable[[Tensor], Tensor], dtype: torch.dtype, pair: tuple[Tensor, Tensor]
) -> None:
    expected = transform(pair[0])
    with torch.autocast("cpu", dtype):
        assert torch.equal(transform(pair[0]), expected)


@pytest.mark.parametrize("dtype", LOW)
def test_quantizer_and_last_layer_compute_in_float32(dtype: torch.dtype, speech: Tensor) -> None:
    generator = make_generator(noise=False)
    latent = generator.encode_latent(speech[:2, :, :4096])
    expected = generator.quantize(latent)
    audio = generator.reconstruct(expected.quantized)
    with torch.autocast("cpu", dtype):
        found = generator.quantize(latent)
        output = generator(speech[:2, :, :4096])
        assert generator.decoder.model[1](found.quantized).dtype == dtype  # autocast is really on
    assert torch.equal(found.quantized, expected.quantized)
    assert all(torch.equal(one, other) for one, other in zip(found.codes, expected.codes, strict=True))
    assert found.commitment == expected.commitment and found.codebook == expected.codebook
    for tensor in (output.audio, output.commitment, output.codebook, *output.latents):
        assert tensor.dtype == torch.float32
    assert output.audio.shape == audio.shape


@pytest.mark.parametrize("dtype", LOW)
def test_loss_means_are_taken_in_float32(dtype: torch.dtype) -> None:
    """A hundred thousand logits near 2: their squares add up to more than float16 holds, and than bfloat16 resolves."""
    logits = [2 + 0.01 * torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))]
    low = [logit.to(dtype) for logit in logits]
    exact = [logit.double() for logit in low]
    with torch.autocast("cpu", dtype):
        losses = [
            generator_loss(low),
            discriminator_loss(low, low),
            feature_matching_loss([low], [[-logit for logit in low]]),
        ]
    expected = [
        generator_loss(exact),
        discriminator_loss(exact, exact),
        feature_matching_loss([exact], [[-logit for logit in exact]]),
    ]
    for loss, reference in zip(losses, expected, strict=True):
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(float(reference), rel=1e-5)


@pytest.mark.parametrize("dtype", LOW)
def test_the_stft_discriminators_spectra_are_those_of_float32(dtype: torch.dtype, speech: Tensor) -> None:
    """Its convolutions may be rounded; what they see may not."""
    seen: list[Tensor] = []
    module = make_discriminators()["msstftd"]
    assert isinstance(module, MultiScaleSTFTDiscriminator)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
            break
    module(speech[:2, :, :4096])
    with torch.autocast("cpu", dtype):
        module(speech[:2, :, :4096])
    assert seen[1].dtype == torch.float32 and torch.equal(seen[0], seen[1])
