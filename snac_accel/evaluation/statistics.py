"""Means with intervals: what another draw of clips might have given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
ROWS_AT_ONCE = 2**22  # numbers drawn at a time


class Estimate(NamedTuple):
    """A mean over clips, and the interval that holds it with the confidence asked for."""

    mean: float
    low: float | None  # None: fewer than two clips
    high: float | None
    num_clips: int


def estimate(
    values: Sequence[float | None], *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Estimate | None:
    """Mean and percentile bootstrap interval of the values that are there; None if there are none.

    Clips are drawn with replacement (Efron and Tibshirani 1993, chapter 13). They are taken as independent: many clips of few
    speakers make an interval that is too narrow for other speakers.
    """
    known = np.array([value for value in values if value is not None and math.isfinite(value)], dtype=np.float64)
    if not len(known):
        return None
    if len(known) == 1:
        return Estimate(float(known[0]), None, None, 1)
    means = _resampled_means(known, np.random.default_rng(seed), resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(known.mean()), float(low), float(high), len(known))


def _resampled_means(values: NDArray[np.float64], draws: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    at_once = max(1, ROWS_AT_ONCE // len(values))
    parts = []
    for start in range(0, resamples, at_once):
        shape = (min(at_once, resamples - start), len(values))
        parts.append(values[draws.integers(len(values), size=shape)].mean(axis=1))
    return np.concatenate(parts)
