"""One clip through one model: what comes back, how far it is from the original, how long that took.

Shapes: T samples, F_l frames of level l.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..audio import resample
from ..errors import CheckpointError
from ..evaluate import evaluation_mode
from ..generator import TrainableSNAC
from ..metrics import find_metric
from ..seeds import derive_seed
from .clips import EvaluationClip
from .models import EvaluatedModel, decode_levels


class Reconstruction(NamedTuple):
    """A clip decoded from the `levels` coarsest levels of its codes."""

    levels: int
    audio: Tensor  # (T,), on the CPU, as long as the original at the model's rate
    values: dict[str, float | None]  # by metric; None: not defined on this clip, or not measured on so few levels
    decode_seconds: float


class Measured(NamedTuple):
    """A clip through a model."""

    codes: list[Tensor]  # per level (F_l,), on the CPU
    reconstructions: list[Reconstruction]  # from the coarsest level alone to all of them, or of all of them only
    encode_seconds: float


@torch.no_grad()
def measure_clip(
    model: EvaluatedModel,
    clip: EvaluationClip,
    metrics: Sequence[str],
    *,
    seed: int = 0,
    every_level: bool = True,
    of_levels: Sequence[str] | None = None,
) -> Measured:
    """Encode a clip, decode it from one level, two, …, and compare; its level is left as it is.

    The original is brought to the model's rate; that is what the model's output is compared with. `of_levels`: those of the
    metrics that are measured on less than all levels (None: all). Raises CheckpointError if what is decoded is not finite: means
    over the other clips would hide it.
    """
    generator = model.generator
    device = next(generator.parameters()).device
    real = resample(clip.audio, clip.sampling_rate, generator.sampling_rate)[None, None].to(device)  # (1, 1, T)
    count = len(generator.vq_strides)
    with evaluation_mode(generator):
        started = _now(device)
        codes = generator.encode(real)
        encoded = _now(device)
        numbers = range(1, count + 1) if every_level else [count]
        some = metrics if of_levels is None else [name for name in metrics if name in of_levels]
        versions = [
            _decode(generator, codes, number, real, clip.name, metrics if number == count else some, seed) for number in numbers
        ]
    if not all(bool(torch.isfinite(version.audio).all()) for version in versions):
        raise CheckpointError(
            f"{model.label} makes audio that is not finite of {clip.name}: its training has diverged; give an earlier checkpoint"
        )
    return Measured([level[0].cpu() for level in codes], versions, encoded - started)


def _decode(
    generator: TrainableSNAC, codes: list[Tensor], number: int, real: Tensor, name: str, metrics: Sequence[str], seed: int
) -> Reconstruction:
    torch.manual_seed(derive_seed(seed, "evaluate", name))
    started = _now(real.device)
    fake = decode_levels(generator, codes, number)[..., : real.shape[-1]]
    seconds = _now(real.device) - started
    values = {metric: _value(metric, real, fake, generator.sampling_rate) for metric in metrics}
    return Reconstruction(number, fake[0, 0].float().cpu(), values, seconds)


def _value(metric: str, real: Tensor, fake: Tensor, sampling_rate: int) -> float | None:
    total, num_clips = find_metric(metric)(real, fake, sampling_rate=sampling_rate)
    return total if num_clips and np.isfinite(total) else None


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def row_of(
    model: str, clip: EvaluationClip, measured: Measured, version: Reconstruction, metrics: Sequence[str]
) -> dict[str, Any]:
    """A line of the table."""
    return {
        "model": model,
        "clip": clip.name,
        "source": clip.source,
        "speaker": clip.speaker,
        "levels": version.levels,
        "all_levels": version.levels == len(measured.codes),
        "seconds": len(clip.audio) / clip.sampling_rate,
        "sampling_rate": clip.sampling_rate,
        **{name: version.values.get(name) for name in metrics},
        "encode_seconds": measured.encode_seconds,
        "decode_seconds": version.decode_seconds,
    }
