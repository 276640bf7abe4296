"""Codec metrics that add up: each returns a sum over clips and their number, so ranks and batches combine exactly.

Every metric is `f(real, fake, sampling_rate=…)` on (B, 1, T), real first. Shapes: B batch, T samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from .audio import as_batch, stft_magnitude
from .losses import multi_scale_mel_loss


class MetricSum(NamedTuple):
    """A sum over clips and the number of clips."""

    total: float
    num_clips: int


def mel_distance(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """DAC's seven-scale log-mel distance, the training loss `multi_scale_mel` measured clip by clip.

    From 0 (identical) upwards, lower is better. Source: descript-audio-codec `conf/base.yml`.
    """
    return _per_clip(real, fake, lambda r, f: multi_scale_mel_loss(r, f, sampling_rate=sampling_rate))


def stft_distance(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """DAC's multi-scale STFT distance: windows 2048 and 512, hop a quarter; L1 of magnitudes plus L1 of log10 powers.

    From 0 (identical) upwards, lower is better. Source: descript-audio-codec `dac/nn/loss.py`, MultiScaleSTFTLoss (clamp 1e-5).
    """
    return _per_clip(
        real, fake, lambda r, f: sum((_stft_l1(r, f, window) for window in (2048, 512)), torch.zeros(()))
    )


def si_sdr_db(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """Scale-invariant signal-to-distortion ratio in dB; higher is better, unbounded (here at most about 80 for float32).

    Means are removed. Source: Le Roux et al. 2019, equation 1.
    """
    return _per_clip(real, fake, _si_sdr)


def _si_sdr(real: Tensor, fake: Tensor, epsilon: float = 1e-8) -> Tensor:
    real, fake = (x.flatten() - x.mean() for x in (real, fake))
    target = (fake @ real) / (real @ real + epsilon) * real
    noise = fake - target
    return 10 * torch.log10((target @ target + epsilon) / (noise @ noise + epsilon))


def _stft_l1(real: Tensor, fake: Tensor, window: int) -> Tensor:
    real, fake = (stft_magnitude(x, window, window // 4) for x in (real, fake))
    log_fake, log_real = (x.clamp_min(1e-5).square().log10() for x in (fake, real))
    return l1_loss(fake, real) + l1_loss(log_fake, log_real)


@torch.no_grad()
def _per_clip(real: Tensor, fake: Tensor, metric: Callable[[Tensor, Tensor], Tensor]) -> MetricSum:
    pairs = zip(as_batch(real).split(1), as_batch(fake).split(1), strict=True)
    with torch.autocast(real.device.type, enabled=False):
        values = [float(metric(r, f)) for r, f in pairs]
    return MetricSum(sum(values), len(values))


METRICS: dict[str, Callable[..., MetricSum]] = {
    "mel_distance": mel_distance,
    "stft_distance": stft_distance,
    "si_sdr_db": si_sdr_db,
}
