"""What happened between two log lines, as named scalars."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from .codebook import perplexity, share_used
from .step import StepReport

BY_FAMILY = "discriminator/"  # these names are paths already; everything else is of `train/`


def precise(device: torch.device) -> torch.dtype:
    """float64 for sums of many numbers; float32 on Metal, which has no wider type."""
    return torch.float32 if device.type == "mps" else torch.float64


class StepMeter:
    """Adds up step reports; tensors stay on the device until `flush`, so that no step waits for a number."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.losses: dict[str, tuple[Tensor, int]] = {}  # sum and number of the steps that computed it
        self.counts: Tensor | None = None  # (levels, K)
        self.restarts: Tensor | None = None  # (levels,)
        self.steps = 0
        self.waited = 0.0  # seconds for data
        self.audio_seconds = 0.0  # over all ranks
        self.started = time.perf_counter()

    def add(self, report: StepReport, *, waited: float, audio_seconds: float) -> None:
        """Take one step: its report, the seconds it waited for data, the seconds of audio it trained on over all ranks."""
        for name, value in [*report.losses.items(), *_norms(report)]:
            total, number = self.losses.get(name, (torch.zeros_like(value), 0))
            self.losses[name] = total + value, number + 1
        self.counts = _plus(self.counts, report.counts)
        self.restarts = _plus(self.restarts, report.restarts)
        self.steps += 1
        self.waited += waited
        self.audio_seconds += audio_seconds

    def flush(self, mean_over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means since the last flush and start anew; collective."""
        names = list(self.losses)
        means = (
            torch.stack([self.losses[name][0].to(precise(self.losses[name][0].device)) / self.losses[name][1] for name in names])
            if names
            else None
        )
        values = mean_over_ranks(means).tolist() if means is not None else []
        scalars = {_path(name): value for name, value in zip(names, values, strict=True)} | self._codebooks()
        elapsed = time.perf_counter() - self.started
        scalars["time/step_seconds"] = elapsed / max(self.steps, 1)
        scalars["time/data_wait"] = self.waited / elapsed
        scalars["throughput/audio_seconds_per_second"] = self.audio_seconds / elapsed
        self._start()
        return scalars

    def _codebooks(self) -> dict[str, float]:
        if self.counts is None:
            return {}
        columns = {"perplexity": perplexity(self.counts), "share_used": share_used(self.counts)}
        if self.restarts is not None:
            columns["restarts"] = self.restarts
        return {
            f"codebook/level_{level}/{name}": float(value)
            for name, values in columns.items()
            for level, value in enumerate(values.tolist())
        }


def _norms(report: StepReport) -> list[tuple[str, Tensor]]:
    return [(f"grad_norm/{name}", value) for name, value in report.grad_norms.items()]


def _plus(total: Tensor | None, value: Tensor | None) -> Tensor | None:
    return value if total is None else total if value is None else total + value


def _path(name: str) -> str:
    return name if name.startswith(BY_FAMILY) else f"train/{name}"
