"""Speech quality without a reference: DNSMOS, two networks that predict what listeners would say of a recording.

The package `speechmos` brings the networks; they run in onnxruntime on one thread. What it computes around them is repeated here,
because its own code wants librosa. Shapes: T samples at 16 kHz.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..audio import hann_window, mel_filter_bank
from .family import Samples

RATE = 16000
WINDOW = int(9.01 * RATE)  # what the networks listen to at once
CALIBRATION = (-0.06766283, 1.11546468, 0.04602535)  # from the network's overall mark to the scale of the listeners


class Marks(NamedTuple):
    """Means over the windows of a clip, on the listeners' scale of 1 to 5."""

    overall: float  # P.835
    p808: float


def dnsmos(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """DNSMOS P.835, overall quality, of the reconstruction alone: 1 to 5, higher is better; clean speech gets 3 to 3.5.

    Windows of 9.01 s, one a second; shorter clips are repeated. Source: Reddy et al. 2022, package `speechmos`.
    """
    return marks(fake.tobytes()).overall


def dnsmos_p808(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """DNSMOS P.808, overall quality, of the reconstruction alone: 1 to 5, higher is better; clean speech gets 3.5 to 4.

    The older network, on mel spectrograms. Source: Reddy et al. 2021, package `speechmos`.
    """
    return marks(fake.tobytes()).p808


@lru_cache(maxsize=8)
def marks(samples: bytes) -> Marks:
    """Of float32 samples at 16 kHz; kept, because two metrics ask for the same clip."""
    audio = np.clip(np.frombuffer(samples, dtype=np.float32), -1, 1)
    while len(audio) < WINDOW:
        audio = np.append(audio, audio)
    starts = range(0, int(len(audio) // RATE - 9.01) * RATE + 1, RATE)
    found = [_of_window(audio[start : start + WINDOW]) for start in starts if start + WINDOW <= len(audio)]
    return Marks(*(float(np.mean(values)) for values in zip(*found, strict=True)))


def _of_window(audio: Samples) -> Marks:
    _, _, overall = _network("sig_bak_ovr").run(None, {"input_1": audio[None]})[0][0]
    spectrum = _mel_decibels(torch.from_numpy(audio[:-160].copy())).numpy()
    p808 = _network("model_v8").run(None, {"input_1": spectrum[None]})[0][0][0]
    return Marks(float(np.polyval(CALIBRATION, overall)), float(p808))


def _mel_decibels(audio: Tensor) -> Tensor:
    """(frames, 120): dB under the loudest bin, at most 80, then (dB + 40) / 40; as librosa's melspectrogram and power_to_db."""
    window = hann_window(321, audio.device)
    spectrum = torch.stft(audio, 321, 160, window=window, center=True, pad_mode="constant", return_complex=True)
    filters = mel_filter_bank(RATE, 642, 120, audio.device)[::2]  # the bins of an odd window are every second of twice its length
    power = filters.T @ spectrum.abs().square()
    decibels = 10 * (power.clamp_min(1e-10) / power.max().clamp_min(1e-10)).log10()
    return (decibels.clamp_min(-80).T + 40) / 40


@lru_cache(maxsize=2)
def _network(name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    path = files("speechmos") / "dnsmos_models" / f"{name}.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
