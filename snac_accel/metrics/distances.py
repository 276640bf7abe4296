"""Distances that need nothing but torch: mel, STFT, log spectra, SI-SDR. Cheap enough for every validation.

Shapes: B batch, T samples, F frequency bins, N frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import l1_loss

from ..audio import hann_window, mel_spectrogram, stft_magnitude
from ..losses import multi_scale_mel_loss
from .family import MetricSum, per_clip

FLOOR = 1e-5  # magnitudes below it count as it: -100 dB
NOTHING_OF_IT = -80.0  # dB
SHORTEST = 1025  # samples: a window of 2048 is centred on the first one by reflecting 1024


def mel_distance(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """DAC's seven-scale log-mel distance, the training loss `multi_scale_mel` measured clip by clip.

    Sum over windows of 32 to 2048 samples of the L1 distance of log10 mel magnitudes. From 0 (identical) upwards, lower
    is better. Source: descript-audio-codec `conf/base.yml`, Kumar et al. 2023.
    """
    return per_clip(real, fake, lambda r, f: multi_scale_mel_loss(r, f, sampling_rate=sampling_rate), shortest=SHORTEST)


def mel_distance_two_scale(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """The mel distance of DAC's evaluation script: windows 2048 and 512 with 150 and 80 mels, hop a quarter.

    L1 of mel magnitudes plus L1 of log10 of their squares (clamp 1e-5), summed over both. From 0 (identical) upwards,
    lower is better. Source: descript-audio-codec `scripts/evaluate.py`, with the defaults of MelSpectrogramLoss.
    """
    scales = ((2048, 150), (512, 80))

    def measure(r: Tensor, f: Tensor) -> Tensor:
        return torch.stack([_mel_l1(r, f, sampling_rate, window, mels) for window, mels in scales]).sum()

    return per_clip(real, fake, measure, shortest=SHORTEST)


def _mel_l1(real: Tensor, fake: Tensor, sampling_rate: int, window: int, num_mels: int) -> Tensor:
    return _spectral_l1(*(mel_spectrogram(x, sampling_rate, window, window // 4, num_mels) for x in (real, fake)))


def stft_distance(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """DAC's multi-scale STFT distance: windows 2048 and 512, hop a quarter; L1 of magnitudes plus L1 of log10 powers.

    From 0 (identical) upwards, lower is better. Source: descript-audio-codec `dac/nn/loss.py`, MultiScaleSTFTLoss (clamp 1e-5).
    """

    def measure(r: Tensor, f: Tensor) -> Tensor:
        return torch.stack([_stft_l1(r, f, window) for window in (2048, 512)]).sum()

    return per_clip(real, fake, measure, shortest=SHORTEST)


def _stft_l1(real: Tensor, fake: Tensor, window: int) -> Tensor:
    return _spectral_l1(*(stft_magnitude(x, window, window // 4) for x in (real, fake)))


def _spectral_l1(real: Tensor, fake: Tensor) -> Tensor:
    """L1 of magnitudes plus L1 of log10 powers."""
    log_fake, log_real = (x.clamp_min(FLOOR).square().log10() for x in (fake, real))
    return l1_loss(fake, real) + l1_loss(log_fake, log_real)


def log_spectral_distance_db(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """Log-spectral distance in dB: mean over frames of the root of the mean over bins of (10 log10 |S|²/|Ŝ|²)².

    Windows of 46 ms (2048 samples at 44.1 kHz), every 10 ms. From 0 (identical) upwards, lower is better; magnitudes below
    -100 dB count as -100 dB, so silence is equal to silence. Sources: Gray & Markel 1976; windows and means as in ssr_eval
    (Liu et al. 2022), whose number, without the factor 10, is this divided by 10.
    """
    window, hop = int(2048 * sampling_rate / 44100), sampling_rate // 100

    def measure(r: Tensor, f: Tensor) -> Tensor:
        difference = _decibels(r, window, hop) - _decibels(f, window, hop)  # (1, F, N)
        return difference.square().mean(1).sqrt().mean()

    return per_clip(real, fake, measure)


def _decibels(audio: Tensor, window: int, hop: int) -> Tensor:
    """(1, F, N); zeros around the clip, as in librosa."""
    samples = audio.flatten(1).float()
    shape = hann_window(window, samples.device)
    spectrum = torch.stft(samples, window, hop, window=shape, center=True, pad_mode="constant", return_complex=True)
    return 20 * spectrum.abs().clamp_min(FLOOR).log10()


def si_sdr_db(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
    """Scale-invariant signal-to-distortion ratio in dB; higher is better, unbounded (here at most about 80 for float32).

    Means are removed. Not defined for a constant (silent) original; a constant reconstruction gets -80 dB, as much as one that
    has nothing of the original, where the formula says 0 / 0. A codec is made to sound alike, not to keep the
    waveform: good ones are often near 0 dB. Source: Le Roux et al. 2019, equation 1.
    """
    return per_clip(real, fake, _si_sdr)


def _si_sdr(real: Tensor, fake: Tensor, epsilon: float = 1e-8) -> Tensor | None:
    real, fake = (x.flatten() - x.mean() for x in (real, fake))
    if real @ real <= epsilon:
        return None
    if fake @ fake <= epsilon:
        return torch.tensor(NOTHING_OF_IT)
    target = (fake @ real) / (real @ real + epsilon) * real
    noise = fake - target
    return 10 * torch.log10((target @ target + epsilon) / (noise @ noise + epsilon))
