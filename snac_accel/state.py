"""`TrainState`: everything that a checkpoint holds, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .averages import WeightAverage
from .balancer import Balancer
from .codebook import CodebookMethod, CodebookUsage

COUNTERS = (
    "skipped_updates",  # steps that changed no weight, since something was wrong with their numbers
    "spikes",  # those of them whose loss had jumped
    "rollbacks",  # times that the run went back to a checkpoint
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
    average: WeightAverage | None = None  # of the generator's weights; None: not kept
    codebook_method: CodebookMethod | None = None  # what moves the codebooks; None: the optimiser
    snapshot_averages: list[WeightAverage] = field(default_factory=list)  # those of `averaging.snapshot_steps`
    balancer: Balancer | None = None  # of the losses' gradients; None: they are not balanced
    best: dict[str, Any] = field(default_factory=dict)  # validation so far: metric, value, step, better; {}: none yet
    validations_since_best: int = 0
    untouched: dict[str, float] = field(default_factory=dict)  # of a fine-tuning: the metrics at step 0, by name
    validated_at: int | None = None  # step of the last validation that was not broken off
    unlogged: list[dict[str, Any]] = field(default_factory=list)  # of each rank: sums since the last log line
    recent_losses: list[float] = field(default_factory=list)  # what a jump is measured by; empty unless they are looked for
    skipped_in_a_row: int = 0  # steps up to this one
    collapsed: list[int] = field(default_factory=list)  # levels that were warned of and have not recovered

    def models(self) -> list[nn.Module]:
        """All networks, generator first."""
        return [self.generator, *self.discriminators.values()]

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter; the name must be one of `COUNTERS`."""
        self.counters[name] += number

    def averages(self) -> list[WeightAverage]:
        """All that are kept of the generator's weights."""
        return [*([] if self.average is None else [self.average]), *self.snapshot_averages]

    def note_validation(self, metric: str, value: float, better: str = "lower") -> bool:
        """Remember the step's validation; returns whether it is the best so far of the same metric, and finite.

        `better`: lower or higher values.
        """
        self.validated_at = self.step
        best = self.best.get("value") if self.best.get("metric") == metric else None
        gain = 0.0 if best is None else (best - value if better == "lower" else value - best)
        if not math.isfinite(value) or best is not None and gain <= 0:
            self.validations_since_best += 1
            return False
        self.best = {"metric": metric, "value": value, "step": self.step, "better": better}
        self.validations_since_best = 0
        return True

    def progress(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "step": self.step,
            "position": self.position,
            "counters": dict(self.counters),
            "sources": copy.deepcopy(self.sources),
            "scaler": self.scaler.state_dict(),
            "best": dict(self.best),
            "validations_since_best": self.validations_since_best,
            "untouched": dict(self.untouched),
            "validated_at": self.validated_at,
            "unlogged": copy.deepcopy(self.unlogged),
            "recent_losses": list(self.recent_losses),
            "skipped_in_a_row": self.skipped_in_a_row,
            "collapsed": list(self.collapsed),
            "balancer": {} if self.balancer is None else self.balancer.progress(),
        }

    def load_progress(self, saved: Mapping[str, Any]) -> None:
        """Take back what `progress` gave; older checkpoints lack some of it."""
        self.step, self.position = int(saved["step"]), int(saved["position"])
        self.counters.update(saved["counters"])
        self.sources.update(saved.get("sources", {}))
        if saved["scaler"]:  # empty unless the run was in float16
            self.scaler.load_state_dict(dict(saved["scaler"]))
        self.best = dict(saved.get("best") or {})
        self.validations_since_best = int(saved.get("validations_since_best", 0))
        self.untouched = {name: float(value) for name, value in (saved.get("untouched") or {}).items()}
        # Until format 3 a checkpoint was written after the validation of its step.
        self.validated_at = saved.get("validated_at", self.step)
        self.unlogged = list(saved.get("unlogged") or [])
        self.recent_losses = list(saved.get("recent_losses") or [])
        self.skipped_in_a_row = int(saved.get("skipped_in_a_row", 0))
        self.collapsed = list(saved.get("collapsed") or [])
        if self.balancer is not None:
            self.balancer.load_progress(saved.get("balancer") or {})
