"""Whether the melody of the voice is kept: error of the fundamental frequency, and where there is a voice at all.

Pitch comes from SwiftF0 (Nieradzik 2025, package `swift-f0`, which brings its network): 46.9 to 2093.8 Hz, a frame each 16 ms,
voiced where its confidence is at least a half. T samples at 16 kHz, N frames.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .family import Samples

RATE = 16000


class Pitch(NamedTuple):
    """Of each frame (N,)."""

    hertz: NDArray[np.float64]
    voiced: NDArray[np.bool_]


def f0_error_cents(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """Root mean square of the pitch error in cents (100: a semitone), over frames voiced in both; from 0, lower is better.

    An octave mistaken in one frame of a hundred already gives 120 cents. Not defined without such frames. Source: the pitch
    error of CARGAN (Morrison et al. 2022).
    """
    one, other = pitch(real.tobytes()), pitch(fake.tobytes())
    both = one.voiced & other.voiced
    if not both.any():
        return None
    cents = 1200 * np.log2(other.hertz[both] / one.hertz[both])
    return float(np.sqrt(np.mean(np.square(cents))))


def voicing_f1(real: Samples, fake: Samples, sampling_rate: int) -> float | None:
    """F1 of the frames that are voiced: 2 hits / (2 hits + false alarms + misses); 0 to 1, higher is better.

    Not defined where neither original nor reconstruction has a voiced frame. Source: the voicing F1 of CARGAN (Morrison et al.
    2022).
    """
    one, other = pitch(real.tobytes()).voiced, pitch(fake.tobytes()).voiced
    hits, wrong = int((one & other).sum()), int((one ^ other).sum())
    return 2 * hits / (2 * hits + wrong) if hits + wrong else None


@lru_cache(maxsize=8)
def pitch(samples: bytes) -> Pitch:
    """Of float32 samples at 16 kHz; kept, because two metrics ask for the same clips."""
    found = _detector().detect(np.frombuffer(samples, dtype=np.float32), RATE)
    return Pitch(found.pitch_hz, found.confidence >= 0.5)


@lru_cache(maxsize=1)
def _detector() -> Any:
    from swift_f0 import SwiftF0

    return SwiftF0(threads=1)
