"""Discriminators of the waveform (multi-period) and of the complex spectrogram (multi-scale STFT).

Contract of the family: audio (B, 1, T) in; `logits`, one tensor for each sub-discriminator, and `features`, one list of
hidden feature maps for each sub-discriminator, out. The logits are not among the features.

Shapes: B batch, T samples, C channels, P period, N frames, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .audio import as_batch, stft
from .fast_convolution import FastConv2d

LEAKY_SLOPE = 0.1
Output = tuple[Tensor, list[Tensor]]
FamilyOutput = tuple[list[Tensor], list[list[Tensor]]]


class PeriodDiscriminator(nn.Module):
    """Looks at every P-th sample: audio folded to (B, 1, T / P, P), convolved along time only.

    Source: HiFi-GAN (Kong et al. 2020), section 2.3; leaky slope 0.1, kernel 5, stride 3.
    """

    def __init__(self, period: int, channels: Sequence[int] = (32, 128, 512, 1024, 1024)) -> None:
        super().__init__()
        if period < 1:
            raise ValueError(f"period is {period}, should be at least 1")
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        self.convs = nn.ModuleList(
            weight_norm(FastConv2d(i, o, (5, 1), (stride, 1), (2, 0)))
            for i, o, stride in zip([1, *channels[:-1]], channels, strides, strict=True)
        )
        self.conv_post = weight_norm(FastConv2d(channels[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, audio: Tensor) -> Output:
        """(B, 1, T) -> logits (B, 1, N, P), features; T of at least P samples."""
        hidden = self.fold(as_batch(audio))
        features = []
        for conv in self.convs:
            hidden = functional.leaky_relu(conv(hidden), LEAKY_SLOPE)
            features.append(hidden)
        return self.conv_post(hidden), features

    def fold(self, audio: Tensor) -> Tensor:
        """(B, 1, T) -> (B, 1, ⌈T / P⌉, P), the end reflected to a whole number of periods."""
        batch, _, length = audio.shape
        check_length(length, self.period, "period discriminator")
        padding = -length % self.period
        if padding:
            audio = functional.pad(audio, (0, padding), mode="reflect")
        return audio.view(batch, 1, -1, self.period)


class MultiPeriodDiscriminator(nn.Module):
    """One `PeriodDiscriminator` for each period; prime periods overlap least (HiFi-GAN, section 2.3)."""

    def __init__(
        self, periods: Sequence[int] = (2, 3, 5, 7, 11), channels: Sequence[int] = (32, 128, 512, 1024, 1024)
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(PeriodDiscriminator(period, channels) for period in periods)

    def forward(self, audio: Tensor) -> FamilyOutput:
        """(B, 1, T) -> logits and features, one entry for each period; T of at least the largest period."""
        return collect(discriminator(audio) for discriminator in self.discriminators)


class STFTDiscriminator(nn.Module):
    """Looks at the real and imaginary part of one STFT, optionally in bands with their own weights.

    `channels` are the widths of the layers; each but the last halves time and frequency. `bands` are pairs of fractions of
    the spectrum, for example ((0, .1), (.1, .25), (.25, .5), (.5, .75), (.75, 1)) as in DAC (Kumar et al. 2023); None is one
    band. Windows of at least `fft_size // 2 + 1` samples, because the spectrogram reflects its ends.
    """

    def __init__(
        self,
        fft_size: int = 1024,
        hop_length: int = 120,
        win_length: int = 600,
        channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        bands: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.fft_size, self.hop_length, self.win_length = fft_size, hop_length, win_length
        num_bins = fft_size // 2 + 1
        self.bands = [(int(low * num_bins), int(high * num_bins)) for low, high in bands or [(0.0, 1.0)]]
        self.band_convs = nn.ModuleList(conv_stack(channels) for _ in self.bands)
        self.conv_post = weight_norm(FastConv2d(channels[-1], 1, 3, 1, 1))

    def forward(self, audio: Tensor) -> Output:
        """(B, 1, T) -> logits (B, 1, F', N'), features."""
        spectrogram = self.spectrogram(audio)  # (B, 2, F, N)
        features, ends = [], []
        for convs, (low, high) in zip(self.band_convs, self.bands, strict=True):
            hidden = spectrogram[:, :, low:high]
            for conv in convs:  # type: ignore[attr-defined]
                hidden = functional.leaky_relu(conv(hidden), LEAKY_SLOPE)
                features.append(hidden)
            ends.append(hidden)
        return self.conv_post(torch.cat(ends, dim=2)), features

    def spectrogram(self, audio: Tensor) -> Tensor:
        """Real and imaginary part of the float32 STFT as channels, (B, 2, F, N)."""
        check_length(audio.shape[-1], self.fft_size // 2 + 1, f"STFT discriminator of size {self.fft_size}")
        spectrum = stft(audio, self.fft_size, self.hop_length, self.win_length)
        return torch.stack([spectrum.real, spectrum.imag], dim=1)


class MultiScaleSTFTDiscriminator(nn.Module):
    """One `STFTDiscriminator` for each resolution: EnCodec's idea (Défossez et al. 2022) with the original module's sizes."""

    def __init__(
        self,
        fft_sizes: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (120, 240, 50),
        win_lengths: Sequence[int] = (600, 1200, 240),
        channels: Sequence[int] = (32, 128, 512, 1024, 1024),
        bands: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            STFTDiscriminator(*sizes, channels=channels, bands=bands)
            for sizes in zip(fft_sizes, hop_lengths, win_lengths, strict=True)
        )

    def forward(self, audio: Tensor) -> FamilyOutput:
        """(B, 1, T) -> logits and features, one entry for each resolution."""
        return collect(discriminator(audio) for discriminator in self.discriminators)


def conv_stack(channels: Sequence[int]) -> nn.ModuleList:
    """Layers from (B, 2, F, N): kernels 7, 5, 3, …; all but the last with stride 2 in frequency and time."""
    kernels = [7, 5, *[3] * len(channels)][: len(channels)]
    strides = [2] * (len(channels) - 1) + [1]
    return nn.ModuleList(
        weight_norm(FastConv2d(i, o, kernel, stride, kernel // 2))
        for i, o, kernel, stride in zip([2, *channels[:-1]], channels, kernels, strides, strict=True)
    )


def collect(outputs: Iterable[Output]) -> FamilyOutput:
    """[(logits, features), …] -> (all logits, all features)."""
    logits, features = zip(*outputs, strict=True)
    return list(logits), list(features)


def check_length(length: int, minimum: int, name: str) -> None:
    """Raise ValueError for windows too short for the discriminator."""
    if length < minimum:
        raise ValueError(
            f"{name} got {length} samples, needs at least {minimum}: use a longer segment_length"
        )


DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "mpd": MultiPeriodDiscriminator,
    "msstftd": MultiScaleSTFTDiscriminator,
}
