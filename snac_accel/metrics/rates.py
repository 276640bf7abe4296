"""What a codec costs: tokens and bits per second, nominal and by entropy, and how fast it is.

Everything is kept as counts and sums, so that clips, batches and ranks add up. Shapes: L levels, K codebook size, T samples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LevelRate(NamedTuple):
    """Of one level of quantization."""

    tokens_per_second: float  # sampling rate / (hop × stride)
    nominal: float  # bit/s: log2(K) for each token
    empirical: float  # bit/s: the entropy of the codes that were used, for each token; at most the nominal

    @property
    def efficiency(self) -> float:
        """Share of the nominal bits that carry something, 0 to 1."""
        return self.empirical / self.nominal


class Rates(NamedTuple):
    """Of all levels, coarse to fine."""

    levels: list[LevelRate]

    @property
    def tokens_per_second(self) -> float:
        """Of all levels together."""
        return sum(level.tokens_per_second for level in self.levels)

    @property
    def nominal(self) -> float:
        """The bitrate that papers give, in bit/s."""
        return sum(level.nominal for level in self.levels)

    @property
    def empirical(self) -> float:
        """What an entropy coder with one fixed table per level would need, in bit/s."""
        return sum(level.empirical for level in self.levels)

    def scalars(self) -> dict[str, float]:
        """Everything as `rate/…` for logs and tables."""
        named = {
            "rate/tokens_per_second": self.tokens_per_second,
            "rate/nominal_bits_per_second": self.nominal,
            "rate/empirical_bits_per_second": self.empirical,
        }
        for index, level in enumerate(self.levels):
            named[f"rate/level_{index}/tokens_per_second"] = level.tokens_per_second
            named[f"rate/level_{index}/nominal_bits_per_second"] = level.nominal
            named[f"rate/level_{index}/empirical_bits_per_second"] = level.empirical
        return named


def entropy_bits(counts: Tensor) -> Tensor:
    """Entropy in bits per token of the distributions `counts` (…, K): 0 (one code, or none) to log2(K).

    The estimate of Shannon 1948 from frequencies. It is too low by about K' / (1.39 × tokens) bits for K' codes in use: with
    4096 codes take at least 40,000 tokens before you believe it to a tenth of a bit.
    """
    counts = counts.cpu().double()  # few numbers; not every device has float64
    probabilities = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    return torch.special.entr(probabilities).sum(-1) / math.log(2)


def measure_rates(counts: Tensor, *, sampling_rate: int, hop_length: int, vq_strides: Sequence[int]) -> Rates:
    """Rates of a codec whose codes were chosen `counts` (L, K) times, summed over all clips and ranks.

    `hop_length` is in samples per frame, a level's stride in frames per token.
    """
    if len(counts) != len(vq_strides):
        raise ValueError(f"counts of {len(counts)} levels do not go with {len(vq_strides)} strides")
    nominal_bits = math.log2(counts.shape[-1])
    levels = []
    for stride, bits in zip(vq_strides, entropy_bits(counts).tolist(), strict=True):
        tokens = sampling_rate / (hop_length * stride)
        levels.append(LevelRate(tokens, tokens * nominal_bits, tokens * bits))
    return Rates(levels)


class Speed(NamedTuple):
    """Seconds of audio, and of the clock to encode and decode them."""

    audio_seconds: float = 0.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0

    def plus(self, other: Speed) -> Speed:
        """Both together."""
        return Speed(*(one + another for one, another in zip(self, other, strict=True)))

    @property
    def encode_factor(self) -> float:
        """Real-time factor: seconds to encode a second of audio. Below 1 it is faster than the sound, lower is better."""
        return self.encode_seconds / self.audio_seconds if self.audio_seconds else math.nan

    @property
    def decode_factor(self) -> float:
        """Real-time factor: seconds to decode a second of audio."""
        return self.decode_seconds / self.audio_seconds if self.audio_seconds else math.nan


class Timed(NamedTuple):
    """What came out, and how long it took."""

    codes: list[Tensor]
    audio: Tensor
    speed: Speed


def time_codec(
    encode: Callable[[Tensor], list[Tensor]], decode: Callable[[list[Tensor]], Tensor], audio: Tensor, *, sampling_rate: int
) -> Timed:
    """Encode and decode `audio` (B, 1, T) by the clock; a GPU is waited for. Leave the first call out: it warms up."""
    started = _now(audio.device)
    codes = encode(audio)
    encoded = _now(audio.device)
    decoded = decode(codes)
    done = _now(audio.device)
    seconds = audio.shape[0] * audio.shape[-1] / sampling_rate
    return Timed(codes, decoded, Speed(seconds, encoded - started, done - encoded))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
