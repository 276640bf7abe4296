"""Losses of SNAC's training: adversarial, feature matching, spectral reconstruction.

Every loss takes `real` before `fake` and returns a scalar. All of them are means over batch and time (or sums of such means
over layers and scales), so that the mean over micro-batches of equal size is the loss of the whole batch. Everything
is computed in float32, whatever the autocast type.

Shapes: B batch, T samples, F frequency bins, N frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from .audio import mel_spectrogram, stft_magnitude

Logits = Sequence[Tensor]  # one tensor for each sub-discriminator, any shape
Features = Sequence[Sequence[Tensor]]  # one list of feature maps for each sub-discriminator


def discriminator_loss(real: Logits, fake: Logits) -> Tensor:
    """Least-squares loss of the discriminator: sum over sub-discriminators of mean (1 - D(real))² + mean D(fake)².

    Best 0. Source: LSGAN (Mao et al. 2017), as in HiFi-GAN (Kong et al. 2020), equation 2.
    """
    return _sum((1 - _full(r)).square().mean() + _full(f).square().mean() for r, f in _pairs(real, fake))


def generator_loss(fake: Logits) -> Tensor:
    """Least-squares adversarial loss of the generator: sum over sub-discriminators of mean (1 - D(fake))².

    Best 0. Source: HiFi-GAN (Kong et al. 2020), equation 3.
    """
    return _sum((1 - _full(f)).square().mean() for f in fake)


def feature_matching_loss(real: Features, fake: Features) -> Tensor:
    """Mean absolute difference of feature maps, summed over the layers of all sub-discriminators; no gradient into `real`.

    Identical audio gives 0. Source: MelGAN (Kumar et al. 2019), as weighted in DAC (layers summed, not averaged).
    """
    return _sum(
        functional.l1_loss(_full(f), _full(r.detach()))
        for real_layers, fake_layers in _pairs(real, fake)
        for r, f in _pairs(real_layers, fake_layers)
    )


def mel_spectrogram_loss(
    real: Tensor,
    fake: Tensor,
    *,
    sampling_rate: int = 24000,
    fft_size: int = 1024,
    hop_length: int = 256,
    num_mels: int = 80,
    clamp: float = 1e-5,
) -> Tensor:
    """L1 distance of the log10 mel spectrograms of `real` and `fake`, (B, 1, T) or (B, T); identical audio gives 0.

    Mel filters are Slaney's from 0 Hz to half the sampling rate, magnitudes are clamped at `clamp` before the logarithm.
    """
    real_mel, fake_mel = (
        mel_spectrogram(audio, sampling_rate, fft_size, hop_length, num_mels) for audio in (real, fake)
    )
    return functional.l1_loss(_log10(fake_mel, clamp), _log10(real_mel, clamp))


MULTI_SCALE_MEL = (
    (32, 5),
    (64, 10),
    (128, 20),
    (256, 40),
    (512, 80),
    (1024, 160),
    (2048, 320),
)  # (window, mels)


def multi_scale_mel_loss(real: Tensor, fake: Tensor, *, sampling_rate: int = 24000) -> Tensor:
    """DAC's multi-scale mel loss: `mel_spectrogram_loss` summed over seven windows of 32 to 2048 samples, hop a quarter.

    Identical audio gives 0. Source: descript-audio-codec `conf/base.yml` (MelSpectrogramLoss: log weight 1, magnitude
    weight 0, power 1, clamp 1e-5), Kumar et al. 2023.
    """
    return _sum(
        mel_spectrogram_loss(
            real, fake, sampling_rate=sampling_rate, fft_size=window, hop_length=window // 4, num_mels=mels
        )
        for window, mels in MULTI_SCALE_MEL
    )


MULTI_RESOLUTION_STFT = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # (fft size, hop, window)


def stft_loss(
    real: Tensor,
    fake: Tensor,
    *,
    sampling_rate: int = 24000,
    resolutions: Sequence[tuple[int, int, int]] = MULTI_RESOLUTION_STFT,
    clamp: float = 1e-5,
) -> Tensor:
    """Multi-resolution STFT loss: spectral convergence plus L1 of log magnitudes, averaged over resolutions.

    Spectral convergence ‖|S| - |Ŝ|‖ / ‖|S|‖ is taken per sample of the batch and then averaged, so that micro-batches add
    up. Resolutions are in samples, whatever `sampling_rate` is. Identical audio gives 0. Source: Parallel WaveGAN
    (Yamamoto et al. 2020), equations 5-8, natural logarithm.
    """
    return _sum(_single_stft_loss(real, fake, *resolution, clamp) for resolution in resolutions) / len(
        resolutions
    )


def _single_stft_loss(
    real: Tensor, fake: Tensor, fft_size: int, hop: int, window: int, clamp: float
) -> Tensor:
    real_magnitude, fake_magnitude = (
        stft_magnitude(audio, fft_size, hop, window) for audio in (real, fake)
    )  # (B, F, N)
    difference = torch.linalg.vector_norm(real_magnitude - fake_magnitude, dim=(1, 2))  # (B,)
    reference = torch.linalg.vector_norm(real_magnitude, dim=(1, 2)).clamp_min(clamp)
    log_distance = functional.l1_loss(
        fake_magnitude.clamp_min(clamp).log(), real_magnitude.clamp_min(clamp).log()
    )
    return (difference / reference).mean() + log_distance


def _log10(values: Tensor, clamp: float) -> Tensor:
    return values.clamp_min(clamp).log10()


def _full(values: Tensor) -> Tensor:
    """At least float32, so that means over many values keep their digits."""
    return values if values.dtype == torch.float64 else values.float()


def _pairs(real: Sequence[Any], fake: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    if len(real) != len(fake):
        raise ValueError(
            f"real has {len(real)} entries and fake {len(fake)}: they must come from the same discriminator"
        )
    return zip(real, fake)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum()


Verdict = tuple[Logits, Features]  # what a discriminator returns
DISCRIMINATOR_LOSSES: dict[str, Callable[[Verdict, Verdict], Tensor]] = {  # f(verdict on real, verdict on fake)
    "adversarial": lambda real, fake: generator_loss(fake[0]),
    "feature_matching": lambda real, fake: feature_matching_loss(real[1], fake[1]),
}
SPECTRAL_LOSSES: dict[str, Callable[..., Tensor]] = {  # f(real, fake, sampling_rate=...)
    "multi_scale_mel": multi_scale_mel_loss,
    "mel": mel_spectrogram_loss,
    "stft": stft_loss,
}
