"""What a metric is: a number for each clip, returned as a sum and a count, so that batches and ranks add up exactly.

Every metric is called `f(real, fake, sampling_rate=…)` on (B, 1, T), real first. A clip on which it is not defined (too
short, silent) counts as none. Shapes: B batch, T samples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample

from ..audio import as_batch

SILENCE = 1e-4  # no sample above it (-80 dB of full scale): nothing that speech could be heard in
EXTRA = "snac_accel[metrics]"
Samples = NDArray[np.float32]
log = logging.getLogger(__name__)


class MetricSum(NamedTuple):
    """A sum over clips and the number of clips in it."""

    total: float
    num_clips: int

    def mean(self) -> float:
        """Over the clips; not a number if there are none."""
        return self.total / self.num_clips if self.num_clips else math.nan


@dataclass(frozen=True)
class Metric:
    """A metric with what a table needs to say about it."""

    compute: Callable[..., MetricSum]
    label: str
    unit: str  # "" for a number without one
    better: Literal["lower", "higher"]
    ideal: float | None  # of identical audio; None: not known beforehand
    package: str | None = None  # what `pip install` calls it, beyond the package's own requirements
    needs_reference: bool = True  # False: only `fake` is listened to
    modules: tuple[str, ...] = ()  # what has to be importable

    def __call__(self, real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
        """Sum over the clips of (B, 1, T) on which it is defined."""
        with torch.no_grad():
            return self.compute(real, fake, sampling_rate=sampling_rate)

    def missing(self) -> str | None:
        """What would have to be installed, or None."""
        absent = [module for module in self.modules if find_spec(module) is None]
        return f"needs {self.package or ', '.join(absent)}: pip install '{EXTRA}'" if absent else None


def per_clip(
    real: Tensor, fake: Tensor, measure: Callable[[Tensor, Tensor], Tensor | float | None], *, shortest: int = 1
) -> MetricSum:
    """Sum of `measure` over pairs of (1, 1, T), in float32; None, and clips under `shortest` samples, are left out."""
    pairs = zip(as_batch(real).split(1), as_batch(fake).split(1), strict=True)
    with torch.autocast(real.device.type, enabled=False):
        found = [measure(r, f) for r, f in pairs if r.shape[-1] >= shortest]
    values = [float(value) for value in found if value is not None]
    return MetricSum(sum(values), len(values))


def clip_metric(
    measure: Callable[[Samples, Samples, int], float | None],
    *,
    label: str,
    better: Literal["lower", "higher"],
    unit: str = "",
    ideal: float | None = None,
    sampling_rate: int | None = None,
    lowest: float | None = None,
    package: str | None = None,
    modules: tuple[str, ...] = (),
    needs_reference: bool = True,
) -> Metric:
    """A metric from a function of one clip: `measure(real, fake, sampling_rate)` on two float32 arrays (T,).

    It gets them at `sampling_rate`, if one is given, and returns None where it is not defined. It never sees a silent
    original (not defined), audio that is not finite (not a number), or, with `lowest` given, a silent reconstruction
    (the lowest mark). What it raises makes the clip undefined, with one warning: a package of others never ends a run.
    """

    def compute(real: Tensor, fake: Tensor, *, sampling_rate: int) -> MetricSum:
        return per_clip(real, fake, lambda r, f: one(r, f, sampling_rate))

    def one(real: Tensor, fake: Tensor, given_rate: int) -> float | None:
        if real.numel() == 0 or float(real.abs().max()) < SILENCE:
            return None
        if not bool(torch.isfinite(fake).all()):
            return math.nan
        if lowest is not None and float(fake.abs().max()) < SILENCE:
            return lowest
        rate = sampling_rate or given_rate
        try:
            value = measure(_samples(real, given_rate, rate), _samples(fake, given_rate, rate), rate)
        except Exception as error:
            _warn_once(label, type(error).__name__, str(error))
            return None
        return None if value is None or math.isnan(value) else float(value)

    return Metric(compute, label, unit, better, ideal, package, needs_reference, modules)


def _samples(audio: Tensor, from_rate: int, to_rate: int) -> Samples:
    """(1, 1, T) as (T,) at `to_rate`, on the CPU."""
    samples: Any = resample(audio.detach().flatten().float().cpu(), from_rate, to_rate).numpy()
    return samples


@lru_cache(maxsize=256)
def _warn_once(label: str, kind: str, reason: str) -> None:
    """One line for each reason, however many clips it concerns."""
    log.warning("%s is not defined on some clips: %s: %s", label, kind, reason)
