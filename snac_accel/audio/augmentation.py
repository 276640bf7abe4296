"""Level, polarity and phase of windows: each row of a batch by its own numbers, the same whatever batch it stands in.

Shapes: B batch, T samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torchaudio
from torch import Tensor

LOUDEST_MEASURED = 0.25  # peak
BLOCK_SECONDS = 0.4  # over which ITU-R BS.1770 measures; shorter audio is repeated to that length


class Change(NamedTuple):
    """What is done to one window, in this order. As it stands: nothing, but for a peak above 1."""

    turn: float = 0.0  # of the phase, of all frequencies alike: 0.25 is a quarter turn, 0.5 upside down
    flip: bool = False  # upside down
    loudness: float | None = None  # LUFS that the window is brought to; None: left as it is
    gain_db: float = 0.0  # on top of that


def augment(audio: Tensor, changes: Sequence[Change], sampling_rate: int) -> Tensor:
    """Return windows (B, 1, T) changed row by row; the peak never passes 1, and silence stays silence.

    Row i depends on `audio[i]` and `changes[i]` alone, to the last bit: each is computed by itself.
    """
    if len(changes) != len(audio):
        raise ValueError(f"{len(audio)} windows need as many changes, not {len(changes)}")
    return torch.stack(
        [_changed(row, change, sampling_rate) for row, change in zip(audio, changes, strict=True)]
    )


def _changed(audio: Tensor, change: Change, sampling_rate: int) -> Tensor:
    """Return one window (1, T) changed."""
    audio = rotate_phase(audio, change.turn + 0.5 * change.flip)
    gain_db = change.gain_db
    if change.loudness is not None:
        measured = loudness(audio, sampling_rate)
        gain_db += change.loudness - measured if math.isfinite(measured) else 0.0
    return apply_gain(audio, gain_db)


def loudness(audio: Tensor, sampling_rate: int) -> float:
    """Return the integrated loudness of mono audio (1, T) in LUFS, -inf for silence (below -70).

    ITU-R BS.1770-4, by torchaudio: blocks of 0.4 s, gated. Audio shorter than a block is repeated to fill one.
    """
    block = round(BLOCK_SECONDS * sampling_rate)
    if audio.shape[-1] < block:
        audio = audio.repeat(1, -(-block // max(audio.shape[-1], 1)))[:, :block]
    # torchaudio's filters cut what passes full scale; a loud window is measured lower, where the gate is far away.
    lower = min(1.0, LOUDEST_MEASURED / max(float(audio.abs().max()), 1e-9))
    measured = float(torchaudio.functional.loudness(audio * lower, sampling_rate))
    return -math.inf if math.isnan(measured) else measured - 20.0 * math.log10(lower)  # nan: all below the gate


def rotate_phase(audio: Tensor, turn: float) -> Tensor:
    """Return audio (..., T) on the CPU with the phase of every frequency turned by `turn` whole turns.

    x cos a - H(x) sin a, a = 2 pi turn, with the Hilbert transform H of the window as one period (-i for positive
    frequencies). Energy and spectrum are kept, but for frequency 0 and half the rate, which have no phase: they
    shrink to cos a. Whole turns give `audio` itself, half turns -`audio`.
    """
    turn %= 1.0
    if turn in (0.0, 0.5):
        return audio if turn == 0.0 else -audio
    angle = 2.0 * math.pi * turn
    # NumPy's transform, in double precision: torch's gives other last bits with another number of threads.
    spectrum = np.fft.rfft(audio.numpy().astype(np.float64)) * -1j
    spectrum[..., 0] = 0.0
    if audio.shape[-1] % 2 == 0:
        spectrum[..., -1] = 0.0
    quadrature = torch.from_numpy(np.fft.irfft(spectrum, n=audio.shape[-1]))
    return (audio * math.cos(angle) - quadrature * math.sin(angle)).to(audio.dtype)


def apply_gain(audio: Tensor, gain_db: float = 0.0) -> Tensor:
    """Return `audio` with a gain in dB, less where the peak would pass 1; nothing is raised to full scale."""
    gain = 10.0 ** (gain_db / 20.0)
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    if peak * gain > 1.0:
        gain = 1.0 / peak
    return audio if gain == 1.0 else (audio * gain).clamp(-1.0, 1.0)  # the clamp only removes rounding
