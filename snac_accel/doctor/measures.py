"""What is measured on the audio of a clip: pure functions of samples, without files and settings.

Shapes: T samples, C channels, N windows, K bands of `BAND_HZ`. Levels are relative to full scale, 1.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

SILENT_PEAK = 2.0**-15  # one step of 16 bits: nothing below it was recorded
FULL_SCALE = 1.0 - 2.0**-14  # two steps of 16 bits below 1: a clipped wave stays there
CLIPPED_RUN = 3  # samples in a row; a loud tone that is not clipped touches full scale for one or two
FRAME_SECONDS = 0.05
BAND_HZ = 125.0
BINS_PER_BAND = 4
BANDWIDTH_DB = (
    60.0  # below the loudest band; the hiss of 16 bits is 75 to 95 dB below it in normal recordings
)
CLIFF_DB = 20.0  # a fall that no voice, room or microphone makes within a fifth of an octave
MIN_CLIFF_HZ = 1000.0


def silence_share(audio: Tensor, sampling_rate: int) -> float:
    """Share (0 to 1) of the whole frames of 50 ms of `audio` (T,) in which nothing reaches `SILENT_PEAK`."""
    length = min(len(audio), max(1, round(FRAME_SECONDS * sampling_rate)))
    if length == 0:
        return 1.0
    peaks = audio.abs().unfold(0, length, length).amax(1)
    return float((peaks <= SILENT_PEAK).float().mean())


def count_clipped_runs(frames: Tensor) -> int:
    """Number of runs of at least `CLIPPED_RUN` samples at full scale, over all channels of `frames` (T, C)."""
    full = (frames.abs() >= FULL_SCALE).to(torch.int8)
    if not bool(full.any()):
        return 0
    edge = torch.zeros(1, full.shape[1], dtype=torch.int8)
    steps = torch.cat([edge, full, edge]).diff(dim=0).T  # (C, T + 1): 1 where a run begins, -1 after its end
    begins, ends = (steps == 1).nonzero()[:, 1], (steps == -1).nonzero()[:, 1]
    return int((ends - begins >= CLIPPED_RUN).sum())


def dc_offset(frames: Tensor) -> float:
    """Largest absolute mean of a channel of `frames` (T, C); 0 is best."""
    return float(frames.double().mean(dim=0).abs().max())


def mono_loss_db(frames: Tensor) -> float:
    """How much weaker the mean of the channels of `frames` (T, C) is than the channels, in dB of power.

    0 for equal channels, 3 for two unrelated ones or where one of two is silent, 60 (the most) where they cancel.
    """
    power = float(frames.double().square().mean())
    mono = float(frames.double().mean(dim=1).square().mean())
    return 10.0 * math.log10(power / max(mono, 1e-6 * power)) if power > 0 else 0.0


def band_powers(audio: Tensor, sampling_rate: int) -> Tensor:
    """Long-term power of `audio` (T,) in bands of 125 Hz, (K,) up to half the sampling rate; scaled to a sum of 1.

    Welch's method: Hann windows of at least four bins a band, half overlapping, their means removed. All zeros if
    there is no sound.
    """
    size = 2 ** math.ceil(math.log2(BINS_PER_BAND * sampling_rate / BAND_HZ))
    segments = torch.nn.functional.pad(audio, (0, max(0, size - len(audio)))).unfold(0, size, size // 2)
    segments = segments - segments.mean(dim=1, keepdim=True)
    power = torch.fft.rfft(segments * torch.hann_window(size)).abs().double().square().mean(dim=0)
    num_bands = int(sampling_rate / 2 / BAND_HZ)
    band = (torch.arange(len(power)) * (sampling_rate / size / BAND_HZ)).long().clamp_max(num_bands - 1)
    ones = torch.ones_like(power)
    zeros = torch.zeros(num_bands, dtype=torch.float64)
    means = zeros.index_add(0, band, power) / zeros.index_add(0, band, ones).clamp_min(1.0)
    return means / means.sum() if float(means.sum()) > 0 else means


def effective_bandwidth(powers: Tensor) -> float | None:
    """Frequency in Hz up to which there is sound in band `powers` (K,); None if there is none.

    The lower of two: the highest band within `BANDWIDTH_DB` of the loudest; and the first frequency from 1 kHz on
    above which everything stays `CLIFF_DB` below the band under it (the median of the 15 % below). The first finds
    the end of sound in a quiet recording, the second the cut of audio that was upsampled or coded at a low rate,
    also where noise fills the rest.
    """
    peak = float(powers.max())
    if peak <= 0:
        return None
    levels = 10.0 * np.log10(np.maximum(powers.numpy() / peak, 1e-14))
    above = np.maximum.accumulate(levels[::-1])[::-1]  # loudest band from here on
    by_level = int(np.flatnonzero(levels > -BANDWIDTH_DB)[-1]) + 1
    for band in range(int(MIN_CLIFF_HZ / BAND_HZ), by_level):
        beyond = math.ceil(band * 1.03)
        if beyond >= len(levels):
            break
        if np.median(levels[int(band * 0.85) : band]) - above[beyond] > CLIFF_DB:
            return band * BAND_HZ
    return by_level * BAND_HZ


def content_hash(frames: Tensor) -> str:
    """Hash of the samples of `frames` (T, C), to 16 bits: the same sound in a wav and in a flac has the same."""
    rounded = (frames.clamp(-4, 4) * 2.0**13).round().to(torch.int16).contiguous()
    return hashlib.blake2b(rounded.numpy().tobytes(), digest_size=16).hexdigest()
