"""`TrainState`: everything that a checkpoint holds, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .codebook import CodebookUsage


COUNTERS = (
    "skipped_updates",  # steps whose loss or gradient was not finite
    "audio_samples",  # their samples without padding
    "padding_samples",  # zeros appended to short clips
    "bad_clips",  # clips that could not be decoded
    "network_retries",  # requests of a stream that had to be made again
)


@dataclass
class TrainState:
    """The moving parts of a run. Models may be wrapped (DDP); `generator` and `discriminators` are called as they are."""

    generator: nn.Module
    discriminators: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]  # "generator", "discriminator"
    schedules: dict[str, LRScheduler]  # the same keys
    usage: CodebookUsage
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))  # of the losses; float16 only
    step: int = 0  # global batches consumed
    position: int = 0  # windows consumed, over all ranks: where the stream of samples goes on
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    sources: dict[str, dict[str, int]] = field(default_factory=dict)  # windows and bad clips of each source

    def models(self) -> list[nn.Module]:
        """All networks, generator first."""
        return [self.generator, *self.discriminators.values()]

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter; the name must be one of `COUNTERS`."""
        self.counters[name] += number

    def progress(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "step": self.step,
            "position": self.position,
            "counters": dict(self.counters),
            "sources": copy.deepcopy(self.sources),
            "scaler": self.scaler.state_dict(),
        }
