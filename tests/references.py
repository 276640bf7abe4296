"""The pairs of clips whose metrics are kept in metric_references.json, as published implementations computed them."""

from __future__ import annotations

from pathlib import Path

import soundfile
import torch
from torch import Tensor


def reference_pair(demo_folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """The first three seconds of a clip of the demo, and the same at 0.8 of its level with noise of 0.01; both (1, 1, T)."""
    seed = int(name[3:7])
    samples, rate = soundfile.read(demo_folder / "train" / name, dtype="float32")
    real = torch.from_numpy(samples[: 3 * rate])
    noise = torch.randn(len(real), generator=torch.Generator().manual_seed(seed))
    return real[None, None], (0.8 * real + 0.01 * noise)[None, None]
