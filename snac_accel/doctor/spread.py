"""How weighted numbers and names are spread: quantiles and shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Quantiles(NamedTuple):
    """How a number is spread over the clips or windows."""

    smallest: float
    p05: float
    median: float
    p95: float
    largest: float


def quantiles(values: Iterable[tuple[float, float]]) -> Quantiles | None:
    """Quantiles of (value, weight) pairs: the least value that has a given share of the weight at or below it."""
    pairs = sorted(values)
    if not pairs:
        return None
    weights = np.cumsum([weight for _, weight in pairs])
    places = [int(np.searchsorted(weights, level * weights[-1] - 1e-12)) for level in (0, 0.05, 0.5, 0.95, 1)]
    return Quantiles(*(float(pairs[min(place, len(pairs) - 1)][0]) for place in places))


def shares(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Share of each value, the largest first."""
    sums: dict[str, float] = {}
    for value, weight in values:
        sums[value] = sums.get(value, 0.0) + weight
    total = sum(sums.values())
    return {value: sums[value] / total for value in sorted(sums, key=lambda value: (-sums[value], value))}
