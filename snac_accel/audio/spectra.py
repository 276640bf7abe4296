"""STFT and mel spectrograms with windows and filters cached per device.

Shapes: B batch, T samples, F frequency bins (`fft_size // 2 + 1`). Everything runs in float32 at least:
transforms lose too much in half precision, so autocast is switched off inside (float64 stays float64).
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
import torchaudio
from torch import Tensor


def as_batch(audio: Tensor) -> Tensor:
    """Return `audio`, (B, T) or (B, 1, T), as (B, 1, T); raise ValueError naming any other shape."""
    if audio.ndim == 2:
        return audio.unsqueeze(1)
    if audio.ndim == 3 and audio.shape[1] == 1:
        return audio
    raise ValueError(f"audio must have shape (B, T) or (B, 1, T), not {tuple(audio.shape)}")


@lru_cache(maxsize=64)
def hann_window(length: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the periodic Hann window (length,), built once per device."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training afterwards
        return torch.hann_window(length, device=device, dtype=dtype)


@lru_cache(maxsize=64)
def mel_filter_bank(
    sampling_rate: int,
    fft_size: int,
    num_mels: int,
    device: torch.device,
    f_min: float = 0.0,
    f_max: float | None = None,
) -> Tensor:
    """Return mel filters (F, num_mels), float32, Slaney's scale and normalisation, built once per device.

    Same definition as `librosa.filters.mel`, which DAC uses. `f_max` is in Hz, half the sampling rate by
    default.
    """
    with torch.inference_mode(False), warnings.catch_warnings():
        # DAC's finest scales have more mels than bins at the low end: some filters are empty, and meant to
        # be.
        warnings.filterwarnings("ignore", message=".*mel filterbank has all zero values.*")
        filters = torchaudio.functional.melscale_fbanks(
            fft_size // 2 + 1,
            f_min,
            f_max if f_max is not None else sampling_rate / 2,
            num_mels,
            sampling_rate,
            norm="slaney",
            mel_scale="slaney",
        )
        return filters.to(device)


def stft(audio: Tensor, fft_size: int, hop_length: int, win_length: int | None = None) -> Tensor:
    """Return the complex spectrogram (B, F, frames) of `audio` (B, T) or (B, 1, T).

    Periodic Hann window of `win_length` (default `fft_size`) samples, frames centred by reflecting at both
    ends, not normalised; `T // hop_length + 1` frames. Raises ValueError if the audio is too short to be
    reflected.
    """
    waveform = as_batch(audio).squeeze(1)
    if waveform.shape[-1] <= fft_size // 2:
        raise ValueError(
            f"an STFT of {fft_size} samples needs more than {fft_size // 2} samples, not {waveform.shape[-1]}"
        )
    with torch.autocast(waveform.device.type, enabled=False):
        waveform = waveform if waveform.dtype == torch.float64 else waveform.float()
        window = hann_window(win_length or fft_size, waveform.device, waveform.dtype)
        return torch.stft(
            waveform,
            fft_size,
            hop_length,
            win_length or fft_size,
            window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )


def stft_magnitude(audio: Tensor, fft_size: int, hop_length: int, win_length: int | None = None) -> Tensor:
    """Return the magnitude spectrogram (B, F, frames) of `audio` (B, T) or (B, 1, T); see `stft`."""
    with torch.autocast(audio.device.type, enabled=False):
        return stft(audio, fft_size, hop_length, win_length).abs()


def mel_spectrogram(
    audio: Tensor,
    sampling_rate: int,
    fft_size: int,
    hop_length: int,
    num_mels: int,
    *,
    win_length: int | None = None,
    power: float = 1.0,
    f_min: float = 0.0,
    f_max: float | None = None,
) -> Tensor:
    """Return the mel spectrogram (B, num_mels, frames) of `audio` (B, T) or (B, 1, T): no logarithm.

    `power` 1 sums magnitudes (as DAC does), 2 sums powers.
    """
    with torch.autocast(audio.device.type, enabled=False):
        magnitude = stft_magnitude(audio, fft_size, hop_length, win_length)
        spectrum = magnitude if power == 1.0 else magnitude.pow(power)
        filters = mel_filter_bank(sampling_rate, fft_size, num_mels, magnitude.device, f_min, f_max)
        return torch.matmul(filters.T.to(spectrum.dtype), spectrum)
